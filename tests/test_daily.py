"""Feedback by day: sums that are what the events say, days that nobody's run can hide, logs that were cut."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from somabrain_dagster.store.daily import Aggregation, UnseenDays, aggregate, read_unseen_days
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.positions import (
    FEEDBACK_DAILY,
    Head,
    Lag,
    advance_marks,
    position,
    read_heads,
    read_lag,
)
from tests.brain import landed, new_tenant, new_tenants, said

FIRST = date(2026, 3, 1)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def at(number: int, hour: int = 12) -> str:
    """A time on the so-manieth day, as feedback gives it."""
    return datetime.combine(day(number), time(hour), UTC).isoformat()


def aggregated(database: Database, first: int, last: int) -> Aggregation:
    with database.as_operator() as connection:
        return aggregate(connection, day(first), day(last), FIRST)


def counts(database: Database) -> dict[tuple[str, date], int]:
    return {
        (tenant, when): events
        for tenant, when, events in owner(database, "SELECT tenant_id, day, events FROM feedback_daily")
    }


def owner(database: Database, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Run as the owner of the tables, who can do what nobody should."""
    with database.as_owner() as connection:
        cursor = connection.execute(query.encode(), arguments)
        return cursor.fetchall() if cursor.description else []


def lag(database: Database) -> Lag:
    with database.snapshot() as connection:
        return read_lag(connection, FEEDBACK_DAILY, read_heads(connection))


def unseen(database: Database, last: int = 30) -> UnseenDays:
    with database.snapshot() as connection:
        return read_unseen_days(connection, read_heads(connection), FIRST, day(last))


EVENT = st.tuples(st.just("event"), st.integers(0, 1), st.integers(-2, 5))
RUN = st.tuples(st.just("run"), st.integers(0, 5), st.integers(0, 5))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENT | RUN, max_size=12))
def test_whatever_was_aggregated_by_hand_no_day_is_hidden(
    database: Database, steps: Sequence[tuple[str, int, int]]
) -> None:
    """After any landings and any runs over any days, one run over the unseen days makes everything right."""
    tenants = new_tenants(database, 2)
    expected: defaultdict[tuple[str, date], int] = defaultdict(int)
    for step, first, second in steps:
        if step == "event":
            landed(database, [said(tenants[first], occurred_at=at(second))])
            if second >= 0:
                expected[tenants[first], day(second)] += 1
        else:
            aggregated(database, min(first, second), max(first, second))

    waiting = unseen(database)
    if waiting.first is not None and waiting.last is not None:
        with database.as_operator() as connection:
            aggregate(connection, waiting.first, waiting.last, FIRST)

    made = {key: events for key, events in counts(database).items() if key[0] in tenants}
    assert made == dict(expected)
    assert unseen(database).first is None


def test_sums_are_those_of_the_events(database: Database) -> None:
    tenant = new_tenant(database)
    landed(
        database,
        [
            said(tenant, 0.5, occurred_at=at(0, 0), session_id="a"),
            said(tenant, -1.0, reward=0.25, occurred_at=at(0, 23), session_id="b"),
            said(tenant, 0.25, occurred_at=at(0), session_id="a"),
            said(tenant, 1.0, occurred_at=at(1, 0), session_id="c"),
        ],
    )

    made = aggregated(database, 0, 1)

    assert owner(
        database,
        "SELECT events, sessions, utility_sum, utility_square_sum, reward_sum, reward_square_sum "
        "FROM feedback_daily ORDER BY day",
    ) == [(3, 2, -0.25, 1.3125, 1.0, 0.375), (1, 1, 1.0, 1.0, 1.0, 1.0)]
    assert (made.rows, made.tenants, [entry.day for entry in made.days]) == (2, 1, [day(0), day(1)])


def test_days_before_the_first_and_days_to_come_are_told_apart(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant, occurred_at=at(number)) for number in (-1, -1, 2, 4, 9, 9, 9)])

    found = unseen(database, last=5)

    assert (found.first, found.last) == (day(2), day(4))
    assert (found.events, found.before, found.after) == (2, 2, 3)


def test_a_day_to_come_waits_for_its_day(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant, occurred_at=at(2)), said(tenant, occurred_at=at(9))])
    aggregated(database, 2, 2)

    assert lag(database).tenants == [tenant]
    assert unseen(database, last=9).last == day(9)


def test_a_day_that_lost_its_events_loses_its_row(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant, occurred_at=at(0))])
    aggregated(database, 0, 0)
    owner(database, "UPDATE feedback_events SET occurred_at = occurred_at + interval '1 day'")

    aggregated(database, 0, 1)

    assert counts(database) == {(tenant, day(1)): 1}


def test_what_was_counted_of_pruned_events_stands(database: Database) -> None:
    pruned, whole = new_tenants(database, 2)
    landed(database, [said(pruned, occurred_at=at(0))] * 3)
    aggregated(database, 0, 0)
    owner(database, "DELETE FROM feedback_events WHERE seq < 3")
    landed(
        database, [said(tenant, occurred_at=at(number)) for tenant in (pruned, whole) for number in (0, 1)]
    )

    made = aggregated(database, 0, 1)

    expected = {(pruned, day(0)): 4, (pruned, day(1)): 1, (whole, day(0)): 1, (whole, day(1)): 1}
    assert counts(database) == expected, "what is new is added to it"
    assert made.kept == 0
    ((events, utility_sum, square_sum),) = owner(
        database,
        "SELECT events, utility_sum, utility_square_sum FROM feedback_daily "
        "WHERE tenant_id = %s AND day = %s",
        pruned,
        day(0),
    )
    assert (events, utility_sum, square_sum) == (4, 4 * 0.5, 4 * 0.25)

    again = aggregated(database, 0, 1)

    assert counts(database) == expected, "and once only"
    assert again.kept == 1


def test_a_log_that_was_rewound_is_read_again_from_its_start(database: Database) -> None:
    tenant = new_tenant(database)
    landed(database, [said(tenant, occurred_at=at(0))])
    ((saved,),) = owner(database, "SELECT to_jsonb(s) FROM adaptation_states s")
    landed(database, [said(tenant, occurred_at=at(3))])
    aggregated(database, 0, 3)
    assert lag(database).tenants == []

    # As after some tables were restored from before the second event; then the tenant goes on.
    owner(database, "DELETE FROM weight_changes WHERE version = 2")
    owner(database, "DELETE FROM feedback_events WHERE seq = 2")
    owner(database, "DELETE FROM adaptation_states")
    owner(
        database,
        "INSERT INTO adaptation_states "
        "SELECT * FROM jsonb_populate_record(NULL::adaptation_states, %s::jsonb)",
        json.dumps(saved),
    )
    landed(database, [said(tenant, -0.5, occurred_at=at(1))])

    behind = lag(database)
    assert (behind.tenants, behind.rewound, behind.events) == ([tenant], [tenant], 2)
    assert (unseen(database).first, unseen(database).last) == (day(0), day(3)), (
        "the day that was taken back too"
    )

    aggregated(database, 0, 3)
    assert counts(database) == {(tenant, day(0)): 1, (tenant, day(1)): 1}
    assert lag(database).tenants == []


def test_a_position_tells_every_log_apart(database: Database) -> None:
    tenants = new_tenants(database, 2)
    seen = set()
    for _ in range(2):
        for tenant in tenants:
            landed(database, [said(tenant)])
            with database.snapshot() as connection:
                heads = read_heads(connection)
            assert [head.tenant_id for head in heads] == tenants
            seen.add(position(heads))
    assert len(seen) == 4
    assert {where.split("-")[0] for where in seen} == {"3", "4", "5", "6"}

    last = heads[-1]
    rewritten = Head(last.tenant_id, last.version, bytes(32), last.feedback_seq, last.updated_at)
    assert position([heads[0], rewritten]) not in seen, "as many changes, yet another log"


def test_marks_are_those_of_one_consumer(database: Database) -> None:
    tenant = new_tenant(database)
    with database.as_operator() as connection:
        advance_marks(connection, "another", read_heads(connection))

    assert lag(database).tenants == [tenant]
