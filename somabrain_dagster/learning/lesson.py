"""What a batch of feedback teaches: the changes of weights of several tenants, in the order of their logs.

The result depends on each tenant's own events and their order alone, not on how they were batched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.adaptation import credit_shifts, effective_rate, scalar_shifts
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.guard import Micros, first_trip, first_trips, remembered, to_micros
from somabrain_dagster.learning.neuromodulators import RewardState, Trace, hold, trace_segments
from somabrain_dagster.learning.shifts import Shifts, constant, scan_segments
from somabrain_dagster.learning.weights import Nanos

Integers = NDArray[np.intp]

FEEDBACK = "feedback"
CONFIGURATION = "configuration"
AUTO_ROLLBACK = "auto_rollback"

OlderWeights = Callable[[int, int], tuple[int, Nanos]]
"""(tenant's position, how many events before the batch) → version and weights just before that event."""


@dataclass(frozen=True, eq=False)
class Learner:
    """A tenant before the batch.

    Attributes:
        version: of its weights.
        weights: nano-units, (K,).
        rewards: the running mean and variance of its rewards.
        recent_rewards: micro-units, oldest first.
        configured: its last change was made under the same configuration; if not, the new bounds are a change
            of weights too, before the first event.
    """

    version: int
    weights: Nanos
    rewards: RewardState
    recent_rewards: Micros
    configured: bool


@dataclass(frozen=True, eq=False)
class Experience:
    """The events of T tenants, one tenant after the other, each in its own order.

    Attributes:
        lengths: (T,), how many events each tenant has.
        utility, reward: (N,), in [−1, 1].
        named: (N,), whether the event names memories.
        signals: (N, F), the credit of each feature; read only where `named`.
    """

    lengths: Integers
    utility: Floats
    reward: Floats
    named: NDArray[np.bool_]
    signals: Floats


@dataclass(eq=False)
class Lesson:
    """The changes of T tenants, one tenant after the other, each in the order of its log.

    Attributes:
        trace: (N,) the neuromodulators of each event.
        rewards: (T,) each tenant's running mean and variance after its events.
        recent_rewards: (T,) what its guard remembers.
        lengths: (T,) how many changes each tenant has.
        causes: (R,) FEEDBACK, CONFIGURATION or AUTO_ROLLBACK.
        events: (R,) the event that the change answers, −1 for none.
        versions: (R,)
        restored: (R,) the version that a rollback gave back, −1 for none.
        shifts: (R, K), each with the bounds that it clips to.
        after: (R, K) the weights after each change, nano-units.
    """

    trace: Trace
    rewards: list[RewardState]
    recent_rewards: list[Micros]
    lengths: Integers
    causes: list[str]
    events: Integers
    versions: Integers
    restored: Integers
    shifts: Shifts
    after: Nanos


def event_shifts(configuration: LearningConfiguration, experience: Experience, dopamine: Floats) -> Nanos:
    """The shift that each event makes under the rule that applies to it, (N, K) nano-units.

    This is the rule itself: what landed by it is derived again from it.
    """
    rate = effective_rate(configuration, dopamine)
    shifts = scalar_shifts(configuration, experience.utility, experience.reward, rate)
    if (named := experience.named).any():
        shifts[named] = credit_shifts(
            configuration, experience.signals[named], experience.reward[named], rate[named]
        )
    return shifts


def learn(
    configuration: LearningConfiguration,
    learners: Sequence[Learner],
    experience: Experience,
    older_weights: OlderWeights,
) -> Lesson:
    """Turn events into changes of weights.

    Args:
        configuration: in force for all of these tenants.
        learners: (T,), the tenants before their first event.
        experience: their events.
        older_weights: looks further back than the batch, for a rollback that reaches there.
    """
    trace, rewards = trace_segments(
        experience.reward,
        experience.lengths,
        [learner.rewards for learner in learners],
        configuration.reward_rate,
    )
    trace = hold(trace, configuration.neuromodulators)
    shift = event_shifts(configuration, experience, trace.dopamine)
    lesson = _fold(configuration, learners, experience.lengths, shift, trace, rewards)
    _roll_back(configuration, learners, experience, lesson, older_weights)
    return lesson


def _fold(
    configuration: LearningConfiguration,
    learners: Sequence[Learner],
    event_lengths: Integers,
    shift: Nanos,
    trace: Trace,
    rewards: list[RewardState],
) -> Lesson:
    """The changes of the events, after a change of bounds where a tenant's configuration is new."""
    reconfigured = np.array([not learner.configured for learner in learners], dtype=np.intp)
    lengths = event_lengths + reconfigured
    first_rows = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    events = np.full(total, -1, dtype=np.intp)
    answers = np.ones(total, dtype=np.bool_)
    answers[first_rows[reconfigured > 0]] = False
    events[answers] = np.arange(len(shift))
    shifts = Shifts(
        np.zeros((total, shift.shape[1]), dtype=np.int64),
        np.tile(configuration.low_nanos, (total, 1)),
        np.tile(configuration.high_nanos, (total, 1)),
    )
    shifts.shift[answers] = shift
    lesson = Lesson(
        trace=trace,
        rewards=rewards,
        recent_rewards=[learner.recent_rewards for learner in learners],
        lengths=lengths,
        causes=[FEEDBACK if answer else CONFIGURATION for answer in answers.tolist()],
        events=events,
        versions=np.empty(0, dtype=np.intp),
        restored=np.full(total, -1, dtype=np.intp),
        shifts=shifts,
        after=np.empty_like(shifts.shift),
    )
    _settle(lesson, learners)
    return lesson


def _settle(lesson: Lesson, learners: Sequence[Learner]) -> None:
    """Number the changes and compute the weights after each."""
    first_rows = np.cumsum(lesson.lengths) - lesson.lengths
    before = np.array([learner.version for learner in learners], dtype=np.intp)
    lesson.versions = np.arange(1, len(lesson.events) + 1) + np.repeat(before - first_rows, lesson.lengths)
    lesson.after = scan_segments(
        lesson.shifts, lesson.lengths, np.array([learner.weights for learner in learners])
    )


def _roll_back(
    configuration: LearningConfiguration,
    learners: Sequence[Learner],
    experience: Experience,
    lesson: Lesson,
    older_weights: OlderWeights,
) -> None:
    """Insert a rollback behind each event at which a tenant's guard trips while its weights moved.

    A guard that is off remembers too, so that one that is turned on again knows rewards without a hole.
    """
    guard = configuration.guard
    micros = to_micros(experience.reward)
    lengths: list[int] = experience.lengths.tolist()
    trips = first_trips([learner.recent_rewards for learner in learners], micros, lengths, guard)
    for tenant, (learner, trip, end) in enumerate(zip(learners, trips, accumulate(lengths), strict=True)):
        history = learner.recent_rewards
        first = begin = end - lengths[tenant]
        while trip is not None:
            event = begin + trip
            row = int(np.flatnonzero(lesson.events == event)[0])
            oldest = event - guard.recent + 1
            if oldest < first:
                version, weights = older_weights(tenant, first - oldest)
            else:
                changed = int(np.flatnonzero(lesson.events == oldest)[0])
                version = int(lesson.versions[changed]) - 1
                weights = learner.weights if version == learner.version else lesson.after[changed - 1]
            weights = np.clip(weights, configuration.low_nanos, configuration.high_nanos)
            if np.array_equal(weights, lesson.after[row]):
                history = remembered(history, micros[begin : event + 1], guard)
            else:
                _insert(lesson, row + 1, tenant, constant(weights), version)
                _settle(lesson, learners)
                history = micros[:0]
            begin = event + 1
            trip = first_trip(history, micros[begin:end], guard)
        lesson.recent_rewards[tenant] = remembered(history, micros[begin:end], guard)


def _insert(lesson: Lesson, row: int, tenant: int, restored: Shifts, version: int) -> None:
    lesson.lengths = lesson.lengths.copy()
    lesson.lengths[tenant] += 1
    lesson.causes.insert(row, AUTO_ROLLBACK)
    lesson.events = np.insert(lesson.events, row, -1)
    lesson.restored = np.insert(lesson.restored, row, version)
    lesson.shifts = Shifts(
        np.insert(lesson.shifts.shift, row, restored.shift, axis=0),
        np.insert(lesson.shifts.low, row, restored.low, axis=0),
        np.insert(lesson.shifts.high, row, restored.high, axis=0),
    )
