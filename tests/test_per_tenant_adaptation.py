"""Each tenant learns from its own feedback alone: in bounds, at its pace, whoever else learns beside it."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from somabrain_dagster.learning.weights import NAMES, WEIGHTS, to_nanos
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from tests.brain import (
    CONFIGURATION,
    assert_sound,
    changes_of,
    landed,
    learned,
    new_tenant,
    new_tenants,
    said,
    to_tenant,
    weights_of,
)

pytestmark = pytest.mark.learning

ALPHA = NAMES.index("alpha")


def random_feedback(tenant: str, seed: int, count: int) -> list[Feedback]:
    """Generated feedback, good and bad, some with a reward of its own."""
    generator = random.Random(seed)
    return [
        said(tenant, generator.uniform(-1, 1), reward=generator.choice([None, generator.uniform(-1, 1)]))
        for _ in range(count)
    ]


def test_two_tenants_fed_in_parallel_learn_as_each_fed_alone(shared_database: Database) -> None:
    parallel, alone = new_tenants(shared_database, 2), new_tenants(shared_database, 2)

    def feed(tenant: str, seed: int) -> None:
        for feedback in random_feedback(tenant, seed, 80):
            landed(shared_database, [feedback])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(feed, parallel, (1, 2)))
    for seed, tenant in enumerate(alone, start=1):
        feed(tenant, seed)

    assert [learned(shared_database, tenant) for tenant in parallel] == [
        learned(shared_database, tenant) for tenant in alone
    ]
    assert weights_of(shared_database, parallel[0]) != weights_of(shared_database, parallel[1])
    for tenant in (*parallel, *alone):
        assert_sound(shared_database, tenant)


def test_two_tenants_whose_feedback_shares_batches_learn_as_each_fed_alone(shared_database: Database) -> None:
    """Two threads land batches in which both have events, in turn, and wait for one another's locks."""
    one, other = new_tenants(shared_database, 2)
    twins = dict(zip((one, other), new_tenants(shared_database, 2), strict=True))
    streams = [random_feedback(one, 3, 60), random_feedback(other, 4, 60)]
    batches = [
        [
            feedback
            for pair in zip(streams[0][k : k + 5], streams[1][k : k + 5], strict=True)
            for feedback in pair
        ]
        for k in range(0, 60, 5)
    ]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda batch: landed(shared_database, batch), batches))

    order = sorted(
        (
            (outcome.seq, feedback)
            for batch, answers in zip(batches, outcomes, strict=True)
            for feedback, outcome in zip(batch, answers, strict=True)
        ),
        key=lambda event: event[0],
    )
    for tenant, twin in twins.items():
        own = [to_tenant(feedback, twin) for _, feedback in order if feedback.tenant_id == tenant]
        assert len(own) == 60
        for feedback in own:
            landed(shared_database, [feedback])
        assert learned(shared_database, tenant) == learned(shared_database, twin)
        assert_sound(shared_database, tenant)


def test_a_tenant_that_is_silent_learns_nothing(shared_database: Database) -> None:
    silent, talking = new_tenants(shared_database, 2)
    before = learned(shared_database, silent)
    landed(shared_database, random_feedback(talking, 5, 50))
    assert learned(shared_database, silent) == before
    assert weights_of(shared_database, talking) != weights_of(shared_database, silent)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_random_utilities_keep_every_weight_within_its_bounds(
    shared_database: Database, seed: int
) -> None:
    """At ten times the usual rate, so that the bounds are met."""
    tenant = new_tenant(shared_database, {"base_learning_rate": 0.5, "guard": {"enabled": False}})
    events = random_feedback(tenant, seed, 1000)
    for begin in range(0, 1000, 250):
        landed(shared_database, events[begin : begin + 250])

    after = [change["after"] for change in changes_of(shared_database, tenant)]
    assert len(after) == 1001
    met = set()
    for weights in after:
        for weight, nanos in zip(WEIGHTS, weights, strict=True):
            low, high = to_nanos([weight.low, weight.high]).tolist()
            assert low <= nanos <= high
            if nanos in (low, high):
                met.add(weight.name)
    assert {"alpha", "gamma", "lambda", "mu", "nu"} <= met
    assert_sound(shared_database, tenant)


@pytest.mark.parametrize("dynamic", [False, True])
def test_twenty_events_of_utility_1_raise_alpha_by_03_at_least(
    shared_database: Database, dynamic: bool
) -> None:
    tenant = new_tenant(shared_database, {"dynamic_learning_rate": dynamic})
    start = weights_of(shared_database, tenant)
    assert start == CONFIGURATION.start_nanos.tolist()
    rising = [landed(shared_database, [said(tenant, 1.0)])[0].weights[ALPHA] for _ in range(20)]
    assert rising == sorted(set(rising))
    assert rising[-1] - start[ALPHA] >= to_nanos(0.3)
