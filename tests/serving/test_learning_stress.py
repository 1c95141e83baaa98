"""Many agents at once through the service, and harm from outside: each learns alone, no other moves."""

import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import msgspec
import pytest

from somabrain_dagster.client import Refused, SomaBrain
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Kept, Story, judged, keep, question, story
from somabrain_dagster.store.verification import verify
from somabrain_dagster.traffic import NO_CANDIDATE
from tests.brain import assert_sound, learned
from tests.folding import folded
from tests.remembering import EmbeddedOnce, room
from tests.serving.running import Running

pytestmark = pytest.mark.learning

Tenant = tuple[str, str]

AGENTS, LOOPS, MEMORIES = 10, 100, 60
MANY, EVENTS, TOGETHER = 100, 1000, 250


def loops(service: Running, embedder: Embedder, key: str, told: Story, kept: Kept) -> None:
    """A hundred times: recall, see only one's own memories, say what helped, or rate where nothing did.

    Without additions by links nothing is drawn, so that what is recalled depends on the tenant alone.
    """
    with SomaBrain(service.url, key) as brain:
        for number in range(LOOPS):
            turn = told.turns[number % len(told.turns)]
            asked, right = told.memories[turn.question], kept.ids[turn.answer]
            query = msgspec.structs.replace(
                question(asked),
                graph_augment_max_additions=0,
                embedding=tuple(embedder.embed([asked.text])[0].tolist()),
            )
            recalled = brain.recall(**msgspec.to_builtins(query))
            hits = [hit["memory_id"] for hit in recalled["hits"]]
            assert set(hits) <= set(kept.ids)
            first = hits[:1] == [right]
            named = judged(asked, recalled["recall_id"], right, first)
            try:
                brain.feedback(**msgspec.to_builtins(named))
            except Refused as refused:
                if refused.problem.type != NO_CANDIDATE:
                    raise
                brain.feedback(**msgspec.to_builtins(judged(asked, recalled["recall_id"], None, first)))


def test_ten_agents_at_once_recall_their_own_and_learn_as_each_would_alone(
    service: Running, minilm: EmbeddedOnce
) -> None:
    """Ten real people's conversations, a hundred loops each, in parallel; then two of them again, alone."""
    data = read_chitchat(AGENTS)
    stories = [story(tenant, held, MEMORIES) for tenant, held in data.held.items()]
    assert all(told.turns for told in stories)
    memories = room(service.database, minilm)

    def enrolled(told: Story) -> tuple[str, Story, Kept]:
        tenant = f"agent-{uuid4().hex[:10]}"
        key = service.add_tenants([tenant])[tenant]
        own = told.of(tenant)
        return key, own, keep(memories, own)

    together = [enrolled(told) for told in stories]
    with ThreadPoolExecutor(AGENTS) as pool:
        list(pool.map(lambda agent: loops(service, minilm, *agent), together))
    alone = [enrolled(told) for told in stories[:2]]
    for agent in alone:
        loops(service, minilm, *agent)

    every = [learned(service.database, own.tenant_id) for _, own, _ in together]
    assert {one["feedback_seq"] for one in every} == {LOOPS}
    assert every[:2] == [learned(service.database, own.tenant_id) for _, own, _ in alone]
    assert len({tuple(one["weights"]) for one in every}) == AGENTS
    with service.database.snapshot() as connection:
        assert verify(connection).findings == []


def generated_utilities(tenant: int) -> list[float]:
    """What a tenant says, drawn at random, better at first for some: the fold is tested, not the tenant."""
    draw = random.Random(tenant)
    fall = draw.choice([None, 300, 700])
    return [
        draw.uniform(-1, 1) if fall is None else draw.uniform(*((0, 1) if number < fall else (-1, 0)))
        for number in range(EVENTS)
    ]


@pytest.mark.slow
def test_a_hundred_tenants_of_a_thousand_events_in_lists_at_once_learn_each_alone_and_exactly(
    service: Running,
) -> None:
    """More than the service lets wait: it refuses some for a while, and what is sent again lands once."""
    names = [f"heavy-{uuid4().hex[:8]}-{number}" for number in range(MANY)]
    keys = service.add_tenants(names)
    said = {name: generated_utilities(number) for number, name in enumerate(names)}

    def send(name: str) -> None:
        with SomaBrain(service.url, keys[name], timeout_seconds=60, attempts=100) as brain:
            for begin in range(0, EVENTS, TOGETHER):
                some = said[name][begin : begin + TOGETHER]
                answer = brain.feedback_all([{"session_id": "s", "utility": utility} for utility in some])
                assert [one.landed.seq for one in answer.results if one.landed is not None] == list(
                    range(begin + 1, begin + TOGETHER + 1)
                )

    with ThreadPoolExecutor(MANY // 4) as pool:
        list(pool.map(send, names))

    rolled_back = 0
    for name in names:
        path, trips = folded(said[name])
        rolled_back += len(trips)
        with SomaBrain(service.url, keys[name]) as brain:
            state = brain.state()
        assert (state.feedback_seq, state.version) == (EVENTS, EVENTS + len(trips))
        assert state.nanos == path[-1]
    assert rolled_back >= MANY // 3
    with service.database.snapshot() as connection:
        assert verify(connection).findings == []


OUTSIDE = ["1.0000001", "-1.5", "1e9", "-1e308", "1e308", '"1"', "true", "[1]"]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400"]


@pytest.mark.parametrize(
    ("number", "statuses"),
    [*((number, {422}) for number in OUTSIDE), *((number, {400, 422}) for number in NO_NUMBERS)],
)
@pytest.mark.parametrize("field", ["utility", "reward", "credit"])
def test_what_is_out_of_range_is_refused_and_moves_nothing(
    service: Running, tenant: Tenant, field: str, number: str, statuses: set[int]
) -> None:
    """What is no number in JSON makes no JSON; either way it is refused by name."""
    name, key = tenant
    body = {
        "utility": f'"utility": {number}',
        "reward": f'"utility": 0.5, "reward": {number}',
        "credit": f'"utility": 0.5, "recall_id": 1, "helpful": [{{"memory": 1, "credit": {number}}}]',
    }[field]
    with service.client(key) as client:
        client.post("/context/feedback", json={"session_id": "s", "utility": 0.5})
        before = learned(service.database, name)
        answer = client.post(
            "/context/feedback",
            content=f'{{"session_id": "s", {body}}}',
            headers={"content-type": "application/json"},
        )
    assert answer.status_code in statuses
    assert answer.json()["detail"]
    assert learned(service.database, name) == before


def test_one_that_is_out_of_range_among_many_is_refused_with_all_of_its_list(
    service: Running, tenant: Tenant
) -> None:
    name, key = tenant
    before = learned(service.database, name)
    with service.client(key) as client:
        answer = client.post(
            "/context/feedback",
            json=[{"session_id": "s", "utility": utility} for utility in (0.5, 2.0, 0.5)],
        )
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert learned(service.database, name) == before


def fed(brain: SomaBrain, utilities: Sequence[float]) -> None:
    answer = brain.feedback_all([{"session_id": "s", "utility": utility} for utility in utilities])
    assert all(one.landed is not None for one in answer.results)


@pytest.mark.parametrize("harm", [[-1.0] * 200, [1.0, -1.0] * 100, [-1.0] * 60 + [1.0] * 140])
def test_a_rollback_by_hand_brings_the_exact_weights_back_whatever_was_done(
    service: Running, tenant: Tenant, harm: list[float]
) -> None:
    """Generated harm after generated praise, of a third each, which is no round number of nano-units."""
    name, key = tenant
    with SomaBrain(service.url, key) as brain:
        fed(brain, [1 / 3] * 40)
        good = brain.state()
        fed(brain, harm)
        assert brain.state().nanos != good.nanos
        back = brain.roll_back(good.version)
    assert back.nanos == good.nanos
    assert math.isclose(back.weights["alpha"], 1.0 + 40 * 0.05 / 3, abs_tol=1e-7)
    assert_sound(service.database, name)
