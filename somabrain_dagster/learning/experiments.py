"""Experiments: which arm a session sees, for how long, and what the outcome allows.

The unit of assignment and of analysis is the session, one number a session: what happens within one is
correlated, and would be counted as if it were not.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isclose


@dataclass(frozen=True)
class Arm:
    """A name, and the share of units in (0, 1] that see it."""

    name: str
    share: float


def position(salt: str, unit: str) -> float:
    """Where a unit stands in [0, 1]: the first eight bytes of SHA-256 of "salt:unit", over 2⁶⁴."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{unit}".encode()).digest()[:8], "big") / 2**64


def assign(salt: str, unit: str, arms: Sequence[Arm]) -> str:
    """The name of the unit's arm: the first one whose cumulative share is above the unit's position.

    It depends on nothing but the arguments. An arm whose share grows at the cost of its neighbours keeps every
    unit that it had; the order of the arms is part of the experiment.

    Args:
        salt: of the experiment, so that experiments assign independently of each other.
        unit: what is assigned, as in "tenant/session".
        arms: their shares add up to 1.

    Raises:
        ValueError: a share is not positive, a name is used twice, or the shares do not add up to 1.
    """
    check(arms)
    # The last arm takes what is left: shares such as .1 + .2 + .7 fall short of 1 by rounding.
    boundaries = list(accumulate(arm.share for arm in arms))[:-1]
    return arms[bisect_right(boundaries, position(salt, unit))].name


def check(arms: Sequence[Arm]) -> None:
    """Refuse arms to which nothing could be assigned.

    Raises:
        ValueError: a share is not positive, a name is used twice, or the shares do not add up to 1.
    """
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError("each arm needs a name of its own")
    if not all(arm.share > 0 for arm in arms) or not isclose(sum(arm.share for arm in arms), 1, abs_tol=1e-9):
        raise ValueError(
            f"the shares of arms must be positive and add up to 1, not {[a.share for a in arms]}"
        )
