"""What Kafka holds of the history, compared with what Postgres holds."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from somabrain_dagster.operations.kafka import ASK_SECONDS, KafkaUnreachable, client_options, topic_of
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.outbox import FEEDBACK, LOGS, NUMBER, LogName, read_rows
from somabrain_dagster.store.tampering import Tampering

_TOGETHER = 1000
_SILENCE_SECONDS = 4 * ASK_SECONDS

_Copy = dict[str, Any]


def compare_published(connection: Connection, kafka: KafkaSettings) -> list[Tampering]:
    """The rows that are not as they were published, with the columns that differ.

    Every copy counts. So rows that a restore took back show too, where others have their versions now.

    Args:
        connection: a snapshot.
        kafka: where the copies are.

    Raises:
        KafkaUnreachable: not all of a topic can be read.
    """
    found: set[Tampering] = set()
    for log in LOGS:
        batch: list[_Copy] = []
        for copy in _copies(kafka, log):
            batch.append(copy)
            if len(batch) == _TOGETHER:
                found.update(_differences(connection, log, batch))
                batch = []
        found.update(_differences(connection, log, batch))
    return sorted(found)


def _differences(connection: Connection, log: LogName, copies: Sequence[_Copy]) -> Iterator[Tampering]:
    identities = [(copy["tenant_id"], copy[NUMBER[log]]) for copy in copies]
    rows = read_rows(connection, log, identities)
    for identity, copy in zip(identities, copies, strict=True):
        row = rows.get(identity)
        if row is None:
            if (
                log != FEEDBACK
            ):  # of which retention drops the old ones; gaps in what is kept show by the chain
                yield Tampering(log, *identity, "the row is gone, Kafka has it")
            continue
        differs = [
            f"{column} is {_shown(row.get(column))}, it was published as {_shown(value)}"
            for column, value in copy.items()
            if row.get(column) != value
        ]
        if differs:
            yield Tampering(log, *identity, "; ".join(differs))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _copies(kafka: KafkaSettings, log: LogName) -> Iterator[_Copy]:
    """All that a topic holds, in each partition's order."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

    topic = topic_of(kafka, log)
    # The group is named only because there must be one: nothing is noted under it.
    consumer = Consumer(
        {**client_options(kafka), "group.id": "somabrain-verify", "enable.auto.commit": False}
    )
    try:
        partitions = consumer.list_topics(topic, ASK_SECONDS).topics[topic].partitions
        left = {}
        for number in partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, number), ASK_SECONDS)
            if end > first:
                left[number] = end
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
        while left:
            message = consumer.poll(_SILENCE_SECONDS)
            if message is None or message.error() is not None:
                reason = "it does not answer" if message is None else str(message.error())
                raise KafkaUnreachable(f"{topic} cannot be read to its end: {reason}")
            number, offset, value = message.partition(), message.offset(), message.value()
            assert number is not None
            assert offset is not None
            assert value is not None
            if number in left and offset < left[number]:
                yield msgspec.json.decode(value)
            if number in left and offset + 1 >= left[number]:
                del left[number]
    except KafkaException as error:
        raise KafkaUnreachable(f"{topic} cannot be read: {error.args[0].str()}") from error
    finally:
        consumer.close()
