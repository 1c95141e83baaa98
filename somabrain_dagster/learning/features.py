"""The feature registry of recall: what is measured of a candidate memory, and the weight that it starts with.

The score of a candidate m for a query q is Σ_k w_k · z_k, one z_k = value / scale for each feature.
Adding a feature is adding one entry to `FEATURES` (and raising `REGISTRY_VERSION`): weights, bounds, logs,
metrics and fits follow from the registry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REGISTRY_VERSION = 1
"""Written into every weight change: which registry the positions of its vectors refer to."""


@dataclass(frozen=True)
class Candidates:
    """What is known of n candidate memories at the moment of a query; every array has shape (n,).

    Attributes:
        similarity: cosine of the candidate's and the query's embeddings, in [-1, 1].
        activation: one step of spreading activation over links, in [0, 1].
        age_seconds: how long before the query the memory was, ≥ 0.
        half_life_seconds: the age at which recency is one half, > 0.
        lexical_rank: full-text rank, ≥ 0; 0 where no word matches.
        mentioned: the query names the memory's speaker or entity.
        other_speaker: the memory's speaker is not the one who asks.
    """

    similarity: Floats
    activation: Floats
    age_seconds: Floats
    half_life_seconds: float
    lexical_rank: Floats
    mentioned: NDArray[np.bool_]
    other_speaker: NDArray[np.bool_]


@dataclass(frozen=True)
class Feature:
    """One entry of the registry: a name, a symbol, a function, a start and bounds."""

    name: str
    symbol: str
    value: Callable[[Candidates], Floats]
    start: float
    low: float
    high: float


def semantic(candidates: Candidates) -> Floats:
    """Cosine similarity of the embeddings."""
    return candidates.similarity


def graph(candidates: Candidates) -> Floats:
    """Activation that reaches the memory over explicit links in one step."""
    return candidates.activation


def recency(candidates: Candidates) -> Floats:
    """2^(−age / half_life): 1 for a memory of this instant, ½ after one half-life."""
    return np.exp2(-candidates.age_seconds / candidates.half_life_seconds)


def lexical(candidates: Candidates) -> Floats:
    """Full-text rank over the query's best; 0 everywhere when no candidate matches a word."""
    best = candidates.lexical_rank.max(initial=0.0)
    return candidates.lexical_rank / best if best > 0 else np.zeros_like(candidates.lexical_rank)


def mention(candidates: Candidates) -> Floats:
    """1 where the query names the memory's speaker or entity."""
    return candidates.mentioned.astype(np.float64)


def turn(candidates: Candidates) -> Floats:
    """1 where the memory was said by somebody other than the one who asks."""
    return candidates.other_speaker.astype(np.float64)


FEATURES = (
    Feature("semantic", "α", semantic, start=1.0, low=0.8, high=3.0),
    Feature("graph", "β", graph, start=0.2, low=0.0, high=1.0),
    Feature("recency", "γ", recency, start=0.1, low=0.0, high=1.0),
    Feature("lexical", "δ", lexical, start=0.5, low=-5.0, high=5.0),
    Feature("mention", "ε", mention, start=0.0, low=-5.0, high=5.0),
    Feature("turn", "ζ", turn, start=0.0, low=-5.0, high=5.0),
)
