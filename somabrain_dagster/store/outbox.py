"""What is to be published of the tenants' logs, in the order of commits, and how far that got.

Each log is its own outbox. A tenant's versions have no gap and are given under a lock that its next writer
waits for, in the order of commits: so a mark (version, hash) for each tenant and log says exactly what was
published. A row that commits late is beyond its own tenant's mark, whatever was published for others
meanwhile; no horizon of transactions is waited for.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import psycopg
from psycopg import sql

from somabrain_dagster.store.arrays import bigints, byteas, texts
from somabrain_dagster.store.database import OPERATOR_ROLE, Connection

LogName = Literal["audit_events", "weight_changes", "feedback_events"]
"""The logs that are published, by their tables."""

LOGS: tuple[LogName, ...] = ("audit_events", "weight_changes", "feedback_events")
FEEDBACK: LogName = "feedback_events"

_LOCK = "somabrain_relay"

NUMBER: Mapping[LogName, str] = {
    "audit_events": "version",
    "weight_changes": "version",
    "feedback_events": "seq",
}
"""The column by which a log counts each tenant's rows."""

DIGEST: Mapping[LogName, str] = {
    "audit_events": "hash",
    "weight_changes": "hash",
    "feedback_events": "digest",
}
"""The column that tells a row from any other of the same number."""

_MARKED: Mapping[LogName, str] = {
    "audit_events": "(SELECT l.hash FROM audit_events l "
    "WHERE (l.tenant_id, l.version) = (a.tenant_id, m.version))",
    "weight_changes": "(SELECT l.hash FROM weight_changes l "
    "WHERE (l.tenant_id, l.version) = (a.tenant_id, m.version))",
    # The event itself may be gone; the change that answers it never is.
    "feedback_events": "(SELECT l.event_digest FROM weight_changes l "
    "WHERE (l.tenant_id, l.event_seq) = (a.tenant_id, m.version))",
}

_HEADS = """
    heads (tenant_id, log, version, hash) AS (
        SELECT tenant_id, 'weight_changes', version, hash FROM adaptation_states
        UNION ALL
        SELECT tenant_id, 'feedback_events', feedback_seq, NULL FROM adaptation_states WHERE feedback_seq > 0
        UNION ALL
        SELECT * FROM (
            SELECT DISTINCT ON (tenant_id) tenant_id, 'audit_events', version, hash
            FROM audit_events ORDER BY tenant_id, version DESC
        ) AS audited
    )
"""
"""A common table expression: the end of every log. The hash of a feedback event is not needed: where it is
not what it was, neither is the hash of the change that answers it."""


class AnotherRelay(RuntimeError):
    """Another process relays from this database."""


@dataclass(frozen=True)
class Record:
    """A row to publish.

    Attributes:
        version: of the row; of a feedback event its seq.
        hash: of the row; of a feedback event its digest.
        value: the row as JSON, every column.
    """

    log: LogName
    tenant_id: str
    version: int
    hash: bytes
    created_at: datetime
    value: bytes


class Outbox:
    """One connection that holds the lock of the relay, and through which alone marks are moved.

    Whoever loses the connection loses the lock with it, and can move no mark. Use as a context manager.
    """

    def __init__(self, url: str) -> None:
        """Connect, and take the lock.

        Args:
            url: of the owner of the database.

        Raises:
            AnotherRelay: another process has it; the message says which.
            DatabaseUnreachable: the server cannot be reached.
        """
        self._connection: Connection = psycopg.connect(
            url, autocommit=True, connect_timeout=5, application_name="somabrain relay", keepalives_idle=10
        )
        try:
            self._take_lock()
            self._connection.execute("SELECT set_config('role', %s, false)", (OPERATOR_ROLE,))
            self._connection.execute("SET timezone = 'UTC'")
        except BaseException:
            self._connection.close()
            raise

    def _take_lock(self) -> None:
        taken = self._connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (_LOCK,)).fetchone()
        if taken == (True,):
            return
        other = self._connection.execute(
            """
            SELECT pid, coalesce(host(client_addr), 'this machine'), backend_start
            FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND granted AND datname = current_database()
              AND objid = (hashtext(%s)::bigint & 4294967295)::oid
            """,
            (_LOCK,),
        ).fetchone()
        if other is None:
            raise AnotherRelay("another relay has just had the lock of this database")
        pid, address, since = other
        raise AnotherRelay(
            f"another relay works on this database: from {address}, since {since:%Y-%m-%d %H:%M:%S}, "
            f"session {pid} of Postgres"
        )

    def close(self) -> None:
        """Give the lock back, before the server notices that the connection is gone."""
        with suppress(psycopg.Error):
            self._connection.execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def behind(self) -> list[str]:
        """The tenants of which something is not published; it looks at every log's end."""
        rows = self._connection.execute(
            f"""
            WITH {_HEADS}
            SELECT DISTINCT h.tenant_id FROM heads h LEFT JOIN relay_marks m USING (tenant_id, log)
            WHERE h.version IS DISTINCT FROM m.version OR h.hash <> m.hash
            ORDER BY h.tenant_id
            """  # noqa: S608 — of a constant
        )
        return [tenant_id for (tenant_id,) in rows]

    def unpublished(
        self, log: LogName, tenants: Sequence[str], most: int
    ) -> tuple[list[Record], list[tuple[str, int]]]:
        """What follows the marks of these tenants, each one's in order.

        A mark that is not on the log tells of a log that was rewound, by a restore or by somebody's hand.
        What was published of it is no longer so: it is published from its beginning.

        Args:
            log: which one.
            tenants: whose.
            most: rows of each.

        Returns:
            The rows, and the tenants whose log was rewound, with the version that they were marked at.
        """
        marks = self._connection.execute(
            f"""
            SELECT a.tenant_id, m.version, m.hash IS DISTINCT FROM {_MARKED[log]}
            FROM unnest(%s::text[]) AS a (tenant_id)
            JOIN relay_marks m ON m.tenant_id = a.tenant_id AND m.log = %s
            """,  # noqa: S608 — of constants
            (texts(tenants), log),
        ).fetchall()
        rewound = [(tenant_id, version) for tenant_id, version, elsewhere in marks if elsewhere]
        published = {tenant_id: version for tenant_id, version, elsewhere in marks if not elsewhere}
        rows = self._connection.execute(
            sql.SQL(
                """
                SELECT l.*
                FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS a (tenant_id, version, place)
                CROSS JOIN LATERAL (
                    SELECT tenant_id, {number}, {digest}, created_at, row_to_json(log)::text
                    FROM {log} AS log
                    WHERE log.tenant_id = a.tenant_id AND log.{number} > a.version
                    ORDER BY log.{number} LIMIT %s
                ) AS l
                ORDER BY a.place, l.{number}
                """
            ).format(
                log=sql.Identifier(log),
                number=sql.Identifier(NUMBER[log]),
                digest=sql.Identifier(DIGEST[log]),
            ),
            (texts(tenants), bigints([published.get(tenant, -1) for tenant in tenants]), most),
        )
        return [
            Record(log, tenant_id, version, hashed, created_at, value.encode())
            for tenant_id, version, hashed, created_at, value in rows
        ], rewound

    def mark(self, published: Sequence[Record]) -> None:
        """Note how far logs were published, all in one transaction.

        Args:
            published: of each tenant and log the last row of those that were acknowledged without a gap.
        """
        self._connection.execute(
            """
            INSERT INTO relay_marks (tenant_id, log, version, hash)
            SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[])
            ON CONFLICT (tenant_id, log) DO UPDATE
            SET (version, hash, marked_at) = (EXCLUDED.version, EXCLUDED.hash, now())
            """,
            (
                texts([record.tenant_id for record in published]),
                texts([record.log for record in published]),
                bigints([record.version for record in published]),
                byteas([record.hash for record in published]),
            ),
        )


def relay_runs(connection: Connection) -> bool:
    """Whether a relay has the lock of this database."""
    ((runs,),) = connection.execute(
        """
        SELECT EXISTS (
            SELECT FROM pg_locks
            WHERE locktype = 'advisory' AND granted
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND objid = (hashtext(%s)::bigint & 4294967295)::oid
        )
        """,
        (_LOCK,),
    ).fetchall()
    return bool(runs)


def read_rows(
    connection: Connection, log: LogName, identities: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of a log by tenant and number, as they are published; those that are there."""
    connection.execute("SET LOCAL timezone = 'UTC'")
    rows = connection.execute(
        sql.SQL(
            """
            SELECT log.tenant_id, log.{number}, row_to_json(log)::text
            FROM {log} AS log
            JOIN unnest(%s::text[], %s::bigint[]) AS a (tenant_id, number)
                ON log.tenant_id = a.tenant_id AND log.{number} = a.number
            """
        ).format(log=sql.Identifier(log), number=sql.Identifier(NUMBER[log])),
        (texts([tenant for tenant, _ in identities]), bigints([number for _, number in identities])),
    )
    return {(tenant_id, number): msgspec.json.decode(text) for tenant_id, number, text in rows}


@dataclass(frozen=True)
class Unpublished:
    """What of a log is not published.

    Attributes:
        records: how many rows.
        oldest_seconds: the age of the oldest; 0 where there is none.
    """

    log: LogName
    records: int
    oldest_seconds: float


def read_unpublished(connection: Connection) -> list[Unpublished]:
    """How far publishing is behind, of each log.

    Args:
        connection: an operator's transaction.
    """
    rows = connection.execute(
        f"""
        WITH {_HEADS}, behind AS (
            SELECT h.*, coalesce(m.version, CASE h.log WHEN 'feedback_events' THEN 0 ELSE -1 END) AS published
            FROM heads h LEFT JOIN relay_marks m USING (tenant_id, log)
        ), oldest AS (
            SELECT log, version - published AS records, CASE log
                WHEN 'audit_events' THEN (
                    SELECT created_at FROM audit_events l
                    WHERE (l.tenant_id, l.version) = (b.tenant_id, b.published + 1)
                )
                WHEN 'weight_changes' THEN (
                    SELECT created_at FROM weight_changes l
                    WHERE (l.tenant_id, l.version) = (b.tenant_id, b.published + 1)
                )
                ELSE (
                    SELECT created_at FROM weight_changes l
                    WHERE (l.tenant_id, l.event_seq) = (b.tenant_id, b.published + 1)
                )
            END AS created_at
            FROM behind b WHERE version > published
        )
        SELECT log, sum(records)::bigint, extract(epoch FROM clock_timestamp() - min(created_at))::float8
        FROM oldest GROUP BY log
        """  # noqa: S608 — of a constant
    )
    waiting = {log: Unpublished(log, records, seconds or 0.0) for log, records, seconds in rows}
    return [waiting.get(log, Unpublished(log, 0, 0.0)) for log in LOGS]


def count_unpublished(connection: Connection, partition: str) -> int:
    """How many events of one partition of the feedback are not published.

    Args:
        connection: a transaction that sees all tenants.
        partition: its name.
    """
    (events,) = connection.execute(
        sql.SQL(
            """
            SELECT count(*) FROM {} e
            LEFT JOIN relay_marks m ON m.tenant_id = e.tenant_id AND m.log = %s
            WHERE e.seq > coalesce(m.version, 0)
            """
        ).format(sql.Identifier(partition)),
        (FEEDBACK,),
    ).fetchone() or (0,)
    return int(events)
