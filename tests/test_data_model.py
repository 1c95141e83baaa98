"""The page about the data is what the database has: every table, column, key, right and partition of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from somabrain_dagster.store.database import OPERATOR_ROLE, TENANT_ROLE, Connection, Database

PAGE = Path(__file__).parent.parent / "docs" / "DATA_MODEL.md"

COLUMNS = """
SELECT c.relname, a.attname,
    format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN '' ELSE '?' END
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'
ORDER BY c.relname, a.attnum
"""

TABLES = """
SELECT c.relname,
    (SELECT string_agg(a.attname, ', ' ORDER BY k.place)
     FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (number, place), pg_attribute a
     WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.number),
    CASE pg_get_partkeydef(c.oid)
        WHEN 'RANGE (created_at)' THEN 'weeks' WHEN 'LIST (tenant_id)' THEN 'tenants' ELSE '' END,
    CASE WHEN c.relforcerowsecurity THEN 'forced' ELSE '' END,
    c.oid
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> 'alembic_version'
ORDER BY c.relname
"""

RIGHTS = """
SELECT string_agg(
    lower(name) || CASE WHEN has_table_privilege(%(role)s, %(oid)s::oid, name) THEN '' ELSE ' (columns)' END,
    ', ' ORDER BY place)
FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS p (name, place)
WHERE has_table_privilege(%(role)s, %(oid)s::oid, name)
   OR name <> 'DELETE' AND has_any_column_privilege(%(role)s, %(oid)s::oid, name)
"""


def rights(connection: Connection, role: str, oid: int) -> str:
    (row,) = connection.execute(RIGHTS.encode(), {"role": role, "oid": oid}).fetchall()
    return row[0] or ""


def summary(connection: Connection) -> dict[str, str]:
    """Of each table, its line in the first table of the page."""
    lines = {}
    for name, key, partitions, security, oid in connection.execute(TABLES.encode()).fetchall():
        tenant, operator = (rights(connection, role, oid) for role in (TENANT_ROLE, OPERATOR_ROLE))
        cells = [f"[`{name}`](#{name})", key, partitions, security, tenant, operator]
        lines[name] = " ".join(f"| {cell}" if cell else "|" for cell in cells) + " |"
    return lines


def columns(connection: Connection) -> dict[str, list[str]]:
    """Of each table and view, how the lines of its columns begin."""
    found: dict[str, list[str]] = {}
    for table, column, kind in connection.execute(COLUMNS.encode()).fetchall():
        found.setdefault(table, []).append(f"| `{column}` | {kind} |")
    return found


def sections(page: str) -> dict[str, str]:
    """The page by the names of tables in its headings."""
    parts = re.split(r"^### `(\w+)`$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.as_operator() as opened:
        yield opened


def test_each_table_has_its_line_with_its_key_partitions_and_rights(connection: Connection) -> None:
    page = PAGE.read_text().splitlines()
    missing = [line for line in summary(connection).values() if line not in page]
    assert not missing, "docs/DATA_MODEL.md lacks:\n" + "\n".join(missing)


def test_each_column_is_described_with_its_type(connection: Connection) -> None:
    described = sections(PAGE.read_text())
    missing = {
        table: [begin for begin in lines if begin not in described.get(table, "")]
        for table, lines in columns(connection).items()
    }
    missing = {table: lines for table, lines in missing.items() if lines}
    assert not missing, f"docs/DATA_MODEL.md lacks {missing}"


def test_nothing_is_described_that_is_not_there(connection: Connection) -> None:
    there = columns(connection)
    described = {
        table: re.findall(r"^\| `\w+` \| [^|]+ \|", text, re.MULTILINE)
        for table, text in sections(PAGE.read_text()).items()
    }
    assert described == there


def test_each_column_is_said_in_words() -> None:
    for table, text in sections(PAGE.read_text()).items():
        assert not re.findall(r"^\| `\w+` \| [^|]+ \| *\|$", text, re.MULTILINE), table
