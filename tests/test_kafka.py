"""Kafka's topics, its health, and what was published compared with what is there."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from somabrain_dagster.embedded.kafka import KafkaCluster
from somabrain_dagster.operations.kafka import (
    KafkaHealth,
    KafkaMissing,
    Partition,
    UnsafeTopics,
    ensure_topics,
    kafka_health,
    required,
    topic_of,
)
from somabrain_dagster.operations.published import compare_published
from somabrain_dagster.operations.relay import Relay
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store.audit import record
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.kafka_health import KafkaCounts, read_kafka_health
from somabrain_dagster.store.outbox import LOGS, read_unpublished
from somabrain_dagster.store.tampering import Tampering
from tests.brain import landed, new_tenants, said
from tests.forgery import as_forger
from tests.kafka import cluster
from tests.serving.running import until

WHOLE = Partition("somabrain.audit/0", (1, 2, 3), (1, 2, 3), minimum=2, led=True)
HEALTHY = KafkaHealth((1, 2, 3), (), (), (1, 2, 3), (1, 2, 3), (WHOLE,))


@pytest.mark.parametrize(
    ("health", "state", "advice"),
    [
        (HEALTHY, "healthy", "It outlives the loss of any one node."),
        (replace(HEALTHY, current=(1, 3)), "at risk", "Bring back"),
        (
            replace(HEALTHY, partitions=(replace(WHOLE, in_sync=(1, 3)),)),
            "at risk",
            "It has too few nodes to outlive the loss of one",
        ),
        (
            KafkaHealth((1, 3), (2,), (), (1, 2, 3), (1, 3), (replace(WHOLE, in_sync=(1, 3)),)),
            "at risk",
            "Bring back node 2: one more loss would stop it.",
        ),
        (
            replace(HEALTHY, answering=(1, 3), silent=(2,), partitions=(replace(WHOLE, in_sync=(1,)),)),
            "stopped",
            "partitions have too few replicas in sync",
        ),
        (replace(HEALTHY, partitions=(replace(WHOLE, led=False),)), "stopped", "the relay waits"),
        (replace(HEALTHY, voters=(), current=()), "stopped", "without a majority of the controllers"),
        (KafkaHealth((), (), ("a:1",), (), (), ()), "stopped", "No broker answers"),
        (KafkaHealth((1,), (), (), (1,), (1,), ()), "at risk", "It has too few nodes"),
    ],
)
def test_health_is_judged_by_what_one_more_loss_would_do(
    health: KafkaHealth, state: str, advice: str
) -> None:
    assert health.state == state
    assert advice in health.advice


def test_without_brokers_it_is_said_what_to_set() -> None:
    with pytest.raises(KafkaMissing, match="set SOMABRAIN_KAFKA_BOOTSTRAP"):
        required(KafkaSettings(bootstrap=None))


def test_where_nobody_answers_health_says_so() -> None:
    health = kafka_health(KafkaSettings(bootstrap="127.0.0.1:1"))
    assert (health.state, health.unreachable) == ("stopped", ("127.0.0.1:1",))
    assert health.advice == "No broker answers: start them, or correct SOMABRAIN_KAFKA_BOOTSTRAP."


def test_the_relay_writes_down_how_the_cluster_fares(database: Database) -> None:
    stopping = threading.Event()
    kafka = KafkaSettings(bootstrap="127.0.0.1:1")
    relay = threading.Thread(target=Relay(database.url, kafka, lambda _: None).run, args=(stopping,))

    def told() -> tuple[datetime, KafkaCounts] | None:
        with database.as_operator() as connection:
            return read_kafka_health(connection)

    assert told() is None
    relay.start()
    until(lambda: told() is not None)
    stopping.set()
    relay.join()
    seen = told()
    assert seen is not None
    assert seen[1] == kafka_health(kafka).counts
    assert (seen[1].state, seen[1].answering) == ("stopped", 0)


@pytest.fixture(scope="module")
def nodes(reachable_path: Path) -> Iterator[KafkaCluster]:
    with cluster(reachable_path / "topics") as started:
        yield started


@pytest.mark.slow
def test_topics_are_created_once_on_three_brokers_of_which_two_must_acknowledge(nodes: KafkaCluster) -> None:
    kafka = KafkaSettings(bootstrap=nodes.bootstrap)
    names = [topic_of(kafka, log) for log in LOGS]
    assert ensure_topics(kafka, LOGS) == names
    assert ensure_topics(kafka, LOGS) == []
    until(lambda: kafka_health(kafka).state == "healthy", 30)
    partitions = kafka_health(kafka).partitions
    assert len(partitions) == kafka.partitions * len(names)
    assert {(len(each.replicas), each.minimum) for each in partitions} == {(3, 2)}


@pytest.mark.slow
def test_topics_for_which_there_are_too_few_brokers_are_refused(nodes: KafkaCluster) -> None:
    kafka = KafkaSettings(bootstrap=nodes.bootstrap, prefix="many", replication=4)
    with pytest.raises(UnsafeTopics, match="3 of the 4 brokers are there"):
        ensure_topics(kafka, LOGS)


@pytest.mark.slow
def test_topics_that_would_not_outlive_a_broker_are_refused(nodes: KafkaCluster) -> None:
    kafka = KafkaSettings(bootstrap=nodes.bootstrap, prefix="thin")
    thin = [NewTopic(topic_of(kafka, log), num_partitions=1, replication_factor=1) for log in LOGS]
    administrator = AdminClient({"bootstrap.servers": nodes.bootstrap})
    for future in administrator.create_topics(thin).values():
        future.result(10)
    with pytest.raises(UnsafeTopics, match=r"the topic thin.audit is on 1 brokers, of which 2 must"):
        ensure_topics(kafka, LOGS)


@pytest.mark.slow
def test_a_row_that_is_not_as_it_was_published_is_named_with_its_columns(
    database: Database, nodes: KafkaCluster
) -> None:
    kafka = KafkaSettings(bootstrap=nodes.bootstrap, prefix="compared")
    (alice,) = new_tenants(database, 1)
    landed(database, [said(alice, 0.3), said(alice, -0.2)])
    with database.as_operator() as connection:
        record(connection, alice, "ada", "flag", {"β": [1e23, 0.1]})
    stopping = threading.Event()
    relay = threading.Thread(target=Relay(database.url, kafka, lambda _: None).run, args=(stopping,))
    relay.start()
    try:
        until(lambda: _unpublished(database) == 0, 60)
    finally:
        stopping.set()
        relay.join()
    with database.snapshot() as connection:
        assert compare_published(connection, kafka) == []
    with database.as_owner() as connection:
        as_forger(connection, "audit_events", "feedback_events")
        connection.execute("UPDATE audit_events SET actor = 'eve'")
        connection.execute("UPDATE feedback_events SET utility = 0.9 WHERE seq = 2")
    with database.snapshot() as connection:
        assert compare_published(connection, kafka) == [
            Tampering("audit_events", alice, 0, "actor is eve, it was published as ada"),
            Tampering("feedback_events", alice, 2, "utility is 0.9, it was published as -0.2"),
        ]


def _unpublished(database: Database) -> int:
    with database.as_operator() as connection:
        return sum(each.records for each in read_unpublished(connection))
