"""Approximate indexes: a large tenant's memories in a partition of their own, with an HNSW index on it.

Small tenants share the default partition and are searched exactly. One index over many tenants would have to
skip the others' memories at every step; an index of one tenant has none to skip.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import psycopg
from psycopg import sql

from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.recalls import Backend, distance_by, iterative_scan

LARGEST_DIMENSION = 2000
"""Components of a vector that pgvector can index."""

MOVED, PROVEN = "move_memories", "prove_index"
"""What the audit trail calls it."""

_LOCK_PATIENCE = "400ms"
"""Below `deadlock_timeout`: this transaction gives way before another is ended for being in its way."""

_VACUUM_PATIENCE = "5s"
"""Above `deadlock_timeout`: an autovacuum gives way to whom it has kept waiting for so long, not sooner."""

_LOCK_ATTEMPTS = 50
_LOCK_PAUSE_SECONDS = 0.1


class TablesBusy(RuntimeError):
    """Other transactions did not let go of the tables; nothing was changed."""


class NotIndexable(ValueError):
    """A tenant's memories cannot have an index; the message says why."""


@dataclass(frozen=True)
class IndexStatus:
    """How a tenant's memories are searched.

    Attributes:
        tenant_id: the tenant.
        embedded: its memories that have an embedding.
        dimension: of its embeddings; None while it has no model.
        backend: what serves it now.
        partition, index: their names; None for a tenant in the default partition.
        index_bytes: the index's size on disk.
        valid: whether the index can be used; None where there is none.
        measured_at: when it was last compared with an exact search.
        recall_at_10: what that found.
    """

    tenant_id: str
    embedded: int
    dimension: int | None
    backend: Backend
    partition: str | None
    index: str | None
    index_bytes: int
    valid: bool | None
    measured_at: datetime | None
    recall_at_10: float | None


@dataclass(frozen=True)
class Moved:
    """What a move into a partition took.

    Attributes:
        memories, links: rows that were moved, and rows that were kept through it.
        seconds: in all.
        locked_seconds: of these, for how long nobody else could use the default partition.
    """

    memories: int
    links: int
    seconds: float
    locked_seconds: float


@dataclass(frozen=True)
class Question:
    """A vector to search with.

    Attributes:
        embedding: in Postgres' text form.
        memory_id: whose vector it is, which is not to be found; None for a question that was asked.
    """

    embedding: str
    memory_id: int | None = None


def partition_of(tenant_id: str) -> str:
    """The name of a tenant's partition; a tenant's own name may be too long for one."""
    return f"memories_{sha256(tenant_id.encode()).hexdigest()[:16]}"


def index_of(tenant_id: str) -> str:
    """The name of the index of a tenant's partition."""
    return f"{partition_of(tenant_id)}_hnsw"


def can_be_indexed(dimension: int | None) -> bool:
    """Whether vectors of a model can be indexed; None is no model."""
    return dimension is not None and dimension <= LARGEST_DIMENSION


def read_status(connection: Connection) -> list[IndexStatus]:
    """How each tenant is searched, the largest first.

    Args:
        connection: an operator's.
    """
    rows = connection.execute(
        """
        WITH counted AS (
            SELECT tenant_id, sum(memories)::bigint AS embedded
            FROM (
                SELECT tenant_id, count(*) AS memories FROM memories GROUP BY tenant_id
                UNION ALL
                SELECT tenant_id, -count(*) FROM memories WHERE embedding IS NULL GROUP BY tenant_id
            ) AS signed GROUP BY tenant_id
        ), measured AS (
            SELECT DISTINCT ON (tenant_id) tenant_id, created_at, (body ->> 'recall_at_10')::float8 AS recall
            FROM audit_events WHERE action = %s ORDER BY tenant_id, version DESC
        ), named AS (
            SELECT tenant_id, 'memories_' || left(digest, 16) AS name
            FROM tenants, encode(sha256(convert_to(tenant_id, 'UTF8')), 'hex') AS digest
        )
        SELECT t.tenant_id, coalesce(c.embedded, 0), m.dimension, t.cleanup_backend, p.relname, i.relname,
            coalesce(pg_relation_size(i.oid), 0), x.indisvalid, e.created_at, e.recall
        FROM tenants t
        JOIN named n USING (tenant_id)
        LEFT JOIN counted c USING (tenant_id)
        LEFT JOIN embedding_models m USING (model_id)
        LEFT JOIN pg_class p ON p.oid = to_regclass(n.name)
        LEFT JOIN pg_class i ON i.oid = to_regclass(n.name || '_hnsw')
        LEFT JOIN pg_index x ON x.indexrelid = i.oid
        LEFT JOIN measured e USING (tenant_id)
        ORDER BY 2 DESC, 1
        """,
        (PROVEN,),
    )
    return [IndexStatus(*row) for row in rows]


def move_to_partition(connection: Connection, tenant_id: str) -> Moved:
    """Move a tenant's memories from the default partition to one of their own, and index them there.

    Copying and indexing hold nobody up. Then, until the transaction ends, nobody else uses the default
    partition or writes links: what changed meanwhile is caught up with, the old rows go and the partition
    takes their place. Deleting them takes their links along, so links are put aside and kept again as they
    were, with every foreign key checked. Row security, its policies and the grants are those of `memories`,
    through which alone anybody but the owner reaches a partition.

    Args:
        connection: an owner's transaction, which this work has for itself.
        tenant_id: the tenant.

    Raises:
        UnknownTenant: there is no such tenant.
        NotIndexable: it has no embeddings, too long ones, or a partition already.
        TablesBusy: other transactions would not let go of the tables.
    """
    started = time.perf_counter()
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('move_to_partition'))")
    dimension = _indexable_dimension(connection, tenant_id)
    names = {
        "partition": sql.Identifier(partition_of(tenant_id)),
        "index": sql.Identifier(index_of(tenant_id)),
        "tenant": sql.Literal(tenant_id),
        "dimension": sql.Literal(dimension),
        "columns": sql.SQL(", ").join(map(sql.Identifier, _stored_columns(connection))),
    }

    def run(statement: str) -> int:
        return connection.execute(sql.SQL(statement).format(**names)).rowcount

    run("CREATE TABLE {partition} (LIKE memories INCLUDING ALL, CONSTRAINT own CHECK (tenant_id = {tenant}))")
    run("COMMENT ON TABLE {partition} IS 'The memories of one large tenant.'")
    copy = (
        "INSERT INTO {partition} ({columns}) SELECT {columns} FROM memories_default d "
        "WHERE d.tenant_id = {tenant}"
    )
    run(copy)
    _grant_memory(connection, partition_of(tenant_id), local=True)
    run("CREATE INDEX {index} ON {partition} USING hnsw ((embedding::vector({dimension})) vector_cosine_ops)")
    run("ANALYZE {partition}")

    _lock(connection)
    locked = time.perf_counter()
    run(
        """
        DELETE FROM {partition} p WHERE NOT EXISTS (
            SELECT FROM (SELECT {columns} FROM memories_default WHERE tenant_id = {tenant}) d
            JOIN (SELECT {columns} FROM {partition} own WHERE own.memory_id = p.memory_id) same
                ON same.memory_id = d.memory_id AND same IS NOT DISTINCT FROM d
        )
        """
    )
    run(f"{copy} AND NOT EXISTS (SELECT FROM {{partition}} p WHERE p.memory_id = d.memory_id)")
    connection.execute("CREATE TEMPORARY TABLE links_aside (LIKE memory_links) ON COMMIT DROP")
    links = run(
        """
        WITH gone AS (DELETE FROM memory_links WHERE tenant_id = {tenant} RETURNING *)
        INSERT INTO links_aside SELECT * FROM gone
        """
    )
    memories = run("DELETE FROM memories_default WHERE tenant_id = {tenant}")
    run("ALTER TABLE memories ATTACH PARTITION {partition} FOR VALUES IN ({tenant})")
    run("ALTER TABLE {partition} DROP CONSTRAINT own")
    kept = run("INSERT INTO memory_links SELECT * FROM links_aside")
    (there,) = connection.execute(
        "SELECT count(*) FROM memories WHERE tenant_id = %s", (tenant_id,)
    ).fetchone() or (None,)
    if (there, kept) != (memories, links):
        raise AssertionError(
            f"{memories} memories and {links} links were moved, {there} and {kept} are there"
        )
    ended = time.perf_counter()
    return Moved(memories, links, ended - started, ended - locked)


def _indexable_dimension(connection: Connection, tenant_id: str) -> int:
    row = connection.execute(
        """
        SELECT m.dimension, to_regclass(%s) FROM tenants LEFT JOIN embedding_models m USING (model_id)
        WHERE tenant_id = %s
        """,
        (partition_of(tenant_id), tenant_id),
    ).fetchone()
    if row is None:
        raise UnknownTenant(tenant_id)
    dimension, partition = row
    if dimension is None:
        raise NotIndexable(f"tenant {tenant_id!r} has no embeddings yet: embed its memories first")
    if not can_be_indexed(dimension):
        raise NotIndexable(
            f"the embeddings of tenant {tenant_id!r} have {dimension} components, and an index takes "
            f"{LARGEST_DIMENSION} at most: its searches stay exact"
        )
    if partition is not None:
        raise NotIndexable(f"tenant {tenant_id!r} has a partition already: rebuild its index instead")
    return int(dimension)


def _stored_columns(connection: Connection) -> list[str]:
    """The columns of memories that are stored, and not generated from others."""
    rows = connection.execute(
        """
        SELECT attname FROM pg_attribute
        WHERE attrelid = 'memories'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
        ORDER BY attnum
        """
    )
    return [name for (name,) in rows]


def _lock(connection: Connection) -> None:
    """Take, all at once or not at all, the locks that a move needs."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (_VACUUM_PATIENCE,))
    try:
        # Whoever reads or writes is not kept waiting by this one, however long it waits itself.
        connection.execute("LOCK TABLE memories_default IN SHARE UPDATE EXCLUSIVE MODE")
    except psycopg.errors.LockNotAvailable as error:
        raise TablesBusy(
            "memories are being vacuumed, analysed or altered: try again when that has ended (see "
            "pg_stat_progress_vacuum and pg_stat_activity)"
        ) from error
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_PATIENCE,))
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        try:
            with connection.transaction():  # rolled back, it holds no lock for which another waits
                connection.execute("LOCK TABLE tenants, memory_links IN SHARE ROW EXCLUSIVE MODE")
                connection.execute("LOCK TABLE ONLY memories IN SHARE UPDATE EXCLUSIVE MODE")
                connection.execute("LOCK TABLE memories_default IN ACCESS EXCLUSIVE MODE")
                break
        except psycopg.errors.LockNotAvailable:
            continue
    else:
        raise TablesBusy(
            f"memories were in use at each of {_LOCK_ATTEMPTS} attempts to move some: try again when long "
            "transactions have ended (see pg_stat_activity)"
        )
    connection.execute("SELECT set_config('lock_timeout', '0', true)")


def _grant_memory(connection: Connection, relation: str, *, local: bool) -> None:
    """Let an index of a table's vectors be built in memory: a graph that spills is built far slower."""
    # The graph has all vectors, and the links of each; the heap has the vectors too, and texts besides.
    connection.execute(
        """
        SELECT set_config(
            'maintenance_work_mem', least(greatest(pg_table_size(%s) / 1048576, 64), 1024) || 'MB', %s
        )
        """,
        (relation, local),
    )


def serve_by(connection: Connection, tenant_id: str, backend: Backend) -> None:
    """Say what serves a tenant's searches from now on; an owner's."""
    connection.execute("UPDATE tenants SET cleanup_backend = %s WHERE tenant_id = %s", (backend, tenant_id))


def reindex(database: Database, tenant_id: str) -> float:
    """Build a tenant's index anew while it is being used, and put the new one in its place.

    What earlier attempts that were interrupted left behind is removed first.

    Returns:
        How many seconds it took.
    """
    started = time.perf_counter()
    with psycopg.connect(database.url, autocommit=True) as connection:
        left = connection.execute(
            """
            SELECT c.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
            WHERE x.indrelid = %s::regclass AND NOT x.indisvalid
            """,
            (partition_of(tenant_id),),
        ).fetchall()
        for (name,) in left:
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(name)))
        _grant_memory(connection, partition_of(tenant_id), local=False)
        index = sql.Identifier(index_of(tenant_id))
        connection.execute(sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(index))
    return time.perf_counter() - started


def index_size(connection: Connection, tenant_id: str) -> tuple[int, int]:
    """How many memories a tenant's index holds, and its bytes on disk."""
    row = connection.execute(
        "SELECT count(embedding), pg_relation_size(%s::regclass) FROM memories WHERE tenant_id = %s",
        (index_of(tenant_id), tenant_id),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def asked_lately(connection: Connection, tenant_id: str, limit: int) -> list[str]:
    """The texts of the tenant's latest recalls, each once."""
    rows = connection.execute(
        """
        SELECT query FROM recalls WHERE tenant_id = %s
        GROUP BY query ORDER BY max(recall_id) DESC LIMIT %s
        """,
        (tenant_id, limit),
    )
    return [text for (text,) in rows]


def some_vectors(connection: Connection, tenant_id: str, limit: int) -> list[Question]:
    """The vectors of some of the tenant's memories: always the same ones, scattered over all."""
    rows = connection.execute(
        """
        SELECT embedding::text, memory_id FROM memories
        WHERE tenant_id = %s AND embedding IS NOT NULL
        ORDER BY hashint8(memory_id), memory_id LIMIT %s
        """,
        (tenant_id, limit),
    )
    return [Question(*row) for row in rows]


def nearest(
    connection: Connection, tenant_id: str, question: Question, backend: Backend, dimension: int, count: int
) -> list[tuple[int, float]]:
    """A tenant's memories that are nearest to a question, by one backend: ids and cosine distances.

    Raises:
        IndexUnusable: the server does not scan the index iteratively.
    """
    distance = distance_by(backend, dimension)
    query = f"""
        SELECT m.memory_id, {distance} FROM memories m
        WHERE m.tenant_id = %(tenant_id)s AND m.embedding IS NOT NULL
            AND m.memory_id IS DISTINCT FROM %(memory_id)s::bigint
        ORDER BY {distance}, m.memory_id LIMIT %(count)s
    """  # noqa: S608 — the distance is made of constants
    with iterative_scan(connection) if backend == "hnsw" else nullcontext():
        rows = connection.execute(
            query.encode(),
            {
                "tenant_id": tenant_id,
                "embedding": question.embedding,
                "memory_id": question.memory_id,
                "count": count,
            },
        ).fetchall()
    return [(memory_id, distance) for memory_id, distance in rows]
