"""Weights for everybody: fitted to what many tenants taught, and kept if they rank later recalls better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.half_life import HalfLife, at_half_life, profile
from somabrain_dagster.learning.offpolicy import ClusteredMean, clustered_mean
from somabrain_dagster.learning.optimizer import Fit, fit, fit_temperature
from somabrain_dagster.learning.ranking import rank_of_chosen

LATER = 0.3
"""The share of each tenant's recalls, the last ones, on which the fit to the others is judged."""

CONFIDENCE = 0.95
"""Of the one-sided bound that must be above 0."""

POOLED_KAPPA = 25.0
"""The strength, in pseudo-recalls, of the start against what all tenants taught."""


@dataclass(frozen=True)
class HeldOut:
    """What a fit is worth on recalls that it did not see.

    Attributes:
        recalls: how many.
        gain: in 1 / rank, by tenants.
        mrr, top1: at the start and at the fit.
    """

    recalls: int
    gain: ClusteredMean
    mrr: tuple[float, float]
    top1: tuple[float, float]


@dataclass(frozen=True, eq=False)
class PooledFit:
    """Weights for everybody.

    Attributes:
        start: the weights in force, shape (F,).
        fitted: to all recalls where the gate passed, else to the earlier ones.
        profiled: the half-life of recency that it was fitted at; None where the features are as logged.
        likelihoods: of the earlier choices by half-life in seconds; none where none was profiled.
        tau: the temperature that is best calibrated on the later recalls; the present one without a grid.
        temperatures: the likelihood of the later choices by τ.
        gate: the lower bound of the gain in 1 / rank on later recalls, clustered by tenant.
        held_out: what that rests on.
    """

    start: Floats
    fitted: Fit
    profiled: HalfLife | None
    likelihoods: Mapping[float, float]
    tau: float
    temperatures: Mapping[float, float]
    gate: Gate
    held_out: HeldOut

    @property
    def weights(self) -> Floats:
        """The fitted weights where the gate passed, else the start, in units, shape (F,)."""
        return self.fitted.weights if self.gate.passed else self.start

    @property
    def half_life(self) -> HalfLife | None:
        """Of recency, that the weights go with; None where the features are as they were logged."""
        return self.profiled if self.gate.passed else None


def pooled_fit(
    choices: Choices,
    ages: Floats,
    tau: float,
    start: Floats,
    low: Floats,
    high: Floats,
    half_lives: Sequence[float] = (),
    kappa: float = POOLED_KAPPA,
    *,
    temperatures: Sequence[float] = (),
    logged_over: Floats | None = None,
) -> PooledFit:
    """Fit the earlier recalls, judge that by the later ones, and if it holds, fit all of them.

    Args:
        choices: recalls of several tenants, each tenant's in the order of time.
        ages: of the candidates, in seconds, shape (M,).
        tau: the temperature, > 0.
        start: the weights in force, within the bounds, shape (F,).
        low: the bounds, shape (F,).
        high: likewise.
        half_lives: of recency, in seconds, to choose from by likelihood; none leaves recency as logged.
        kappa: the strength of the start, ≥ 0.
        temperatures: to choose τ from, by the likelihood of the later recalls; none leaves it as it is. It
            cannot help the fit through the gate: no τ changes a rank.
        logged_over: as `profile` takes it.

    Raises:
        ValueError: no tenant has both earlier and later recalls, or `fit` refuses.
    """
    earlier = first_of_each(choices)
    if earlier.all() or not earlier.any():
        raise ValueError(f"{len(earlier)} recalls cannot be divided into earlier and later ones: gather more")

    def fitted(recalls: NDArray[np.bool_], among: Sequence[float]) -> tuple[Fit, list[HalfLife]]:
        some = choices.take(np.flatnonzero(recalls))
        if not among:
            return fit(some, tau, start, low, high, kappa), []
        of_some = ages[np.repeat(recalls, choices.lengths)]
        tried = profile(some, of_some, tau, start, low, high, kappa, among, logged_over)
        return tried[0].fit, tried

    learned, tried = fitted(earlier, half_lives)
    profiled = tried[0] if tried else None
    likelihoods = {one.seconds: one.fit.log_likelihood for one in tried}
    later = np.flatnonzero(~earlier)
    now = choices.take(later)
    then = at_half_life(choices, ages, profiled).take(later)
    held_out = _held_out(now, start, then, learned.weights)
    gate = Gate("gain_lower_bound", held_out.gain.lower_bound(CONFIDENCE), ">", 0.0)
    best, found = fit_temperature(then, learned.weights, temperatures or (tau,))
    calibrated = dict(zip(temperatures, found.tolist(), strict=False))
    if gate.passed:
        everything = np.ones_like(earlier)
        learned, again = fitted(everything, () if profiled is None else (profiled.seconds,))
        profiled = again[0] if again else None
    return PooledFit(start, learned, profiled, likelihoods, best, calibrated, gate, held_out)


def _held_out(now: Choices, start: Floats, then: Choices, weights: Floats) -> HeldOut:
    """The same recalls, under the start and the features as logged, and under the fit and its features."""
    before, after = rank_of_chosen(now, start), rank_of_chosen(then, weights)
    return HeldOut(
        recalls=len(before),
        gain=clustered_mean(1.0 / after - 1.0 / before, now.tenant),
        mrr=(float((1.0 / before).mean()), float((1.0 / after).mean())),
        top1=(float((before == 1).mean()), float((after == 1).mean())),
    )


def first_of_each(choices: Choices, share: float = 1.0 - LATER) -> NDArray[np.bool_]:
    """Which recalls are among the first of their tenant's, by share, shape (N,)."""
    first = np.zeros(len(choices.tenant), dtype=np.bool_)
    for tenant in np.unique(choices.tenant):
        own = np.flatnonzero(choices.tenant == tenant)
        first[own[: round(share * len(own))]] = True
    return first
