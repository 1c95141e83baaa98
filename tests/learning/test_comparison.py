"""Moments merge exactly; Welch's test and the effect sizes are those of published examples and of scipy."""

from math import gamma, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import nct, ttest_ind
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from somabrain_dagster.learning.comparison import comparable, compare, noncentrality, unbiasing
from somabrain_dagster.learning.moments import Moments, merge

pytestmark = pytest.mark.learning

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), max_size=30)
samples = st.lists(st.integers(-500, 500).map(lambda x: x / 100), min_size=2, max_size=40)

SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
MPG_AUTOMATIC = [
    21.4,
    18.7,
    18.1,
    14.3,
    24.4,
    22.8,
    19.2,
    17.8,
    16.4,
    17.3,
    15.2,
    10.4,
    10.4,
    14.7,
    21.5,
    15.5,
]
MPG_AUTOMATIC += [15.2, 13.3, 19.2]
MPG_MANUAL = [21.0, 21.0, 22.8, 32.4, 30.4, 33.9, 27.3, 26.0, 30.4, 15.8, 19.7, 15.0, 21.4]


def same(a: Moments, b: Moments) -> bool:
    return a.n == b.n and np.allclose([a.mean, a.variance], [b.mean, b.variance], rtol=1e-9, atol=1e-9)


# Moments


@given(numbers, numbers, numbers)
def test_merged_moments_are_those_of_the_pooled_sample_in_any_grouping(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = map(Moments.of, (a, b, c))
    pooled = Moments.of(a + b + c)
    assert same(merge((x, y, z)), pooled)
    assert same(x.merge(y.merge(z)), pooled)
    assert same(z.merge(x).merge(y), pooled)


@given(numbers)
def test_moments_are_numpys(values: list[float]) -> None:
    found = Moments.of(values)
    assert found.n == len(values)
    if values:
        assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    if len(values) > 1:
        assert found.variance == pytest.approx(np.var(values, ddof=1), abs=1e-9)
        assert found.deviation == sqrt(found.variance)


@given(st.floats(-10, 10), st.integers(1, 50))
def test_equal_numbers_have_no_variance_at_all(value: float, n: int) -> None:
    assert Moments.of([value] * n) == Moments(n, value, 0.0)


def test_the_moments_of_nothing_are_the_identity() -> None:
    some = Moments.of([1.0, 2.0])
    assert Moments().merge(some) == some.merge(Moments()) == some
    assert merge([]) == Moments() == Moments.of([])


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    values = np.array([1e9 + 1, 1e9 + 2, 1e9 + 3])
    assert merge(map(Moments.of, values[:, None])).variance == pytest.approx(1.0, rel=1e-6)


def test_a_sample_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Moments.of([1.0, float("nan")])


# Welch's test


def test_nist_auto83b() -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.3: mileage of U.S. and Japanese cars."""
    found = compare(Moments(79, 30.48101, 6.10771**2), Moments(249, 20.14458, 6.41470**2))
    assert found.t == pytest.approx(-12.94627, abs=5e-6)
    assert found.df == pytest.approx(136.87499, abs=5e-6)
    assert found.p == pytest.approx(1.571e-25, rel=5e-4)


def test_the_sleep_data_of_r() -> None:
    """R, ?t.test: t.test(extra ~ group, data = sleep)."""
    found = compare(Moments.of(SLEEP_2), Moments.of(SLEEP_1))
    assert found.t == pytest.approx(-1.8608, abs=5e-5)
    assert found.df == pytest.approx(17.776, abs=5e-4)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


def test_an_outlier_hides_a_difference_as_in_rs_example() -> None:
    """R, ?t.test: t.test(1:10, y = c(7:20)) and t.test(1:10, y = c(7:20, 200))."""
    first = Moments.of(range(1, 11))
    clean, spoilt = compare(Moments.of(range(7, 21)), first), compare(Moments.of([*range(7, 21), 200]), first)
    assert clean.p == pytest.approx(0.00001855, abs=5e-9)
    assert (clean.low, clean.high) == pytest.approx((-11.052802, -4.947198), abs=5e-7)
    assert spoilt.p == pytest.approx(0.1245, abs=5e-5)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy, where one sample is constant
@given(samples, samples)
def test_it_is_scipys_welch(a: list[float], b: list[float]) -> None:
    control, treatment = Moments.of(a), Moments.of(b)
    assume(comparable(control, treatment))
    found, theirs = compare(control, treatment), ttest_ind(b, a, equal_var=False)
    assert found.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert found.df == pytest.approx(theirs.df, rel=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-300)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9)
    assert found.p_less == pytest.approx(
        ttest_ind(b, a, equal_var=False, alternative="less").pvalue, rel=1e-6
    )
    assert found.lower_bound(0.025) == pytest.approx(found.low, rel=1e-9, abs=1e-9)


def test_statsmodels_agrees() -> None:
    theirs = CompareMeans(DescrStatsW(MPG_MANUAL), DescrStatsW(MPG_AUTOMATIC))
    t, p, df = theirs.ttest_ind(usevar="unequal")
    found = compare(Moments.of(MPG_AUTOMATIC), Moments.of(MPG_MANUAL))
    assert (found.t, found.p, found.df) == pytest.approx((t, p, df), rel=1e-12)


@pytest.mark.parametrize("gap", [5.0, 20.0, 50.0])
def test_a_huge_difference_has_a_tiny_p_and_not_none(gap: float) -> None:
    found = compare(Moments(100, gap, 1.0), Moments(100, 0.0, 1.0))
    assert 0 < found.p < 1e-60
    assert 0 < found.p_less < 1e-60


@given(samples, samples, st.integers(-100, 100))
def test_a_shift_of_both_changes_nothing_and_a_swap_only_signs(
    a: list[float], b: list[float], by: int
) -> None:
    x, y = Moments.of(a), Moments.of(b)
    assume(comparable(x, y))
    found, swapped = compare(x, y), compare(y, x)
    moved = compare(Moments.of(np.add(a, by)), Moments.of(np.add(b, by)))
    for field in ("difference", "t", "df", "p", "low", "high", "d", "d_low", "d_high", "g"):
        assert getattr(moved, field) == pytest.approx(getattr(found, field), rel=1e-5, abs=1e-7)
    assert (swapped.t, swapped.d, swapped.g) == pytest.approx((-found.t, -found.d, -found.g))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert (swapped.d_low, swapped.d_high) == pytest.approx((-found.d_high, -found.d_low), rel=1e-4, abs=1e-6)


# Effect sizes


def test_d_and_its_interval_are_those_of_effectsize() -> None:
    """R package effectsize: cohens_d(mpg ~ am, data = mtcars, pooled_sd = FALSE): -1.41 [-2.26, -0.53].

    It inverts the noncentral t at Welch's degrees of freedom, Delacre et al. at those of d's own variance.
    """
    found = compare(Moments.of(MPG_MANUAL), Moments.of(MPG_AUTOMATIC))
    assert found.d == pytest.approx(-1.41, abs=0.005)
    theirs = np.array(noncentrality(found.t, found.df, 0.95)) * found.d / found.t
    np.testing.assert_allclose(theirs, [-2.26, -0.53], atol=0.005)
    assert -2.26 < found.d_low < found.d < found.d_high < -0.53


@given(samples, samples)
def test_the_interval_of_d_inverts_the_noncentral_t(a: list[float], b: list[float]) -> None:
    x, y = Moments.of(a), Moments.of(b)
    assume(comparable(x, y))
    found = compare(x, y)
    assume(abs(found.t) < 30)
    spread = sqrt((x.variance + y.variance) / 2)
    df = (x.n - 1) * (y.n - 1) * (x.variance + y.variance) ** 2
    df /= (y.n - 1) * x.variance**2 + (x.n - 1) * y.variance**2
    for limit, tail in ((found.d_low, 0.975), (found.d_high, 0.025)):
        shift = limit * spread / found.standard_error
        assert nct.cdf(found.t, df, shift) == pytest.approx(tail, abs=1e-4)
    assert found.d * spread == pytest.approx(found.difference)


def test_with_equal_sizes_and_variances_d_is_cohens_own() -> None:
    a, b = Moments(40, 1.0, 4.0), Moments(40, 2.0, 4.0)
    found = compare(a, b)
    assert found.d == 0.5
    assert found.df == pytest.approx(78)
    assert found.t == pytest.approx(0.5 * sqrt(20))
    assert found.g == pytest.approx(0.5 * (1 - 3 / (4 * 78 - 1)), rel=1e-5)


@pytest.mark.parametrize("df", [2.0, 5.5, 20.0])
def test_hedges_correction_is_the_ratio_of_gammas(df: float) -> None:
    assert unbiasing(df) == pytest.approx(gamma(df / 2) / (sqrt(df / 2) * gamma((df - 1) / 2)))


def test_the_correction_vanishes_in_large_samples_without_overflow() -> None:
    assert unbiasing(1e6) == pytest.approx(1 - 3 / 4e6, abs=1e-8)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Moments(1, 0.5, 0.0), Moments(9, 0.1, 1.0)),
        (Moments(), Moments(9, 0.1, 1.0)),
        (Moments(9, 0.0, 0.0), Moments(9, 1.0, 0.0)),
        (Moments(9, 0.1, 1e-34), Moments(9, 0.1, 2e-34)),
    ],
)
def test_without_an_error_there_is_no_comparison(a: Moments, b: Moments) -> None:
    """Too few numbers, or no variance but that of rounding."""
    assert not comparable(a, b)
    with pytest.raises(ValueError, match="some variance"):
        compare(a, b)
