"""Retention: what is old goes and stays proven, what is held stays, and a run that was killed is finished.

Rows are real and are made old by cutting their week in two (`tests/ageing.py`).
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.operations.retention import Outcome, run
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.daily import aggregate
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.merkle import merkle_root
from somabrain_dagster.store.operations_gauges import read_operations_gauges, read_partition_counts
from somabrain_dagster.store.outbox import Outbox
from somabrain_dagster.store.partition_seals import Seal, read_seals, root_of_seals
from somabrain_dagster.store.request_stats import Tally, add_requests
from somabrain_dagster.store.retention import (
    RELATIONS,
    AlreadyHeld,
    NotHeld,
    Partition,
    RetentionRuns,
    TableBusy,
    decide,
    detach,
    drop,
    place_hold,
    read_partitions,
    read_prunings,
    release_hold,
    running,
)
from somabrain_dagster.store.tampering import find_tampering
from somabrain_dagster.store.usage import TokenUsage, record_tokens
from somabrain_dagster.store.verification import REDERIVATION, SEALS, Verification, verify
from tests.ageing import cut_weeks, partitions_of
from tests.brain import CONFIGURATION, Row, changes_of, events_of, landed, new_tenant, new_tenants, said
from tests.chain import wait_until
from tests.conftest import new_database
from tests.forgery import as_forger
from tests.reenacted import Reenactment
from tests.serving.running import running as serving
from tests.test_auto_rollback import BAD, GOOD, feed, rollbacks
from tests.test_outbox import publish

pytestmark = pytest.mark.learning

FIRST_DAY = Settings().first_day
NOW = timedelta(0)
"""Keep nothing but the partition in which rows land now."""


def pruned(database: Database, kept: timedelta = NOW) -> Outcome:
    return run(database, kept, FIRST_DAY, "tests")


def aged_and_pruned(database: Database) -> Outcome:
    cut_weeks(database)
    outcome = pruned(database)
    assert outcome.refused == []
    return outcome


def verified(database: Database) -> Verification:
    with database.snapshot() as connection:
        return verify(connection)


def rows(database: Database, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    with database.as_owner() as connection:
        cursor = connection.execute(query.encode(), arguments)
        return cursor.fetchall() if cursor.description else []


def counts(database: Database) -> dict[str, int]:
    return {
        relation: count
        for relation in RELATIONS
        for ((count,),) in [rows(database, f"SELECT count(*) FROM {relation}")]  # noqa: S608 — a constant
    }


def seals(database: Database) -> list[Seal]:
    with database.snapshot() as connection:
        return read_seals(connection)


def old(database: Database, relation: str) -> Partition:
    """The oldest partition of a table."""
    with database.snapshot() as connection:
        return next(each for each in read_partitions(connection) if each.relation == relation)


def recalls_of(database: Database, tenant: str) -> list[tuple[Any, ...]]:
    return rows(database, "SELECT * FROM recalls WHERE tenant_id = %s ORDER BY recall_id", tenant)


def people(database: Database) -> list[str]:
    return [tenant for (tenant,) in rows(database, "SELECT tenant_id FROM adaptation_states ORDER BY 1")]


def use_tokens(database: Database, tenant: str) -> None:
    """Count the words of the tenant's own memories, a row a session."""
    counted = rows(
        database,
        "SELECT conversation_id, sum(cardinality(string_to_array(text, ' ')))::bigint, max(occurred_at) "
        "FROM memories WHERE tenant_id = %s GROUP BY conversation_id",
        tenant,
    )
    with database.as_tenants([tenant]) as connection:
        assert record_tokens(
            connection,
            [
                TokenUsage(tenant_id=tenant, session_id=session, tokens=n, tokenizer="words", occurred_at=at)
                for session, n, at in counted
            ],
        )


def test_what_is_old_goes_and_what_was_learned_of_it_stays(taught: Database) -> None:
    use_tokens(taught, people(taught)[0])
    before = counts(taught)
    assert min(before.values()) > 0
    weights = rows(taught, "SELECT * FROM adaptation_states ORDER BY tenant_id")

    outcome = aged_and_pruned(taught)

    assert counts(taught) == dict.fromkeys(RELATIONS, 0)
    assert {one.relation: one.rows for one in outcome.dropped} == before
    assert rows(taught, "SELECT * FROM adaptation_states ORDER BY tenant_id") == weights
    verification = verified(taught)
    assert verification.findings == []
    assert verification.sealed_events == before["feedback_events"]
    assert verification.derived_since == max(one.ends for one in outcome.dropped)
    ((counted,),) = rows(taught, "SELECT sum(events)::bigint FROM feedback_daily")
    assert counted == before["feedback_events"]

    landed(taught, [said(tenant) for tenant in people(taught)])
    assert verified(taught).findings == []
    assert pruned(taught).dropped == [], "what landed since is not old"


def test_a_partition_goes_when_all_of_it_is_older_than_what_is_kept(taught: Database) -> None:
    assert pruned(taught).dropped == [], "the week that is now is never old"
    cut_weeks(taught)
    assert pruned(taught, timedelta(hours=1)).dropped == []
    assert len(pruned(taught).dropped) == len(RELATIONS)


def test_partitions_for_the_weeks_to_come_are_made(database: Database) -> None:
    with database.as_owner() as connection:
        connection.execute(f"DROP TABLE {partitions_of(connection, 'recalls')[-1]}".encode())
    assert pruned(database).made == 1


def test_a_seal_is_the_merkle_root_of_the_rows(taught: Database) -> None:
    use_tokens(taught, people(taught)[0])
    digests = {
        "feedback_events": "SELECT tenant_id, seq, digest FROM feedback_events ORDER BY 1, 2",
        "recalls": "SELECT tenant_id, recall_id, record_send(r) FROM recalls r ORDER BY 1, 2",
        "token_usage": "SELECT tenant_id, usage_id, record_send(t) FROM token_usage t ORDER BY 1, 2",
    }
    before = {relation: rows(taught, query) for relation, query in digests.items()}

    aged_and_pruned(taught)

    for seal in seals(taught):
        own = [row[1:] for row in before[seal.relation] if row[0] == seal.tenant_id]
        leaves = [
            body if seal.relation == "feedback_events" else hashlib.sha256(body).digest() for _, body in own
        ]
        assert (seal.rows, seal.first_id, seal.last_id) == (len(own), own[0][0], own[-1][0])
        assert seal.root == merkle_root(leaves)
    assert {(seal.relation, seal.tenant_id) for seal in seals(taught)} == {
        (relation, row[0]) for relation, landed in before.items() for row in landed
    }


def test_what_was_dropped_is_in_the_audit_trail(taught: Database) -> None:
    outcome = aged_and_pruned(taught)

    with taught.snapshot() as connection:
        assert audit.verify_chain(connection, audit.SYSTEM) is None
    recorded = rows(
        taught, "SELECT actor, body FROM audit_events WHERE action = 'retention' ORDER BY version"
    )
    assert [actor for actor, _ in recorded] == ["tests"] * len(outcome.dropped)
    for (_, body), pruning in zip(recorded, outcome.dropped, strict=True):
        own = [seal for seal in seals(taught) if seal.pruning_id == pruning.pruning_id]
        assert body["seals"] == root_of_seals(own).hex()
        assert (body["relation"], body["rows"]) == (pruning.relation, pruning.rows)


@pytest.fixture(scope="module")
def pruned_template(postgres: PostgresServer, reenactment: Reenactment) -> Iterator[str]:
    """The name of a brain whose feedback and recalls are pruned; connect to copies of it only."""
    with new_database(postgres, reenactment.template) as name:
        with Database(postgres.url(name)) as opened:
            aged_and_pruned(opened)
        yield name


@pytest.fixture
def forgotten(postgres: PostgresServer, pruned_template: str) -> Iterator[Database]:
    """A brain whose feedback and recalls are pruned."""
    with new_database(postgres, pruned_template) as name, Database(postgres.url(name)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("forgery", "claim"),
    [
        ("UPDATE seals SET root = sha256(root) WHERE relation = 'feedback_events'", SEALS),
        ("UPDATE seals SET rows = rows + 1 WHERE relation = 'feedback_events'", SEALS),
        ("UPDATE seals SET first_id = first_id + 1 WHERE relation = 'feedback_events'", SEALS),
        ("UPDATE seals SET root = sha256(root) WHERE relation = 'recalls'", SEALS),
        ("DELETE FROM seals WHERE relation = 'recalls'", SEALS),
        ("DELETE FROM seals WHERE relation = 'feedback_events'", REDERIVATION),
        (
            "UPDATE weight_changes SET event_digest = sha256(event_digest) "
            "WHERE version = (SELECT max(version) FROM weight_changes WHERE event_seq IS NOT NULL)",
            SEALS,
        ),
    ],
)
def test_a_seal_that_is_not_what_was_pruned_is_found(forgotten: Database, forgery: str, claim: str) -> None:
    assert verified(forgotten).findings == []
    with forgotten.as_owner() as connection:
        as_forger(connection, "seals", "weight_changes")
        assert connection.execute(forgery.encode()).rowcount > 0
    assert verified(forgotten).of(claim)


def test_metrics_tell_how_much_was_dropped_and_what_there_is(forgotten: Database) -> None:
    with forgotten.as_operator() as connection:
        done = read_operations_gauges(connection)
        weeks = read_partition_counts(connection, timedelta(days=90))
        dropped = read_prunings(connection)
    assert sum(done.dropped.values()) == sum(one.rows for one in dropped) > 0
    assert done.dropped_at == max(one.dropped_at for one in dropped if one.dropped_at)
    assert {relation: (counts.ahead, counts.due) for relation, counts in weeks.items()} == dict.fromkeys(
        RELATIONS, (8, 0)
    )


def test_what_was_sealed_and_dropped_was_not_tampered_with(forgotten: Database) -> None:
    with forgotten.as_operator() as connection:
        assert find_tampering(connection) == []


def test_an_event_that_is_gone_without_a_seal_is_still_found(forgotten: Database) -> None:
    tenant = people(forgotten)[0]
    landed(forgotten, [said(tenant)] * 3)
    with forgotten.as_owner() as connection:
        as_forger(connection, "feedback_events")
        connection.execute(
            "DELETE FROM feedback_events WHERE seq = (SELECT max(seq) - 1 FROM feedback_events)"
        )
    found = verified(forgotten).of(REDERIVATION)
    assert any("is not there" in finding.message for finding in found)


def test_feedback_on_a_pruned_recall_is_refused_as_such(forgotten: Database) -> None:
    seal = next(seal for seal in seals(forgotten) if seal.relation == "recalls")

    gone, never, landing = land(
        forgotten,
        [
            said(seal.tenant_id, recall_id=seal.first_id),
            said(seal.tenant_id, recall_id=seal.last_id + 10**6),
            said(seal.tenant_id),
        ],
        CONFIGURATION,
    )

    assert isinstance(gone, Refused)
    assert gone.code == "pruned_recall"
    assert "without `recall_id`" in gone.reason
    assert isinstance(never, Refused)
    assert never.code == "unknown_recall"
    assert not isinstance(landing, Refused)


def test_the_service_answers_gone(forgotten: Database, valkey: ValkeyServer, tmp_path: Path) -> None:
    seal = next(seal for seal in seals(forgotten) if seal.relation == "recalls")
    with forgotten.as_operator() as connection:
        key = create_key(connection, seal.tenant_id, "tenant", "tests")
    asked = {"session_id": "session-1", "utility": 0.5, "recall_id": seal.first_id}
    with (
        serving(forgotten, f"{valkey.url}/6", tmp_path / "log") as service,
        service.client(key) as client,
    ):
        answer = client.post("/context/feedback", json=asked)
        without = client.post("/context/feedback", json={**asked, "recall_id": None})
    assert answer.status_code == 410
    assert answer.json()["type"] == "urn:somabrain:problem:pruned_recall"
    assert without.status_code == 200


def test_an_event_outlives_its_recall(taught: Database) -> None:
    """It landed after the week of its recall: it is kept, and not derived again from what is gone."""
    tenant = people(taught)[0]
    recall_id, candidates = next(
        (recall, named)
        for recall, named in rows(
            taught, "SELECT recall_id, candidate_ids FROM recalls WHERE tenant_id = %s", tenant
        )
    )
    cut_weeks(taught)
    landed(taught, [said(tenant, recall_id=recall_id, helpful=[{"memory": candidates[0]}])])

    assert pruned(taught).refused == []

    assert [event["recall_id"] for event in events_of(taught, tenant)] == [recall_id]
    assert verified(taught).findings == []
    with taught.as_owner() as connection:
        as_forger(connection, "seals")
        connection.execute("DELETE FROM seals WHERE relation = 'recalls' AND tenant_id = %s", (tenant,))
    assert any("its event is not there" in one.message for one in verified(taught).of(REDERIVATION))


def test_a_rollback_whose_rewards_are_pruned_is_no_finding(database: Database) -> None:
    tenant = new_tenant(database)
    feed(database, tenant, GOOD)
    cut_weeks(database)
    feed(database, tenant, BAD)
    assert rollbacks(changes_of(database, tenant))

    assert pruned(database).refused == []

    assert verified(database).findings == []


def test_a_tenant_under_a_legal_hold_keeps_everything(taught: Database) -> None:
    held, *others = people(taught)
    use_tokens(taught, held)
    events, recalls = events_of(taught, held), recalls_of(taught, held)
    tokens = rows(taught, "SELECT * FROM token_usage ORDER BY usage_id")
    with taught.as_operator() as connection:
        place_hold(connection, held, "ada", "a case")

    outcome = aged_and_pruned(taught)

    assert events_of(taught, held) == events
    assert recalls_of(taught, held) == recalls
    assert rows(taught, "SELECT * FROM token_usage ORDER BY usage_id") == tokens
    assert [events_of(taught, other) for other in others] == [[]] * len(others)
    assert {one.relation: one.kept_rows for one in outcome.dropped} == {
        "feedback_events": len(events),
        "recalls": len(recalls),
    }
    assert outcome.held == 1, "of token usage there was nobody else's"
    assert held not in {seal.tenant_id for seal in seals(taught)}
    assert verified(taught).findings == []
    landed(taught, [said(held, recall_id=recalls[0][1])])

    again = pruned(taught)
    assert (again.dropped, again.held) == ([], len(RELATIONS))


def test_what_was_held_goes_once_it_is_released(taught: Database) -> None:
    held = people(taught)[0]
    with taught.as_operator() as connection:
        place_hold(connection, held, "ada", "a case")
    aged_and_pruned(taught)
    kept = counts(taught)
    with taught.as_operator() as connection:
        release_hold(connection, held, "ada")

    outcome = pruned(taught)

    assert {one.relation: one.rows for one in outcome.dropped if one.rows} == {
        relation: count for relation, count in kept.items() if count
    }
    assert counts(taught) == dict.fromkeys(RELATIONS, 0)
    assert verified(taught).findings == []
    actions = rows(taught, "SELECT action FROM audit_events WHERE tenant_id = %s ORDER BY version", held)
    assert [action for (action,) in actions][-2:] == ["legal_hold", "legal_hold_released"]


def test_a_hold_is_placed_and_released_once(database: Database) -> None:
    tenant = new_tenant(database)
    with database.as_operator() as connection:
        with pytest.raises(NotHeld, match="under no legal hold"):
            release_hold(connection, tenant, "ada")
        place_hold(connection, tenant, "ada", "a case")
        with pytest.raises(AlreadyHeld, match="by ada: a case"):
            place_hold(connection, tenant, "bob", "another")


def test_a_hold_that_is_placed_after_the_decision_counts(taught: Database) -> None:
    held = people(taught)[0]
    events = events_of(taught, held)
    cut_weeks(taught)
    with running(taught) as connection:
        partition = old(taught, "feedback_events")
        pruning = decide(connection, partition, "tests").pruning
        assert pruning is not None
        detach(connection, partition)
        with taught.as_operator() as operator:
            place_hold(operator, held, "ada", "a case")
        drop(connection, pruning)

    assert events_of(taught, held) == events
    assert verified(taught).findings == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_ended_between_two_steps_is_finished_by_the_next(taught: Database, steps: int) -> None:
    before = counts(taught)
    cut_weeks(taught)
    with running(taught) as connection:
        partition = old(taught, "feedback_events")
        decide(connection, partition, "killed")
        if steps > 1:
            detach(connection, partition)
    assert verified(taught).findings == [], "what is decided is sealed, whether or not it is there"

    outcome = pruned(taught)

    assert {one.relation: one.rows for one in outcome.dropped if one.rows} == {
        relation: count for relation, count in before.items() if count
    }
    with taught.snapshot() as connection:
        assert read_prunings(connection, pending=True) == []
    assert rows(taught, "SELECT to_regclass(%s)", partition.name) == [(None,)]
    assert verified(taught).findings == []


def test_a_detachment_that_was_killed_is_finished_by_the_next_run(taught: Database) -> None:
    """The run's connection is killed while it waits for a transaction that began before it."""
    cut_weeks(taught)
    partition = old(taught, "feedback_events")

    def killed() -> None:
        with suppress(psycopg.OperationalError), running(taught) as connection:
            decide(connection, partition, "killed")
            detach(connection, partition)

    with psycopg.connect(taught.url) as reader:
        reader.execute("SELECT count(*) FROM feedback_events")
        thread = threading.Thread(target=killed)
        thread.start()
        wait_until(lambda: any(each.detaching for each in _partitions(taught)))
        rows(
            taught,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'ALTER TABLE%%'",
        )
        thread.join()
    assert verified(taught).findings == [], "events that no query sees any more are sealed"

    assert pruned(taught).refused == []

    assert rows(taught, "SELECT to_regclass(%s)", partition.name) == [(None,)]
    assert verified(taught).findings == []


def _partitions(database: Database) -> list[Partition]:
    with database.snapshot() as connection:
        return read_partitions(connection)


def test_a_detachment_does_not_wait_for_ever_and_keeps_nobody_waiting(taught: Database) -> None:
    cut_weeks(taught)
    partition = old(taught, "feedback_events")
    with running(taught) as connection, psycopg.connect(taught.url) as reader:
        reader.execute("SELECT count(*) FROM feedback_events")
        decide(connection, partition, "tests")
        with pytest.raises(TableBusy, match="the next run goes on with it"):
            detach(connection, partition, wait_seconds=0.2)
        landed(taught, [said(people(taught)[0])])
    assert pruned(taught).refused == []
    assert verified(taught).findings == []


def test_a_decision_does_not_wait_for_ever_for_who_changes_the_rows(taught: Database) -> None:
    cut_weeks(taught)
    partition = old(taught, "recalls")
    with running(taught) as connection, taught.as_operator() as operator:
        operator.execute("UPDATE recalls SET query = ''")
        with pytest.raises(TableBusy, match="the next run tries again"):
            decide(connection, partition, "tests", wait_seconds=0.2)
        operator.rollback()
    assert seals(taught) == []


def test_one_run_at_a_time(database: Database) -> None:
    with running(database), pytest.raises(RetentionRuns, match="running already"):
        pruned(database)


def test_feedback_that_no_aggregate_counts_is_not_dropped(database: Database) -> None:
    tenant = new_tenant(database)
    tomorrow = datetime.now(UTC) + timedelta(days=2)
    landed(database, [said(tenant), said(tenant, occurred_at=tomorrow.isoformat())])
    cut_weeks(database)

    outcome = pruned(database)

    (refusal,) = outcome.refused
    assert f"2 events of {tenant} beyond the mark of feedback_daily" in refusal.reason
    assert "Materialise these days" in refusal.reason
    assert len(events_of(database, tenant)) == 2
    assert {one.relation for one in outcome.dropped} == {"recalls", "token_usage"}


def test_feedback_that_is_not_published_yet_is_not_dropped(taught: Database) -> None:
    cut_weeks(taught)
    (refusal,) = run(taught, NOW, FIRST_DAY, "tests", relayed=True).refused
    assert "not published to Kafka yet" in refusal.reason
    with Outbox(taught.url) as outbox:
        publish(outbox)
    assert run(taught, NOW, FIRST_DAY, "tests", relayed=True).refused == []
    assert counts(taught)["feedback_events"] == 0


def test_a_day_whose_aggregate_was_lost_is_not_dropped(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant)])
    cut_weeks(database)
    today = datetime.now(UTC).date()
    with database.as_operator() as connection:
        aggregate(connection, today, today, FIRST_DAY)
    rows(database, "DELETE FROM feedback_daily")

    (refusal,) = pruned(database).refused

    assert f"1 events of {tenant} about {datetime.now(UTC).date()}" in refusal.reason


def test_a_late_event_about_a_pruned_day_is_counted_too(database: Database) -> None:
    one, other = new_tenants(database, 2)
    noon = "2026-03-01T12:00:00Z"
    landed(database, [said(one, occurred_at=noon)] * 3 + [said(other, occurred_at=noon)])
    aged_and_pruned(database)
    landed(database, [said(one, occurred_at=noon)])
    aged_and_pruned(database)

    counted = rows(database, "SELECT tenant_id, day, events FROM feedback_daily ORDER BY tenant_id")
    assert counted == [(one, date(2026, 3, 1), 4), (other, date(2026, 3, 1), 1)]


def test_old_idempotency_keys_and_counts_of_requests_are_deleted(database: Database) -> None:
    tenant, held = new_tenants(database, 2)
    landed(database, [said(name, idempotency_key=str(n)) for name in (tenant, held) for n in range(3)])
    minute = datetime(2026, 1, 1, tzinfo=UTC)
    with database.as_operator() as connection:
        add_requests(connection, {(name, minute): Tally(requests=1) for name in (tenant, held)})
        place_hold(connection, held, "ada", "a case")
    assert pruned(database, timedelta(days=90)).deleted["idempotency_keys"] == 0

    deleted = pruned(database).deleted

    assert deleted["idempotency_keys"] == 3
    assert rows(database, "SELECT DISTINCT tenant_id FROM idempotency_keys") == [(held,)]
    assert rows(database, "SELECT DISTINCT tenant_id FROM request_stats") == [(held,)]


def test_a_leaf_of_a_seal_holds_each_of_its_fields(forgotten: Database) -> None:
    seal = seals(forgotten)[0]
    other: Row = {
        "tenant_id": "another",
        "pruning_id": seal.pruning_id + 1,
        "relation": "token_usage",
        "begins": seal.begins - timedelta(microseconds=1),
        "ends": seal.ends + timedelta(microseconds=1),
        "rows": seal.rows + 1,
        "first_id": seal.first_id - 1,
        "last_id": seal.last_id + 1,
        "root": bytes(32),
    }
    changed = [replace(seal, **{name: value}).leaf() for name, value in other.items()]
    assert other.keys() == vars(seal).keys()
    assert len({seal.leaf(), *changed}) == len(changed) + 1
