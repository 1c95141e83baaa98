"""Group commit: whatever waits lands together, a tenant's events in order."""

import asyncio
from itertools import chain

import pytest

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.serving.committer import FEW, Committer, QueueFull
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed
from somabrain_dagster.store.working_memory import WorkingMemory
from tests.brain import CONFIGURATION, assert_sound, events_of, new_tenants, said, state_of

pytestmark = pytest.mark.learning


def submitted(
    database: Database, valkey: ValkeyServer, requests: list[list[Feedback]], *, most_together: int
) -> tuple[list[list[Landed]], list[AdaptationState]]:
    """The outcomes of requests that all wait at once, and the states as they were told."""

    async def run() -> list[list[Landed]]:
        committer = Committer(
            landing,
            CONFIGURATION,
            working,
            most_waiting=10_000,
            most_together=most_together,
            landed=told.extend,
        )
        answers = [committer.submit(events) for events in requests]
        await committer.close()
        return [[outcome for outcome in await answer if isinstance(outcome, Landed)] for answer in answers]

    told: list[AdaptationState] = []
    working = WorkingMemory(valkey.url, 10, 60)
    with Database(database.url, max_connections=1) as landing:
        try:
            return asyncio.run(run()), told
        finally:
            working.close()


@pytest.mark.parametrize("most_together", [1, 5, 64])
def test_a_tenants_events_land_in_the_order_in_which_they_were_submitted(
    shared_database: Database, valkey: ValkeyServer, most_together: int
) -> None:
    tenants = new_tenants(shared_database, 7)
    requests = [
        # Every fifth speaks of several tenants.
        [
            said(tenants[(number + other) % 7], (number % 21 - 10) / 10, session_id=f"{number:03}")
            for other in range(3 if number % 5 == 0 else 1)
        ]
        for number in range(120)
    ]
    outcomes, told = submitted(shared_database, valkey, requests, most_together=most_together)
    assert [len(landed) for landed in outcomes] == [len(events) for events in requests]
    for tenant in tenants:
        expected = [event.session_id for event in chain(*requests) if event.tenant_id == tenant]
        assert [event["session_id"] for event in events_of(shared_database, tenant)] == expected
        versions = [state.version for state in told if state.tenant_id == tenant]
        assert versions == sorted(versions)
        assert versions[-1] == state_of(shared_database, tenant).version
        assert_sound(shared_database, tenant)


def test_a_few_events_go_before_many_that_wait(shared_database: Database, valkey: ValkeyServer) -> None:
    (tenant,) = new_tenants(shared_database, 1)
    bulk = [said(tenant, 0.1, session_id="bulk")] * (FEW + 1)
    requests = [*([bulk] * 10), [said(tenant, 0.2, session_id="person")]]
    submitted(shared_database, valkey, requests, most_together=1)
    sessions = [event["session_id"] for event in events_of(shared_database, tenant)]
    # Some of the bulk may be on its way before the person speaks, and one is with each transaction.
    assert sessions.index("person") <= 2 * len(bulk)
    assert sessions.count("bulk") == 10 * len(bulk)


def test_many_land_however_many_people_speak_meanwhile(
    shared_database: Database, valkey: ValkeyServer
) -> None:
    (tenant,) = new_tenants(shared_database, 1)
    person = [said(tenant, 0.2, session_id="person")]
    bulk = [said(tenant, 0.1, session_id="bulk")] * (FEW + 1)
    submitted(shared_database, valkey, [person, bulk, *([person] * 30)], most_together=1)
    sessions = [event["session_id"] for event in events_of(shared_database, tenant)]
    assert sessions.index("bulk") <= 2
    assert len(sessions) == 31 + len(bulk)


def test_bulk_leaves_room_for_a_person(shared_database: Database, valkey: ValkeyServer) -> None:
    (tenant,) = new_tenants(shared_database, 1)
    bulk = [said(tenant, 0.1)] * 40

    async def run() -> None:
        committer = Committer(
            shared_database, CONFIGURATION, working, most_waiting=48, most_together=10, landed=lambda _: None
        )
        first = committer.submit(bulk)
        assert (committer.has_room(len(bulk)), committer.has_room(8), committer.has_room(9)) == (
            False,
            True,
            False,
        )
        second = committer.submit([said(tenant, 0.2)])
        with pytest.raises(QueueFull):
            committer.submit(bulk)
        await asyncio.gather(first, second)
        await committer.close()

    working = WorkingMemory(valkey.url, 10, 60)
    asyncio.run(run())
    working.close()
    assert len(events_of(shared_database, tenant)) == 41


def test_what_does_not_fit_is_refused_whole(shared_database: Database, valkey: ValkeyServer) -> None:
    (tenant,) = new_tenants(shared_database, 1)

    async def run() -> None:
        committer = Committer(
            shared_database,
            CONFIGURATION,
            working,
            most_waiting=3,
            most_together=10,
            landed=lambda _: None,
        )
        first = committer.submit([said(tenant, 0.1), said(tenant, 0.2)])
        with pytest.raises(QueueFull):
            committer.submit([said(tenant, 0.3), said(tenant, 0.4)])
        await first
        assert committer.room == 3
        await committer.close()
        assert not committer.alive

    working = WorkingMemory(valkey.url, 10, 60)
    asyncio.run(run())
    working.close()
    assert [event["utility"] for event in events_of(shared_database, tenant)] == [0.1, 0.2]
