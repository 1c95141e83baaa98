"""The two rules of feedback: golden events, bounds that hold, one result for every batching."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from somabrain_dagster.learning.adaptation import (
    credit_shifts,
    credit_signal,
    credit_signals,
    effective_rate,
    scalar_shifts,
)
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.shifts import Shifts, scan_segments
from somabrain_dagster.learning.weights import NAMES, TAU, WEIGHTS, Nanos, by_name, to_nanos

pytestmark = pytest.mark.learning

DEFAULT = LearningConfiguration()
F = len(FEATURES)

signals = st.floats(-1, 1)
extreme = st.floats(allow_nan=False, allow_infinity=False)


def weights_after(shifts: Nanos) -> Nanos:
    """Every weight vector after each change, from the start."""
    bounds = (np.broadcast_to(bound, shifts.shape) for bound in (DEFAULT.low_nanos, DEFAULT.high_nanos))
    return scan_segments(Shifts(shifts, *bounds), [len(shifts)], DEFAULT.start_nanos[None, :])


def softmax(scores: Floats) -> Floats:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum())


def test_one_scalar_event_by_hand() -> None:
    """lr 0.05, utility 0.8: α +0.04, γ −0.02. Reward −0.4: λ −0.02, μ and ν +0.005."""
    (shift,) = scalar_shifts(DEFAULT, [0.8], [-0.4], [0.05])
    assert dict(zip(NAMES, shift.tolist(), strict=True)) == {
        "alpha": 40_000_000,
        "beta": 0,
        "gamma": -20_000_000,
        "delta": 0,
        "epsilon": 0,
        "zeta": 0,
        "tau": 0,
        "lambda": -20_000_000,
        "mu": 5_000_000,
        "nu": 5_000_000,
    }
    assert by_name(weights_after(shift[None, :])[0]) == {
        "alpha": 1.04,
        "beta": 0.2,
        "gamma": 0.08,
        "delta": 0.5,
        "epsilon": 0.0,
        "zeta": 0.0,
        "tau": 0.7,
        "lambda": 0.98,
        "mu": 0.105,
        "nu": 0.055,
    }


def test_one_credited_event_by_hand() -> None:
    """Three candidates, equally likely; the first named with credit 1, the second with −½.

    E z = (½, 0, 1, 0, ⅓, 0) and the signal is ½·[(z₁ − E z) − ½·(z₂ − E z)].
    """
    features = np.array(
        [
            [1.0, 0.0, 2.0, 0.0, 1.0, 0.0],
            [0.5, 0.0, 1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    expected = features.mean(axis=0)
    signal = credit_signal(features, expected, [0, 1], [1.0, -0.5])
    assert signal == pytest.approx([0.25, 0.0, 0.5, 0.0, (2 / 3 + 1 / 6) / 2, 0.0])

    (shift,) = credit_shifts(DEFAULT, signal[None, :], [1.0], [0.05])
    assert dict(zip(NAMES, shift.tolist(), strict=True)) == {
        "alpha": 12_500_000,
        "beta": 0,
        "gamma": 25_000_000,
        "delta": 0,
        "epsilon": 20_833_333,
        "zeta": 0,
        "tau": 0,
        "lambda": 50_000_000,
        "mu": -12_500_000,
        "nu": -12_500_000,
    }


def test_utility_weights_follow_the_reward_alike_in_both_rules() -> None:
    (scalar,) = scalar_shifts(DEFAULT, [0.3], [0.6], [0.05])
    (credit,) = credit_shifts(DEFAULT, np.full((1, F), 0.3), [0.6], [0.05])
    assert scalar[TAU + 1 :].tolist() == credit[TAU + 1 :].tolist() == [30_000_000, -7_500_000, -7_500_000]


def test_no_feedback_moves_tau() -> None:
    gains = DEFAULT.overridden({"credit_gain": {"tau": 5.0}})
    assert scalar_shifts(DEFAULT, [1.0], [1.0], [0.05])[0, TAU] == 0
    assert credit_shifts(gains, np.ones((1, F)), [1.0], [0.05])[0, TAU] == 0


@given(
    arrays(np.float64, (5, F), elements=st.floats(-3, 3)),
    arrays(np.float64, F, elements=st.floats(-2, 2)),
    st.integers(0, 4),
)
def test_the_signal_is_tau_times_the_gradient_of_the_log_policy(
    features: Floats, weights: Floats, named: int
) -> None:
    """Against central differences of log p(named), a truth that uses no derivative."""
    tau, step = 0.7, 1e-5
    expected = softmax(features @ weights / tau) @ features
    signal = credit_signal(features, expected, [named], [1.0])
    for k, nudge in enumerate(np.eye(F) * step):
        above, below = (math.log(softmax(features @ (weights + way * nudge) / tau)[named]) for way in (1, -1))
        assert signal[k] == pytest.approx(tau * (above - below) / (2 * step), abs=1e-6)


def test_crediting_a_memory_makes_it_more_likely_and_discrediting_less() -> None:
    features = np.array([[0.2, 0.0, 1.0, 0.1, 0.0, 1.0], [0.9, 0.5, 0.2, 0.4, 1.0, 0.0]])
    start = DEFAULT.start_nanos[:F] / 10**9
    policy = softmax(features @ start / 0.7)
    for credit in (1.0, -1.0):
        signal = credit_signal(features, policy @ features, [0], [credit])
        shifts = credit_shifts(DEFAULT, signal[None, :], [0.0], [0.05])
        learned = weights_after(shifts)[0, :F] / 10**9
        gain = softmax(features @ learned / 0.7)[0] - policy[0]
        assert gain * credit > 0


@given(st.lists(st.tuples(extreme, extreme), max_size=30))
def test_no_scalar_feedback_leaves_the_bounds(events: list[tuple[float, float]]) -> None:
    utility, reward = np.array(events).reshape(-1, 2).T
    after = weights_after(scalar_shifts(DEFAULT, utility, reward, np.full(len(events), 0.06)))
    assert ((DEFAULT.low_nanos <= after) & (after <= DEFAULT.high_nanos)).all()


@given(arrays(np.float64, st.tuples(st.integers(0, 30), st.just(F)), elements=extreme))
def test_no_credit_leaves_the_bounds(signal: Floats) -> None:
    ones = np.ones(len(signal))
    after = weights_after(credit_shifts(DEFAULT, signal, ones, 0.06 * ones))
    assert ((DEFAULT.low_nanos <= after) & (after <= DEFAULT.high_nanos)).all()


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_feedback_that_never_ends_comes_to_rest_at_the_bounds(way: float) -> None:
    ones = np.full(3000, way)
    last = weights_after(scalar_shifts(DEFAULT, ones, ones, np.full(3000, 0.05)))[-1]
    resting = {
        weight.name: weight.start
        if weight.scalar_gain == 0
        else (weight.high if weight.scalar_gain * way > 0 else weight.low)
        for weight in WEIGHTS
    }
    assert by_name(last) == resting


@given(st.lists(st.tuples(signals, signals, st.floats(0, 0.1)), max_size=20))
def test_a_batch_of_scalar_events_moves_as_one_at_a_time(
    events: list[tuple[float, float, float]],
) -> None:
    utility, reward, rate = np.array(events).reshape(-1, 3).T
    together = scalar_shifts(DEFAULT, utility, reward, rate)
    assert together.tolist() == [scalar_shifts(DEFAULT, [u], [r], [lr])[0].tolist() for u, r, lr in events]


named_memories = st.lists(st.tuples(st.integers(0, 7), signals), min_size=1, max_size=12)


@given(st.lists(named_memories, max_size=6), st.integers(0, 2**32 - 1))
def test_a_batch_of_credited_events_moves_as_one_at_a_time(
    events: list[list[tuple[int, float]]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(len(events), 8, F))
    expected = random.normal(size=(len(events), F))
    reward = random.uniform(-1, 1, len(events))
    rate = random.uniform(0, 0.1, len(events))
    alone = [
        credit_signal(features[i], expected[i], [p for p, _ in event], [c for _, c in event])
        for i, event in enumerate(events)
    ]
    together = credit_signals(
        np.array([features[i, p] for i, event in enumerate(events) for p, _ in event]).reshape(-1, F),
        [c for event in events for _, c in event],
        expected,
        [len(event) for event in events],
    )
    assert together.tolist() == [signal.tolist() for signal in alone]
    assert credit_shifts(DEFAULT, together, reward, rate).tolist() == [
        credit_shifts(DEFAULT, signal[None, :], [r], [lr])[0].tolist()
        for signal, r, lr in zip(alone, reward, rate, strict=True)
    ]


@pytest.mark.parametrize(("nanos", "expected"), [(0.5, 0), (1.5, 2), (2.5, 2), (-1.5, -2), (0.6, 1)])
def test_a_shift_is_rounded_half_to_even(nanos: float, expected: int) -> None:
    (shift,) = scalar_shifts(DEFAULT, [nanos / 10**9], [0.0], [1.0])
    assert shift[0] == expected


def test_a_static_rate_ignores_dopamine() -> None:
    assert effective_rate(DEFAULT, [0.2, 0.4, 0.8]).tolist() == [0.05, 0.05, 0.05]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_signals_and_rates_must_be_finite(number: float) -> None:
    for utility, reward, rate in [(number, 0.0, 0.05), (0.0, number, 0.05), (0.0, 0.0, number)]:
        with pytest.raises(ValueError, match="finite"):
            scalar_shifts(DEFAULT, [utility], [reward], [rate])
        with pytest.raises(ValueError, match="finite"):
            credit_shifts(DEFAULT, np.full((1, F), utility), [reward], [rate])


def test_credit_must_name_memories_of_the_recall() -> None:
    features = np.zeros((3, F))
    for position in (-1, 3):
        with pytest.raises(ValueError, match="one of the 3 candidates"):
            credit_signal(features, features[0], [position], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        credit_signal(features, features[0], [], [])
    for credit in (1.5, math.nan):
        with pytest.raises(ValueError, match="from -1 to 1"):
            credit_signal(features, features[0], [0], [credit])
    with pytest.raises(ValueError, match="one credit"):
        credit_signal(features, features[0], [0, 1], [1.0])


def test_a_shift_larger_than_the_bounds_are_apart_is_clipped_to_it() -> None:
    (shift,) = scalar_shifts(DEFAULT, [1e300], [-1e300], [0.05])
    assert shift[0] == to_nanos(3.0 - 0.8)
    assert shift[TAU + 1] == to_nanos(0.1 - 5.0)
