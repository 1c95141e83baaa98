"""Noise, outliers and streams that mean harm: weights stay in bounds, drift as chance does, go back."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from somabrain_dagster.learning.weights import NAMES, NANO, POSITION, WEIGHTS, to_nanos
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from tests.brain import CONFIGURATION, Row, assert_sound, changes_of, landed, new_tenant, new_tenants, said
from tests.folding import WINDOW, folded, largest_step
from tests.test_auto_rollback import events_before, rollbacks

pytestmark = pytest.mark.learning

LOW, HIGH = (to_nanos([getattr(weight, bound) for weight in WEIGHTS]) for bound in ("low", "high"))
BATCH = 37
"""Events that land together: it divides neither of the guard's windows."""
SURE = 1e-4
"""How often a test of chance would fail, over all seeds, on a rule that does not drift; the seed is fixed."""


def land_all(database: Database, tenant: str, utilities: list[float]) -> list[Row]:
    """Land generated utilities; the tenant's log."""
    events = [said(tenant, utility) for utility in utilities]
    for begin in range(0, len(events), BATCH):
        landed(database, events[begin : begin + BATCH])
    return changes_of(database, tenant)


def assert_within_bounds(changes: list[Row]) -> None:
    after = np.array([change["after"] for change in changes])
    assert (after >= LOW).all()
    assert (after <= HIGH).all()


@given(utilities=st.lists(st.floats(-1, 1), min_size=1, max_size=WINDOW - 1))
@settings(max_examples=25, deadline=None)
def test_whatever_is_said_every_version_is_within_bounds_and_one_step_from_the_last(
    shared_database: Database, utilities: list[float]
) -> None:
    tenant = new_tenant(shared_database)
    changes = land_all(shared_database, tenant, utilities)
    assert_within_bounds(changes)
    assert [change["after"] for change in changes] == folded(utilities)[0]
    for before, change in pairwise(changes):
        for name, was, now in zip(NAMES, before["after"], change["after"], strict=True):
            assert abs(now - was) <= largest_step(name)


def test_random_signs_drift_no_further_than_their_random_walk(shared_database: Database) -> None:
    """α far from its bounds under generated utilities of mean 0: the sum of N steps of lr·U, U in ±1.

    Over 40 tenants its mean and its sum of squares must be what chance makes of them.
    """
    tenants, count = 40, 400
    wide = {"start": {"alpha": 50.0}, "low": {"alpha": 0.0}, "high": {"alpha": 100.0}}
    names = new_tenants(shared_database, tenants, {**wide, "guard": {"enabled": False}})
    utilities = np.random.default_rng(2018).uniform(-1, 1, (count, tenants))
    for batch in np.split(utilities, 8):
        events: list[Feedback] = [
            said(name, utility) for row in batch for name, utility in zip(names, row.tolist(), strict=True)
        ]
        outcomes = landed(shared_database, events)
    drift = np.array([outcome.weights[POSITION["alpha"]] for outcome in outcomes[-tenants:]]) / NANO - 50
    deviation = CONFIGURATION.base_learning_rate * np.sqrt(count / 3)
    walks = drift / deviation
    assert abs(walks.mean()) * np.sqrt(tenants) < norm.isf(SURE / 2)
    assert chi2.ppf(SURE / 2, tenants) < (walks**2).sum() < chi2.isf(SURE / 2, tenants)
    assert drift == pytest.approx(CONFIGURATION.base_learning_rate * utilities.sum(axis=0), abs=count / NANO)


MILD = [0.25, 0.5, 0.375, 0.125] * 30
STREAMS = {
    "alternating ±1": ([1.0, -1.0] * 200, False),
    "all −1": ([-1.0] * 300, False),
    "all 1": ([1.0] * 300, False),
    "all 1, then all −1": ([1.0] * 150 + [-1.0] * 100, True),
    "a burst at the bound": ([1.0] * 140 + [-1.0] * 10 + [1.0] * 140, True),
    "one outlier": ([*MILD, -1.0, *MILD], False),
    "outliers, each forgotten": ([*MILD, *[-1.0, *MILD[:20]] * 6], False),
    "mild, then harm": (MILD + [-1.0] * 20 + MILD + [-1.0] * 20, True),
}


@pytest.mark.parametrize(("utilities", "harmful"), STREAMS.values(), ids=STREAMS)
def test_an_adversarial_stream_stays_in_bounds_and_is_rolled_back_where_rewards_fell(
    shared_database: Database, utilities: list[float], harmful: bool
) -> None:
    """Generated streams. Where the guard trips is worked out in plain Python, each time to the event."""
    tenant = new_tenant(shared_database)
    changes = land_all(shared_database, tenant, utilities)
    path, trips = folded(utilities)
    assert bool(trips) == harmful
    assert [len(events_before(changes, rollback)) for rollback in rollbacks(changes)] == trips
    assert changes[-1]["after"] == path[-1]
    assert_within_bounds(changes)
    assert_sound(shared_database, tenant)


regimes = st.lists(
    st.tuples(st.integers(-8, 8), st.integers(0, 4), st.integers(1, 120)), min_size=1, max_size=4
).map(
    lambda parts: [
        max(-1.0, min((level + spread * (-1) ** place) / 8, 1.0))
        for level, spread, length in parts
        for place in range(length)
    ]
)


@given(utilities=regimes)
@settings(max_examples=25, deadline=None)
def test_whatever_the_regimes_of_rewards_the_guard_trips_where_it_should(
    shared_database: Database, utilities: list[float]
) -> None:
    tenant = new_tenant(shared_database)
    changes = land_all(shared_database, tenant, utilities)
    path, trips = folded(utilities)
    assert [len(events_before(changes, rollback)) for rollback in rollbacks(changes)] == trips
    assert changes[-1]["after"] == path[-1]
    assert_within_bounds(changes)
