"""Taking away old rows, a partition at a time: sealed, detached without a halt, dropped.

A partition is due once all of it is older than what is kept. One row of `prunings` is the decision about it:

1. `decide`, in one transaction: the seals of its rows are written beside the decision.
2. `detach`: the partition leaves its table while others read and write; at no point are they locked out.
3. `drop`, in one transaction: it is gone, and the audit trail says so with the root over the seals.

A run that is killed between two steps leaves a decision that was not carried out: until the partition is
detached the next run decides anew, after that it goes on. So a row is sealed before it is gone, always.

Rows of a tenant under a legal hold stay. They are copied to a partition that takes the place of the old one
in the transaction that drops it, so no reader ever misses them; for that exchange the table is locked for
some milliseconds, which a partition without such rows spares.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

import psycopg
from psycopg import sql

from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import Connection, Database, held
from somabrain_dagster.store.partition_seals import (
    Relation,
    Seal,
    read_seals,
    root_of,
    root_of_seals,
    write_seals,
)

PRUNED = "retention"
HELD, RELEASED = "legal_hold", "legal_hold_released"
"""Actions in the audit trail."""

_LOCK = "somabrain_retention"
_LOCK_SECONDS = 1.5
"""How long one attempt waits for a lock, and with it whoever wants the table after it; an autovacuum that is
in the way gives up after one."""
_LOCK_ATTEMPTS = 10
_LOCK_PAUSE_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
"""How long a run waits where nobody waits for it."""

_DIGESTS_TOGETHER = 100_000
"""Digests that are held in memory."""

_REST = 1.0
"""How long sealing rests after each tenant, in times of what it worked: whoever asks the service meanwhile
has the server's processors for himself again and again."""

ROWS_TOGETHER = 20_000
"""Rows that are deleted in one transaction, where rows are deleted."""


class RetentionRuns(RuntimeError):
    """Two runs at once would get in each other's way."""

    def __init__(self) -> None:
        super().__init__("retention is running already: wait until it has ended")


class TableBusy(RuntimeError):
    """A partition could not be taken away because others were at work; the next run goes on."""


class NotHeld(LookupError):
    """A tenant without a legal hold."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(
            f"tenant {tenant_id!r} is under no legal hold: `retention show` lists those that are"
        )


class AlreadyHeld(RuntimeError):
    """A tenant with one."""

    def __init__(self, hold: "Hold") -> None:
        super().__init__(
            f"tenant {hold.tenant_id!r} is under a legal hold already, since {hold.placed_at:%Y-%m-%d}, by "
            f"{hold.actor}: {hold.reason}"
        )


@dataclass(frozen=True)
class _Table:
    """How rows of a table are numbered and digested."""

    number: str
    digest: str


_TABLES: dict[Relation, _Table] = {
    "feedback_events": _Table("seq", "digest"),
    "recalls": _Table("recall_id", "sha256(record_send(p))"),
    "token_usage": _Table("usage_id", "sha256(record_send(p))"),
}
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True)
class Partition:
    """A week of a table.

    Attributes:
        begins, ends: what is in it landed from the one on and before the other.
        bytes: on disk, with its indexes.
        detaching: a detachment was begun and not ended.
    """

    relation: Relation
    name: str
    begins: datetime
    ends: datetime
    bytes: int
    detaching: bool


@dataclass(frozen=True)
class Pruning:
    """A decision about a partition, and what became of it.

    Attributes:
        tenants, rows: that were sealed.
        bytes: on disk, with indexes.
        kept_rows: of tenants under a legal hold; None until it is carried out.
        dropped_at: None until then.
    """

    pruning_id: int
    relation: Relation
    partition: str
    begins: datetime
    ends: datetime
    actor: str
    decided_at: datetime
    tenants: int
    rows: int
    bytes: int
    kept_rows: int | None
    dropped_at: datetime | None


@dataclass(frozen=True)
class Decision:
    """What `decide` found and wrote down.

    Attributes:
        pruning: the decision; None where every row is of a tenant under a legal hold.
        rows_stay: whether any row of the partition is.
    """

    pruning: Pruning | None
    rows_stay: bool


@dataclass(frozen=True)
class Hold:
    """A tenant none of whose rows is pruned."""

    tenant_id: str
    placed_at: datetime
    actor: str
    reason: str


@contextmanager
def running(database: Database) -> Iterator[Connection]:
    """An owner's connection outside of transactions, of which there is one at a time for retention.

    Raises:
        RetentionRuns: another has it.
    """
    with psycopg.connect(database.url, autocommit=True) as connection, held(connection, _LOCK) as alone:
        if not alone:
            raise RetentionRuns
        # One process of the server at a time: others want theirs.
        connection.execute("SET max_parallel_workers_per_gather = 0")
        yield connection


def read_partitions(connection: Connection) -> list[Partition]:
    """The partitions by landing that are attached, the oldest first."""
    rows = connection.execute(
        """
        SELECT
            parent.relname, p.relname, bounds[1]::timestamptz, bounds[2]::timestamptz,
            pg_total_relation_size(p.oid), i.inhdetachpending
        FROM pg_inherits i
        JOIN pg_class parent ON parent.oid = i.inhparent
        JOIN pg_class p ON p.oid = i.inhrelid
        CROSS JOIN regexp_match(
            pg_get_expr(p.relpartbound, p.oid), $$FROM \\('([^']+)'\\) TO \\('([^']+)'\\)$$
        ) AS bounds
        WHERE parent.relnamespace = 'public'::regnamespace AND parent.relname = ANY (%s)
        ORDER BY bounds[2]::timestamptz, parent.relname
        """,
        (list(RELATIONS),),
    )
    return [Partition(*row) for row in rows]


def read_prunings(connection: Connection, *, pending: bool = False) -> list[Pruning]:
    """The decisions, in their order; only those that were not carried out where `pending`."""
    rows = connection.execute(
        """
        SELECT pruning_id, relation, partition, begins, ends, actor, decided_at, tenants, rows, bytes,
            kept_rows, dropped_at
        FROM prunings WHERE dropped_at IS NULL OR NOT %s ORDER BY pruning_id
        """,
        (pending,),
    )
    return [Pruning(*row) for row in rows]


def count_pruned(connection: Connection, relation: Relation) -> int:
    """How many rows of a table were ever pruned."""
    (rows,) = connection.execute(
        "SELECT coalesce(sum(rows), 0)::bigint FROM prunings WHERE relation = %s AND dropped_at IS NOT NULL",
        (relation,),
    ).fetchone() or (0,)
    return int(rows)


def cutoff(connection: Connection, kept: timedelta) -> datetime:
    """What landed before this is too old, by the database's clock."""
    (before,) = connection.execute("SELECT now() - %s", (kept,)).fetchone() or (None,)
    assert isinstance(before, datetime)
    return before


def decide(
    connection: Connection, partition: Partition, actor: str, wait_seconds: float = _PATIENCE_SECONDS
) -> Decision:
    """Seal the rows of a partition that may go, and write the decision down.

    A decision about it that was not carried out is made anew.

    Args:
        connection: of `running`.
        partition: attached, and old enough.
        actor: who wants it.
        wait_seconds: how long it waits for transactions that are changing rows of the partition.

    Raises:
        TableBusy: they go on for too long.
    """
    with connection.transaction():
        # Nothing lands in what is past, and nothing shall be changed while it is sealed.
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{wait_seconds}s",))
        try:
            name = sql.Identifier(partition.name)
            connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(name))
        except psycopg.errors.LockNotAvailable:
            raise TableBusy(
                f"transactions have been changing {partition.name} for more than {wait_seconds:g} s (see "
                "pg_stat_activity): the next run tries again"
            ) from None
        connection.execute(
            "DELETE FROM seals USING prunings p WHERE p.pruning_id = seals.pruning_id "
            "AND p.relation = %(relation)s AND p.begins = %(begins)s AND p.dropped_at IS NULL",
            vars(partition),
        )
        connection.execute(
            "DELETE FROM prunings "
            "WHERE relation = %(relation)s AND begins = %(begins)s AND dropped_at IS NULL",
            vars(partition),
        )
        held = {hold.tenant_id for hold in read_holds(connection)}
        there = _tenants_in(connection, partition.name)
        going = [tenant_id for tenant_id in there if tenant_id not in held]
        if there and not going:
            return Decision(None, rows_stay=True)
        (pruning_id,) = connection.execute(
            """
            INSERT INTO prunings (relation, partition, begins, ends, actor, decided_at, tenants, rows, bytes)
            VALUES (%(relation)s, %(name)s, %(begins)s, %(ends)s, %(actor)s, now(), %(tenants)s, 0, %(bytes)s)
            RETURNING pruning_id
            """,
            {**vars(partition), "actor": actor, "tenants": len(going)},
        ).fetchone() or (0,)
        seals = []
        for tenant_id in going:
            began = time.monotonic()
            slices = _Slices(connection, partition, tenant_id)
            root = root_of(slices)
            time.sleep(_REST * (time.monotonic() - began))
            seals.append(
                Seal(
                    tenant_id=tenant_id,
                    pruning_id=pruning_id,
                    relation=partition.relation,
                    begins=partition.begins,
                    ends=partition.ends,
                    rows=slices.rows,
                    first_id=slices.first_id,
                    last_id=slices.last_id,
                    root=root,
                )
            )
        connection.execute(
            "UPDATE prunings SET rows = %s WHERE pruning_id = %s",
            (sum(seal.rows for seal in seals), pruning_id),
        )
        write_seals(connection, seals)
    return Decision(_pruning(connection, pruning_id), rows_stay=len(going) < len(there))


class _Slices:
    """The digests of a tenant's rows in a partition, in the order of their numbers, some rows at a time.

    Attributes:
        rows, first_id, last_id: of those that were read.
    """

    def __init__(self, connection: Connection, partition: Partition, tenant_id: str) -> None:
        table = _TABLES[partition.relation]
        self._connection = connection
        self._query = sql.SQL(
            """
            SELECT count(*), min(number), max(number), string_agg(digest, ''::bytea ORDER BY number)
            FROM (
                SELECT {number} AS number, {digest} AS digest FROM {partition} p
                WHERE tenant_id = {tenant} AND {number} > %s ORDER BY {number} LIMIT {most}
            ) AS slice
            """
        ).format(
            number=sql.Identifier(table.number),
            digest=sql.SQL(table.digest),
            partition=sql.Identifier(partition.name),
            tenant=sql.Literal(tenant_id),
            most=sql.Literal(_DIGESTS_TOGETHER),
        )
        self.rows = self.first_id = self.last_id = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            row = self._connection.execute(self._query, (self.last_id,), binary=True).fetchone()
            assert row is not None
            count, first, last, digests = row
            if count == 0:
                return
            self.first_id = self.first_id or first
            self.rows, self.last_id = self.rows + count, last
            yield digests
            if count < _DIGESTS_TOGETHER:
                return


def _tenants_in(connection: Connection, partition: str) -> list[str]:
    """Whose rows a partition has, by name: the primary key is asked for each one after the one before."""
    name = sql.Identifier(partition)
    rows = connection.execute(
        sql.SQL(
            """
            WITH RECURSIVE found AS (
                SELECT min(tenant_id) AS tenant_id FROM {partition}
                UNION ALL
                SELECT (SELECT min(tenant_id) FROM {partition} WHERE tenant_id > found.tenant_id)
                FROM found WHERE tenant_id IS NOT NULL
            )
            SELECT tenant_id FROM found WHERE tenant_id IS NOT NULL ORDER BY tenant_id
            """
        ).format(partition=name)
    )
    return [tenant_id for (tenant_id,) in rows]


def detach(connection: Connection, partition: Partition, wait_seconds: float = _PATIENCE_SECONDS) -> None:
    """Take a partition out of its table, without locking out who reads or writes there.

    It ends once the transactions have ended that began before it. What was begun is ended by the next call.

    Args:
        connection: of `running`.
        partition: attached, or half detached.
        wait_seconds: how long it waits for them; nobody waits for it.

    Raises:
        TableBusy: a transaction that began before it goes on for too long.
    """
    how = sql.SQL("FINALIZE" if partition.detaching else "CONCURRENTLY")
    try:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{wait_seconds}s",))
        connection.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(
                sql.Identifier(partition.relation), sql.Identifier(partition.name), how
            )
        )
    except psycopg.errors.LockNotAvailable:
        raise TableBusy(
            f"transactions have used {partition.relation} for more than {wait_seconds:g} s (see "
            f"pg_stat_activity): {partition.name} is sealed, and the next run goes on with it"
        ) from None
    finally:
        connection.execute("SELECT set_config('lock_timeout', '0', false)")


def drop(connection: Connection, pruning: Pruning) -> Pruning:
    """Drop what is sealed, keep the rows that stay, and say so in the audit trail, all in one transaction.

    Args:
        connection: of `running`.
        pruning: decided; the partition is detached, unless rows of it stay.

    Returns:
        The decision as it was carried out.

    Raises:
        TableBusy: others did not let go of the table; nothing was done.
    """
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        try:
            with connection.transaction():
                return _drop(connection, pruning)
        except psycopg.errors.LockNotAvailable:
            continue
    raise TableBusy(
        f"{pruning.relation} was in use at each of {_LOCK_ATTEMPTS} attempts to drop {pruning.partition} "
        "(see pg_stat_activity): it is sealed, and the next run goes on with it"
    )


def _drop(connection: Connection, pruning: Pruning) -> Pruning:
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_SECONDS}s",))
    # A hold that is being placed is there before this goes on, or waits until the rows are gone.
    connection.execute("LOCK TABLE legal_holds IN SHARE MODE")
    held = {hold.tenant_id for hold in read_holds(connection)}
    sealed = {seal.tenant_id for seal in read_seals(connection, pruning_id=pruning.pruning_id)}
    kept = [
        tenant
        for tenant in _tenants_in(connection, pruning.partition)
        if tenant in held or tenant not in sealed
    ]
    connection.execute(
        "DELETE FROM seals WHERE pruning_id = %s AND tenant_id = ANY (%s)", (pruning.pruning_id, kept)
    )
    seals = read_seals(connection, pruning_id=pruning.pruning_id)
    names = {
        "parent": sql.Identifier(pruning.relation),
        "old": sql.Identifier(pruning.partition),
        "held": sql.Identifier(f"{pruning.partition}_held"),
        "begins": sql.Literal(pruning.begins),
        "ends": sql.Literal(pruning.ends),
        "kept": sql.Literal(kept) + sql.SQL("::text[]"),
    }

    def run(statement: str) -> int:
        return connection.execute(sql.SQL(statement).format(**names)).rowcount

    kept_rows = 0
    if kept:
        # With the check, attaching it reads nothing while it holds the lock.
        run(
            "CREATE TABLE {held} (LIKE {parent} INCLUDING ALL, CONSTRAINT own CHECK "
            "(created_at IS NOT NULL AND created_at >= {begins} AND created_at < {ends}))"
        )
        kept_rows = run("INSERT INTO {held} SELECT * FROM {old} WHERE tenant_id = ANY ({kept})")
    (there,) = connection.execute(sql.SQL("SELECT count(*) FROM {old}").format(**names)).fetchone() or (0,)
    if there != kept_rows + sum(seal.rows for seal in seals):
        raise AssertionError(
            f"{pruning.partition} has {there} rows: not those that were sealed and {kept_rows} that stay"
        )
    if any(attached.name == pruning.partition for attached in read_partitions(connection)):
        run("ALTER TABLE {parent} DETACH PARTITION {old}")
    run("DROP TABLE {old}")
    if kept:
        run("ALTER TABLE {held} RENAME TO {old}")
        run("ALTER TABLE {parent} ATTACH PARTITION {old} FOR VALUES FROM ({begins}) TO ({ends})")
        run("ALTER TABLE {old} DROP CONSTRAINT own")
    rows = sum(seal.rows for seal in seals)
    connection.execute(
        "UPDATE prunings SET dropped_at = clock_timestamp(), tenants = %s, rows = %s, kept_rows = %s "
        "WHERE pruning_id = %s",
        (len(seals), rows, kept_rows, pruning.pruning_id),
    )
    audit.record(
        connection,
        audit.SYSTEM,
        pruning.actor,
        PRUNED,
        {
            "pruning": pruning.pruning_id,
            "relation": pruning.relation,
            "begins": pruning.begins.isoformat(),
            "ends": pruning.ends.isoformat(),
            "tenants": len(seals),
            "rows": rows,
            "kept_rows": kept_rows,
            "held": kept,
            "seals": root_of_seals(seals).hex(),
        },
    )
    return _pruning(connection, pruning.pruning_id)


def _pruning(connection: Connection, pruning_id: int) -> Pruning:
    return next(one for one in read_prunings(connection) if one.pruning_id == pruning_id)


_AGED: dict[str, str] = {"idempotency_keys": "created_at", "request_stats": "minute"}
"""Tables whose old rows are deleted one by one: they are small, and keyed by something else than time."""


def delete_old(connection: Connection, table: str, before: datetime) -> int:
    """Delete a part of the rows that are too old, those of tenants under a legal hold excepted.

    Args:
        connection: of `running`.
        table: `idempotency_keys` or `request_stats`.
        before: rows from before this are too old.

    Returns:
        How many were deleted; fewer than `ROWS_TOGETHER` once none is left.
    """
    return connection.execute(
        sql.SQL(
            """
            DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {table}
                WHERE {time} < %s AND tenant_id NOT IN (SELECT tenant_id FROM legal_holds) LIMIT %s
            ))
            """
        ).format(table=sql.Identifier(table), time=sql.Identifier(_AGED[table])),
        (before, ROWS_TOGETHER),
    ).rowcount


AGED = tuple(_AGED)


def read_holds(connection: Connection) -> list[Hold]:
    """The legal holds that the transaction may see, by tenant."""
    rows = connection.execute("SELECT tenant_id, placed_at, actor, reason FROM legal_holds")
    return sorted((Hold(*row) for row in rows), key=lambda hold: hold.tenant_id)


def place_hold(connection: Connection, tenant_id: str, actor: str, reason: str) -> Hold:
    """Keep a tenant's rows from being pruned, from the commit on.

    Args:
        connection: an operator's transaction.
        tenant_id: whose rows.
        actor: who wants it.
        reason: why, for the audit trail; not empty.

    Raises:
        UnknownTenant: there is none of that name.
        AlreadyHeld: it is under a hold.
    """
    if connection.execute("SELECT FROM tenants WHERE tenant_id = %s", (tenant_id,)).rowcount == 0:
        raise UnknownTenant(tenant_id)
    placed = connection.execute(
        "INSERT INTO legal_holds (tenant_id, actor, reason) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING "
        "RETURNING tenant_id, placed_at, actor, reason",
        (tenant_id, actor, reason),
    ).fetchone()
    if placed is None:
        raise AlreadyHeld(_hold(connection, tenant_id))
    audit.record(connection, tenant_id, actor, HELD, {"reason": reason})
    return Hold(*placed)


def release_hold(connection: Connection, tenant_id: str, actor: str) -> Hold:
    """End a hold: what is too old goes with the next run.

    Raises:
        NotHeld: the tenant is under none.
    """
    hold = _hold(connection, tenant_id)
    connection.execute("DELETE FROM legal_holds WHERE tenant_id = %s", (tenant_id,))
    audit.record(connection, tenant_id, actor, RELEASED, {"reason": hold.reason})
    return hold


def _hold(connection: Connection, tenant_id: str) -> Hold:
    for hold in read_holds(connection):
        if hold.tenant_id == tenant_id:
            return hold
    raise NotHeld(tenant_id)
