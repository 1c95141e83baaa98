"""The optimiser's gates open for true improvements, refuse chance and logs that cannot speak, and say why."""

from dataclasses import replace
from math import isnan, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from somabrain_dagster.learning.choices import Choices, likelihood, log_probabilities
from somabrain_dagster.learning.offpolicy import (
    GateRule,
    Log,
    Verdict,
    bandit_verdict,
    clustered_mean,
    estimate,
    full_verdict,
    policy_gates,
    ranking_gain,
    rewarded,
)
from somabrain_dagster.learning.optimizer import fit
from somabrain_dagster.learning.ranking import mrr

pytestmark = pytest.mark.learning

Floats = NDArray[np.float64]

TAU = 0.7
START = np.array([1.0, 0.2, 0.0])
TRUTH = np.array([1.0, 0.2, 0.6])
RULE = GateRule()


def recalls(seed: int, count: int, candidates: int = 8, tenants: int = 20) -> Choices:
    """Generated recalls whose right answers are drawn from softmax(TRUTHᵀz / TAU)."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count * candidates, 3))
    utility = (features @ TRUTH / TAU + generator.gumbel(size=len(features))).reshape(count, candidates)
    tenant = generator.integers(0, tenants, count)
    return Choices(features, np.full(count, candidates), utility.argmax(axis=1), np.ones(count), tenant)


def logged(seed: int, count: int, weights: Floats = START, tau: float = TAU) -> Log:
    """What a policy showed first in generated recalls; it earns 1 where that was the right answer."""
    right = recalls(seed, count)
    logs = log_probabilities(right, weights, tau)
    noise = np.random.default_rng(seed + 1_000_000).gumbel(size=len(logs))
    shown = replace(right, chosen=(logs + noise).reshape(count, -1).argmax(axis=1))
    return Log(shown, np.exp(logs), (shown.chosen == right.chosen).astype(np.float64))


def failures(verdict: Verdict) -> list[str]:
    return [gate.name for gate in verdict.gates if not gate.passed]


LOG = logged(0, 4000)

# What a log says of another policy


def test_of_the_logged_policy_a_log_says_what_happened() -> None:
    found = estimate(LOG, START, TAU)
    assert found.value == pytest.approx(LOG.reward.mean())
    assert found.standard_error == pytest.approx(LOG.reward.std() / sqrt(4000))
    assert found.gain.mean == pytest.approx(0, abs=1e-12)
    assert found.gain.standard_error == pytest.approx(0, abs=1e-12)
    assert found.mean_weight == pytest.approx(1)
    assert found.effective_size == pytest.approx(4000)
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert all(gate.passed for gate in policy_gates(found, RULE))


def test_the_formulas_on_two_recalls_by_hand() -> None:
    """π₀ = (½, ½) and (¼, ¾), both showed the first; π = (⅔, ⅓) in both: weights 4/3 and 8/3."""
    features = np.array([[log(2)], [0.0], [log(2)], [0.0]])
    choices = Choices(features, np.array([2, 2]), np.array([0, 0]), np.ones(2), np.array([0, 1]))
    found = estimate(Log(choices, np.array([0.5, 0.5, 0.25, 0.75]), np.array([1.0, 0.4])), np.ones(1), 1.0)
    assert found.value == pytest.approx((4 * 1 + 8 * 0.4) / 12)
    assert found.standard_error == pytest.approx(sqrt((4 * 0.4) ** 2 + (8 * -0.2) ** 2) / 12)
    assert found.effective_size == pytest.approx((4 + 8) ** 2 / (16 + 64))
    assert found.mean_weight == pytest.approx(2)
    assert found.mean_weight_error == pytest.approx(2 / 3)
    assert found.divergence == pytest.approx(
        (0.5 * log(0.75) + 0.5 * log(1.5) + 0.25 * log(3 / 8) + 0.75 * log(9 / 4)) / 2
    )
    assert found.gain.mean == pytest.approx(0.6 - 0.7)


def test_the_value_is_the_true_one_within_its_error() -> None:
    """On generated logs one knows the value: how often the policy shows the right answer."""
    other = np.array([1.1, 0.1, 0.2])
    right = recalls(99, 40_000)
    true = np.exp(log_probabilities(right, other, TAU)[right.chosen_rows]).mean()
    now = np.exp(log_probabilities(right, START, TAU)[right.chosen_rows]).mean()
    values, gains = [], []
    for seed in range(150):
        found = estimate(logged(seed, 600), other, TAU)
        values.append((found.value - true) / found.standard_error)
        gains.append((found.gain.mean - (true - now)) / found.gain.standard_error)
    for scores in (values, gains):
        assert abs(np.mean(scores)) < 0.35
        assert 0.8 < np.std(scores) < 1.25


def test_the_gain_is_surer_than_the_value() -> None:
    """Two policies that are alike earn alike on the same recalls: their difference varies less."""
    found = estimate(LOG, START + 0.2 * (TRUTH - START), TAU)
    assert found.gain.standard_error < 0.4 * found.standard_error


@given(st.floats(-0.5, 0.5))
def test_what_every_recall_earns_more_the_policy_earns_more(more: float) -> None:
    small = logged(3, 100)
    plain = replace(small, reward=small.reward / 2)
    richer = replace(plain, reward=plain.reward + more)
    a, b = estimate(plain, TRUTH, TAU), estimate(richer, TRUTH, TAU)
    assert b.value == pytest.approx(a.value + more)
    assert (b.standard_error, b.gain.mean) == pytest.approx((a.standard_error, a.gain.mean))


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_no_policy_has_less_than_no_divergence_or_more_than_all_recalls(weights: list[float]) -> None:
    found = estimate(logged(4, 80), np.array(weights), TAU)
    assert found.divergence >= -1e-12
    assert 1 - 1e-9 <= found.effective_size <= 80 + 1e-9
    assert -1 <= found.value <= 1


def test_weights_and_temperature_doubled_together_change_nothing() -> None:
    choices = LOG.choices
    assert likelihood(choices, 2 * TRUTH, 2 * TAU) == likelihood(choices, TRUTH, TAU)
    assert estimate(LOG, 2 * TRUTH, 2 * TAU) == estimate(LOG, TRUTH, TAU)
    plain, doubled = (bandit_verdict(LOG, by * START, by * TRUTH, by * TAU, RULE) for by in (1, 2))
    assert doubled.gates == plain.gates
    assert doubled.step == plain.step
    assert (
        full_verdict(choices, 2 * START, 2 * TRUTH, RULE).gates
        == full_verdict(choices, START, TRUTH, RULE).gates
    )


def test_a_bandit_fit_weighs_rewards_by_how_unlikely_they_were() -> None:
    omega = rewarded(replace(LOG, reward=LOG.reward - 0.5)).omega
    assert (omega[LOG.reward == 0] == 0).all()
    assert omega[LOG.reward == 1].tolist() == (0.5 / LOG.shown[LOG.reward == 1]).tolist()


# Means over tenants


def test_the_clustered_error_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(5)
    tenant = generator.integers(0, 12, 300)
    values = generator.normal(size=300) + generator.normal(size=12)[tenant]
    found = clustered_mean(values, tenant)
    theirs = OLS(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": tenant})
    assert found.mean == pytest.approx(theirs.params[0])
    assert found.standard_error == pytest.approx(theirs.bse[0])
    assert found.tenants == 12
    assert found.lower_bound(0.95) == pytest.approx(found.mean - student.ppf(0.95, 11) * found.standard_error)


def test_tenants_of_their_own_give_the_ordinary_error_and_doubles_add_nothing() -> None:
    values = np.random.default_rng(6).normal(size=50)
    alone = clustered_mean(values, np.arange(50))
    assert alone.standard_error == pytest.approx(values.std(ddof=1) / sqrt(50))
    thrice = clustered_mean(np.repeat(values, 3), np.repeat(np.arange(50), 3))
    assert (thrice.mean, thrice.standard_error) == pytest.approx((alone.mean, alone.standard_error))


def test_one_tenant_says_nothing_of_others() -> None:
    found = clustered_mean(np.arange(9.0), np.zeros(9, dtype=np.int64))
    assert found.mean == 4
    assert isnan(found.standard_error)
    assert isnan(found.lower_bound(0.95))


# label = bandit


def test_a_true_improvement_is_accepted_by_a_step_that_the_log_can_judge() -> None:
    fitted = fit(rewarded(logged(7, 4000)), TAU, START, np.full(3, -5.0), np.full(3, 5.0), 25.0).weights
    verdict = bandit_verdict(LOG, START, fitted, TAU, RULE)
    assert verdict.accepted
    assert verdict.reasons == ()
    assert 0 < verdict.step < 1
    assert log(verdict.step, 2).is_integer()
    np.testing.assert_allclose(verdict.weights, START + verdict.step * (fitted - START))
    longer = estimate(LOG, START + 2 * verdict.step * (fitted - START), TAU)
    assert not all(gate.passed for gate in policy_gates(longer, RULE))


def test_rewards_that_mean_nothing_are_refused() -> None:
    generator = np.random.default_rng(8)
    accepted = 0
    for seed in range(60):
        seen, later = (logged(seed + offset, 500) for offset in (2000, 3000))
        seen, later = (replace(one, reward=generator.permutation(one.reward)) for one in (seen, later))
        fitted = fit(rewarded(seen), TAU, START, np.full(3, -5.0), np.full(3, 5.0), 25.0).weights
        accepted += bandit_verdict(later, START, fitted, TAU, RULE).accepted
    assert accepted <= 6


def test_a_worse_policy_is_refused_by_its_gain() -> None:
    verdict = bandit_verdict(LOG, START, START - (TRUTH - START), TAU, RULE)
    assert failures(verdict) == ["gain_lower_bound"]
    assert verdict.gates[0].shortfall > 0
    assert verdict.reasons == (str(verdict.gates[0]),)


def test_one_tiny_propensity_among_ten_thousand_is_refused_by_the_effective_size() -> None:
    count = 10_000
    features = np.zeros((2 * count, 3))
    choices = Choices(
        features, np.full(count, 2), np.zeros(count, np.int64), np.ones(count), np.arange(count) % 50
    )
    policy = np.full(2 * count, 0.5)
    policy[:2] = 1e-6, 1 - 1e-6
    reward = np.random.default_rng(9).integers(0, 2, count).astype(np.float64)
    reward[0] = 1.0
    verdict = bandit_verdict(Log(choices, policy, reward), START, TRUTH, TAU, RULE)
    assert not verdict.accepted
    gates = {gate.name: gate for gate in verdict.gates}
    assert not gates["effective_sample_size"].passed
    assert gates["effective_sample_size"].value < 2
    assert gates["effective_sample_size"].shortfall > 1998
    assert any(reason.startswith("effective_sample_size ≥ 2000: 1.0") for reason in verdict.reasons)


def test_propensities_that_were_not_those_of_the_policy_are_refused() -> None:
    """Shown by a sharper policy than the log says: what is likely was shown more often than that."""
    sharper = logged(10, 4000, tau=0.5)
    claimed = replace(sharper, policy=np.exp(log_probabilities(sharper.choices, START, TAU)))
    found = estimate(claimed, 1.1 * START, TAU)
    assert "mean_importance_weight" in [gate.name for gate in policy_gates(found, RULE) if not gate.passed]


def test_a_log_of_quite_another_policy_cannot_speak_of_this_one() -> None:
    verdict = bandit_verdict(logged(11, 2000, weights=-START), START, TRUTH, TAU, RULE)
    assert verdict.step == 0.5**RULE.halvings
    assert "divergence" in failures(verdict)


# label = full


def test_the_gain_in_rank_is_the_difference_of_mrr() -> None:
    choices = recalls(12, 500)
    gain = ranking_gain(choices, START, TRUTH)
    assert gain.mean == pytest.approx(mrr(choices, TRUTH) - mrr(choices, START))
    assert gain.tenants == 20


def test_a_fit_that_ranks_better_is_accepted_whole() -> None:
    verdict = full_verdict(recalls(13, 500), START, TRUTH, RULE)
    assert verdict.accepted
    assert verdict.step == 1
    assert verdict.weights.tolist() == TRUTH.tolist()


def test_a_fit_that_ranks_worse_is_refused_with_its_shortfall() -> None:
    verdict = full_verdict(recalls(13, 500), TRUTH, START, RULE)
    assert failures(verdict) == ["gain_lower_bound"]
    assert verdict.gates[0].shortfall == -verdict.gates[0].value > 0


def test_fits_to_shuffled_answers_are_refused() -> None:
    accepted = 0
    for seed in range(60):
        seen, later = recalls(seed + 4000, 200), recalls(seed + 5000, 200)
        generator = np.random.default_rng(seed)
        seen, later = (replace(one, chosen=generator.integers(0, one.lengths)) for one in (seen, later))
        fitted = fit(seen, TAU, START, np.full(3, -5.0), np.full(3, 5.0), 25.0).weights
        accepted += full_verdict(later, START, fitted, RULE).accepted
    assert accepted <= 6


def test_the_present_weights_gain_nothing_over_themselves() -> None:
    assert failures(full_verdict(recalls(14, 100), START, START, RULE)) == ["gain_lower_bound"]


def test_the_recalls_of_one_tenant_do_not_speak_for_all() -> None:
    verdict = full_verdict(recalls(15, 500, tenants=1), START, TRUTH, RULE)
    assert not verdict.accepted
    assert verdict.reasons == ("gain_lower_bound > 0: not measured",)


# What is no log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": LOG.policy[:-1]}, "a probability for each candidate"),
        ({"reward": LOG.reward[:-1]}, "a reward for each recall"),
        ({"policy": LOG.policy * 0.9}, "add up to 1"),
        ({"policy": np.full_like(LOG.policy, np.nan)}, "add up to 1"),
        ({"reward": LOG.reward * 2}, "from -1 to 1"),
        ({"reward": np.full_like(LOG.reward, np.nan)}, "from -1 to 1"),
    ],
)
def test_what_is_no_log_is_refused(change: dict[str, Floats], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LOG, **change)  # type: ignore[arg-type]


def test_what_could_not_be_shown_was_not_sampled() -> None:
    choices = Choices(np.zeros((2, 3)), np.array([2]), np.array([0]), np.ones(1), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="sampled recalls"):
        Log(choices, np.array([0.0, 1.0]), np.ones(1))
