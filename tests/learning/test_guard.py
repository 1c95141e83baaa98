"""The guard trips on a fall that chance does not explain, at the same event however events are batched."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from somabrain_dagster.learning.configuration import GuardConfiguration, LearningConfiguration
from somabrain_dagster.learning.guard import Micros, fall, first_trip, first_trips, remembered, to_micros

pytestmark = pytest.mark.learning

DEFAULT = LearningConfiguration().guard
NONE = to_micros([])

small_guards = st.builds(
    GuardConfiguration,
    recent=st.integers(2, 4),
    before=st.integers(2, 6),
    standard_errors=st.sampled_from([0.0, 1.0, 2.5]),
)
reward_streams = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.5, 1.0]), max_size=40)


def alternating(mean: float, count: int) -> list[float]:
    return [mean + 0.1, mean - 0.1] * (count // 2)


@pytest.mark.parametrize(("standard_errors", "trips"), [(4.2, 3), (4.3, None)])
def test_one_decision_by_hand(standard_errors: float, trips: int | None) -> None:
    """Means 0.7 and 0.1, both variances 0.02, so SE = √(0.01 + 0.01) and the fall is 4.24 of it."""
    guard = GuardConfiguration(recent=2, before=2, standard_errors=standard_errors)
    assert first_trip(NONE, to_micros([0.6, 0.8, 0.0, 0.2]), guard) == trips


def test_it_waits_for_both_windows() -> None:
    rewards = to_micros([1.0] * 99 + [-1.0] * 20)
    assert first_trip(NONE, rewards, DEFAULT) is None
    assert first_trip(to_micros([1.0]), rewards, DEFAULT) == 118


def test_a_collapse_trips_once_the_recent_mean_is_low_enough() -> None:
    """Welch's t of each window in turn is the truth; the first below −4 is the event."""
    stream = np.array(alternating(0.5, 120) + alternating(-0.5, 40))
    truth = next(
        end - 1
        for end in range(120, 161)
        if ttest_ind(stream[end - 20 : end], stream[end - 120 : end - 20], equal_var=False).statistic < -4
    )
    assert 120 < truth < 140
    assert first_trip(NONE, to_micros(stream), DEFAULT) == truth


def test_neither_a_steady_stream_nor_a_rise_trips() -> None:
    assert first_trip(NONE, to_micros([0.5] * 500), DEFAULT) is None
    assert first_trip(NONE, to_micros(alternating(-0.5, 200) + alternating(0.5, 200)), DEFAULT) is None


def test_a_fall_of_rewards_without_any_spread_trips_however_small() -> None:
    assert first_trip(NONE, to_micros([0.5] * 100 + [0.499999] * 20), DEFAULT) == 119


def test_a_guard_that_is_off_never_trips() -> None:
    off = GuardConfiguration(enabled=False)
    assert first_trip(NONE, to_micros([1.0] * 100 + [-1.0] * 20), off) is None


@given(small_guards, reward_streams)
def test_decisions_are_welchs(guard: GuardConfiguration, stream: list[float]) -> None:
    trips = []
    for end in range(guard.window, len(stream) + 1):
        window = np.array(stream[end - guard.window : end])
        before, recent = window[: guard.before], window[guard.before :]
        error = math.sqrt(recent.var(ddof=1) / guard.recent + before.var(ddof=1) / guard.before)
        margin = before.mean() - guard.standard_errors * error - recent.mean()
        if abs(margin) < 1e-12:  # a tie in the reals: floating-point means may fall on either side
            return
        if margin > 0:
            trips.append(end - 1)
    assert first_trip(NONE, to_micros(stream), guard) == (trips[0] if trips else None)


@given(small_guards, reward_streams, st.lists(st.integers(0, 40), max_size=5))
def test_batches_trip_at_the_same_event(
    guard: GuardConfiguration, stream: list[float], cuts: list[int]
) -> None:
    rewards = to_micros(stream)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    history: Micros = NONE
    found: int | None = None
    for begin, end in pairwise(edges):
        batch = rewards[begin:end]
        trip = first_trip(history, batch, guard)
        if trip is not None:
            found = begin + trip
            break
        history = remembered(history, batch, guard)
    assert found == first_trip(NONE, rewards, guard)


@given(small_guards, reward_streams, reward_streams)
def test_what_is_remembered_is_what_the_next_decision_needs(
    guard: GuardConfiguration, first: list[float], then: list[float]
) -> None:
    history, rewards = to_micros(first), to_micros(then)
    kept = remembered(NONE, history, guard)
    assert len(kept) == min(len(first), guard.window - 1)
    assert first_trip(kept, rewards, guard) == first_trip(history, rewards, guard)


@given(small_guards, st.lists(st.tuples(reward_streams, reward_streams), max_size=5))
def test_tenants_together_trip_as_each_does_alone(
    guard: GuardConfiguration, tenants: list[tuple[list[float], list[float]]]
) -> None:
    histories = [to_micros(history) for history, _ in tenants]
    rewards = [to_micros(new) for _, new in tenants]
    together = first_trips(histories, np.concatenate([NONE, *rewards]), [len(new) for new in rewards], guard)
    assert together == [
        first_trip(history, new, guard) for history, new in zip(histories, rewards, strict=True)
    ]


@given(reward_streams)
def test_the_fall_is_welchs_statistic(stream: list[float]) -> None:
    guard = GuardConfiguration(recent=4, before=12)
    fallen = fall(remembered(NONE, to_micros(stream), guard), guard)
    kept = np.array(stream[-(guard.window - 1) :])
    before, recent = kept[:-4], kept[-4:]
    if len(before) < 4:
        assert fallen is None
        return
    assert fallen is not None
    spread = recent.var() + before.var()
    if spread > 1e-12:
        assert fallen == pytest.approx(ttest_ind(before, recent, equal_var=False).statistic)
    else:
        assert fallen in (0.0, math.inf, -math.inf)
        assert np.sign(fallen) == np.sign(round(before.mean() - recent.mean(), 9))


def test_the_longest_windows_stay_exact() -> None:
    guard = GuardConfiguration(recent=1500, before=1500, standard_errors=4.0)
    rewards = to_micros([1.0, -1.0] * 750 + [-1.0] * 1500)
    assert first_trip(NONE, rewards, guard) == 2999


def test_rewards_are_whole_micro_units() -> None:
    assert to_micros([0.1, -1.0, 0.1234565, 0.1234575]).tolist() == [100_000, -1_000_000, 123_456, 123_458]


@pytest.mark.parametrize("reward", [1.1, math.nan])
def test_a_reward_outside_its_range_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        to_micros([reward])
