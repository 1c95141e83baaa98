"""What is on trial: the experiment that runs, the canary that runs, and so the weights that a session sees.

A trial never enters a tenant's log. It is an overlay on the tenant's weights at the moment of a recall: they
are converted to the trial's scales, shifted, and clipped to the tenant's bounds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from somabrain_dagster.learning.experiments import Arm, assign
from somabrain_dagster.learning.weights import Nanos
from somabrain_dagster.store.database import Connection

CHANNEL = "somabrain_trials"
"""On which Postgres tells that a trial began or ended."""

CANARY = "canary"
"""The name of the arm of a canary's tenants."""


class TrialRunning(RuntimeError):
    """Another trial runs; the message says which, and how to end it."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """An arm: how a tenant's weights are read, never an entry of its log.

    Attributes:
        arm: the arm's name, as recalls and feedback keep it.
        shift: (K,) nano-units; the sum stays within the tenant's bounds.
        scale_version: the scales that features are divided by, to which the weights are converted before they
            are shifted; None for the tenant's own.
    """

    arm: str
    shift: Nanos
    scale_version: int | None = None


@dataclass(frozen=True, eq=False)
class RunningExperiment:
    """An experiment as a session meets it; A arms, the first is the control.

    Attributes:
        shifts: (A, K) nano-units.
        scale_version: of all arms but the control; None for the tenant's own.
    """

    experiment_id: str
    salt: str
    arms: tuple[Arm, ...]
    shifts: Nanos
    scale_version: int | None

    def overlay(self, tenant_id: str, session_id: str) -> Overlay:
        """The arm of a session."""
        arm = assign(self.salt, f"{tenant_id}/{session_id}", self.arms)
        place = [one.name for one in self.arms].index(arm)
        return Overlay(
            arm_of_experiment(self.experiment_id, arm),
            self.shifts[place],
            None if place == 0 else self.scale_version,
        )


@dataclass(frozen=True, eq=False)
class RunningCanary:
    """A canary as a tenant meets it.

    Attributes:
        tenants: those that see the new weights, of the ones that the transaction sees.
        shift: (K,) nano-units.
        scale_version: None for the tenant's own.
    """

    canary_id: int
    tenants: frozenset[str]
    shift: Nanos
    scale_version: int | None

    @property
    def overlay(self) -> Overlay:
        """What its tenants see."""
        return Overlay(arm_of_canary(self.canary_id), self.shift, self.scale_version)


@dataclass(frozen=True)
class Trials:
    """What is on trial at an instant."""

    experiment: RunningExperiment | None = None
    canary: RunningCanary | None = None

    def overlay(self, tenant_id: str, session_id: str | None) -> Overlay | None:
        """The overlay on a tenant's weights in a session; None where nothing is on trial.

        A recall outside of any session is no unit of an experiment, and sees the tenant's own weights.
        """
        if self.canary is not None and tenant_id in self.canary.tenants:
            return self.canary.overlay
        if self.experiment is not None and session_id is not None:
            return self.experiment.overlay(tenant_id, session_id)
        return None

    def arm_of(self, tenant_id: str, session_id: str | None) -> str | None:
        """The arm that a session of a tenant sees, as recalls and feedback keep it."""
        overlay = self.overlay(tenant_id, session_id)
        return None if overlay is None else overlay.arm


def arm_of_experiment(experiment_id: str, arm: str) -> str:
    """An arm of an experiment, as recalls and feedback keep it."""
    return f"{experiment_id}/{arm}"


def arm_of_canary(canary_id: int) -> str:
    """The arm of a canary's tenants, as recalls and feedback keep it."""
    return f"canary-{canary_id}/{CANARY}"


def ask_trials(connection: Connection) -> psycopg.Cursor[tuple[Any, ...]]:
    """Ask what is on trial; in a pipeline the answer is there later, for `trials_of`.

    Args:
        connection: an operator's transaction, or one for the tenants that are asked about.
    """
    return connection.execute(
        """
        SELECT
            e.experiment_id, e.salt, e.arms, e.shares, e.shifts, e.scale_version,
            c.canary_id, c.shift, c.scale_version, ARRAY(
                SELECT m.tenant_id FROM canary_members m WHERE m.canary_id = c.canary_id AND m.canary
            )
        FROM (SELECT) AS one
        LEFT JOIN experiments e ON e.status = 'running'
        LEFT JOIN canaries c ON c.status = 'running'
        """
    )


def trials_of(asked: psycopg.Cursor[tuple[Any, ...]]) -> Trials:
    """What is on trial, as `ask_trials` asked."""
    row = asked.fetchone()
    assert row is not None
    experiment_id, salt, arms, shares, shifts, scales, canary_id, shift, canary_scales, tenants = row
    return Trials(
        None
        if experiment_id is None
        else RunningExperiment(
            experiment_id,
            salt,
            tuple(Arm(name, share) for name, share in zip(arms, shares, strict=True)),
            np.array(shifts, dtype=np.int64),
            scales,
        ),
        None
        if canary_id is None
        else RunningCanary(canary_id, frozenset(tenants), np.array(shift, dtype=np.int64), canary_scales),
    )


def read_trials(connection: Connection) -> Trials:
    """What is on trial now; see `ask_trials`."""
    return trials_of(ask_trials(connection))


def lock_trials(connection: Connection) -> None:
    """Let one transaction at a time begin, end or promote what is on trial."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('somabrain_trials'))")


def require_no_trial(connection: Connection) -> None:
    """Make sure that nothing is on trial: what two trials would show together could not be told apart.

    Args:
        connection: an operator's transaction that holds `lock_trials`.

    Raises:
        TrialRunning: something is.
    """
    trials = read_trials(connection)
    if trials.experiment is not None:
        name = trials.experiment.experiment_id
        raise TrialRunning(
            f"the experiment {name!r} runs: wait for it, or end it with `somabrain experiment stop {name}`"
        )
    if trials.canary is not None:
        raise TrialRunning(
            f"canary {trials.canary.canary_id} runs: wait for it, or end it with `somabrain canary stop`"
        )
