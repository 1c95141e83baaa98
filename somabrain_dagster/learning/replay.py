"""Replay: a whole log of weight changes, checked and folded again from version 0.

Every row says what it did (`shift`, `low`, `high`) and what came of it (`after`). So each row can be checked
against the row before it, and the composition of all of them gives the present weights once more, by another
path. Both are comparisons of integers: equal or not.

A log may come in blocks of consecutive rows, cut anywhere. What a block does to a tenant is one clipped
shift, and such shifts compose: a replay holds one block and a row of numbers a tenant, however long the log
is.
"""

from collections.abc import Sequence
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
        lengths: (T,), how many changes each tenant has, ≥ 1 (in a block ≥ 0); their sum is N.
        versions: (N,), 0, 1, 2, … for each tenant.
        shifts: (N, K), what each change did; version 0 is a constant.
        after: (N, K), the weights after each change, nano-units.
    """

    lengths: Rows
    versions: NDArray[np.int64]
    shifts: Shifts
    after: Nanos


def joined(blocks: Sequence[Log]) -> Log:
    """The log that these blocks are, one after the other; at least one."""
    return Log(
        lengths=np.sum([block.lengths for block in blocks], axis=0),
        versions=np.concatenate([block.versions for block in blocks]),
        shifts=Shifts(
            shift=np.concatenate([block.shifts.shift for block in blocks]),
            low=np.concatenate([block.shifts.low for block in blocks]),
            high=np.concatenate([block.shifts.high for block in blocks]),
        ),
        after=np.concatenate([block.after for block in blocks]),
    )


@dataclass(frozen=True, eq=False)
class Replay:
    """What a log amounts to, and where it is wrong; rows are positions in the log.

    Attributes:
        weights: (T, K), each tenant's weights by folding the stored shifts alone. They mean nothing for a
            tenant whose log is wrong.
        gaps: for each tenant that has one, the first row whose version is not the one due.
        wrong: every row whose `after` is not clamp(before + shift, low, high), `before` being the `after` of
            the row before; whose bounds are reversed; or whose numbers are beyond any that a clipped shift
            can have. And every first row that is not a constant.
    """

    weights: Nanos
    gaps: Rows
    wrong: Rows

    @property
    def sound(self) -> bool:
        """The log has no gap and no wrong row."""
        return not len(self.gaps) and not len(self.wrong)


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
        """(T, K), the fold of the stored shifts so far."""
        return apply(self._folded, np.zeros_like(self._after))

    def add(self, block: Log) -> tuple[Rows, Rows]:
        """Check a block and fold it; its `gaps` and `wrong` as `Replay` has them, as rows of the block.

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


def replay(log: Log) -> Replay:
    """Check every row of the log, and fold it.

    Raises:
        ValueError: a tenant has no change, or the arrays do not fit together.
    """
    if (log.lengths < 1).any():
        raise ValueError("every tenant's log must begin with version 0")
    replaying = Replaying(len(log.lengths), log.after.shape[1])
    gaps, wrong = replaying.add(log)
    return Replay(replaying.weights, gaps, wrong)
