"""A tenant's own weights: fitted near a prior that others taught, and kept only where it pays held out."""

from dataclasses import dataclass
from math import nan

from somabrain_dagster.learning.choices import Choices
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.optimizer import Gain, cross_validated_gain, fit

LEAST_CHOICES = 25
"""With fewer, a tenant's own choices are not looked at."""

OWN_KAPPA = 100.0
"""The strength, in pseudo-recalls, of the prior against a tenant's own choices: at 100 of them, even."""

GAIN, GAIN_LOWER_BOUND = "gain", "gain_lower_bound"
"""The gates on the gain in reciprocal rank: its mean, which the bound implies, is kept to be read."""


@dataclass(frozen=True, eq=False)
class GatedFit:
    """Weights for one tenant.

    Attributes:
        weights: the tenant's own fit where the gate passed, else the prior, in units, shape (F,).
        gain: of the fit over the prior in cross-validation; None where there were too few choices.
        choices: how many there were.
    """

    weights: Floats
    gain: Gain | None
    choices: int

    @property
    def own(self) -> bool:
        """Whether the gate passed: the one-sided lower bound of the gain is above 0."""
        return not failed(self.gates)

    @property
    def gates(self) -> tuple[Gate, ...]:
        """What the fit had to meet, and what it came to."""
        mean, lower = (nan, nan) if self.gain is None else (self.gain.mean, self.gain.lower)
        return (
            Gate("recalls", float(self.choices), "≥", float(LEAST_CHOICES)),
            Gate(GAIN, mean, ">", 0.0),
            Gate(GAIN_LOWER_BOUND, lower, ">", 0.0),
        )


def gated_fit(
    choices: Choices, prior: Floats, tau: float, low: Floats, high: Floats, kappa: float = OWN_KAPPA
) -> GatedFit:
    """Fit a tenant's choices near a prior, where five-fold cross-validation says that it pays.

    Args:
        choices: one tenant's, in the order of time, at least one.
        prior: weights within the bounds, in units, shape (F,).
        tau: the temperature, > 0.
        low: the bounds of the weights, shape (F,).
        high: likewise.
        kappa: the strength of the prior, ≥ 0.

    Raises:
        ValueError: the prior is outside the bounds, κ < 0 or τ ≤ 0.
    """
    count = len(choices.lengths)
    if count < LEAST_CHOICES:
        return GatedFit(prior, None, count)
    gain = cross_validated_gain(choices, prior, tau, low, high, kappa)
    if gain.lower <= 0:
        return GatedFit(prior, gain, count)
    return GatedFit(fit(choices, tau, prior, low, high, kappa).weights, gain, count)
