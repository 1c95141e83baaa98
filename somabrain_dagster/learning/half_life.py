"""Which half-life of recency fits what was chosen: a profile over a few, each with weights of its own.

A half-life changes what the feature of recency is, not how much it weighs, so it is no weight: one that is
chosen belongs into a new version of the scales. All of them are measured anew with it: a bound on a weight
means the same for each feature only if each is divided by its own spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from somabrain_dagster.learning.choices import Choices, Integers
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.optimizer import Fit, fit
from somabrain_dagster.learning.policy import pooled_scales, scaled

HALF_LIVES = (60.0, 600.0, 3600.0, 86_400.0, 604_800.0)
"""A minute, ten minutes, an hour, a day, a week; in seconds."""

RECENCY = [feature.name for feature in FEATURES].index("recency")


@dataclass(frozen=True, eq=False)
class HalfLife:
    """A half-life with what goes with it.

    Attributes:
        seconds: the half-life.
        scales: what the features as they were logged, recency at this half-life unscaled, are divided by
            anew, shape (F,), > 0.
        start: the centre of the prior at it, shape (F,).
        fit: the weights at it.
    """

    seconds: float
    scales: Floats
    start: Floats
    fit: Fit

    def over(self, logged: Floats) -> Floats:
        """What the features are divided by altogether, where they were logged over these scales (F,)."""
        return _undivided(logged) * self.scales


def with_half_life(features: Floats, ages: Floats, half_life_seconds: float, scales: Floats) -> Floats:
    """Features at another half-life and other scales.

    Args:
        features: as they were logged, shape (M, F).
        ages: of the candidates, in seconds, shape (M,).
        half_life_seconds: of recency, > 0.
        scales: what they are divided by, recency unscaled, shape (F,).
    """
    return scaled(_unscaled(features, ages, half_life_seconds), scales)


def _unscaled(features: Floats, ages: Floats, half_life_seconds: float) -> Floats:
    changed = features.copy()
    changed[:, RECENCY] = np.exp2(-ages / half_life_seconds)
    return changed


def _undivided(logged: Floats) -> Floats:
    """The scales under those that are measured anew: recency is made again, and was divided by nothing."""
    before = logged.copy()
    before[RECENCY] = 1.0
    return before


def measured_scales(features: Floats, ages: Floats, lengths: Integers, half_life_seconds: float) -> Floats:
    """The scales at a half-life, shape (F,): pooled deviations within recalls of so many candidates each."""
    changed = _unscaled(features, ages, half_life_seconds)
    return pooled_scales(np.split(changed, np.cumsum(lengths)[:-1]))


def at_half_life(choices: Choices, ages: Floats, half_life: HalfLife | None) -> Choices:
    """The same choices at another half-life and its scales; None leaves them as they are."""
    if half_life is None:
        return choices
    return Choices(
        with_half_life(choices.features, ages, half_life.seconds, half_life.scales),
        choices.lengths,
        choices.chosen,
        choices.omega,
        choices.tenant,
    )


def profile(
    choices: Choices,
    ages: Floats,
    tau: float,
    start: Floats,
    low: Floats,
    high: Floats,
    kappa: float,
    half_lives: Sequence[float] = HALF_LIVES,
    logged_over: Floats | None = None,
) -> list[HalfLife]:
    """The fit at each half-life, the most likely first.

    Args:
        choices: N recalls.
        ages: of their candidates, in seconds, shape (M,).
        tau: the temperature, > 0.
        start: the centre of the prior, shape (F,).
        low: the bounds, shape (F,).
        high: likewise.
        kappa: the strength of the prior, in pseudo-recalls, ≥ 0.
        half_lives: to try, in seconds, each > 0.
        logged_over: the scales that the features were logged over, shape (F,): the start is then what it
            means in the scales of each half-life, within the bounds; None takes it as it stands in all.

    Raises:
        ValueError: as `fit`.
    """
    tried = []
    for seconds in half_lives:
        scales = measured_scales(choices.features, ages, choices.lengths, seconds)
        meant = (
            start
            if logged_over is None
            else np.clip(start * (_undivided(logged_over) * scales / logged_over), low, high)
        )
        at = Choices(
            with_half_life(choices.features, ages, seconds, scales),
            choices.lengths,
            choices.chosen,
            choices.omega,
            choices.tenant,
        )
        tried.append(HalfLife(seconds, scales, meant, fit(at, tau, meant, low, high, kappa)))
    return sorted(tried, key=lambda one: -one.fit.log_likelihood)
