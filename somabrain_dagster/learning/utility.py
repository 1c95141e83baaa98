"""The utility of a context: which of the recalled memories are worth the room that they take.

    U = λ · context_gain − μ · length_penalty − ν · memory_penalty

with three terms in [0, 1], so that λ, μ and ν weigh like against like. If memory m would help with
probability g_m, independently of the others, then for the set S of memories that are returned

    context_gain   = 1 − Π_{m∈S} (1 − g_m)           the probability that something in it helps
    length_penalty = Σ_{m∈S} tokens_m / budget       the share of the token budget that it takes
    memory_penalty = |S| / capacity                  the share of the places that it takes

The gain is monotone and submodular (a second memory adds less than a first), the penalties are additive; so
the choice is greedy, after Nemhauser, Wolsey & Fisher (1978): the memory of the largest marginal utility, for
as long as that is positive. Utility decides what is returned; it never judges the experiment in which it did.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.features import Floats


@dataclass(frozen=True)
class UtilityWeights:
    """λ, μ, ν in units, each ≥ 0."""

    lambda_: float
    mu: float
    nu: float


@dataclass(frozen=True)
class Room:
    """How much a context may hold: `budget` tokens and `capacity` memories, both ≥ 1."""

    budget: int
    capacity: int

    def __post_init__(self) -> None:
        if self.budget < 1 or self.capacity < 1:
            raise ValueError(f"a context needs room for one token and one memory at least, not {self}")


@dataclass(frozen=True)
class Terms:
    """The three terms of a context's utility, each in [0, 1]."""

    context_gain: float
    length_penalty: float
    memory_penalty: float

    def utility(self, weights: UtilityWeights) -> float:
        """U = λ · context_gain − μ · length_penalty − ν · memory_penalty."""
        return (
            weights.lambda_ * self.context_gain
            - weights.mu * self.length_penalty
            - weights.nu * self.memory_penalty
        )


def terms(gains: Floats, lengths: NDArray[np.int64], room: Room) -> Terms:
    """The terms of the context that holds exactly these memories.

    Args:
        gains: the probability that each one helps, in [0, 1], shape (n,).
        lengths: its tokens, shape (n,).
        room: what the context may hold.
    """
    return Terms(
        context_gain=float(1.0 - np.prod(1.0 - gains)),
        length_penalty=float(lengths.sum() / room.budget),
        memory_penalty=len(gains) / room.capacity,
    )


def marginal_utilities(
    gains: Floats, lengths: NDArray[np.int64], unmet: float, room: Room, weights: UtilityWeights
) -> Floats:
    """By how much each memory would change the utility of a context that does not hold it, shape (n,).

    Args:
        gains: the probability that each one helps, in [0, 1], shape (n,).
        lengths: its tokens, shape (n,).
        unmet: 1 − the gain of the context.
        room: what the context may hold.
        weights: λ, μ, ν.
    """
    cost = weights.mu * lengths / room.budget + weights.nu / room.capacity
    marginal: Floats = weights.lambda_ * unmet * gains - cost
    return marginal


def assemble(
    gains: Floats, lengths: NDArray[np.int64], room: Room, weights: UtilityWeights
) -> NDArray[np.intp]:
    """The positions of the memories to return, in the order in which they were chosen.

    At each step, of those that still fit, the one of the largest marginal utility; between equals the earlier
    position. It ends when none fits or none adds to the utility.

    Args:
        gains: the probability that each candidate helps, in [0, 1], shape (n,).
        lengths: its tokens, ≥ 0, shape (n,).
        room: what the context may hold.
        weights: λ, μ, ν.

    Raises:
        ValueError: a gain is outside [0, 1] or a length negative.
    """
    if not ((gains >= 0) & (gains <= 1)).all():
        raise ValueError("gains are probabilities: each must lie in [0, 1]")
    if (lengths < 0).any():
        raise ValueError("lengths are numbers of tokens: none may be negative")
    chosen: list[int] = []
    unmet, tokens_left = 1.0, room.budget
    open_ = np.ones(len(gains), dtype=np.bool_)
    while len(chosen) < room.capacity:
        marginal = np.where(
            open_ & (lengths <= tokens_left), marginal_utilities(gains, lengths, unmet, room, weights), 0.0
        )
        if not (marginal > 0).any():
            break
        best = int(marginal.argmax())
        chosen.append(best)
        open_[best] = False
        unmet *= 1.0 - float(gains[best])
        tokens_left -= int(lengths[best])
    return np.array(chosen, dtype=np.intp)
