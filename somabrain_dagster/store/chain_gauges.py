"""What the learning chain did, what is on trial, and how far the chain is behind, for metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from somabrain_dagster.learning.gates import number_from_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.experiments import (
    list_experiments,
    outcomes_of,
    read_findings,
    read_live_sessions,
    read_outcomes,
)
from somabrain_dagster.store.positions import CONSUMERS, read_heads, read_lag


@dataclass(frozen=True)
class ChainCounts:
    """How much the learning chain did, each by what came of it.

    Attributes:
        failed_runs: of Dagster, by job.
        trends: tenants, by the direction of their newest trend.
        proposals: accepted and refused.
        fits: of tenants' own weights, accepted and refused.
        experiments: by status.
        canaries: by status.
        looks: at canaries, by action.
        promotions: promoted, and undone.
    """

    failed_runs: Mapping[str, int]
    trends: Mapping[str, int]
    proposals: Mapping[str, int]
    fits: Mapping[str, int]
    experiments: Mapping[str, int]
    canaries: Mapping[str, int]
    looks: Mapping[str, int]
    promotions: Mapping[str, int]


def read_chain_counts(connection: Connection) -> ChainCounts:
    """What the learning chain did.

    Args:
        connection: an operator's transaction.
    """
    counted: dict[str, dict[str, int]] = {field.name: {} for field in fields(ChainCounts)}
    rows = connection.execute(
        """
        SELECT 'failed_runs', body ->> 'job', count(*) FROM audit_events
        WHERE tenant_id = '_system' AND action = 'run_failed' GROUP BY 2
        UNION ALL
        SELECT 'trends', CASE direction WHEN 1 THEN 'rising' WHEN -1 THEN 'falling' ELSE 'none' END, count(*)
        FROM adaptation_states s CROSS JOIN LATERAL (
            SELECT direction FROM performance_trends t
            WHERE t.tenant_id = s.tenant_id ORDER BY feedback_seq DESC LIMIT 1
        ) AS newest
        GROUP BY 2
        UNION ALL
        SELECT 'proposals', CASE WHEN accepted THEN 'accepted' ELSE 'refused' END, count(*)
        FROM parameter_proposals GROUP BY 2
        UNION ALL
        SELECT 'fits', CASE WHEN accepted THEN 'accepted' ELSE 'refused' END, count(*)
        FROM tenant_fits GROUP BY 2
        UNION ALL SELECT 'experiments', status, count(*) FROM experiments GROUP BY 2
        UNION ALL SELECT 'canaries', status, count(*) FROM canaries GROUP BY 2
        UNION ALL SELECT 'looks', action, count(*) FROM canary_looks GROUP BY 2
        UNION ALL
        SELECT 'promotions', CASE WHEN reverts IS NULL THEN 'promoted' ELSE 'undone' END, count(*)
        FROM promotions GROUP BY 2
        """
    )
    for what, label, count in rows:
        counted[what][label] = count
    return ChainCounts(**counted)


@dataclass(frozen=True)
class ArmGauges:
    """An arm of an experiment.

    Attributes:
        sessions: that have their number.
        mean: of these numbers; None where there is none.
        p, effect, promotable: what the analysis found of a treatment; None before it, and of a control.
    """

    sessions: int
    mean: float | None
    p: float | None
    effect: float | None
    promotable: bool | None


@dataclass(frozen=True)
class ExperimentGauges:
    """An experiment.

    Attributes:
        size: the sessions that each arm needs.
        arms: by name.
    """

    experiment_id: str
    status: str
    size: int
    arms: Mapping[str, ArmGauges]


def read_experiment_gauges(connection: Connection, most: int) -> list[ExperimentGauges]:
    """The newest experiments; of one that runs the sessions as they are now.

    Args:
        connection: an operator's transaction.
        most: how many.
    """
    experiments = list_experiments(connection)[-most:]
    names = [experiment.experiment_id for experiment in experiments]
    sessions, findings = read_outcomes(connection, names), read_findings(connection, names)
    for experiment in experiments:
        if experiment.status == "running":
            lived = outcomes_of(experiment.plan, read_live_sessions(connection, experiment))
            sessions[experiment.experiment_id] = {arm: (one.n, one.mean) for arm, one in lived.items()}
    gauges = []
    for experiment in experiments:
        outcomes = sessions.get(experiment.experiment_id, {})
        found = findings.get(experiment.experiment_id, {})
        arms = {}
        for arm in (one.name for one in experiment.plan.arms):
            count, mean = outcomes.get(arm, (0, None))
            finding = found.get(arm, {})
            comparison = finding.get("comparison")
            arms[arm] = ArmGauges(
                sessions=count,
                mean=mean if count else None,
                p=finding.get("p"),
                effect=None if comparison is None else number_from_json(comparison["d"]),
                promotable=finding.get("promotable"),
            )
        gauges.append(
            ExperimentGauges(experiment.experiment_id, experiment.status, experiment.plan.size, arms)
        )
    return gauges


@dataclass(frozen=True)
class LagGauges:
    """How far a consumer is behind.

    Attributes:
        tenants: whose log goes on beyond their mark.
        events: feedback events beyond the marks.
        seconds: for which the oldest change beyond them has waited; 0 where none waits.
    """

    tenants: int
    events: int
    seconds: float


@dataclass(frozen=True)
class LogGauges:
    """Where the logs are, and how far their consumers.

    Attributes:
        changes: of weights, that all logs hold.
        lags: by consumer.
    """

    changes: int
    lags: Mapping[str, LagGauges]


def read_log_gauges(connection: Connection) -> LogGauges:
    """How far the chain is behind what landed.

    Args:
        connection: an operator's transaction.
    """
    heads = read_heads(connection)
    lags = {consumer: read_lag(connection, consumer, heads) for consumer in CONSUMERS}
    ((now,),) = connection.execute("SELECT clock_timestamp()").fetchall()
    return LogGauges(
        changes=sum(head.version + 1 for head in heads),
        lags={
            consumer: LagGauges(
                tenants=len(lag.tenants),
                events=lag.events,
                seconds=(now - (lag.waiting_since or now)).total_seconds(),
            )
            for consumer, lag in lags.items()
        },
    )
