"""Many tests: Holm within an experiment, LORD++ across experiments that follow one another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.features import Floats


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down p-values (1979), shape (m,): rejecting those below α errs at all with probability ≤ α.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    raw = np.asarray(p, dtype=np.float64)
    _check(raw)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


@dataclass(frozen=True)
class Lord:
    """LORD++: the level of each next test, such that the false discovery rate stays below α for ever.

        level_t = γ_t w₀ + (α − w₀) γ_{t−τ₁} + α Σ_{j≥2} γ_{t−τ_j}        τ_j: the tests that rejected
        γ_j = 0.07720838 · ln(max(j, 2)) / (j · e^√ln j)                  w₀ = α/10

    Ramdas, Yang, Wainwright & Jordan (2017), with the γ of Javanmard & Montanari (2018). The p-values must be
    independent.

    Attributes:
        alpha: the rate that is held.
        tests: how many tests there were.
        rejections: which of them rejected, from 1, rising.
    """

    alpha: float = 0.05
    tests: int = 0
    rejections: tuple[int, ...] = ()

    @property
    def level(self) -> float:
        """The level of the next test: it rejects where p is at most this."""
        test = self.tests + 1
        wealth = self.alpha / 10
        earned = np.full(len(self.rejections), self.alpha)
        earned[:1] -= wealth
        since = test - np.asarray(self.rejections, dtype=np.int64)
        return float(wealth * _gamma(np.array([test]))[0] + earned @ _gamma(since))

    def after(self, p: float) -> "Lord":
        """The state after the next test.

        Raises:
            ValueError: the p-value is outside [0, 1].
        """
        _check(np.array([p]))
        test = self.tests + 1
        rejections = (*self.rejections, test) if p <= self.level else self.rejections
        return replace(self, tests=test, rejections=rejections)


def lord_levels(p: Sequence[float], alpha: float = 0.05) -> tuple[Floats, Lord]:
    """The level that each of a sequence of tests met, shape (m,), and the state after the last."""
    state, levels = Lord(alpha), np.empty(len(p))
    for test, value in enumerate(p):
        levels[test] = state.level
        state = state.after(value)
    return levels, state


def _gamma(steps: NDArray[np.int64]) -> Floats:
    logs = np.log(steps)
    return np.asarray(0.07720838 * np.log(np.maximum(steps, 2)) / (steps * np.exp(np.sqrt(logs))))


def _check(p: Floats) -> None:
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie in [0, 1]")
