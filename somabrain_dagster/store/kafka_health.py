"""How Kafka fared when a relay last asked it: the relay has its clients, others read what it wrote down."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, get_args

from psycopg.rows import dict_row

from somabrain_dagster.store.database import Connection

KafkaState = Literal["healthy", "at risk", "stopped"]
"""`at risk` where one more loss would stop it."""

KAFKA_STATES: tuple[KafkaState, ...] = get_args(KafkaState)


@dataclass(frozen=True)
class KafkaCounts:
    """A cluster in numbers.

    Attributes:
        answering, silent: brokers.
        voters: controllers that vote.
        current_voters: those of them that follow the leader.
        under_replicated: partitions that are not on all the brokers that they are to be on.
        at_minimum: partitions in which one more loss would stop acknowledgements.
        unwritable: partitions in which it has.
    """

    state: KafkaState
    answering: int
    silent: int
    voters: int
    current_voters: int
    under_replicated: int
    at_minimum: int
    unwritable: int


def record_kafka_health(connection: Connection, counts: KafkaCounts) -> None:
    """Write down how a cluster fares, in place of how it did.

    Args:
        connection: an operator's transaction.
        counts: as they are now.
    """
    connection.execute(
        """
        INSERT INTO kafka_health (
            state, answering, silent, voters, current_voters, under_replicated, at_minimum, unwritable
        ) VALUES (
            %(state)s, %(answering)s, %(silent)s, %(voters)s, %(current_voters)s, %(under_replicated)s,
            %(at_minimum)s, %(unwritable)s
        )
        ON CONFLICT (only_one) DO UPDATE SET (
            checked_at, state, answering, silent, voters, current_voters, under_replicated, at_minimum,
            unwritable
        ) = (
            now(), EXCLUDED.state, EXCLUDED.answering, EXCLUDED.silent, EXCLUDED.voters,
            EXCLUDED.current_voters, EXCLUDED.under_replicated, EXCLUDED.at_minimum, EXCLUDED.unwritable
        )
        """,
        asdict(counts),
    )


def read_kafka_health(connection: Connection) -> tuple[datetime, KafkaCounts] | None:
    """When a relay last asked, and what it found; None where none ever did.

    Args:
        connection: an operator's transaction.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """
            SELECT checked_at, state, answering, silent, voters, current_voters, under_replicated, at_minimum,
                unwritable
            FROM kafka_health
            """
        ).fetchone()
    return None if row is None else (row.pop("checked_at"), KafkaCounts(**row))
