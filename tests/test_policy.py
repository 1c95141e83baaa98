"""The policy of recall: what it may depend on, and what it must not."""

from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import chisquare

from somabrain_dagster.learning import policy
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.policy import activation, draw_without_replacement, sample, softmax
from somabrain_dagster.learning.weights import FEATURE_WEIGHTS

Floats = NDArray[np.float64]

moderate = st.floats(-20, 20, allow_subnormal=False)
temperatures = st.floats(0.05, 5)


def vectors(size: int | st.SearchStrategy[int]) -> st.SearchStrategy[Floats]:
    return arrays(np.float64, size, elements=moderate)


score_vectors = vectors(st.integers(1, 30))
weight_vectors = vectors(len(FEATURES))
matrices = st.integers(1, 30).flatmap(
    lambda n: arrays(np.float64, (n, len(FEATURES)), elements=st.floats(-5, 5, allow_subnormal=False))
)


# Scores and probabilities


@given(score_vectors, temperatures)
def test_probabilities_sum_to_one_and_follow_the_scores(scores: Floats, tau: float) -> None:
    p = softmax(scores, tau)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    assert (np.diff(p[np.argsort(scores)]) >= 0).all()


@given(score_vectors, temperatures, moderate)
def test_what_is_added_to_every_score_changes_nothing(scores: Floats, tau: float, shift: float) -> None:
    np.testing.assert_allclose(softmax(scores + shift, tau), softmax(scores, tau), atol=1e-10)


@given(matrices, weight_vectors, moderate, temperatures)
def test_a_feature_that_is_equal_for_all_candidates_is_inert(
    z: Floats, weights: Floats, constant: float, tau: float
) -> None:
    z[:, 0] = constant
    other = weights.copy()
    other[0] += 7.0
    np.testing.assert_allclose(
        softmax(policy.scores(z, weights), tau), softmax(policy.scores(z, other), tau), atol=1e-9
    )


def test_a_learned_weight_changes_what_is_recalled() -> None:
    z = np.zeros((2, len(FEATURES)))
    z[0, 0], z[1, 2] = 1.0, 1.0  # one memory is similar, the other recent
    ids = np.array([1, 2])
    start = np.array([weight.start for weight in FEATURE_WEIGHTS])
    learned = start.copy()
    learned[2] = FEATURE_WEIGHTS[2].high
    learned[0] = FEATURE_WEIGHTS[0].low
    assert policy.rank(policy.scores(z, start), ids).tolist() == [0, 1]
    assert policy.rank(policy.scores(z, learned), ids).tolist() == [1, 0]


@given(matrices, weight_vectors, temperatures)
def test_doubling_weights_and_tau_together_changes_no_bit_of_the_policy(
    z: Floats, weights: Floats, tau: float
) -> None:
    once = softmax(policy.scores(z, weights), tau)
    assert np.array_equal(softmax(policy.scores(z, 2 * weights), 2 * tau), once)


@given(matrices, weight_vectors, st.randoms(use_true_random=False))
def test_a_candidates_score_does_not_depend_on_the_others(z: Floats, weights: Floats, random: Random) -> None:
    order = list(range(len(z)))
    random.shuffle(order)
    assert np.array_equal(policy.scores(z[order], weights), policy.scores(z, weights)[order])
    assert policy.scores(z[:1], weights)[0] == policy.scores(z, weights)[0]


def test_extreme_scores_do_not_overflow() -> None:
    assert softmax(np.array([1e300, -1e300, 1e300]), 0.1).tolist() == [0.5, 0.0, 0.5]


def test_no_candidates_have_no_probabilities() -> None:
    assert softmax(np.zeros(0), 0.7).shape == (0,)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(tau: float) -> None:
    with pytest.raises(ValueError, match="τ must be above 0"):
        softmax(np.zeros(2), tau)
    with pytest.raises(ValueError, match="τ must be above 0"):
        sample(np.zeros(2), tau, np.random.default_rng(0))


@given(matrices, weight_vectors)
def test_expected_features_are_the_slope_of_the_log_partition_function(z: Floats, weights: Floats) -> None:
    def log_partition(w: Floats) -> float:
        return float(np.logaddexp.reduce(policy.scores(z, w)))

    step = 1e-5
    slopes = [
        (log_partition(weights + step * e) - log_partition(weights - step * e)) / (2 * step)
        for e in np.eye(len(weights))
    ]
    p = softmax(policy.scores(z, weights), 1.0)
    np.testing.assert_allclose(policy.expected_features(p, z), slopes, atol=1e-4)


# Order


def test_ranking_is_by_score_then_by_id() -> None:
    scores = np.array([0.1, 0.9, 0.1, 0.9])
    assert policy.rank(scores, np.array([4, 3, 2, 1])).tolist() == [3, 1, 2, 0]
    assert policy.rank(scores, np.array(["d", "c", "b", "a"])).tolist() == [3, 1, 2, 0]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_ranking_does_not_depend_on_the_order_of_the_candidates(values: list[float], random: Random) -> None:
    scores, ids = np.array(values), np.arange(len(values))
    order = list(range(len(values)))
    random.shuffle(order)
    assert ids[order][policy.rank(scores[order], ids[order])].tolist() == policy.rank(scores, ids).tolist()


def test_the_margin_is_the_best_less_the_second_best() -> None:
    assert policy.governed_margin(np.array([0.25, 1.5, -3.0, 1.0])) == 0.5
    assert policy.governed_margin(np.array([1.0, 1.0])) == 0.0
    assert policy.governed_margin(np.array([1.0])) == 0.0
    assert policy.governed_margin(np.zeros(0)) == 0.0


SCORES = np.array([1.0, 0.4, 0.2, -0.1, -1.0])
DRAWS = 20_000


def test_the_first_position_of_a_sample_is_distributed_as_the_policy() -> None:
    generator = np.random.default_rng(1)
    first = [sample(SCORES, 0.7, generator)[0] for _ in range(DRAWS)]
    expected = DRAWS * softmax(SCORES, 0.7)
    assert chisquare(np.bincount(first, minlength=5), expected).pvalue > 0.001


def test_the_second_position_is_distributed_as_the_policy_without_the_first() -> None:
    generator = np.random.default_rng(2)
    pairs = np.array([sample(SCORES, 0.7, generator)[:2] for _ in range(DRAWS)])
    p = softmax(SCORES, 0.7)
    joint = np.outer(p, p) / (1 - p)[:, None]  # p(i) · p(j) / (1 − p(i)): Plackett–Luce
    off_diagonal = ~np.eye(5, dtype=np.bool_)
    observed = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).reshape(5, 5)
    assert observed[~off_diagonal].sum() == 0
    assert chisquare(observed[off_diagonal], DRAWS * joint[off_diagonal]).pvalue > 0.001


def test_a_sample_is_reproduced_by_its_generator() -> None:
    once, again = (sample(SCORES, 0.7, np.random.default_rng(3)).tolist() for _ in range(2))
    assert once == again
    assert sorted(once) == [0, 1, 2, 3, 4]


# Activation


def graphs() -> st.SearchStrategy[tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]]:
    def links(n: int) -> st.SearchStrategy[tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]]:
        link = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.floats(0, 10))
        return st.tuples(arrays(np.float64, n, elements=st.floats(-1, 1)), st.lists(link, max_size=60)).map(
            lambda drawn: (
                drawn[0],
                np.array([source for source, _, _ in drawn[1]], dtype=np.int64),
                np.array([target for _, target, _ in drawn[1]], dtype=np.int64),
                np.array([weight for _, _, weight in drawn[1]], dtype=np.float64),
            )
        )

    return st.integers(1, 25).flatmap(links)


@given(graphs())
def test_activation_is_bounded_and_what_leaves_a_linked_seed_arrives(
    graph: tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats],
) -> None:
    similarity, source, target, weight = graph
    active = activation(similarity, source, target, weight)
    assert ((active >= 0) & (active <= 1 + 1e-12)).all()
    seeds = np.argsort(-similarity, kind="stable")[:10]
    p = softmax(similarity[seeds], 0.1)
    linked = np.isin(seeds, source[weight > 0])
    assert active.sum() == pytest.approx(p[linked].sum())


@given(graphs())
def test_activation_is_what_its_formula_says(
    graph: tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats],
) -> None:
    similarity, source, target, weight = graph
    links = list(zip(source.tolist(), target.tolist(), weight.tolist(), strict=True))
    seeds = sorted(range(len(similarity)), key=lambda m: (-similarity[m], m))[:10]
    p = dict(zip(seeds, softmax(similarity[seeds], 0.1).tolist(), strict=True))
    expected = np.zeros(len(similarity))
    for j in seeds:
        outgoing = sum(w for s, _, w in links if s == j)
        for s, m, w in links:
            if s == j and outgoing > 0:
                expected[m] += p[j] * (w / outgoing)
    np.testing.assert_allclose(activation(similarity, source, target, weight), expected, atol=1e-12)


def test_activation_by_hand() -> None:
    similarity = np.array([0.8, 0.7, 0.0])
    source, target, weight = np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([1.0, 3.0, 5.0])
    # The seeds hold softmax((8, 7, 0)); the third has no links, and what it holds is lost.
    held = np.exp([8.0, 7.0, 0.0]) / np.exp([8.0, 7.0, 0.0]).sum()
    expected = [0.0, held[0] / 4, held[0] * 3 / 4 + held[1]]
    np.testing.assert_allclose(activation(similarity, source, target, weight), expected)


def test_only_the_ten_most_similar_activate() -> None:
    similarity = np.linspace(1, 0, 12)
    none = np.zeros(12)
    assert activation(similarity, np.array([9]), np.array([0]), np.array([1.0]))[0] > 0
    assert np.array_equal(activation(similarity, np.array([10]), np.array([0]), np.array([1.0])), none)


def test_without_links_nothing_is_active() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert activation(np.array([0.5, 0.1]), nothing, nothing, np.zeros(0)).tolist() == [0.0, 0.0]
    assert activation(np.zeros(0), nothing, nothing, np.zeros(0)).tolist() == []


def test_a_negative_link_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        activation(np.array([1.0]), np.array([0]), np.array([0]), np.array([-1.0]))


# Candidates that links alone reach


def test_the_first_draw_is_in_proportion_to_the_weights() -> None:
    generator = np.random.default_rng(4)
    weights = np.array([0.1, 0.0, 0.3, 0.6])
    first = [draw_without_replacement(weights, 1, generator)[0] for _ in range(DRAWS)]
    counts = np.bincount(first, minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], DRAWS * weights[[0, 2, 3]]).pvalue > 0.001


@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1)), st.integers(0, 25))
def test_draws_are_distinct_have_weight_and_are_as_many_as_there_can_be(weights: Floats, count: int) -> None:
    drawn = draw_without_replacement(weights, count, np.random.default_rng(5))
    assert len(set(drawn.tolist())) == len(drawn) == min(count, int((weights > 0).sum()))
    assert (weights[drawn] > 0).all()


# Scales


def test_scales_pool_the_spread_within_queries_only() -> None:
    # Within each query the feature is ±1 around its mean; between them the means are far apart.
    queries = [np.array([[m - 1.0, 5.0], [m + 1.0, 5.0]]) for m in (0.0, 100.0, -40.0)]
    np.testing.assert_allclose(policy.pooled_scales(queries), [np.sqrt(2.0), 1.0])


def test_scales_of_one_query_are_its_standard_deviations() -> None:
    values = np.random.default_rng(6).normal(size=(40, 3))  # generated: only the formula is tested
    np.testing.assert_allclose(policy.pooled_scales([values]), values.std(axis=0, ddof=1))


def test_a_constant_that_rounding_disturbs_has_scale_one() -> None:
    values = np.full((7, 1), 0.1)
    assert values.mean(axis=0)[0] != 0.1  # the trap: its deviations are not exactly 0
    assert policy.pooled_scales([values]).tolist() == [1.0]


def test_a_query_of_one_candidate_tells_no_spread() -> None:
    pair = np.array([[0.0], [2.0]])
    assert np.array_equal(policy.pooled_scales([pair, np.array([[9.0]])]), policy.pooled_scales([pair]))
    with pytest.raises(ValueError, match="two candidates"):
        policy.pooled_scales([np.array([[9.0]])])


@given(st.lists(matrices, min_size=1, max_size=5))
def test_scaled_features_have_unit_spread_or_none(queries: list[Floats]) -> None:
    assume(any(len(values) > 1 for values in queries))
    scales = policy.pooled_scales(queries)
    again = policy.pooled_scales([policy.scaled(values, scales) for values in queries])
    np.testing.assert_allclose(again, 1.0)
