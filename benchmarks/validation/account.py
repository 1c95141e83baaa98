"""What was acknowledged, against what is in Postgres and what arrived in Kafka: counts and hashes.

What was sent is known by digests that were taken when it was acknowledged. Every copy is read back as it is
stored, made into the feedback that it says it is, and digested again; nothing is compared by counting alone.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from numpy.typing import NDArray

from benchmarks.validation.landing import Answer
from benchmarks.validation.plan import NUMBER, Plan
from somabrain_dagster.operations.kafka import client_options, topic_of
from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import event_digest
from somabrain_dagster.store.outbox import LogName
from somabrain_dagster.store.partition_seals import read_seals

_TOGETHER = 10_000
_GATHER_SECONDS = 0.5
_SILENCE_SECONDS = 30.0
Digests = NDArray[np.void]
_NONE = np.void(bytes(32))


@dataclass
class Copies:
    """A copy of all events, by tenant and number: T tenants of N events each.

    Attributes:
        said: (T, N) digests of what each event says; zero where it is not there.
        seqs: (T, N) its number in the tenant's sequence, 0 where it is not there.
        stored: (T, N) its digest as a stored row.
        delivered: how many rows were read.
        twice: events that are there under two numbers of the sequence.
        altered: rows that are not what their own digest says.
    """

    plan: Plan
    said: Digests = field(init=False)
    seqs: NDArray[np.int64] = field(init=False)
    stored: Digests = field(init=False)
    delivered: int = field(default=0, init=False)
    twice: int = field(default=0, init=False)
    altered: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        shape = (len(self.plan.tenants), self.plan.each)
        self.said, self.stored = np.zeros(shape, "V32"), np.zeros(shape, "V32")
        self.seqs = np.zeros(shape, np.int64)
        self._places = {tenant: place for place, tenant in enumerate(self.plan.tenants)}

    @property
    def there(self) -> NDArray[np.bool_]:
        """(T, N) whether an event is there."""
        return self.seqs > 0

    def add(self, row: dict[str, Any], digest: bytes) -> None:
        """Add a row with the columns of `feedback_events`; those of other tenants are passed over."""
        tenant = self._places.get(row["tenant_id"])
        if tenant is None:
            return
        number, seq = row["metadata"][NUMBER], row["seq"]
        self.delivered += 1
        self.twice += int(self.seqs[tenant, number] not in (0, seq))
        self.altered += int(event_digest(row) != digest)
        self.seqs[tenant, number] = seq
        self.said[tenant, number] = np.void(_said(row))
        self.stored[tenant, number] = np.void(digest)

    def block(self, block: int) -> str:
        """The digest of a block's events, as of those that were sent."""
        numbers = self.plan.numbers(block)
        return hashlib.sha256(self.said[:, numbers.start : numbers.stop].T.tobytes()).hexdigest()


def _said(row: Mapping[str, Any]) -> bytes:
    return Feedback(
        tenant_id=row["tenant_id"],
        session_id=row["session_id"],
        utility=float(row["utility"]),  # JSON has no 1.0
        source=row["source"],
        occurred_at=row["occurred_at"],
        metadata=row["metadata"],
    ).digest()


def in_postgres(connection: Connection, plan: Plan) -> Copies:
    """The events that are kept."""
    copies = Copies(plan)
    with connection.cursor(name="validation") as cursor:
        cursor.itersize = _TOGETHER
        cursor.execute("SELECT * FROM feedback_events WHERE tenant_id = ANY (%s)", (list(plan.tenants),))
        for values in cursor:
            names = [column.name for column in cursor.description or ()]
            row = dict(zip(names, values, strict=True))
            copies.add(row, row.pop("digest"))
    return copies


def in_kafka(kafka: KafkaSettings, plan: Plan) -> Copies:
    """The events that arrived, each once however often it was delivered."""
    copies = Copies(plan)
    for row in records(kafka, "feedback_events"):
        row["created_at"] = datetime.fromisoformat(row["created_at"])
        row["occurred_at"] = datetime.fromisoformat(row["occurred_at"])
        copies.add(row, bytes.fromhex(row.pop("digest").removeprefix("\\x")))
    return copies


def records(kafka: KafkaSettings, log: LogName) -> Iterator[dict[str, Any]]:
    """Every record of a topic that is there now, as a stream, each partition in its order.

    Raises:
        RuntimeError: the brokers stop answering.
    """
    topic = topic_of(kafka, log)
    group = {"group.id": "validation", "enable.auto.commit": False}
    consumer = Consumer({**client_options(kafka), **group})
    try:
        partitions = [
            TopicPartition(topic, number)
            for number in consumer.list_topics(topic, 10).topics[topic].partitions
        ]
        left = {one.partition: consumer.get_watermark_offsets(one, 10)[1] for one in partitions}
        left = {number: end for number, end in left.items() if end}
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
        heard = time.monotonic()
        while left:
            messages = consumer.consume(_TOGETHER, _GATHER_SECONDS)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE_SECONDS:
                raise RuntimeError(f"{topic} does not come to its end: {left} are awaited")
            for message in messages:
                if (error := message.error()) is not None:
                    raise RuntimeError(f"{topic}: {error.str()}")
                number, offset, value = message.partition(), message.offset(), message.value()
                assert number is not None
                assert offset is not None
                assert value is not None
                if left.get(number) == offset + 1:
                    del left[number]
                row: dict[str, Any] = msgspec.json.decode(value)
                yield row
    finally:
        consumer.close()


@dataclass(frozen=True)
class Account:
    """What became of what was acknowledged.

    Attributes:
        acknowledged: events that the service or the import answered for.
        kept: of them in Postgres, each as it was sent.
        pruned: of them not in Postgres any more, each within a seal that the log gives.
        in_kafka: of them in Kafka, each as it was sent and as its weight change names it; None without Kafka.
        delivered: records of feedback that Kafka has, those that came twice counted twice.
        changes, changes_in_kafka: rows of the log of weights, and how many of them Kafka has with their hash.
        lost: acknowledged events that are in no copy where they must be.
        twice: events that landed more than once.
        different: blocks and single events that are not what was sent, and rows that are not what was
            digested.
    """

    acknowledged: int
    kept: int
    pruned: int
    in_kafka: int | None
    delivered: int | None
    changes: int
    changes_in_kafka: int | None
    lost: int
    twice: int
    different: int


def account(
    connection: Connection,
    kafka: KafkaSettings | None,
    plan: Plan,
    blocks: Mapping[int, str],
    answers: Mapping[int, Answer],
) -> tuple[Account, Copies]:
    """Compare every copy with what was acknowledged.

    Args:
        connection: a snapshot, taken after the last acknowledgement.
        kafka: where the copies are; None where there is no Kafka.
        plan: what was to land.
        blocks: the digest of each block that was acknowledged, as it was sent.
        answers: to the events that were sent one by one.

    Returns:
        The account, and of the copies the one that has most.
    """
    named = _named_events(connection, plan)
    postgres = in_postgres(connection, plan)
    copies = [postgres] if kafka is None else [postgres, in_kafka(kafka, plan)]
    whole = copies[-1]
    everything = np.zeros_like(whole.there)
    for block in blocks:
        numbers = plan.numbers(block)
        everything[:, numbers.start : numbers.stop] = True
    singles = list(plan.singles())
    different = sum(one.altered for one in copies)
    for place, answer in answers.items():
        number, tenant = divmod(place, len(plan.tenants))
        number += plan.bulk
        everything[tenant, number] = True
        for one in copies:
            if one.there[tenant, number]:
                sent = (answer.seq, singles[place].digest())
                different += (int(one.seqs[tenant, number]), one.said[tenant, number].tobytes()) != sent
    different += sum(whole.block(block) != sent for block, sent in blocks.items() if kafka is not None)
    different += _disagreements(copies)
    gone = everything & ~postgres.there
    pruned = _sealed(connection, plan)
    lost = int((everything & ~whole.there).sum()) if kafka is not None else 0
    lost += abs(int(gone.sum()) - pruned)
    if kafka is not None:
        seqs, tenants = whole.seqs[whole.there], np.nonzero(whole.there)[0]
        different += int((named[tenants, seqs] != whole.stored[whole.there]).sum())
    changes, changes_in_kafka = _changes(connection, kafka)
    return (
        Account(
            acknowledged=int(everything.sum()),
            kept=int((everything & postgres.there).sum()),
            pruned=pruned,
            in_kafka=None if kafka is None else int((everything & whole.there).sum()),
            delivered=None if kafka is None else whole.delivered,
            changes=changes,
            changes_in_kafka=changes_in_kafka,
            lost=lost,
            twice=sum(one.twice for one in copies) + abs(int((named != _NONE).sum()) - int(everything.sum())),
            different=different,
        ),
        whole,
    )


def _disagreements(copies: Sequence[Copies]) -> int:
    """Events of which two copies are there and differ."""
    first, last = copies[0], copies[-1]
    both = first.there & last.there
    return int(
        ((first.said != last.said) | (first.seqs != last.seqs) | (first.stored != last.stored))[both].sum()
    )


def _named_events(connection: Connection, plan: Plan) -> Digests:
    """(T, S): the digest that the log of weights has of the event of each number of a tenant's sequence."""
    (most,) = connection.execute("SELECT coalesce(max(event_seq), 0) FROM weight_changes").fetchone() or (0,)
    named = np.zeros((len(plan.tenants), most + 1), "V32")
    places = {tenant: place for place, tenant in enumerate(plan.tenants)}
    with connection.cursor(name="named_events") as cursor:
        cursor.itersize = _TOGETHER
        cursor.execute(
            "SELECT tenant_id, event_seq, event_digest FROM weight_changes "
            "WHERE event_seq IS NOT NULL AND tenant_id = ANY (%s)",
            (list(plan.tenants),),
        )
        for tenant, seq, digest in cursor:
            named[places[tenant], seq] = np.void(digest)
    return named


def _sealed(connection: Connection, plan: Plan) -> int:
    """How many events of the plan are pruned, by their seals."""
    seals = read_seals(connection, "feedback_events")
    return sum(seal.rows for seal in seals if seal.tenant_id in plan.people)


def _changes(connection: Connection, kafka: KafkaSettings | None) -> tuple[int, int | None]:
    """How many changes there are, and of how many Kafka has the hash."""
    hashes: set[bytes] = set()
    with connection.cursor(name="hashes") as cursor:
        cursor.itersize = _TOGETHER
        cursor.execute("SELECT hash FROM weight_changes")
        hashes.update(digest for (digest,) in cursor)
    total = len(hashes)
    if kafka is None:
        return total, None
    for row in records(kafka, "weight_changes"):
        hashes.discard(bytes.fromhex(row["hash"].removeprefix("\\x")))
    return total, total - len(hashes)
