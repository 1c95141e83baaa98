"""The evidence that learned weights recall better: policies side by side on the same held-out questions.

Nothing that ranks a held-out question has seen it, or anything later of its tenant. What others taught leaves
out every conversation in which the tenant took part: two people of one conversation remember the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from somabrain_dagster.learning.choices import Choices
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.enhancement import (
    Questions,
    stacked,
)
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.gated_fit import GatedFit, gated_fit
from somabrain_dagster.learning.half_life import HALF_LIVES, at_half_life, with_half_life
from somabrain_dagster.learning.optimizer import fit
from somabrain_dagster.learning.pooled_fit import POOLED_KAPPA, PooledFit, pooled_fit
from somabrain_dagster.learning.weights import RETRIEVAL, TAU, to_units
from somabrain_dagster.operations.reenactment import Asked, Reenacted

STARTING, RECENCY = "starting", "recency"
FAST_RULE, POOLED, FIT = "fast_rule", "pooled", "fit"
POOLED_HALF_LIFE, FIT_HALF_LIFE = "pooled_half_life", "fit_half_life"

Kind = Literal["baseline", "candidate", "reference"]

_WHAT = {
    RECENCY: "the newest first: recency alone",
    STARTING: "the weights that every tenant starts with",
    "hybrid": "a fixed hybrid, set beforehand: cosine + full text, each over its scale, equal weights",
    "hybrid_recency": "the same with recency: cosine + full text + recency, equal weights",
    FAST_RULE: "each tenant's own weights in the log after its feedback landed",
    POOLED: "fitted to what the other tenants taught, within the bounds, where its gate passed",
    FIT: "the same, and the tenant's own fit from there where its gate passed",
    POOLED_HALF_LIFE: "pooled, at the half-life of recency that fits the others best, with measured scales",
    FIT_HALF_LIFE: "fit, at that half-life and those scales",
    "fit_unbounded": "what the bounds cost: the same pooled fit without bounds; never offered",
}
"""What each policy is, in words; in the order in which a person should read them."""


@dataclass(frozen=True, eq=False)
class Policy:
    """Weights for everybody, and the features that they weigh.

    Attributes:
        weights: of each tenant, in units, shape (T, F).
        questions: the held-out ones, N of them.
    """

    name: str
    kind: Kind
    weights: Floats
    questions: Questions

    @property
    def what(self) -> str:
        """The policy in words."""
        return _WHAT[self.name]


@dataclass(frozen=True, eq=False)
class Learned:
    """What the slow loop makes for one tenant.

    Attributes:
        pooled: what others taught, with recency as it was logged.
        fitted: the tenant's own fit from there.
        profiled: what others taught, at the half-life that fits them best.
        fitted_profiled: the tenant's own fit from there.
        unbounded: what others taught, at that half-life and without bounds, shape (F,).
    """

    pooled: PooledFit
    fitted: GatedFit
    profiled: PooledFit
    fitted_profiled: GatedFit
    unbounded: Floats


@dataclass(frozen=True, eq=False)
class Prior:
    """From where fits start, and their bounds: shape (F,) each, with the temperature in force."""

    start: Floats
    low: Floats
    high: Floats
    tau: float

    @classmethod
    def of(cls, configuration: LearningConfiguration) -> "Prior":
        """As a tenant of this configuration starts."""
        start = to_units(configuration.start_nanos)
        return cls(
            start[RETRIEVAL],
            to_units(configuration.low_nanos)[RETRIEVAL],
            to_units(configuration.high_nanos)[RETRIEVAL],
            float(start[TAU]),
        )


def taught_by(tenants: Sequence[Asked]) -> tuple[Choices, Floats]:
    """What several tenants' feedback taught, and the candidates' ages."""
    together = stacked([_owned(asked.questions, number) for number, asked in enumerate(tenants)])
    return together.choices(), np.concatenate([asked.ages for asked in tenants])


def _owned(questions: Questions, tenant: int) -> Questions:
    return replace(questions, tenant=np.full(len(questions.lengths), tenant, dtype=np.int64))


def learn_for(one: Reenacted, others: Sequence[Reenacted], prior: Prior) -> Learned:
    """The slow loop for one tenant, from what others taught outside its conversations, and what it taught."""
    choices, ages = taught_by([other.taught.outside(one.conversations) for other in others])
    tau, box = prior.tau, (prior.low, prior.high)
    pooled = pooled_fit(choices, ages, tau, prior.start, *box)
    profiled = pooled_fit(choices, ages, tau, prior.start, *box, HALF_LIVES)
    own = one.taught.questions.choices()
    own_profiled = at_half_life(own, one.taught.ages, profiled.half_life)
    open_box = (np.full_like(prior.low, -np.inf), np.full_like(prior.high, np.inf))
    all_profiled = at_half_life(choices, ages, profiled.half_life)
    return Learned(
        pooled=pooled,
        fitted=gated_fit(own, pooled.weights, tau, *box),
        profiled=profiled,
        fitted_profiled=gated_fit(own_profiled, profiled.weights, tau, *box),
        unbounded=fit(all_profiled, tau, prior.start, *open_box, POOLED_KAPPA).weights,
    )


def policies(reenacted: Sequence[Reenacted], learned: Sequence[Learned], prior: Prior) -> list[Policy]:
    """Every policy, in the order in which a person should read them."""
    shipped = stacked([_owned(one.held_out.questions, number) for number, one in enumerate(reenacted)])
    profiled = stacked(
        [
            _owned(
                one.held_out.questions
                if (half_life := own.profiled.half_life) is None
                else replace(
                    one.held_out.questions,
                    features=with_half_life(
                        one.held_out.questions.features,
                        one.held_out.ages,
                        half_life.seconds,
                        half_life.scales,
                    ),
                ),
                number,
            )
            for number, (one, own) in enumerate(zip(reenacted, learned, strict=True))
        ]
    )
    of_all = {
        RECENCY: _fixed(recency=1.0),
        STARTING: prior.start,
        "hybrid": _fixed(semantic=1.0, lexical=1.0),
        "hybrid_recency": _fixed(semantic=1.0, lexical=1.0, recency=1.0),
    }
    tenants = len(reenacted)
    made = [
        Policy(name, "baseline", np.tile(weights, (tenants, 1)), shipped) for name, weights in of_all.items()
    ]
    own_weights: list[tuple[str, Kind, list[Floats], Questions]] = [
        (FAST_RULE, "candidate", [to_units(one.learned)[RETRIEVAL] for one in reenacted], shipped),
        (POOLED, "candidate", [own.pooled.weights for own in learned], shipped),
        (FIT, "candidate", [own.fitted.weights for own in learned], shipped),
        (POOLED_HALF_LIFE, "candidate", [own.profiled.weights for own in learned], profiled),
        (FIT_HALF_LIFE, "candidate", [own.fitted_profiled.weights for own in learned], profiled),
        ("fit_unbounded", "reference", [own.unbounded for own in learned], profiled),
    ]
    return made + [
        Policy(name, kind, np.array(weights), questions) for name, kind, weights, questions in own_weights
    ]


def _fixed(**weights: float) -> Floats:
    return np.array([weights.get(feature.name, 0.0) for feature in FEATURES])
