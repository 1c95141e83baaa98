"""What the scalar rule makes of utilities, in plain Python: another way to the product's own answer."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from somabrain_dagster.learning.weights import WEIGHTS
from tests.brain import CONFIGURATION

RECENT, BEFORE = CONFIGURATION.guard.recent, CONFIGURATION.guard.before
WINDOW = RECENT + BEFORE


def folded(utilities: Sequence[float]) -> tuple[list[list[int]], list[int]]:
    """Each utility an event that names no memory, of a tenant at its configured start.

    Args:
        utilities: multiples of some 2⁻ᵏ, or so uneven that the guard's decision does not hang on a rounding.

    Returns:
        The weights after each event, in nano-units, the start first; and after which events the guard gave
        back the weights of before its last rewards, counted from 1.
    """
    low, high = ([round(getattr(weight, bound) * 10**9) for weight in WEIGHTS] for bound in ("low", "high"))
    path = [[round(weight.start * 10**9) for weight in WEIGHTS]]
    trips, since, falls = [], 0, _falls(utilities)
    for number, utility in enumerate(utilities, start=1):
        path.append(
            [
                max(low[k], min(weight + round(0.05 * WEIGHTS[k].scalar_gain * utility * 10**9), high[k]))
                for k, weight in enumerate(path[-1])
            ]
        )
        # Weights that did not move are not to blame, and the window goes on.
        if number in falls and number - since >= WINDOW and path[-1] != path[-1 - RECENT]:
            path[-1] = path[-1 - RECENT]
            trips.append(number)
            since = number
    return path, trips


def largest_step(name: str) -> int:
    """By how much one event can move a weight, in nano-units."""
    (gain,) = (abs(weight.scalar_gain) for weight in WEIGHTS if weight.name == name)
    return round(0.05 * gain * 10**9)


def _falls(rewards: Sequence[float]) -> set[int]:
    """After how many rewards the last 20 are 4 standard errors below the 100 before."""
    if len(rewards) < WINDOW:
        return set()
    windows = sliding_window_view(np.array(rewards), WINDOW)
    before, recent = windows[:, :BEFORE], windows[:, BEFORE:]
    error = np.sqrt(before.var(axis=1, ddof=1) / BEFORE + recent.var(axis=1, ddof=1) / RECENT)
    return set((np.flatnonzero(recent.mean(axis=1) < before.mean(axis=1) - 4 * error) + WINDOW).tolist())
