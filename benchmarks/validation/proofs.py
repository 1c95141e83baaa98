"""What is proven of the weights: the log by itself, each tenant's own fold, every change's reason."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks.validation.account import Copies
from benchmarks.validation.plan import Plan
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.lesson import Experience, Learner, learn
from somabrain_dagster.learning.neuromodulators import RewardState
from somabrain_dagster.learning.weights import Nanos
from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.verification import Verification, verify

EXPLAINED = {
    "start": "the configuration that it names",
    "feedback": "its event, derived again; of pruned ones the seal",
    "configuration": "the configuration that it names",
    "auto_rollback": "the rewards before it, which trip the guard",
    "rollback": "its audit event",
    "reset": "its audit event",
    "promotion": "its promotion, which the audit trail has",
    "promotion_rollback": "the promotion that it undoes",
    "adoption": "what was promoted when the tenant was new",
    "scales": "the scales that it names",
    "diversity": "the recall after which τ was steered",
    "tenant_fit": "the fit that it carries out",
}
"""By what each cause of a change is explained."""


@dataclass(frozen=True, eq=False)
class Proof:
    """What holds of the log.

    Attributes:
        seconds: that the verification took.
        broken: audit chains that are.
        causes: how many changes have each cause.
        unexplained: changes of which nothing says why they are.
    """

    verification: Verification
    seconds: float
    broken: Sequence[str]
    causes: dict[str, int]
    unexplained: list[str]


def prove(connection: Connection) -> Proof:
    """Replay, derive again, follow every chain, and look for the reason of each change.

    Args:
        connection: a snapshot.
    """
    began = time.perf_counter()
    verification = verify(connection)
    seconds = time.perf_counter() - began
    rows = connection.execute("SELECT cause, count(*) FROM weight_changes GROUP BY cause ORDER BY 2 DESC")
    causes = {str(cause): int(count) for cause, count in rows}
    # What answers an event, names a promotion, or is derived again is explained by the verification itself.
    unaudited = connection.execute(
        """
        SELECT c.tenant_id, c.version, c.cause FROM weight_changes c
        WHERE c.cause IN ('rollback', 'reset') AND NOT EXISTS (
            SELECT FROM audit_events a
            WHERE a.tenant_id = c.tenant_id AND (a.body ->> 'version')::bigint = c.version
        )
        """
    ).fetchall()
    unexplained = [f"{tenant}, version {version}: a {cause}" for tenant, version, cause in unaudited]
    unexplained += [f"a cause {cause!r}" for cause in causes if cause not in EXPLAINED]
    return Proof(verification, seconds, list(audit.broken_chains(connection)), causes, unexplained)


def differing_tenants(
    verification: Verification, copies: Copies, plan: Plan, configuration: LearningConfiguration
) -> list[str]:
    """The tenants whose log is not, to the nano-unit, what the rule makes of their own feedback alone.

    Args:
        verification: of the whole log.
        copies: a copy of every event, which says in which order they landed.
        plan: what each of them said, as it was sent.
        configuration: in force for all of them.
    """
    log = verification.log
    ends = np.cumsum(log.log.lengths)
    own = {
        tenant: slice(int(end - length), int(end))
        for tenant, end, length in zip(log.tenants, ends, log.log.lengths, strict=True)
    }
    differing = []
    for place, tenant in enumerate(plan.tenants):
        order = np.argsort(copies.seqs[place])
        folded = fold(configuration, [plan.event(tenant, number).utility for number in order.tolist()])
        live = log.log.after[own[tenant]][1:]
        # What an operator did afterwards is no feedback: it follows what was learned.
        afterwards = log.event_seqs[own[tenant]][1 + len(folded) :]
        if not np.array_equal(live[: len(folded)], folded) or afterwards.any():
            differing.append(tenant)
    return differing


def fold(configuration: LearningConfiguration, utilities: Sequence[float]) -> Nanos:
    """The weights after each change that the rule makes of a new tenant's feedback, away from any store."""
    values = np.array(utilities)
    lesson = learn(
        configuration,
        [Learner(0, configuration.start_nanos, RewardState(), np.zeros(0, dtype=np.int64), configured=True)],
        Experience(
            lengths=np.array([len(values)]),
            utility=values,
            reward=values,
            named=np.zeros(len(values), dtype=np.bool_),
            signals=np.zeros((len(values), len(FEATURES))),
        ),
        lambda _tenant, _back: (0, configuration.start_nanos),
    )
    return lesson.after


def seen_of_others(database: Database, plan: Plan, url: str, keys: dict[str, str]) -> dict[str, int]:
    """Try to see other tenants' rows, in each tenant's role and by each tenant's key; how many were seen.

    Returns:
        By what was tried; and how many tries the service refused, which must be one a tenant.
    """
    seen: Counter[str] = Counter({"rows": 0, "answers": 0, "refused": 0})
    for place, tenant in enumerate(plan.tenants):
        other = plan.tenants[place - 1]
        with database.as_tenants([tenant]) as connection:
            for table in ("adaptation_states", "weight_changes", "feedback_events", "audit_events"):
                rows = connection.execute(
                    f"SELECT count(*) FROM {table} WHERE tenant_id <> %s",  # noqa: S608 — of constants
                    (tenant,),
                ).fetchone()
                assert rows is not None
                seen["rows"] += rows[0]
        answer = httpx.get(
            f"{url}/context/adaptation/state",
            params={"tenant_id": other},
            headers={"authorization": f"Bearer {keys[tenant]}"},
            timeout=30,
        )
        seen["refused" if answer.status_code == 403 else "answers"] += 1
    return dict(seen)
