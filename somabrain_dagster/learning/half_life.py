"""Which half-life of recency fits what was chosen: a profile over a few, each with weights of its own.

A half-life changes what the feature of recency is, not how much it weighs, so it is no weight: one that is
chosen belongs into a new version of the scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from somabrain_dagster.learning.choices import Choices, Integers
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.optimizer import Fit, fit
from somabrain_dagster.learning.policy import pooled_scales

HALF_LIVES = (60.0, 600.0, 3600.0, 86_400.0, 604_800.0)
"""A minute, ten minutes, an hour, a day, a week; in seconds."""

RECENCY = [feature.name for feature in FEATURES].index("recency")


@dataclass(frozen=True, eq=False)
class HalfLife:
    """A half-life with what goes with it.

    Attributes:
        seconds: the half-life.
        scale: of the feature of recency at this half-life, > 0.
        fit: the weights at it.
    """

    seconds: float
    scale: float
    fit: Fit


def with_half_life(features: Floats, ages: Floats, half_life_seconds: float, scale: float) -> Floats:
    """Scaled features (M, F) with recency at another half-life, from the candidates' ages in seconds (M,)."""
    changed = features.copy()
    changed[:, RECENCY] = np.exp2(-ages / half_life_seconds) / scale
    return changed


def at_half_life(choices: Choices, ages: Floats, half_life: HalfLife | None) -> Choices:
    """The same choices with recency at another half-life; None leaves them as they are."""
    if half_life is None:
        return choices
    return Choices(
        with_half_life(choices.features, ages, half_life.seconds, half_life.scale),
        choices.lengths,
        choices.chosen,
        choices.omega,
        choices.tenant,
    )


def recency_scale(ages: Floats, lengths: Integers, half_life_seconds: float) -> float:
    """The scale of recency: its pooled standard deviation within recalls of so many candidates each."""
    recency = np.exp2(-ages / half_life_seconds)[:, None]
    return float(pooled_scales(np.split(recency, np.cumsum(lengths)[:-1]))[0])


def profile(
    choices: Choices,
    ages: Floats,
    tau: float,
    start: Floats,
    low: Floats,
    high: Floats,
    kappa: float,
    half_lives: Sequence[float] = HALF_LIVES,
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

    Raises:
        ValueError: as `fit`.
    """
    tried = []
    for seconds in half_lives:
        scale = recency_scale(ages, choices.lengths, seconds)
        at = Choices(
            with_half_life(choices.features, ages, seconds, scale),
            choices.lengths,
            choices.chosen,
            choices.omega,
            choices.tenant,
        )
        tried.append(HalfLife(seconds, scale, fit(at, tau, start, low, high, kappa)))
    return sorted(tried, key=lambda one: -one.fit.log_likelihood)
