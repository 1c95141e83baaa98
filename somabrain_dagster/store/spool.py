"""What an import must remember of a file's earlier lines: on disk, so that a file may have any length."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Reference:
    """A link as a line of a file states it: from its own memory to one that the file calls by a name.

    Attributes:
        line: the number of the line that states it.
        source_id: the line's memory; `source_time` is when it occurred.
        target: the name of the other memory.
    """

    line: int
    tenant_id: str
    source_id: int
    source_time: datetime
    target: str
    kind: str
    weight: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """A reference, the text of its line, and the memory that it leads to: None if no line has that name."""

    reference: Reference
    text: str
    target_id: int | None
    target_time: datetime | None


class Spool:
    """A temporary database of names, references and counts; a context manager, gone at its end."""

    def __init__(self) -> None:
        # An empty name is SQLite's own for a private file that it deletes; small ones never leave memory.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE names (
                tenant_id TEXT, name TEXT, line INTEGER, digest BLOB, memory_id INTEGER, moment INTEGER,
                PRIMARY KEY (tenant_id, name)
            ) WITHOUT ROWID;
            CREATE TABLE lines (line INTEGER PRIMARY KEY, text TEXT);
            CREATE TABLE links (
                line INTEGER, tenant_id TEXT, source_id INTEGER, moment INTEGER, target TEXT, kind TEXT,
                weight REAL
            );
            CREATE TABLE counts (digest BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID;
            """
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def occurrence(self, digest: bytes) -> int:
        """Count a digest: 1 for its first time."""
        (count,) = self._database.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
            (digest,),
        ).fetchone()
        return int(count)

    def claim(self, line: int, tenant_id: str, name: str, digest: bytes) -> int | None:
        """Let a line give a name to the content with this digest.

        Returns:
            None, or the earlier line that gave the tenant's name to other content, whose it stays.
        """
        self._database.execute(
            "INSERT INTO names (tenant_id, name, line, digest) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (tenant_id, name, line, digest),
        )
        earlier, owner = self._database.execute(
            "SELECT line, digest FROM names WHERE tenant_id = ? AND name = ?", (tenant_id, name)
        ).fetchone()
        return None if owner == digest else int(earlier)

    def place(self, tenant_id: str, name: str, memory_id: int, moment: datetime) -> None:
        """Say which memory a claimed name is, and when it occurred."""
        self._database.execute(
            "UPDATE names SET memory_id = ?, moment = ? WHERE tenant_id = ? AND name = ?",
            (memory_id, _micros(moment), tenant_id, name),
        )

    def refer(self, references: list[Reference], text: str) -> None:
        """Remember the references of one line, and its text."""
        if not references:
            return
        self._database.execute("INSERT INTO lines VALUES (?, ?)", (references[0].line, text))
        self._database.executemany(
            "INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (r.line, r.tenant_id, r.source_id, _micros(r.source_time), r.target, r.kind, r.weight)
                for r in references
            ],
        )

    def resolved(self) -> Iterator[Resolved]:
        """Every reference in the order of the file, beside the memory that it leads to."""
        rows = self._database.execute(
            """
            SELECT r.line, r.tenant_id, r.source_id, r.moment, r.target, r.kind, r.weight,
                l.text, n.memory_id, n.moment
            FROM links r JOIN lines l USING (line)
            LEFT JOIN names n ON n.tenant_id = r.tenant_id AND n.name = r.target
            ORDER BY r.rowid
            """
        )
        for line, tenant_id, source_id, moment, target, kind, weight, text, target_id, target_moment in rows:
            yield Resolved(
                Reference(line, tenant_id, source_id, _moment(moment), target, kind, weight),
                text,
                target_id,
                None if target_moment is None else _moment(target_moment),
            )

    @property
    def references(self) -> int:
        """How many references are remembered."""
        (count,) = self._database.execute("SELECT count(*) FROM links").fetchone()
        return int(count)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND
