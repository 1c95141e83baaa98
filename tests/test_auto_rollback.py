"""Falling rewards roll a tenant back: the same rollback however the events were batched, once a window."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.verification import verify
from tests.brain import (
    CONFIGURATION,
    Row,
    assert_sound,
    changes_of,
    landed,
    learned,
    new_tenant,
    new_tenants,
    said,
    state_of,
    weights_of,
)

pytestmark = pytest.mark.learning

GOOD = [0.4, 0.6] * 55
BAD = [-1.0] * 40
RECENT, BEFORE = CONFIGURATION.guard.recent, CONFIGURATION.guard.before
WINDOW = RECENT + BEFORE


def falls(rewards: Sequence[float]) -> bool:
    """The guard's formula on the last 120 rewards, by Python's statistics."""
    recent, before = rewards[-RECENT:], rewards[-WINDOW:-RECENT]
    error = math.sqrt(statistics.variance(recent) / RECENT + statistics.variance(before) / BEFORE)
    return statistics.mean(recent) < statistics.mean(before) - 4 * error


def trips(rewards: Sequence[float]) -> list[int]:
    """After how many events the guard trips, its window beginning anew each time."""
    found, since = [], 0
    for count in range(1, len(rewards) + 1):
        if count - since >= WINDOW and falls(rewards[since:count]):
            found.append(count)
            since = count
    return found


def feed(
    database: Database,
    tenant: str,
    rewards: Sequence[float],
    *,
    cuts: Sequence[int] = (),
    configuration: LearningConfiguration = CONFIGURATION,
) -> None:
    """Land rewards, each the utility of an event, in batches that end at the cuts."""
    for begin, end in pairwise([0, *cuts, len(rewards)]):
        landed(database, [said(tenant, reward) for reward in rewards[begin:end]], configuration)


def rollbacks(changes: Sequence[Row]) -> list[Row]:
    return [change for change in changes if change["cause"] == "auto_rollback"]


def events_before(changes: Sequence[Row], rollback: Row) -> list[Row]:
    return [c for c in changes if c["event_seq"] is not None and c["version"] < rollback["version"]]


def test_rewards_that_fall_give_back_the_weights_of_before(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    rewards = GOOD + BAD
    (trip,) = trips(rewards)
    assert len(GOOD) < trip < len(rewards)

    feed(shared_database, tenant, rewards[:trip])

    changes = changes_of(shared_database, tenant)
    (rollback,) = rollbacks(changes)
    assert rollback == changes[-1]
    answered = events_before(changes, rollback)
    assert len(answered) == trip
    restored = changes[answered[-RECENT]["version"] - 1]
    assert rollback["restored_version"] == restored["version"]
    assert rollback["after"] == rollback["low"] == rollback["high"] == restored["after"]
    assert rollback["after"] == weights_of(shared_database, tenant)
    assert rollback["after"] != answered[-1]["after"]
    assert set(rollback["shift"]) == {0}
    assert (rollback["event_seq"], rollback["event_digest"]) == (None, None)
    assert rollback["configuration"].hex() == CONFIGURATION.digest
    assert state_of(shared_database, tenant).recent_rewards.tolist() == []
    assert_sound(shared_database, tenant)


@pytest.mark.parametrize(
    "cuts",
    [
        range(1, len(GOOD + BAD)),
        range(7, len(GOOD + BAD), 7),
        [len(GOOD)],
        [len(GOOD) + 5],
        [trips(GOOD + BAD)[0] - 1],
        [trips(GOOD + BAD)[0]],
        [trips(GOOD + BAD)[0] - RECENT],
        [trips(GOOD + BAD)[0] - RECENT + 1],
    ],
    ids=["one by one", "by sevens", "at the fall", "in it", "before the trip", "behind it", "at 20", "at 19"],
)
def test_a_rollback_does_not_depend_on_the_batches(shared_database: Database, cuts: Sequence[int]) -> None:
    whole, cut = new_tenants(shared_database, 2)
    feed(shared_database, whole, GOOD + BAD)
    feed(shared_database, cut, GOOD + BAD, cuts=cuts)
    expected = learned(shared_database, whole)
    assert len(rollbacks(changes_of(shared_database, whole))) == 1
    assert learned(shared_database, cut) == expected
    assert_sound(shared_database, cut)


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_no_second_rollback_until_the_window_is_full_again(shared_database: Database, step: int) -> None:
    """99 good rewards after the first rollback and 20 bad ones are one too few; one more is enough."""
    tenant = new_tenant(shared_database)
    first = trips(GOOD + BAD)[0]
    rewards = (GOOD + BAD)[:first] + [0.4, 0.6] * 49 + [0.5] + [-1.0] * 40
    assert trips(rewards) == [first, first + WINDOW]

    feed(shared_database, tenant, rewards, cuts=range(step, len(rewards), step))

    changes = changes_of(shared_database, tenant)
    found = rollbacks(changes)
    assert [len(events_before(changes, rollback)) for rollback in found] == [first, first + WINDOW]
    for rollback in found:
        restored = changes[events_before(changes, rollback)[-RECENT]["version"] - 1]
        assert rollback["restored_version"] == restored["version"]
        assert rollback["after"] == restored["after"]
    assert_sound(shared_database, tenant)


def test_a_rollback_among_other_tenants_touches_its_own_only(shared_database: Database) -> None:
    steady, falling, alone, late = new_tenants(shared_database, 4)
    feed(shared_database, alone, GOOD + BAD)
    batch = []
    for good, reward in zip(GOOD + GOOD, GOOD + BAD, strict=False):
        batch += [said(steady, good), said(falling, reward), said(late, reward)]
    landed(shared_database, batch)
    assert learned(shared_database, falling) == learned(shared_database, alone)
    assert learned(shared_database, late) == learned(shared_database, alone)
    assert rollbacks(changes_of(shared_database, steady)) == []
    for tenant in (steady, falling, late):
        assert_sound(shared_database, tenant)


def test_the_reward_is_what_counts_not_the_utility(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant, 0.1, reward=reward) for reward in GOOD + BAD])
    assert len(rollbacks(changes_of(shared_database, tenant))) == 1


def test_weights_that_did_not_move_are_not_to_blame(shared_database: Database) -> None:
    tenant = new_tenant(shared_database, {"base_learning_rate": 0.0})
    feed(shared_database, tenant, GOOD + BAD, cuts=[50, 115])
    changes = changes_of(shared_database, tenant)
    assert {change["cause"] for change in changes} == {"start", "feedback"}
    assert len(state_of(shared_database, tenant).recent_rewards) == WINDOW - 1
    assert_sound(shared_database, tenant)


def test_a_guard_that_is_off_never_trips(shared_database: Database) -> None:
    tenant = new_tenant(shared_database, {"guard": {"enabled": False}})
    feed(shared_database, tenant, GOOD + BAD, cuts=[50, 115])
    assert rollbacks(changes_of(shared_database, tenant)) == []


@pytest.mark.parametrize("on", [60, len(GOOD), len(GOOD) + 3])
def test_a_guard_that_is_turned_on_knows_the_rewards_of_before(shared_database: Database, on: int) -> None:
    """As if it had been on: it looks back without a hole."""
    rewards = GOOD + BAD
    (trip,) = trips(rewards)
    tenant = new_tenant(shared_database)
    off = CONFIGURATION.overridden({"guard": {"enabled": False}})
    feed(shared_database, tenant, rewards[:on], configuration=off)
    feed(shared_database, tenant, rewards[on:])
    changes = changes_of(shared_database, tenant)
    (rollback,) = rollbacks(changes)
    assert len(events_before(changes, rollback)) == trip
    assert_sound(shared_database, tenant)


@pytest.mark.parametrize("together", [True, False])
def test_a_rollback_stays_within_the_bounds_of_now(shared_database: Database, together: bool) -> None:
    """α rises above 3 units, its bound is lowered to 2 amid the last 20 events, and then the guard trips."""
    wide = CONFIGURATION.overridden({"high": {"alpha": 4.0}})
    narrow = CONFIGURATION.overridden({"high": {"alpha": 2.0}})
    tenant = new_tenant(shared_database)
    rewards = GOOD + BAD
    (trip,) = trips(rewards)
    feed(shared_database, tenant, rewards[: trip - 5], configuration=wide)
    rest = rewards[trip - 5 : trip]
    feed(shared_database, tenant, rest, cuts=[] if together else range(1, 5), configuration=narrow)

    changes = changes_of(shared_database, tenant)
    (rollback,) = rollbacks(changes)
    restored = changes[rollback["restored_version"]]
    assert restored["after"][0] > 3 * 10**9
    assert rollback["after"] == [2 * 10**9, *restored["after"][1:]]
    assert rollback["after"] == weights_of(shared_database, tenant)
    assert_sound(shared_database, tenant)


def test_every_rollback_is_proved_from_its_rewards(database: Database) -> None:
    overrides: list[dict[str, Any]] = [{}, {"guard": {"recent": 5, "before": 9, "standard_errors": 2.0}}]
    tenants = [new_tenant(database, own) for own in overrides]
    wide = CONFIGURATION.overridden({"high": {"alpha": 4.0}})
    narrow = CONFIGURATION.overridden({"high": {"alpha": 2.0}})
    for tenant in tenants:
        feed(database, tenant, (GOOD + BAD)[:115], cuts=[40], configuration=wide)
        feed(database, tenant, (GOOD + BAD)[115:], configuration=narrow)
        feed(database, tenant, GOOD + BAD, cuts=[120])
        assert rollbacks(changes_of(database, tenant))
    with database.snapshot() as connection:
        assert verify(connection).findings == []
