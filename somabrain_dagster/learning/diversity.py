"""Diversity of what a tenant recalls, and the step of τ that steers it.

Over the last W recalled coordinates (a memory, with its embedding where there is one), a coordinate is
repeated when an earlier one of the same window is the same memory or lies within a cosine of 0.95. Diversity
is 1 − repeated/W. Below its target τ rises, so that recall explores; above it τ falls, so that it exploits.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.configuration import DiversityConfiguration, LearningConfiguration
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.weights import NANO, TAU

GRID = 2**20
"""Embeddings are compared on an integer grid of this many steps from 0 to their largest component."""


def repeats(memories: ArrayLike, embeddings: Floats | None, similarity: float) -> NDArray[np.bool_]:
    """Which coordinates repeat an earlier one.

    Args:
        memories: (n,), the ids of the recalled memories, oldest first.
        embeddings: (n, D), D ≤ 8192, of any length other than 0; a row of zeros says that there is none, and
            None that there are none at all.
        similarity: the cosine from which two memories count as the same.

    Returns:
        (n,).

    Raises:
        ValueError: an embedding is not finite.
    """
    ids = np.asarray(memories)
    same = ids[:, None] == ids[None, :]
    if embeddings is not None:
        same = same | (_cosines(embeddings) >= similarity)
    repeated: NDArray[np.bool_] = np.tril(same, k=-1).any(axis=1)
    return repeated


def diversity(
    memories: ArrayLike, embeddings: Floats | None, configuration: DiversityConfiguration
) -> float | None:
    """1 − repeated/W over the last W coordinates; None while there are fewer.

    The first coordinates cannot repeat much: a window that is not full would look diverse whatever is in it,
    and pull τ down on no evidence.

    Args:
        memories: (n,), the ids of the recalled memories, oldest first.
        embeddings: as for `repeats`.
        configuration: W, and the cosine that counts as the same.

    Raises:
        ValueError: an embedding is not finite.
    """
    window = configuration.window
    ids = np.asarray(memories)[-window:]
    if len(ids) < window:
        return None
    recent = None if embeddings is None else embeddings[-window:]
    return 1.0 - int(repeats(ids, recent, configuration.similarity).sum()) / window


def tau_step(configuration: LearningConfiguration, diversity: float | None, serotonin: float) -> int:
    """The shift of τ, in nano-units.

    rise · (target − diversity) below the target, −fall · (diversity − target) above it, times
    (1 − serotonin/2), rounded once: a stable tenant steps half as far. Within ±(high − low) of τ.

    Args:
        configuration: the target, the rates and τ's bounds.
        diversity: in [0, 1], or None for no step.
        serotonin: in [0, 1].
    """
    if diversity is None:
        return 0
    shortfall = configuration.diversity.target - diversity
    gain = configuration.diversity.rise if shortfall > 0 else configuration.diversity.fall
    step = round(gain * shortfall * (1.0 - serotonin / 2.0) * NANO)
    span = int(configuration.high_nanos[TAU] - configuration.low_nanos[TAU])
    return max(-span, min(step, span))


def _cosines(embeddings: Floats) -> Floats:
    """The cosine of every two rows, (n, n); NaN, which is no nearer than anything, with a row of zeros.

    Components are whole numbers, and no sum of their products reaches 2⁵³: each is exact on every machine and
    in every order. Products of the embeddings themselves may differ in the last bit, and a threshold would
    make that a decision.
    """
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding must be finite")
    largest = np.abs(embeddings).max(axis=1, keepdims=True, initial=0.0)
    grid = np.rint(embeddings / np.where(largest > 0, largest, 1.0) * GRID)
    # Not by BLAS: its threads wait by spinning, and take the processor from whoever else is served.
    products: Floats = np.einsum("ik,jk->ij", grid, grid)
    norms = np.sqrt(np.diagonal(products))
    lengths = norms[:, None] * norms[None, :]
    cosines = np.full_like(products, np.nan)
    np.divide(products, lengths, out=cosines, where=lengths > 0)
    return cosines
