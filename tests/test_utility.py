"""Context assembly: the most useful memories that fit, and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from somabrain_dagster.learning.utility import Room, Terms, UtilityWeights, assemble, terms
from somabrain_dagster.learning.weights import UTILITY_WEIGHTS

START = UtilityWeights(*(weight.start for weight in UTILITY_WEIGHTS))

weights = st.builds(
    UtilityWeights, *(st.floats(weight.low, weight.high, allow_subnormal=False) for weight in UTILITY_WEIGHTS)
)
rooms = st.builds(Room, st.integers(1, 200), st.integers(1, 8))
candidates = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 80)), max_size=12).map(
    lambda pairs: (
        np.array([gain for gain, _ in pairs], dtype=np.float64),
        np.array([length for _, length in pairs], dtype=np.int64),
    )
)
Candidates = tuple[NDArray[np.float64], NDArray[np.int64]]


def test_the_terms_by_hand() -> None:
    context = terms(np.array([0.5, 0.25]), np.array([30, 10]), Room(budget=100, capacity=8))
    assert context == Terms(context_gain=1 - 0.5 * 0.75, length_penalty=0.4, memory_penalty=0.25)
    assert context.utility(UtilityWeights(lambda_=1.0, mu=0.5, nu=0.2)) == pytest.approx(0.625 - 0.2 - 0.05)


def test_an_empty_context_has_no_gain_and_no_cost() -> None:
    empty = terms(np.zeros(0), np.zeros(0, dtype=np.int64), Room(100, 8))
    assert empty == Terms(0.0, 0.0, 0.0)


@given(candidates, rooms, weights)
def test_what_is_assembled_fits_and_its_terms_lie_between_0_and_1(
    pool: Candidates, room: Room, w: UtilityWeights
) -> None:
    gains, lengths = pool
    chosen = assemble(gains, lengths, room, w)
    assert len(set(chosen.tolist())) == len(chosen) <= room.capacity
    assert lengths[chosen].sum() <= room.budget
    context = terms(gains[chosen], lengths[chosen], room)
    for term in (context.context_gain, context.length_penalty, context.memory_penalty):
        assert 0 <= term <= 1


@given(candidates, rooms, weights)
def test_every_step_is_the_best_one_and_the_last_leaves_nothing_that_adds(
    pool: Candidates, room: Room, w: UtilityWeights
) -> None:
    gains, lengths = pool

    def utility(positions: list[int]) -> float:
        return terms(gains[positions], lengths[positions], room).utility(w)

    def fitting(positions: list[int]) -> list[int]:
        left = room.budget - int(lengths[positions].sum())
        more = [m for m in range(len(gains)) if m not in positions and lengths[m] <= left]
        return more if len(positions) < room.capacity else []

    chosen = assemble(gains, lengths, room, w).tolist()
    for step, taken in enumerate(chosen):
        before = chosen[:step]
        gain = utility([*before, taken]) - utility(before)
        assert gain > -1e-12
        assert all(gain >= utility([*before, other]) - utility(before) - 1e-9 for other in fitting(before))
    assert all(utility([*chosen, other]) - utility(chosen) <= 1e-9 for other in fitting(chosen))


def test_a_memory_that_costs_more_than_it_gives_is_left_out() -> None:
    gains, lengths = np.array([0.9, 0.04]), np.array([50, 50])
    assert assemble(gains, lengths, Room(100, 10), START).tolist() == [0]


def test_a_memory_of_little_gain_is_worth_it_when_length_is_cheap() -> None:
    gains, lengths = np.array([0.9, 0.5]), np.array([50, 50])
    dear, cheap = UtilityWeights(1.0, 5.0, 0.01), UtilityWeights(1.0, 0.01, 0.01)
    assert assemble(gains, lengths, Room(100, 10), dear).tolist() == []
    assert assemble(gains, lengths, Room(100, 10), cheap).tolist() == [0, 1]


def test_a_shorter_memory_takes_the_room_that_a_longer_one_would_not_fit() -> None:
    gains, lengths = np.array([0.8, 0.7, 0.3]), np.array([60, 60, 40])
    assert assemble(gains, lengths, Room(100, 10), START).tolist() == [0, 2]


def test_between_equals_the_earlier_position_is_taken() -> None:
    gains, lengths = np.array([0.5, 0.5, 0.5]), np.array([10, 10, 10])
    assert assemble(gains, lengths, Room(100, 1), START).tolist() == [0]


@pytest.mark.parametrize("gain", [-0.1, 1.1, float("nan")])
def test_a_gain_is_a_probability(gain: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        assemble(np.array([gain]), np.array([1]), Room(10, 1), START)


def test_lengths_and_rooms_are_sensible() -> None:
    with pytest.raises(ValueError, match="none may be negative"):
        assemble(np.array([0.5]), np.array([-1]), Room(10, 1), START)
    for budget, capacity in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="room for one token"):
            Room(budget, capacity)
