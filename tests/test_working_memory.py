"""Working memory: the few memories that a session has in mind, on a real Redis-protocol server."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.landing import land_and_remember
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.working import entering
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landing import Landed, Outcome, Refused
from somabrain_dagster.store.working_memory import (
    Addition,
    Growth,
    Noted,
    WorkingMemory,
    WorkingMemoryUnavailable,
)
from tests.brain import CONFIGURATION, changes_of, new_tenant, said
from tests.remembering import messages, remember, room

CAPACITY = 5
DAY = 86_400


@pytest.fixture(scope="module")
def working(valkey: ValkeyServer) -> Iterator[WorkingMemory]:
    with WorkingMemory(valkey.url, CAPACITY, DAY) as opened:
        yield opened


@pytest.fixture
def tenant() -> str:
    return new_name()


@pytest.fixture
def unreachable() -> Iterator[WorkingMemory]:
    """Where no server listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with WorkingMemory(f"redis://127.0.0.1:{held.getsockname()[1]}/0", CAPACITY, DAY) as opened:
            yield opened


def new_name() -> str:
    return f"tenant-{uuid4().hex[:12]}"


def noted(*memory_ids: int) -> list[Noted]:
    return [Noted(memory_id) for memory_id in memory_ids]


def ids(working: WorkingMemory, tenant: str, session: str = "s") -> list[int]:
    return [one.memory_id for one in working.recent(tenant, session)]


def keys_of(valkey: ValkeyServer, tenant: str) -> list[str]:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        return sorted(str(key) for key in client.scan_iter(f"somabrain:{{{tenant}}}:*"))


# What stays, and in which order


def test_the_latest_comes_first(working: WorkingMemory, tenant: str) -> None:
    working.remember(tenant, "s", [Noted(7, 0.5), Noted(3, 0.25)])
    working.remember(tenant, "s", [Noted(2**63 - 1)])
    assert working.recent(tenant, "s") == [Noted(2**63 - 1, 1.0), Noted(3, 0.25), Noted(7, 0.5)]


def test_the_oldest_leaves(working: WorkingMemory, tenant: str) -> None:
    assert working.remember(tenant, "s", noted(1, 2, 3, 4, 5)) == Growth(5, 0, 0, size=5)
    assert working.remember(tenant, "s", noted(6, 7)) == Growth(2, 0, 2, size=5)
    assert ids(working, tenant) == [7, 6, 5, 4, 3]


def test_a_memory_that_comes_again_is_refreshed_and_not_doubled(working: WorkingMemory, tenant: str) -> None:
    working.remember(tenant, "s", noted(1, 2, 3, 4, 5))
    assert working.remember(tenant, "s", [Noted(1, 0.1)]) == Growth(0, 1, 0, size=5)
    assert working.recent(tenant, "s")[0] == Noted(1, 0.1)
    working.remember(tenant, "s", noted(6))
    assert ids(working, tenant) == [6, 1, 5, 4, 3]


def test_growth_is_counted_before_the_cap(working: WorkingMemory, tenant: str) -> None:
    assert working.remember(tenant, "s", noted(*range(1, 21))) == Growth(20, 0, 15, size=5)
    assert ids(working, tenant) == [20, 19, 18, 17, 16]


def test_nothing_brings_nothing(valkey: ValkeyServer, working: WorkingMemory, tenant: str) -> None:
    assert working.remember(tenant, "s", []) == Growth(0, 0, 0, size=0)
    assert keys_of(valkey, tenant) == []
    assert working.recent(tenant, "s") == []
    assert not working.forget(tenant, "s")
    working.remember(tenant, "s", noted(1))
    assert working.remember(tenant, "s", []) == Growth(0, 0, 0, size=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), max_size=15), max_size=8))
def test_it_is_the_last_few_different_memories_whatever_comes(
    working: WorkingMemory, additions: list[list[int]]
) -> None:
    tenant = new_name()
    known: list[int] = []
    for addition in additions:
        growth = working.remember(tenant, "s", noted(*addition))
        before = set(known)
        for memory_id in addition:
            known = [memory_id, *(other for other in known if other != memory_id)]
        assert growth.added == len(set(addition) - before)
        assert growth.added + growth.refreshed == len(addition)
        assert growth.size - len(before) == growth.added - growth.evicted
        known = known[:CAPACITY]
        assert ids(working, tenant) == known
        assert growth.size == len(known)
        if known:
            assert working.sizes(tenant) == {"s": len(known)}


def test_what_leaves_leaves_no_trace(valkey: ValkeyServer, working: WorkingMemory, tenant: str) -> None:
    for memory_id in range(1, 101):
        working.remember(tenant, "s", noted(memory_id))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.zcard(f"somabrain:{{{tenant}}}:working:s") == CAPACITY
        assert client.hlen(f"somabrain:{{{tenant}}}:credit:s") == CAPACITY


# Sessions and tenants


def test_sessions_and_tenants_are_apart(working: WorkingMemory, tenant: str) -> None:
    other = new_name()
    sessions = ["a", "a:b", "{a}", "*", "höflich", "x" * 200]
    for memory_id, session in enumerate(sessions, start=1):
        working.remember(tenant, session, noted(memory_id, 100))
        working.remember(other, session, noted(1000 + memory_id))
    for memory_id, session in enumerate(sessions, start=1):
        assert ids(working, tenant, session) == [100, memory_id]
        assert ids(working, other, session) == [1000 + memory_id]
    assert working.sizes(tenant) == dict.fromkeys(sessions, 2)
    assert working.sizes(new_name()) == {}


def test_a_forgotten_session_is_empty_and_others_are_not(
    valkey: ValkeyServer, working: WorkingMemory, tenant: str
) -> None:
    working.remember(tenant, "s", noted(1, 2))
    working.remember(tenant, "t", noted(3))
    assert working.forget(tenant, "s")
    assert (ids(working, tenant, "s"), ids(working, tenant, "t")) == ([], [3])
    assert working.sizes(tenant) == {"t": 1}
    assert working.forget(tenant, "t")
    assert keys_of(valkey, tenant) == []


def test_a_tenants_keys_share_a_hash_tag(valkey: ValkeyServer, working: WorkingMemory, tenant: str) -> None:
    """So a cluster keeps them on one node, and the script may touch them all."""
    working.remember(tenant, "s", noted(1))
    assert keys_of(valkey, tenant) == [
        f"somabrain:{{{tenant}}}:credit:s",
        f"somabrain:{{{tenant}}}:working",
        f"somabrain:{{{tenant}}}:working:s",
    ]


# Expiry


def test_it_expires_when_nothing_enters_any_more(valkey: ValkeyServer, tenant: str) -> None:
    """Each entry gives it its whole time again, and at the end no key is left."""
    lasting = 0.5
    with WorkingMemory(valkey.url, CAPACITY, lasting) as short:
        short.remember(tenant, "s", noted(1))
        time.sleep(lasting / 2)
        last = time.monotonic()
        short.remember(tenant, "s", noted(2))
        while short.recent(tenant, "s"):
            assert time.monotonic() - last < 20 * lasting
            time.sleep(0.01)
        assert time.monotonic() - last >= lasting - 0.01
        while keys_of(valkey, tenant):
            assert time.monotonic() - last < 20 * lasting
            time.sleep(0.01)
        assert short.sizes(tenant) == {}


def test_sessions_that_expire_leave_the_index_of_a_tenant_that_goes_on(
    valkey: ValkeyServer, working: WorkingMemory, tenant: str
) -> None:
    working.remember(tenant, "long", noted(1))
    with WorkingMemory(valkey.url, CAPACITY, 0.001) as short:
        for number in range(50):
            short.remember(tenant, f"short-{number}", noted(1))
    time.sleep(0.01)
    working.remember(tenant, "long", noted(2))
    assert working.sizes(tenant) == {"long": 2}
    with redis.Redis.from_url(valkey.url) as client:
        assert client.zcard(f"somabrain:{{{tenant}}}:working") == 1


def test_a_short_session_does_not_cut_the_index_of_a_long_one(
    valkey: ValkeyServer, working: WorkingMemory, tenant: str
) -> None:
    working.remember(tenant, "long", noted(1))
    with WorkingMemory(valkey.url, CAPACITY, 0.05) as short:
        short.remember(tenant, "short", noted(1))
        while short.recent(tenant, "short"):
            time.sleep(0.01)
    assert working.sizes(tenant) == {"long": 1}


# Many at once


def test_additions_at_once_lose_and_double_nothing(valkey: ValkeyServer, tenant: str) -> None:
    threads, each, capacity = 8, 50, 64
    with WorkingMemory(valkey.url, capacity, DAY) as working:

        def add(thread: int) -> list[Growth]:
            return [
                working.remember(tenant, "s", noted(thread * each + number + 1, 1_000_000))
                for number in range(each)
            ]

        with ThreadPoolExecutor(threads) as pool:
            growths = [growth for grown in pool.map(add, range(threads)) for growth in grown]
        held = ids(working, tenant)
    assert sum(growth.added for growth in growths) == threads * each + 1
    assert sum(growth.refreshed for growth in growths) == threads * each - 1
    assert len(held) == len(set(held)) == capacity
    assert sum(growth.added - growth.evicted for growth in growths) == capacity
    assert held[0] == 1_000_000
    for thread in range(threads):
        own = [one for one in held[1:] if (one - 1) // each == thread]
        assert own == sorted(own, reverse=True), "a thread's later memory is the later one"


# A server that is not there


def test_reading_from_a_server_that_is_down_is_its_own_error(unreachable: WorkingMemory, tenant: str) -> None:
    began = time.monotonic()
    for attempt in (
        lambda: unreachable.recent(tenant, "s"),
        lambda: unreachable.sizes(tenant),
        lambda: unreachable.forget(tenant, "s"),
        lambda: unreachable.remember(tenant, "s", noted(1)),
    ):
        with pytest.raises(WorkingMemoryUnavailable, match="check the Redis server"):
            attempt()
    assert time.monotonic() - began < 2


def test_a_server_that_says_nothing_is_not_waited_for(tenant: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with (
            WorkingMemory(url, CAPACITY, DAY) as working,
            pytest.raises(WorkingMemoryUnavailable, match="Timeout"),
        ):
            working.recent(tenant, "s")


def test_noting_after_a_commit_never_fails(
    unreachable: WorkingMemory, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert unreachable.note([Addition(tenant, "s", noted(1))]) is None
    assert "1 additions to working memory are lost" in caplog.text


@pytest.mark.parametrize(("capacity", "seconds"), [(0, DAY), (1, 0.0), (-1, 1.0)])
def test_a_working_memory_holds_something_for_some_time(capacity: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="one memory"):
        WorkingMemory("redis://127.0.0.1:1/0", capacity, seconds)


@pytest.mark.parametrize("credit", [0.0, -0.5, 1.5, float("nan")])
def test_only_what_helped_can_be_noted(credit: float) -> None:
    with pytest.raises(ValueError, match="has helped"):
        Noted(1, credit)


# What enters


def test_what_enters_is_named_landed_and_helped() -> None:
    helpful = [{"memory": 11, "credit": 1.0}, {"memory": 12, "credit": 0.2}, {"memory": 13, "credit": -1.0}]
    batch = [
        said("a", recall_id=1, helpful=helpful),
        said("a", recall_id=1, helpful=helpful),
        said("a", recall_id=1, helpful=helpful),
        said("a", 1.0, recall_id=1),
        said("a", recall_id=1, helpful=[{"memory": 13, "credit": 0.0}]),
        said("b", recall_id=2, helpful=[{"memory": 21}]),
    ]
    outcomes: list[Outcome] = [
        Landed("a", 1, 1, []),
        Landed("a", 1, 1, [], repeated=True),
        Refused("unknown_recall", "no such recall"),
        Landed("a", 2, 2, []),
        Landed("a", 3, 3, []),
        Landed("b", 1, 1, []),
    ]
    assert [(one.position, one.addition) for one in entering(batch, outcomes)] == [
        (0, Addition("a", "session-1", (Noted(12, 0.2), Noted(11, 1.0)))),
        (5, Addition("b", "session-1", (Noted(21, 1.0),))),
    ]


@pytest.mark.learning
def test_a_recalled_and_helpful_memory_enters_when_its_feedback_lands(
    shared_database: Database, minilm: Embedder, working: WorkingMemory, unreachable: WorkingMemory
) -> None:
    """Working memory grows by at least half a memory for each feedback, as long as new ones help."""
    tenant = new_tenant(shared_database)
    memories = room(shared_database, minilm)
    conversation = messages(40)
    kept = remember(memories, tenant, conversation)
    as_of = conversation[-1].occurred_at
    feedback, best = [], []
    for number, message in enumerate(conversation[:8]):
        query = Query(tenant_id=tenant, text=message.text, session_id="session-1", as_of=as_of, k=1)
        recall = memories.recall(query)
        best.append(recall.hits[0].memory_id)
        feedback.append(
            said(
                tenant,
                recall_id=recall.recall_id,
                helpful=[{"memory": best[-1]}],
                idempotency_key=f"feedback-{number}",
            )
        )
    assert set(best) <= set(kept)
    assert len(set(best)) > CAPACITY, "enough different ones that some must leave"

    outcomes, growth = land_and_remember(shared_database, feedback, CONFIGURATION, None, working)
    assert all(isinstance(outcome, Landed) for outcome in outcomes)
    grown = [one for one in growth if one is not None]
    assert len(grown) == len(feedback)
    assert sum(one.added for one in grown) / len(feedback) >= 0.5
    assert ids(working, tenant, "session-1") == list(dict.fromkeys(reversed(best)))[:CAPACITY]

    again, nothing = land_and_remember(shared_database, feedback, CONFIGURATION, None, working)
    assert all(isinstance(outcome, Landed) and outcome.repeated for outcome in again)
    assert nothing == [None] * len(feedback)

    version = len(changes_of(shared_database, tenant))
    late = said(tenant, recall_id=recall.recall_id, helpful=[{"memory": best[0]}])
    (outcome,), lost = land_and_remember(shared_database, [late], CONFIGURATION, None, unreachable)
    assert isinstance(outcome, Landed)
    assert lost == [None]
    assert len(changes_of(shared_database, tenant)) == version + 1
