"""Kafka's nodes are killed while feedback lands through the service: the audit stream loses nothing.

One story on a real cluster of three nodes, told once; each test asks something of it. What it came to is
written to reports/kafka-failover.json.
"""

import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.embedded.kafka import KafkaCluster
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.kafka import KafkaHealth, kafka_health, topic_of
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.outbox import DIGEST, LOGS, NUMBER, LogName, read_unpublished
from tests.conftest import new_database
from tests.kafka import Consumed, cluster, consume, relaying, somabrain, variables
from tests.serving.running import Running, running, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

REPORT = Path(__file__).parent.parent / "reports" / "kafka-failover.json"
SENDERS = 4
PAUSE = 0.25
"""Of a sender after each feedback, so that the ratings last for the story."""


class Load:
    """Real ratings, each tenant's in its order, sent until they are acknowledged."""

    def __init__(self, service: Running, feedback: list[Feedback]) -> None:
        self.acknowledged: list[tuple[str, int]] = []
        self._ending = threading.Event()
        by_tenant: dict[str, list[Feedback]] = {}
        for each in feedback:
            by_tenant.setdefault(each.tenant_id, []).append(each)
        keys = service.add_tenants(sorted(by_tenant))
        self._threads = [
            threading.Thread(
                target=self._send,
                args=(
                    service,
                    [each for each in feedback if names.index(each.tenant_id) % SENDERS == mine],
                    keys,
                ),
            )
            for names in [sorted(by_tenant)]
            for mine in range(SENDERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _send(self, service: Running, feedback: list[Feedback], keys: dict[str, str]) -> None:
        with service.client(None) as client:
            for each in feedback:
                if self._ending.is_set():
                    return
                answer = client.post(
                    "/context/feedback",
                    headers={
                        "authorization": f"Bearer {keys[each.tenant_id]}",
                        "idempotency-key": str(each.idempotency_key),
                    },
                    json={
                        "tenant_id": each.tenant_id,
                        "session_id": each.session_id,
                        "utility": each.utility,
                        "source": each.source,
                        "metadata": each.metadata,
                    },
                )
                assert answer.status_code == 200, answer.text
                self.acknowledged.append((each.tenant_id, answer.json()["seq"]))
                self._ending.wait(PAUSE)


@dataclass
class Phase:
    """What was so while some of the nodes ran.

    Attributes:
        nodes: those that ran.
        health: of the cluster, by its own words.
        exit_code: of `somabrain kafka health`.
        acknowledged: feedback that landed meanwhile.
        published: rows that Kafka acknowledged meanwhile.
        waiting: rows that /metrics tells of as unpublished at the end.
        brokers: that it tells of, by whether they answer.
    """

    nodes: list[int]
    health: KafkaHealth
    exit_code: int
    acknowledged: int
    published: int
    waiting: int
    brokers: dict[str, int]


@dataclass
class Story:
    """All that happened, and what is there at the end."""

    load: Load
    database: Database
    relay_log: Path
    phases: dict[str, Phase] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    second_relay: str = ""
    streams: dict[LogName, list[Consumed]] = field(default_factory=dict)
    stored: dict[LogName, dict[tuple[str, int], str]] = field(default_factory=dict)


class Stage:
    """The servers of the story."""

    def __init__(
        self, nodes: KafkaCluster, service: Running, environment: dict[str, str], story: Story
    ) -> None:
        self.nodes = nodes
        self.kafka = KafkaSettings(bootstrap=nodes.bootstrap)
        self._service = service
        self._environment = environment
        self._story = story

    def unpublished(self) -> int:
        with self._story.database.as_operator() as connection:
            return sum(each.records for each in read_unpublished(connection))

    def published(self) -> int:
        with self._story.database.as_operator() as connection:
            ((rows,),) = connection.execute(
                "SELECT coalesce(sum(version + (log <> 'feedback_events')::int), 0)::bigint FROM relay_marks"
            ).fetchall()
        return int(rows)

    def told(self, metric: str) -> dict[str, int]:
        """What /metrics tells of, by the metric's one label."""
        with self._service.client(self._service.operator) as client:
            text = client.get("/metrics").text
        samples = re.findall(rf'^{metric}\{{\w+="([^"]*)"\}} (\S+)$', text, re.MULTILINE)
        return {label: int(float(value)) for label, value in samples}

    def phase(
        self,
        name: str,
        change: Callable[[], None],
        state: str,
        events: int,
        until_when: Callable[[], bool],
    ) -> None:
        """Change something; let feedback land until so much of it has and something holds; note what was so.

        Args:
            name: of the phase.
            change: what begins it.
            state: what the cluster's health comes to be.
            events: how many land.
            until_when: what must hold at its end.
        """
        load = self._story.load
        acknowledged, published = len(load.acknowledged), self.published()
        change()
        until(lambda: kafka_health(self.kafka).state == state, 60)
        until(lambda: len(load.acknowledged) >= acknowledged + events, 60)
        until(until_when, 60)
        until(lambda: self.told("somabrain_kafka_state").get(state) == 1, 60)
        code = subprocess.run(
            somabrain("kafka", "health"), env=self._environment, capture_output=True
        ).returncode
        self._story.phases[name] = Phase(
            nodes=self.nodes.running(),
            health=kafka_health(self.kafka),
            exit_code=code,
            acknowledged=len(load.acknowledged) - acknowledged,
            published=self.published() - published,
            waiting=sum(self.told("somabrain_relay_unpublished").values()),
            brokers=self.told("somabrain_kafka_brokers"),
        )


@pytest.fixture(scope="module")
def story(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    migrated_template: str,
    reachable_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    logs = tmp_path_factory.mktemp("failover")
    with ExitStack() as stack:
        nodes = stack.enter_context(cluster(reachable_path / "failover"))
        name = stack.enter_context(new_database(postgres, migrated_template))
        database = stack.enter_context(Database(postgres.url(name)))
        environment = variables(database.url, f"{valkey.url}/6", nodes.bootstrap)
        service = stack.enter_context(
            running(
                database,
                f"{valkey.url}/6",
                logs / "service.log",
                variables={"SOMABRAIN_KAFKA_BOOTSTRAP": nodes.bootstrap},
            )
        )
        load = Load(service, list(read_chitchat(100).feedback))
        told = Story(load, database, logs / "relay.log")
        stage = Stage(nodes, service, environment, told)
        first = stack.enter_context(relaying(environment, told.relay_log))
        load.start()
        try:
            _happen(stage, told, first, environment, stack, logs)
        finally:
            load.end()
        until(lambda: stage.unpublished() == 0, 60)
        told.streams = {log: consume(stage.kafka, log) for log in LOGS}
        told.stored = {log: _stored(database, log) for log in LOGS}
        _report(told)
        yield told


def _happen(
    stage: Stage,
    told: Story,
    first: "subprocess.Popen[bytes]",
    environment: dict[str, str],
    stack: ExitStack,
    logs: Path,
) -> None:
    def caught_up() -> bool:
        return stage.unpublished() < 50  # more lands all the while

    stage.phase("three nodes", lambda: None, "healthy", 100, caught_up)

    # The relay is killed; the second one, which waited, goes on from the marks.
    second_log = logs / "second.log"
    stack.enter_context(relaying(environment, second_log))
    until(lambda: b"another relay works on this database" in second_log.read_bytes(), 30)
    first.kill()
    until(lambda: b"relaying to" in second_log.read_bytes(), 30)
    told.second_relay = second_log.read_text()

    def lose_a_leader() -> None:
        # Node 1 leads a third of the partitions: they need another leader.
        stage.nodes.kill(1)
        killed = time.monotonic()
        time.sleep(1)  # what was acknowledged before is marked
        waiting_since = stage.published()
        until(lambda: stage.published() > waiting_since, 60)
        told.seconds["from the loss of a node until more was published"] = round(time.monotonic() - killed, 1)

    stage.phase("two nodes", lose_a_leader, "at risk", 150, caught_up)

    said = len(second_log.read_bytes())
    stage.phase(
        "one node",
        lambda: stage.nodes.kill(2),
        "stopped",
        150,
        lambda: b"waiting:" in second_log.read_bytes()[said:],
    )

    def return_both() -> None:
        began = time.monotonic()
        stage.nodes.start([1, 2])
        until(caught_up, 60)
        told.seconds["from the start of both nodes until all was published"] = round(
            time.monotonic() - began, 1
        )

    stage.phase("three nodes again", return_both, "healthy", 50, caught_up)
    told.relay_log.write_text(told.relay_log.read_text() + second_log.read_text())


def _stored(database: Database, log: LogName) -> dict[tuple[str, int], str]:
    """Every row of a log by tenant and number: its hash as the relay writes it."""
    number, digest = NUMBER[log], DIGEST[log]
    with database.as_operator() as connection:
        rows = connection.execute(
            sql.SQL("SELECT tenant_id, {}, {}::text FROM {}").format(
                *map(sql.Identifier, (number, digest, log))
            )
        )
        return {(tenant_id, version): hashed for tenant_id, version, hashed in rows}


def _identity(log: LogName, record: Consumed) -> tuple[str, int]:
    return record.value["tenant_id"], record.value[NUMBER[log]]


def _deduplicated(log: LogName, records: list[Consumed]) -> dict[str, list[int]]:
    """Each tenant's numbers in the order in which they arrive for the first time."""
    seen: dict[tuple[str, int], None] = {}
    for record in records:
        seen.setdefault(_identity(log, record))
    return {
        tenant: [number for _, number in identities]
        for tenant, identities in groupby(
            sorted(seen, key=lambda identity: identity[0]), key=lambda identity: identity[0]
        )
    }


def _lost(told: Story) -> int:
    arrived = {_identity("feedback_events", record) for record in told.streams["feedback_events"]}
    lost = sum(event not in arrived for event in told.load.acknowledged)
    return lost + sum(
        len(told.stored[log].keys() - {_identity(log, record) for record in told.streams[log]})
        for log in LOGS
    )


def _report(told: Story) -> None:
    report: dict[str, Any] = {
        "acknowledged by the service": len(told.load.acknowledged),
        "lost": _lost(told),
        "streams": {
            topic_of(KafkaSettings(), log): {
                "rows in Postgres": len(told.stored[log]),
                "records": len(told.streams[log]),
                "of them repeated": len(told.streams[log])
                - len({_identity(log, record) for record in told.streams[log]}),
            }
            for log in LOGS
        },
        "phases": {
            name: {
                "nodes": phase.nodes,
                "health": phase.health.state,
                "advice": phase.health.advice,
                "feedback acknowledged": phase.acknowledged,
                "rows published": phase.published,
                "rows waiting at its end": phase.waiting,
            }
            for name, phase in told.phases.items()
        },
        "seconds": told.seconds,
        "the relay said": re.findall(r"waiting: .*", told.relay_log.read_text()),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + os.linesep)


def test_all_that_was_acknowledged_arrives(story: Story) -> None:
    assert len(story.load.acknowledged) == len(set(story.load.acknowledged)) >= 450
    assert _lost(story) == 0


@pytest.mark.parametrize("log", LOGS)
def test_a_topic_holds_the_rows_of_the_log_and_nothing_else(story: Story, log: LogName) -> None:
    number, digest = NUMBER[log], DIGEST[log]
    arrived = {
        (record.value["tenant_id"], record.value[number]): record.value[digest]
        for record in story.streams[log]
    }
    assert arrived == story.stored[log]


@pytest.mark.parametrize("log", LOGS)
def test_a_tenants_records_are_in_one_partition_in_order_once_repeats_are_left_out(
    story: Story, log: LogName
) -> None:
    first = 1 if log == "feedback_events" else 0
    for numbers in _deduplicated(log, story.streams[log]).values():
        assert numbers == list(range(first, first + len(numbers)))
    partitions = {(record.key, record.partition) for record in story.streams[log]}
    assert max(Counter(key for key, _ in partitions).values()) == 1
    assert all(record.key == record.value["tenant_id"] for record in story.streams[log])


def test_with_one_node_lost_the_stream_goes_on(story: Story) -> None:
    phase = story.phases["two nodes"]
    assert phase.nodes == [2, 3]
    assert phase.acknowledged >= 150
    assert phase.published >= phase.acknowledged


def test_with_two_nodes_lost_feedback_lands_and_the_relay_waits_and_says_so(story: Story) -> None:
    phase = story.phases["one node"]
    assert phase.nodes == [3]
    assert phase.acknowledged >= 150
    assert phase.waiting >= phase.acknowledged
    assert re.search(
        r"waiting: of [\d,]+ records [\d,]+ are not acknowledged after \d+ s. "
        r"Kafka is stopped. Start what is away",
        story.relay_log.read_text(),
    )


def test_once_they_return_it_catches_up(story: Story) -> None:
    phase = story.phases["three nodes again"]
    assert phase.nodes == [1, 2, 3]
    assert phase.published >= story.phases["one node"].waiting


def test_health_tells_each_state(story: Story) -> None:
    told = {name: (phase.health.state, phase.exit_code) for name, phase in story.phases.items()}
    assert told == {
        "three nodes": ("healthy", 0),
        "two nodes": ("at risk", 1),
        "one node": ("stopped", 1),
        "three nodes again": ("healthy", 0),
    }
    assert {name: phase.brokers for name, phase in story.phases.items()} == {
        "three nodes": {"answering": 3, "silent": 0},
        "two nodes": {"answering": 2, "silent": 1},
        "one node": {"answering": 1, "silent": 2},
        "three nodes again": {"answering": 3, "silent": 0},
    }
    two, one = story.phases["two nodes"].health, story.phases["one node"].health
    assert (two.answering, two.silent, two.current) == ((2, 3), (1,), (2, 3))
    assert two.advice == "Bring back node 1: one more loss would stop it."
    assert not two.unwritable
    assert len(two.under_replicated) == len(two.partitions)
    assert (one.answering, one.quorum) == ((3,), False)
    assert len(one.unwritable) == len(one.partitions)


def test_a_second_relay_waits_and_goes_on_where_the_first_was_killed(story: Story) -> None:
    waiting, _, after = story.second_relay.partition("relaying to")
    assert "waiting: another relay works on this database" in waiting
    assert after


def test_keys_and_what_operators_did_are_in_the_audit_stream(story: Story) -> None:
    owners = {record.value["tenant_id"] for record in story.streams["audit_events"]}
    assert audit.SYSTEM in owners
    assert {tenant for tenant, _ in story.load.acknowledged} <= owners
