"""Indexes: which tenants have one, how they get it, and the proof that it finds what an exact one does."""

from dataclasses import asdict, dataclass

import numpy as np

from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.vectors import as_text
from somabrain_dagster.store.audit import record
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.embedding_models import model_of
from somabrain_dagster.store.indexes import (
    MOVED,
    PROVEN,
    IndexStatus,
    NotIndexable,
    Question,
    asked_lately,
    can_be_indexed,
    index_size,
    move_to_partition,
    nearest,
    read_status,
    reindex,
    serve_by,
    some_vectors,
)
from somabrain_dagster.store.recalls import Backend

SUFFICIENT_RECALL = 0.95
"""The recall@10 below which an index does not serve."""

NEIGHBOURS = 10
QUESTIONS = 100
"""How many searches an index is compared in."""

BACKENDS: tuple[Backend, Backend] = ("exact", "hnsw")

_SAME_DISTANCE = 1e-6
"""Two cosine distances of float32 vectors that differ by less are equal."""


@dataclass(frozen=True)
class Proof:
    """An index compared with an exact search.

    Attributes:
        recall_at_10: the share of its ten nearest that are as near as the tenth nearest; in [0, 1].
        asked: how many of the searches were questions that the tenant had asked.
        own: how many were for the neighbours of one of its memories.
        fewest: the smallest number of memories that one search gave, of ten or as many as there are.
    """

    recall_at_10: float
    asked: int
    own: int
    fewest: int

    @property
    def sufficient(self) -> bool:
        """Whether the index may serve."""
        return self.recall_at_10 >= SUFFICIENT_RECALL


@dataclass(frozen=True)
class Rebuilt:
    """A tenant's index after it was built or rebuilt.

    Attributes:
        embedded: memories that it holds.
        seconds: what building took, the rows' move included where they moved.
        index_bytes: its size on disk.
        locked_seconds: of these, for how long the other tenants of the default partition had to wait.
    """

    tenant_id: str
    embedded: int
    seconds: float
    index_bytes: int
    proof: Proof
    locked_seconds: float = 0.0


class LowRecall(RuntimeError):
    """An index misses too much of what an exact search finds; the tenant is searched exactly.

    Attributes:
        rebuilt: the index.
    """

    def __init__(self, rebuilt: Rebuilt) -> None:
        super().__init__(
            f"the index of tenant {rebuilt.tenant_id!r} has recall@10 {rebuilt.proof.recall_at_10:.3f} "
            f"against an exact search, below {SUFFICIENT_RECALL}: its searches are exact until a rebuild "
            "does better"
        )
        self.rebuilt = rebuilt


class NoIndex(LookupError):
    """A tenant that has no index; the message says how it would get one."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(
            f"tenant {tenant_id!r} has no index, its searches are exact: it gets one with as many "
            "memories as SOMABRAIN_HNSW_THRESHOLD says"
        )
        self.tenant_id = tenant_id


def status(database: Database) -> list[IndexStatus]:
    """How each tenant is searched, the largest first."""
    with database.as_operator() as connection:
        return read_status(connection)


def large_tenants(database: Database, threshold: int) -> list[str]:
    """Tenants with at least `threshold` embedded memories that could have an index and have none."""
    return [
        tenant.tenant_id
        for tenant in status(database)
        if tenant.embedded >= threshold and tenant.index is None and can_be_indexed(tenant.dimension)
    ]


def promote_large_tenants(
    database: Database, threshold: int, *, actor: str, embedder: Embedder | None = None
) -> list[Rebuilt]:
    """Promote each of the `large_tenants`; see `promote`.

    Returns:
        What was built; one that does not find enough is among them, and does not serve.
    """
    return [
        _promoted(database, tenant_id, actor, embedder) for tenant_id in large_tenants(database, threshold)
    ]


def promote(database: Database, tenant_id: str, *, actor: str, embedder: Embedder | None = None) -> Rebuilt:
    """Give a tenant's memories a partition and an index of their own, which serves once it is proven.

    The move is one transaction; the proof follows it.

    Args:
        database: the brain's.
        tenant_id: the tenant.
        actor: who wants it, for the audit trail.
        embedder: embeds questions that the tenant asked, if it is of the tenant's model; without it the index
            is proven by the tenant's own memories alone.

    Raises:
        UnknownTenant: there is no such tenant.
        NotIndexable: it has no embeddings, too long ones, or a partition already.
        TablesBusy: other transactions would not let go of the tables; nothing was changed.
        LowRecall: the index misses too much.
    """
    return _required(_promoted(database, tenant_id, actor, embedder))


def rebuild(database: Database, tenant_id: str, *, actor: str, embedder: Embedder | None = None) -> Rebuilt:
    """Build a tenant's index anew while it serves, and prove it.

    Args:
        database: the brain's.
        tenant_id: the tenant.
        actor: who wants it, for the audit trail.
        embedder: as for `promote`.

    Raises:
        NoIndex: the tenant has none.
        LowRecall: the index misses too much.
    """
    indexed = [tenant for tenant in status(database) if tenant.tenant_id == tenant_id and tenant.index]
    if not indexed:
        raise NoIndex(tenant_id)
    return _required(_rebuilt(database, indexed[0], actor, embedder))


def rebuild_all(
    database: Database, threshold: int, *, actor: str, embedder: Embedder | None = None
) -> list[Rebuilt]:
    """Rebuild every index, then promote the tenants that have become large.

    Returns:
        Every index, rebuilt or new; those that do not find enough are among them, and do not serve.
    """
    rebuilt = [
        _rebuilt(database, tenant, actor, embedder) for tenant in status(database) if tenant.index is not None
    ]
    return rebuilt + promote_large_tenants(database, threshold, actor=actor, embedder=embedder)


def prove(database: Database, tenant_id: str, embedder: Embedder | None = None) -> Proof:
    """Compare a tenant's index with an exact search, as the tenant itself.

    The questions are the latest that the tenant asked, and, where they are too few, for the neighbours of
    its own memories. A memory that the index gives counts where it is as near as the tenth nearest, since
    memories with the same words are equally near (Aumüller, Bernhardsson & Faithfull 2018, ANN-Benchmarks).

    Raises:
        NotIndexable: the tenant has no embeddings.
        IndexUnusable: the server does not scan the index iteratively.
    """
    with database.as_tenants([tenant_id]) as connection:
        model = model_of(connection, tenant_id)
        if model is None:
            raise NotIndexable(f"tenant {tenant_id!r} has no embeddings yet: embed its memories first")
        texts = (
            asked_lately(connection, tenant_id, QUESTIONS)
            if embedder is not None and embedder.digest == model.digest
            else []
        )
        own = some_vectors(connection, tenant_id, QUESTIONS - len(texts))
    asked = [Question(as_text(vector)) for vector in embedder.embed(texts)] if embedder and texts else []
    compared = [_compared(database, tenant_id, question, model.dimension) for question in [*asked, *own]]
    return Proof(
        recall_at_10=float(np.mean([share for share, _ in compared])) if compared else 1.0,
        asked=len(asked),
        own=len(own),
        fewest=min((found for _, found in compared), default=0),
    )


def _compared(database: Database, tenant_id: str, question: Question, dimension: int) -> tuple[float, int]:
    """The share of an exact search's nearest that the index gives, and how many it gives at all."""
    with database.as_tenants([tenant_id]) as connection:
        exact, found = (
            nearest(connection, tenant_id, question, backend, dimension, NEIGHBOURS) for backend in BACKENDS
        )
    if not exact:
        return 1.0, 0
    near_enough = exact[-1][1] + _SAME_DISTANCE
    return sum(distance <= near_enough for _, distance in found) / len(exact), len(found)


def _promoted(database: Database, tenant_id: str, actor: str, embedder: Embedder | None) -> Rebuilt:
    with database.as_owner() as connection:
        moved = move_to_partition(connection, tenant_id)
        record(connection, tenant_id, actor, MOVED, asdict(moved))
    return _proven(database, tenant_id, moved.seconds, actor, embedder, moved.locked_seconds)


def _rebuilt(database: Database, tenant: IndexStatus, actor: str, embedder: Embedder | None) -> Rebuilt:
    seconds = reindex(database, tenant.tenant_id)
    return _proven(database, tenant.tenant_id, seconds, actor, embedder)


def _proven(
    database: Database,
    tenant_id: str,
    seconds: float,
    actor: str,
    embedder: Embedder | None,
    locked_seconds: float = 0.0,
) -> Rebuilt:
    """Prove an index, let it serve or not, and record both."""
    proof = prove(database, tenant_id, embedder)
    backend: Backend = "hnsw" if proof.sufficient else "exact"
    with database.as_owner() as connection:
        embedded, index_bytes = index_size(connection, tenant_id)
        serve_by(connection, tenant_id, backend)
        body = {"backend": backend, "embedded": embedded, "seconds": seconds, **asdict(proof)}
        record(connection, tenant_id, actor, PROVEN, body)
    return Rebuilt(tenant_id, embedded, seconds, index_bytes, proof, locked_seconds)


def _required(rebuilt: Rebuilt) -> Rebuilt:
    if not rebuilt.proof.sufficient:
        raise LowRecall(rebuilt)
    return rebuilt
