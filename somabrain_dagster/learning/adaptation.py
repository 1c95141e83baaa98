"""The two rules by which feedback changes weights, as clipped shifts on the grid of nano-units.

    w_k ← clamp(w_k + lr_eff · gain_k · signal_k, low_k, high_k)

Feedback that names memories moves each retrieval weight by the feature's credit: the mean over the named
memories of credit · (z_c − E_p z), which is τ times the score-function gradient of the logged policy p
(Williams, Machine Learning 8, 1992). Feedback that names none moves them by its utility. Either way the
utility weights λ μ ν follow the reward.

A shift is rint(((lr_eff · gain_k) · signal_k) · 10⁹), multiplied in this order and rounded once, half to
even: one event alone and a million at once give the same integers.
"""

import numpy as np
from numpy.typing import ArrayLike

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.shifts import LARGEST_SHIFT
from somabrain_dagster.learning.weights import NANO, RETRIEVAL, TAU, UTILITY, WEIGHTS, Nanos


def effective_rate(configuration: LearningConfiguration, dopamine: ArrayLike) -> Floats:
    """The learning rate of each event, the shape of `dopamine`.

    lr · clamp(0.5 + dopamine, 0.5, 1.2) where the configuration asks for a dynamic rate, else lr.
    """
    levels = np.asarray(dopamine, dtype=np.float64)
    if configuration.dynamic_learning_rate:
        return configuration.base_learning_rate * (0.5 + levels).clip(0.5, 1.2)
    return np.full_like(levels, configuration.base_learning_rate)


def scalar_shifts(
    configuration: LearningConfiguration, utility: ArrayLike, reward: ArrayLike, rate: ArrayLike
) -> Nanos:
    """The shifts of feedback that names no memory.

    Args:
        configuration: gives the gains (`scalar_gain`) and the bounds.
        utility: (N,), the signal of α β γ δ ε ζ τ.
        reward: (N,), the signal of λ μ ν.
        rate: (N,), the learning rate of each event.

    Returns:
        (N, K), nano-units, each within ±(high − low).

    Raises:
        ValueError: a signal or a rate is not finite.
    """
    rewards = np.asarray(reward, dtype=np.float64)
    signals = np.empty((len(rewards), len(WEIGHTS)))
    signals[:, : UTILITY.start] = np.asarray(utility, dtype=np.float64)[:, None]
    signals[:, UTILITY] = rewards[:, None]
    return _shifts(configuration, configuration.scalar_gains, signals, rate)


def credit_shifts(
    configuration: LearningConfiguration, signals: Floats, reward: ArrayLike, rate: ArrayLike
) -> Nanos:
    """The shifts of feedback that names memories.

    Args:
        configuration: gives the gains (`credit_gain`) and the bounds.
        signals: (N, F), the credit of each feature; τ has none and stays.
        reward: (N,), the signal of λ μ ν.
        rate: (N,), the learning rate of each event.

    Returns:
        (N, K), nano-units, each within ±(high − low).

    Raises:
        ValueError: a signal or a rate is not finite.
    """
    rewards = np.asarray(reward, dtype=np.float64)
    all_signals = np.empty((len(rewards), len(WEIGHTS)))
    all_signals[:, RETRIEVAL] = signals
    all_signals[:, TAU] = 0.0
    all_signals[:, UTILITY] = rewards[:, None]
    return _shifts(configuration, configuration.credit_gains, all_signals, rate)


def credit_signal(features: Floats, expected: Floats, positions: ArrayLike, credits_: ArrayLike) -> Floats:
    """The credit of each feature from one event: the mean of credit · (z_c − E_p z).

    Args:
        features: z, (n, F), the logged features of the recall's candidates.
        expected: E_p z, (F,), as logged.
        positions: (m,), which candidates are named, m ≥ 1.
        credits_: (m,), in [-1, 1], how much each helped.

    Returns:
        (F,).

    Raises:
        ValueError: no memory is named, a position is outside the candidates, or a credit outside [-1, 1].
    """
    named = np.asarray(positions, dtype=np.intp)
    if ((named < 0) | (named >= len(features))).any():
        raise ValueError(f"a position must be one of the {len(features)} candidates, from 0")
    signal: Floats = credit_signals(features[named], credits_, expected[None, :], [len(named)])[0]
    return signal


def credit_signals(named: Floats, credits_: ArrayLike, expected: Floats, lengths: ArrayLike) -> Floats:
    """`credit_signal` of N events at once, equal to the last bit to one at a time.

    The terms of an event are added in the order in which its memories are named, then divided by how many.

    Args:
        named: (M, F), the logged features of the named memories, the events one after the other.
        credits_: (M,), in [-1, 1].
        expected: E_p z, (N, F), as logged for each event's recall.
        lengths: (N,), how many memories each event names, ≥ 1; their sum is M.

    Returns:
        (N, F).

    Raises:
        ValueError: an event names no memory, a credit is outside [-1, 1], or the lengths do not sum to M.
    """
    counts = np.asarray(lengths, dtype=np.intp)
    weights = np.asarray(credits_, dtype=np.float64)
    if (counts < 1).any():
        raise ValueError("feedback that credits memories must name at least one")
    if counts.sum() != len(named):
        raise ValueError(f"the events' lengths must sum to the {len(named)} memories, not {counts.sum()}")
    if weights.shape != (len(named),) or not (np.abs(weights) <= 1).all():
        raise ValueError("each named memory needs one credit from -1 to 1")

    terms = weights[:, None] * (named - np.repeat(expected, counts, axis=0))
    starts = np.cumsum(counts) - counts
    total = np.zeros_like(expected, dtype=np.float64)
    events = np.arange(len(counts))
    place = 0
    while len(events):
        total[events] += terms[starts[events] + place]
        place += 1
        events = events[counts[events] > place]
    return total / counts[:, None]


def _shifts(configuration: LearningConfiguration, gains: Floats, signals: Floats, rate: ArrayLike) -> Nanos:
    """Multiply, round and clip, in the one order that the module states.

    A shift beyond ±(high − low) is clipped to it: from anywhere inside the bounds both reach the same bound.
    """
    rates = np.asarray(rate, dtype=np.float64)
    if not (np.isfinite(signals).all() and np.isfinite(rates).all()):
        raise ValueError("signals and learning rates must be finite")
    with np.errstate(over="ignore"):  # too large for a float is too large for the bounds: clipped below
        rounded = np.rint((rates[:, None] * gains) * signals * NANO)
    span = configuration.high_nanos - configuration.low_nanos
    clipped: Nanos = rounded.clip(-LARGEST_SHIFT, LARGEST_SHIFT).astype(np.int64).clip(-span, span)
    return clipped
