"""How to write the rows of a landing under row-level security: what each way costs.

The rows are those that real Chit-Chat ratings land as. Each way writes them again, batch by batch, each batch
a durable commit, into an empty copy of the log.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from somabrain_dagster.embedded import ensure_database, start_postgres, stop_postgres
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import TENANT_ROLE, Connection, Database
from somabrain_dagster.store.landing import land
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.weight_log import WeightChange, as_recordset, insert_changes

Row = dict[str, Any]
BATCHES = (1, 8, 32, 256, 2000)
TABLE = sql.Identifier("weight_changes")
EXEMPT_ROLE = "exempt_writer"


def columns_of(rows: Sequence[Row]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, rows[0]))


def many_inserts(connection: Connection, rows: Sequence[Row]) -> None:
    """An INSERT a row, prepared and pipelined."""
    values = sql.SQL(", ").join(sql.Placeholder() * len(rows[0]))
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(TABLE, columns_of(rows), values)
    connection.cursor().executemany(statement, [list(row.values()) for row in rows])


def binary_columns(connection: Connection, rows: Sequence[Row]) -> None:
    """One INSERT … SELECT from binary arrays, a column each: what the store does."""
    changes = [WeightChange(**{name: value for name, value in row.items() if name != "hash"}) for row in rows]
    insert_changes(connection, changes, [row["hash"] for row in rows])


def json_recordset(connection: Connection, rows: Sequence[Row]) -> None:
    """One INSERT … SELECT from a JSON record set."""
    statement = sql.SQL("INSERT INTO {0} SELECT * FROM json_populate_recordset(NULL::{0}, %s::json)")
    connection.execute(statement.format(TABLE), (as_recordset([dict(row) for row in rows]),))


def copied_aside(connection: Connection, rows: Sequence[Row]) -> None:
    """COPY into a temporary table, then INSERT … SELECT."""
    copied(connection, rows, sql.Identifier("aside"))
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM aside")
    connection.execute(statement.format(TABLE, columns_of(rows), columns_of(rows)))


def copied(connection: Connection, rows: Sequence[Row], table: sql.Composable = TABLE) -> None:
    """COPY, which row security refuses: only for a role that is exempt, and so may write for any tenant."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(table, columns_of(rows))
    with connection.cursor().copy(statement) as copy:
        for row in rows:
            copy.write_row(list(row.values()))


WAYS: dict[str, tuple[str, Callable[[Connection, Sequence[Row]], None]]] = {
    "an INSERT a row": (TENANT_ROLE, many_inserts),
    "binary columns": (TENANT_ROLE, binary_columns),
    "JSON record set": (TENANT_ROLE, json_recordset),
    "COPY aside, INSERT SELECT": (TENANT_ROLE, copied_aside),
    "COPY, exempt role": (EXEMPT_ROLE, copied),
}


def landed_rows(url: str) -> list[Row]:
    """Land real ratings and read the changes that they made."""
    data = read_chitchat(100)
    with Database(url) as database:
        with database.as_operator() as connection:
            create_tenants(connection, data.tenants, LearningConfiguration())
        land(database, data.feedback, LearningConfiguration())
        with database.as_operator() as connection:
            cursor = connection.execute("SELECT * FROM weight_changes WHERE version > 0")
            names = [column.name for column in cursor.description or []]
            return [dict(zip(names, row, strict=True)) for row in cursor]


def written_a_second(url: str, way: str, rows: Sequence[Row], batch: int) -> float:
    """Rows a second that one connection writes in durable commits of `batch` rows."""
    role, write = WAYS[way]
    batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    tenants = ",".join(sorted({row["tenant_id"] for row in rows}))
    with psycopg.connect(url, prepare_threshold=None) as connection:
        connection.execute("CREATE TEMPORARY TABLE aside (LIKE weight_changes) ON COMMIT DELETE ROWS")
        connection.execute(sql.SQL("GRANT ALL ON aside TO {}").format(sql.Identifier(TENANT_ROLE)))
        connection.commit()
        start = time.perf_counter()
        for some in batches:
            # COPY cannot be pipelined.
            with nullcontext() if "COPY" in way else connection.pipeline():
                connection.execute(
                    "SELECT set_config('role', %s, true), set_config('app.tenants', %s, true)",
                    (role, tenants),
                )
                write(connection, some)
                connection.commit()
        return len(rows) / (time.perf_counter() - start)


def emptied(admin_url: str) -> None:
    with psycopg.connect(admin_url) as admin:
        admin.execute("TRUNCATE weight_changes")


def main() -> None:
    """Print rows a second for each way and batch size, the best of three."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        home = Path(place)
        home.chmod(0o711)
        server = start_postgres(home)
        try:
            ensure_database(server, "brain")
            url, admin_url = server.url("brain"), server.admin_url("brain")
            migrate(url)
            rows = landed_rows(url)
            with psycopg.connect(admin_url, autocommit=True) as admin:
                admin.execute(f"CREATE ROLE {EXEMPT_ROLE} BYPASSRLS")
                admin.execute(f"GRANT INSERT ON weight_changes TO {EXEMPT_ROLE}")
                admin.execute(f"GRANT {EXEMPT_ROLE} TO {server.user}")
            print(f"rows a second, of {len(rows):,} changes that real ratings made")
            print(f"{'rows a commit':>26}" + "".join(f"{batch:>9,}" for batch in BATCHES))
            for way in WAYS:
                print(f"{way:>26}", end="", flush=True)
                for batch in BATCHES:
                    best = 0.0
                    for _ in range(3):
                        emptied(admin_url)
                        some = rows[: 100 * batch]
                        best = max(best, written_a_second(url, way, some, batch))
                    print(f"{best:>9,.0f}", end="", flush=True)
                print()
        finally:
            stop_postgres(home)


if __name__ == "__main__":
    main()
