"""Links: what is remembered and linked is recalled, in proportion, within limits, and learned from."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from somabrain_dagster.learning.weights import POSITION
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Hit
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import LinkEnds, UnknownMemory
from somabrain_dagster.store.scales import read_scales
from tests.brain import landed, new_tenant, new_tenants, said, weights_of
from tests.remembering import SECOND, link, messages, remember, room

pytestmark = pytest.mark.learning

SAID = messages(100)
LATER = SAID[-1].occurred_at + SECOND
QUESTION = "Where did you go to school?"


def ask(tenant: str, additions: int | None = None, k: int = 100) -> Query:
    return Query(tenant_id=tenant, text=QUESTION, k=k, as_of=LATER, graph_augment_max_additions=additions)


def by_links_alone(hits: tuple[Hit, ...]) -> list[Hit]:
    return [hit for hit in hits if hit.sources == ("links",)]


@dataclass(frozen=True)
class Linked:
    """A tenant with 100 memories, two of whose seeds have links to memories that nothing else brings in.

    Attributes:
        activation: of the linked memories, by id, worked out by hand.
    """

    memories: Memories
    tenant: str
    activation: dict[int, float]
    graph_scale: float


def unreached(memories: Memories, tenant: str, ids: list[int]) -> list[int]:
    """Memories that are no candidates, for want of a link."""
    found = {hit.memory_id for hit in memories.recall(ask(tenant)).hits}
    return [memory_id for memory_id in ids if memory_id not in found]


def nearest(embedder: Embedder, ids: list[int]) -> list[tuple[int, float]]:
    """The ten memories nearest to the question, with their cosines."""
    (question,) = embedder.embed([QUESTION]).astype(np.float64)
    vectors = embedder.embed([embedded_text(one.speaker, one.text) for one in SAID]).astype(np.float64)
    cosines = (vectors @ question).tolist()
    return sorted(zip(ids, cosines, strict=True), key=lambda pair: (-pair[1], pair[0]))[:10]


@pytest.fixture(scope="module")
def linked(shared_database: Database, minilm: Embedder) -> Linked:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID)
    away = unreached(memories, tenant, ids)
    assert len(away) >= 5
    seeds = nearest(minilm, ids)
    powers = {seed: np.exp(cosine / 0.1) for seed, cosine in seeds}
    first, second = seeds[0][0], seeds[2][0]
    weights = {
        first: dict(zip(away[:4], (1.0, 2.0, 3.0, 4.0), strict=True)),
        second: dict(zip(away[2:5], (5.0, 1.0, 2.0), strict=True)),
    }
    assert (
        memories.link_all(
            [
                link(tenant, seed, target, LATER - SECOND, weight)
                for seed, targets in weights.items()
                for target, weight in targets.items()
            ]
        )
        == 7
    )
    activation = dict.fromkeys(away[:5], 0.0)
    for seed, targets in weights.items():
        for target, weight in targets.items():
            activation[target] += powers[seed] / sum(powers.values()) * weight / sum(targets.values())
    with shared_database.as_tenants([tenant]) as connection:
        scale_version = memories.recall(ask(tenant)).scale_version
        graph_scale = read_scales(connection, scale_version).values[POSITION["beta"]]
    return Linked(memories, tenant, activation, graph_scale)


def test_remember_link_recall_brings_the_linked_memory_in(
    shared_database: Database, minilm: Embedder
) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID)
    target = unreached(memories, tenant, ids)[0]
    seed = nearest(minilm, ids)[0][0]

    assert memories.link(link(tenant, seed, target, LATER - SECOND))
    (brought,) = by_links_alone(memories.recall(ask(tenant)).hits)
    assert brought.memory_id == target
    assert brought.text == SAID[ids.index(target)].text
    assert brought.features["graph"] > 0
    assert brought.contributions["graph"] > 0

    assert not memories.link(link(tenant, seed, target, LATER - SECOND))
    assert memories.unlink(LinkEnds(tenant_id=tenant, source_id=seed, target_id=target))
    assert by_links_alone(memories.recall(ask(tenant)).hits) == []
    assert not memories.unlink(LinkEnds(tenant_id=tenant, source_id=seed, target_id=target))


def test_a_link_leads_one_way(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID)
    target, seed = unreached(memories, tenant, ids)[0], nearest(minilm, ids)[0][0]
    memories.link(link(tenant, target, seed, LATER - SECOND))
    hits = memories.recall(ask(tenant)).hits
    assert target not in {hit.memory_id for hit in hits}
    assert all(hit.features["graph"] == 0 for hit in hits)


def test_a_link_lifts_a_memory_that_was_found_anyway(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID)
    (first, _), *_, (last, _) = nearest(minilm, ids)
    before = {hit.memory_id: hit for hit in memories.recall(ask(tenant)).hits}
    memories.link(link(tenant, first, last, LATER - SECOND))
    after = {hit.memory_id: hit for hit in memories.recall(ask(tenant)).hits}
    assert after[last].sources == before[last].sources
    assert after[last].score > before[last].score
    assert {memory_id: hit.score for memory_id, hit in after.items() if memory_id != last} == {
        memory_id: hit.score for memory_id, hit in before.items() if memory_id != last
    }


def test_the_graph_feature_is_one_step_of_a_walk_from_the_seeds(linked: Linked) -> None:
    hits = by_links_alone(linked.memories.recall(ask(linked.tenant)).hits)
    assert {hit.memory_id: hit.features["graph"] * linked.graph_scale for hit in hits} == pytest.approx(
        linked.activation, rel=1e-5
    )


def test_a_single_admission_is_proportional_to_the_links(linked: Linked) -> None:
    """Seeded, so that the decision is the same each time; equal chances would be told apart."""
    targets = list(linked.activation)
    counts = dict.fromkeys(targets, 0)
    repetitions = 300
    for _ in range(repetitions):
        (brought,) = by_links_alone(linked.memories.recall(ask(linked.tenant, additions=1)).hits)
        counts[brought.memory_id] += 1
    observed = np.array([counts[target] for target in targets])
    shares = np.array([linked.activation[target] for target in targets])
    expected = repetitions * shares / shares.sum()
    assert expected.min() >= 5
    assert chisquare(observed, expected).pvalue > 0.001
    assert chisquare(observed).pvalue < 1e-6


@given(additions=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_links_alone_never_bring_in_more_than_the_maximum(linked: Linked, additions: int) -> None:
    brought = by_links_alone(linked.memories.recall(ask(linked.tenant, additions)).hits)
    assert len(brought) == min(additions, len(linked.activation))
    assert len({hit.memory_id for hit in brought}) == len(brought)
    assert {hit.memory_id for hit in brought} <= linked.activation.keys()


@pytest.mark.parametrize("maximum", [0, 1, 3])
def test_the_setting_is_the_maximum_where_the_question_has_none(
    linked: Linked, shared_database: Database, minilm: Embedder, maximum: int
) -> None:
    memories = room(shared_database, minilm, graph_augment_max_additions=maximum)
    assert len(by_links_alone(memories.recall(ask(linked.tenant)).hits)) == maximum


def test_links_join_memories_of_one_tenant_only(shared_database: Database, minilm: Embedder) -> None:
    memories = room(shared_database, minilm)
    one, other = new_tenants(shared_database, 2)
    own, strange = remember(memories, one, SAID[:2]), remember(memories, other, SAID[:2])
    for source, target in ((own[0], strange[0]), (strange[0], own[0]), (strange[0], strange[1])):
        with pytest.raises(UnknownMemory, match=rf"tenant '{one}' has no memory {strange[0]}"):
            memories.link_all([link(one, own[0], own[1], LATER), link(one, source, target, LATER)])
    with shared_database.as_operator() as connection:
        assert (
            connection.execute(
                "SELECT FROM memory_links WHERE tenant_id = ANY (%s)", ([one, other],)
            ).rowcount
            == 0
        )


def test_feedback_on_what_links_brought_in_teaches_the_weight_of_links(
    shared_database: Database, minilm: Embedder
) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    ids = remember(memories, tenant, SAID)
    target, seed = unreached(memories, tenant, ids)[0], nearest(minilm, ids)[0][0]
    memories.link(link(tenant, seed, target, LATER - SECOND))

    def place() -> int:
        return [hit.memory_id for hit in memories.recall(ask(tenant)).hits].index(target)

    before, start = place(), weights_of(shared_database, tenant)
    for _ in range(20):
        recall = memories.recall(ask(tenant))
        landed(
            shared_database,
            [said(tenant, recall_id=recall.recall_id, helpful=[{"memory": target}])],
        )
    assert weights_of(shared_database, tenant)[POSITION["beta"]] > start[POSITION["beta"]]
    assert place() < before
