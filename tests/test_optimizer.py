"""The optimiser: against published estimates on real choices, and against known truths on generated ones."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2
from statsmodels.datasets import modechoice
from statsmodels.discrete.conditional_models import ConditionalLogit

from somabrain_dagster.learning.choices import Choices, contributions, gradient, information, likelihood
from somabrain_dagster.learning.optimizer import Fit, cross_validated_gain, fit, fit_temperature
from somabrain_dagster.learning.ranking import mrr

Floats = NDArray[np.float64]

TRUTH = np.array([1.0, 0.2, -0.5])
TAU = 0.7


def generated(
    seed: int, recalls: int, *, truth: Floats = TRUTH, tenants: int = 20, between_tenants: float = 0.0
) -> Choices:
    """Choices that are generated from a known truth: the only ones against which an estimate can be checked.

    Each recall has 2 to 12 candidates of normal features and chooses by softmax(wᵀz / TAU), with w = truth
    plus a normal deviation of its tenant of size `between_tenants`.
    """
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 13, recalls)
    tenant = generator.integers(0, tenants, recalls)
    weights = truth + between_tenants * generator.normal(size=(tenants, len(truth)))
    features = generator.normal(size=(int(lengths.sum()), len(truth)))
    utility = (features * np.repeat(weights[tenant], lengths, axis=0)).sum(axis=1) / TAU
    utility += generator.gumbel(size=len(utility))
    chosen = [int(recall.argmax()) for recall in np.split(utility, np.cumsum(lengths)[:-1])]
    return Choices(features, lengths, np.array(chosen), np.ones(recalls), tenant)


def unbounded(choices: Choices, *, start: Floats | None = None, kappa: float = 0.0, tau: float = TAU) -> Fit:
    features = choices.features.shape[1]
    limit = np.full(features, np.inf)
    return fit(choices, tau, np.zeros(features) if start is None else start, -limit, limit, kappa)


def standard_errors(covariance: Floats) -> Floats:
    return np.asarray(np.sqrt(np.diag(covariance)))


# Real choices: 210 travellers between Sydney, Canberra and Melbourne


@pytest.fixture(scope="module")
def travellers() -> Choices:
    data = modechoice.load_pandas().data
    mode = data["mode"].to_numpy()
    features = [data["gc"], data["ttme"], data["hinc"] * (mode == 1), mode == 1, mode == 2, mode == 3]
    return Choices(
        features=np.column_stack(features).astype(np.float64),
        lengths=np.full(210, 4),
        chosen=data["choice"].to_numpy().reshape(210, 4).argmax(axis=1),
        omega=np.ones(210),
        tenant=np.arange(210),
    )


def test_greenes_travel_mode_choice(travellers: Choices) -> None:
    """The conditional logit in Greene, Econometric Analysis: gc, ttme, air·income, air, train, bus."""
    found = unbounded(travellers, tau=1.0)
    assert found.converged
    assert found.log_likelihood == pytest.approx(-199.12837, abs=5e-6)
    published = [-0.0155015, -0.0961248, 0.013287, 5.207443, 3.869043, 3.163194]
    np.testing.assert_allclose(found.weights, published, rtol=1e-5, atol=5e-7)
    np.testing.assert_allclose(standard_errors(found.classical)[:2], [0.004408, 0.0104398], rtol=5e-5)


def test_statsmodels_agrees(travellers: Choices) -> None:
    success = np.zeros(840)
    success[travellers.chosen_rows] = 1
    theirs = ConditionalLogit(success, travellers.features, groups=np.repeat(np.arange(210), 4)).fit(disp=0)
    ours = unbounded(travellers, tau=1.0)
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-8)
    np.testing.assert_allclose(ours.weights, theirs.params, rtol=1e-3)
    np.testing.assert_allclose(standard_errors(ours.classical), theirs.bse, rtol=1e-3)


def test_where_the_search_starts_does_not_matter(travellers: Choices) -> None:
    zeros, elsewhere = (unbounded(travellers, start=np.full(6, x), tau=1.0) for x in (0.0, 0.02))
    np.testing.assert_allclose(elsewhere.weights, zeros.weights, rtol=1e-5)


def test_travellers_are_better_predicted_by_other_travellers_than_by_nothing(travellers: Choices) -> None:
    scales = travellers.features.std(axis=0)
    standardised = replace(travellers, features=travellers.features / scales)
    box = np.full(6, 50.0)
    gain = cross_validated_gain(standardised, np.zeros(6), 1.0, -box, box, kappa=5.0)
    assert gain.lower > 0
    assert gain.recalls == 210


# A known truth


def test_the_truth_is_recovered_and_the_errors_are_as_large_as_stated() -> None:
    classical, clustered = 0.0, 0.0
    runs = 60
    for seed in range(runs):
        found = unbounded(generated(seed, 400, tenants=80))
        off = found.weights - TRUTH
        classical += off @ np.linalg.solve(found.classical, off)
        clustered += off @ np.linalg.solve(found.covariance, off)
    # Were the covariances too small or too large, these would not be draws of χ² with 60 · 3 degrees.
    assert 0.001 < chi2.sf(classical, 3 * runs) < 0.999
    # Eighty clusters leave sampling error in the sandwich itself: Hotelling's T² is a little wider than χ².
    assert 0.001 < chi2.sf(clustered * (80 - 3) / 80, 3 * runs) < 0.999


def test_the_sandwich_is_what_its_formula_says() -> None:
    choices = generated(19, 200, tenants=6)
    found = unbounded(choices)
    of_recalls = contributions(choices, found.weights, TAU)
    meat = np.zeros((3, 3))
    for tenant in range(6):
        of_tenant = of_recalls[choices.tenant == tenant].sum(axis=0)
        meat += np.outer(of_tenant, of_tenant)
    bread = np.linalg.inv(found.information)
    np.testing.assert_allclose(found.covariance, 6 / 5 * bread @ meat @ bread, rtol=1e-6, atol=1e-12)


def test_only_the_sandwich_knows_that_tenants_differ() -> None:
    found = unbounded(generated(1, 3000, tenants=30, between_tenants=0.5))
    assert (standard_errors(found.covariance) > 2 * standard_errors(found.classical)).all()


def test_saying_everything_three_times_fools_the_classical_error_and_not_the_sandwich() -> None:
    once = generated(2, 300)
    thrice = once.take(np.repeat(np.arange(300), 3))
    a, b = unbounded(once), unbounded(thrice)
    np.testing.assert_allclose(b.weights, a.weights, atol=1e-6)
    np.testing.assert_allclose(b.classical, a.classical / 3, rtol=1e-4)
    np.testing.assert_allclose(b.covariance, a.covariance, rtol=1e-4)


def test_recalls_of_one_tenant_are_their_own_clusters() -> None:
    choices = generated(3, 2000, tenants=1)
    found = unbounded(choices)
    apart = unbounded(replace(choices, tenant=np.arange(2000)))
    assert np.array_equal(found.covariance, apart.covariance)
    np.testing.assert_allclose(found.covariance, found.classical, rtol=0.2, atol=2e-5)


# The box


def test_the_fit_is_the_best_point_of_its_box() -> None:
    choices = generated(4, 300)
    low, high = np.array([-1.0, -1.0, -0.3]), np.array([0.6, 1.0, 1.0])
    found = fit(choices, TAU, np.zeros(3), low, high, 0.0)
    assert found.converged
    assert found.weights[0] == high[0]
    assert found.weights[2] == low[2]
    for point in np.random.default_rng(5).uniform(low, high, size=(200, 3)):
        assert likelihood(choices, point, TAU) < found.log_likelihood
    nearby = found.weights + np.array([0, 1e-3, 0])
    assert likelihood(choices, nearby, TAU) < found.log_likelihood


def test_a_weight_on_its_bound_is_taken_as_fixed() -> None:
    choices = generated(4, 300)
    found = fit(choices, TAU, np.zeros(3), np.full(3, -1.0), np.array([0.6, 1.0, 1.0]), 0.0)
    for covariance in (found.classical, found.covariance):
        assert not covariance[0].any()
        assert not covariance[:, 0].any()
    free = np.linalg.inv(found.information[1:, 1:])
    np.testing.assert_allclose(found.classical[1:, 1:], free, rtol=1e-8)


# The prior


def test_a_prior_of_many_recalls_stays_at_the_start() -> None:
    start = np.array([0.3, 0.1, 0.0])
    found = unbounded(generated(6, 200), start=start, kappa=1e9)
    np.testing.assert_allclose(found.weights, start, atol=1e-5)


def test_a_prior_as_strong_as_the_recalls_goes_half_the_way() -> None:
    choices = generated(7, 1000, truth=np.array([0.1]))
    start = np.zeros(1)
    whole = unbounded(choices, start=start).weights - start
    for kappa, share in ((1000 / 3, 0.75), (1000.0, 0.5), (3000.0, 0.25)):
        part = unbounded(choices, start=start, kappa=kappa).weights - start
        np.testing.assert_allclose(part / whole, share, rtol=0.02)


def test_the_penalised_fit_is_stationary() -> None:
    choices, start, kappa = generated(8, 150), np.array([0.5, 0.0, 0.5]), 40.0
    found = unbounded(choices, start=start, kappa=kappa)
    pull = kappa * information(choices, start, TAU) / 150 @ (found.weights - start)
    np.testing.assert_allclose(gradient(choices, found.weights, TAU), pull, atol=1e-3)
    assert found.converged


def test_neither_the_scale_of_omega_nor_recalls_without_weight_move_a_fit() -> None:
    choices = generated(9, 100)
    start = np.array([0.5, 0.0, 0.5])
    plain = unbounded(choices, start=start, kappa=25.0)
    scaled = unbounded(replace(choices, omega=np.full(100, 7.0)), start=start, kappa=25.0)
    np.testing.assert_allclose(scaled.weights, plain.weights, atol=1e-6)
    np.testing.assert_allclose(scaled.covariance, plain.covariance, rtol=1e-4, atol=1e-9)

    omega = np.concatenate([np.ones(100), np.zeros(60)])
    padded = generated(9, 100).take(np.concatenate([np.arange(100), np.arange(60)]))
    weightless = unbounded(replace(padded, omega=omega), start=start, kappa=25.0)
    assert np.array_equal(weightless.weights, plain.weights)
    assert np.array_equal(weightless.covariance, plain.covariance)


# What choices cannot tell


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e3])
def test_a_feature_that_never_differs_stays_at_the_start(constant: float) -> None:
    choices = generated(10, 200)
    inert = np.full((len(choices.features), 1), constant)
    wider = replace(choices, features=np.hstack([choices.features, inert]))
    found = unbounded(wider, start=np.array([0.0, 0.0, 0.0, 0.4]))
    assert found.weights[3] == pytest.approx(0.4)
    assert found.covariance[3].tolist() == [0.0] * 4
    np.testing.assert_allclose(found.weights[:3], unbounded(choices).weights, atol=1e-6)


def test_two_features_that_are_one_share_its_weight() -> None:
    choices = generated(11, 300)
    twice = replace(choices, features=np.hstack([choices.features, choices.features[:, :1]]))
    found, alone = unbounded(twice), unbounded(choices)
    assert found.log_likelihood == pytest.approx(alone.log_likelihood)
    assert found.weights[0] + found.weights[3] == pytest.approx(alone.weights[0], abs=1e-5)
    together = np.array([1.0, 0.0, 0.0, 1.0])
    assert together @ found.classical @ together == pytest.approx(alone.classical[0, 0], rel=1e-4)


def test_tau_and_weights_are_fitted_as_a_ratio() -> None:
    choices = generated(12, 300)
    at_one, at_two = unbounded(choices, tau=1.0), unbounded(choices, tau=2.0)
    np.testing.assert_allclose(at_two.weights, 2 * at_one.weights, atol=1e-5)
    assert at_two.log_likelihood == pytest.approx(at_one.log_likelihood)


# Temperature

GRID = [0.35, 0.5, 0.7, 1.0, 1.4, 2.0]


def test_temperature_is_calibrated_on_choices_that_the_weights_have_not_seen() -> None:
    seen, unseen = generated(13, 30), generated(14, 4000)
    overfitted = unbounded(seen, tau=TAU).weights * 2  # twice too sure
    tau, likelihoods = fit_temperature(unseen, overfitted, GRID)
    assert tau > TAU
    assert likelihoods.shape == (len(GRID),)
    assert likelihoods.max() == likelihood(unseen, overfitted, tau)


def test_temperature_follows_the_scale_of_the_weights() -> None:
    choices = generated(15, 4000)
    assert fit_temperature(choices, TRUTH, GRID)[0] == 0.7
    assert fit_temperature(choices, 2 * TRUTH, GRID)[0] == 1.4
    assert fit_temperature(choices, TRUTH / 2, GRID)[0] == 0.35


def test_on_the_choices_of_the_fit_itself_the_temperature_of_the_fit_returns() -> None:
    choices = generated(16, 60)
    for tau in (0.5, 1.0, 1.4):
        assert fit_temperature(choices, unbounded(choices, tau=tau).weights, GRID)[0] == tau


# The gate of a tenant's own fit


def gate(choices: Choices, prior: Floats) -> float:
    box = np.full(3, 5.0)
    return cross_validated_gain(choices, prior, TAU, -box, box, kappa=25.0).lower


def test_the_gate_opens_for_a_tenant_whose_choices_differ_from_the_prior() -> None:
    opened = [gate(generated(seed, 120), prior=np.array([-0.5, 0.5, 0.0])) > 0 for seed in range(20)]
    assert sum(opened) >= 18


def test_the_gate_stays_shut_where_there_is_nothing_to_learn() -> None:
    def shuffled(seed: int) -> Choices:
        choices = generated(seed, 120)
        return replace(choices, chosen=np.random.default_rng(seed).integers(0, choices.lengths))

    # At the truth nothing can be gained, and from labels that mean nothing only by luck: at most 5% pass.
    # Of 60, more than 8 would then have a chance of .3%.
    at_the_truth = [gate(generated(seed, 120), prior=TRUTH) > 0 for seed in range(60)]
    by_luck = [gate(shuffled(seed), prior=np.array([1.0, 0.0, 0.0])) > 0 for seed in range(60)]
    assert sum(at_the_truth) <= 8
    assert sum(by_luck) <= 8


def test_the_gain_is_that_of_each_fold_under_weights_fitted_to_the_others() -> None:
    choices, prior, box = generated(17, 43), np.zeros(3), np.full(3, 5.0)
    gain = cross_validated_gain(choices, prior, TAU, -box, box, kappa=10.0)
    total = 0.0
    for held_out in np.array_split(np.arange(43), 5):
        rest = np.array([i for i in range(43) if i not in held_out])
        weights = fit(choices.take(rest), TAU, prior, -box, box, 10.0).weights
        test = choices.take(held_out)
        total += len(held_out) * (mrr(test, weights) - mrr(test, prior))
    assert gain.mean == pytest.approx(total / 43)
    assert gain.lower < gain.mean


# What is refused


def test_what_cannot_be_fitted_is_refused() -> None:
    choices = generated(18, 10)
    zero, one = np.zeros(3), np.ones(3)
    with pytest.raises(ValueError, match="must lie between the bounds"):
        fit(choices, TAU, 2 * one, zero, one, 1.0)
    with pytest.raises(ValueError, match="κ must be at least 0"):
        fit(choices, TAU, zero, zero, one, -1.0)
    with pytest.raises(ValueError, match="every ω is 0"):
        fit(replace(choices, omega=np.zeros(10)), TAU, zero, zero, one, 1.0)
    with pytest.raises(ValueError, match="τ must be above 0"):
        fit(choices, 0.0, zero, zero, one, 1.0)
    with pytest.raises(ValueError, match="at least one τ"):
        fit_temperature(choices, zero, [])
    with pytest.raises(ValueError, match="10 recalls cannot be cross-validated in 11 folds"):
        cross_validated_gain(choices, zero, TAU, zero, one, 1.0, folds=11)
