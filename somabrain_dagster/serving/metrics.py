"""Metrics for Prometheus.

Counters and histograms are counted by each process and added up by the multiprocess mode of the client, where
there are several workers. Gauges say what is so: they are read at the scrape from Postgres and Redis, which
all processes share. Labels by tenant end at a cap; what is beyond it is under one label.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, UTILITY, to_units
from somabrain_dagster.store.adaptation import read_configurations
from somabrain_dagster.store.corpora import CorpusCounts, corpus_counts
from somabrain_dagster.store.database import DatabaseUnreachable
from somabrain_dagster.store.gauges import (
    ChainCounts,
    TenantGauges,
    read_adjustments,
    read_chain_counts,
    read_gauges,
)
from somabrain_dagster.store.outbox import Unpublished, read_unpublished
from somabrain_dagster.store.working_memory import WorkingMemoryUnavailable

if TYPE_CHECKING:
    from somabrain_dagster.serving.service import Service

OTHERS = "_others"
"""The label of the tenants beyond the cap: their mean, or their sum of what is counted."""

WATCH_SECONDS = 0.5

LATENCY_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0)

_OWNERS = {name: f"somabrain_retrieval_{name}" for name in ("alpha", "beta", "gamma", "tau")} | {
    name: f"somabrain_utility_{name}" for name in NAMES[UTILITY]
}


class Metrics:
    """What this process counts, and a view of what is so."""

    def __init__(self, service: "Service", most_tenants: int) -> None:
        """Count nothing yet.

        Args:
            service: whose they are.
            most_tenants: how many tenants have labels of their own.
        """
        self.most_tenants = most_tenants
        self.registry = CollectorRegistry()
        self._service = service
        self._named: set[str] = set()
        self.feedback_total = Counter(
            "somabrain_feedback",
            "Feedback events, by what became of them.",
            ["tenant_id", "outcome"],
            registry=self.registry,
        )
        self.feedback_latency = Histogram(
            "somabrain_feedback_latency_seconds",
            "From the receipt of a feedback request to its answer, the commit included.",
            ["tenant_id"],
            buckets=LATENCY_EDGES,
            registry=self.registry,
        )
        self.requests = Counter(
            "somabrain_http_requests",
            "Requests, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.ann_backend = Counter(
            "somabrain_ann_backend",
            "Recalls, by the index that served them.",
            ["tenant_id", "backend"],
            registry=self.registry,
        )
        self.ann_rebuild = Counter(
            "somabrain_ann_rebuild",
            "Rebuilds of similarity indexes, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        self._queue = Gauge(
            "somabrain_queue_events",
            "Feedback that waits or is on its way, in all processes.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._listening = Gauge(
            "somabrain_listening",
            "Whether every process hears of every commit.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._redis_whole = Gauge(
            "somabrain_redis_whole",
            "Whether Redis has every snapshot, as far as every process knows.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._outcome_children: dict[tuple[str, str], Counter] = {}
        self._latency_children: dict[str, Histogram] = {}
        self._gauges = _Gauges(service, most_tenants)

    def label(self, tenant_id: str) -> str:
        """The label of a tenant: its own for the first ones, one for all others."""
        if tenant_id in self._named:
            return tenant_id
        if len(self._named) < self.most_tenants:
            self._named.add(tenant_id)
            return tenant_id
        return OTHERS

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request."""
        child = self._request_children.get((method, route, status))
        if child is None:
            child = self._request_children[method, route, status] = self.requests.labels(
                method, route, str(status)
            )
        child.inc()

    def feedback(self, tenant_id: str, outcome: str, count: int = 1) -> None:
        """Count feedback events of one outcome."""
        child = self._outcome_children.get((tenant_id, outcome))
        if child is None:
            label = self.label(tenant_id)
            child = self.feedback_total.labels(label, outcome)
            if label != OTHERS:
                self._outcome_children[tenant_id, outcome] = child
        child.inc(count)

    def feedback_took(self, tenant_id: str, seconds: float) -> None:
        """Observe the latency of a feedback request."""
        child = self._latency_children.get(tenant_id)
        if child is None:
            label = self.label(tenant_id)
            child = self.feedback_latency.labels(label)
            if label != OTHERS:
                self._latency_children[tenant_id] = child
        child.observe(seconds)

    def recalled(self, tenant_id: str, backend: str) -> None:
        """Count a recall."""
        self.ann_backend.labels(self.label(tenant_id), backend).inc()

    def rebuilt(self, outcome: str) -> None:
        """Count a rebuild of an index."""
        self.ann_rebuild.labels(outcome).inc()

    async def keep_watching(self) -> None:
        """Set the gauges of this process, for as long as the service runs."""
        while True:
            self._queue.set(self._service.committer.waiting)
            self._listening.set(self._service.states.true)
            self._redis_whole.set(self._service.states.redis_whole)
            await asyncio.sleep(WATCH_SECONDS)

    async def render(self) -> bytes:
        """The text that Prometheus reads; rendered in a thread, away from the requests."""
        return await asyncio.to_thread(self._render)

    def _render(self) -> bytes:
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        gauges = CollectorRegistry()
        gauges.register(self._gauges)
        return generate_latest(registry) + generate_latest(gauges)


class _Gauges(Collector):
    """What is so, asked at every scrape."""

    def __init__(self, service: "Service", most_tenants: int) -> None:
        self._service = service
        self._most_tenants = most_tenants

    def describe(self) -> Iterable[Metric]:
        """Nothing: a look at the database must wait for a scrape."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        service = self._service
        began = time.perf_counter()
        try:
            with service.database.as_operator() as connection:
                tenants, others = read_gauges(connection, self._most_tenants)
                service.states.know(read_configurations(connection))
                adjustments = read_adjustments(connection, self._most_tenants, OTHERS)
                chain = read_chain_counts(connection)
                corpora = corpus_counts(connection, self._most_tenants, OTHERS)
                relayed = service.settings.kafka.bootstrap is not None
                unpublished = read_unpublished(connection) if relayed else []
        except DatabaseUnreachable:
            yield _one("somabrain_postgres_up", "Whether Postgres answered the scrape.", 0)
            return
        yield _one("somabrain_postgres_up", "Whether Postgres answered the scrape.", 1)
        yield _one("somabrain_postgres_scrape_seconds", "Its answer took.", time.perf_counter() - began)
        yield _one("somabrain_tenants", "Tenants there are.", len(tenants) + others.tenants)
        yield from _of_tenants(service, [*tenants, others] if others.tenants else tenants)
        yield from _working_memory(service, tenants)
        supervised = CounterMetricFamily(
            "somabrain_supervisor_adjustments",
            "Changes of weights that answer no feedback, by cause.",
            labels=["tenant_id", "cause"],
        )
        for tenant_id, cause, count in adjustments:
            supervised.add_metric([tenant_id, cause], count)
        yield supervised
        yield from _of_chain(chain)
        yield from _of_corpora(corpora)
        if relayed:
            yield from _of_relay(unpublished)


def _working_memory(service: "Service", tenants: list[TenantGauges]) -> Iterable[Metric]:
    family = GaugeMetricFamily(
        "somabrain_working_memory_items", "Memories that sessions have in mind.", labels=["tenant_id"]
    )
    try:
        for tenant in tenants:
            family.add_metric([tenant.tenant_id], sum(service.working.sizes(tenant.tenant_id).values()))
    except WorkingMemoryUnavailable:
        return
    yield family


def _of_chain(counts: ChainCounts) -> Iterable[Metric]:
    for name, text, label, counted in (
        ("dagster_run_failures", "Runs of Dagster that failed, by job.", "job", counts.failed_runs),
        ("proposals", "Proposals of weights, by outcome.", "outcome", counts.proposals),
        ("canary_looks", "Looks at canaries, by what they decided.", "action", counts.looks),
        ("promotions", "Promotions, by what they did.", "kind", counts.promotions),
    ):
        family = CounterMetricFamily(f"somabrain_{name}", text, labels=[label])
        for value, count in counted.items():
            family.add_metric([value], count)
        yield family
    experiments = GaugeMetricFamily("somabrain_experiments", "Experiments, by status.", labels=["status"])
    for status, count in counts.experiments.items():
        experiments.add_metric([status], count)
    yield experiments


def _of_corpora(corpora: list[CorpusCounts]) -> Iterable[Metric]:
    exports, examples, tokens = (
        CounterMetricFamily(f"somabrain_corpus_{what}", text, labels=["tenant_id"])
        for what, text in (
            ("exports", "Builds of training corpora that a tenant gave to."),
            ("examples", "Examples that they hold of it."),
            ("tokens", "Tokens of those examples."),
        )
    )
    rejects = CounterMetricFamily(
        "somabrain_corpus_rejects",
        "Examples that were left out of them, by stage.",
        labels=["tenant_id", "stage"],
    )
    for counted in corpora:
        exports.add_metric([counted.tenant_id], counted.exports)
        examples.add_metric([counted.tenant_id], counted.examples)
        tokens.add_metric([counted.tenant_id], counted.tokens)
        for stage, count in counted.rejected.items():
            rejects.add_metric([counted.tenant_id, stage], count)
    yield from (exports, examples, tokens, rejects)


def _of_relay(unpublished: list[Unpublished]) -> Iterable[Metric]:
    records = GaugeMetricFamily(
        "somabrain_relay_unpublished", "Rows that Kafka has not acknowledged, by log.", labels=["log"]
    )
    oldest = GaugeMetricFamily(
        "somabrain_relay_oldest_unpublished_seconds", "The age of the oldest of them.", labels=["log"]
    )
    for each in unpublished:
        records.add_metric([each.log], each.records)
        oldest.add_metric([each.log], each.oldest_seconds)
    yield from (records, oldest)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _of_tenants(service: "Service", tenants: list[TenantGauges]) -> Iterable[Metric]:
    units = [to_units(tenant.weights).tolist() for tenant in tenants]
    for position, name in enumerate(NAMES):
        if name in _OWNERS:
            family = GaugeMetricFamily(_OWNERS[name], f"The weight {name}.", labels=["tenant_id"])
            for tenant, weights in zip(tenants, units, strict=True):
                family.add_metric([tenant.tenant_id], weights[position])
            yield family
    weight = GaugeMetricFamily(
        "somabrain_retrieval_weight", "The weight of a feature.", labels=["tenant_id", "feature"]
    )
    level = GaugeMetricFamily(
        "somabrain_neuromodulator_level", "The level of a neuromodulator.", labels=["tenant_id", "kind"]
    )
    rate = GaugeMetricFamily("somabrain_learning_rate", "Of the last feedback.", labels=["tenant_id"])
    version = GaugeMetricFamily("somabrain_weights_version", "Of the weights.", labels=["tenant_id"])
    for tenant, weights in zip(tenants, units, strict=True):
        for feature, value in zip(FEATURES, weights[RETRIEVAL], strict=True):
            weight.add_metric([tenant.tenant_id, feature.name], value)
        for kind, value in tenant.levels.items():
            level.add_metric([tenant.tenant_id, kind], value)
        rate.add_metric([tenant.tenant_id], service.states.learning_rate(tenant.configuration, tenant.levels))
        version.add_metric([tenant.tenant_id], tenant.version)
    yield from (weight, level, rate, version)
