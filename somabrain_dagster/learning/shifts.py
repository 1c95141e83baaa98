"""Clipped shifts: every change of weights, whatever its cause, is one element of one monoid.

A clipped shift is f(w) = clamp(w + a, l, u) on integers, l ≤ u. Clipped shifts are closed under composition:

    (a₁, l₁, u₁) then (a₂, l₂, u₂)  =  (a₁ + a₂,  clamp(l₁ + a₂, l₂, u₂),  clamp(u₁ + a₂, l₂, u₂))

Composition is associative, the identity is (0, −2⁶², 2⁶²), and integers do not round: a million changes fold
in any grouping, on any number of workers, to the same weights. A constant (a start, a rollback, a fitted
vector) is l = u; a change of bounds is (0, low, high); a step of one weight is a shift of 0 for the others.

Two pitfalls. Intersecting the bounds, (max(l₁ + a₂, l₂), min(u₁ + a₂, u₂)), is wrong whenever the two
intervals do not meet: it leaves l > u. And the extremes of int64 as the identity's bounds overflow at the
first addition.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.weights import Nanos

UNBOUNDED = 2**62
"""The bounds of the identity, ±2⁶²: far beyond every weight, and no sum with a shift leaves int64."""

LARGEST_WEIGHT = 2**60
"""Weights and bounds are within ±2⁶⁰ nano-units, above a thousand million units."""

LARGEST_SHIFT = 2 * LARGEST_WEIGHT
"""A change shifts by ±2⁶¹ at most: from one end of the weights to the other."""

SHORT = 16
"""Changes of a segment that are applied one by one sooner than a tree of them is built."""

Integers = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Shifts:
    """Clipped shifts as three int64 arrays of one shape (..., K), in nano-units.

    Attributes:
        shift: a.
        low: l.
        high: u, nowhere below `low`.
    """

    shift: Nanos
    low: Nanos
    high: Nanos

    def __getitem__(self, rows: int | slice | Integers) -> "Shifts":
        """The shifts at these rows of the first axis."""
        return Shifts(self.shift[rows], self.low[rows], self.high[rows])

    def copy(self) -> "Shifts":
        """The same shifts in arrays of their own."""
        return Shifts(self.shift.copy(), self.low.copy(), self.high.copy())

    def put(self, rows: Integers, shifts: "Shifts") -> None:
        """Write shifts at these rows of the first axis, in place."""
        self.shift[rows] = shifts.shift
        self.low[rows] = shifts.low
        self.high[rows] = shifts.high


def identity(shape: int | tuple[int, ...]) -> Shifts:
    """The clipped shift that changes nothing."""
    return Shifts(
        np.zeros(shape, dtype=np.int64),
        np.full(shape, -UNBOUNDED, dtype=np.int64),
        np.full(shape, UNBOUNDED, dtype=np.int64),
    )


def constant(values: ArrayLike) -> Shifts:
    """The clipped shift that gives these values (nano-units, any shape) whatever came before."""
    fixed = np.array(values, dtype=np.int64)
    return Shifts(np.zeros_like(fixed), fixed, fixed)


def compose(first: Shifts, then: Shifts) -> Shifts:
    """One clipped shift that does what `first` and, after it, `then` do; shapes broadcast.

    Of changes with bounds within ±2⁶⁰ and shifts within ±2⁶¹, any number composes exactly. Where l < u, two
    neighbouring weights pass every change unclamped, so the shifts sum to less than 2⁶² in size; where l = u
    the sum may wrap around int64, and says nothing any more.
    """
    return Shifts(
        first.shift + then.shift,
        apply(then, first.low),
        apply(then, first.high),
    )


def apply(shifts: Shifts, weights: Nanos) -> Nanos:
    """clamp(weights + shift, low, high), element by element; shapes broadcast."""
    moved: Nanos = (weights + shifts.shift).clip(shifts.low, shifts.high)
    return moved


def fold(shifts: Shifts, start: Nanos) -> Nanos:
    """Apply shifts (N, K) to start (K,) one after the other: the definition that all else must equal."""
    weights = start
    for row in range(len(shifts.shift)):
        weights = apply(shifts[row], weights)
    return weights


def reduce_segments(shifts: Shifts, lengths: ArrayLike) -> Shifts:
    """Compose each run of consecutive rows into one clipped shift.

    Args:
        shifts: (N, K), the segments one after the other, each in its own order.
        lengths: (T,), the rows of each segment, 0 allowed; their sum is N.

    Returns:
        (T, K); the identity for a segment of length 0.

    Raises:
        ValueError: the lengths are negative or do not sum to N.
    """
    counts, starts = _bounds_of(shifts, lengths)
    tree, _ = _fenwick_tree(shifts, counts, starts)
    total = identity((len(counts), shifts.shift.shape[1]))
    segments = np.flatnonzero(counts)
    total.put(segments, tree[starts[segments] + counts[segments] - 1])
    remaining = counts & (counts - 1)
    while len(segments := np.flatnonzero(remaining)):
        earlier = tree[starts[segments] + remaining[segments] - 1]
        total.put(segments, compose(earlier, total[segments]))
        remaining &= remaining - 1
    return total


def scan_segments(shifts: Shifts, lengths: ArrayLike, start: Nanos) -> Nanos:
    """The weights after each change, for each run of consecutive rows from its own start.

    Args:
        shifts: (N, K), the segments one after the other, each in its own order.
        lengths: (T,), the rows of each segment, 0 allowed; their sum is N.
        start: (T, K), the weights before each segment's first change.

    Returns:
        (N, K): row i is the weights after change i.

    Raises:
        ValueError: the lengths are negative or do not sum to N.
    """
    counts, starts = _bounds_of(shifts, lengths)
    if len(counts) and counts.max() <= SHORT:
        return _scan_short_segments(shifts, counts, starts, start)
    tree, levels = _fenwick_tree(shifts, counts, starts)
    after = np.empty_like(shifts.shift)
    first_rows = np.repeat(starts, counts)
    segments = np.repeat(np.arange(len(counts)), counts)
    for level in reversed(range(len(levels))):
        rows = levels[level]
        earlier = rows - (1 << level)
        begins = earlier < first_rows[rows]
        before = after[earlier]
        before[begins] = start[segments[rows[begins]]]
        after[rows] = apply(tree[rows], before)
    return after


def _scan_short_segments(shifts: Shifts, counts: Integers, starts: Integers, start: Nanos) -> Nanos:
    """`scan_segments` step by step: the first change of each segment, then the second of longer ones."""
    after = np.empty_like(shifts.shift)
    segments = np.flatnonzero(counts)
    weights, place = start[segments], 0
    while len(segments):
        rows = starts[segments] + place
        weights = after[rows] = apply(shifts[rows], weights)
        place += 1
        longer = counts[segments] > place
        segments, weights = segments[longer], weights[longer]
    return after


def _bounds_of(shifts: Shifts, lengths: ArrayLike) -> tuple[Integers, Integers]:
    """How many rows each segment has, and at which row it starts."""
    counts = np.asarray(lengths, dtype=np.intp)
    if (counts < 0).any() or counts.sum() != len(shifts.shift):
        raise ValueError(
            f"the segments' lengths must be ≥ 0 and sum to the {len(shifts.shift)} rows, not {counts.sum()}"
        )
    return counts, np.cumsum(counts) - counts


def _fenwick_tree(shifts: Shifts, counts: Integers, starts: Integers) -> tuple[Shifts, list[Integers]]:
    """A binary indexed tree (Fenwick 1994) over each segment, in the rows themselves.

    Position p = 1, 2, … of a segment holds the composition of its changes in (p − s, p], s being the lowest
    set bit of p. So there are fewer than N compositions, in as many steps as the longest segment has bits.

    Returns:
        The tree (N, K) and, for each bit, the rows whose lowest set bit it is.
    """
    tree = shifts.copy()
    positions = np.arange(1, len(shifts.shift) + 1) - np.repeat(starts, counts)
    rows = np.arange(len(shifts.shift))
    levels: list[Integers] = []
    while len(rows):
        size = 1 << len(levels)
        whole = (positions[rows] & size) == 0
        levels.append(rows[~whole])
        rows = rows[whole]
        tree.put(rows, compose(tree[rows - size], tree[rows]))
    return tree, levels
