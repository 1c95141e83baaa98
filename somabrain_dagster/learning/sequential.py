"""Stopping early for harm: evidence that stays valid however often one looks.

With t the standardised difference after N units, the likelihood ratio of a normal mixture of effects against
none is

    e = exp( ρ²Nt² / (2(Nρ² + 1)) ) / √(Nρ² + 1)        ρ² = (−2 ln α + ln(1 − 2 ln α)) / N*

where N* is the planned N, at which ρ makes the evidence sharpest. By Ville's inequality e ever exceeds 1/α
with probability at most α where there is no effect (Robbins 1970; Waudby-Smith, Arbour, Sinha, Kennedy &
Ramdas 2021 for estimated variances). Harm is one of its two directions, so that no effect is stopped less
often than half of that.
"""

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike

from somabrain_dagster.learning.comparison import comparable, compare
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.moments import Moments

LEAST_UNITS = 10
"""Units in each arm before a first look: the variances of fewer are too rough for t to count as normal."""


@dataclass(frozen=True)
class Harm:
    """The evidence of harm so far.

    Attributes:
        log_e: ln e, of a difference in either direction.
        p: min(1, 1/e), valid at every look.
        difference: of the means, treatment − control.
        alpha: the level that was planned.
    """

    log_e: float
    p: float
    difference: float
    alpha: float

    @property
    def stop(self) -> bool:
        """The treatment does harm: end the experiment."""
        return self.difference < 0 and not self.gate.passed

    @property
    def gate(self) -> Gate:
        """The condition of going on, where the difference is negative."""
        return Gate("harm", self.p, "≥", self.alpha)


def log_evidence(t: ArrayLike, units: ArrayLike, planned: float, alpha: float) -> Floats:
    """The formula ln e, elementwise.

    Args:
        t: the difference over its standard error.
        units: N, in both arms together.
        planned: N*, in both arms together.
        alpha: the level at which the evidence is to be sharpest.
    """
    rho = (-2 * log(alpha) + log(1 - 2 * log(alpha))) / planned
    size = np.asarray(units, dtype=np.float64) * rho
    return np.asarray(size * np.square(t) / (2 * (size + 1)) - np.log1p(size) / 2)


def harm(control: Moments, treatment: Moments, *, size: int, alpha: float = 0.05) -> Harm:
    """The evidence that a treatment does harm, at any moment before completion.

    With several treatments give each its part of α.

    Args:
        control: the sessions' numbers so far.
        treatment: likewise.
        size: the planned number of sessions in each arm.
        alpha: how often an experiment without any effect may ever reach this evidence.
    """
    if min(control.n, treatment.n) < LEAST_UNITS or not comparable(control, treatment):
        return Harm(0.0, 1.0, treatment.mean - control.mean, alpha)
    found = compare(control, treatment)
    log_e = float(log_evidence(found.t, control.n + treatment.n, 2 * size, alpha))
    return Harm(log_e, exp(-max(log_e, 0.0)), found.difference, alpha)
