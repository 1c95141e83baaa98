"""A real Kafka cluster for tests, what a consumer reads of it, and the relay as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from somabrain_dagster.embedded import EmbeddedServerError
from somabrain_dagster.embedded.kafka import KafkaCluster, KafkaToolsMissing, fetch_kafka, start_kafka
from somabrain_dagster.operations.kafka import topic_of
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store.outbox import LogName

REQUIRED = "SOMABRAIN_REQUIRE_KAFKA"
"""Set to 1 where a test that is skipped for want of Kafka is a failure."""

LIBRARIES = Path(__file__).parent.parent / ".somabrain" / "kafka-libs"


@contextmanager
def cluster(home: Path) -> Iterator[KafkaCluster]:
    """Three nodes of this test's own; skips, or fails where it must not, without Java and Maven."""
    try:
        LIBRARIES.parent.mkdir(exist_ok=True)
        fetch_kafka(LIBRARIES)
        started = start_kafka(home, LIBRARIES)
    except KafkaToolsMissing as missing:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(str(missing))
    except EmbeddedServerError as error:
        if os.environ.get(REQUIRED) == "1" or LIBRARIES.exists():
            raise
        pytest.skip(f"Kafka cannot be had here: {error}")
    try:
        yield started
    finally:
        started.stop()


@dataclass(frozen=True)
class Consumed:
    """A record as a consumer reads it."""

    partition: int
    key: str
    value: dict[str, Any]


def consume(kafka: KafkaSettings, log: LogName) -> list[Consumed]:
    """All that is in a topic, each partition in its order."""
    topic = topic_of(kafka, log)
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
        }
    )
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        ends = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1]
            for number in partitions
        }
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Consumed] = []
        reached = dict.fromkeys(partitions, 0)
        while any(reached[number] < end for number, end in ends.items()):
            message = consumer.poll(10)
            assert message is not None, f"{topic} ends at {reached}, not at {ends}"
            assert message.error() is None, message.error()
            number, offset = message.partition(), message.offset()
            key, value = message.key(), message.value()
            assert number is not None
            assert offset is not None
            assert isinstance(key, bytes)
            assert value is not None
            reached[number] = offset + 1
            found.append(Consumed(number, key.decode(), json.loads(value)))
    finally:
        consumer.close()
    return found


def variables(database_url: str, redis_url: str, bootstrap: str) -> dict[str, str]:
    """The environment of a process of this project on these servers alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")} | {
        "SOMABRAIN_DATABASE_URL": database_url,
        "SOMABRAIN_DAGSTER_DATABASE_URL": database_url,
        "SOMABRAIN_REDIS_URL": redis_url,
        "SOMABRAIN_KAFKA_BOOTSTRAP": bootstrap,
    }


def somabrain(*arguments: str) -> list[str]:
    """A command of this project."""
    return [str(Path(sys.executable).with_name("somabrain")), *arguments]


@contextmanager
def relaying(environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A relay until the end of the block, unless it is killed before."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            somabrain("kafka", "relay"), env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
