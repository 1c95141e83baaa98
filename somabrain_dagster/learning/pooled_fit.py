"""Weights for everybody: fitted to what many tenants taught, and kept if they rank later recalls better."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.half_life import HalfLife, at_half_life, profile
from somabrain_dagster.learning.offpolicy import clustered_mean
from somabrain_dagster.learning.optimizer import fit
from somabrain_dagster.learning.ranking import rank_of_chosen

LATER = 0.3
"""The share of each tenant's recalls, the last ones, on which the fit to the others is judged."""

CONFIDENCE = 0.95
"""Of the one-sided bound that must be above 0."""

POOLED_KAPPA = 25.0
"""The strength, in pseudo-recalls, of the start against what all tenants taught."""


@dataclass(frozen=True, eq=False)
class PooledFit:
    """Weights for everybody.

    Attributes:
        weights: fitted to all recalls where the gate passed, else the start, in units, shape (F,).
        half_life: of recency, that they go with; None where the features are as they were logged.
        gate: the lower bound of the gain in 1 / rank on later recalls, clustered by tenant.
    """

    weights: Floats
    half_life: HalfLife | None
    gate: Gate


def pooled_fit(
    choices: Choices,
    ages: Floats,
    tau: float,
    start: Floats,
    low: Floats,
    high: Floats,
    half_lives: Sequence[float] = (),
    kappa: float = POOLED_KAPPA,
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

    Raises:
        ValueError: no tenant has both earlier and later recalls, or `fit` refuses.
    """
    earlier = _first_of_each(choices, 1.0 - LATER)
    if earlier.all() or not earlier.any():
        raise ValueError(f"{len(earlier)} recalls cannot be divided into earlier and later ones: gather more")

    def fitted(recalls: NDArray[np.bool_], among: Sequence[float]) -> tuple[Floats, HalfLife | None]:
        some = choices.take(np.flatnonzero(recalls))
        if not among:
            return fit(some, tau, start, low, high, kappa).weights, None
        best = profile(some, ages[np.repeat(recalls, choices.lengths)], tau, start, low, high, kappa, among)[
            0
        ]
        return best.fit.weights, best

    weights, half_life = fitted(earlier, half_lives)
    later = np.flatnonzero(~earlier)
    now = 1.0 / rank_of_chosen(choices.take(later), start)
    then = 1.0 / rank_of_chosen(at_half_life(choices, ages, half_life).take(later), weights)
    gain = clustered_mean(then - now, choices.tenant[later])
    gate = Gate("gain_lower_bound", gain.lower_bound(CONFIDENCE), ">", 0.0)
    if not gate.passed:
        return PooledFit(start, None, gate)
    everything = np.ones_like(earlier)
    return PooledFit(*fitted(everything, () if half_life is None else (half_life.seconds,)), gate)


def _first_of_each(choices: Choices, share: float) -> NDArray[np.bool_]:
    """Which recalls are among the first of their tenant's, shape (N,)."""
    first = np.zeros(len(choices.tenant), dtype=np.bool_)
    for tenant in np.unique(choices.tenant):
        own = np.flatnonzero(choices.tenant == tenant)
        first[own[: round(share * len(own))]] = True
    return first
