"""Canaries as they are stored: who sees the new weights first, and what each look at them decided."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np

from somabrain_dagster.learning.canary import (
    Action,
    CanaryRule,
    Decision,
    TenantPeriods,
    canaries,
    decide,
    due,
)
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.weights import Nanos
from somabrain_dagster.store import audit
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.experiments import (
    Analysed,
    WrongStatus,
    agree,
    comparison_json,
    read_analysis,
    read_experiment,
)
from somabrain_dagster.store.promotions import promoted
from somabrain_dagster.store.trials import arm_of_canary, lock_trials, require_no_trial

Status = Literal["running", "promoted", "rolled_back", "held"]

STARTED, LOOKED, ENDED = "canary.started", "canary.looked", "canary.ended"
"""In the audit trail."""


class UnknownCanary(LookupError):
    """There is no such canary, or none at all."""


@dataclass(frozen=True, eq=False)
class Canary:
    """A canary.

    Attributes:
        experiment_id, arm: what it tries.
        shift: (K,) nano-units, as its tenants' weights are read.
        scale_version: the scales that its tenants see; None for their own.
        looks: the numbers of the looks that were taken, rising.
        action: what the last of them decided; None before the first.
    """

    canary_id: int
    experiment_id: str
    arm: str
    actor: str
    status: Status
    shift: Nanos
    scale_version: int | None
    rule: CanaryRule
    started_at: datetime
    ended_at: datetime | None
    end_reason: str | None
    looks: tuple[int, ...]
    action: Action | None

    @property
    def allowed(self) -> bool:
        """It runs, and its last look says that it may be promoted."""
        return self.status == "running" and self.action == "PROMOTE"

    @property
    def name(self) -> str:
        """The arm of its tenants, as recalls and feedback keep it."""
        return arm_of_canary(self.canary_id)


_COLUMNS = """
    c.canary_id, c.experiment_id, c.arm, c.actor, c.status, c.shift, c.scale_version, c.rule, c.started_at,
    c.ended_at, c.end_reason,
    ARRAY(SELECT l.look FROM canary_looks l WHERE l.canary_id = c.canary_id ORDER BY l.look),
    (SELECT l.action FROM canary_looks l WHERE l.canary_id = c.canary_id ORDER BY l.look DESC LIMIT 1)
"""


def _from_row(row: Sequence[Any]) -> Canary:
    number, experiment_id, arm, actor, status, shift, scales, rule, *rest = row
    started_at, ended_at, reason, looks, action = rest
    rule = {name: tuple(value) if isinstance(value, list) else value for name, value in rule.items()}
    return Canary(
        canary_id=number,
        experiment_id=experiment_id,
        arm=arm,
        actor=actor,
        status=status,
        shift=np.array(shift, dtype=np.int64),
        scale_version=scales,
        rule=CanaryRule(**rule),
        started_at=started_at,
        ended_at=ended_at,
        end_reason=reason,
        looks=tuple(looks),
        action=action,
    )


def read_canary(connection: Connection, canary_id: int) -> Canary:
    """One canary.

    Raises:
        UnknownCanary: there is no such canary.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM canaries c WHERE c.canary_id = %s",  # noqa: S608 — a constant
        (canary_id,),
    ).fetchone()
    if row is None:
        raise UnknownCanary(f"there is no canary {canary_id}")
    return _from_row(row)


def list_canaries(connection: Connection) -> list[Canary]:
    """Every canary, the oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM canaries c ORDER BY c.canary_id"  # noqa: S608 — a constant
    )
    return [_from_row(row) for row in rows]


def running_canary(connection: Connection) -> Canary | None:
    """The canary that runs, if one does."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM canaries c WHERE c.status = 'running'"  # noqa: S608 — a constant
    ).fetchone()
    return None if row is None else _from_row(row)


def untried_winner(connection: Connection, configuration: LearningConfiguration) -> str | None:
    """The newest completed experiment with an arm to promote that no canary has tried, if there is one.

    One that compared with weights that are no longer promoted does not count.
    """
    row = connection.execute(
        """
        SELECT e.experiment_id FROM experiment_analyses a JOIN experiments e USING (experiment_id)
        WHERE a.promoted_arm IS NOT NULL AND e.promotion_version = %s
            AND NOT EXISTS (SELECT FROM canaries c WHERE c.experiment_id = e.experiment_id)
        ORDER BY a.test DESC LIMIT 1
        """,
        (promoted(connection, configuration).version,),
    ).fetchone()
    return None if row is None else str(row[0])


class NothingToPromote(RuntimeError):
    """An experiment in which no arm passed every gate; the message names those that failed."""


def start_canary(
    connection: Connection,
    experiment_id: str,
    rule: CanaryRule,
    configuration: LearningConfiguration,
    actor: str,
) -> Canary:
    """Let a few tenants see the arm that an experiment found better.

    Args:
        connection: an operator's transaction; all is done in it.
        experiment_id: that was completed.
        rule: how many tenants, when it is looked at, and what decides.
        configuration: the global learning configuration, to know what is promoted.
        actor: who asks, for the audit trail.

    Raises:
        UnknownExperiment: there is no such experiment.
        NotAnalysed: it was not completed.
        NothingToPromote: no arm passed every gate.
        WrongStatus: other weights were promoted since.
        TrialRunning: something else is on trial.
        ValueError: there are fewer than two tenants.
    """
    lock_trials(connection)
    experiment = read_experiment(connection, experiment_id)
    arm = winner_of(read_analysis(connection, experiment_id))
    require_no_trial(connection)
    now_promoted = promoted(connection, configuration).version
    if now_promoted != experiment.promotion_version:
        raise WrongStatus(
            f"the experiment {experiment_id!r} compared with promotion {experiment.promotion_version}, but "
            f"promotion {now_promoted} is in force: experiment anew"
        )
    sizes = _sessions_before(connection, rule)
    chosen = set(canaries(f"canary:{experiment_id}", sizes, rule))
    ((number,),) = connection.execute(
        """
        INSERT INTO canaries (experiment_id, arm, actor, shift, scale_version, rule)
        VALUES (%s, %s, %s, %s, %s, %s::jsonb) RETURNING canary_id
        """,
        (
            experiment_id,
            arm,
            actor,
            experiment.shift_of(arm).tolist(),
            experiment.scale_version,
            canonical_json(asdict(rule)).decode(),
        ),
    ).fetchall()
    connection.execute(
        """
        INSERT INTO canary_members (canary_id, tenant_id, canary)
        SELECT %s, t.tenant_id, t.tenant_id = ANY (%s) FROM unnest(%s::text[]) AS t (tenant_id)
        """,
        (number, list(chosen), list(sizes)),
    )
    body = {
        "canary_id": number,
        "experiment_id": experiment_id,
        "arm": arm,
        "tenants": len(chosen),
        "compared_with": len(sizes) - len(chosen),
        "rule": asdict(rule),
    }
    audit.record(connection, audit.SYSTEM, actor, STARTED, body)
    return read_canary(connection, number)


def winner_of(analysed: Analysed) -> str:
    """The arm that an experiment allows to promote.

    Raises:
        NothingToPromote: no arm passed every gate.
    """
    arm = analysed.analysis.promoted
    if arm is None:
        refused = "; ".join(
            f"{finding.arm}: {', '.join(str(gate) for gate in finding.gates if not gate.passed)}"
            for finding in analysed.analysis.findings
        )
        raise NothingToPromote(f"no arm of {analysed.experiment_id!r} passed every gate: {refused}")
    return arm


# A session counts if it recalled; its number is the mean reward of its feedback.
_PERIOD = """
    WITH recalled AS MATERIALIZED (
        SELECT DISTINCT tenant_id, session_id FROM recalls
        WHERE session_id IS NOT NULL AND created_at >= %(from)s AND created_at < %(until)s
    ), landed AS (
        SELECT e.tenant_id, e.session_id, min(e.created_at) AS first,
            sum(coalesce(e.reward, e.utility) ORDER BY e.seq) / count(*) AS value
        FROM recalled r JOIN feedback_events e USING (tenant_id, session_id)
        WHERE e.created_at >= %(from)s AND e.created_at < %(until)s
        GROUP BY e.tenant_id, e.session_id
    )
"""


def _sessions_before(connection: Connection, rule: CanaryRule) -> dict[str, int]:
    """How many sessions each tenant had in the period before now; 0 where it had none."""
    rows = connection.execute(
        f"""
        {_PERIOD}
        SELECT s.tenant_id, count(l.session_id)
        FROM adaptation_states s LEFT JOIN landed l USING (tenant_id) GROUP BY s.tenant_id
        """,  # noqa: S608 — of constants
        _period(connection, rule, None),
    )
    return dict(rows.fetchall())


def _period(connection: Connection, rule: CanaryRule, started_at: datetime | None) -> dict[str, Any]:
    row = connection.execute(
        """
        SELECT coalesce(%(at)s, now()) - make_interval(secs => 3600.0 * %(hours)s), coalesce(%(at)s, now())
        """,
        {"at": started_at, "hours": rule.hours_before},
    ).fetchone()
    assert row is not None
    return {"from": row[0], "until": row[1]}


def due_look(connection: Connection, canary: Canary) -> int | None:
    """Which look at a running canary is due by the database's clock, if one is."""
    row = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp() - %s)::float8 / 3600", (canary.started_at,)
    ).fetchone()
    assert row is not None
    return due(canary.rule, row[0], max(canary.looks, default=-1))


def read_periods(connection: Connection, canary: Canary) -> dict[str, TenantPeriods]:
    """The moments of each member's sessions, in the period before the canary and since."""
    before = _moments(connection, _period(connection, canary.rule, canary.started_at), begun_before=None)
    since = _moments(
        connection, {"from": canary.started_at, "until": "infinity"}, begun_before=canary.started_at
    )
    members = connection.execute(
        "SELECT tenant_id FROM canary_members WHERE canary_id = %s ORDER BY tenant_id", (canary.canary_id,)
    )
    return {
        tenant_id: TenantPeriods(before.get(tenant_id, Moments()), since.get(tenant_id, Moments()))
        for (tenant_id,) in members
    }


def _moments(
    connection: Connection, period: Mapping[str, Any], begun_before: datetime | None
) -> dict[str, Moments]:
    """The moments of sessions by tenant; without those that had feedback before a time already."""
    rows = connection.execute(
        f"""
        {_PERIOD}
        SELECT l.tenant_id, array_agg(l.value ORDER BY l.session_id)
        FROM landed l
        WHERE %(begun_before)s::timestamptz IS NULL OR NOT EXISTS (
            SELECT FROM feedback_events e WHERE e.tenant_id = l.tenant_id AND e.session_id = l.session_id
                AND e.created_at < %(begun_before)s
        )
        GROUP BY l.tenant_id
        """,  # noqa: S608 — of constants
        {**period, "begun_before": begun_before},
    )
    return {tenant_id: Moments.of(values) for tenant_id, values in rows}


@dataclass(frozen=True, eq=False)
class Looked:
    """A look at a canary, as it is stored.

    Attributes:
        canary, control: the tenants' moments that it rests on.
    """

    look: int
    looked_at: datetime
    action: Action
    decision: Decision
    canary: tuple[TenantPeriods, ...]
    control: tuple[TenantPeriods, ...]


def take_look(
    connection: Connection,
    canary_id: int,
    look: int,
    guardrails: Mapping[str, Gate],
    actor: str,
) -> Looked:
    """Look at a canary, decide, and write down the decision with all that it rests on.

    A ROLLBACK ends the canary at once, and so does a HOLD at the last look: then its tenants see their own
    weights again, and nothing goes on before a person has decided. After PROMOTE it runs until the promotion.

    Args:
        connection: an operator's transaction; all is done in it.
        canary_id: that runs.
        look: its number, from 0.
        guardrails: the measured ones, by name.
        actor: who asks, for the audit trail.

    Raises:
        UnknownCanary: there is no such canary.
        WrongStatus: it does not run, or was looked at by this number already.
    """
    lock_trials(connection)
    canary = read_canary(connection, canary_id)
    if canary.status != "running":
        raise WrongStatus(f"canary {canary_id} does not run: it is {canary.status}")
    if canary.looks and look <= canary.looks[-1]:
        raise WrongStatus(f"canary {canary_id} was looked at {len(canary.looks)} times: look {look} is over")
    periods = read_periods(connection, canary)
    on_trial = set(members_of(connection, canary_id)[0])
    decision = decide(
        canary.rule,
        look,
        [one for tenant, one in periods.items() if tenant in on_trial],
        [one for tenant, one in periods.items() if tenant not in on_trial],
        guardrails,
    )
    body = {
        **decision_json(decision),
        "guardrails": {name: gate.to_json() for name, gate in guardrails.items()},
    }
    connection.execute(
        "INSERT INTO canary_looks (canary_id, look, action, decision) VALUES (%s, %s, %s, %s::jsonb)",
        (canary_id, look, decision.action, canonical_json(body).decode()),
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO canary_periods (
                tenant_id, canary_id, look, before_sessions, before_mean, before_variance,
                since_sessions, since_mean, since_variance
            ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                (
                    tenant_id,
                    canary_id,
                    look,
                    *(one.before.n, one.before.mean, one.before.variance),
                    *(one.since.n, one.since.mean, one.since.variance),
                )
                for tenant_id, one in periods.items()
            ],
        )
    recorded = {"canary_id": canary_id, "look": look, **body}
    audit.record(connection, audit.SYSTEM, actor, LOOKED, recorded)
    if decision.action == "ROLLBACK":
        end_canary(connection, canary, "rolled_back", actor, "; ".join(decision.reasons))
    elif decision.action == "HOLD" and look == len(canary.rule.hours) - 1:
        end_canary(connection, canary, "held", actor, "; ".join(decision.reasons))
    return read_look(connection, canary, look)


def members_of(connection: Connection, canary_id: int) -> tuple[list[str], list[str]]:
    """The tenants that see a canary's weights, and those that they are compared with; each by name."""
    rows = connection.execute(
        "SELECT tenant_id, canary FROM canary_members WHERE canary_id = %s ORDER BY tenant_id", (canary_id,)
    ).fetchall()
    return [tenant for tenant, canary in rows if canary], [tenant for tenant, canary in rows if not canary]


def end_canary(connection: Connection, canary: Canary, status: Status, actor: str, reason: str) -> None:
    """End a canary: its tenants see their own weights again, or those that are promoted with it.

    Args:
        connection: an operator's transaction that holds `lock_trials`.
        canary: that runs.
        status: what it came to.
        actor: who asks, for the audit trail.
        reason: why.
    """
    connection.execute(
        "UPDATE canaries SET status = %s, ended_at = now(), end_reason = %s WHERE canary_id = %s",
        (status, reason, canary.canary_id),
    )
    body = {"canary_id": canary.canary_id, "status": status, "reason": reason}
    audit.record(connection, audit.SYSTEM, actor, ENDED, body)


def stop_canary(connection: Connection, actor: str, reason: str) -> Canary:
    """End the canary that runs: held, with nothing promoted.

    Raises:
        UnknownCanary: none runs.
    """
    lock_trials(connection)
    canary = running_canary(connection)
    if canary is None:
        raise UnknownCanary("no canary runs")
    end_canary(connection, canary, "held", actor, reason)
    return read_canary(connection, canary.canary_id)


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as JSON keeps it."""
    return {
        "action": decision.action,
        "gates": [gate.to_json() for gate in decision.gates],
        "comparison": comparison_json(decision.comparison),
    }


class ForgedLook(RuntimeError):
    """What is stored of a look is not what the stored numbers give."""


def read_look(connection: Connection, canary: Canary, look: int) -> Looked:
    """A look, decided again from the numbers that it rests on and compared with what is stored.

    Raises:
        UnknownCanary: there was no such look.
        ForgedLook: the stored decision is not that of the stored numbers.
    """
    row = connection.execute(
        "SELECT looked_at, action, decision FROM canary_looks WHERE canary_id = %s AND look = %s",
        (canary.canary_id, look),
    ).fetchone()
    if row is None:
        raise UnknownCanary(f"canary {canary.canary_id} was not looked at by number {look}")
    looked_at, action, stored = row
    rows = connection.execute(
        """
        SELECT m.canary, p.before_sessions, p.before_mean, p.before_variance,
            p.since_sessions, p.since_mean, p.since_variance
        FROM canary_periods p JOIN canary_members m USING (tenant_id, canary_id)
        WHERE p.canary_id = %s AND p.look = %s ORDER BY p.tenant_id
        """,
        (canary.canary_id, look),
    )
    groups: dict[bool, list[TenantPeriods]] = {True: [], False: []}
    for on_trial, *moments in rows:
        groups[on_trial].append(TenantPeriods(Moments(*moments[:3]), Moments(*moments[3:])))
    guardrails = {name: Gate.from_json(gate) for name, gate in stored["guardrails"].items()}
    decision = decide(canary.rule, look, groups[True], groups[False], guardrails)
    kept = {name: value for name, value in stored.items() if name != "guardrails"}
    if action != decision.action or not agree(decision_json(decision), kept):
        raise ForgedLook(
            f"what is stored of look {look} at canary {canary.canary_id} is not what its stored numbers give"
        )
    return Looked(look, looked_at, decision.action, decision, tuple(groups[True]), tuple(groups[False]))
