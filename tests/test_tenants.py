"""Creating tenants: each begins its own log with version 0, the configured start, once."""

from concurrent.futures import ThreadPoolExecutor
from random import Random
from uuid import uuid4

import psycopg
import pytest

from somabrain_dagster.learning.configuration import InvalidConfiguration
from somabrain_dagster.store.adaptation import (
    InvalidTenant,
    UnknownTenant,
    create_tenants,
    read_state,
    read_states,
)
from somabrain_dagster.store.database import Database
from tests.brain import (
    CONFIGURATION,
    assert_sound,
    changes_of,
    landed,
    learned,
    new_tenant,
    new_tenants,
    said,
    state_of,
)


def test_a_log_begins_with_the_configured_start(shared_database: Database) -> None:
    low = CONFIGURATION.overridden({"start": {"alpha": 0.9}})
    (plain,) = new_tenants(shared_database, 1, None, low)
    (own,) = new_tenants(shared_database, 1, {"start": {"beta": 0.75}}, low)
    for tenant, alpha, beta in ((plain, 900_000_000, 200_000_000), (own, 900_000_000, 750_000_000)):
        (start,) = changes_of(shared_database, tenant)
        assert (start["version"], start["cause"]) == (0, "start")
        assert start["low"] == start["high"] == start["after"]
        assert start["after"][:2] == [alpha, beta]
        state = state_of(shared_database, tenant)
        assert (state.version, state.feedback_seq, state.recent_rewards.tolist()) == (0, 0, [])
        assert_sound(shared_database, tenant)


def test_weights_are_read_by_name_in_units(shared_database: Database) -> None:
    assert state_of(shared_database, new_tenant(shared_database)).weights_by_name == CONFIGURATION.start


def test_a_tenant_that_exists_keeps_what_it_learned(shared_database: Database) -> None:
    old = new_tenant(shared_database)
    landed(shared_database, [said(old)])
    before = learned(shared_database, old)
    fresh = f"tenant-{uuid4().hex[:12]}"
    with shared_database.as_operator() as connection:
        assert create_tenants(connection, [old, fresh, fresh], CONFIGURATION, {"high": {"alpha": 1.5}}) == [
            fresh
        ]
        assert create_tenants(connection, [old, fresh], CONFIGURATION) == []
    assert learned(shared_database, old) == before
    assert_sound(shared_database, fresh)


def test_tenants_created_at_once_are_created_once(shared_database: Database) -> None:
    """In whatever order they are named: nobody waits for one who waits for him."""
    names = [f"tenant-{uuid4().hex[:12]}" for _ in range(30)]

    def create(seed: int) -> list[str]:
        with shared_database.as_operator() as connection:
            shuffled = Random(seed).sample(names, len(names))
            return create_tenants(connection, shuffled, CONFIGURATION)

    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(create, range(8)))
    assert sorted(name for some in created for name in some) == sorted(names)
    for name in names[:5]:
        assert_sound(shared_database, name)


@pytest.mark.parametrize("name", ["", "Alice", "_system", "a,b", "a b", "-a", "a" * 64, "a\n", "ä"])
def test_a_name_that_cannot_be_is_refused(shared_database: Database, name: str) -> None:
    with (
        pytest.raises(InvalidTenant, match="cannot be a tenant's name"),
        shared_database.as_operator() as connection,
    ):
        create_tenants(connection, [name], CONFIGURATION)


def test_overrides_that_cannot_be_are_refused_before_anything_is_written(shared_database: Database) -> None:
    name = f"tenant-{uuid4().hex[:12]}"
    with shared_database.as_operator() as connection:
        with pytest.raises(InvalidConfiguration, match="alpha must have low ≤ start ≤ high"):
            create_tenants(connection, [name], CONFIGURATION, {"low": {"alpha": 2.0}})
        with pytest.raises(InvalidConfiguration, match="has no colour"):
            create_tenants(connection, [name], CONFIGURATION, {"colour": "red"})
        with pytest.raises(UnknownTenant, match=f"somabrain tenant create {name}"):
            read_state(connection, name)


def test_a_tenant_creates_no_tenants(shared_database: Database) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        shared_database.as_tenants(["mallory"]) as connection,
    ):
        create_tenants(connection, ["mallory"], CONFIGURATION)


def test_states_are_read_in_the_order_of_names_and_only_those_that_may_be_seen(
    shared_database: Database,
) -> None:
    one, other, third = new_tenants(shared_database, 3)
    with shared_database.as_tenants([other, one]) as connection:
        assert [state.tenant_id for state in read_states(connection)] == [one, other]
        assert [state.tenant_id for state in read_states(connection, [third, other])] == [other]
        with pytest.raises(UnknownTenant, match=third):
            read_state(connection, third)
