"""The guard that rolls a tenant back: rewards that fall too far to be chance, while its weights moved.

With m₂₀ and s₂₀² the mean and variance of the last 20 rewards, and m₁₀₀ and s₁₀₀² those of the 100 before
them, it trips when

    m₂₀ < m₁₀₀ − 4·√(s₂₀²/20 + s₁₀₀²/100)

(Welch's standard error, variances with n − 1; the numbers are configuration). Rewards are counted in whole
micro-units, so that sums and sums of squares are exact and a decision cannot depend on how events were
batched. Whether the weights moved, and what to roll back to, the caller knows.
"""

from collections.abc import Sequence
from math import copysign, inf, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.configuration import GuardConfiguration
from somabrain_dagster.learning.features import Floats

Micros = NDArray[np.int64]

MICRO = 1_000_000
"""Micro-units in one unit of reward."""


def to_micros(rewards: ArrayLike) -> Micros:
    """Rewards in [-1, 1], rounded to whole micro-units, half to even.

    Raises:
        ValueError: a reward is outside [-1, 1].
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not (np.abs(values) <= 1).all():
        raise ValueError("a reward must be from -1 to 1")
    return np.rint(values * MICRO).astype(np.int64)


def first_trip(history: Micros, rewards: Micros, configuration: GuardConfiguration) -> int | None:
    """The position in `rewards` of the first event at which the guard trips.

    After a rollback the next call begins with an empty history: the window that tripped speaks of weights
    that are gone, and would trip again at the next event.

    Args:
        history: the rewards before, oldest first, as `remembered` gave them; more than that changes nothing.
        rewards: (N,), the new ones.
        configuration: the windows, and how many standard errors are too many.

    Returns:
        The position, or None where it does not trip. It never does before both windows are full.
    """
    return first_trips([history], rewards, [len(rewards)], configuration)[0]


def first_trips(
    histories: Sequence[Micros], rewards: Micros, lengths: Sequence[int], configuration: GuardConfiguration
) -> list[int | None]:
    """`first_trip` of T tenants at once.

    Args:
        histories: (T,), of each tenant.
        rewards: (N,), one tenant after the other.
        lengths: (T,), how many of them each tenant has.
        configuration: the windows, and how many standard errors are too many.

    Returns:
        (T,), each a position among the tenant's own rewards.
    """
    tripped: list[int | None] = [None] * len(histories)
    if not configuration.enabled:
        return tripped
    parts: list[Micros] = []
    decisions: list[int] = []
    ends: list[int] = []
    first = end = 0
    for history, length in zip(histories, lengths, strict=True):
        kept = history[-(configuration.window - 1) :]
        parts += (kept, rewards[first : first + length])
        first += length
        end += len(kept) + length
        decisions.append(max(len(kept) + length - configuration.window + 1, 0))
        ends.append(end)
    if not any(decisions):
        return tripped
    counts = np.array(decisions)
    upto = counts.cumsum()
    stream = np.concatenate(parts)
    totals = np.concatenate(([0], np.cumsum(stream)))
    squares = np.concatenate(([0], np.cumsum(stream * stream)))
    last = np.arange(1, upto[-1] + 1) + np.repeat(np.array(ends) - upto, counts)
    middle = last - configuration.recent
    begin = last - configuration.window
    recent, recent_error = _mean(
        totals[last] - totals[middle], squares[last] - squares[middle], configuration.recent
    )
    before, before_error = _mean(
        totals[middle] - totals[begin], squares[middle] - squares[begin], configuration.before
    )
    trips = np.flatnonzero(
        recent < before - configuration.standard_errors * np.sqrt(recent_error + before_error)
    )
    for trip in trips[::-1].tolist():
        tenant = int(np.searchsorted(upto, trip, side="right"))
        tripped[tenant] = trip - int(upto[tenant]) + lengths[tenant]
    return tripped


def fall(history: Micros, configuration: GuardConfiguration) -> float | None:
    """By how many standard errors the last rewards of a history are below those before them; negative above.

    It is the number that the guard compares with its limit, on what the guard remembers. Where neither window
    varies it is 0 or infinite.

    Args:
        history: as `remembered` gave it.
        configuration: the windows.

    Returns:
        The number; None until as many rewards are before the last ones as these are.
    """
    recent, before = history[-configuration.recent :], history[: -configuration.recent]
    if len(before) < configuration.recent:
        return None
    (low, low_error), (high, high_error) = (
        _mean(window.sum(), (window * window).sum(), len(window)) for window in (recent, before)
    )
    difference, error = float(high - low), sqrt(low_error + high_error)
    return difference / error if error else copysign(inf, difference) if difference else 0.0


def remembered(history: Micros, rewards: Micros, configuration: GuardConfiguration) -> Micros:
    """The history to keep after these rewards: the last, one fewer than a decision looks at, oldest first."""
    return np.concatenate((history, rewards))[-(configuration.window - 1) :]


def _mean(total: Micros, square: Micros, count: int) -> tuple[Floats, Floats]:
    """The mean of `count` numbers and its squared standard error, from their exact sum and sum of squares."""
    return total / count, (count * square - total * total) / (count * count * (count - 1))
