"""Neuromodulators follow the reward stream by their formulas, the same however it is batched."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.neuromodulators import (
    RewardState,
    Trace,
    effective_alpha,
    effective_temperature,
    trace,
    trace_segments,
    trace_steps,
)

pytestmark = pytest.mark.learning

ETA = 0.1
rewards = st.lists(st.floats(-1, 1), max_size=40)
states = st.builds(RewardState, st.floats(-1, 1), st.floats(0, 4))


def columns(followed: Trace) -> dict[str, list[float]]:
    return {field.name: getattr(followed, field.name).tolist() for field in fields(followed)}


def test_two_rewards_by_hand() -> None:
    """r = 1, then ½, from V = v = 0: δ = 1 then ½ − 0.1; v = 0.1 then 0.09 + 0.1·0.16."""
    followed, after = trace([1.0, 0.5], RewardState(), ETA)
    assert followed.delta == pytest.approx([1.0, 0.4])
    assert followed.mean == pytest.approx([0.1, 0.14])
    assert followed.variance == pytest.approx([0.1, 0.106])
    assert followed.dopamine == pytest.approx([0.8, 0.56])
    assert followed.serotonin == pytest.approx([1 - math.sqrt(0.1), 1 - math.sqrt(0.106)])
    assert followed.noradrenaline == pytest.approx([0.1, 0.05 * (0.4 / math.sqrt(0.11) - 1)])
    assert followed.acetylcholine == pytest.approx([0.1 * math.sqrt(0.1), 0.1 * math.sqrt(0.106)])
    assert after == RewardState(followed.mean[-1], followed.variance[-1])


@given(st.lists(st.tuples(st.floats(-1, 1), states), max_size=40))
def test_steps_taken_together_are_those_taken_alone_to_the_last_bit(
    steps: list[tuple[float, RewardState]],
) -> None:
    values = np.array([reward for reward, _ in steps])
    before = [state for _, state in steps]
    alone, _ = trace_segments(values, [1] * len(steps), before, ETA)
    together = trace_steps(
        values, np.array([state.mean for state in before]), np.array([s.variance for s in before]), ETA
    )
    assert columns(together) == columns(alone)


def test_the_expected_reward_leaves_every_level_at_rest() -> None:
    followed, after = trace([0.0], RewardState(), ETA)
    assert columns(followed) == {
        "delta": [0.0],
        "mean": [0.0],
        "variance": [0.0],
        "dopamine": [0.4],
        "serotonin": [1.0],
        "noradrenaline": [0.0],
        "acetylcholine": [0.0],
    }
    assert after == RewardState()


def test_a_disappointment_lowers_dopamine_to_its_floor_and_no_further() -> None:
    followed, _ = trace([-0.5, -1.0], RewardState(), ETA)
    assert followed.dopamine.tolist() == [0.2, 0.2]


@given(rewards, rewards, states)
def test_batches_are_traced_as_one_stream(first: list[float], then: list[float], state: RewardState) -> None:
    whole, end = trace([*first, *then], state, ETA)
    before, middle = trace(first, state, ETA)
    after, last = trace(then, middle, ETA)
    assert columns(whole) == {name: values + columns(after)[name] for name, values in columns(before).items()}
    assert last == end


@given(st.lists(st.tuples(rewards, states), max_size=5))
def test_tenants_are_traced_together_as_alone(tenants: list[tuple[list[float], RewardState]]) -> None:
    streams = [stream for stream, _ in tenants]
    together, ends = trace_segments(
        [reward for stream in streams for reward in stream],
        [len(stream) for stream in streams],
        [state for _, state in tenants],
        ETA,
    )
    alone = [trace(stream, state, ETA) for stream, state in tenants]
    assert ends == [end for _, end in alone]
    for name, values in columns(together).items():
        assert values == [value for followed, _ in alone for value in columns(followed)[name]]


@given(rewards, states)
def test_levels_stay_in_their_ranges(stream: list[float], state: RewardState) -> None:
    followed, after = trace(stream, state, ETA)
    for name, low, high in [
        ("dopamine", 0.2, 0.8),
        ("serotonin", 0.0, 1.0),
        ("noradrenaline", 0.0, 0.1),
        ("acetylcholine", 0.0, 0.1),
    ]:
        levels = getattr(followed, name)
        assert ((low <= levels) & (levels <= high)).all()
    assert after.variance >= 0


def test_a_steady_reward_comes_to_be_expected() -> None:
    followed, after = trace([0.7] * 300, RewardState(), ETA)
    assert after.mean == pytest.approx(0.7)
    assert after.variance == pytest.approx(0.0, abs=1e-9)
    assert followed.dopamine[-1] == pytest.approx(0.4)
    assert followed.serotonin[-1] == pytest.approx(1.0, abs=1e-4)


def test_an_event_is_judged_by_what_was_expected_before_it() -> None:
    """After a calm stream one surprise is noradrenaline's; its own variance must not excuse it."""
    _, calm = trace([0.0] * 50, RewardState(), ETA)
    followed, _ = trace([0.2], calm, ETA)
    assert followed.noradrenaline.item() == pytest.approx(0.05 * (0.2 / 0.1 - 1))


@pytest.mark.parametrize("reward", [1.0000001, -2.0, math.nan, math.inf])
def test_a_reward_outside_its_range_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        trace([0.0, reward], RewardState(), ETA)


def test_lengths_must_fit_the_rewards() -> None:
    with pytest.raises(ValueError, match="sum to the 2 rewards"):
        trace_segments(np.zeros(2), [1], [RewardState()], ETA)


def test_at_recall_surprise_sharpens_and_expected_uncertainty_leans_on_meaning() -> None:
    assert effective_temperature(0.7, 0.1) == pytest.approx(0.63)
    assert effective_alpha(1.0, 0.1) == pytest.approx(1.1)
    assert (effective_temperature(0.7, 0.0), effective_alpha(1.0, 0.0)) == (0.7, 1.0)
