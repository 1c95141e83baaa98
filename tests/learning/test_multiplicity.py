"""Holm's p-values are statsmodels'; LORD++ sets the levels of onlineFDR's reference example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from somabrain_dagster.learning.multiplicity import Lord, holm, lord_levels

pytestmark = pytest.mark.learning

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=20)

ONLINE_FDR = [2.90e-08, 0.06743, 0.01514, 0.08174, 0.00171, 3.60e-05, 0.79149, 0.27201, 0.28295, 7.59e-08]
ONLINE_FDR += [0.69274, 0.30443, 0.00136, 0.72342, 0.54757]


@pytest.mark.parametrize("tests", [1, 2, 5, 40])
def test_holm_is_statsmodels(tests: int) -> None:
    p = np.random.default_rng(tests).choice([*np.linspace(0, 0.1, 20), 1.0], tests)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


@given(p_values)
def test_holm_is_never_below_the_raw_p(p: list[float]) -> None:
    assert (holm(p) >= p).all()


@given(p_values)
def test_holm_keeps_the_order_and_stays_below_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1.0) + 1e-15).all()


def test_holm_of_one_test_changes_nothing_and_of_none_is_empty() -> None:
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_the_reference_example_of_online_fdr() -> None:
    levels, state = lord_levels(ONLINE_FDR)
    np.testing.assert_allclose(levels[:3], [0.0002675839, 0.0024664457, 0.0005732818], atol=5e-11)
    assert state.rejections == (1, 6, 10)
    assert state.tests == 15


@given(p_values, st.integers(0, 20))
def test_a_sequence_can_be_resumed_anywhere(p: list[float], at: int) -> None:
    state = Lord()
    for value in p[:at]:
        state = state.after(value)
    resumed = Lord(state.alpha, state.tests, state.rejections)
    for value in p[at:]:
        resumed = resumed.after(value)
    assert resumed == lord_levels(p)[1]


@given(p_values, st.floats(0, 1))
def test_a_level_depends_on_the_past_alone(p: list[float], last: float) -> None:
    levels, _ = lord_levels(p)
    other, _ = lord_levels([*p[:-1], last])
    assert levels.tolist() == other.tolist()


def test_without_discoveries_no_more_than_the_first_wealth_is_ever_spent() -> None:
    levels, state = lord_levels([1.0] * 3000)
    assert state.rejections == ()
    assert (np.diff(levels[1:]) < 0).all()
    assert 0.001 < levels.sum() < 0.005


def test_a_discovery_earns_the_next_tests_a_higher_level() -> None:
    quiet = Lord().after(0.9)
    found = Lord().after(1e-9)
    assert found.rejections == (1,)
    assert found.level > 10 * quiet.level


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([p])
    with pytest.raises(ValueError, match="p-values"):
        Lord().after(p)
