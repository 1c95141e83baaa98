"""The likelihood of choices and the measures of their ranking, against their definitions."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices, contributions, gradient, information, likelihood
from somabrain_dagster.learning.policy import softmax
from somabrain_dagster.learning.ranking import mrr, rank_of_chosen, recall_at, top1

Floats = NDArray[np.float64]

FEATURES = 3
numbers = st.integers(-32, 32).map(lambda n: n / 16)
"""Sixteenths: ties happen, and small sums of them are exact."""
taus = st.floats(0.4, 1.2)
weight_vectors = arrays(np.float64, FEATURES, elements=numbers)


@st.composite
def choice_sets(draw: st.DrawFn) -> Choices:
    lengths = np.array(draw(st.lists(st.integers(1, 5), min_size=1, max_size=8)), dtype=np.int64)
    recalls = len(lengths)
    return Choices(
        features=draw(arrays(np.float64, (int(lengths.sum()), FEATURES), elements=numbers)),
        lengths=lengths,
        chosen=np.array([draw(st.integers(0, length - 1)) for length in lengths.tolist()], dtype=np.int64),
        omega=draw(arrays(np.float64, recalls, elements=st.integers(0, 3).map(float))),
        tenant=draw(arrays(np.int64, recalls, elements=st.integers(0, 2))),
    )


def recalls_of(choices: Choices) -> list[Floats]:
    """The features of each recall's candidates, apart."""
    return np.split(choices.features, np.cumsum(choices.lengths)[:-1])


# Likelihood


@given(choice_sets(), weight_vectors, taus)
def test_the_likelihood_is_the_sum_of_the_log_probabilities_of_what_was_chosen(
    choices: Choices, weights: Floats, tau: float
) -> None:
    recalls = zip(recalls_of(choices), choices.chosen, choices.omega, strict=True)
    expected = sum(omega * np.log(softmax(z @ weights, tau)[c]) for z, c, omega in recalls)
    assert likelihood(choices, weights, tau) == pytest.approx(expected, abs=1e-9)


@given(choice_sets(), weight_vectors, taus, st.floats(0.1, 10))
def test_only_the_ratio_of_weights_and_tau_is_identified(
    choices: Choices, weights: Floats, tau: float, factor: float
) -> None:
    same = likelihood(choices, factor * weights, factor * tau)
    assert same == pytest.approx(likelihood(choices, weights, tau), abs=1e-9)


@given(choice_sets(), weight_vectors, taus, st.data())
def test_what_is_added_to_all_candidates_of_a_recall_changes_nothing(
    choices: Choices, weights: Floats, tau: float, data: st.DataObject
) -> None:
    shifts = data.draw(arrays(np.float64, (len(choices.lengths), FEATURES), elements=numbers))
    shifted = Choices(
        choices.features + choices.spread(shifts),
        choices.lengths,
        choices.chosen,
        choices.omega,
        choices.tenant,
    )
    assert likelihood(shifted, weights, tau) == pytest.approx(likelihood(choices, weights, tau), abs=1e-9)


@given(choice_sets(), weight_vectors, taus)
def test_the_gradient_is_the_slope_of_the_likelihood(choices: Choices, weights: Floats, tau: float) -> None:
    step = 1e-5
    slopes = [
        (likelihood(choices, weights + step * e, tau) - likelihood(choices, weights - step * e, tau))
        / (2 * step)
        for e in np.eye(FEATURES)
    ]
    np.testing.assert_allclose(gradient(choices, weights, tau), slopes, atol=1e-5)


@given(choice_sets(), weight_vectors, taus)
def test_the_information_is_minus_the_slope_of_the_gradient(
    choices: Choices, weights: Floats, tau: float
) -> None:
    step = 1e-5
    slopes = [
        (gradient(choices, weights + step * e, tau) - gradient(choices, weights - step * e, tau)) / (2 * step)
        for e in np.eye(FEATURES)
    ]
    np.testing.assert_allclose(-information(choices, weights, tau), slopes, atol=1e-4)


@given(choice_sets(), weight_vectors, taus)
def test_the_recalls_contributions_add_up_to_the_gradient(
    choices: Choices, weights: Floats, tau: float
) -> None:
    parts = contributions(choices, weights, tau)
    assert parts.shape == (len(choices.lengths), FEATURES)
    np.testing.assert_allclose(parts.sum(axis=0), gradient(choices, weights, tau), atol=1e-10)


@given(choice_sets(), weight_vectors, taus)
def test_a_weight_of_two_is_the_recall_said_twice(choices: Choices, weights: Floats, tau: float) -> None:
    times = choices.omega.astype(np.int64)
    if not times.any():
        assert likelihood(choices, weights, tau) == 0
        return
    said = choices.take(np.repeat(np.arange(len(times)), times))
    said = Choices(said.features, said.lengths, said.chosen, np.ones(len(said.lengths)), said.tenant)
    assert likelihood(said, weights, tau) == pytest.approx(likelihood(choices, weights, tau), abs=1e-9)


@given(choice_sets(), weight_vectors, taus, st.randoms(use_true_random=False))
def test_recalls_can_be_taken_in_any_order(
    choices: Choices, weights: Floats, tau: float, random: Random
) -> None:
    order = list(range(len(choices.lengths)))
    random.shuffle(order)
    taken = choices.take(np.array(order))
    original = recalls_of(choices)
    for position, recall in enumerate(order):
        assert np.array_equal(recalls_of(taken)[position], original[recall])
    assert likelihood(taken, weights, tau) == pytest.approx(likelihood(choices, weights, tau), abs=1e-9)
    assert rank_of_chosen(taken, weights).tolist() == rank_of_chosen(choices, weights)[order].tolist()


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ValueError, match="τ must be above 0"):
        likelihood(ONE, np.zeros(1), 0.0)


# Ranking


@given(choice_sets(), weight_vectors)
def test_the_rank_counts_all_that_score_at_least_as_high(choices: Choices, weights: Floats) -> None:
    expected = [
        sum(1 for score in z @ weights if score >= (z @ weights)[c])
        for z, c in zip(recalls_of(choices), choices.chosen, strict=True)
    ]
    assert rank_of_chosen(choices, weights).tolist() == expected


def test_the_measures_by_hand() -> None:
    choices = Choices(
        features=np.array([[3.0], [1.0], [1.0], [2.0], [5.0], [4.0]]),
        lengths=np.array([1, 3, 2]),
        chosen=np.array([0, 1, 0]),
        omega=np.array([1.0, 0.0, 5.0]),  # measures count every recall once
        tenant=np.zeros(3, dtype=np.int64),
    )
    weights = np.array([1.0])
    assert rank_of_chosen(choices, weights).tolist() == [1, 3, 1]  # 1 of (1, 1, 2): the tie counts against it
    assert top1(choices, weights) == pytest.approx(2 / 3)
    assert recall_at(2, choices, weights) == pytest.approx(2 / 3)
    assert recall_at(3, choices, weights) == 1.0
    assert mrr(choices, weights) == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_weights_that_tell_nothing_apart_earn_nothing() -> None:
    choices = Choices(
        np.ones((10, 1)), np.array([10]), np.array([0]), np.ones(1), np.zeros(1, dtype=np.int64)
    )
    assert mrr(choices, np.array([3.0])) == 0.1


# What is refused


ONE = Choices(np.array([[0.0], [1.0]]), np.array([2]), np.array([1]), np.ones(1), np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"lengths": np.array([0, 2])}, "a length, choice, ω and tenant for each"),
        ({"lengths": np.array([3])}, "must add up"),
        ({"chosen": np.array([2])}, "within its recall"),
        ({"chosen": np.array([-1])}, "within its recall"),
        ({"omega": np.array([-1.0])}, "ω must be"),
        ({"omega": np.array([np.inf])}, "ω must be"),
        ({"features": np.array([[0.0], [np.nan]])}, "features must be finite"),
    ],
)
def test_what_describes_no_recalls_is_refused(changed: dict[str, Any], complaint: str) -> None:
    fields = {"features": ONE.features, "lengths": ONE.lengths, "chosen": ONE.chosen}
    fields |= {"omega": ONE.omega, "tenant": ONE.tenant}
    with pytest.raises(ValueError, match=complaint):
        Choices(**(fields | changed))


def test_a_recall_without_candidates_or_no_recall_is_refused() -> None:
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="at least one recall"):
        Choices(np.zeros((0, 1)), none, none, np.zeros(0), none)
    with pytest.raises(ValueError, match="each recall needs a candidate"):
        Choices(ONE.features, np.array([0, 2]), np.array([0, 0]), np.ones(2), np.zeros(2, dtype=np.int64))
