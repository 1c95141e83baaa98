"""Measures of ranking and their intervals: by hand, by law, and against a known truth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import log_probabilities
from somabrain_dagster.learning.enhancement import (
    METRICS,
    NOT_THERE,
    Questions,
    rankings,
    stacked,
    two_level_intervals,
)
from somabrain_dagster.learning.features import FEATURES, Candidates, Floats, recency
from somabrain_dagster.learning.gated_fit import LEAST_CHOICES, gated_fit
from somabrain_dagster.learning.half_life import HALF_LIVES, RECENCY, measured_scales, profile, with_half_life
from somabrain_dagster.learning.policy import pooled_scales
from somabrain_dagster.learning.pooled_fit import pooled_fit
from somabrain_dagster.learning.ranking import rank_of_chosen

F = len(FEATURES)
OPEN = np.full(F, np.inf)


def questions(*scores_and_answers: tuple[list[float], int], tenants: list[int] | None = None) -> Questions:
    """Questions whose first feature is what is given, and whose other features are 0."""
    features = np.zeros((sum(len(scores) for scores, _ in scores_and_answers), F))
    features[:, 0] = [score for scores, _ in scores_and_answers for score in scores]
    return Questions(
        features,
        np.array([len(scores) for scores, _ in scores_and_answers]),
        np.array([answer for _, answer in scores_and_answers]),
        np.array(tenants or [0] * len(scores_and_answers)),
    )


ALPHA_ALONE = np.array([1.0, *[0.0] * (F - 1)])


def test_measures_by_hand() -> None:
    asked = questions(
        ([0.9, 0.5, 0.1], 0),  # first, by 0.4
        ([0.2, 0.8, 0.7], 2),  # second; the best leads by 0.1
        ([float(place) for place in range(12)], 1),  # eleventh of twelve, by 1
        ([0.3, 0.6], NOT_THERE),  # not weighed; the best leads by 0.3
        ([0.5], 0),  # alone: first, and nothing to decide
        ([0.5, 0.5, 0.1], 0),  # a tie for the first place does not count as first
    )
    ranked = rankings(asked, ALPHA_ALONE)
    assert ranked.rank.tolist() == [1, 2, 11, np.inf, 1, 2]
    assert ranked.margin == pytest.approx([0.4, 0.1, 1.0, 0.3, 0.0, 0.0])
    top1, r5, r10, mrr, margin = ranked.measures.mean(axis=0)
    assert METRICS == ("top1", "r5", "r10", "mrr", "margin")
    assert (top1, r5, r10) == pytest.approx((2 / 6, 4 / 6, 4 / 6))
    assert mrr == pytest.approx((1 + 1 / 2 + 1 / 11 + 0 + 1 + 1 / 2) / 6)
    assert margin == pytest.approx(1.8 / 6)


def test_each_tenant_is_ranked_by_weights_of_its_own() -> None:
    asked = questions(([1.0, 0.0], 0), ([1.0, 0.0], 0), tenants=[0, 1])
    ranked = rankings(asked, np.array([ALPHA_ALONE, -ALPHA_ALONE]))
    assert ranked.rank.tolist() == [1, 2]


@st.composite
def asked(draw: st.DrawFn) -> tuple[Questions, Floats]:
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    answers = [draw(st.integers(NOT_THERE, length - 1)) for length in lengths]
    drawn = Questions(
        generator.normal(size=(sum(lengths), F)),
        np.array(lengths),
        np.array(answers),
        np.zeros(len(lengths), dtype=np.int64),
    )
    return drawn, generator.normal(size=F)


@given(asked(), st.floats(0.01, 100))
def test_weights_of_any_length_rank_alike_and_their_margins_grow_with_them(
    drawn: tuple[Questions, Floats], factor: float
) -> None:
    some, weights = drawn
    once, longer = rankings(some, weights), rankings(some, factor * weights)
    assert once.rank.tolist() == longer.rank.tolist()
    assert longer.margin == pytest.approx(factor * once.margin, abs=1e-9)


@given(asked())
def test_ranks_agree_with_those_of_choices(drawn: tuple[Questions, Floats]) -> None:
    some, weights = drawn
    if some.answered.any():
        known = rankings(some, weights).rank[some.answered]
        assert known.tolist() == rank_of_chosen(some.choices(), weights).tolist()


@given(asked())
def test_the_order_of_questions_means_nothing(drawn: tuple[Questions, Floats]) -> None:
    some, weights = drawn
    backwards = np.arange(len(some.lengths))[::-1]
    there = rankings(some.take(backwards), weights)
    assert there.measures[::-1].tolist() == rankings(some, weights).measures.tolist()
    parts = [some.take(np.array([place])) for place in range(len(some.lengths))]
    assert rankings(stacked(parts), weights).measures.tolist() == rankings(some, weights).measures.tolist()


def test_questions_that_are_none_are_refused() -> None:
    features, one = np.zeros((2, F)), np.array([0])
    with pytest.raises(ValueError, match="add up"):
        Questions(features, np.array([3]), one, one)
    with pytest.raises(ValueError, match="within its question's candidates"):
        Questions(features, np.array([2]), np.array([2]), one)
    with pytest.raises(ValueError, match="a length, an answer and a tenant"):
        Questions(features, np.array([2]), one, np.array([0, 1]))


# ------------------------------------------------------------------------------------------- intervals


def drawn_from_truth(
    generator: np.random.Generator, truth: float, between: float, tenants: int, of_each: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Generated: differences whose mean over all possible tenants is the truth."""
    of_tenants = truth + between * generator.normal(size=tenants)
    values = np.repeat(of_tenants, of_each) + generator.normal(size=tenants * of_each)
    return values[:, None], np.repeat(np.arange(tenants), of_each)


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(between: float) -> None:
    """On generated differences, with and without tenants that differ: 95% of intervals, within what 24 allow.

    Bootstraps of few clusters are a little short (about 93% at 24), and resampling questions too makes up for
    more than that where tenants do not differ at all (about 99%).
    """
    generator = np.random.default_rng(24)
    draws, held = 300, 0
    for _ in range(draws):
        values, tenant = drawn_from_truth(generator, 0.2, between, tenants=24, of_each=30)
        found = two_level_intervals(values, tenant, replicates=300, generator=generator)
        held += bool(found.low[0] <= 0.2 <= found.high[0])
    assert 0.90 <= held / draws <= 0.998


def test_intervals_over_questions_alone_would_be_far_too_sure() -> None:
    """On generated differences of tenants that differ: why there are two levels."""
    generator = np.random.default_rng(7)
    draws, held = 200, 0
    for _ in range(draws):
        values, tenant = drawn_from_truth(generator, 0.2, 0.5, tenants=24, of_each=30)
        as_if_alone = np.arange(len(tenant))  # every question a tenant of its own
        found = two_level_intervals(values, as_if_alone, replicates=200, generator=generator)
        held += bool(found.low[0] <= 0.2 <= found.high[0])
    assert held / draws < 0.8


def test_a_policy_gains_nothing_over_itself_and_columns_are_paired() -> None:
    generator = np.random.default_rng(1)
    values, tenant = drawn_from_truth(generator, 0.3, 0.2, tenants=6, of_each=20)
    both = np.hstack([values - values, values, values + 0.1])
    found = two_level_intervals(both, tenant, replicates=200, generator=generator)
    assert found.mean[0] == found.low[0] == found.high[0] == 0.0
    for shifted, plain in ((found.mean, found.mean), (found.low, found.low), (found.high, found.high)):
        assert shifted[2] == pytest.approx(plain[1] + 0.1)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_intervals(seed: int) -> None:
    values, tenant = drawn_from_truth(np.random.default_rng(seed), 0.0, 0.3, tenants=4, of_each=5)
    one, two = (
        two_level_intervals(values, tenant, replicates=50, generator=np.random.default_rng(seed))
        for _ in range(2)
    )
    assert (one.low.tolist(), one.high.tolist()) == (two.low.tolist(), two.high.tolist())
    assert one.low[0] <= one.mean[0] + 1e-9
    assert one.mean[0] <= one.high[0] + 1e-9 or one.high[0] == pytest.approx(one.mean[0])


def test_without_questions_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="nothing can be compared"):
        two_level_intervals(np.zeros((0, 1)), np.zeros(0, dtype=np.int64), generator=np.random.default_rng(0))


# ------------------------------------------------------------------------------- half-lives and own fits


def chosen_by(generator: np.random.Generator, half_life: float, weights: Floats, asked: int) -> Questions:
    """Generated: questions of twelve candidates whose answers are drawn from a policy that is known.

    The ages of the candidates are in the second feature.
    """
    ages = np.exp(generator.uniform(0, np.log(30 * 86_400), size=asked * 12))
    features = generator.normal(size=(asked * 12, F))
    lengths = np.full(asked, 12)
    nobody = np.zeros(asked, dtype=np.int64)
    scaled = with_half_life(features, ages, half_life, measured_scales(features, ages, lengths, half_life))
    shown = Questions(scaled, lengths, nobody, nobody).choices()
    p = np.exp(log_probabilities(shown, weights, 0.7)).reshape(asked, 12)
    answers = np.array([generator.choice(12, p=of_one / of_one.sum()) for of_one in p])
    features[:, 1] = ages
    return Questions(features, lengths, answers, nobody)


@pytest.mark.parametrize("half_life", [60.0, 3600.0, 86_400.0])
def test_the_profile_finds_the_half_life_that_made_the_choices(half_life: float) -> None:
    truth = np.zeros(F)
    truth[[0, RECENCY]] = 0.5, 1.5
    made = chosen_by(np.random.default_rng(3), half_life, truth, asked=800)
    ages = made.features[:, 1].copy()
    made.features[:, 1] = 0.0
    best, *others = profile(made.choices(), ages, 0.7, np.zeros(F), -OPEN, OPEN, kappa=1.0)
    assert best.seconds == half_life
    assert best.fit.weights == pytest.approx(truth, abs=0.25)
    assert all(best.fit.log_likelihood > other.fit.log_likelihood for other in others)


def test_recency_at_a_half_life_is_the_feature_of_the_registry() -> None:
    ages = np.array([0.0, 60.0, 3600.0, 1e7])
    nothing = np.zeros(4)
    known = Candidates(nothing, nothing, ages, 60.0, nothing, nothing > 0, nothing > 0)
    features, scales = np.arange(4.0 * F).reshape(4, F), np.arange(1.0, F + 1)
    changed = with_half_life(features, ages, 60.0, scales)
    assert changed[:, RECENCY].tolist() == (recency(known) / scales[RECENCY]).tolist()
    others = [place for place in range(F) if place != RECENCY]
    assert changed[:, others].tolist() == (features / scales)[:, others].tolist()


def test_scales_that_are_measured_leave_each_feature_with_the_same_spread() -> None:
    """So that a half-life cannot be bought by a scale that loosens the bound of recency alone."""
    generator = np.random.default_rng(2)
    features = generator.normal(size=(240, F)) * np.arange(1, F + 1)
    ages, lengths = generator.uniform(0, 600, size=240), np.full(20, 12)
    scales = measured_scales(features, ages, lengths, 60.0)
    again = np.split(with_half_life(features, ages, 60.0, scales), 20)
    assert pooled_scales(again) == pytest.approx(np.ones(F))


def test_a_tenant_who_chooses_otherwise_than_the_others_keeps_its_own_fit() -> None:
    """Generated: against the prior's own choices the gate stays shut, against others it opens."""
    truth = np.zeros(F)
    truth[0] = 1.5
    made = chosen_by(np.random.default_rng(5), 3600.0, truth, asked=100)
    made.features[:, 1] = 0.0
    choices = made.choices()
    agreed = gated_fit(choices, truth, 0.7, -OPEN, OPEN)
    assert (agreed.own, agreed.weights.tolist()) == (False, truth.tolist())
    opposed = gated_fit(choices, -truth, 0.7, -OPEN, OPEN)
    assert opposed.own
    assert opposed.weights[0] > 0
    few = gated_fit(choices.take(np.arange(LEAST_CHOICES - 1)), -truth, 0.7, -OPEN, OPEN)
    assert (few.own, few.gain, few.weights.tolist()) == (False, None, (-truth).tolist())


def of_tenants(made: Questions, tenants: int) -> Questions:
    """The same questions, divided among tenants."""
    return replace(made, tenant=np.arange(len(made.lengths)) % tenants)


def test_weights_for_everybody_pass_their_gate_where_there_is_something_to_learn() -> None:
    truth = np.zeros(F)
    truth[[0, RECENCY]] = 0.5, 1.5
    made = of_tenants(chosen_by(np.random.default_rng(11), 60.0, truth, asked=600), tenants=10)
    ages = made.features[:, 1].copy()
    made.features[:, 1] = 0.0
    found = pooled_fit(made.choices(), ages, 0.7, ALPHA_ALONE, -OPEN, OPEN, HALF_LIVES)
    assert found.gate.passed
    assert found.half_life is not None
    assert found.half_life.seconds == 60.0
    assert found.weights == pytest.approx(truth, abs=0.35)  # fitted to all 600, not to the earlier ones alone
    as_logged = pooled_fit(made.choices(), ages, 0.7, ALPHA_ALONE, -OPEN, OPEN)
    assert as_logged.half_life is None


def test_weights_for_everybody_are_refused_where_labels_say_nothing() -> None:
    """On generated questions whose answers are drawn blindly: one in twenty would pass by chance."""
    passed = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        made = of_tenants(chosen_by(generator, 3600.0, np.zeros(F), asked=200), tenants=10)
        ages = made.features[:, 1].copy()
        made.features[:, 1] = 0.0
        found = pooled_fit(made.choices(), ages, 0.7, ALPHA_ALONE, -OPEN, OPEN)
        passed += found.gate.passed
        assert found.gate.passed or found.weights.tolist() == ALPHA_ALONE.tolist()
    assert passed <= 3


def test_one_tenant_alone_says_nothing_of_everybody() -> None:
    truth = np.zeros(F)
    truth[0] = 1.5
    made = chosen_by(np.random.default_rng(5), 3600.0, truth, asked=100)
    ages = made.features[:, 1].copy()
    made.features[:, 1] = 0.0
    found = pooled_fit(made.choices(), ages, 0.7, np.zeros(F), -OPEN, OPEN)
    assert found.gate.missing
    assert found.weights.tolist() == [0.0] * F
    with pytest.raises(ValueError, match="gather more"):
        pooled_fit(made.choices().take(np.array([0])), ages[:12], 0.7, np.zeros(F), -OPEN, OPEN)
