"""The weights: one for each feature of recall, the temperature τ, and the three of utility.

A vector of weights has one position for each entry of `WEIGHTS`. It lives on an exact grid, int64 nano-units,
so that "the same" can mean equal; decimals are for people and APIs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.features import FEATURES

Nanos = NDArray[np.int64]

NANO = 1_000_000_000
"""Nano-units in one unit."""


@dataclass(frozen=True)
class Weight:
    """A weight, where it starts, how far it may go, and how feedback moves it.

    Attributes:
        name: its name in code, APIs, metrics and tables.
        symbol: its Greek letter.
        start, low, high: in units.
        scalar_gain: what feedback that names no memory moves it by, for each unit of utility (retrieval
            weights) or of reward (utility weights).
        credit_gain: what feedback that names memories moves it by, for each unit of signal.
    """

    name: str
    symbol: str
    start: float
    low: float
    high: float
    scalar_gain: float
    credit_gain: float


_NAMES = {
    "semantic": "alpha",
    "graph": "beta",
    "recency": "gamma",
    "lexical": "delta",
    "mention": "epsilon",
    "turn": "zeta",
}
_SCALAR_GAINS = {"semantic": 1.0, "recency": -0.5}

FEATURE_WEIGHTS = tuple(
    Weight(
        _NAMES.get(feature.name, feature.name),
        feature.symbol,
        feature.start,
        feature.low,
        feature.high,
        scalar_gain=_SCALAR_GAINS.get(feature.name, 0.0),
        credit_gain=1.0,
    )
    for feature in FEATURES
)
TEMPERATURE = Weight("tau", "τ", 0.7, 0.4, 1.2, scalar_gain=0.0, credit_gain=0.0)
UTILITY_WEIGHTS = (
    Weight("lambda", "λ", 1.0, 0.1, 5.0, scalar_gain=1.0, credit_gain=1.0),
    Weight("mu", "μ", 0.1, 0.01, 5.0, scalar_gain=-0.25, credit_gain=-0.25),
    Weight("nu", "ν", 0.05, 0.01, 5.0, scalar_gain=-0.25, credit_gain=-0.25),
)

WEIGHTS = (*FEATURE_WEIGHTS, TEMPERATURE, *UTILITY_WEIGHTS)
NAMES = tuple(weight.name for weight in WEIGHTS)
POSITION = {name: position for position, name in enumerate(NAMES)}

RETRIEVAL = slice(0, len(FEATURE_WEIGHTS))
"""The positions of the feature weights α β γ δ ε ζ."""
TAU = len(FEATURE_WEIGHTS)
"""The position of τ."""
UTILITY = slice(TAU + 1, len(WEIGHTS))
"""The positions of λ μ ν."""


def to_nanos(values: ArrayLike) -> Nanos:
    """Round units to the grid, once, half to even."""
    return np.rint(np.asarray(values, dtype=np.float64) * NANO).astype(np.int64)


def to_units(nanos: ArrayLike) -> NDArray[np.float64]:
    """Nano-units as floating-point units."""
    return np.asarray(nanos, dtype=np.int64) / NANO


def by_name(nanos: ArrayLike) -> dict[str, float]:
    """A vector of nano-units, shape (K,), as {name: units}."""
    return dict(zip(NAMES, to_units(nanos).tolist(), strict=True))


def from_names(units: Mapping[str, float]) -> Nanos:
    """The inverse of `by_name`.

    Raises:
        KeyError: a weight is missing.
    """
    return to_nanos([units[name] for name in NAMES])
