"""The schema: how a database gets to it, and what holds of every table in it."""

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from somabrain_dagster.embedded import binaries_path
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store import migrations
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.landing import Landed, land
from somabrain_dagster.store.schema import current_revision, migrate, newest_revision

REVISIONS = sorted(
    path.stem.split("_")[0] for path in (Path(migrations.__file__).parent / "versions").glob("[0-9]*.py")
)
BY_TIME = {"feedback_events", "recalls", "token_usage"}
"""The tables whose partitions are weeks of landing."""
CONFIGURATION = LearningConfiguration()


def schema_of(url: str) -> list[str]:
    """The schema as pg_dump writes it, without the random words that keep psql from being tricked."""
    dump = subprocess.run(
        [binaries_path() / "pg_dump", "--schema-only", url], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def column(connection: Connection, query: str, *arguments: object) -> list[Any]:
    return [value for (value,) in connection.execute(query.encode(), arguments)]


def tenant_tables(connection: Connection) -> set[str]:
    """Every table with a tenant_id, each partitioned one as a whole."""
    return set(
        column(
            connection,
            """
            SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
              AND NOT c.relispartition AND a.attname = 'tenant_id'
            """,
        )
    )


def partitions(connection: Connection, table: str) -> dict[str, tuple[datetime, datetime]]:
    """The partitions of a table, and from when until when each reaches."""
    bounds = connection.execute(
        """
        SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass
        """,
        (table,),
    )
    return {
        name: (datetime.fromisoformat(begin), datetime.fromisoformat(end))
        for name, text in bounds
        for begin, end in [re.findall(r"'(.*?)'", text)]
    }


def drop_partitions(connection: Connection, table: str, reaching: Callable[[datetime], bool]) -> int:
    """Drop the partitions whose end satisfies `reaching`, and return how many they were."""
    dropped = [name for name, (_, end) in partitions(connection, table).items() if reaching(end)]
    for name in dropped:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    return len(dropped)


def feedback(tenant_id: str) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "session_id": "session-1", "utility": 0.5}


def test_an_empty_database_gets_the_newest_schema(empty_url: str) -> None:
    assert current_revision(empty_url) is None
    assert migrate(empty_url) is None
    assert current_revision(empty_url) == newest_revision() == REVISIONS[-1]


def test_a_second_migration_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    once = schema_of(empty_url)
    assert migrate(empty_url) == newest_revision()
    assert schema_of(empty_url) == once


@pytest.mark.parametrize("revision", REVISIONS)
def test_each_revision_follows_the_one_before(empty_url: str, revision: str) -> None:
    for due in REVISIONS[: REVISIONS.index(revision)]:
        migrate(empty_url, due)
    before = current_revision(empty_url)
    assert migrate(empty_url, revision) == before
    assert current_revision(empty_url) == revision


def test_revision_by_revision_or_all_at_once_is_the_same(empty_url: str, owner_url: str) -> None:
    for revision in REVISIONS:
        migrate(empty_url, revision)
    assert schema_of(empty_url) == schema_of(owner_url)


def test_two_processes_migrate_at_once(empty_url: str, owner_url: str) -> None:
    program = "\n".join(
        [
            "from somabrain_dagster.store.schema import migrate",
            "print('ready', flush=True)",
            "input()",
            f"print(migrate({empty_url!r}))",
        ]
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) for _ in range(2)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sorted(output.strip() for output, _ in said) == sorted([newest_revision(), "None"])
    assert schema_of(empty_url) == schema_of(owner_url)


def test_feedback_and_token_usage_are_found_by_session(shared_database: Database) -> None:
    with shared_database.as_owner() as connection:
        indexes = set(
            column(
                connection,
                """
                SELECT (i.indrelid::regclass, array_agg(a.attname ORDER BY k.place))::text
                FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (number, place), pg_attribute a
                WHERE a.attrelid = i.indrelid AND a.attnum = k.number AND i.indisvalid AND i.indpred IS NULL
                GROUP BY i.indexrelid, i.indrelid
                """,
            )
        )
    assert indexes >= {'(feedback_events,"{session_id,created_at}")', "(token_usage,{session_id})"}


def test_tables_that_grow_with_time_are_partitioned_by_landing_without_a_default(
    shared_database: Database,
) -> None:
    with shared_database.as_owner() as connection:
        found = connection.execute(
            """
            SELECT
                p.partrelid::regclass::text, p.partstrat::text, array_agg(a.attname::text), p.partdefid::int
            FROM pg_partitioned_table p
            JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs)
            WHERE p.partrelid::regclass::text = ANY (%s)
            GROUP BY p.partrelid, p.partstrat, p.partdefid
            """,
            (list(BY_TIME),),
        ).fetchall()
    assert sorted(found) == [(table, "r", ["created_at"], 0) for table in sorted(BY_TIME)]


def test_every_unique_key_of_a_tenants_table_begins_with_the_tenant(shared_database: Database) -> None:
    with shared_database.as_owner() as connection:
        tables = tenant_tables(connection)
        keys = connection.execute(
            """
            SELECT i.indrelid::regclass::text, i.indisprimary, a.attname
            FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indisunique AND i.indrelid::regclass::text = ANY (%s)
            """,
            (list(tables),),
        ).fetchall()
    assert {(table, first) for table, _, first in keys} == {(table, "tenant_id") for table in tables}
    assert {table for table, primary, _ in keys if primary} == tables


def test_every_table_with_a_tenant_forces_row_security(shared_database: Database) -> None:
    with shared_database.as_owner() as connection:
        tables = tenant_tables(connection)
        forced = column(
            connection,
            """
            SELECT relname FROM pg_class
            WHERE relname = ANY (%s) AND relrowsecurity AND relforcerowsecurity
            """,
            list(tables),
        )
    assert len(tables) >= 12
    assert set(forced) == tables


def test_nothing_refers_to_a_table_partitioned_by_time(shared_database: Database) -> None:
    """Not even a key that is not enforced: either would block detaching a partition."""
    with shared_database.as_owner() as connection:
        referring = column(
            connection,
            """
            SELECT conrelid::regclass::text || '.' || conname FROM pg_constraint
            WHERE contype = 'f' AND confrelid IN (
                SELECT partrelid FROM pg_partitioned_table WHERE partstrat = 'r'
                UNION SELECT inhrelid FROM pg_inherits JOIN pg_partitioned_table ON inhparent = partrelid
                WHERE partstrat = 'r'
            )
            """,
        )
    assert referring == []


def test_there_are_partitions_for_this_week_and_eight_more(database: Database) -> None:
    with database.as_owner() as connection:
        (monday,) = column(connection, "SELECT date_trunc('week', now(), 'UTC')")
        weeks = [monday + timedelta(weeks=ahead) for ahead in range(10)]
        for table in BY_TIME:
            reaches = sorted(partitions(connection, table).values())
            assert reaches == list(pairwise(weeks))


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_partitions_are_made_where_they_are_missing_whatever_the_time_zone(
    database: Database, zone: str
) -> None:
    with database.as_owner() as connection:
        whole = {table: partitions(connection, table) for table in BY_TIME}
        (now,) = column(connection, "SELECT now()")
        near = now + timedelta(weeks=3)
        dropped = sum(drop_partitions(connection, table, lambda end: end > near) for table in BY_TIME)
        assert dropped > len(BY_TIME)
        connection.execute("SELECT set_config('timezone', %s, true)", (zone,))
        assert column(connection, "SELECT ensure_partitions()") == [dropped]
        connection.execute("SET LOCAL timezone = 'UTC'")
        assert {table: partitions(connection, table) for table in BY_TIME} == whole


def test_partitions_that_are_there_are_left_alone(database: Database) -> None:
    with database.as_operator() as connection:
        assert column(connection, "SELECT ensure_partitions()") == [0]


def test_a_tenant_may_ask_for_partitions(database: Database) -> None:
    with database.as_owner() as connection:
        dropped = drop_partitions(connection, "token_usage", lambda _: True)
    with database.as_tenants(["alice"]) as connection:
        assert column(connection, "SELECT ensure_partitions()") == [dropped]


def test_a_landing_makes_the_partition_that_it_needs(database: Database) -> None:
    with database.as_operator() as connection:
        create_tenants(connection, ["alice"], CONFIGURATION)
    with database.as_owner() as connection:
        drop_partitions(connection, "feedback_events", lambda _: True)
    (outcome,) = land(database, [parse_feedback(feedback("alice"))], CONFIGURATION)
    assert isinstance(outcome, Landed)
    with database.as_tenants(["alice"]) as connection:
        assert column(connection, "SELECT seq FROM feedback_events") == [1]


def test_landings_that_miss_a_partition_at_once_all_land(database: Database) -> None:
    """All but one of them find that another has made it."""
    tenants = [f"tenant-{number}" for number in range(8)]
    with database.as_operator() as connection:
        create_tenants(connection, tenants, CONFIGURATION)
    with database.as_owner() as connection:
        drop_partitions(connection, "feedback_events", lambda _: True)
    batches = [[parse_feedback(feedback(tenant))] for tenant in tenants]
    with ThreadPoolExecutor(len(tenants)) as pool:
        outcomes = list(pool.map(lambda batch: land(database, batch, CONFIGURATION), batches))
    assert [type(outcome) for (outcome,) in outcomes] == [Landed] * len(tenants)
