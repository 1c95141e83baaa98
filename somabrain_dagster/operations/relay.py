"""Publish the tenants' logs to Kafka, each tenant's in its order, every row at least once.

Postgres keeps how far that got. A mark is moved after the cluster has acknowledged every row up to it: so a
relay that is killed publishes some rows again, and none is lost. While the cluster is away the rows wait in
Postgres, and what was already given to the producer waits in it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from somabrain_dagster.operations.kafka import (
    KafkaUnreachable,
    UnsafeTopics,
    ensure_topics,
    kafka_health,
    producer_options,
    topic_of,
)
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store import audit, notifications
from somabrain_dagster.store.database import Database, DatabaseUnreachable
from somabrain_dagster.store.kafka_health import record_kafka_health
from somabrain_dagster.store.notifications import Listener
from somabrain_dagster.store.outbox import LOGS, AnotherRelay, LogName, Outbox, Record

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

TENANTS_TOGETHER = 200
"""Tenants whose rows are read, published and marked together."""

ROWS_TOGETHER = 500
"""Of each of them and of each log."""

SWEEP_SECONDS = 60.0
"""How often every log's end is looked at, whoever was heard of."""

SAY_SECONDS = 10.0
"""How often it says that it waits, or how much it published."""

HEALTH_SECONDS = 15.0
"""How often it writes down how the cluster fares."""

_RETRY_SECONDS = 2.0
_LISTEN_SECONDS = 0.5
_END_SECONDS = 5.0


class ProducerLost(RuntimeError):
    """The producer cannot go on; another one, which begins at the marks, can."""


class Relay:
    """One relay of a database. A second one waits until the first has ended."""

    def __init__(self, database_url: str, kafka: KafkaSettings, say: Callable[[str], None]) -> None:
        """Connect to nothing yet.

        Args:
            database_url: of the owner of the brain's database.
            kafka: where to publish.
            say: is told, in sentences, what a person who watches must know.
        """
        self._url = database_url
        self._kafka = kafka
        self._say = say
        self._behind: dict[str, None] = {}
        self._heard: SimpleQueue[str] = SimpleQueue()
        self._sweep_due = threading.Event()
        self._published = 0
        self._said = time.monotonic()

    def run(self, stopping: threading.Event) -> None:
        """Publish until it is told to stop.

        Raises:
            KafkaMissing: Kafka is not configured, or its clients are not installed.
        """
        options = producer_options(self._kafka)
        watching = threading.Thread(target=self._watch, args=(stopping,), name="kafka health", daemon=True)
        watching.start()
        waits_for = None
        while not stopping.is_set():
            try:
                with Outbox(self._url) as outbox:
                    created = ensure_topics(self._kafka, LOGS)
                    topics = ", ".join(topic_of(self._kafka, log) for log in LOGS)
                    self._say(
                        f"relaying to {topics}" + (f"; created {', '.join(created)}" if created else "")
                    )
                    waits_for = None
                    self._relay(outbox, options, stopping)
            except (
                AnotherRelay,
                DatabaseUnreachable,
                KafkaUnreachable,
                ProducerLost,
                UnsafeTopics,
            ) as error:
                if type(error) is not waits_for:
                    self._say(f"waiting: {error}")
                waits_for = type(error)
                stopping.wait(_RETRY_SECONDS)
        watching.join()

    def _watch(self, stopping: threading.Event) -> None:
        """Write down how the cluster fares, until it is told to stop."""
        with Database(self._url, max_connections=1, wait_seconds=_RETRY_SECONDS) as database:
            while not stopping.is_set():
                counts = kafka_health(self._kafka).counts
                with suppress(DatabaseUnreachable), database.as_operator() as connection:
                    record_kafka_health(connection, counts)
                stopping.wait(HEALTH_SECONDS)

    def _relay(self, outbox: Outbox, options: dict[str, object], stopping: threading.Event) -> None:
        from confluent_kafka import Producer

        lost: list[KafkaError] = []

        def noticed(error: "KafkaError") -> None:
            if error.fatal():
                lost.append(error)

        producer = Producer({**options, "error_cb": noticed})
        listener = Listener(
            # What was committed while nobody listened is found by a look at every log.
            self._url,
            [notifications.STATES, audit.CHANNEL],
            self._sweep_due.set,
            self._hear,
            lambda: None,
        )
        listener.start()
        try:
            swept = time.monotonic()
            while not stopping.is_set():
                if lost:
                    raise ProducerLost(
                        f"the producer cannot go on ({lost[0].str()}): another one begins at the marks"
                    )
                if self._sweep_due.is_set() or time.monotonic() - swept > SWEEP_SECONDS:
                    self._sweep_due.clear()
                    swept = time.monotonic()
                    self._behind |= dict.fromkeys(outbox.behind())
                if not self._pass(outbox, producer, stopping):
                    producer.poll(0)
                    self._listen()
                self._tell()
        finally:
            listener.close()
            producer.purge()
            producer.flush(1)

    def _hear(self, channel: str, payload: str) -> None:
        if channel == audit.CHANNEL:
            self._heard.put(payload)
        else:
            for tenant_id, _ in notifications.versions(payload):
                self._heard.put(tenant_id)

    def _listen(self) -> None:
        """Wait a moment for word of a commit, and note all whose there is."""
        with suppress(Empty):
            self._behind[self._heard.get(timeout=_LISTEN_SECONDS)] = None
            while True:
                self._behind[self._heard.get_nowait()] = None

    def _pass(self, outbox: Outbox, producer: "Producer", stopping: threading.Event) -> bool:
        """Publish what follows the marks of some tenants that are behind; say whether there was anything."""
        tenants = list(islice(self._behind, TENANTS_TOGETHER))
        if not tenants:
            return False
        # Forgotten before they are read: what is committed from now on is heard of again.
        for tenant_id in tenants:
            del self._behind[tenant_id]
        records: list[Record] = []
        for log in LOGS:
            unpublished, rewound = outbox.unpublished(log, tenants, ROWS_TOGETHER)
            records += unpublished
            for tenant_id, version in rewound:
                self._say(
                    f"{tenant_id}: its {log} are not those that were published up to {version}. Unless a "
                    "backup was restored somebody has changed them: `somabrain audit verify` says where. "
                    "They are published again from the beginning"
                )
        acknowledged = self._publish(producer, records, stopping)
        marks = complete(records, acknowledged)
        if marks:
            outbox.mark(marks)
            self._published += len(acknowledged)
        self._behind |= dict.fromkeys(record.tenant_id for record in records)
        return bool(records)

    def _publish(
        self, producer: "Producer", records: Sequence[Record], stopping: threading.Event
    ) -> set[int]:
        """Give rows to the producer and wait for the cluster; the places of those that it acknowledged."""
        acknowledged: set[int] = set()
        reported = 0

        def report(place: int, error: "KafkaError | None", _: "Message") -> None:
            nonlocal reported
            reported += 1
            if error is None:
                acknowledged.add(place)

        for place, record in enumerate(records):
            while True:
                try:
                    producer.produce(
                        topic_of(self._kafka, record.log),
                        key=record.tenant_id,
                        value=record.value,
                        timestamp=int(record.created_at.timestamp() * 1000),
                        on_delivery=partial(report, place),
                    )
                    break
                except BufferError:  # its queue is full: it empties as the cluster answers
                    producer.poll(0.5)
                    if stopping.is_set():
                        return acknowledged
        began = said = time.monotonic()
        until = None
        while reported < len(records):
            producer.poll(0.2)
            now = time.monotonic()
            if stopping.is_set():
                until = until or now + _END_SECONDS
                if now > until:
                    break
            elif now - said > SAY_SECONDS:
                said = now
                health = kafka_health(self._kafka)
                self._say(
                    f"waiting: of {len(records):,} records {len(records) - len(acknowledged):,} are not "
                    f"acknowledged after {now - began:.0f} s. Kafka is {health.state}. {health.advice}"
                )
        return acknowledged

    def _tell(self) -> None:
        now = time.monotonic()
        if self._published and now - self._said > SAY_SECONDS:
            self._say(f"published {self._published:,} records")
            self._published, self._said = 0, now


def complete(records: Iterable[Record], acknowledged: set[int]) -> list[Record]:
    """Of each tenant and log the last row that is acknowledged with all before it.

    Args:
        records: each tenant's and log's in order.
        acknowledged: places in them.
    """
    last: dict[tuple[str, LogName], Record] = {}
    broken: set[tuple[str, LogName]] = set()
    for place, record in enumerate(records):
        chain = (record.tenant_id, record.log)
        if place not in acknowledged:
            broken.add(chain)
        elif chain not in broken:
            last[chain] = record
    return list(last.values())
