"""What every table of a brain holds, as a number of rows and a digest: by that a copy is compared with it."""

from collections.abc import Callable, Sequence

import msgspec
import psycopg
from psycopg import IsolationLevel, sql

from somabrain_dagster.store.database import Connection


class TableDigest(msgspec.Struct, frozen=True):
    """A table at one instant, with all its partitions.

    Attributes:
        rows: how many.
        digest: the sum of 64-bit hashes of the rows as text; their order does not matter.
    """

    table: str
    rows: int
    digest: str


def tables(connection: Connection) -> list[str]:
    """The tables of a brain, by name, a partitioned one once."""
    rows = connection.execute(
        """
        SELECT relname::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        ORDER BY relname
        """
    ).fetchall()
    return [table for (table,) in rows]


def table_digests(
    connection: Connection, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[TableDigest]:
    """Read every row of every table.

    Two brains of one major version of Postgres have the same digests if they have the same rows, on whatever
    machine, save one of another byte order.

    Args:
        connection: of the owner or a superuser, in a transaction.
        progress: told how many tables of how many were read.
    """
    # The settings that decide how a value is written as text.
    connection.execute(
        """
        SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres';
        SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'
        """
    )
    names, digests = tables(connection), []
    for done, table in enumerate(names):
        progress(done, len(names))
        query = sql.SQL(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {} t"
        )
        row = connection.execute(query.format(sql.Identifier(table))).fetchone()
        assert row is not None
        digests.append(TableDigest(table, *row))
    return digests


def digests_at(url: str) -> list[TableDigest]:
    """What the tables behind a URL hold at one instant; of the owner or a superuser."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        return table_digests(connection)


def differences(before: Sequence[TableDigest], now: Sequence[TableDigest]) -> list[str]:
    """What is not as it was, a sentence a table."""
    found = {each.table: each for each in now}
    told = []
    for was in before:
        if (one := found.pop(was.table, None)) is None:
            told.append(f"the table {was.table} is missing, and had {was.rows:,} rows when it was backed up")
        elif one.rows != was.rows:
            told.append(
                f"the table {was.table} has {one.rows:,} rows, and had {was.rows:,} when it was backed up"
            )
        elif one.digest != was.digest:
            told.append(f"the {was.rows:,} rows of the table {was.table} are not those that were backed up")
    return [*told, *(f"the table {table} was not there when it was backed up" for table in found)]
