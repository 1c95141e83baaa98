"""The optimiser: weights that make what was chosen likely, near weights that are already known to be good.

Choices identify only the ratio w/τ. So the weights are fitted in their box at the current τ, by

    max_w  ℓ(w) − (κ/2) (w − w₀)ᵀ Ī(w₀) (w − w₀)

where Ī(w₀) is the information of a mean recall at the start w₀. The prior then weighs as much as κ more
recalls that had chosen as the start would: it rules a small sample and fades in a large one. τ follows on a
grid, with the weights held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices, contributions, gradient, information, likelihood
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.ranking import rank_of_chosen

STATIONARY = 1e-6
"""A fit has converged when no standardised weight has a larger projected gradient, for each unit of ω."""
UNIDENTIFIED = 1e-10
"""A direction of the weights with less than this share of the greatest information is not identified."""
ROUNDING = 1e-9
"""A feature that spreads less than this, relative to its greatest value, is constant within recalls."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted weights and how sure they are.

    A weight that ends on a bound is taken as fixed there, and a direction that no recall informs stays at the
    start: both have variance 0, which is not certainty.

    Attributes:
        weights: in units, shape (F,).
        log_likelihood: at the weights, without the penalty.
        information: of the choices at the weights, shape (F, F).
        classical: the inverse of the penalised information, right if recalls are independent, (F, F).
        covariance: the tenant-clustered sandwich, right whatever holds within a tenant, (F, F).
        converged: the weights satisfy the first-order conditions of a maximum in the box.
    """

    weights: Floats
    log_likelihood: float
    information: Floats
    classical: Floats
    covariance: Floats
    converged: bool


def fit(choices: Choices, tau: float, start: Floats, low: Floats, high: Floats, kappa: float) -> Fit:
    """The penalised conditional logit in a box, by L-BFGS-B with the analytic gradient.

    Args:
        choices: N recalls.
        tau: the current temperature, > 0.
        start: w₀, the centre of the prior, in units, shape (F,).
        low: the least that each weight may be, −inf for no bound, shape (F,).
        high: the most, shape (F,).
        kappa: κ ≥ 0, the weight of the prior in pseudo-recalls.

    Raises:
        ValueError: the start is outside its box, κ < 0, τ ≤ 0, or no recall has weight.
    """
    if not ((low <= start) & (start <= high)).all():
        raise ValueError(f"the start {start} must lie between the bounds {low} and {high}")
    if not choices.omega.any():
        raise ValueError("every ω is 0: there is nothing to learn from")
    if not kappa >= 0:
        raise ValueError(f"κ must be at least 0, not {kappa}")
    # Recalls of no weight say nothing; left in, they would dilute the mean recall of the prior.
    choices = choices.take(np.flatnonzero(choices.omega))
    total = float(choices.omega.sum())
    prior = kappa * information(choices, start, tau) / len(choices.omega)
    spread = _spread_within_recalls(choices, tau)
    unit = np.where(spread > 0, spread, 1.0)

    def cost(u: Floats) -> tuple[float, Floats]:
        weights = u / unit
        pull = prior @ (weights - start)
        value = likelihood(choices, weights, tau) - 0.5 * float(pull @ (weights - start))
        slope = gradient(choices, weights, tau) - pull
        return -value / total, -slope / unit / total

    result = scipy.optimize.minimize(
        cost,
        start * unit,
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(low * unit, high * unit),
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000},
    )
    weights = np.clip(result.x / unit, low, high)
    # The optimiser's own flag calls a line search that ran out of digits at the maximum a failure.
    downhill = weights * unit - cost(weights * unit)[1]
    projected = np.clip(downhill, low * unit, high * unit) - weights * unit

    found = information(choices, weights, tau)
    free = (spread > 0) & (low < weights) & (weights < high)
    classical = _inverse(found + prior, unit, free)
    return Fit(
        weights=weights,
        log_likelihood=likelihood(choices, weights, tau),
        information=found,
        classical=classical,
        covariance=classical @ _variance_of_gradient(choices, weights, tau) @ classical,
        converged=bool(np.abs(projected).max() <= STATIONARY),
    )


def fit_temperature(choices: Choices, weights: Floats, grid: Sequence[float]) -> tuple[float, Floats]:
    """The τ of a grid that makes the choices most likely, with the weights held fixed.

    With fixed weights τ is the policy's confidence, and likelihood identifies it: the best τ is the one whose
    probabilities are calibrated (Guo et al. 2017). Two conditions make that meaningful:

    - The choices are held out from the fit of the weights. On the choices that gave an unbounded, unpenalised
      fit, likelihood is already stationary in the scale of w, and returns the τ of the fit.
    - The right answers are known whatever was shown. If the choices are picks of the policy itself, the
      likelihood returns that policy; there, choose τ by its off-policy value.

    Value cannot choose τ where answers are known: a sharper policy is worth more whenever its ranking is
    better than chance, down to the τ that never explores.

    Args:
        choices: N held-out recalls.
        weights: in units, shape (F,).
        grid: the temperatures to try, T of them, each > 0.

    Returns:
        The best τ, between equals the earlier one, and the log-likelihood at each τ, shape (T,).

    Raises:
        ValueError: the grid is empty, or a τ is not above 0.
    """
    if len(grid) == 0:
        raise ValueError("the grid must hold at least one τ")
    likelihoods = np.array([likelihood(choices, weights, tau) for tau in grid])
    return grid[int(likelihoods.argmax())], likelihoods


@dataclass(frozen=True)
class Gain:
    """What a fit gains over its prior on recalls that it did not see, in reciprocal rank a recall.

    Attributes:
        mean: the mean difference.
        lower: the lower bound of its one-sided interval; the fit is worth having if it is above 0.
        recalls: how many recalls that is the mean of.
    """

    mean: float
    lower: float
    recalls: int


def cross_validated_gain(
    choices: Choices,
    prior: Floats,
    tau: float,
    low: Floats,
    high: Floats,
    kappa: float,
    *,
    folds: int = 5,
    confidence: float = 0.95,
) -> Gain:
    """Whether a tenant's own choices teach more than they mislead: the gain of `fit` from `prior`, held out.

    Each fold is ranked by weights that are fitted to the others. Folds are runs of neighbours, so give the
    recalls in the order of time: recalls of one session resemble each other, and must not sit on both sides.
    The bound is Student's t over the recalls' differences in 1 / rank.

    Raises:
        ValueError: there are fewer recalls than folds, fewer than two folds, or `fit` refuses.
    """
    recalls = len(choices.lengths)
    if not 2 <= folds <= recalls:
        raise ValueError(f"{recalls} recalls cannot be cross-validated in {folds} folds")
    everything = np.arange(recalls)
    gains = []
    for held_out in np.array_split(everything, folds):
        learned = fit(choices.take(np.setdiff1d(everything, held_out)), tau, prior, low, high, kappa)
        test = choices.take(held_out)
        gains.append(1.0 / rank_of_chosen(test, learned.weights) - 1.0 / rank_of_chosen(test, prior))
    gain = np.concatenate(gains)
    error = gain.std(ddof=1) / np.sqrt(recalls)
    lower = gain.mean() - float(scipy.special.stdtrit(recalls - 1, confidence)) * error
    return Gain(mean=float(gain.mean()), lower=float(lower), recalls=recalls)


def _spread_within_recalls(choices: Choices, tau: float) -> Floats:
    """The spread of each feature within recalls, over τ, shape (F,); 0 where it is no more than rounding."""
    uniform = information(choices, np.zeros(choices.features.shape[1]), tau)
    spread = np.sqrt(np.diag(uniform) / choices.omega.sum())
    return np.where(spread > ROUNDING * np.abs(choices.features).max(axis=0) / tau, spread, 0.0)


def _inverse(information: Floats, unit: Floats, free: NDArray[np.bool_]) -> Floats:
    """The pseudo-inverse on the free weights, judged for singularity in comparable units; 0 elsewhere."""
    inverse = np.zeros_like(information)
    block = np.ix_(free, free)
    units = np.outer(unit, unit)
    inverse[block] = np.linalg.pinv((information / units)[block], rcond=UNIDENTIFIED, hermitian=True)
    return inverse / units


def _variance_of_gradient(choices: Choices, weights: Floats, tau: float) -> Floats:
    """The variance of the gradient from its sums over G tenants, times G / (G − 1), shape (F, F).

    One tenant alone says nothing of the variance between tenants: there, each recall is a cluster of its own.
    """
    tenants, cluster = np.unique(choices.tenant, return_inverse=True)
    sums = contributions(choices, weights, tau)
    if len(tenants) > 1:
        of_recalls, sums = sums, np.zeros((len(tenants), sums.shape[1]))
        np.add.at(sums, cluster, of_recalls)
    clusters = len(sums)
    # Away from an unpenalised maximum the gradient has a mean, which is no part of its variance.
    deviations = sums - sums.mean(axis=0)
    return np.asarray(deviations.T @ deviations * clusters / max(clusters - 1, 1))
