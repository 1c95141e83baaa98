"""What landed, table by table: how much, up to where, and when last."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import sql

from somabrain_dagster.store.database import Connection

CountedTable = Literal["memories", "recalls", "token_usage"]
_IDENTIFIERS: dict[CountedTable, str] = {
    "memories": "memory_id",
    "recalls": "recall_id",
    "token_usage": "usage_id",
}


@dataclass(frozen=True)
class Landed:
    """A table of what landed.

    Attributes:
        rows: how many there are.
        tenants: that have any.
        last_id: the greatest id that was given; rows with smaller ids may commit later.
        last_landing: None where there are no rows.
    """

    rows: int
    tenants: int
    last_id: int
    last_landing: datetime | None

    @property
    def version(self) -> str:
        """Differs when rows were added or removed, a late commit with a small id among them."""
        landing = "never" if self.last_landing is None else self.last_landing.isoformat()
        return f"{self.rows}-{self.last_id}-{landing}"


def read_landed(connection: Connection, table: CountedTable) -> Landed:
    """Count a table."""
    row = connection.execute(
        sql.SQL(
            "SELECT count(*), count(DISTINCT tenant_id), coalesce(max({}), 0), max(created_at) FROM {}"
        ).format(sql.Identifier(_IDENTIFIERS[table]), sql.Identifier(table))
    ).fetchone()
    assert row is not None
    return Landed(*row)


@dataclass(frozen=True)
class Column:
    """A column as the database describes it; its comment is None where it needs none."""

    name: str
    type: str
    nullable: bool
    comment: str | None


def read_columns_of(connection: Connection, table: str) -> list[Column]:
    """The columns of a table or view, in its order."""
    rows = connection.execute(
        """
        SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull, col_description(attrelid, attnum)
        FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        """,
        (table,),
    )
    return [Column(*row) for row in rows]
