"""What a backup and a restore ask of Postgres: whose it is, where it stands, and that one runs at a time."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

import psycopg
from psycopg import IsolationLevel

from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Connection, held
from somabrain_dagster.store.positions import Head, read_heads
from somabrain_dagster.store.schema import revision_in

LOCK = "somabrain_backup"
LOCK_ATTEMPTS = 30
LOCK_WAIT = "1s"
"""How long writers may queue behind a backup that waits for a long transaction, each time."""
HELD_SECONDS = 0.1
LOCK_PAUSE = 0.3
"""How long writers of states wait for an instant without others, and go on before the next attempt."""


class BackupRunning(RuntimeError):
    """Another backup of this brain runs."""


class PositionBusy(RuntimeError):
    """There was no instant for long at which nobody wrote."""


@dataclass(frozen=True)
class Identity:
    """Which brain a database holds, and what it is counted by: 1, or the second of its last restore."""

    brain_id: str
    epoch: int


@dataclass(frozen=True)
class Server:
    """A Postgres server, and what the role that asks may do there.

    Attributes:
        version: as in 180006.
        may_replicate: whether the role may take base backups.
        superuser: the name of the cluster's first role.
    """

    version: int
    may_replicate: bool
    superuser: str

    @property
    def major(self) -> int:
        """The major version: data directories of another one cannot be read."""
        return self.version // 10_000


@dataclass(frozen=True)
class Standing:
    """A brain at one instant.

    Attributes:
        heads: the ends of all logs, by tenant.
        revision: of the schema.
        lsn: every change of `heads` is before it in the write-ahead log, and no later one.
        end: up to where the write-ahead log must be kept, for a recovery to stop at `lsn`.
    """

    identity: Identity
    heads: Sequence[Head]
    revision: str | None
    lsn: str = ""
    end: str = ""


def read_identity(connection: Connection) -> Identity:
    """Which brain this is."""
    row = connection.execute("SELECT brain_id::text, epoch FROM brain").fetchone()
    assert row is not None
    return Identity(*row)


def identity_at(url: str) -> Identity | None:
    """Which brain is behind a URL; None where it cannot be told: no answer, or no brain."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return read_identity(connection)
    except psycopg.Error:
        return None


def begin_epoch(connection: Connection, actor: str, backup_id: str, position: str) -> int:
    """Begin what follows a restore, and say so in the audit trail.

    An epoch is the second of its restore: later than any before it, even where the brain that had those is
    lost and the same backup is restored once more.

    Returns:
        The epoch that begins.
    """
    row = connection.execute(
        """
        UPDATE brain SET epoch = greatest(epoch + 1, extract(epoch FROM clock_timestamp())::bigint)
        RETURNING epoch
        """
    ).fetchone()
    assert row is not None
    epoch = int(row[0])
    body = {"backup": backup_id, "position": position, "epoch": epoch}
    audit.record(connection, audit.SYSTEM, actor, "restore", body)
    return epoch


def describe_server(url: str) -> Server:
    """The server behind a URL."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(
            """
            SELECT current_setting('server_version_num')::int, r.rolsuper OR r.rolreplication, first.rolname
            FROM pg_roles r, pg_roles first WHERE r.rolname = current_user AND first.oid = 10
            """
        ).fetchone()
    assert row is not None
    return Server(*row)


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Let one process at a time back this brain up; the server releases the lock of one that dies.

    Raises:
        BackupRunning: another one does.
    """
    with psycopg.connect(url, autocommit=True) as connection, held(connection, LOCK) as taken:
        if not taken:
            holder = connection.execute(
                """
                SELECT a.pid, a.backend_start FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                WHERE l.locktype = 'advisory' AND l.granted
                  AND (l.classid::bigint << 32 | l.objid::bigint) = hashtext(%s)
                """,
                (LOCK,),
            ).fetchone()
            since = (
                "" if holder is None else f" (session {holder[0]} of Postgres, since {holder[1]:%H:%M:%S})"
            )
            raise BackupRunning(f"another backup of this brain runs{since}: wait for it to end")
        yield


@contextmanager
def kept_log(url: str) -> Iterator[None]:
    """Keep the server from removing write-ahead log until the end of the block, or of this process."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_create_physical_replication_slot(%s, true, true)", (f"somabrain_{uuid4().hex}",)
        )
        yield


@contextmanager
def marked(url: str) -> Iterator[tuple[Standing, Connection]]:
    """Where the logs are now, as a place in the write-ahead log, and a view of all rows at that place.

    Changes of weights wait for the milliseconds that it takes: transactions that wrote states end first, and
    none begins. Whoever writes other tables is not held: an instant is found at which nobody does. So a
    recovery that stops at the place has the rows of the view, to the last one.

    Args:
        url: of the owner of the database.

    Yields:
        The standing, and a connection whose transaction sees what was so.

    Raises:
        PositionBusy: transactions that write did not end.
    """
    with psycopg.connect(url) as writers, psycopg.connect(url) as view:
        view.isolation_level = IsolationLevel.REPEATABLE_READ
        for _ in range(LOCK_ATTEMPTS):
            try:
                lsn = _instant(writers, view)
            except psycopg.errors.LockNotAvailable:
                lsn = None
            # What was held goes on.
            writers.rollback()
            if lsn is not None:
                break
            time.sleep(LOCK_PAUSE)
        else:
            raise PositionBusy("transactions have been writing for long: let them end, then back up again")
        # A recovery stops before the first record behind the place: there must be one, the message. A
        # receiver stops once it has more than it was asked for: that is the commit.
        end = writers.execute("SELECT pg_logical_emit_message(true, 'somabrain', 'backup')::text").fetchone()
        writers.commit()
        assert end is not None
        standing = Standing(read_identity(view), read_heads(view), revision_in(view), lsn, str(end[0]))
        yield standing, view


def _instant(writers: psycopg.Connection, view: psycopg.Connection) -> str | None:
    """Let the view begin at an instant at which no transaction is about to change a row.

    A transaction is in the log before others see it, and keeps its locks until they do. So all that the log
    has before the place is in the view, if afterwards the same transactions run as when the view began, and
    none of them has a lock that writing takes.

    Returns:
        The place in the write-ahead log; None if there was no such instant while states were held.
    """
    writers.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_WAIT,))
    writers.execute("LOCK TABLE adaptation_states IN SHARE MODE")
    deadline = time.monotonic() + HELD_SECONDS
    while time.monotonic() < deadline:
        seen = view.execute("SELECT pg_current_snapshot()::text").fetchone()
        lsn = writers.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        writing = writers.execute(
            """
            SELECT EXISTS (
                SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE d.datname = current_database() AND l.locktype = 'relation' AND l.relation >= 16384
                  AND l.mode IN
                    ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            )
            """
        ).fetchone()
        now = writers.execute("SELECT pg_current_snapshot()::text").fetchone()
        if writing == (False,) and seen == now:
            assert lsn is not None
            return str(lsn[0])
        view.rollback()
    return None


@contextmanager
def exported(url: str) -> Iterator[tuple[str, Standing, Connection]]:
    """A snapshot that pg_dump can work in, by name, where the logs are in it, and a connection that sees it.

    Args:
        url: of the owner of the database.
    """
    with psycopg.connect(url) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        name = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert name is not None
        standing = Standing(read_identity(connection), read_heads(connection), revision_in(connection))
        yield str(name[0]), standing, connection


@dataclass(frozen=True)
class TakenBackup:
    """A backup that was made and read back.

    Attributes:
        created_at: when it began.
        seconds: that it took.
        kind: `base` or `dump`.
        bytes: of all files.
        position: that it holds.
    """

    backup_id: str
    created_at: datetime
    seconds: float
    kind: str
    bytes: int
    position: str


def record_backup(url: str, taken: TakenBackup) -> None:
    """Write down that a backup was made.

    Args:
        url: of the owner of the database.
        taken: the backup.
    """
    with psycopg.connect(url) as connection:
        connection.execute(
            """
            INSERT INTO backups (backup_id, created_at, seconds, kind, bytes, changes, position)
            VALUES (%(backup_id)s, %(created_at)s, %(seconds)s, %(kind)s, %(bytes)s,
                split_part(%(position)s, '-', 1)::bigint, %(position)s)
            """,
            vars(taken),
        )


def is_empty(url: str) -> bool:
    """Whether a database has no table of its own."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(
            """
            SELECT count(*) FROM pg_class
            WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
            """
        ).fetchone()
    return row == (0,)


def drop_amcheck(url: str) -> None:
    """Remove the extension that pg_amcheck installs to look at indexes, as a superuser."""
    with psycopg.connect(url) as connection:
        connection.execute("DROP EXTENSION IF EXISTS amcheck")


@dataclass(frozen=True)
class Drill:
    """A backup that was restored into a scratch instance.

    Attributes:
        created_at: when; None for one that is not recorded yet.
        position: that the backup holds.
        findings: against it; none proves it.
    """

    backup_id: str
    backup_at: datetime
    position: str
    seconds: float
    findings: Sequence[str]
    created_at: datetime | None = None


def record_drill(connection: Connection, drill: Drill) -> None:
    """Keep what a drill came to, in an operator's transaction."""
    connection.execute(
        """
        INSERT INTO restore_drills (backup_id, backup_at, position, seconds, findings)
        VALUES (%s, %s, %s, %s, %s)
        """,
        (drill.backup_id, drill.backup_at, drill.position, drill.seconds, list(drill.findings)),
    )


def last_proof(connection: Connection) -> Drill | None:
    """The last drill that found nothing, or None."""
    row = connection.execute(
        """
        SELECT backup_id, backup_at, position, seconds, findings, created_at
        FROM restore_drills WHERE findings = '{}' ORDER BY drill_id DESC LIMIT 1
        """
    ).fetchone()
    return None if row is None else Drill(*row)
