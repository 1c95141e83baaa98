"""Landing feedback: each event with its change of weights and the new state, or refused alone, and once."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import nextafter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.embedded.process import LOOPBACK, free_port
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.weights import NAMES
from somabrain_dagster.store.adaptation import UnknownTenant, read_configurations, read_state
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed, Refused, event_digest, land
from somabrain_dagster.store.verification import verify
from tests.brain import (
    CONFIGURATION,
    answer,
    assert_sound,
    changes_of,
    events_of,
    landed,
    learned,
    new_tenant,
    new_tenants,
    said,
    state_of,
    to_tenant,
    weights_of,
)

pytestmark = pytest.mark.learning


@pytest.fixture
def snapshots(valkey: ValkeyServer) -> Iterator[SnapshotCache]:
    cache = SnapshotCache(valkey.url)
    yield cache
    cache.close()


START = dict(zip(NAMES, CONFIGURATION.start_nanos.tolist(), strict=True))
MILLION = 1_000_000


def by_name(nanos: Sequence[int]) -> dict[str, int]:
    return dict(zip(NAMES, nanos, strict=True))


def refused(outcome: object) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


def test_one_event_is_one_event_one_change_and_the_new_state(shared_database: Database) -> None:
    """By hand: lr 0.05, utility 0.5, so α +0.025, γ −0.0125, λ +0.025, μ and ν −0.00625; r − V = 0.5."""
    tenant = new_tenant(shared_database)
    (outcome,) = landed(
        shared_database,
        [
            said(
                tenant,
                0.5,
                label="bandit",
                source="rater",
                arm="control",
                metadata={"witty": 5},
                occurred_at="2018-04-01T14:00:00+02:00",
            )
        ],
    )

    after = START | {
        "alpha": 1025 * MILLION,
        "gamma": 87_500_000,
        "lambda": 1025 * MILLION,
        "mu": 93_750_000,
        "nu": 43_750_000,
    }
    assert outcome == Landed(tenant, seq=1, version=1, weights=list(after.values()))
    assert outcome.event_id == f"{tenant}:1"
    levels = {
        "delta": 0.5,
        "dopamine": 0.6000000000000001,
        "serotonin": 1 - 0.025**0.5,
        "noradrenaline": 0.1,
        "acetylcholine": 0.1 * 0.025**0.5,
    }

    (event,) = events_of(shared_database, tenant)
    start, change = changes_of(shared_database, tenant)
    state = state_of(shared_database, tenant)
    assert event == levels | {
        "tenant_id": tenant,
        "seq": 1,
        "created_at": change["created_at"],
        "occurred_at": datetime(2018, 4, 1, 12, tzinfo=UTC),
        "session_id": "session-1",
        "source": "rater",
        "utility": 0.5,
        "reward": None,
        "recall_id": None,
        "label": "bandit",
        "helpful": None,
        "arm": "control",
        "metadata": {"witty": 5},
        "reward_mean": 0.05,
        "reward_variance": 0.025,
        "digest": change["event_digest"],
    }
    assert (start["cause"], start["after"]) == ("start", list(START.values()))
    assert by_name(change["after"]) == after
    assert by_name(change["shift"]) == {name: after[name] - START[name] for name in NAMES}
    assert (change["cause"], change["version"], change["event_seq"]) == ("feedback", 1, 1)
    assert (change["low"], change["high"], change["restored_version"]) == (None, None, None)
    assert change["configuration"].hex() == CONFIGURATION.digest
    assert msgspec.structs.asdict(state.levels) == levels
    assert (state.rewards.mean, state.rewards.variance) == (0.05, 0.025)
    assert state.recent_rewards.tolist() == [500_000]
    assert state.updated_at == change["created_at"]
    assert_sound(shared_database, tenant)


def test_an_event_without_a_time_happened_when_it_landed(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant)])
    (event,) = events_of(shared_database, tenant)
    assert event["occurred_at"] == event["created_at"]


def test_nothing_lands_from_nothing(shared_database: Database) -> None:
    assert land(shared_database, [], CONFIGURATION) == []


def test_outcomes_have_the_order_of_the_batch(shared_database: Database) -> None:
    """Three tenants, two of one configuration and one of another, and some who do not exist."""
    one, other = new_tenants(shared_database, 2)
    own = new_tenant(shared_database, {"base_learning_rate": 0.01})
    tenants = [other, "nobody", own, one, other, "no-one", one, own, other]
    outcomes = land(
        shared_database,
        [said(tenant, position / 10) for position, tenant in enumerate(tenants)],
        CONFIGURATION,
    )
    assert [isinstance(outcome, Landed) for outcome in outcomes] == [
        tenant in (one, other, own) for tenant in tenants
    ]
    assert [
        (outcome.tenant_id, outcome.seq, outcome.version)
        for outcome in outcomes
        if isinstance(outcome, Landed)
    ] == [(other, 1, 1), (own, 1, 1), (one, 1, 1), (other, 2, 2), (one, 2, 2), (own, 2, 2), (other, 3, 3)]
    for tenant in (one, other, own):
        assert [event["utility"] for event in events_of(shared_database, tenant)] == [
            position / 10 for position, name in enumerate(tenants) if name == tenant
        ]
        assert_sound(shared_database, tenant)


def test_what_is_refused_is_refused_alone_and_leaves_nothing(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    batch = [
        said(tenant, 0.1),
        said("nobody"),
        said(tenant, recall_id=2**62, idempotency_key="once"),
        said(tenant, 0.2, idempotency_key="once"),
    ]
    first, stranger, lost, second = land(shared_database, batch, CONFIGURATION)
    assert (answer(first).seq, answer(second).seq) == (1, 2)
    assert refused(stranger).code == "unknown_tenant"
    assert "somabrain tenant create nobody" in refused(stranger).reason
    assert refused(lost).code == "unknown_recall"
    assert str(2**62) in refused(lost).reason
    assert [event["utility"] for event in events_of(shared_database, tenant)] == [0.1, 0.2]
    with shared_database.as_operator() as connection, pytest.raises(UnknownTenant, match="nobody"):
        read_state(connection, "nobody")
    assert_sound(shared_database, tenant)


def test_a_key_makes_a_retry_safe(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    feedback = said(tenant, 0.5, metadata={"x": [1.0, -0.0]}, idempotency_key="once")
    (first,) = landed(shared_database, [feedback])
    landed(shared_database, [said(tenant), said(tenant)])

    (again,) = landed(shared_database, [feedback])
    assert again == Landed(tenant, first.seq, first.version, first.weights, repeated=True)
    assert again.weights != weights_of(shared_database, tenant)
    assert len(events_of(shared_database, tenant)) == 3


def test_a_key_makes_a_retry_in_the_same_batch_safe(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    feedback = said(tenant, 0.5, idempotency_key="once")
    first, between, second, third = landed(shared_database, [feedback, said(tenant), feedback, feedback])
    assert (first.seq, between.seq) == (1, 2)
    assert not first.repeated
    assert second == third == Landed(tenant, first.seq, first.version, first.weights, repeated=True)
    assert len(events_of(shared_database, tenant)) == 2


def test_a_key_makes_retries_at_once_safe(shared_database: Database) -> None:
    tenant, bystander = new_tenants(shared_database, 2)
    feedback = said(tenant, 0.5, idempotency_key="once")

    def retry(_: int) -> Landed:
        return landed(shared_database, [said(bystander), feedback])[1]

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(retry, range(24)))
    assert sorted(outcome.repeated for outcome in outcomes) == [False] + [True] * 23
    assert {(outcome.seq, outcome.version, *outcome.weights) for outcome in outcomes} == {
        (1, 1, *weights_of(shared_database, tenant))
    }
    assert len(events_of(shared_database, tenant)) == 1
    assert len(events_of(shared_database, bystander)) == 24
    assert_sound(shared_database, bystander)


def test_a_key_stands_for_one_feedback_only(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    first, same_batch = land(
        shared_database,
        [said(tenant, 0.5, idempotency_key="once"), said(tenant, 0.6, idempotency_key="once")],
        CONFIGURATION,
    )
    (later,) = land(
        shared_database, [said(tenant, 0.5, source="rater", idempotency_key="once")], CONFIGURATION
    )
    assert answer(first).seq == 1
    for outcome in (same_batch, later):
        assert refused(outcome).code == "key_reused"
        assert "'once'" in refused(outcome).reason
    assert len(events_of(shared_database, tenant)) == 1


def test_a_key_is_the_tenants_own(shared_database: Database) -> None:
    one, other = new_tenants(shared_database, 2)
    outcomes = landed(shared_database, [said(tenant, idempotency_key="once") for tenant in (one, other)])
    assert [(outcome.tenant_id, outcome.repeated) for outcome in outcomes] == [(one, False), (other, False)]


def test_a_tenant_of_whom_a_batch_has_only_retries_gets_its_own_answers_and_no_new_state(
    shared_database: Database,
) -> None:
    tenants = new_tenants(shared_database, 5)
    utilities = dict(zip(tenants, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    said_before = {tenant: said(tenant, utilities[tenant], idempotency_key="once") for tenant in tenants}
    before = dict(zip(tenants, landed(shared_database, list(said_before.values())), strict=True))
    retrying, fresh = tenants[::2], tenants[1::2]
    states = {tenant: state_of(shared_database, tenant) for tenant in tenants}

    batch = [
        feedback
        for tenant in tenants
        for feedback in ([said_before[tenant]] * 2 if tenant in retrying else [said(tenant, 1.0)])
    ]
    outcomes = landed(shared_database, batch)

    for feedback, outcome in zip(batch, outcomes, strict=True):
        tenant = feedback.tenant_id
        if tenant in retrying:
            first = before[tenant]
            assert outcome == Landed(tenant, first.seq, first.version, first.weights, repeated=True)
        else:
            assert (outcome.tenant_id, outcome.seq, outcome.version, outcome.repeated) == (
                tenant,
                2,
                2,
                False,
            )
    for tenant in retrying:
        assert state_of(shared_database, tenant).updated_at == states[tenant].updated_at
    for tenant in fresh:
        assert state_of(shared_database, tenant).version == 2
    for tenant in tenants:
        assert_sound(shared_database, tenant)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.dictionaries(st.text("aβ\U0001f9e0\\ u0", max_size=3), json_values), min_size=1, max_size=8)
)
@example(
    [{"numbers": [1e22, 1e23, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 2**53 + 1.0, 10**40, -(10**20)]}]
)
@example([{"text": "ä \U0001f9e0 \u2028 \\u0000 \uffff \x7f \"'", "": {"": []}, "Z": 1, "a": 2, "é": 3}])
def test_an_event_read_back_has_the_digest_that_it_landed_with(
    shared_database: Database, bodies: list[dict[str, Any]]
) -> None:
    """Whatever becomes of its metadata in jsonb: 1e23 comes back as an integer, −0.0 as 0, keys sorted."""
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant, metadata=metadata) for metadata in bodies])
    events = events_of(shared_database, tenant)
    assert len(events) == len(bodies)
    for event in events:
        digest = event.pop("digest")
        assert event_digest(event) == digest
    assert_sound(shared_database, tenant)


def test_a_digest_covers_every_column(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant, metadata={"x": 1})])
    (event,) = events_of(shared_database, tenant)
    digest = event.pop("digest")
    assert event_digest(event) == digest
    for name, value in event.items():
        assert event_digest({**event, name: another(name, value)}) != digest


def another(column: str, value: Any) -> Any:
    """Another value that the column could hold."""
    if value is None:
        return {"reward": 0.0, "recall_id": 1, "helpful": [{"memory": 1, "credit": 1.0}]}.get(column, "else")
    if isinstance(value, datetime):
        return value + timedelta(microseconds=1)
    if isinstance(value, float):
        return nextafter(value, 2.0)
    if isinstance(value, int):
        return value + 1
    return f"{value} else" if isinstance(value, str) else {**value, "x": 2}


def unchecked(tenant_id: str, **fields: Any) -> Feedback:
    """A feedback with a NUL, built past the check that refuses it: only the database can."""
    return Feedback(tenant_id=tenant_id, session_id="a\0b", utility=1.0, **fields)


@pytest.mark.parametrize("bad", [{0}, {7}, {12}, {3, 4}, {0, 6, 12}, set(range(13))], ids=str)
def test_a_row_that_the_database_refuses_fails_alone(shared_database: Database, bad: set[int]) -> None:
    one, other = new_tenants(shared_database, 2)
    tenants = [one if position % 3 else other for position in range(13)]
    batch = [
        unchecked(tenant, idempotency_key=f"key-{position}")
        if position in bad
        else said(tenant, position / 20, idempotency_key=f"key-{position}")
        for position, tenant in enumerate(tenants)
    ]
    outcomes = land(shared_database, batch, CONFIGURATION)
    assert {position for position, outcome in enumerate(outcomes) if isinstance(outcome, Refused)} == bad
    for position in bad:
        assert refused(outcomes[position]).code == "database"
        assert "database refuses" in refused(outcomes[position]).reason
    for tenant in (one, other):
        places = [place for place, name in enumerate(tenants) if name == tenant and place not in bad]
        assert [event["utility"] for event in events_of(shared_database, tenant)] == [p / 20 for p in places]
        assert [answer(outcomes[place]).seq for place in places] == list(range(1, len(places) + 1))
        assert_sound(shared_database, tenant)


def test_a_key_of_what_the_database_refused_is_free(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    land(shared_database, [unchecked(tenant, idempotency_key="once")], CONFIGURATION)
    (outcome,) = landed(shared_database, [said(tenant, idempotency_key="once")])
    assert not outcome.repeated


SENSITIVE = LearningConfiguration.from_json(
    CONFIGURATION.to_json()
    | {
        "dynamic_learning_rate": True,
        "guard": {"enabled": True, "recent": 3, "before": 4, "standard_errors": 1.0},
    }
)
"""Dopamine scales the rate, and the guard trips within a few events."""

Stream = list[tuple[int, float, float | None]]
"""(which tenant, utility, reward), in the order of arrival."""

grid = st.integers(-4, 4).map(lambda quarter: quarter / 4)
streams: st.SearchStrategy[Stream] = st.lists(
    st.tuples(st.integers(0, 2), grid | st.floats(-1, 1), st.none() | grid), min_size=1, max_size=30
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams, st.sets(st.integers(1, 29)))
@example([(0, 1.0, None)] * 5 + [(1, 1.0, None)] * 3 + [(0, -1.0, None)] * 9 + [(1, -1.0, 1.0)], {6, 11, 12})
def test_what_is_learned_does_not_depend_on_the_batches(
    shared_database: Database, stream: Stream, cuts: set[int]
) -> None:
    """One by one, in batches that tenants share, or each tenant's events at once, rollbacks included."""
    present = sorted({tenant for tenant, _, _ in stream})

    def feedback(tenants: dict[int, str]) -> list[Feedback]:
        return [said(tenants[tenant], utility, reward=reward) for tenant, utility, reward in stream]

    def fresh() -> dict[int, str]:
        return dict(zip(present, new_tenants(shared_database, len(present), None, SENSITIVE), strict=True))

    alone, batched, apart = fresh(), fresh(), fresh()
    for event in feedback(alone):
        landed(shared_database, [event], SENSITIVE)
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for begin, end in pairwise(ends):
        landed(shared_database, feedback(batched)[begin:end], SENSITIVE)
    for name in apart.values():
        own = [event for event in feedback(apart) if event.tenant_id == name]
        landed(shared_database, own, SENSITIVE)

    for tenant in present:
        expected = learned(shared_database, alone[tenant])
        assert learned(shared_database, batched[tenant]) == expected
        assert learned(shared_database, apart[tenant]) == expected
        assert_sound(shared_database, batched[tenant])


def test_many_tenants_fed_in_parallel_learn_what_they_would_have_learned_in_sequence(
    shared_database: Database,
) -> None:
    """Batches share tenants, in any order; whatever order each tenant's events got, they make its log."""
    tenants = new_tenants(shared_database, 6, None, SENSITIVE)
    generator = random.Random(7)
    batches = [
        [
            said(
                generator.choice(tenants),
                generator.uniform(-1, 1),
                metadata={"batch": number, "place": place},
            )
            for place in range(generator.randrange(1, 12))
        ]
        for number in range(60)
    ]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda batch: landed(shared_database, batch, SENSITIVE), batches))

    order: dict[str, list[tuple[int, Feedback]]] = {tenant: [] for tenant in tenants}
    for batch, answers in zip(batches, outcomes, strict=True):
        for feedback, outcome in zip(batch, answers, strict=True):
            order[feedback.tenant_id].append((outcome.seq, feedback))
    twins = dict(zip(tenants, new_tenants(shared_database, 6, None, SENSITIVE), strict=True))
    for tenant, events in order.items():
        events.sort(key=lambda event: event[0])
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
        places = [tuple(feedback.metadata.values()) for _, feedback in events]
        for number in range(len(batches)):
            within = [place for place in places if place[0] == number]
            assert within == sorted(within)
        landed(shared_database, [to_tenant(feedback, twins[tenant]) for _, feedback in events], SENSITIVE)
        assert learned(shared_database, tenant) == learned(shared_database, twins[tenant])
        assert_sound(shared_database, tenant)


def test_a_new_configuration_is_a_change_before_the_first_event_under_it(shared_database: Database) -> None:
    """Its bounds clamp: α from 1.5 to at most 1.2, which the event then cannot raise."""
    one, other = new_tenants(shared_database, 2)
    landed(shared_database, [said(tenant, 1.0) for tenant in (one, other) for _ in range(10)])
    assert by_name(weights_of(shared_database, one))["alpha"] == 1500 * MILLION
    narrow = CONFIGURATION.overridden({"high": {"alpha": 1.2}})

    first, second = landed(shared_database, [said(one, 1.0), said(one, -1.0)], narrow)
    landed(shared_database, [said(one, -1.0)], narrow)

    assert (first.version, second.version) == (12, 13)
    *_, before, configured, raised, lowered, last = changes_of(shared_database, one)
    assert [change["cause"] for change in (configured, raised, lowered, last)] == [
        "configuration",
        "feedback",
        "feedback",
        "feedback",
    ]
    assert configured["shift"] == [0] * len(NAMES)
    assert (configured["low"], configured["high"]) == (narrow.low_nanos.tolist(), narrow.high_nanos.tolist())
    assert by_name(configured["after"]) == by_name(before["after"]) | {"alpha": 1200 * MILLION}
    assert (configured["event_seq"], configured["event_digest"]) == (None, None)
    assert [by_name(change["after"])["alpha"] // MILLION for change in (raised, lowered, last)] == [
        1200,
        1150,
        1100,
    ]
    assert {change["configuration"].hex() for change in (configured, raised, lowered, last)} == {
        narrow.digest
    }
    assert state_of(shared_database, one).configuration.hex() == narrow.digest
    assert_sound(shared_database, one)
    assert by_name(weights_of(shared_database, other))["alpha"] == 1500 * MILLION


def test_every_configuration_that_a_change_names_can_be_read_again(shared_database: Database) -> None:
    tenant = new_tenant(shared_database, {"base_learning_rate": 1e-9, "high": {"alpha": 1e9}})
    landed(shared_database, [said(tenant)])
    landed(shared_database, [said(tenant)], SENSITIVE)
    named = {change["configuration"] for change in changes_of(shared_database, tenant)}
    with shared_database.as_operator() as connection:
        known = read_configurations(connection)
    assert len(named) == 2
    for digest in named:
        assert known[digest].digest == digest.hex()


def test_a_tenant_learns_by_its_own_overrides(shared_database: Database) -> None:
    own = new_tenant(shared_database, {"base_learning_rate": 0.01, "scalar_gain": {"beta": 2.0}})
    other = new_tenant(shared_database)
    landed(shared_database, [said(tenant, 1.0) for tenant in (own, other)])
    assert by_name(weights_of(shared_database, own)) == START | {
        "alpha": 1010 * MILLION,
        "beta": 220 * MILLION,
        "gamma": 95 * MILLION,
        "lambda": 1010 * MILLION,
        "mu": 97_500_000,
        "nu": 47_500_000,
    }
    assert by_name(weights_of(shared_database, other))["alpha"] == 1050 * MILLION
    assert by_name(weights_of(shared_database, other))["beta"] == START["beta"]


def test_overrides_that_the_global_configuration_outgrew_stop_their_own_tenant_only(
    shared_database: Database,
) -> None:
    """α may reach 0.95 for one tenant; then every tenant's α starts at 1."""
    low_start = CONFIGURATION.overridden({"start": {"alpha": 0.9}})
    (own,) = new_tenants(shared_database, 1, {"high": {"alpha": 0.95}}, low_start)
    other = new_tenant(shared_database)
    before = learned(shared_database, own)
    stopped, fine = land(shared_database, [said(own), said(other)], CONFIGURATION)
    assert refused(stopped).code == "invalid_configuration"
    assert own in refused(stopped).reason
    assert "alpha must have low ≤ start ≤ high" in refused(stopped).reason
    assert answer(fine).seq == 1
    assert learned(shared_database, own) == before


def test_the_new_states_are_published_after_the_commit(
    shared_database: Database, snapshots: SnapshotCache
) -> None:
    """Of the tenants that learned something, a rollback and a bisected batch included."""
    one, other, retrying = new_tenants(shared_database, 3, None, SENSITIVE)
    once = said(retrying, idempotency_key="once")
    landed(shared_database, [once], SENSITIVE)
    batch = [said(one, 1.0)] * 5 + [unchecked(one), said(other), once] + [said(one, -1.0)] * 5
    outcomes = land(shared_database, batch, SENSITIVE, snapshots)
    assert [position for position, outcome in enumerate(outcomes) if isinstance(outcome, Refused)] == [5]
    for tenant in (one, other):
        published = snapshots.read(tenant)
        assert published is not None
        state = state_of(shared_database, tenant)
        assert (published["version"], published["nanos"]) == (state.version, state.weights.tolist())
        assert published["hash"] == state.hash.hex()
    assert "auto_rollback" in {change["cause"] for change in changes_of(shared_database, one)}
    assert snapshots.read(retrying) is None


def test_a_cache_that_is_down_refuses_nothing(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    nobody = SnapshotCache(f"redis://{LOOPBACK}:{free_port()}/0")
    (outcome,) = land(shared_database, [said(tenant)], CONFIGURATION, nobody)
    nobody.close()
    assert answer(outcome).version == state_of(shared_database, tenant).version == 1


def test_the_weights_at_the_bounds_stay_there(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    landed(shared_database, [said(tenant, 1.0)] * 200)
    weights = by_name(weights_of(shared_database, tenant))
    assert {name: weights[name] for name in ("alpha", "gamma", "lambda", "mu", "nu")} == {
        "alpha": 3000 * MILLION,
        "gamma": 0,
        "lambda": 5000 * MILLION,
        "mu": 10 * MILLION,
        "nu": 10 * MILLION,
    }
    (outcome,) = landed(shared_database, [said(tenant, -1.0)])
    assert by_name(outcome.weights)["alpha"] == 2950 * MILLION
    assert_sound(shared_database, tenant)


def test_a_landed_database_proves_every_claim(database: Database) -> None:
    """Replay, rederivation, gaps, hash chain, bounds and digests, whatever landing writes."""
    tenants = new_tenants(database, 4, None, SENSITIVE)
    own = new_tenant(database, {"base_learning_rate": 0.01})
    generator = random.Random(11)
    for configuration in (SENSITIVE, CONFIGURATION, SENSITIVE.overridden({"high": {"alpha": 1.1}})):
        for _ in range(12):
            batch = [
                said(generator.choice([*tenants, own]), generator.choice([-1.0, 1.0]), reward=reward)
                for reward in generator.choices([None, -1.0, -0.3, 0.7, 1.0], k=20)
            ]
            landed(database, batch, configuration)
    causes = [change["cause"] for tenant in tenants for change in changes_of(database, tenant)]
    assert set(causes) == {"start", "configuration", "feedback", "auto_rollback"}
    with database.snapshot() as connection:
        assert verify(connection).findings == []
    for tenant in [*tenants, own]:
        assert_sound(database, tenant)


def test_looking_for_many_keys_does_not_read_those_that_were_used_before(database: Database) -> None:
    """However long the log is: whoever lands holds the states that everybody else waits for."""
    tenants, batch = new_tenants(database, 20), 2000

    def keyed(begin: int) -> list[Feedback]:
        numbers = range(begin, begin + batch)
        return [said(tenants[number % 20], 0.1, idempotency_key=f"key-{number}") for number in numbers]

    # One session, so that what it counted is told by it when it is asked.
    with Database(database.url, max_connections=1) as alone:
        for begin in range(0, 8 * batch, batch):
            landed(alone, keyed(begin))
        with alone.as_owner() as connection:
            connection.execute("ANALYZE idempotency_keys, weight_changes")
        before = keys_read(alone)
        landed(alone, keyed(8 * batch))
        assert keys_read(alone) - before < batch


def keys_read(database: Database) -> int:
    """How many idempotency keys were ever read, in the index or in the table."""
    with database.as_owner() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    with database.as_owner() as connection:
        (read,) = connection.execute(
            "SELECT t.seq_tup_read + i.idx_tup_read FROM pg_stat_user_tables t "
            "JOIN pg_stat_user_indexes i USING (relid) WHERE i.indexrelname = 'idempotency_keys_pkey'"
        ).fetchone() or (0,)
    return int(read)
