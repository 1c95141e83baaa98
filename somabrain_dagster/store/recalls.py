"""Recalls in Postgres: who is asked, which memories are candidates, and the log of what was recalled.

Only memories and links that are strictly earlier than `as_of` are seen. Every query names its tenant, and row
security says the same once more.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import psycopg
from numpy.typing import NDArray

from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.policy import SEEDS
from somabrain_dagster.store.adaptation import STATE_COLUMNS, AdaptationState, UnknownTenant, state_from_row
from somabrain_dagster.store.arrays import bigints, floats
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.embedding_models import EmbeddingModel

BY_SIMILARITY, BY_WORDS, BY_RECENCY, BY_LINK = 1, 2, 4, 8
"""What brings a candidate in; the log keeps their sum."""

SIMILAR, MATCHING, RECENT = 50, 50, 20
"""How many candidates similarity, full text and recency bring in at most."""

EF_SEARCH = 100
"""How many neighbours an approximate search keeps in view at least: more than it is asked for."""

MOST_SCANNED = 2000
"""How many memories an approximate search looks at before it gives up: under a filter that lets fewer than
one in forty through, the exact search costs less."""

Backend = Literal["exact", "hnsw"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A tenant at the moment of a recall.

    Attributes:
        recall_id: the id that the recall will have in the log.
        state: its weights and neuromodulators.
        overrides: what its learning configuration has different from the global one.
        model: of its embeddings; None while it has none.
        model_id: names the model; None while it has none.
        scale_version: of the scales in force.
        backend: which index serves similarity.
        now: the transaction's time.
    """

    recall_id: int
    state: AdaptationState
    overrides: Mapping[str, Any]
    model: EmbeddingModel | None
    model_id: int | None
    scale_version: int
    backend: Backend
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Sought:
    """What a recall looks for.

    Attributes:
        tenant_id: whose memories.
        text: the question.
        embedding: of the question, in Postgres' text form; None finds nothing by similarity.
        as_of: only what is strictly earlier exists.
        namespaces: only memories of these; None means of all.
        since: only memories of this time or later; None means of any.
        backend: which index serves similarity.
        dimension: of the embedding.
    """

    tenant_id: str
    text: str
    embedding: str | None
    as_of: datetime
    namespaces: Sequence[str] | None
    since: datetime | None
    backend: Backend
    dimension: int


@dataclass(frozen=True, eq=False)
class Sighting:
    """What was found: n memories, by ascending id, and the links that leave the seeds.

    Attributes:
        memory_ids: (n,).
        sources: (n,) what brought each in; BY_LINK alone for what only links reach.
        seeds: (n,) whether activation starts there.
        age_seconds: (n,).
        similarity: (n,) cosine to the question; 0 where there is no embedding.
        lexical_rank: (n,).
        speakers: (n,) None where nobody is known.
        entities: (n,) the names that each memory's payload lists.
        link_sources, link_targets: (E,) positions among the n.
        link_weights: (E,).
    """

    memory_ids: NDArray[np.int64]
    sources: NDArray[np.int16]
    seeds: NDArray[np.bool_]
    age_seconds: Floats
    similarity: Floats
    lexical_rank: Floats
    speakers: list[str | None]
    entities: list[list[str]]
    link_sources: NDArray[np.int64]
    link_targets: NDArray[np.int64]
    link_weights: Floats


def ask(connection: Connection, tenant_id: str) -> Asked:
    """Read what a recall needs to know of its tenant.

    Raises:
        UnknownTenant: there is no such tenant, or the transaction must not see it.
    """
    row = connection.execute(
        f"""
        SELECT {STATE_COLUMNS},
            nextval('recall_ids'), t.overrides, t.model_id, m.name, m.dimension, m.digest, t.scale_version,
            t.cleanup_backend, now()
        FROM adaptation_states s
        JOIN tenants t USING (tenant_id)
        LEFT JOIN embedding_models m USING (model_id)
        WHERE s.tenant_id = %s
        """,  # noqa: S608 — the columns are a constant
        (tenant_id,),
    ).fetchone()
    if row is None:
        raise UnknownTenant(tenant_id)
    *state, recall_id, overrides, model_id, name, dimension, digest, scale_version, backend, now = row
    return Asked(
        recall_id=recall_id,
        state=state_from_row(state),
        overrides=overrides,
        model=None if model_id is None else EmbeddingModel(name, dimension, digest),
        model_id=model_id,
        scale_version=scale_version,
        backend=backend,
        now=now,
    )


_OWN = "m.tenant_id = %(tenant_id)s"
_VISIBLE = f"""{_OWN} AND m.occurred_at < %(as_of)s
        AND (%(namespaces)s::text[] IS NULL OR m.namespace = ANY (%(namespaces)s::text[]))
        AND (%(since)s::timestamptz IS NULL OR m.occurred_at >= %(since)s::timestamptz)"""

_DISTANCE: dict[Backend, str] = {
    # The index is on this very expression, so that only this form of the query can use it.
    "exact": "m.embedding <=> %(embedding)s::vector",
    "hnsw": "m.embedding::vector({dimension}) <=> %(embedding)s::vector({dimension})",
}

_MEASURED = """
    m.memory_id, {sources}, {seed}, m.occurred_at,
    coalesce(1 - (m.embedding <=> %(embedding)s::vector), 0),
    coalesce(ts_rank(m.lexemes, any_word(%(text)s), 1), 0),
    m.speaker, m.payload -> 'entities', {source_id}, {weight}
"""

_FIND = f"""
    WITH nearest AS MATERIALIZED (
        SELECT m.memory_id, {{distance}} AS distance FROM memories m
        WHERE {_VISIBLE} AND m.embedding IS NOT NULL AND %(embedding)s::vector IS NOT NULL
        ORDER BY {{distance}}, m.memory_id LIMIT {SIMILAR}
    ), matching AS MATERIALIZED (
        SELECT m.memory_id FROM memories m
        WHERE {_VISIBLE} AND m.lexemes @@ any_word(%(text)s)
        ORDER BY ts_rank(m.lexemes, any_word(%(text)s), 1) DESC, m.memory_id LIMIT {MATCHING}
    ), recent AS MATERIALIZED (
        SELECT m.memory_id FROM memories m
        WHERE {_VISIBLE}
        ORDER BY m.occurred_at DESC, m.memory_id DESC LIMIT {RECENT}
    ), seeds AS MATERIALIZED (
        SELECT memory_id FROM nearest ORDER BY distance, memory_id LIMIT {SEEDS}
    ), found AS MATERIALIZED (
        SELECT memory_id, sum(source)::int AS sources
        FROM (
            SELECT memory_id, {BY_SIMILARITY} AS source FROM nearest
            UNION ALL SELECT memory_id, {BY_WORDS} FROM matching
            UNION ALL SELECT memory_id, {BY_RECENCY} FROM recent
        ) AS sources GROUP BY memory_id
    )
    SELECT {
    _MEASURED.format(
        sources="f.sources",
        seed="EXISTS (SELECT FROM seeds s WHERE s.memory_id = f.memory_id)",
        source_id="NULL::bigint",
        weight="NULL::float8",
    )
}
    FROM found f JOIN memories m
        ON m.memory_id = f.memory_id AND m.memory_id = ANY (ARRAY(SELECT memory_id FROM found)) AND {_OWN}
    UNION ALL
    SELECT {_MEASURED.format(sources=str(BY_LINK), seed="false", source_id="l.source_id", weight="l.weight")}
    FROM seeds s
    JOIN memory_links l
        ON l.tenant_id = %(tenant_id)s AND l.source_id = s.memory_id AND l.occurred_at < %(as_of)s
    JOIN memories m ON m.memory_id = l.target_id AND {_VISIBLE}
"""  # noqa: S608 — all parts are constants


def candidates_query(backend: Backend, dimension: int) -> str:
    """The query by which candidates are found."""
    return _FIND.replace("{distance}", distance_by(backend, dimension))


def distance_by(backend: Backend, dimension: int) -> str:
    """The cosine distance of memory `m` to `%(embedding)s`, in the form that this backend serves."""
    return _DISTANCE[backend].format(dimension=int(dimension))


class IndexUnusable(RuntimeError):
    """The server does not serve an approximate index as it must; the message says what it said."""


@contextmanager
def iterative_scan(connection: Connection) -> Iterator[None]:
    """Around a search by an index: let it go on until it has found enough, and let no other plan be taken.

    Left to itself the planner sorts a tenant's memories where it thinks that cheaper: then nobody could tell
    which of the two had served.

    Raises:
        IndexUnusable: the server does not scan the index iteratively.
    """
    connection.execute(
        "SELECT set_config('hnsw.iterative_scan', 'strict_order', true), "
        "set_config('hnsw.ef_search', %s, true), set_config('hnsw.max_scan_tuples', %s, true), "
        "set_config('enable_sort', 'off', true)",
        (str(EF_SEARCH), str(MOST_SCANNED)),
    )
    yield
    # Where the extension was not loaded yet, a value that it does not know would only have been warned of.
    (scan, _) = connection.execute(
        "SELECT current_setting('hnsw.iterative_scan'), set_config('enable_sort', 'on', true)"
    ).fetchone() or (None, None)
    if scan != "strict_order":
        raise IndexUnusable(f"hnsw.iterative_scan is {scan!r}, not 'strict_order': use pgvector 0.8 or later")


def find_candidates(connection: Connection, sought: Sought) -> tuple[Sighting, Backend]:
    """Find the candidates and, beside them, all that links from the seeds reach.

    An approximate index may stop before it has found enough under narrow filters: then the search is exact,
    so that there are never fewer candidates than there would be without the index.

    Args:
        connection: a transaction for the tenant.
        sought: what to look for; its embedding is of the tenant's own model.

    Returns:
        What was seen, and by which index.

    Raises:
        IndexUnusable: the server does not scan the index iteratively.
    """
    if sought.backend == "exact" or sought.embedding is None:
        return _find(connection, sought, "exact"), "exact"
    with iterative_scan(connection):
        seen = _find(connection, sought, "hnsw")
    if ((seen.sources & BY_SIMILARITY) > 0).sum() < SIMILAR:
        return _find(connection, sought, "exact"), "exact"
    return seen, "hnsw"


def _find(connection: Connection, sought: Sought, backend: Backend) -> Sighting:
    rows = connection.execute(
        candidates_query(backend, sought.dimension).encode(),
        {
            "tenant_id": sought.tenant_id,
            "text": sought.text,
            "embedding": sought.embedding,
            "as_of": sought.as_of,
            "namespaces": None if sought.namespaces is None else list(sought.namespaces),
            "since": sought.since,
        },
    ).fetchall()
    return _sighting(rows, sought.as_of)


def _sighting(rows: Sequence[tuple[Any, ...]], as_of: datetime) -> Sighting:
    # A memory that is found comes before the same one as the target of a link: its own row counts.
    first: dict[int, tuple[Any, ...]] = {}
    for row in sorted(rows, key=lambda row: (row[0], row[8] is not None)):
        first.setdefault(row[0], row)
    position = {memory_id: place for place, memory_id in enumerate(first)}
    links = [row for row in rows if row[8] is not None]
    columns = list(zip(*first.values(), strict=True)) if first else [()] * 8
    return Sighting(
        memory_ids=np.array(columns[0], dtype=np.int64),
        sources=np.array(columns[1], dtype=np.int16),
        seeds=np.array(columns[2], dtype=np.bool_),
        age_seconds=np.array([(as_of - moment).total_seconds() for moment in columns[3]], dtype=np.float64),
        similarity=np.array(columns[4], dtype=np.float64),
        lexical_rank=np.array(columns[5], dtype=np.float64),
        speakers=list(columns[6]),
        entities=[_names(entry) for entry in columns[7]],
        link_sources=np.array([position[row[8]] for row in links], dtype=np.int64),
        link_targets=np.array([position[row[0]] for row in links], dtype=np.int64),
        link_weights=np.array([row[9] for row in links], dtype=np.float64),
    )


def _names(entities: object) -> list[str]:
    return [name for name in entities if isinstance(name, str)] if isinstance(entities, list) else []


@dataclass(frozen=True, kw_only=True, eq=False)
class RecallLog:
    """One row of the log: a recall as it was made; n candidates, F features, K weights.

    Attributes:
        occurred_at: the as_of.
        weights: (K,) nano-units in force, arm and neuromodulators included.
        weights_version: the version of the tenant's weights that they came from.
        candidate_ids: (n,).
        features: (n, F) scaled.
        propensities: (n,) of the first position.
        expected: (F,) E_p z.
        sources: (n,) what brought each candidate in.
        hits: the memories that were returned, in order.
        recalled, repeated, serotonin: what a step of τ looked at; None where τ is not steered.
    """

    tenant_id: str
    occurred_at: datetime
    session_id: str | None
    query: str
    asker: str | None
    k: int
    namespaces: Sequence[str] | None
    since: datetime | None
    mode: str
    arm: str | None
    weights_version: int
    weights: NDArray[np.int64]
    scale_version: int
    registry_version: int
    model_id: int | None
    candidate_ids: NDArray[np.int64]
    features: Floats
    propensities: Floats
    expected: Floats
    sources: NDArray[np.int16]
    hits: Sequence[int]
    governed_margin: float
    cleanup_backend: Backend
    noradrenaline: float | None
    acetylcholine: float | None
    recalled: Sequence[int] | None = None
    repeated: int | None = None
    serotonin: float | None = None


def log_recall(connection: Connection, recall_id: int, log: RecallLog) -> None:
    """Log a recall. This week's partition must exist: see `ensure_partitions`."""
    row = {name: _as_column(value) for name, value in vars(log).items()}
    connection.execute(_LOG, {**row, "recall_id": recall_id})


def _as_column(value: object) -> object:
    """A value as psycopg writes it: only a list becomes an array, a tuple would become a record."""
    if isinstance(value, np.ndarray):
        return floats(value) if value.dtype.kind == "f" else bigints(value)
    return list(value) if isinstance(value, tuple) else value


_LOGGED = ("recall_id", *(RecallLog.__dataclass_fields__))
_LOG = (
    f"INSERT INTO recalls ({', '.join(_LOGGED)}) "  # noqa: S608 — the columns are constants
    f"VALUES ({', '.join(f'%({name})s' for name in _LOGGED)})"
)


def read_bodies(
    connection: Connection, tenant_id: str, memory_ids: Sequence[int]
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Id, text, speaker, time, namespace, conversation and payload of memories, in any order."""
    return connection.execute(
        """
        SELECT memory_id, text, speaker, occurred_at, namespace, conversation_id, payload
        FROM memories WHERE tenant_id = %s AND memory_id = ANY (%s)
        """,
        (tenant_id, list(memory_ids)),
    )
