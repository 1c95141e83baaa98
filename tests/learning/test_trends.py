"""A trend is told from noise, autocorrelated or not; neither constants nor underflow pass for certainty."""

from dataclasses import astuple
from math import inf, isfinite, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import kendalltau, norm, theilslopes
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.tsa.stattools import acf

from somabrain_dagster.learning.trend_rule import TrendRule
from somabrain_dagster.learning.trends import (
    LEAST_BINS,
    MOST_BINS,
    Series,
    Trend,
    autocorrelation,
    coarsened,
    judge,
    ordered,
    session_means,
    shows_trends,
    time_bins,
    trend,
    trend_line,
)

pytestmark = pytest.mark.learning

Floats = NDArray[np.float64]

on_a_grid = st.lists(st.integers(-8, 8), min_size=LEAST_BINS, max_size=50).map(lambda xs: np.array(xs) / 8)


def generated(seed: int, n: int, phi: float, ramp: float = 0.0) -> Series:
    """AR(1) noise of marginal standard deviation 1, generated, plus a ramp."""
    shocks = np.random.default_rng(seed).normal(size=n)
    shocks[1:] *= sqrt(1 - phi**2)
    return over_time(lfilter([1.0], [1.0, -phi], shocks) + ramp * np.linspace(0, 1, n))


def over_time(values: Floats) -> Series:
    return Series(np.arange(len(values), dtype=np.float64), values)


# The test


@pytest.mark.parametrize(
    ("n", "phi", "ramp"), [(30, 0.0, 0.0), (90, 0.6, 0.0), (200, 0.3, 1.5), (300, 0.9, 0.0)]
)
def test_it_is_kendalls_test_and_theils_line_with_a_corrected_error(n: int, phi: float, ramp: float) -> None:
    series = generated(n, n, phi, ramp)
    found = trend(series)
    tau, uncorrected = kendalltau(series.times, series.values)
    line = theilslopes(series.values, series.times)
    residuals = series.values - line.intercept - line.slope * series.times
    r = acf(residuals, nlags=1)[1]
    rho = min(max((n * r + 2) / (n - 4), 0.0), 0.95)
    inflation = sqrt((1 + rho) / (1 - rho))

    assert (found.n, found.tau, found.uncorrected_p) == (n, tau, uncorrected)
    assert found.slope == line.slope
    assert found.autocorrelation == pytest.approx(rho)
    df = max(n * (1 - rho) / (1 + rho) - 2, 1)
    assert found.p == pytest.approx(2 * student.sf(norm.isf(uncorrected / 2) / inflation, df), rel=1e-9)
    wider = theilslopes(series.values, series.times, alpha=2 * norm.sf(student.isf(0.025, df) * inflation))
    assert (found.low, found.high) == (wider.low_slope, wider.high_slope)
    assert found.effect == pytest.approx(line.slope * (n - 1) / residuals.std(ddof=2))


def test_autocorrelated_noise_is_seldom_called_a_trend() -> None:
    """Plain Kendall is wrong about six times as often as it says."""
    found = [trend(generated(seed, 90, 0.6)) for seed in range(500)]
    assert np.mean([one.p < 0.05 for one in found]) <= 0.085
    assert np.mean([one.uncorrected_p < 0.05 for one in found]) > 0.2
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.92


def test_among_a_hundred_tenants_of_noise_seldom_one_is_acted_upon() -> None:
    """There the least of a hundred p-values decides, far out in a tail where the normal one is too thin."""
    groups = [[trend(generated(100 * group + seed, 90, 0.6)) for seed in range(100)] for group in range(20)]
    acted = [any(one.direction for one in judge(group, TrendRule())) for group in groups]
    assert np.mean(acted) <= 0.15


def test_a_ramp_is_mostly_found() -> None:
    found = [trend(generated(seed, 90, 0.3, ramp=1.5)) for seed in range(200)]
    assert np.mean([one.p < 0.05 and one.slope > 0 for one in found]) >= 0.75


def test_an_exact_line_is_a_trend_of_infinite_effect() -> None:
    found = trend(Series(np.arange(40.0) * 3, np.arange(40.0) * -6))
    assert found.p < 1e-12
    assert (found.tau, found.slope, found.low, found.high, found.effect) == (-1, -2, -2, -2, -inf)


@pytest.mark.parametrize("value", [0.0, 0.1, -1.0])
def test_a_constant_series_has_no_trend(value: float) -> None:
    found = trend(over_time(np.full(90, value)))
    assert found == Trend(90, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_one_outlier_in_a_constant_series_is_no_trend() -> None:
    values = np.zeros(60)
    values[50] = 1.0
    found = trend(over_time(values))
    assert found.p > 0.05
    assert (found.slope, found.effect) == (0, 0)


def test_a_p_that_underflows_is_not_certainty() -> None:
    """A smooth curve leaves residuals that hang together: fewer independent bins than there are bins."""
    found = trend(over_time((np.arange(MOST_BINS) / MOST_BINS) ** 3))
    assert found.uncorrected_p == 0
    assert found.autocorrelation == 0.95
    assert 1e-4 < found.p < 1e-2


def test_bins_that_hang_together_say_next_to_nothing() -> None:
    """Generated: thirty bins that wander count as fewer than one, and any slope is possible."""
    found = [trend(generated(seed, LEAST_BINS, 0.99)) for seed in range(200)]
    wandering = [one for one in found if one.autocorrelation == 0.95]
    assert wandering
    for one in wandering:
        assert one.p > 0.05
        assert one.low < 0 < one.high


@given(on_a_grid)
def test_every_number_is_finite_or_an_exact_line(values: Floats) -> None:
    found = trend(over_time(values))
    assert 0 <= found.uncorrected_p <= 1
    assert found.uncorrected_p <= found.p <= 1 or found.autocorrelation == 0
    assert found.low <= found.slope <= found.high
    assert all(isfinite(number) for number in astuple(found)[:-1])


@given(on_a_grid, st.integers(-4, 4), st.sampled_from([0.25, 2.0, 64.0]), st.integers(-1000, 1_500_000_000))
def test_neither_units_nor_origins_matter(values: Floats, up: int, by: float, later: int) -> None:
    plain = trend(over_time(values))
    moved = trend(Series(np.arange(len(values), dtype=np.float64) * by + later, values * by + up))
    assert (moved.tau, moved.uncorrected_p) == (plain.tau, plain.uncorrected_p)
    assert moved.p == pytest.approx(plain.p, rel=1e-6)
    assert moved.slope == pytest.approx(plain.slope, rel=1e-9)
    assert moved.effect == pytest.approx(plain.effect, rel=1e-6)


@given(on_a_grid)
def test_a_series_upside_down_falls_as_it_rose(values: Floats) -> None:
    up, down = trend(over_time(values)), trend(over_time(-values))
    assert (down.p, down.tau, down.slope) == pytest.approx((up.p, -up.tau, -up.slope))
    assert (down.low, down.high) == pytest.approx((-up.high, -up.low), abs=0.1)


def test_the_lag_one_autocorrelation_is_without_its_bias() -> None:
    """Its mean over generated noise is the φ that generated it, but for the clip at 0."""
    found = [autocorrelation(generated(seed, 60, 0.5).values) for seed in range(400)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)
    assert autocorrelation(np.zeros(40)) == pytest.approx(2 / 36)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (over_time(np.zeros(29)), "needs 30 to 300 bins, not 29"),
        (over_time(np.zeros(301)), "needs 30 to 300 bins, not 301"),
        (Series(np.ones(30), np.arange(30.0)), "at the same time"),
        (over_time(np.where(np.arange(30) == 7, np.nan, 1.0)), "must be finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(series: Series, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trend(series)


@given(st.integers(1, 60), st.sampled_from([0.0, 1.0]))
def test_what_shows_trends_is_what_is_not_refused(n: int, apart: float) -> None:
    series = Series(apart * np.arange(n, dtype=np.float64), np.arange(n, dtype=np.float64))
    if shows_trends(series):
        trend(series)
    else:
        with pytest.raises(ValueError, match=r"needs|at the same time"):
            trend(series)


def test_the_line_is_theil_and_sens() -> None:
    series = generated(3, 41, 0.3, ramp=1.0)
    slope, intercept, _, _ = theilslopes(series.values, series.times)
    drawn = trend_line(series, slope, series.times)
    np.testing.assert_allclose(drawn, intercept + slope * series.times, atol=1e-12)


# Bins


def test_a_session_is_one_bin_at_its_own_time() -> None:
    found = session_means(
        np.array(["b", "a", "b", "c", "a"]), np.array([30.0, 10, 34, 7, 20]), np.array([1.0, 0.5, 0, -1, 1])
    )
    assert found.times.tolist() == [7, 15, 32]
    assert found.values.tolist() == [-1, 0.75, 0.5]


@given(st.permutations(range(20)))
def test_the_order_of_the_events_does_not_matter(order: list[int]) -> None:
    generator = np.random.default_rng(0)
    sessions, times, values = (
        generator.integers(0, 6, 20),
        generator.integers(0, 99, 20).astype(np.float64),
        generator.random(20),
    )
    plain, shuffled = (
        session_means(sessions[o], times[o], values[o]) for o in (np.arange(20), np.array(order))
    )
    np.testing.assert_allclose(shuffled.times, plain.times)
    assert shuffled.values.tolist() == plain.values.tolist()


@given(st.permutations(range(20)))
def test_means_taken_elsewhere_become_the_same_series(order: list[int]) -> None:
    """Those of a database, say, which adds up in an order of its own."""
    generator = np.random.default_rng(0)
    times, values = generator.random(20), generator.random(20)
    found = ordered(times[order], values[order] + 1e-16)
    own = session_means(np.arange(20), times, values)
    np.testing.assert_allclose(found.times, own.times)
    assert found.values.tolist() == own.values.tolist()


def test_equal_utilities_are_a_constant_however_many_are_added_up() -> None:
    """(.1 + .1 + .1) / 3 is not .1 in floating point; longer and longer sessions would seem to rise."""
    sessions = np.repeat(np.arange(40), np.arange(1, 41))
    times = np.array([1.5e9 + 60 * session for session in sessions])
    series = session_means(sessions, times, np.full(len(sessions), 0.1))
    assert trend(series).p == 1


def test_close_epoch_seconds_keep_their_order() -> None:
    times = 1.5e9 + np.arange(50.0) * 1e-3
    found = session_means(np.arange(50), times, np.arange(50.0))
    assert found.values.tolist() == list(range(50))
    assert (np.diff(found.times) > 0).all()


def test_empty_bins_are_dropped_and_true_times_kept() -> None:
    series = Series(np.array([100.0, 101, 109, 150]), np.array([1.0, 2, 4, 8]))
    found = time_bins(series, 10.0)
    assert found.times.tolist() == [pytest.approx(310 / 3), 150]
    assert found.values.tolist() == [pytest.approx(7 / 3), 8]
    assert len(time_bins(Series(np.zeros(0), np.zeros(0)), 10.0).values) == 0


@given(st.integers(1, 2000), st.integers(1, 300))
def test_coarser_bins_are_as_equal_as_can_be(n: int, most: int) -> None:
    found = coarsened(over_time(np.arange(n, dtype=np.float64)), most)
    assert len(found.values) == min(n, most)
    assert (np.diff(found.times) > 0).all()
    steps = np.diff(found.values)
    assert not len(steps) or steps.max() - steps.min() <= 1 + 1e-6


def test_coarser_bins_keep_the_trend() -> None:
    series = generated(5, 3000, 0.0, ramp=1.0)
    found = trend(coarsened(series))
    assert found.n == MOST_BINS
    assert found.slope == pytest.approx(1 / 3000, rel=0.2)


# Many tenants


def made(p: float, *, slope: float = 1.0, effect: float = 2.0) -> Trend:
    return Trend(40, 0.3, p, p, 0.0, slope, slope, slope, effect)


def test_q_is_benjamini_and_hochbergs() -> None:
    p = np.random.default_rng(0).uniform(0, 0.2, 50)
    found = judge([made(one) for one in p.tolist()], TrendRule())
    np.testing.assert_allclose([one.q for one in found], multipletests(p, method="fdr_bh")[1])


def test_a_trend_is_acted_upon_if_it_is_sure_and_large() -> None:
    sure, sure_fall, small, unsure = judge(
        [made(0.001), made(0.001, slope=-1, effect=-2), made(0.001, effect=0.2), made(0.9)], TrendRule()
    )
    assert [one.direction for one in (sure, sure_fall, small, unsure)] == [1, -1, 0, 0]
    assert [str(gate) for gate in small.gates] == [
        "q < 0.05: 0.00133333, passed",
        "effect ≥ 0.5: 0.2, failed by 0.3",
    ]
    assert unsure.gates[0].shortfall == pytest.approx(0.85)


def test_constant_tenants_do_not_spoil_the_others() -> None:
    constant = trend(over_time(np.ones(30)))
    found = judge([constant] * 9 + [made(0.001)], TrendRule())
    assert [one.q for one in found] == [1.0] * 9 + [pytest.approx(0.01)]
    assert [one.direction for one in found] == [0] * 9 + [1]


def test_no_tenants_have_no_trends() -> None:
    assert judge([], TrendRule()) == ()
