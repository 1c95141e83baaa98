"""Neuromodulators: four scalars of a tenant's reward stream that say how much, and how boldly, to learn.

With V and v the running mean and variance of reward, η their rate, and δ = r − V before the event:

    V ← V + ηδ      v ← (1 − η)v + ηδ²
    dopamine      = clamp(0.4 + 0.4·δ, 0.2, 0.8)                              reward-prediction error
    serotonin     = clamp(1 − √v, 0, 1)                                       stability
    noradrenaline = clamp(0.05·max(0, |δ|/√(v_before + 0.01) − 1), 0, 0.1)    unexpected uncertainty
    acetylcholine = clamp(0.1·√v, 0, 0.1)                                     expected uncertainty

Dopamine as reward-prediction error: Schultz, Dayan & Montague, Science 275 (1997). Noradrenaline and
acetylcholine as unexpected and expected uncertainty: Yu & Dayan, Neuron 46 (2005).

Only +, −, ×, ÷ and √ are used, each rounded as IEEE 754 says: the values are the same on every machine and
however the stream is cut into batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from somabrain_dagster.learning.features import Floats

LEVELS = {
    "dopamine": (0.2, 0.8),
    "serotonin": (0.0, 1.0),
    "noradrenaline": (0.0, 0.1),
    "acetylcholine": (0.0, 0.1),
}
"""The neuromodulators, each with its lowest and highest level."""


@dataclass(frozen=True)
class RewardState:
    """What is remembered of a tenant's rewards: V and v, both 0 before the first."""

    mean: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True, eq=False)
class Trace:
    """What each of N rewards did; every array has shape (N,).

    Attributes:
        delta: δ, the reward-prediction error.
        mean: V after the event.
        variance: v after the event.
        dopamine: in [0.2, 0.8].
        serotonin: in [0, 1].
        noradrenaline: in [0, 0.1].
        acetylcholine: in [0, 0.1].
    """

    delta: Floats
    mean: Floats
    variance: Floats
    dopamine: Floats
    serotonin: Floats
    noradrenaline: Floats
    acetylcholine: Floats


def trace(rewards: ArrayLike, state: RewardState, reward_rate: float) -> tuple[Trace, RewardState]:
    """Follow one tenant's rewards.

    Args:
        rewards: (N,), in [-1, 1], in order.
        state: before the first of them.
        reward_rate: η.

    Returns:
        The trace, and the state after the last reward.

    Raises:
        ValueError: a reward is outside [-1, 1].
    """
    values = np.asarray(rewards, dtype=np.float64)
    followed, (after,) = trace_segments(values, [len(values)], [state], reward_rate)
    return followed, after


def trace_segments(
    rewards: ArrayLike, lengths: ArrayLike, states: list[RewardState], reward_rate: float
) -> tuple[Trace, list[RewardState]]:
    """Follow the rewards of several tenants, each a run of consecutive rows.

    Args:
        rewards: (N,), in [-1, 1]; the tenants one after the other, each in its own order.
        lengths: (T,), how many rewards each tenant has, 0 allowed; their sum is N.
        states: each tenant's, before its first reward.
        reward_rate: η.

    Returns:
        The trace of all rows, and each tenant's state after its last reward.

    Raises:
        ValueError: a reward is outside [-1, 1], or the lengths do not sum to N.
    """
    values = np.asarray(rewards, dtype=np.float64)
    counts = np.asarray(lengths, dtype=np.intp)
    if not (np.abs(values) <= 1).all():
        raise ValueError("a reward must be from -1 to 1")
    if counts.sum() != len(values):
        raise ValueError(f"the tenants' lengths must sum to the {len(values)} rewards, not {counts.sum()}")

    stream = iter(values.tolist())
    deltas: list[float] = []
    means: list[float] = []
    variances: list[float] = []
    variances_before: list[float] = []
    after: list[RewardState] = []
    for count, state in zip(counts.tolist(), states, strict=True):
        mean, variance = state.mean, state.variance
        for _ in range(count):
            delta = next(stream) - mean
            variances_before.append(variance)
            mean = mean + reward_rate * delta
            variance = (1.0 - reward_rate) * variance + reward_rate * (delta * delta)
            deltas.append(delta)
            means.append(mean)
            variances.append(variance)
        after.append(RewardState(mean, variance))

    followed = _levels(
        *(np.array(each, dtype=np.float64) for each in (deltas, means, variances, variances_before))
    )
    return followed, after


def trace_steps(rewards: Floats, means: Floats, variances: Floats, reward_rate: float) -> Trace:
    """One step from each of many states; to the last bit what `trace_segments` makes of runs of one reward.

    Args:
        rewards: (N,), in [-1, 1].
        means: (N,), V before each of them.
        variances: (N,), v before each of them.
        reward_rate: η.
    """
    delta = rewards - means
    return _levels(
        delta,
        means + reward_rate * delta,
        (1.0 - reward_rate) * variances + reward_rate * (delta * delta),
        variances,
    )


def _levels(delta: Floats, mean: Floats, variance: Floats, variance_before: Floats) -> Trace:
    deviation = np.sqrt(variance)
    surprise = np.abs(delta) / np.sqrt(variance_before + 0.01)
    return Trace(
        delta=delta,
        mean=mean,
        variance=variance,
        dopamine=(0.4 + 0.4 * delta).clip(0.2, 0.8),
        serotonin=(1.0 - deviation).clip(0.0, 1.0),
        noradrenaline=(0.05 * np.maximum(0.0, surprise - 1.0)).clip(0.0, 0.1),
        acetylcholine=(0.1 * deviation).clip(0.0, 0.1),
    )


def hold(followed: Trace, levels: Mapping[str, float]) -> Trace:
    """A trace in which some levels were held by hand, whatever the rewards; δ, V and v still follow those.

    Args:
        followed: as the rewards alone would have it.
        levels: the held ones, by name.
    """
    return replace(followed, **{name: np.full_like(followed.delta, level) for name, level in levels.items()})


def effective_temperature(tau: float, noradrenaline: float) -> float:
    """τ·(1 − noradrenaline): surprise sharpens recall."""
    return tau * (1.0 - noradrenaline)


def effective_alpha(alpha: float, acetylcholine: float) -> float:
    """α·(1 + acetylcholine): expected uncertainty leans recall on meaning."""
    return alpha * (1.0 + acetylcholine)
