"""The policy of recall: from what is known of the candidates to the order in which they are returned.

The score of a candidate is s = Σ_k w_k · z_k over its scaled features z; the policy is p = softmax(s / τ).
Everything is a pure function of arrays in which a candidate, or a memory, is a position.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.weights import RETRIEVAL, Nanos

Positions = NDArray[np.intp]

SEEDS = 10
"""How many memories, the most similar ones, activation spreads from."""
SEED_TEMPERATURE = 0.1
"""The temperature of the seeds' softmax: fixed, so that no weight and no τ changes what a feature means."""
STILL = 1e-6
"""Features lie in [−1, 1]: a smaller deviation than this is rounding or underflow, not spread."""


@dataclass(frozen=True)
class Scales:
    """What each feature is divided by, frozen under a version so that weights and τ keep their meaning.

    Attributes:
        version: raised whenever anything below changes.
        values: one for each feature, in the registry's order, > 0.
        half_life_seconds: the age at which recency is one half, > 0.
    """

    version: int
    values: tuple[float, ...]
    half_life_seconds: float


def pooled_scales(queries: Iterable[Floats]) -> Floats:
    """The pooled within-query standard deviation of each feature, shape (F,).

    √( Σ_q Σ_m (x_qm − x̄_q)² / Σ_q (n_q − 1) ): what varies between queries but not within one cannot rank,
    and does not count. A feature that does not vary has the scale 1. Measure over at least 1,000 recalls.

    Args:
        queries: the feature values of each query's candidates, shapes (n_q, F).

    Raises:
        ValueError: no query has two candidates.
    """
    squares, freedom = np.zeros(0), 0
    for values in queries:
        if len(values) > 1:
            deviations = values - values.mean(axis=0)
            squares = (deviations**2).sum(axis=0) + (squares if freedom else 0.0)
            freedom += len(values) - 1
    if freedom == 0:
        raise ValueError("scales need at least one query with two candidates: record recalls first")
    deviation = np.sqrt(squares / freedom)
    return np.where(deviation > STILL, deviation, 1.0)


def scaled(values: Floats, scales: Floats) -> Floats:
    """Feature values, shape (n, F), over their scales, shape (F,): the z of a score."""
    return values / scales


def rescaled(weights: Nanos, old: Scales, new: Scales) -> Nanos:
    """Weights (K,) of one version of the scales in another: w · new/old of each feature, rounded once.

    What a feature adds to a score, w · value/scale, stays as it is; so do τ and the weights of utility. The
    half-life of recency belongs to the scales: where it differs, the feature is another one, and its weight
    is what would be right for the old one.
    """
    meant = weights.copy()
    meant[RETRIEVAL] = np.rint(weights[RETRIEVAL] * (np.array(new.values) / np.array(old.values)))
    return meant


def scores(z: Floats, weights: Floats) -> Floats:
    """The score Σ_k w_k z_k for scaled features (n, F) and weights (F,) in units; shape (n,).

    Equal candidates have equal scores to the last bit, wherever they stand.
    """
    # A matrix product may round a row by its place in a block, and so break a tie by position.
    return np.asarray((z * weights).sum(axis=1))


def softmax(scores: Floats, tau: float) -> Floats:
    """exp(s/τ) / Σ exp(s/τ), shape (n,): the same for s and for s plus any constant.

    Raises:
        ValueError: τ is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"τ must be above 0, not {tau}")
    powers = np.exp((scores - scores.max(initial=-np.inf)) / tau)
    return np.asarray(powers / powers.sum())


def rank(scores: Floats, ids: NDArray[Any]) -> Positions:
    """All positions, best first: by score, descending, then by memory id, ascending."""
    return np.lexsort((ids, -scores))


def sample(scores: Floats, tau: float, generator: np.random.Generator) -> Positions:
    """All positions in a random order whose first k are a draw of k without replacement from the policy.

    Gumbel top-k (Kool, van Hoof & Welling 2019): sort s/τ + G for independent standard Gumbel G. The first
    position is distributed as softmax(s/τ); the p that is logged speaks of it alone.

    Raises:
        ValueError: τ is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"τ must be above 0, not {tau}")
    return np.argsort(-(scores / tau + generator.gumbel(size=len(scores))), kind="stable")


def expected_features(probabilities: Floats, z: Floats) -> Floats:
    """E_p z = Σ_m p_m z_m for p (n,) and z (n, F): what the policy expected of each feature, shape (F,)."""
    return np.asarray(probabilities @ z)


def governed_margin(scores: Floats) -> float:
    """The best score minus the second best, ≥ 0; 0 where fewer than two candidates left nothing to decide."""
    if len(scores) < 2:
        return 0.0
    second, best = np.partition(scores, -2)[-2:]
    return float(best - second)


def activation(
    similarity: Floats, source: NDArray[np.int64], target: NDArray[np.int64], weight: Floats
) -> Floats:
    """One step of spreading activation over links, shape (n,), in [0, 1] and of sum at most 1.

    graph(m) = Σ_j p_j · w(j→m) / Σ_k w(j→k) over the seeds j, the `SEEDS` most similar memories, where p_j is
    their softmax at `SEED_TEMPERATURE`: one step of a random walk from the seeds (the idea: Collins & Loftus
    1975). What a seed without outgoing links holds goes nowhere.

    Args:
        similarity: of n memories to the query, shape (n,); between equals the earlier position is a seed.
        source: position of the memory that each link leaves, shape (E,). All links that leave a seed belong
            here, or its activation is shared out wrongly; links that leave others change nothing.
        target: position of the memory that each link leads to, shape (E,).
        weight: of each link, ≥ 0, shape (E,).

    Raises:
        ValueError: a link's weight is negative.
    """
    if (weight < 0).any():
        raise ValueError("the weight of a link must not be negative")
    memories = len(similarity)
    seeds = np.argsort(-similarity, kind="stable")[:SEEDS]
    held = np.zeros(memories)
    held[seeds] = softmax(similarity[seeds], SEED_TEMPERATURE)
    total = np.bincount(source, weight, minlength=memories)[source]
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return np.asarray(np.bincount(target, held[source] * share, minlength=memories), dtype=np.float64)


def draw_without_replacement(weights: Floats, count: int, generator: np.random.Generator) -> Positions:
    """At most `count` distinct positions, each draw in proportion to the weights of those that remain.

    What has no weight is never drawn. Which memories that only links reach become candidates is drawn so, by
    their activation (Efraimidis & Spirakis 2006: exponential keys; here their logarithm, Gumbel top-k).
    """
    possible = np.flatnonzero(weights > 0)
    return possible[sample(np.log(weights[possible]), 1.0, generator)[:count]]
