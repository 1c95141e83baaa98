"""The outbox: what is published follows commits, tenant by tenant, and nothing is lost however they come."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.operations.relay import complete
from somabrain_dagster.store.audit import record
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.outbox import LOGS, AnotherRelay, Outbox, Record, read_unpublished, relay_runs
from tests.brain import landed, new_tenants, said


@pytest.fixture
def outbox(database: Database) -> Iterator[Outbox]:
    with Outbox(database.url) as opened:
        yield opened


def publish(outbox: Outbox) -> list[tuple[str, str, int]]:
    """Take what is due and mark it, as the relay does once Kafka has acknowledged it."""
    tenants = outbox.behind()
    records = [record for log in LOGS for record in outbox.unpublished(log, tenants, 1000)[0]]
    outbox.mark(complete(records, set(range(len(records)))))
    return [(record.log, record.tenant_id, record.version) for record in records]


def waiting(database: Database) -> dict[str, int]:
    with database.as_operator() as connection:
        return {each.log: each.records for each in read_unpublished(connection)}


def test_each_row_of_each_log_is_published_once_in_its_tenants_order(
    database: Database, outbox: Outbox
) -> None:
    alice, bob = new_tenants(database, 2)
    landed(database, [said(alice), said(bob), said(alice)])
    with database.as_operator() as connection:
        record(connection, alice, "ada", "flag", {})
    assert waiting(database) == {"audit_events": 1, "weight_changes": 5, "feedback_events": 3}
    assert publish(outbox) == [
        ("audit_events", alice, 0),
        *(("weight_changes", alice, version) for version in range(3)),
        *(("weight_changes", bob, version) for version in range(2)),
        ("feedback_events", alice, 1),
        ("feedback_events", alice, 2),
        ("feedback_events", bob, 1),
    ]
    assert publish(outbox) == []
    assert waiting(database) == dict.fromkeys(LOGS, 0)
    landed(database, [said(bob)])
    assert publish(outbox) == [("weight_changes", bob, 2), ("feedback_events", bob, 2)]


def test_what_commits_out_of_order_is_neither_lost_nor_reordered(database: Database, outbox: Outbox) -> None:
    """Alice's transaction is the older one by its id, and commits after bob's was published."""
    alice, bob = new_tenants(database, 2)
    publish(outbox)
    with psycopg.connect(database.url) as late:
        record(late, alice, "ada", "flag", {"late": True})
        (older,) = late.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        with database.as_operator() as connection:
            record(connection, bob, "ada", "flag", {})
            (newer,) = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        assert older < newer
        assert publish(outbox) == [("audit_events", bob, 0)]
        # A second event of alice's waits for the first: it cannot overtake it.
        second = threading.Thread(target=_record, args=(database, alice))
        second.start()
        assert publish(outbox) == []
        late.commit()
        second.join()
    assert publish(outbox) == [("audit_events", alice, 0), ("audit_events", alice, 1)]


def _record(database: Database, tenant_id: str) -> None:
    with database.as_operator() as connection:
        record(connection, tenant_id, "ada", "flag", {"late": False})


def test_a_second_relay_is_refused_and_told_of_the_first(database: Database, outbox: Outbox) -> None:
    with pytest.raises(AnotherRelay, match=r"another relay works on this database: from .*, session \d+"):
        Outbox(database.url)
    with database.as_operator() as connection:
        assert relay_runs(connection)
    outbox.close()
    with database.as_operator() as connection:
        assert not relay_runs(connection)
    Outbox(database.url).close()


def test_who_has_lost_the_connection_moves_no_mark(database: Database, outbox: Outbox) -> None:
    (alice,) = new_tenants(database, 1)
    records, _ = outbox.unpublished("weight_changes", [alice], 10)
    with database.as_owner() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'somabrain relay' AND datname = current_database()"
        )
    with pytest.raises(psycopg.OperationalError):
        outbox.mark(records)
    with _once_free(database.url) as another:
        assert publish(another) == [("weight_changes", alice, 0)]


def _once_free(url: str) -> Outbox:
    """The server frees the lock of a session that it ends a moment after it says so."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return Outbox(url)
        except AnotherRelay:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_log_that_was_rewound_is_published_again_and_said_so(database: Database, outbox: Outbox) -> None:
    (alice,) = new_tenants(database, 1)
    landed(database, [said(alice), said(alice)])
    publish(outbox)
    with database.as_owner() as connection:
        connection.execute("ALTER TABLE weight_changes NO FORCE ROW LEVEL SECURITY")
        connection.execute("ALTER TABLE adaptation_states NO FORCE ROW LEVEL SECURITY")
        connection.execute("UPDATE weight_changes SET hash = sha256('') WHERE version = 2")
        connection.execute("UPDATE adaptation_states SET hash = sha256('')")
    assert outbox.behind() == [alice]
    records, rewound = outbox.unpublished("weight_changes", [alice], 1000)
    assert rewound == [(alice, 2)]
    assert [record.version for record in records] == [0, 1, 2]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=30))
def test_marks_stop_before_the_first_row_that_is_not_acknowledged(rows: list[tuple[str, bool]]) -> None:
    records: list[Record] = []
    acknowledged: set[int] = set()
    expected: dict[str, int] = {}
    broken: set[str] = set()
    for place, (tenant, delivered) in enumerate(rows):
        number = sum(tenant == other for other, _ in rows[:place])
        records.append(_numbered(tenant, number))
        if delivered:
            acknowledged.add(place)
            if tenant not in broken:
                expected[tenant] = number
        else:
            broken.add(tenant)
    assert {record.tenant_id: record.version for record in complete(records, acknowledged)} == expected


def _numbered(tenant_id: str, number: int) -> Record:
    return Record("audit_events", tenant_id, number, bytes(32), datetime(2018, 4, 10, tzinfo=UTC), b"{}")
