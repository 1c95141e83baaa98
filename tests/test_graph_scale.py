"""Links at scale: 5,000 real memories, 20,000 links, and what links bring in is drawn by their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import chi2, norm

from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.weights import POSITION
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import story
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import Link, Memory
from somabrain_dagster.store.recalls import BY_LINK
from tests.brain import landed, new_tenant, said, weights_of
from tests.remembering import SECOND, EmbeddedOnce, logged, room

pytestmark = [pytest.mark.learning, pytest.mark.slow]

MEMORIES, BACK, LINKS = 5000, 5, 20_000
QUESTIONS, ALL = 4, 100
SURE = 1e-3
"""How often each test of proportions would fail on right draws, over all seeds; the seed is fixed."""


@dataclass(frozen=True)
class Linked:
    """A person's memories, each linked to those before it in its conversation, the nearer the stronger.

    Attributes:
        questions: what the person heard and said next.
        vectors: of the memories, (MEMORIES, d).
        links: weights by target, by source.
    """

    room: Memories
    database: Database
    embedder: Embedder
    tenant: str
    ids: list[int]
    questions: list[Memory]
    vectors: Floats
    links: Mapping[int, Mapping[int, float]]

    def recall(self, question: Memory, additions: int, k: int = 10) -> Recall:
        query = Query(
            tenant_id=self.tenant,
            text=question.text,
            k=k,
            as_of=question.occurred_at,
            graph_augment_max_additions=additions,
        )
        return self.room.recall(query)

    def by_links_alone(self, question: Memory, additions: int) -> list[int]:
        """The candidates that links alone brought in, whether or not they were returned, as logged."""
        row = logged(self.database, self.tenant, self.recall(question, additions, k=1).recall_id)
        candidates = zip(row["candidate_ids"], row["sources"], strict=True)
        return [memory_id for memory_id, sources in candidates if sources == BY_LINK]

    def activation(self, question: Memory) -> dict[int, float]:
        """One step of a walk from the ten nearest memories, from vectors and weights alone."""
        cosines = self.vectors @ self.embedder.embed([question.text])[0].astype(np.float64)
        seeds = sorted(range(len(cosines)), key=lambda place: (-cosines[place], self.ids[place]))[:10]
        powers = np.exp(cosines[seeds] / 0.1)
        reached: dict[int, float] = {}
        for place, power in zip(seeds, powers / powers.sum(), strict=True):
            targets = self.links.get(self.ids[place], {})
            for target, weight in targets.items():
                reached[target] = reached.get(target, 0.0) + power * weight / sum(targets.values())
        return reached


@pytest.fixture(scope="module")
def linked(shared_database: Database, minilm: EmbeddedOnce) -> Linked:
    tenant = new_tenant(shared_database)
    (person,) = read_chitchat(1).tenants
    told = story(tenant, read_chitchat(1).held[person], MEMORIES + 200)
    memories = room(shared_database, minilm)
    kept = told.memories[:MEMORIES]
    ids = [one.memory_id for one in memories.remember_all(kept)]
    of_conversation: dict[str | None, list[int]] = {}
    weights: dict[int, dict[int, float]] = {}
    for memory, memory_id in zip(kept, ids, strict=True):
        before = of_conversation.setdefault(memory.conversation_id, [])
        targets = {target: 1 / distance for distance, target in enumerate(before[: -BACK - 1 : -1], start=1)}
        targets.pop(memory_id, None)
        if targets:
            weights.setdefault(memory_id, targets)
        before.append(memory_id)
    at = dict(zip(ids, (memory.occurred_at for memory in kept), strict=True))
    links = [
        Link(tenant_id=tenant, source_id=source, target_id=target, weight=weight, occurred_at=at[source])
        for source, targets in weights.items()
        for target, weight in targets.items()
    ]
    assert memories.link_all(links) == len(links) >= LINKS
    last = kept[-1].occurred_at
    questions = [one for one in told.memories[MEMORIES:] if one.occurred_at > last + SECOND]
    vectors = minilm.embed([embedded_text(one.speaker, one.text) for one in kept]).astype(np.float64)
    return Linked(memories, shared_database, minilm, tenant, ids, questions, vectors, weights)


def reached(linked: Linked, question: Memory) -> dict[int, float]:
    """The activation of what links alone bring in, all of it."""
    activation = linked.activation(question)
    return {memory_id: activation[memory_id] for memory_id in linked.by_links_alone(question, ALL)}


def statistic(counts: Mapping[int, int], shares: Mapping[int, float]) -> tuple[float, int]:
    """Pearson's χ² of draws against shares, and its degrees of freedom; rare ones are counted together."""
    total, whole = sum(counts.values()), sum(shares.values())
    expected = {target: total * share / whole for target, share in shares.items()}
    common = [target for target, count in expected.items() if count >= 5]
    cells = [(counts.get(target, 0), expected[target]) for target in common]
    rest = total - sum(count for _, count in cells)
    if rest > 1e-9:
        cells.append((total - sum(count for count, _ in cells), rest))
    return sum((count - due) ** 2 / due for count, due in cells), len(cells) - 1


def test_what_a_single_admission_brings_in_is_proportional_to_the_weights_of_links(linked: Linked) -> None:
    drawn, uniform, freedom = 0.0, 0.0, 0
    for question in linked.questions[:QUESTIONS]:
        shares = reached(linked, question)
        assert len(shares) >= 5
        counts = dict.fromkeys(shares, 0)
        for _ in range(200):
            (one,) = linked.by_links_alone(question, 1)
            counts[one] += 1
        of_question, degrees = statistic(counts, shares)
        drawn += of_question
        freedom += degrees
        uniform += statistic(counts, dict.fromkeys(shares, 1.0))[0]
    assert freedom >= 5 * QUESTIONS
    assert drawn < chi2.isf(SURE, freedom)
    assert uniform > chi2.isf(1e-9, freedom), "equal chances would not be told apart"


def included(shares: Sequence[float]) -> Floats:
    """The chance of each to be among two that are drawn one after the other, in proportion."""
    p = np.array(shares) / sum(shares)
    odds = p / (1 - p)
    chances: Floats = p + p * (odds.sum() - odds)
    return chances


def test_two_admissions_are_drawn_one_after_the_other_without_replacement(linked: Linked) -> None:
    question = linked.questions[0]
    shares = reached(linked, question)
    counts = dict.fromkeys(shares, 0)
    times = 300
    for _ in range(times):
        one, other = linked.by_links_alone(question, 2)
        assert one != other
        counts[one] += 1
        counts[other] += 1
    chances = included(list(shares.values()))
    assert chances.sum() == pytest.approx(2)
    variance = times * chances * (1 - chances)
    deviations = np.abs(np.array(list(counts.values())) - times * chances) / np.sqrt(variance)
    often = variance >= 5
    assert often.sum() >= 3
    assert deviations[often].max() < norm.isf(SURE / 2 / often.sum())


@pytest.mark.parametrize("additions", [0, 1, 5, 10])
def test_links_alone_bring_in_as_many_as_they_may_and_no_more(linked: Linked, additions: int) -> None:
    for question in linked.questions[:10]:
        assert len(linked.by_links_alone(question, additions)) == min(
            additions, len(linked.by_links_alone(question, ALL))
        )


def test_a_heavier_beta_lets_links_return_more(linked: Linked) -> None:
    """β learns from feedback on what links brought in, and what is returned follows it."""
    beta = POSITION["beta"]
    questions = linked.questions[:20]

    def returned() -> int:
        top = (linked.recall(question, 10).hits for question in questions)
        return sum(hit.sources == ("links",) for hits in top for hit in hits)

    before, started = returned(), weights_of(linked.database, linked.tenant)[beta]
    for question in questions:
        recall = linked.recall(question, 10, k=ALL)
        brought = [hit for hit in recall.hits if hit.sources == ("links",)]
        best = max(brought, key=lambda hit: hit.features["graph"])
        landed(
            linked.database,
            [said(linked.tenant, recall_id=recall.recall_id, helpful=[{"memory": best.memory_id}])],
        )
    assert weights_of(linked.database, linked.tenant)[beta] > started
    assert returned() > before
