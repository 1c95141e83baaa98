"""No recall returns another tenant's memory: by the query's own filter, and by row security alone."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.query import Mode, Query
from somabrain_dagster.memory.vectors import as_text
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.memories import LinkEnds, UnknownMemory
from somabrain_dagster.store.recalls import Backend, ask, candidates_query, read_bodies
from somabrain_dagster.store.steering import recollect
from tests.brain import new_tenant, new_tenants
from tests.remembering import SECOND, link, logged, messages, remember, room
from tests.test_row_security import assert_powerless

SAID = messages(60)
LATER = SAID[-1].occurred_at + SECOND
QUESTION = "Do you like music?"


def owners(database: Database, memory_ids: list[int]) -> set[str]:
    """Whose memories these are; each is somebody's."""
    with database.as_operator() as connection:
        rows = connection.execute(
            "SELECT tenant_id FROM memories WHERE memory_id = ANY (%s)", (memory_ids,)
        ).fetchall()
    assert len(rows) == len(memory_ids)
    return {tenant_id for (tenant_id,) in rows}


@given(
    lives=st.lists(
        st.lists(st.integers(0, len(SAID) - 1), min_size=1, max_size=12, unique=True), min_size=2, max_size=4
    ),
    asked=st.integers(0, len(SAID) - 1),
    mode=st.sampled_from(["rank", "sample"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_random_tenants_recall_only_their_own(
    shared_database: Database, minilm: Embedder, lives: list[list[int]], asked: int, mode: Mode, seed: int
) -> None:
    """Tenants that remember much the same, each linked through, ask what another remembers.

    Once as it is, and once by row security alone: with a filter that names them all.
    """
    memories = room(shared_database, minilm, seed)
    tenants = new_tenants(shared_database, len(lives))
    own: dict[str, list[int]] = {}
    for tenant, places in zip(tenants, lives, strict=True):
        own[tenant] = remember(memories, tenant, [SAID[place] for place in places])
        memories.link_all(
            [
                link(tenant, source, target, SAID[0].occurred_at)
                for source, target in zip(own[tenant], own[tenant][1:], strict=False)
            ]
        )
    for tenant in tenants:
        recall = memories.recall(
            Query(tenant_id=tenant, text=SAID[asked].text, k=100, as_of=LATER, mode=mode)
        )
        assert sorted(hit.memory_id for hit in recall.hits) == sorted(own[tenant])
        row = logged(shared_database, tenant, recall.recall_id)
        assert owners(shared_database, row["candidate_ids"]) == {tenant}
        embedding = as_text(minilm.embed([SAID[asked].text])[0])
        with shared_database.as_tenants([tenant]) as connection:
            seen = seen_by_every_tenants_query(connection, tenants, "exact", embedding, LATER)
        assert seen == set(own[tenant])


def seen_by_every_tenants_query(
    connection: Connection, tenants: list[str], backend: Backend, embedding: str, as_of: datetime
) -> set[int]:
    """What the store's own query finds when its filter names all of these tenants in place of one."""
    filtered = candidates_query(backend, 384)
    query = filtered.replace("tenant_id = %(tenant_id)s", "tenant_id = ANY (%(tenants)s)")
    assert filtered.count("%(tenant_id)s") >= 6
    assert "%(tenant_id)s" not in query
    rows = connection.execute(
        query.encode(),
        {
            "tenants": tenants,
            "text": QUESTION,
            "embedding": embedding,
            "as_of": as_of,
            "namespaces": None,
            "since": None,
        },
    )
    return {row[0] for row in rows}


@pytest.mark.parametrize("backend", ["exact", "hnsw"])
def test_row_security_alone_keeps_tenants_apart(
    shared_database: Database, minilm: Embedder, backend: Backend
) -> None:
    memories = room(shared_database, minilm)
    tenants = new_tenants(shared_database, 3)
    own = {tenant: remember(memories, tenant, SAID[:15]) for tenant in tenants}
    for tenant, (source, *_, target) in own.items():
        memories.link(link(tenant, source, target, SAID[0].occurred_at))
    embedding = as_text(minilm.embed([QUESTION])[0])

    for tenant in tenants:
        with shared_database.as_tenants([tenant]) as connection:
            assert_powerless(connection)
            seen = seen_by_every_tenants_query(connection, tenants, backend, embedding, LATER)
        assert seen == set(own[tenant])
    with shared_database.as_tenants([]) as connection:
        assert_powerless(connection)
        assert seen_by_every_tenants_query(connection, tenants, backend, embedding, LATER) == set()
    with shared_database.as_operator() as connection:
        assert_powerless(connection)
        seen = seen_by_every_tenants_query(connection, tenants, backend, embedding, LATER)
    assert {tenant for tenant in tenants if seen & set(own[tenant])} == set(tenants)


def test_the_querys_own_filter_alone_keeps_tenants_apart(shared_database: Database, minilm: Embedder) -> None:
    """As an operator, whom row security shows all tenants."""
    memories = room(shared_database, minilm)
    one, other = new_tenants(shared_database, 2)
    own = {tenant: remember(memories, tenant, SAID[:15]) for tenant in (one, other)}
    with shared_database.as_operator() as connection:
        rows = connection.execute(
            candidates_query("exact", 384).encode(),
            {
                "tenant_id": one,
                "text": QUESTION,
                "embedding": as_text(minilm.embed([QUESTION])[0]),
                "as_of": LATER,
                "namespaces": None,
                "since": None,
            },
        ).fetchall()
        assert {row[0] for row in rows} == set(own[one])
        assert {row[0] for row in read_bodies(connection, one, own[one] + own[other])} == set(own[one])
        assert recollect(connection, one, own[one] + own[other]).embeddings.keys() == set(own[one])


def test_nobody_asks_for_another(shared_database: Database) -> None:
    one, other = new_tenants(shared_database, 2)
    with shared_database.as_tenants([one]) as connection:
        assert ask(connection, one).state.tenant_id == one
        with pytest.raises(UnknownTenant):
            ask(connection, other)


def test_a_link_of_another_tenant_is_out_of_reach(shared_database: Database, minilm: Embedder) -> None:
    memories = room(shared_database, minilm)
    one, other = new_tenants(shared_database, 2)
    ids = remember(memories, one, SAID[:2])
    remember(memories, other, SAID[:2])
    memories.link(link(one, ids[0], ids[1], LATER))
    assert not memories.unlink(LinkEnds(tenant_id=other, source_id=ids[0], target_id=ids[1]))
    with pytest.raises(UnknownMemory):
        memories.link(link(other, ids[0], ids[1], LATER))
    assert memories.unlink(LinkEnds(tenant_id=one, source_id=ids[0], target_id=ids[1]))


def test_the_log_of_recalls_is_the_tenants_own(shared_database: Database, minilm: Embedder) -> None:
    memories, one, other = (
        room(shared_database, minilm),
        new_tenant(shared_database),
        new_tenant(shared_database),
    )
    remember(memories, one, SAID[:5])
    recall = memories.recall(Query(tenant_id=one, text=QUESTION))
    for tenant, rows in ((one, 1), (other, 0)):
        with shared_database.as_tenants([tenant]) as connection:
            found = connection.execute("SELECT FROM recalls WHERE recall_id = %s", (recall.recall_id,))
            assert found.rowcount == rows
