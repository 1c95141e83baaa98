"""Moments: all that a comparison of means needs to know of a sample, and mergeable in any grouping."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import sqrt
from typing import Self

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Moments:
    """The size, mean and variance of a sample.

    Attributes:
        n: how many numbers, ≥ 0.
        mean: of the numbers; 0 where there is none.
        variance: with n − 1; 0 where there are fewer than two.
    """

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """The moments of some numbers; equal numbers have variance 0 exactly.

        Raises:
            ValueError: a number is not finite.
        """
        sample = np.asarray(values, dtype=np.float64)
        if not np.isfinite(sample).all():
            raise ValueError("a sample must be finite: leave out what was not measured")
        if len(sample) == 0:
            return cls()
        deviations = sample - sample[0]
        return cls(
            len(sample),
            float(sample[0] + deviations.mean()),
            float(deviations.var(ddof=1)) if len(sample) > 1 else 0.0,
        )

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return sqrt(self.variance)

    def merge(self, other: Self) -> Self:
        """The moments of both samples together (Chan, Golub & LeVeque 1979)."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        apart = other.mean - self.mean
        squares = (
            max(self.n - 1, 0) * self.variance
            + max(other.n - 1, 0) * other.variance
            + apart * apart * self.n * other.n / n
        )
        return type(self)(n, self.mean + apart * other.n / n, squares / (n - 1))


def merge(samples: Iterable[Moments]) -> Moments:
    """The moments of all samples together; of none, those of no number."""
    return reduce(Moments.merge, samples, Moments())
