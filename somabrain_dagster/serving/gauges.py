"""What is so, read at each scrape from Postgres, Redis and Dagster's storage, which all processes share."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from somabrain_dagster.learning.canary import Action
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.guard import fall
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, UTILITY, to_units
from somabrain_dagster.store import canaries, experiments
from somabrain_dagster.store.adaptation import read_configurations
from somabrain_dagster.store.chain_gauges import (
    ChainCounts,
    ExperimentGauges,
    LogGauges,
    read_chain_counts,
    read_experiment_gauges,
    read_log_gauges,
)
from somabrain_dagster.store.corpora import CorpusCounts, corpus_counts
from somabrain_dagster.store.dagster_storage import DagsterGauges, read_dagster
from somabrain_dagster.store.database import Connection, DatabaseUnreachable
from somabrain_dagster.store.gauges import TenantGauges, read_adjustments, read_gauges
from somabrain_dagster.store.kafka_health import KAFKA_STATES, KafkaCounts, read_kafka_health
from somabrain_dagster.store.operations_gauges import (
    OperationsGauges,
    PartitionCounts,
    read_operations_gauges,
    read_partition_counts,
)
from somabrain_dagster.store.outbox import Unpublished, read_unpublished, relay_runs
from somabrain_dagster.store.partition_seals import Relation
from somabrain_dagster.store.retention import RELATIONS
from somabrain_dagster.store.working_memory import WorkingMemoryUnavailable

if TYPE_CHECKING:
    from somabrain_dagster.serving.service import Service

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)

NEWEST_EXPERIMENTS = 20
"""So many have labels of their own."""

Samples = Iterable[tuple[Sequence[str], float | None]]
"""Label values and a number each; None where there is nothing to tell."""

_OWNERS = {name: f"somabrain_retrieval_{name}" for name in ("alpha", "beta", "gamma", "tau")} | {
    name: f"somabrain_utility_{name}" for name in NAMES[UTILITY]
}

_VERDICTS = ("accepted", "refused")


@dataclass(frozen=True)
class _Relay:
    """What there is to tell of the relay; the health is that of Kafka, and when it was asked for."""

    runs: bool
    unpublished: Sequence[Unpublished]
    health: tuple[datetime, KafkaCounts] | None


class Gauges(Collector):
    """What is so, asked at every scrape."""

    def __init__(self, service: "Service", most_tenants: int, named: Callable[[Iterable[str]], None]) -> None:
        """Ask nothing yet.

        Args:
            service: whose they are.
            most_tenants: how many tenants have labels of their own.
            named: told at each scrape which they are.
        """
        self._service = service
        self._most_tenants = most_tenants
        self._named = named

    def describe(self) -> Iterable[Metric]:
        """Nothing: a look at the database must wait for a scrape."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        service, most = self._service, self._most_tenants
        began = time.perf_counter()
        try:
            with service.database.as_operator() as connection:
                tenants, others = read_gauges(connection, most)
                service.states.know(read_configurations(connection))
                adjustments = read_adjustments(connection, most)
                chain = read_chain_counts(connection)
                trials = read_experiment_gauges(connection, NEWEST_EXPERIMENTS)
                logs = read_log_gauges(connection)
                corpora = corpus_counts(connection, most)
                done = read_operations_gauges(connection)
                partitions = read_partition_counts(connection, service.settings.retention.kept)
                relay = self._relay(connection)
        except DatabaseUnreachable:
            yield _one("somabrain_postgres_up", "Whether Postgres answered the scrape.", 0)
            return
        took = time.perf_counter() - began
        self._named(tenant.tenant_id for tenant in tenants)
        yield _one("somabrain_postgres_up", "Whether Postgres answered the scrape.", 1)
        yield _one("somabrain_postgres_scrape_seconds", "How long the answers of Postgres took.", took)
        yield _one("somabrain_tenants", "Tenants there are.", len(tenants) + others.tenants)
        yield from _of_tenants(service, [*tenants, others] if others.tenants else tenants)
        yield from _of_named(service, tenants)
        yield _counter(
            "somabrain_supervisor_adjustments",
            "Changes of weights that answer no feedback, by cause.",
            ["tenant_id", "cause"],
            (((tenant_id, cause), count) for tenant_id, cause, count in adjustments),
        )
        yield from _of_chain(chain)
        yield from _of_experiments(trials)
        yield from _of_logs(logs)
        yield from _of_corpora(corpora)
        yield from _of_operations(done)
        yield from _of_retention(done, partitions)
        if relay is not None:
            yield from _of_relay(relay)
        yield from _of_dagster(read_dagster(service.dagster_database))

    def _relay(self, connection: Connection) -> _Relay | None:
        if self._service.settings.kafka.bootstrap is None:
            return None
        return _Relay(relay_runs(connection), read_unpublished(connection), read_kafka_health(connection))


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _filled(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)
    return family


def _by(counted: Mapping[str, int], known: Iterable[str] = ()) -> Samples:
    """Counts by one label; what is known and was never counted is 0."""
    return (((value,), count) for value, count in (dict.fromkeys(known, 0) | dict(counted)).items())


def _time(at: datetime | None) -> float:
    """Seconds since 1970; 0 where it never was."""
    return 0.0 if at is None else at.timestamp()


def _of_tenants(service: "Service", tenants: list[TenantGauges]) -> Iterator[Metric]:
    """What has a mean too."""
    units = [to_units(tenant.weights).tolist() for tenant in tenants]

    def each(name: str, text: str, values: Iterable[float | None]) -> Metric:
        named = (((tenant.tenant_id,), value) for tenant, value in zip(tenants, values, strict=True))
        return _gauge(f"somabrain_{name}", text, ["tenant_id"], named)

    for position, name in enumerate(NAMES):
        if name in _OWNERS:
            text = f"The weight {name}."
            yield each(_OWNERS[name].removeprefix("somabrain_"), text, (own[position] for own in units))
    yield _gauge(
        "somabrain_retrieval_weight",
        "The weight of a feature.",
        ["tenant_id", "feature"],
        (
            ((tenant.tenant_id, feature.name), value)
            for tenant, own in zip(tenants, units, strict=True)
            for feature, value in zip(FEATURES, own[RETRIEVAL], strict=True)
        ),
    )
    yield _gauge(
        "somabrain_neuromodulator_level",
        "The level of a neuromodulator.",
        ["tenant_id", "kind"],
        (((tenant.tenant_id, kind), value) for tenant in tenants for kind, value in tenant.levels.items()),
    )
    yield each(
        "learning_rate",
        "The learning rate of a feedback that meets the present levels.",
        (service.states.learning_rate(tenant.configuration, tenant.levels) for tenant in tenants),
    )
    yield each("weights_version", "The version of the weights.", (tenant.version for tenant in tenants))
    yield each("reward_mean", "The running mean of rewards.", (tenant.reward_mean for tenant in tenants))
    yield each(
        "reward_variance", "The running variance of rewards.", (tenant.reward_variance for tenant in tenants)
    )
    yield each(
        "reward_prediction_error",
        "By how much the last reward was above the mean.",
        (tenant.delta for tenant in tenants),
    )
    yield each(
        "diversity",
        "The share of the memories recalled last that repeats none.",
        (tenant.diversity for tenant in tenants),
    )


def _of_named(service: "Service", tenants: list[TenantGauges]) -> Iterator[Metric]:
    """What has no mean that would mean anything."""
    configurations = [service.states.configuration(tenant.configuration) for tenant in tenants]
    yield _gauge(
        "somabrain_weight_at_bound",
        "Whether a weight is at its upper bound (1), its lower one (-1) or between (0).",
        ["tenant_id", "weight"],
        (
            ((tenant.tenant_id, name), value)
            for tenant, configuration in zip(tenants, configurations, strict=True)
            for name, value in zip(NAMES, configuration.at_bounds(tenant.weights).tolist(), strict=True)
        ),
    )
    yield _gauge(
        "somabrain_reward_fall_standard_errors",
        "By how many standard errors the last rewards are below those before them.",
        ["tenant_id"],
        (
            ((tenant.tenant_id,), fall(tenant.recent_rewards, configuration.guard))
            for tenant, configuration in zip(tenants, configurations, strict=True)
        ),
    )
    try:
        sizes = [sum(service.working.sizes(tenant.tenant_id).values()) for tenant in tenants]
    except WorkingMemoryUnavailable:
        return
    yield _gauge(
        "somabrain_working_memory_items",
        "Memories that sessions have in mind.",
        ["tenant_id"],
        (((tenant.tenant_id,), size) for tenant, size in zip(tenants, sizes, strict=True)),
    )


def _of_chain(counts: ChainCounts) -> Iterator[Metric]:
    yield _counter(
        "somabrain_dagster_run_failures",
        "Runs of Dagster that failed, by job.",
        ["job"],
        _by(counts.failed_runs),
    )
    yield _gauge(
        "somabrain_trends",
        "Tenants, by the newest trend of their utility.",
        ["direction"],
        _by(counts.trends, ("rising", "falling", "none")),
    )
    yield _counter(
        "somabrain_proposals",
        "Proposals of weights, by outcome.",
        ["outcome"],
        _by(counts.proposals, _VERDICTS),
    )
    yield _counter(
        "somabrain_tenant_fits",
        "Fits of tenants' own weights, by outcome.",
        ["outcome"],
        _by(counts.fits, _VERDICTS),
    )
    yield _gauge(
        "somabrain_experiments",
        "Experiments, by status.",
        ["status"],
        _by(counts.experiments, get_args(experiments.Status)),
    )
    yield _gauge(
        "somabrain_canaries",
        "Canaries, by status.",
        ["status"],
        _by(counts.canaries, get_args(canaries.Status)),
    )
    yield _counter(
        "somabrain_canary_looks",
        "Looks at canaries, by what they decided.",
        ["action"],
        _by(counts.looks, get_args(Action)),
    )
    yield _counter(
        "somabrain_promotions",
        "Promotions, by what they did.",
        ["kind"],
        _by(counts.promotions, ("promoted", "undone")),
    )


def _of_experiments(trials: list[ExperimentGauges]) -> Iterator[Metric]:
    arms = [(one.experiment_id, arm, known) for one in trials for arm, known in one.arms.items()]

    def of_arms(name: str, text: str, values: Iterable[float | None]) -> Metric:
        samples = (((trial, arm), value) for (trial, arm, _), value in zip(arms, values, strict=True))
        return _gauge(f"somabrain_experiment_{name}", text, ["experiment_id", "arm"], samples)

    yield _gauge(
        "somabrain_experiment_status",
        "The status of each of the newest experiments.",
        ["experiment_id", "status"],
        (((one.experiment_id, one.status), 1) for one in trials),
    )
    yield _gauge(
        "somabrain_experiment_size",
        "Sessions that each arm of an experiment takes.",
        ["experiment_id"],
        (((one.experiment_id,), one.size) for one in trials),
    )
    yield of_arms("sessions", "Sessions of an arm of an experiment.", (arm.sessions for _, _, arm in arms))
    yield of_arms(
        "reward_mean", "The mean of the mean rewards of an arm's sessions.", (arm.mean for _, _, arm in arms)
    )
    yield of_arms("effect", "Cohen's d of an arm against the control.", (arm.effect for _, _, arm in arms))
    yield of_arms("p_value", "The p of an arm by Holm's method over the arms.", (arm.p for _, _, arm in arms))
    yield of_arms("promotable", "Whether every gate let an arm pass.", (arm.promotable for _, _, arm in arms))


def _of_logs(logs: LogGauges) -> Iterator[Metric]:
    yield _one("somabrain_weight_changes", "Changes of weights that all logs hold.", logs.changes)

    def each(name: str, text: str, values: Iterable[float]) -> Metric:
        samples = (((consumer,), value) for consumer, value in zip(logs.lags, values, strict=True))
        return _gauge(f"somabrain_log_lag_{name}", text, ["consumer"], samples)

    lags = logs.lags.values()
    yield each(
        "tenants", "Tenants whose log goes on beyond a consumer's mark.", (lag.tenants for lag in lags)
    )
    yield each("events", "Feedback events beyond a consumer's marks.", (lag.events for lag in lags))
    yield each(
        "seconds",
        "How long the oldest change beyond a consumer's marks has waited.",
        (lag.seconds for lag in lags),
    )


def _of_corpora(corpora: list[CorpusCounts]) -> Iterator[Metric]:
    def each(what: str, text: str, values: Iterable[float]) -> Metric:
        samples = (((one.tenant_id,), value) for one, value in zip(corpora, values, strict=True))
        return _counter(f"somabrain_corpus_{what}", text, ["tenant_id"], samples)

    yield each(
        "exports", "Builds of training corpora that a tenant gave to.", (one.exports for one in corpora)
    )
    yield each("examples", "Examples of a tenant that corpora hold.", (one.examples for one in corpora))
    yield each("tokens", "Tokens of a tenant's examples.", (one.tokens for one in corpora))
    yield _counter(
        "somabrain_corpus_rejects",
        "Examples that were left out of corpora, by stage.",
        ["tenant_id", "stage"],
        (((one.tenant_id, stage), count) for one in corpora for stage, count in one.rejected.items()),
    )


def _of_operations(done: OperationsGauges) -> Iterator[Metric]:
    yield _gauge(
        "somabrain_proof_findings",
        "What contradicted a claim, when the whole log was last verified.",
        ["claim"],
        _by(done.findings),
    )
    yield _counter(
        "somabrain_restore_drills",
        "Restore drills, by what they came to.",
        ["outcome"],
        _by({"proven": done.drills_proven, "refuted": done.drills_refuted}),
    )
    for name, text, value in (
        ("promoted_version", "The version of the weights that are promoted to all.", done.promoted_version),
        (
            "promotion_last_timestamp_seconds",
            "When weights were last promoted, or a promotion undone.",
            _time(done.promoted_at),
        ),
        ("proof_last_timestamp_seconds", "When the whole log was last verified.", _time(done.proven_at)),
        (
            "audit_seal_last_timestamp_seconds",
            "When the heads of all chains were last sealed.",
            _time(done.sealed_at),
        ),
        ("backups", "Backups that were made.", done.backups),
        ("backup_last_timestamp_seconds", "When the last backup began.", _time(done.backup_at)),
        ("backup_last_duration_seconds", "How long the last backup took.", done.backup_seconds),
        ("backup_last_size_bytes", "The size of the last backup.", done.backup_bytes),
        ("backup_last_changes", "Changes of weights that the last backup holds.", done.backup_changes),
        ("restore_drill_last_timestamp_seconds", "When the last restore drill was.", _time(done.drilled_at)),
        (
            "restore_proven_timestamp_seconds",
            "When a drill last proved a backup.",
            _time(done.restore_proven_at),
        ),
        (
            "restore_proven_backup_timestamp_seconds",
            "When the backup began that a drill last proved.",
            _time(done.proven_backup_at),
        ),
    ):
        yield _one(f"somabrain_{name}", text, value)


def _of_retention(done: OperationsGauges, partitions: Mapping[Relation, PartitionCounts]) -> Iterator[Metric]:
    yield _counter(
        "somabrain_retention_rows_dropped",
        "Rows that retention sealed and dropped.",
        ["relation"],
        _by(done.dropped, RELATIONS),
    )
    yield _one(
        "somabrain_retention_last_drop_timestamp_seconds",
        "When retention last dropped a partition.",
        _time(done.dropped_at),
    )
    yield _gauge(
        "somabrain_retention_partitions_ahead",
        "Weeks to come that have their partition.",
        ["relation"],
        (((relation,), counts.ahead) for relation, counts in partitions.items()),
    )
    yield _gauge(
        "somabrain_retention_partitions_due",
        "Weeks that are older than is kept, and there still.",
        ["relation"],
        (((relation,), counts.due) for relation, counts in partitions.items()),
    )
    yield _one("somabrain_legal_holds", "Tenants none of whose rows is pruned.", done.holds)


def _of_relay(relay: _Relay) -> Iterator[Metric]:
    yield _one("somabrain_relay_running", "Whether a relay works on the database.", relay.runs)
    yield _gauge(
        "somabrain_relay_unpublished",
        "Rows that Kafka has not acknowledged, by log.",
        ["log"],
        (((each.log,), each.records) for each in relay.unpublished),
    )
    yield _gauge(
        "somabrain_relay_oldest_unpublished_seconds",
        "The age of the oldest row that Kafka has not acknowledged, by log.",
        ["log"],
        (((each.log,), each.oldest_seconds) for each in relay.unpublished),
    )
    checked_at = None if relay.health is None else relay.health[0]
    yield _one(
        "somabrain_kafka_checked_timestamp_seconds",
        "When a relay last asked Kafka how it fares.",
        _time(checked_at),
    )
    if relay.health is None:
        return
    counts = relay.health[1]
    yield _gauge(
        "somabrain_kafka_state",
        "1 for the state that Kafka is in.",
        ["state"],
        (((state,), state == counts.state) for state in KAFKA_STATES),
    )
    yield _gauge(
        "somabrain_kafka_brokers",
        "Brokers of Kafka.",
        ["state"],
        _by({"answering": counts.answering, "silent": counts.silent}),
    )
    yield _one("somabrain_kafka_voters", "Controllers of Kafka that vote.", counts.voters)
    yield _one(
        "somabrain_kafka_voters_current",
        "Voting controllers of Kafka that follow the leader.",
        counts.current_voters,
    )
    yield _gauge(
        "somabrain_kafka_partitions",
        "Partitions of the relay's topics that are not as they should be.",
        ["state"],
        _by(
            {
                "under_replicated": counts.under_replicated,
                "at_minimum": counts.at_minimum,
                "unwritable": counts.unwritable,
            }
        ),
    )


def _of_dagster(known: DagsterGauges | None) -> Iterator[Metric]:
    yield _one("somabrain_dagster_storage_up", "Whether Dagster's tables could be read.", known is not None)
    if known is None:
        return
    yield _gauge(
        "somabrain_dagster_daemon_heartbeat_timestamp_seconds",
        "When a part of Dagster's daemon last said that it is there.",
        ["daemon"],
        (((daemon,), at) for daemon, at in known.heartbeats),
    )
    yield _gauge(
        "somabrain_dagster_last_tick_timestamp_seconds",
        "When a sensor last looked, or a schedule was last due.",
        ["instigator", "kind"],
        (((one.name, one.kind), one.ticked_at) for one in known.instigators),
    )
    yield _gauge(
        "somabrain_dagster_last_tick_failed",
        "Whether the last tick of a sensor or schedule failed.",
        ["instigator", "kind"],
        (((one.name, one.kind), one.failed) for one in known.instigators),
    )
    for name, text, values in (
        ("runs_unfinished", "Runs of a job that wait or work.", [one.unfinished for one in known.jobs]),
        (
            "last_run_failed",
            "Whether the last run of a job that ended failed.",
            [one.failed for one in known.jobs],
        ),
        (
            "last_run_duration_seconds",
            "How long the last run of a job that ended worked.",
            [one.seconds for one in known.jobs],
        ),
        (
            "last_success_timestamp_seconds",
            "When a run of a job last succeeded.",
            [one.succeeded_at for one in known.jobs],
        ),
    ):
        yield _gauge(
            f"somabrain_dagster_{name}",
            text,
            ["job"],
            (((one.job,), value) for one, value in zip(known.jobs, values, strict=True)),
        )
