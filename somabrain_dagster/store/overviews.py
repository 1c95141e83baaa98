"""Experiments as a list tells of them: what is stored, nothing analysed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from somabrain_dagster.learning.gates import number_from_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.experiments import Experiment, outcomes_of, read_latest, read_live_sessions


@dataclass(frozen=True)
class ArmOverview:
    """An arm of an experiment in numbers.

    Attributes:
        share: of the sessions.
        sessions: of which something was said.
        mean: of their numbers; None where there are none.
        p: Holm's, against the control; None where nothing was analysed.
        d: Cohen's; None where nothing was compared.
    """

    name: str
    share: float
    sessions: int
    mean: float | None
    p: float | None
    d: float | None


@dataclass(frozen=True, eq=False)
class Overview:
    """An experiment in numbers.

    Attributes:
        promoted_arm: the arm that passed every gate; None where none did, or nothing was analysed.
        canary: the status of the newest canary that tries it; None where there is none.
    """

    experiment: Experiment
    arms: tuple[ArmOverview, ...]
    promoted_arm: str | None
    canary: str | None


def read_overviews(connection: Connection, before: str | None = None, most: int = 100) -> list[Overview]:
    """The last experiments that were drawn up, the newest first.

    Args:
        connection: an operator's transaction.
        before: only those that were drawn up before this one.
        most: at most so many.
    """
    experiments = read_latest(connection, before, most)
    names = [one.experiment_id for one in experiments]
    counted = _count_sessions(connection, names)
    for running in (one for one in experiments if one.status == "running"):
        outcomes = outcomes_of(running.plan, read_live_sessions(connection, running))
        counted |= {(running.experiment_id, arm): (one.n, one.mean) for arm, one in outcomes.items() if one.n}
    analysed = {
        name: (promoted_arm, {finding["arm"]: finding for finding in findings})
        for name, promoted_arm, findings in connection.execute(
            "SELECT experiment_id, promoted_arm, analysis -> 'findings' FROM experiment_analyses "
            "WHERE experiment_id = ANY (%s)",
            (names,),
        )
    }
    canaries: dict[str, str] = dict(
        connection.execute(
            "SELECT experiment_id, status FROM canaries WHERE experiment_id = ANY (%s) ORDER BY canary_id",
            (names,),
        ).fetchall()
    )
    overviews = []
    for experiment in experiments:
        name = experiment.experiment_id
        promoted_arm, findings = analysed.get(name, (None, {}))
        arms = tuple(
            _arm(arm.name, arm.share, counted.get((name, arm.name), (0, None)), findings.get(arm.name, {}))
            for arm in experiment.plan.arms
        )
        overviews.append(Overview(experiment, arms, promoted_arm, canaries.get(name)))
    return overviews


def _count_sessions(
    connection: Connection, names: Sequence[str]
) -> dict[tuple[str, str], tuple[int, float | None]]:
    """The number of sessions and the mean of their numbers, by experiment that ended and arm."""
    rows = connection.execute(
        "SELECT experiment_id, arm, count(*), avg(value) FROM experiment_sessions "
        "WHERE experiment_id = ANY (%s) GROUP BY experiment_id, arm",
        (names,),
    )
    return {(name, arm): (sessions, mean) for name, arm, sessions, mean in rows}


def _arm(
    name: str, share: float, counted: tuple[int, float | None], finding: Mapping[str, Any]
) -> ArmOverview:
    compared = finding.get("comparison")
    d = None if compared is None else number_from_json(compared["d"])
    return ArmOverview(name, share, *counted, finding.get("p"), d)
