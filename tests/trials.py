"""What the tests of trials share: tenants with real memories, whose sessions recall and say something."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from somabrain_dagster.learning.canary import CanaryRule
from somabrain_dagster.learning.experiments import Plan, PromotionRule, shared_equally
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.weights import NAMES, POSITION, Nanos, to_nanos
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.store.canaries import Canary, Looked, start_canary, take_look
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import (
    Analysed,
    Experiment,
    complete_experiment,
    create_experiment,
    start_experiment,
)
from somabrain_dagster.store.trials import read_trials
from somabrain_dagster.store.verification import verify
from tests.brain import CONFIGURATION, landed, new_tenants, said
from tests.remembering import SECOND, messages, remember, room

SAID = messages(15)
LATER = SAID[-1].occurred_at + SECOND
ACTOR = "test"

LENIENT = PromotionRule(alpha=0.05, effect=0.3)
SOON = CanaryRule(share=0.5, strata=1, hours=(1e-9, 2e-9), margin=5.0, sessions=2, hours_before=1.0)
"""Looks that are due at once; harm is excluded by a wide margin, and a few sessions are enough."""

CLEAN = {name: Gate(name, 0.0, "≤", 1.0) for name in SOON.guardrails}
"""Guardrails that hold."""


def shift(**weights: float) -> Nanos:
    """A shift (K,) of these weights, in units."""
    made = np.zeros(len(NAMES), dtype=np.int64)
    for name, value in weights.items():
        made[POSITION[name]] = to_nanos(value)
    return made


@dataclass
class Life:
    """Tenants that live through sessions: each recalls once, and something is said of it."""

    database: Database
    memories: Memories
    tenants: list[str]
    numbers: Iterator[int] = field(default_factory=count)

    def recall(self, tenant: str, session: str | None) -> Recall:
        return self.memories.recall(
            Query(tenant_id=tenant, text=SAID[0].text, session_id=session, as_of=LATER, k=3)
        )

    def session(self, tenant: str, utility: float | Callable[[str | None], float]) -> Recall:
        """A session of its own, whose worth may depend on the arm that it saw."""
        session = f"session-{next(self.numbers)}"
        recall = self.recall(tenant, session)
        worth = utility if isinstance(utility, float) else utility(recall.arm)
        landed(self.database, [said(tenant, worth, session_id=session, recall_id=recall.recall_id)])
        return recall

    def fill(self, experiment: Experiment, worth: Mapping[str, Iterable[float]]) -> None:
        """Sessions until each arm has the numbers that are given, one a session; others stay silent."""
        left = {name: [float(value) for value in worth[arm]] for name, arm in experiment.names.items()}
        with self.database.snapshot() as connection:
            trials = read_trials(connection)
        for number in count():
            if not any(left.values()):
                return
            tenant = self.tenants[number % len(self.tenants)]
            session = f"session-{next(self.numbers)}"
            arm = trials.arm_of(tenant, session)
            if arm is None or not left[arm]:
                continue
            recall = self.recall(tenant, session)
            assert recall.arm == arm
            landed(
                self.database,
                [said(tenant, left[arm].pop(), session_id=session, recall_id=recall.recall_id)],
            )

    def experiment(
        self,
        size: int = 8,
        name: str = "warmer",
        *,
        scale_version: int | None = None,
        rule: PromotionRule = LENIENT,
        **weights: float,
    ) -> Experiment:
        """A running experiment of two arms."""
        plan = Plan(shared_equally(["control", "warm"]), size, rule)
        shifts = np.array([shift(), shift(**(weights or {"alpha": 0.5}))])
        with self.database.as_operator() as connection:
            create_experiment(
                connection, name, plan, shifts, CONFIGURATION, ACTOR, scale_version=scale_version
            )
            return start_experiment(connection, name, CONFIGURATION, ACTOR)

    def won(self, size: int = 8, name: str = "warmer", **knobs: object) -> Analysed:
        """A completed experiment whose treatment is better: generated numbers, a known effect."""
        experiment = self.experiment(size, name, **knobs)  # type: ignore[arg-type]
        spread = np.linspace(-0.2, 0.2, size)
        self.fill(experiment, {"control": spread - 0.3, "warm": spread + 0.3})
        with self.database.as_operator() as connection:
            return complete_experiment(connection, name, ACTOR, online_bound=False)

    def canary(self, rule: CanaryRule = SOON, name: str = "warmer") -> Canary:
        with self.database.as_operator() as connection:
            return start_canary(connection, name, rule, CONFIGURATION, ACTOR)

    def everybody(self, worth: Callable[[str | None], float], sessions: int = 3) -> None:
        """Sessions of all tenants, of this worth by the arm that they see; no two are quite alike."""
        for number, tenant in enumerate(self.tenants):
            for place in range(sessions):
                little = 0.02 * place + 0.03 * number
                self.session(tenant, lambda arm, little=little: worth(arm) + little)  # type: ignore[misc]

    def look(self, canary: Canary, number: int, guardrails: Mapping[str, Gate] = CLEAN) -> Looked:
        with self.database.as_operator() as connection:
            return take_look(connection, canary.canary_id, number, guardrails, ACTOR)

    def promotable(self, **knobs: object) -> Canary:
        """A canary whose last look says PROMOTE."""
        self.won(**knobs)  # type: ignore[arg-type]
        canary = self.canary()
        self.everybody(lambda arm: 0.6 if arm else 0.1)
        looked = self.look(canary, len(canary.rule.hours) - 1)
        assert looked.action == "PROMOTE", looked.decision.reasons
        return canary

    def findings(self) -> list[str]:
        """What does not hold of the log of weights."""
        with self.database.snapshot() as connection:
            return [str(finding) for finding in verify(connection).findings]


def new_life(database: Database, embedder: Embedder, tenants: int = 6) -> Life:
    """Tenants that remember the same real messages."""
    memories = room(database, embedder)
    names = new_tenants(database, tenants)
    for name in names:
        remember(memories, name, SAID)
    return Life(database, memories, names)


def with_rule(rule: CanaryRule, **changes: object) -> CanaryRule:
    return replace(rule, **changes)  # type: ignore[arg-type]
