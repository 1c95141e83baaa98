"""Choices: which candidate of each recall was the right one, and how likely a policy makes that.

The conditional logit of McFadden (1974): a recall i offers candidates j with scaled features z_ij, and the
policy p_ij = softmax_j(wᵀz_ij / τ) gives its chosen candidate c the log-probability

    log p_ic = wᵀz_ic / τ − log Σ_j exp(wᵀz_ij / τ)

Recalls have different numbers of candidates; all are stacked in one matrix, and no loop runs over recalls.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.features import Floats

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Choices:
    """N recalls with M candidates in all.

    Attributes:
        features: scaled features z of the candidates, those of one recall together, shape (M, F).
        lengths: how many candidates each recall has, ≥ 1, shape (N,).
        chosen: the right one's index within its recall, shape (N,).
        omega: the weight ω of each recall in the likelihood, ≥ 0, shape (N,): 1 where the right answer is
            known whatever was shown, max(reward, 0) / logged propensity where only what was shown could be
            rewarded.
        tenant: whose recall it is, any integers, shape (N,): recalls of one tenant are not independent.

    Raises:
        ValueError: the arrays do not describe recalls.
    """

    features: Floats
    lengths: Integers
    chosen: Integers
    omega: Floats
    tenant: Integers

    def __post_init__(self) -> None:
        recalls = len(self.lengths)
        if recalls == 0 or not len(self.chosen) == len(self.omega) == len(self.tenant) == recalls:
            raise ValueError("choices need at least one recall, and a length, choice, ω and tenant for each")
        if (self.lengths < 1).any() or self.lengths.sum() != len(self.features):
            raise ValueError(
                "each recall needs a candidate, and the lengths must add up to the features' rows"
            )
        if (self.chosen < 0).any() or (self.chosen >= self.lengths).any():
            raise ValueError("a chosen index must lie within its recall's candidates")
        if not (np.isfinite(self.omega) & (self.omega >= 0)).all():
            raise ValueError("ω must be finite and not negative")
        if not np.isfinite(self.features).all():
            raise ValueError("features must be finite")

    @cached_property
    def starts(self) -> Integers:
        """The row of each recall's first candidate, shape (N,)."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def chosen_rows(self) -> Integers:
        """The row of each recall's chosen candidate, shape (N,)."""
        return np.asarray(self.starts + self.chosen)

    def spread(self, of_recalls: Floats) -> Floats:
        """One value for each recall, shape (N, …), repeated for each of its candidates, shape (M, …)."""
        return np.repeat(of_recalls, self.lengths, axis=0)

    def take(self, recalls: NDArray[np.intp]) -> Self:
        """The choices of some recalls, by position."""
        lengths = self.lengths[recalls]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(self.starts[recalls], lengths) + offsets
        return type(self)(
            self.features[rows], lengths, self.chosen[recalls], self.omega[recalls], self.tenant[recalls]
        )


def log_probabilities(choices: Choices, weights: Floats, tau: float) -> Floats:
    """The policy's log p of every candidate, shape (M,).

    Args:
        choices: N recalls.
        weights: w in units, shape (F,).
        tau: the temperature, > 0.
    """
    if not tau > 0:
        raise ValueError(f"τ must be above 0, not {tau}")
    scores = choices.features @ weights / tau
    scores -= choices.spread(np.maximum.reduceat(scores, choices.starts))
    scores -= choices.spread(np.log(np.add.reduceat(np.exp(scores), choices.starts)))
    return np.asarray(scores)


def likelihood(choices: Choices, weights: Floats, tau: float) -> float:
    """The weighted log-likelihood Σ_i ω_i log p_ic: it depends on the weights and τ by their ratio only."""
    return float(choices.omega @ log_probabilities(choices, weights, tau)[choices.chosen_rows])


def gradient(choices: Choices, weights: Floats, tau: float) -> Floats:
    """The derivative of the likelihood by the weights, Σ_i ω_i (z_ic − E_p z_i) / τ, shape (F,)."""
    return np.asarray(choices.features.T @ _surprise(choices, weights, tau) / tau)


def contributions(choices: Choices, weights: Floats, tau: float) -> Floats:
    """What each recall adds to the gradient, shape (N, F)."""
    terms = choices.features * _surprise(choices, weights, tau)[:, None]
    return np.asarray(np.add.reduceat(terms, choices.starts, axis=0) / tau)


def information(choices: Choices, weights: Floats, tau: float) -> Floats:
    """Minus the second derivative of the likelihood, Σ_i ω_i Cov_p(z_i) / τ², shape (F, F)."""
    p = np.exp(log_probabilities(choices, weights, tau))[:, None]
    expected = np.add.reduceat(p * choices.features, choices.starts, axis=0)
    centred = choices.features - choices.spread(expected)
    return np.asarray(centred.T @ (choices.spread(choices.omega)[:, None] * p * centred) / tau**2)


def _surprise(choices: Choices, weights: Floats, tau: float) -> Floats:
    """ω_i (1[chosen] − p) of every candidate, shape (M,)."""
    surprise = -np.exp(log_probabilities(choices, weights, tau))
    surprise[choices.chosen_rows] += 1.0
    return np.asarray(choices.spread(choices.omega) * surprise)
