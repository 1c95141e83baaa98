"""The audit trail: a hash chain for each tenant, without gaps, in which tampering shows."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.audit import SYSTEM, record, verify_chain
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection, Database


def bodies(connection: Connection, tenant_id: str) -> list[Any]:
    rows = connection.execute(
        "SELECT body FROM audit_events WHERE tenant_id = %s ORDER BY version", (tenant_id,)
    )
    return [body for (body,) in rows]


def test_each_chain_counts_from_0(database: Database) -> None:
    with database.as_operator() as connection:
        versions = [
            record(connection, tenant_id, "ada", "restore", {})
            for tenant_id in ("alice", SYSTEM, "alice", "bob", SYSTEM, "alice")
        ]
        assert versions == [0, 0, 1, 0, 1, 2]
        assert [verify_chain(connection, tenant_id) for tenant_id in ("alice", "bob", SYSTEM)] == [None] * 3


def test_a_chain_without_events_is_intact(database: Database) -> None:
    with database.as_operator() as connection:
        assert verify_chain(connection, "nobody") is None


def test_a_body_is_kept_and_verified_as_it_was_said(database: Database) -> None:
    said = {
        "β": "\U0001f9e0 \u2028",
        "numbers": [1e23, -0.0, 0.1, 5e-324, 10**30],
        "nested": {"": [None, True]},
    }
    with database.as_operator() as connection:
        record(connection, "alice", "ada", "restore", said)
    with database.as_operator() as connection:
        assert canonical_json(bodies(connection, "alice")) == canonical_json([said])
        assert verify_chain(connection, "alice") is None


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": {1: 2}}, {"x": object()}])
def test_what_is_not_json_is_not_recorded(database: Database, body: dict[str, Any]) -> None:
    with database.as_operator() as connection:
        with pytest.raises((ValueError, TypeError)):
            record(connection, "alice", "ada", "restore", body)
        assert bodies(connection, "alice") == []


def test_events_recorded_at_once_leave_no_gap(database: Database) -> None:
    def append(number: int) -> int:
        with database.as_operator() as connection:
            return record(connection, "alice", "ada", "count", {"number": number})

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(append, range(64)))

    assert sorted(versions) == list(range(64))
    with database.as_operator() as connection:
        assert verify_chain(connection, "alice") is None
        in_chain = [body["number"] for body in bodies(connection, "alice")]
        assert [versions[number] for number in in_chain] == list(range(64))


def test_what_was_rolled_back_takes_no_version(database: Database) -> None:
    with database.as_operator() as connection:
        record(connection, "alice", "ada", "restore", {})
        connection.rollback()
    with database.as_operator() as connection:
        assert record(connection, "alice", "ada", "restore", {}) == 0


def test_a_tenant_records_in_its_own_chain_only(database: Database) -> None:
    with database.as_operator() as connection:
        create_tenants(connection, ["alice", "bob"], LearningConfiguration())
    with database.as_tenants(["alice"]) as connection:
        assert record(connection, "alice", "alice", "flag", {"on": True}) == 0
    for other in ("bob", SYSTEM):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
            database.as_tenants(["alice"]) as connection,
        ):
            record(connection, other, "alice", "flag", {"on": True})


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_events SET actor = 'eve' WHERE version = 2",
        "UPDATE audit_events SET action = 'nothing' WHERE version = 2",
        """UPDATE audit_events SET body = '{"number": 3}' WHERE version = 2""",
        "UPDATE audit_events SET created_at = created_at - interval '1 microsecond' WHERE version = 2",
        "UPDATE audit_events SET hash = sha256('') WHERE version = 2",
        "DELETE FROM audit_events WHERE version = 2",
        "UPDATE audit_events SET tenant_id = 'bob' WHERE version = 2",
    ],
)
def test_tampering_by_the_owner_is_found(database: Database, tampering: str) -> None:
    with database.as_operator() as connection:
        for number in range(5):
            record(connection, "alice", "ada", "count", {"number": number})
    with database.as_owner() as connection:
        assert connection.execute(tampering).rowcount
    with database.as_operator() as connection:
        assert verify_chain(connection, "alice") == 2


def test_two_events_that_changed_places_are_found(database: Database) -> None:
    with database.as_operator() as connection:
        for number in range(5):
            record(connection, "alice", "ada", "count", {"number": number})
    with database.as_owner() as connection:
        for old, new in ((2, 9), (3, 2), (9, 3)):
            connection.execute("UPDATE audit_events SET version = %s WHERE version = %s", (new, old))
    with database.as_operator() as connection:
        assert verify_chain(connection, "alice") == 2


def test_a_chain_is_read_in_the_order_of_versions_wherever_its_rows_lie(database: Database) -> None:
    with database.as_operator() as connection:
        for number in range(5):
            record(connection, "alice", "ada", "count", {"number": number})
    with database.as_owner() as connection:
        # A rewritten row lies behind the others.
        connection.execute("UPDATE audit_events SET actor = actor WHERE version = 1")
    with database.as_operator() as connection:
        assert verify_chain(connection, "alice") is None
