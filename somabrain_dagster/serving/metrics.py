"""Metrics for Prometheus.

Counters and histograms are counted by each process and added up by the multiprocess mode of the client, where
there are several workers. Gauges say what is so: they are read at the scrape from Postgres and Redis, which
all processes share. Labels by tenant end at a cap; what is beyond it is under one label.
"""

import asyncio
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from somabrain_dagster.serving.gauges import Gauges
from somabrain_dagster.store.gauges import OTHERS

if TYPE_CHECKING:
    from somabrain_dagster.serving.service import Service

WATCH_SECONDS = 0.5

LATENCY_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0)


class Metrics:
    """What this process counts, and a view of what is so."""

    def __init__(self, service: "Service", most_tenants: int) -> None:
        """Count nothing yet.

        Args:
            service: whose they are.
            most_tenants: how many tenants have labels of their own.
        """
        # When a counter was made says nothing where several processes count.
        disable_created_metrics()  # type: ignore[no-untyped-call]
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
        self._outcome_children: dict[tuple[str | None, str], Counter] = {}
        self._latency_children: dict[str, Histogram] = {}
        self._gauges = Gauges(service, most_tenants, self.know_tenants)

    def label(self, tenant_id: str | None) -> str:
        """The label of a tenant: its own for those that were created first, one for all others.

        Args:
            tenant_id: None for one that is not known.
        """
        if tenant_id is None:
            return OTHERS
        # One that is not known yet is younger than all that are: as long as there is room it is named too.
        if tenant_id not in self._named and len(self._named) < self.most_tenants:
            self._named.add(tenant_id)
        return tenant_id if tenant_id in self._named else OTHERS

    def know_tenants(self, named: Iterable[str]) -> None:
        """Give these tenants labels of their own: those that the gauges name."""
        self._named = set(named)

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request."""
        child = self._request_children.get((method, route, status))
        if child is None:
            child = self._request_children[method, route, status] = self.requests.labels(
                method, route, str(status)
            )
        child.inc()

    def feedback(self, tenant_id: str | None, outcome: str) -> None:
        """Count a feedback event, or a request that was refused before it was known of whom it is."""
        child = self._outcome_children.get((tenant_id, outcome))
        if child is None:
            label = self.label(tenant_id)
            child = self.feedback_total.labels(label, outcome)
            if label != OTHERS:
                self._outcome_children[tenant_id, outcome] = child
        child.inc()

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
