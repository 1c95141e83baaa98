"""Does a policy recall better? Measures of ranking where the right answer is known, and paired intervals.

All policies weigh the same candidates of the same questions, so they are compared question by question. A
question whose answer was no candidate is a miss for every policy: its rank is infinite.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices, Integers
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.policy import scores

NOT_THERE = -1
"""In place of the answer's position where recall did not weigh it."""

METRICS = ("top1", "r5", "r10", "mrr", "margin")
"""What is measured of rankings: the share of questions whose answer is first, among the first 5 and the first
10, the mean of 1/rank, and the mean of the best score minus the second best, in the policy's own unit."""

TOGETHER = 100
"""Replicates of a bootstrap that are drawn at a time."""


@dataclass(frozen=True, eq=False)
class Questions:
    """N questions with M candidates in all.

    Attributes:
        features: scaled features z of the candidates, those of one question together, shape (M, F).
        lengths: how many candidates each question has, ≥ 1, shape (N,).
        answer: the right one's index within its question, `NOT_THERE` where it is no candidate, shape (N,).
        tenant: whose question it is, from 0, shape (N,).

    Raises:
        ValueError: the arrays do not describe questions.
    """

    features: Floats
    lengths: Integers
    answer: Integers
    tenant: Integers

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.answer) == len(self.tenant):
            raise ValueError("each question needs a length, an answer and a tenant")
        if (self.lengths < 1).any() or self.lengths.sum() != len(self.features):
            raise ValueError(
                "each question needs a candidate, and the lengths must add up to the features' rows"
            )
        if (self.answer < NOT_THERE).any() or (self.answer >= self.lengths).any():
            raise ValueError("an answer must lie within its question's candidates, or be NOT_THERE")

    @cached_property
    def starts(self) -> Integers:
        """The row of each question's first candidate, shape (N,)."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Whether the answer is a candidate, shape (N,)."""
        return np.asarray(self.answer != NOT_THERE)

    def take(self, questions: NDArray[np.intp]) -> Self:
        """Some of the questions, by position."""
        return type(self)(
            self.features[self.rows(questions)],
            self.lengths[questions],
            self.answer[questions],
            self.tenant[questions],
        )

    def rows(self, questions: NDArray[np.intp]) -> NDArray[np.int64]:
        """The rows of the candidates of some of the questions, by position."""
        lengths = self.lengths[questions]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.asarray(np.repeat(self.starts[questions], lengths) + offsets)

    def choices(self) -> Choices:
        """Those whose answer is a candidate, as choices from which weights can be fitted, each with ω = 1."""
        known = self.take(np.flatnonzero(self.answered))
        return Choices(known.features, known.lengths, known.answer, np.ones(len(known.lengths)), known.tenant)


def stacked(parts: list[Questions]) -> Questions:
    """Questions of several tenants as one, in the order that is given."""
    return Questions(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.answer for part in parts]),
        np.concatenate([part.tenant for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Rankings:
    """What a policy made of N questions.

    Attributes:
        rank: of the answer, ≥ 1; infinite where it was no candidate, shape (N,).
        margin: the best score minus the second best, 0 where there is but one candidate, shape (N,).
    """

    rank: Floats
    margin: Floats

    @cached_property
    def measures(self) -> Floats:
        """What each question adds to each of `METRICS`, shape (N, 5): means of columns are the measures."""
        return np.column_stack(
            [self.rank <= 1, self.rank <= 5, self.rank <= 10, 1.0 / self.rank, self.margin]
        ).astype(np.float64)


def rankings(questions: Questions, weights: Floats) -> Rankings:
    """Rank every question's candidates by weights.

    Between equal scores the answer is ranked last, so that a policy which cannot tell candidates apart earns
    nothing by it.

    Args:
        questions: N of them.
        weights: in units: of one policy for all, shape (F,), or of each tenant, shape (T, F).
    """
    own = weights[questions.tenant] if weights.ndim == 2 else np.tile(weights, (len(questions.tenant), 1))
    score = scores(questions.features, np.repeat(own, questions.lengths, axis=0))
    of_answer = score[questions.starts + np.maximum(questions.answer, 0)]
    at_least = np.add.reduceat(
        score >= np.repeat(of_answer, questions.lengths), questions.starts, dtype=np.int64
    )
    of_question = np.repeat(np.arange(len(questions.lengths)), questions.lengths)
    descending = score[np.lexsort((-score, of_question))]
    second = np.minimum(questions.starts + 1, len(score) - 1)
    margin = np.where(questions.lengths > 1, descending[questions.starts] - descending[second], 0.0)
    return Rankings(np.where(questions.answered, at_least, np.inf), margin)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Means and their intervals, each of shape (M,)."""

    mean: Floats
    low: Floats
    high: Floats


def two_level_intervals(
    values: Floats,
    tenant: Integers,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    generator: np.random.Generator,
) -> Intervals:
    """Means of columns, with percentile intervals by the two-level bootstrap.

    A replicate draws tenants with replacement, then as many questions of each drawn tenant, with replacement,
    as that tenant has: what holds for these tenants alone must not count as if it held for all (Davison &
    Hinkley 1997, §3.8). Give differences between policies, question by question, for paired intervals.

    Args:
        values: shape (N, M); the columns are drawn together.
        tenant: whose each row is, any integers, shape (N,).
        replicates: how many draws.
        confidence: of the two-sided intervals.
        generator: draws.

    Raises:
        ValueError: there are no rows.
    """
    if len(values) == 0:
        raise ValueError("there are no questions: nothing can be compared")
    _, members, sizes = np.unique(tenant, return_inverse=True, return_counts=True)
    tenants, rows = len(sizes), np.argsort(members, kind="stable")
    firsts = np.cumsum(sizes) - sizes
    means = np.empty((replicates, values.shape[1]))
    for begin in range(0, replicates, TOGETHER):
        together = min(TOGETHER, replicates - begin)
        drawn = generator.integers(tenants, size=(together, tenants))
        slots = np.repeat(drawn.ravel(), sizes[drawn.ravel()])
        picked = rows[firsts[slots] + generator.integers(sizes[slots])]
        replicate = np.repeat(np.arange(together), sizes[drawn].sum(axis=1))
        counts = np.bincount(replicate * len(values) + picked, minlength=together * len(values))
        counts = counts.reshape(together, len(values))
        means[begin : begin + together] = counts @ values / counts.sum(axis=1, keepdims=True)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return Intervals(values.mean(axis=0), low, high)
