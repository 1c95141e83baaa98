"""Context assembly: of what a question brings to mind, what is worth its room, on real messages."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.learning.utility import Room, Terms
from somabrain_dagster.learning.weights import NAMES, UTILITY_WEIGHTS, to_nanos
from somabrain_dagster.memory.context import (
    Context,
    InMind,
    assemble_context,
    candidates_of,
    compose,
    record_usage,
)
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.operations.tokens import MiniLMTokens
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.trials import Overlay
from somabrain_dagster.store.usage import TokenUsage, record_context, record_tokens_once
from somabrain_dagster.store.working_memory import Noted, WorkingMemory
from tests.brain import new_tenant
from tests.remembering import memory_of, messages, remember, room

SAID = messages(100)
NOW = SAID[60].occurred_at
"""The as_of of most questions here: the message at 60 and those after it do not exist yet."""
QUESTION = "Do you like music?"
ROOM = Room(budget=200, capacity=10)
TOKENS = MiniLMTokens()


@dataclass(frozen=True)
class Life:
    """A tenant that remembers 100 messages."""

    database: Database
    memories: Memories
    tenant: str
    ids: list[int]

    def ask(self, text: str = QUESTION, **fields: Any) -> Query:
        return Query(**{"tenant_id": self.tenant, "text": text, "k": 50, "as_of": NOW, **fields})

    def context(self, query: Query | None = None, within: Room = ROOM, **options: Any) -> Context:
        return assemble_context(self.database, self.memories, TOKENS, query or self.ask(), within, **options)

    def usage(self, session: str) -> list[tuple[Any, ...]]:
        with self.database.as_tenants([self.tenant]) as connection:
            return connection.execute(
                """
                SELECT recall_id, tokens, tokenizer, occurred_at FROM token_usage
                WHERE tenant_id = %s AND session_id = %s ORDER BY usage_id
                """,
                (self.tenant, session),
            ).fetchall()


@pytest.fixture(scope="module")
def life(shared_database: Database, minilm: Embedder) -> Life:
    """Nothing is remembered or forgotten after this; recalls and usage are added."""
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    return Life(shared_database, memories, tenant, remember(memories, tenant, SAID))


@pytest.fixture(scope="module")
def recall(life: Life) -> Recall:
    return life.memories.recall(life.ask())


@pytest.fixture(scope="module")
def working(valkey: ValkeyServer) -> Iterator[WorkingMemory]:
    with WorkingMemory(valkey.url, 8, 3600) as opened:
        yield opened


@pytest.fixture
def session() -> str:
    return f"session-{uuid4().hex[:12]}"


def shifted(**units: float) -> Overlay:
    """An arm that shifts weights by so many units."""
    return Overlay("arm", to_nanos([units.get(name, 0.0) for name in NAMES]))


def ids(context: Context) -> set[int]:
    return {one.candidate.memory_id for one in context.memories}


def considered(context: Context) -> set[int]:
    return ids(context) | {left.candidate.memory_id for left in context.left_out}


def weighing(recall: Recall, **units: float) -> Recall:
    """The same recall under other weights of utility."""
    return replace(recall, weights={**recall.weights, **units})


# What U is


weights = st.fixed_dictionaries(
    {one.name: st.floats(one.low, one.high, allow_subnormal=False) for one in UTILITY_WEIGHTS}
)
rooms = st.builds(Room, st.integers(1, 600), st.integers(1, 30))


@settings(max_examples=100, deadline=None)
@given(weights, rooms)
def test_a_context_keeps_within_its_room_and_its_utility_is_the_formula(
    recall: Recall, units: dict[str, float], within: Room
) -> None:
    context = compose(weighing(recall, **units), candidates_of(recall, [], 0.0), TOKENS, within)
    lengths = TOKENS.count([one.candidate.text for one in context.memories])

    assert lengths == [one.tokens for one in context.memories]
    assert TOKENS.count([context.text]) == [context.tokens] == [sum(lengths)]
    assert context.tokens <= within.budget
    assert len(context.memories) <= within.capacity

    gain = 1 - prod(1 - one.candidate.probability for one in context.memories)
    length, memory = sum(lengths) / within.budget, len(lengths) / within.capacity
    assert context.terms.context_gain == pytest.approx(gain)
    assert context.terms == Terms(context.terms.context_gain, length, memory)
    u = units["lambda"] * gain - units["mu"] * length - units["nu"] * memory
    assert context.utility == pytest.approx(u)
    assert context.utility >= 0


@settings(max_examples=100, deadline=None)
@given(weights, rooms)
def test_every_candidate_is_in_it_or_left_out_for_a_reason_that_holds(
    recall: Recall, units: dict[str, float], within: Room
) -> None:
    candidates = candidates_of(recall, [], 0.0)
    context = compose(weighing(recall, **units), candidates, TOKENS, within)
    held = [one.candidate for one in context.memories]
    others = [one.candidate for one in context.left_out]
    assert sorted(one.memory_id for one in [*held, *others]) == sorted(hit.memory_id for hit in recall.hits)
    assert [one.gain for one in others] == sorted((one.gain for one in others), reverse=True)
    gain = context.terms.context_gain
    for left in context.left_out:
        more = 1 - (1 - gain) * (1 - left.candidate.gain)
        change = (
            units["lambda"] * (more - gain)
            - units["mu"] * left.tokens / within.budget
            - units["nu"] / within.capacity
        )
        assert left.marginal_utility == pytest.approx(change, abs=1e-12)
        if left.reason == "adds_nothing":
            assert change <= 1e-12
        elif left.reason == "too_long":
            assert change > -1e-12
            assert left.tokens > within.budget - context.tokens
        else:
            assert change > -1e-12
            assert len(held) == within.capacity


def test_each_reason_occurs(recall: Recall) -> None:
    candidates = candidates_of(recall, [], 0.0)
    eager = weighing(recall, **{"lambda": 5.0, "mu": 0.01, "nu": 0.01})
    frugal = weighing(recall, **{"lambda": 0.1, "mu": 5.0, "nu": 5.0})

    def reasons(asked: Recall, within: Room) -> set[str]:
        return {left.reason for left in compose(asked, candidates, TOKENS, within).left_out}

    assert reasons(frugal, ROOM) == {"adds_nothing"}
    assert "no_place" in reasons(eager, Room(budget=10_000, capacity=2))
    assert "too_long" in reasons(eager, Room(budget=10, capacity=100))


# λ, μ and ν of the tenant, through the whole path


def test_the_weights_are_the_tenants(life: Life) -> None:
    context = life.context()
    assert (context.weights.lambda_, context.weights.mu, context.weights.nu) == tuple(
        context.recall.weights[one.name] for one in UTILITY_WEIGHTS
    )
    assert [context.recall.weights[one.name] for one in UTILITY_WEIGHTS] == [
        one.start for one in UTILITY_WEIGHTS
    ]


def test_gain_that_counts_more_returns_more(life: Life) -> None:
    little, start, much = (life.context(overlay=shifted(**{"lambda": shift})) for shift in (-0.9, 0.0, 4.0))
    assert little.weights.lambda_ == pytest.approx(0.1)
    assert len(little.memories) < len(start.memories) <= len(much.memories)
    assert little.terms.context_gain < start.terms.context_gain <= much.terms.context_gain


def test_length_that_costs_more_returns_less(life: Life) -> None:
    start, dear, dearest = (life.context(overlay=shifted(mu=shift)) for shift in (0.0, 0.2, 4.9))
    assert dear.weights.mu == pytest.approx(0.3)
    assert start.tokens > dear.tokens > dearest.tokens


def test_memories_that_cost_more_are_fewer(life: Life) -> None:
    start, dear, dearest = (life.context(overlay=shifted(nu=shift)) for shift in (0.0, 0.15, 4.95))
    assert dear.weights.nu == pytest.approx(0.2)
    assert len(start.memories) > len(dear.memories) > len(dearest.memories)


def test_a_tenant_whose_state_says_so_gets_shorter_contexts(
    shared_database: Database, minilm: Embedder, life: Life
) -> None:
    memories = room(shared_database, minilm)
    frugal = new_tenant(shared_database, {"start": {"mu": 2.0}})
    remember(memories, frugal, SAID)
    query = Query(tenant_id=frugal, text=QUESTION, k=50, as_of=NOW)
    context = assemble_context(shared_database, memories, TOKENS, query, ROOM)
    assert context.weights.mu == 2.0
    assert context.tokens < life.context().tokens


# How it reads


def test_it_reads_as_it_was_said(life: Life) -> None:
    """By time, who says it before what is said; nothing of it is later than as_of."""
    context = life.context()
    position = {memory_id: place for place, memory_id in enumerate(life.ids)}
    places = [position[one.candidate.memory_id] for one in context.memories]
    assert len(places) > 1
    assert places == sorted(places)
    assert max(places) < 60
    assert context.text == "\n".join(f"{SAID[place].speaker}: {SAID[place].text}" for place in places)


def test_a_speaker_who_is_unknown_is_not_made_up(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    memories.remember(memory_of(tenant, SAID[0], speaker=None))
    query = Query(tenant_id=tenant, text=SAID[0].text)
    assert assemble_context(shared_database, memories, TOKENS, query, ROOM).text == SAID[0].text


def test_who_remembers_nothing_gets_an_empty_context(shared_database: Database, minilm: Embedder) -> None:
    tenant = new_tenant(shared_database)
    query = Query(tenant_id=tenant, text=QUESTION, session_id="session-1")
    context = assemble_context(shared_database, room(shared_database, minilm), TOKENS, query, ROOM)
    assert (context.text, context.memories, context.left_out, context.tokens) == ("", (), (), 0)
    assert (context.terms, context.utility) == (Terms(0.0, 0.0, 0.0), 0.0)
    with shared_database.as_tenants([tenant]) as connection:
        assert connection.execute("SELECT FROM token_usage WHERE tenant_id = %s", (tenant,)).rowcount == 0
        assert connection.execute("SELECT FROM recalls WHERE tenant_id = %s", (tenant,)).rowcount == 1


# The tokens that a session used


def test_the_tokens_of_a_recall_are_recorded_once(life: Life, session: str) -> None:
    first, second = (life.context(life.ask(session_id=session)) for _ in range(2))
    expected = [(one.recall.recall_id, one.tokens, "all-MiniLM-L6-v2", NOW) for one in (first, second)]
    assert life.usage(session) == expected
    assert not record_usage(life.database, first, session)
    shorter = compose(first.recall, candidates_of(first.recall, [], 0.0), TOKENS, Room(50, 2))
    assert not record_usage(life.database, shorter, session)
    assert life.usage(session) == expected


def test_who_records_at_once_records_once(life: Life, session: str) -> None:
    """The second one waits until it can see whether the first has recorded."""
    context = life.context()
    used = TokenUsage(
        tenant_id=life.tenant,
        session_id=session,
        tokens=context.tokens,
        tokenizer=context.tokenizer,
        occurred_at=NOW,
    )
    with ThreadPoolExecutor(1) as pool:
        with life.database.as_tenants([life.tenant]) as connection:
            assert record_context(connection, used, context.recall.recall_id)
            second = pool.submit(record_usage, life.database, context, session)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
        assert second.result() is False
    assert len(life.usage(session)) == 1


def test_a_session_with_contexts_can_still_be_counted_as_a_whole(life: Life, session: str) -> None:
    context = life.context(life.ask(session_id=session))
    whole = TokenUsage(
        tenant_id=life.tenant,
        session_id=session,
        tokens=1000,
        tokenizer=context.tokenizer,
        occurred_at=NOW,
    )
    for added in (1, 0):
        with life.database.as_tenants([life.tenant]) as connection:
            assert record_tokens_once(connection, [whole]) == added
    assert [tokens for _, tokens, *_ in life.usage(session)] == [context.tokens, 1000]


def test_without_a_session_nothing_is_recorded(life: Life) -> None:
    def used() -> int:
        with life.database.as_tenants([life.tenant]) as connection:
            return connection.execute("SELECT FROM token_usage").rowcount

    before = used()
    assert life.context().tokens > 0
    assert used() == before


# What the session has in mind


def in_mind(life: Life, places: Sequence[int], credits: Sequence[float]) -> list[InMind]:
    return [
        InMind(
            memory_id=life.ids[place],
            occurred_at=SAID[place].occurred_at,
            text=SAID[place].text,
            credit=credit,
        )
        for place, credit in zip(places, credits, strict=True)
    ]


@given(
    st.dictionaries(st.integers(0, 99), st.floats(0.01, 1), max_size=8), st.floats(0, 1), st.integers(0, 50)
)
def test_gains_mix_the_policy_and_the_mind_and_stay_a_distribution(
    life: Life, recall: Recall, credits: dict[int, float], share: float, k: int
) -> None:
    fewer = replace(recall, hits=recall.hits[:k])
    mind = in_mind(life, list(credits), list(credits.values()))
    candidates = {one.memory_id: one for one in candidates_of(fewer, mind, share)}
    p = {hit.memory_id: hit.probability for hit in fewer.hits}
    assert candidates.keys() == p.keys() | {life.ids[place] for place in credits}
    for memory_id, one in candidates.items():
        credit = credits.get(life.ids.index(memory_id), 0.0)
        probability = p.get(memory_id, 0.0)
        mixed = (1 - share) * probability + share * credit / sum(credits.values()) if credits else probability
        assert one.gain == pytest.approx(mixed)
    assert sum(one.gain for one in candidates.values()) <= 1 + 1e-9


def test_what_is_in_mind_is_a_candidate_beside_the_hits(
    life: Life, working: WorkingMemory, session: str
) -> None:
    query = life.ask(session_id=session, k=5)
    without = life.context(query)
    apart = next(memory_id for memory_id in life.ids if memory_id not in considered(without))
    working.remember(life.tenant, session, [Noted(apart)])

    unasked = life.context(query, working=working)
    assert (unasked.working_memory, ids(unasked)) == ("off", ids(without))
    asked = life.context(query, working=working, working_share=0.5)
    assert asked.working_memory == "offered"
    assert apart in ids(asked)
    (one,) = [one.candidate for one in asked.memories if one.candidate.memory_id == apart]
    assert (one.probability, one.in_mind, one.gain) == (0.0, 1.0, 0.5)


def test_what_the_question_may_not_see_is_not_in_mind(
    life: Life, working: WorkingMemory, session: str
) -> None:
    """Later memories, older ones than asked for, other namespaces and other tenants are inert."""
    since = SAID[30].occurred_at
    unseen = [life.ids[60], life.ids[99], life.ids[29], 2**62]
    working.remember(life.tenant, session, [Noted(memory_id) for memory_id in unseen])
    options: dict[str, Any] = {"working": working, "working_share": 1.0}
    query = life.ask(session_id=session, since=since)
    blind = life.context(query, **options)
    assert not considered(blind) & set(unseen)
    assert [one.candidate for one in blind.memories] == [
        one.candidate for one in life.context(query).memories
    ]
    working.remember(life.tenant, session, [Noted(life.ids[30])])
    assert ids(life.context(query, **options)) == {life.ids[30]}
    elsewhere = life.context(life.ask(session_id=session, namespaces=("elsewhere",)), **options)
    assert (elsewhere.memories, elsewhere.left_out) == ((), ())


def test_another_tenants_memory_is_never_in_mind(
    shared_database: Database, minilm: Embedder, life: Life, working: WorkingMemory, session: str
) -> None:
    memories, other = room(shared_database, minilm), new_tenant(shared_database)
    own = remember(memories, other, SAID[:5])
    working.remember(other, session, [Noted(memory_id) for memory_id in life.ids[:5]])
    query = Query(tenant_id=other, text=QUESTION, session_id=session)
    context = assemble_context(
        shared_database, memories, TOKENS, query, ROOM, working=working, working_share=1.0
    )
    assert considered(context) <= set(own)


def test_a_context_is_assembled_without_a_working_memory_that_is_down(life: Life, session: str) -> None:
    with WorkingMemory("redis://127.0.0.1:1/0", 8, 3600) as down:
        context = life.context(life.ask(session_id=session), working=down, working_share=0.5)
    assert context.working_memory == "unavailable"
    assert ids(context) == ids(life.context())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_working_share_is_a_probability(life: Life, working: WorkingMemory, share: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \[0, 1\]"):
        life.context(life.ask(session_id="s"), working=working, working_share=share)


def test_a_working_share_needs_a_session_and_a_working_memory(life: Life, working: WorkingMemory) -> None:
    with pytest.raises(ValueError, match="needs a working memory and a session"):
        life.context(life.ask(session_id="s"), working_share=0.5)
    with pytest.raises(ValueError, match="needs a working memory and a session"):
        life.context(working=working, working_share=0.5)
