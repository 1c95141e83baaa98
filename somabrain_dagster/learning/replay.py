"""Replay: a whole log of weight changes, checked and folded again from version 0.

Every row says what it did (`shift`, `low`, `high`) and what came of it (`after`). So each row can be checked
against the row before it, and the composition of all of them gives the present weights once more, by another
path. Both are comparisons of integers: equal or not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.shifts import LARGEST_SHIFT, UNBOUNDED, Shifts, apply, reduce_segments
from somabrain_dagster.learning.weights import Nanos

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Log:
    """T tenants' changes, N in all, sorted by tenant and version.

    Attributes:
        lengths: (T,), how many changes each tenant has, ≥ 1; their sum is N.
        versions: (N,), 0, 1, 2, … for each tenant.
        shifts: (N, K), what each change did; version 0 is a constant.
        after: (N, K), the weights after each change, nano-units.
    """

    lengths: Rows
    versions: NDArray[np.int64]
    shifts: Shifts
    after: Nanos


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


def replay(log: Log) -> Replay:
    """Check every row of the log, and fold it.

    Raises:
        ValueError: a tenant has no change, or the arrays do not fit together.
    """
    count = len(log.versions)
    if len(log.after) != count or len(log.shifts.shift) != count:
        raise ValueError("versions, shifts and after must have one row for each change")
    if (log.lengths < 1).any():
        raise ValueError("every tenant's log must begin with version 0")
    weights = apply(reduce_segments(log.shifts, log.lengths), np.zeros_like(log.after[:1]))

    first = np.cumsum(log.lengths) - log.lengths
    due = np.arange(count) - np.repeat(first, log.lengths)
    undue = np.flatnonzero(log.versions != due)
    _, firsts = np.unique(np.searchsorted(first, undue, side="right"), return_index=True)

    before = np.empty_like(log.after)
    before[1:] = log.after[:-1]
    before[first] = log.shifts.low[first]
    low, high = log.shifts.low, log.shifts.high
    is_wrong = log.after != apply(log.shifts, before)
    is_wrong |= (low > high) | (low < -UNBOUNDED) | (high > UNBOUNDED)
    is_wrong |= (log.shifts.shift < -LARGEST_SHIFT) | (log.shifts.shift > LARGEST_SHIFT)
    is_wrong[first] |= low[first] != high[first]
    return Replay(weights, gaps=undue[firsts], wrong=np.flatnonzero(is_wrong.any(axis=1)))
