"""A large tenant's index: it finds what an exact search finds, and nothing else changes.

The memories are messages of the Chit-Chat data with their real embeddings.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from somabrain_dagster.assets.ann_index import check_result
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.memory import indexes
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.memory.indexes import LowRecall, NoIndex, Rebuilt
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.memory.remember import NewMemory
from somabrain_dagster.memory.vectors import as_text
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import UnknownTenant, create_tenants
from somabrain_dagster.store.database import OPERATOR_ROLE, TENANT_ROLE, Connection, Database
from somabrain_dagster.store.indexes import (
    MOVED,
    PROVEN,
    NotIndexable,
    index_of,
    move_to_partition,
    partition_of,
    reindex,
)
from somabrain_dagster.store.memories import Link, Memory, UnknownMemory
from somabrain_dagster.store.recalls import (
    BY_SIMILARITY,
    Sought,
    candidates_query,
    find_candidates,
    iterative_scan,
)
from tests.brain import CONFIGURATION, new_tenant, new_tenants
from tests.chain import QUIETLY, checks_of, settings_for
from tests.conftest import new_database
from tests.vacuuming import autovacuum_at_work

LARGE, SMALL = "large", "small"
MEMORIES, FEW, QUESTIONS = 1500, 60, 40
NAMESPACES = ("even", "odd", "rare")

Row = tuple[Any, ...]


class Brain:
    """One database with a large tenant and a small one, and questions with their vectors."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.embedder = MiniLM(threads=2)
        self.memories = Memories(database, self.embedder, Settings(tau_adaptation=False))
        distinct = dict.fromkeys(
            (message.speaker, message.text, message.occurred_at)
            for conversation in read_chitchat(1).conversations
            for message in conversation.messages
        )
        messages = list(islice(distinct, MEMORIES + FEW + QUESTIONS))
        with database.as_operator() as connection:
            create_tenants(connection, [LARGE, SMALL], CONFIGURATION)
        remembered = self.memories.remember_all(
            [
                Memory(
                    tenant_id=LARGE if place < MEMORIES else SMALL,
                    speaker=speaker,
                    text=text,
                    occurred_at=at,
                    namespace="rare" if place % 100 == 7 else NAMESPACES[place % 2],
                    payload={"place": place},
                )
                for place, (speaker, text, at) in enumerate(messages[: MEMORIES + FEW])
            ]
        )
        self.ids = [each.memory_id for each in remembered[:MEMORIES]]
        self.memories.link_all(
            [
                Link(tenant_id=LARGE, source_id=source, target_id=target, weight=1 + place, occurred_at=at)
                for place, (source, target, (_, _, at)) in enumerate(
                    zip(self.ids[1:], self.ids, messages[1:], strict=False)
                )
            ]
        )
        self.questions = [text for _, text, _ in messages[MEMORIES + FEW :]]
        self.vectors = self.embedder.embed(self.questions)

    def recall(self, place: int, tenant_id: str = LARGE) -> Recall:
        vector = tuple(self.vectors[place].tolist())
        return self.memories.recall(Query(tenant_id=tenant_id, text=self.questions[place], embedding=vector))

    def by_similarity(self, place: int, backend: str, **filters: Any) -> tuple[set[int], str]:
        """What similarity brings in, and which backend served."""
        sought = Sought(
            tenant_id=LARGE,
            text=self.questions[place],
            embedding=as_text(self.vectors[place]),
            backend=backend,  # type: ignore[arg-type]
            dimension=self.embedder.dimension,
            **({"as_of": datetime(2030, 1, 1, tzinfo=UTC), "namespaces": None, "since": None} | filters),
        )
        with self.database.as_tenants([LARGE]) as connection:
            seen, served = find_candidates(connection, sought)
        return set(seen.memory_ids[(seen.sources & BY_SIMILARITY) > 0].tolist()), served

    def rows(self, table: str) -> set[str]:
        """All that a table holds of the large tenant, generated columns included."""
        with self.database.as_tenants([LARGE]) as connection:
            query = sql.SQL("SELECT md5(row_to_json(t)::text) FROM {} t").format(sql.Identifier(table))
            return {row for (row,) in connection.execute(query)}

    def audited(self, action: str) -> list[dict[str, Any]]:
        with self.database.as_tenants([LARGE]) as connection:
            rows = connection.execute(
                "SELECT body FROM audit_events WHERE tenant_id = %s AND action = %s ORDER BY version",
                (LARGE, action),
            )
            return [body for (body,) in rows]


class Before:
    """What was there, and what was recalled, before the large tenant had an index."""

    def __init__(self, brain: Brain) -> None:
        self.memories = brain.rows("memories")
        self.links = brain.rows("memory_links")
        self.recalls = [brain.recall(place) for place in range(QUESTIONS)]


@pytest.fixture(scope="module")
def unindexed(postgres: PostgresServer, migrated_template: str) -> Iterator[Brain]:
    with new_database(postgres, migrated_template) as name, Database(postgres.url(name)) as database:
        yield Brain(database)


@pytest.fixture(scope="module")
def before(unindexed: Brain) -> Before:
    return Before(unindexed)


@pytest.fixture(scope="module")
def promoted(unindexed: Brain, before: Before) -> list[Rebuilt]:
    return indexes.promote_large_tenants(
        unindexed.database, MEMORIES, actor="test", embedder=unindexed.embedder
    )


@pytest.fixture(scope="module")
def brain(unindexed: Brain, promoted: list[Rebuilt]) -> Brain:
    return unindexed


def test_only_large_tenants_are_promoted_and_only_once(brain: Brain, promoted: list[Rebuilt]) -> None:
    assert [(rebuilt.tenant_id, rebuilt.embedded) for rebuilt in promoted] == [(LARGE, MEMORIES)]
    assert indexes.large_tenants(brain.database, MEMORIES) == []
    assert indexes.large_tenants(brain.database, FEW) == [SMALL]
    assert indexes.large_tenants(brain.database, FEW + 1) == []
    with pytest.raises(NotIndexable, match="rebuild its index instead"):
        indexes.promote(brain.database, LARGE, actor="test")


def test_an_autovacuum_gives_way_to_the_move(taught: Database, postgres: PostgresServer) -> None:
    with taught.as_operator() as connection:
        ((tenant, memories),) = connection.execute(
            "SELECT tenant_id, count(*) FROM memories GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
        ).fetchall()
    with autovacuum_at_work(postgres, urlsplit(taught.url).path.removeprefix("/"), "memories_default"):
        assert indexes.promote(taught, tenant, actor="test").embedded == memories


def test_the_move_keeps_every_memory_and_every_link_as_it_was(brain: Brain, before: Before) -> None:
    assert len(before.memories) == MEMORIES
    assert len(before.links) == MEMORIES - 1
    assert brain.rows("memories") == before.memories
    assert brain.rows("memory_links") == before.links
    with brain.database.as_operator() as connection:
        places = connection.execute(
            "SELECT tenant_id, tableoid::regclass::text, count(*) FROM memories GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
    assert places == [(LARGE, partition_of(LARGE), MEMORIES), (SMALL, "memories_default", FEW)]


def test_the_index_recalls_what_the_exact_search_recalled(brain: Brain, before: Before) -> None:
    after = [brain.recall(place) for place in range(QUESTIONS)]

    assert {recall.cleanup_backend for recall in before.recalls} == {"exact"}
    assert {recall.cleanup_backend for recall in after} == {"hnsw"}
    shares = [
        len({hit.memory_id for hit in old.hits} & {hit.memory_id for hit in new.hits}) / len(old.hits)
        for old, new in zip(before.recalls, after, strict=True)
    ]
    assert np.mean(shares) >= 0.95
    with brain.database.as_tenants([LARGE]) as connection:
        logged = connection.execute(
            "SELECT DISTINCT cleanup_backend FROM recalls WHERE recall_id = ANY (%s)",
            ([recall.recall_id for recall in after],),
        ).fetchall()
    assert logged == [("hnsw",)]


def test_row_security_leaves_the_index_in_use(brain: Brain) -> None:
    with brain.database.as_tenants([LARGE]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (TENANT_ROLE,)
        with iterative_scan(connection):
            plan = connection.execute(
                f"EXPLAIN {candidates_query('hnsw', brain.embedder.dimension)}".encode(),
                {
                    "tenant_id": LARGE,
                    "text": brain.questions[0],
                    "embedding": as_text(brain.vectors[0]),
                    "as_of": datetime.now(UTC),
                    "namespaces": None,
                    "since": None,
                },
            ).fetchall()
    assert any(f"Index Scan using {index_of(LARGE)} " in line for (line,) in plan), plan


moments = st.integers(0, MEMORIES - 1)


@given(
    place=st.integers(0, QUESTIONS - 1),
    namespaces=st.none() | st.lists(st.sampled_from(NAMESPACES), min_size=1, max_size=2),
    ends=st.tuples(moments, moments),
)
@settings(max_examples=40, deadline=None)
def test_there_are_never_fewer_candidates_than_the_exact_search_gives(
    brain: Brain, place: int, namespaces: Sequence[str] | None, ends: tuple[int, int]
) -> None:
    first, last = sorted(ends)
    since, as_of = moment_of(brain, first), moment_of(brain, last)
    filters = {"namespaces": namespaces, "since": since, "as_of": as_of}

    exact, _ = brain.by_similarity(place, "exact", **filters)
    found, served = brain.by_similarity(place, "hnsw", **filters)

    assert len(found) == len(exact)
    assert served == "hnsw" or found == exact


def moment_of(brain: Brain, place: int) -> datetime:
    with brain.database.as_tenants([LARGE]) as connection:
        (moment,) = connection.execute(
            "SELECT occurred_at FROM memories WHERE tenant_id = %s AND memory_id = %s",
            (LARGE, brain.ids[place]),
        ).fetchone() or (None,)
    assert isinstance(moment, datetime)
    return moment


def test_where_a_filter_leaves_few_the_exact_search_serves_and_says_so(brain: Brain) -> None:
    rare = {"namespaces": ["rare"]}
    exact, _ = brain.by_similarity(0, "exact", **rare)

    assert len(exact) == MEMORIES // 100
    assert brain.by_similarity(0, "hnsw", **rare) == (exact, "exact")


def test_another_tenant_sees_nothing_of_it(brain: Brain) -> None:
    own = {hit.memory_id for hit in brain.recall(0, SMALL).hits}
    assert own
    assert own.isdisjoint(brain.ids)
    with brain.database.as_tenants([SMALL]) as connection:
        seen = connection.execute("SELECT DISTINCT tenant_id FROM memories").fetchall()
        assert seen == [(SMALL,)]
        # The same, where the planner is free to go to the large tenant's partition and its index alone.
        assert connection.execute("SELECT FROM memories WHERE tenant_id = %s", (LARGE,)).rowcount == 0
        changed = connection.execute("UPDATE memories SET text = 'mine' WHERE tenant_id = %s", (LARGE,))
        assert changed.rowcount == 0


@pytest.mark.parametrize("role", [TENANT_ROLE, OPERATOR_ROLE])
def test_the_partition_is_reached_through_its_table_only(brain: Brain, role: str) -> None:
    opened = brain.database.as_tenants([LARGE]) if role == TENANT_ROLE else brain.database.as_operator()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=partition_of(LARGE)), opened as connection:
        connection.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(partition_of(LARGE))))


def test_the_partition_is_as_the_default_one_is(brain: Brain) -> None:
    """Columns, storage, constraints, triggers and indexes, but for names and its own index."""
    described = """
        SELECT 'column', attname, format_type(atttypid, atttypmod), attstorage, attnotnull, attgenerated
        FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0
        UNION ALL SELECT 'constraint', pg_get_constraintdef(oid), contype::text, '', convalidated, ''
        FROM pg_constraint WHERE conrelid = %(table)s::regclass
        UNION ALL SELECT 'trigger', tgfoid::regproc::text, tgconstrrelid::regclass::text, tgenabled, false, ''
        FROM pg_trigger WHERE tgrelid = %(table)s::regclass
        UNION ALL
        SELECT 'index', substring(pg_get_indexdef(indexrelid) FROM 'USING .*'), '', '', indisunique, ''
        FROM pg_index WHERE indrelid = %(table)s::regclass
    """
    with brain.database.as_owner() as connection:

        def what(table: str) -> list[Row]:
            return sorted(connection.execute(described.encode(), {"table": table}).fetchall())

        default, own = what("memories_default"), what(partition_of(LARGE))
    (index,) = [row for row in own if row not in default]
    assert index[:2] == ("index", "USING hnsw (((embedding)::vector(384)) vector_cosine_ops)")
    assert sorted([*default, index]) == own


def test_links_still_need_their_memories_and_go_with_them(brain: Brain) -> None:
    at = datetime(2018, 1, 1, tzinfo=UTC)
    new = brain.memories.remember(
        Memory(tenant_id=LARGE, text="linked after the move", occurred_at=at + timedelta(days=9000))
    ).memory_id
    link = Link(tenant_id=LARGE, source_id=new, target_id=brain.ids[0], occurred_at=at)
    assert brain.memories.link(link)
    with pytest.raises(UnknownMemory):
        brain.memories.link(Link(tenant_id=LARGE, source_id=new, target_id=2**40, occurred_at=at))

    with brain.database.as_tenants([LARGE]) as connection:
        connection.execute("DELETE FROM memories WHERE memory_id = %s", (new,))
        left = connection.execute("SELECT FROM memory_links WHERE source_id = %s", (new,)).rowcount
    assert left == 0


def test_new_memories_go_to_the_partition_and_are_found_by_the_index(brain: Brain) -> None:
    text = "Zanzibar exports cloves, and my aunt paints every one of its harbours."
    new = brain.memories.remember(Memory(tenant_id=LARGE, text=text, occurred_at=datetime.now(UTC)))

    recall = brain.memories.recall(Query(tenant_id=LARGE, text=text, k=1))

    assert recall.cleanup_backend == "hnsw"
    assert [hit.memory_id for hit in recall.hits] == [new.memory_id]
    assert "similarity" in recall.hits[0].sources
    with brain.database.as_tenants([LARGE]) as connection:
        connection.execute("DELETE FROM memories WHERE memory_id = %s", (new.memory_id,))


def test_status_says_who_has_an_index_and_what_it_was_worth(brain: Brain, promoted: list[Rebuilt]) -> None:
    large, small = indexes.status(brain.database)

    assert (large.tenant_id, large.backend, large.index, large.valid) == (
        LARGE,
        "hnsw",
        index_of(LARGE),
        True,
    )
    assert large.embedded == MEMORIES
    assert large.index_bytes > MEMORIES * 4 * brain.embedder.dimension
    assert large.recall_at_10 is not None
    assert large.recall_at_10 >= indexes.SUFFICIENT_RECALL
    assert (small.tenant_id, small.backend, small.embedded) == (SMALL, "exact", FEW)
    assert (small.partition, small.index, small.index_bytes, small.recall_at_10) == (None, None, 0, None)


def test_the_proof_asks_what_the_tenant_asked_then_for_its_own(brain: Brain, promoted: list[Rebuilt]) -> None:
    proof = promoted[0].proof

    assert proof.asked == len(set(brain.questions))
    assert proof.asked + proof.own == indexes.QUESTIONS
    assert proof.fewest == 10
    assert brain.audited(MOVED)[0]["memories"] == MEMORIES
    assert brain.audited(PROVEN)[0]["recall_at_10"] == proof.recall_at_10


def test_an_index_is_rebuilt_while_it_is_read(brain: Brain) -> None:
    ended = threading.Event()
    recalls: list[Recall] = []

    def read() -> None:
        while not ended.is_set():
            recalls.append(brain.recall(len(recalls) % QUESTIONS))

    def file_of_index(connection: Connection) -> Row | None:
        return connection.execute("SELECT pg_relation_filenode(%s::regclass)", (index_of(LARGE),)).fetchone()

    with brain.database.as_owner() as connection:
        old = file_of_index(connection)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        rebuilt = indexes.rebuild(brain.database, LARGE, actor="test", embedder=brain.embedder)
    finally:
        ended.set()
        reader.join()

    assert rebuilt.proof.sufficient
    assert len(recalls) > 1
    assert {(len(recall.hits), recall.cleanup_backend) for recall in recalls} == {(10, "hnsw")}
    with brain.database.as_owner() as connection:
        assert file_of_index(connection) != old


def test_what_an_interrupted_rebuild_left_is_removed(brain: Brain) -> None:
    """Ended as by an administrator, a rebuild leaves an index that nobody can use."""
    blocker = psycopg.connect(brain.database.url)
    blocker.execute("SELECT FROM memories WHERE tenant_id = %s LIMIT 1", (LARGE,))
    with psycopg.connect(brain.database.url, autocommit=True) as interrupted:
        interrupted.execute("SET statement_timeout = '1500ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            interrupted.execute(
                sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(sql.Identifier(index_of(LARGE)))
            )
    blocker.close()
    assert indexes_of_partition(brain, valid=False) != []

    reindex(brain.database, LARGE)

    assert indexes_of_partition(brain, valid=False) == []
    assert index_of(LARGE) in indexes_of_partition(brain, valid=True)


def indexes_of_partition(brain: Brain, *, valid: bool) -> list[str]:
    with brain.database.as_owner() as connection:
        rows = connection.execute(
            """
            SELECT indexrelid::regclass::text FROM pg_index
            WHERE indrelid = %s::regclass AND indisvalid = %s
            """,
            (partition_of(LARGE), valid),
        )
        return [name for (name,) in rows]


def test_what_changes_during_the_move_is_caught_up_with(brain: Brain) -> None:
    """A transaction that began before the move inserts, deletes, changes and links, and commits during it."""
    tenant_id = new_tenant(brain.database)
    at = datetime(2020, 1, 1, tzinfo=UTC)
    kept, changed, deleted = (
        remembered.memory_id
        for remembered in brain.memories.remember_all(
            [
                NewMemory(tenant_id=tenant_id, text=text, occurred_at=at, embedding=tuple(vector.tolist()))
                for text, vector in zip(brain.questions[:3], brain.vectors, strict=False)
            ]
        )
    )
    other = psycopg.connect(brain.database.url)
    added = insert_like(other, tenant_id, kept)
    other.execute("DELETE FROM memories WHERE memory_id = %s", (deleted,))
    other.execute("UPDATE memories SET payload = '{\"new\": 1}' WHERE memory_id = %s", (changed,))
    other.execute(
        "INSERT INTO memory_links (tenant_id, source_id, target_id, weight, occurred_at) "
        "VALUES (%s, %s, %s, 1, %s)",
        (tenant_id, added, kept, at),
    )
    mover = threading.Thread(target=move, args=(brain.database, tenant_id))
    mover.start()
    wait_until_somebody_waits_for(brain.database, other.info.backend_pid)
    other.commit()
    other.close()
    mover.join()

    with brain.database.as_tenants([tenant_id]) as connection:
        rows = connection.execute(
            "SELECT memory_id, payload, tableoid::regclass::text FROM memories ORDER BY memory_id"
        ).fetchall()
        links = connection.execute("SELECT source_id, target_id FROM memory_links").fetchall()
    partition = partition_of(tenant_id)
    assert rows == [(kept, {}, partition), (changed, {"new": 1}, partition), (added, {}, partition)]
    assert links == [(added, kept)]


def insert_like(connection: Connection, tenant_id: str, memory_id: int) -> int:
    """Another memory that differs from this one only in what makes it another one."""
    (added,) = connection.execute(
        """
        INSERT INTO memories (tenant_id, occurred_at, text, content_digest, embedding, model_id)
        SELECT tenant_id, occurred_at, text || '!', sha256(content_digest), embedding, model_id
        FROM memories WHERE tenant_id = %s AND memory_id = %s RETURNING memory_id
        """,
        (tenant_id, memory_id),
    ).fetchone() or (0,)
    return int(added)


def move(database: Database, tenant_id: str) -> None:
    with database.as_owner() as connection:
        move_to_partition(connection, tenant_id)


def wait_until_somebody_waits_for(database: Database, pid: int) -> None:
    for _ in range(3000):
        with database.as_owner() as connection:
            waiting = connection.execute(
                "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", (pid,)
            ).rowcount
        if waiting:
            return
    raise AssertionError("nobody waits")


def test_an_index_that_misses_too_much_fails_loudly_and_does_not_serve(brain: Brain) -> None:
    """An index with two links a vector, which is what HNSW cannot do without more of."""
    name = sql.Identifier(index_of(LARGE))
    poor = sql.SQL(
        "DROP INDEX {0}; CREATE INDEX {0} ON {1} "
        "USING hnsw ((embedding::vector(384)) vector_cosine_ops) WITH (m = 2, ef_construction = 4)"
    ).format(name, sql.Identifier(partition_of(LARGE)))
    with brain.database.as_owner() as connection:
        connection.execute(poor)

    with pytest.raises(LowRecall, match="exact until a rebuild does better") as raised:
        indexes.rebuild(brain.database, LARGE, actor="test", embedder=brain.embedder)

    assert raised.value.rebuilt.proof.recall_at_10 < indexes.SUFFICIENT_RECALL
    assert brain.audited(PROVEN)[-1]["backend"] == "exact"
    assert brain.recall(0).cleanup_backend == "exact"

    with brain.database.as_owner() as connection:
        connection.execute(sql.SQL("ALTER INDEX {} SET (m = 16, ef_construction = 64)").format(name))
    assert indexes.rebuild(brain.database, LARGE, actor="test").proof.sufficient
    assert brain.recall(0).cleanup_backend == "hnsw"


def test_who_cannot_have_an_index_is_told_why(brain: Brain) -> None:
    silent, unindexed = new_tenants(brain.database, 2)
    with pytest.raises(NotIndexable, match="no embeddings yet"):
        indexes.promote(brain.database, silent, actor="test")
    with pytest.raises(NoIndex, match="SOMABRAIN_HNSW_THRESHOLD"):
        indexes.rebuild(brain.database, unindexed, actor="test")
    with pytest.raises(UnknownTenant):
        indexes.promote(brain.database, "nobody", actor="test")


def test_the_asset_rebuilds_what_there_is_promotes_the_rest_and_checks(
    brain: Brain, valkey: ValkeyServer
) -> None:
    knobs = settings_for(brain.database.url, valkey, hnsw_threshold=FEW)

    run = build_definitions(knobs).resolve_job_def("index_rebuild").execute_in_process(run_config=QUIETLY)

    assert checks_of(run)["every_index_finds_what_an_exact_search_finds"].passed
    (made,) = run.asset_materializations_for_node("ann_index")
    table = made.metadata["indexes"]
    assert isinstance(table, dg.TableMetadataValue)
    records = {record.data["tenant"]: record.data for record in table.records}
    assert records.keys() >= {LARGE, SMALL}
    assert {record["serves"] for record in records.values()} == {True}
    assert [tenant.backend for tenant in indexes.status(brain.database)[:2]] == ["hnsw", "hnsw"]
    assert brain.recall(0, SMALL).cleanup_backend == "hnsw"


def test_the_check_fails_where_an_index_misses_too_much(brain: Brain) -> None:
    rebuilt = indexes.rebuild(brain.database, LARGE, actor="test")
    low = replace(rebuilt, proof=replace(rebuilt.proof, recall_at_10=0.5))

    result = check_result([rebuilt, low])

    assert not result.passed
    assert result.description == f"Searched exactly until a rebuild does better: {LARGE} (0.500)"
    assert check_result([rebuilt]).passed
    assert check_result([]).passed
