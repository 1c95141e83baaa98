"""Recorded conversations re-enacted on the real service: what was asked, when, and what was said of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import SOURCE, Session, Story
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.verification import verify
from somabrain_dagster.traffic import Cast, Enacted, Prepared, Traffic, batches, parts, staged
from tests.brain import events_of
from tests.remembering import EmbeddedOnce
from tests.serving.conftest import OnItsOwn

CAST = Cast(people=3, conversations=4, messages=10, questions=2)


@dataclass(frozen=True)
class Played:
    """Traffic that was played, and what it left in the brain."""

    database: Database
    stories: list[Story]
    sessions: list[Session]
    prepared: Prepared
    enacted: list[Enacted]

    def recalls(self) -> list[tuple[str, str, str, datetime, str]]:
        """Tenant, session, question, time and mode of each, in the order in which they were made."""
        query = "SELECT tenant_id, session_id, query, occurred_at, mode FROM recalls ORDER BY recall_id"
        with self.database.as_operator() as connection:
            return connection.execute(query).fetchall()

    def questions(self, tenant: str) -> list[tuple[str, str, str, datetime, str]]:
        """What should have been recalled for a tenant, in order."""
        (told,) = (told for told in self.stories if told.tenant_id == tenant)
        return [
            (tenant, session.session_id, memory.text, memory.occurred_at, "sample")
            for session in self.sessions
            if session.tenant_id == tenant
            for memory in (told.memories[turn.question] for turn in session.turns)
        ]


@pytest.fixture(scope="module")
def played(
    on_its_own: OnItsOwn,
    minilm: EmbeddedOnce,
) -> Iterator[Played]:
    stories = staged(read_chitchat(CAST.people), CAST)
    with (
        on_its_own(7) as service,
        Traffic(
            service.database, minilm, Settings(home=Path("/nowhere")), service.url, stories, CAST
        ) as traffic,
    ):
        prepared = traffic.prepare()
        yield Played(
            service.database, stories, traffic.sessions, prepared, traffic.enact_all(traffic.sessions)
        )


def test_people_have_as_many_sessions_as_the_cast_says(played: Played) -> None:
    by_tenant = {
        tenant: [one for one in played.sessions if one.tenant_id == tenant]
        for tenant in {one.tenant_id for one in played.sessions}
    }
    assert len(by_tenant) == CAST.people
    assert all(1 <= len(held) <= CAST.conversations for held in by_tenant.values())
    assert all(1 <= len(one.turns) <= CAST.questions for one in played.sessions)
    assert played.prepared.memories <= CAST.people * CAST.conversations * CAST.messages
    assert played.prepared.links > 0


def test_every_question_was_drawn_as_of_its_own_time_and_a_tenants_in_their_real_order(
    played: Played,
) -> None:
    recalls = played.recalls()
    assert sum(one.recalls for one in played.enacted) == len(recalls)
    for told in played.stories:
        asked = [recall for recall in recalls if recall[0] == told.tenant_id]
        assert asked == played.questions(told.tenant_id)
        begun = [one.begins for one in played.sessions if one.tenant_id == told.tenant_id]
        assert begun == sorted(begun)


def test_feedback_names_what_was_really_answered_and_its_reward_is_whether_that_came_first(
    played: Played,
) -> None:
    for tenant in {one.tenant_id for one in played.sessions}:
        events = events_of(played.database, tenant)
        enacted = [one for one in played.enacted if one.session.tenant_id == tenant]
        assert len(events) == sum(one.recalls for one in enacted)
        assert {(event["source"], event["label"]) for event in events} == {(SOURCE, "full")}
        unnamed = [event for event in events if event["helpful"] is None]
        assert len(unnamed) == sum(one.unweighed for one in enacted)
        assert all(event["utility"] == 0 for event in unnamed)
        for one in enacted:
            rewards = [event["utility"] for event in events if event["session_id"] == one.session.session_id]
            assert sum(rewards) / len(rewards) == pytest.approx(one.reward)


def test_the_log_that_traffic_leaves_is_proven(played: Played) -> None:
    with played.database.snapshot() as connection:
        assert verify(connection).findings == []


def test_a_share_of_each_tenants_sessions_comes_first_and_order_is_kept(played: Played) -> None:
    first, rest = parts(played.sessions, 0.5)
    assert sorted([*first, *rest], key=lambda one: (one.begins, one.tenant_id)) == sorted(
        played.sessions, key=lambda one: (one.begins, one.tenant_id)
    )
    for tenant in {one.tenant_id for one in played.sessions}:
        own = [one for one in played.sessions if one.tenant_id == tenant]
        count = round(0.5 * len(own))
        assert [one for one in first if one.tenant_id == tenant] == own[:count]
        assert [one for one in rest if one.tenant_id == tenant] == own[count:]
    assert [one for batch in batches(rest, 2) for one in batch] == rest
