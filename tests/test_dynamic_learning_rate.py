"""Dopamine scales the learning rate: lr_eff = lr · clamp(0.5 + dopamine, 0.5, 1.2), where it is asked to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.adaptation import effective_rate, scalar_shifts
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.neuromodulators import RewardState, trace
from somabrain_dagster.learning.shifts import Shifts, scan_segments
from somabrain_dagster.learning.weights import POSITION, Nanos, to_units

pytestmark = pytest.mark.learning

STATIC = LearningConfiguration()
DYNAMIC = STATIC.overridden({"dynamic_learning_rate": True})
ALPHA = POSITION["alpha"]


def learn(configuration: LearningConfiguration, utility: Floats) -> Nanos:
    """The weights after each event of feedback that names no memory, its utility its reward: (N, K)."""
    followed, _ = trace(utility, RewardState(), configuration.reward_rate)
    rate = effective_rate(configuration, followed.dopamine)
    shifts = scalar_shifts(configuration, utility, utility, rate)
    low, high = (
        np.broadcast_to(bound, shifts.shape) for bound in (configuration.low_nanos, configuration.high_nanos)
    )
    return scan_segments(Shifts(shifts, low, high), [len(utility)], configuration.start_nanos[None, :])


@pytest.mark.parametrize(
    ("dopamine", "factor"), [(-1.0, 0.5), (0.0, 0.5), (0.2, 0.7), (0.4, 0.9), (0.7, 1.2), (0.8, 1.2)]
)
def test_dopamine_scales_the_rate(dopamine: float, factor: float) -> None:
    assert effective_rate(DYNAMIC, dopamine) == 0.05 * factor
    assert effective_rate(STATIC, dopamine) == 0.05


@given(st.floats(-10, 10), st.floats(0, 1))
def test_the_rate_is_the_formula_and_within_half_and_six_fifths(dopamine: float, base: float) -> None:
    configuration = DYNAMIC.overridden({"base_learning_rate": base})
    rate = float(effective_rate(configuration, dopamine))
    assert rate == base * min(max(0.5 + dopamine, 0.5), 1.2)
    assert base * 0.5 <= rate <= base * 1.2


def test_the_first_reward_of_a_tenant_by_hand() -> None:
    """r = 1 where 0 was expected: dopamine 0.8, factor 1.2, so α moves 0.06; where 1 is expected, 0.045."""
    assert to_units(learn(DYNAMIC, np.ones(1))[0, ALPHA]) == 1.06
    followed, _ = trace([1.0], RewardState(mean=1.0), 0.1)
    assert effective_rate(DYNAMIC, followed.dopamine) == pytest.approx(0.05 * 0.9)


@pytest.mark.parametrize("configuration", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_twenty_good_events_raise_alpha_by_three_tenths_at_least(
    configuration: LearningConfiguration,
) -> None:
    alpha = to_units(learn(configuration, np.ones(20))[:, ALPHA])
    assert alpha[-1] - 1.0 >= 0.3
    assert (np.diff(alpha) > 0).all()


def test_a_surprising_reward_teaches_more_than_an_expected_one() -> None:
    alpha = to_units(learn(DYNAMIC, np.ones(20))[:, ALPHA])
    steps = np.diff(alpha, prepend=1.0)
    assert steps[0] == pytest.approx(0.06)
    assert 0.045 < steps[-1] < 0.05


@pytest.mark.parametrize("configuration", [STATIC, DYNAMIC], ids=["static", "dynamic"])
@given(utility=st.lists(st.floats(-1, 1), max_size=200))
def test_weights_stay_within_their_bounds(configuration: LearningConfiguration, utility: list[float]) -> None:
    weights = learn(configuration, np.array(utility, dtype=np.float64))
    assert ((configuration.low_nanos <= weights) & (weights <= configuration.high_nanos)).all()


@pytest.mark.parametrize(("utility", "bound"), [(1.0, 3.0), (-1.0, 0.8)])
def test_a_thousand_events_one_way_stop_at_the_bound(utility: float, bound: float) -> None:
    assert to_units(learn(DYNAMIC, np.full(1000, utility))[-1, ALPHA]) == bound
