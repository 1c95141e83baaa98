"""What the tests of the evidence share: the stage on which they look, and labels that say nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from somabrain_dagster.learning.adaptation import credit_shifts, credit_signal
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.enhancement import Questions
from somabrain_dagster.learning.policy import expected_features, scores, softmax
from somabrain_dagster.learning.weights import RETRIEVAL, TAU, Nanos, to_units
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.enhancement import Prior
from somabrain_dagster.operations.enhancement_report import EnhancementReport
from somabrain_dagster.operations.reenactment import Reenacted, Story
from somabrain_dagster.store.database import Database

CONFIGURATION = LearningConfiguration()
PRIOR = Prior.of(CONFIGURATION)


@dataclass(frozen=True)
class Stage:
    """A re-enactment, the brain in which it happened, and what was made of it."""

    database: Database
    room: Memories
    stories: list[Story]
    reenacted: list[Reenacted]
    report: EnhancementReport


def blinded(reenacted: Sequence[Reenacted], seed: int) -> list[Reenacted]:
    """The same recalls, but feedback names candidates that are drawn blindly: labels that say nothing."""
    generator = np.random.default_rng(seed)
    blind = []
    for one in reenacted:
        questions = one.taught.questions
        answers = replace(questions, answer=generator.integers(0, questions.lengths))
        blind.append(replace(one, taught=replace(one.taught, questions=answers), learned=folded(answers)))
    return blind


def folded(taught: Questions) -> Nanos:
    """The weights after feedback that names these answers, by the rule alone, without steps of τ."""
    weights = CONFIGURATION.start_nanos
    for start, length, answer in zip(taught.starts, taught.lengths, taught.answer, strict=True):
        z = taught.features[start : start + length]
        units = to_units(weights)
        p = softmax(scores(z, units[RETRIEVAL]), float(units[TAU]))
        signal = credit_signal(z, expected_features(p, z), [answer], [1.0])
        shift = credit_shifts(CONFIGURATION, signal[None, :], [0.0], [CONFIGURATION.base_learning_rate])[0]
        weights = np.clip(weights + shift, CONFIGURATION.low_nanos, CONFIGURATION.high_nanos)
    return weights
