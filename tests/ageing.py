"""How tests make real rows old: the week in which they landed is cut in two, now.

Neither a clock nor a row is touched, so digests, chains and times stay those of the landing. What is there
becomes a partition that ends at this moment, and what lands from now on goes into the rest of the week.
"""

from datetime import datetime

from psycopg import sql

from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.retention import RELATIONS, Partition, read_partitions


def cut_weeks(database: Database, at: datetime | None = None) -> None:
    """End the partitions of this week now.

    Args:
        database: the brain's.
        at: when they end instead, still to come: what is there is read for it, so it is quick before much is.
    """
    with database.as_owner() as connection:
        # The rows that are there landed before this transaction began, so before its now().
        (now,) = connection.execute("SELECT coalesce(%s, now())", (at,)).fetchone() or (None,)
        for partition in read_partitions(connection):
            if partition.begins < now < partition.ends:
                _cut(connection, partition, sql.Literal(now))


def _cut(connection: Connection, partition: Partition, now: sql.Literal) -> None:
    names = {
        "parent": sql.Identifier(partition.relation),
        "week": sql.Identifier(partition.name),
        "old": sql.Identifier(
            f"{partition.name}_before_{len(partitions_of(connection, partition.relation))}"
        ),
        "begins": sql.Literal(partition.begins),
        "now": now,
        "ends": sql.Literal(partition.ends),
    }
    for statement in (
        "ALTER TABLE {parent} DETACH PARTITION {week}",
        "ALTER TABLE {week} RENAME TO {old}",
        "ALTER TABLE {parent} ATTACH PARTITION {old} FOR VALUES FROM ({begins}) TO ({now})",
        "CREATE TABLE {week} PARTITION OF {parent} FOR VALUES FROM ({now}) TO ({ends})",
    ):
        connection.execute(sql.SQL(statement).format(**names))


def partitions_of(connection: Connection, relation: str) -> list[str]:
    """The names of a table's partitions, the oldest first."""
    assert relation in RELATIONS
    return [partition.name for partition in read_partitions(connection) if partition.relation == relation]
