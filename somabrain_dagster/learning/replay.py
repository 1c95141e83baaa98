"""Replay: a whole log of weight changes, checked and folded again from version 0.

Every row says what it did (`shift`, `low`, `high`) and what came of it (`after`). So each row can be checked
against the row before it, and the composition of all of them gives the present weights once more, by another
path. Both are comparisons of integers: equal or not.

A log may come in blocks of consecutive rows, cut anywhere. What a block does to a tenant is one clipped
shift, and such shifts compose: a replay holds one block and a row of numbers a tenant, however long the log
is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.shifts import (
    LARGEST_SHIFT,
    UNBOUNDED,
    Shifts,
    apply,
    compose,
    identity,
    reduce_segments,
)
from somabrain_dagster.learning.weights import Nanos

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Log:
    """T tenants' changes, N in all, sorted by tenant and version; or a block of consecutive ones.

    Attributes:
        lengths: (T,), how many of the changes are each tenant's; their sum is N.
        versions: (N,), 0, 1, 2, … for each tenant.
        shifts: (N, K), what each change did; version 0 is a constant.
        after: (N, K), the weights after each change, nano-units.
    """

    lengths: Rows
    versions: NDArray[np.int64]
    shifts: Shifts
    after: Nanos

    def blocks(self, rows: int) -> Iterator["Log"]:
        """The same in blocks of so many rows, the last of fewer."""
        ends = np.cumsum(self.lengths)
        for begin in range(0, len(self.versions), rows):
            block = slice(begin, begin + rows)
            lengths = lengths_between(ends, begin, begin + rows)
            yield Log(lengths, self.versions[block], self.shifts[block], self.after[block])


def lengths_between(ends: Rows, begin: int, end: int) -> Rows:
    """(T,), how many of the rows from `begin` to before `end` are each tenant's, whose own end at `ends`."""
    return np.diff(ends.clip(begin, end), prepend=begin)


class Replaying:
    """A replay that is given its log in blocks.

    Attributes:
        lengths: (T,), how many changes each tenant has had so far.
    """

    def __init__(self, tenants: int, width: int) -> None:
        """Begin with no change of T tenants, whose weights are `width` numbers."""
        self.lengths: Rows = np.zeros(tenants, dtype=np.intp)
        self._folded = identity((tenants, width))
        self._after = np.zeros((tenants, width), dtype=np.int64)
        self._gapped = np.zeros(tenants, dtype=np.bool_)

    @property
    def weights(self) -> Nanos:
        """(T, K), the fold of the stored shifts alone; it means nothing for a tenant whose log is wrong."""
        return apply(self._folded, np.zeros_like(self._after))

    def add(self, block: Log) -> tuple[Rows, Rows]:
        """Check every row of the next block, and fold it.

        Returns:
            For each tenant that has one, the first row of all whose version is not the one due. And every
            row that is wrong: whose `after` is not clamp(before + shift, low, high), `before` being the
            `after` of the row before; whose bounds are reversed; or whose numbers are beyond any that a
            clipped shift can have; and every first row that is not a constant. Both are positions in the
            block.

        Raises:
            ValueError: the arrays do not fit together.
        """
        count = len(block.versions)
        if len(block.after) != count or len(block.shifts.shift) != count:
            raise ValueError("versions, shifts and after must have one row for each change")
        here = np.flatnonzero(block.lengths)
        lengths, earlier = block.lengths[here], self.lengths[here]
        ends = np.cumsum(lengths)
        first = ends - lengths
        begins = first[earlier == 0]
        low, high, shift = block.shifts.low, block.shifts.high, block.shifts.shift

        due = np.arange(count) - np.repeat(first - earlier, lengths)
        undue = np.flatnonzero(block.versions != due)
        owners, firsts = np.unique(np.searchsorted(ends, undue, side="right"), return_index=True)
        gaps = undue[firsts[~self._gapped[here[owners]]]]
        self._gapped[here[owners]] = True

        before = np.empty_like(block.after)
        before[1:] = block.after[:-1]
        before[first] = self._after[here]
        before[begins] = low[begins]
        is_wrong = block.after != apply(block.shifts, before)
        is_wrong |= (low > high) | (low < -UNBOUNDED) | (high > UNBOUNDED)
        is_wrong |= (shift < -LARGEST_SHIFT) | (shift > LARGEST_SHIFT)
        is_wrong[begins] |= low[begins] != high[begins]

        self._folded.put(here, compose(self._folded[here], reduce_segments(block.shifts, lengths)))
        self._after[here] = block.after[ends - 1]
        self.lengths[here] += lengths
        return gaps, np.flatnonzero(is_wrong.any(axis=1))
