"""Canaries: new weights for a few tenants first, to see whether they do harm.

The unit is the tenant, one number a tenant: the mean of its sessions. What tenants differ in anyway is taken
out by the period before, Y − θ(X − X̄) with θ = cov(X, Y) / var(X) within the groups (CUPED: Deng, Xu, Kohavi
& Walker 2013). Each of a few looks spends its part of α on a one-sided Welch test. A canary detects harm; it
was the experiment before that showed the weights to be better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np

from somabrain_dagster.learning.comparison import Comparison, comparable, compare
from somabrain_dagster.learning.experiments import position
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.moments import Moments, merge

Action = Literal["PROMOTE", "HOLD", "ROLLBACK"]


@dataclass(frozen=True)
class CanaryRule:
    """When a canary is looked at, and what ends it.

    Attributes:
        share: of the tenants, in (0, 1).
        strata: how many groups of like size the canaries are spread over.
        hours: of the looks since the start, rising; the last one may promote.
        hours_before: the period before, by which what tenants differ in anyway is taken out.
        alpha: how often a canary without any effect may be rolled back, over all looks.
        margin: the harm that must be excluded, in standard deviations of the control's sessions.
        sessions: how many sessions each group needs before a promotion.
        guardrails: the hard ones that must be measured; a breach rolls back at any look.
    """

    share: float = 0.1
    strata: int = 5
    hours: tuple[float, ...] = (6.0, 12.0, 24.0, 48.0)
    hours_before: float = 336.0
    alpha: float = 0.05
    margin: float = 0.1
    sessions: int = 176
    guardrails: tuple[str, ...] = ("error_rate", "latency_p95")

    @property
    def alpha_of_a_look(self) -> float:
        """What each look spends."""
        return self.alpha / len(self.hours)


@dataclass(frozen=True)
class TenantPeriods:
    """What a tenant's sessions came to before the start and since."""

    before: Moments
    since: Moments


@dataclass(frozen=True)
class Decision:
    """What a look decided, and why.

    Attributes:
        action: PROMOTE and ROLLBACK are final; HOLD waits for the next look, and for a person after the last.
        look: from 0.
        comparison: canary − control, adjusted by the period before; None where there is too little.
        gates: every condition of a promotion, passed or not.
    """

    action: Action
    look: int
    comparison: Comparison | None
    gates: tuple[Gate, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The conditions that were not met; none for PROMOTE."""
        return tuple(str(gate) for gate in failed(self.gates))


def canaries(salt: str, sizes: Mapping[str, int], rule: CanaryRule) -> tuple[str, ...]:
    """The tenants that see new weights first: a share of all, spread evenly over strata of size.

    The m tenants of a stratum are ordered by hash and take the places (r + u)/m, r = 0 … m − 1, with u from
    the hash of the stratum; the canaries are the first round(share · tenants) places of all, one at least and
    never everyone. A larger share keeps the canaries of a smaller one.

    Args:
        salt: of the rollout, so that rollouts choose independently of each other.
        sizes: of the tenants, such as their sessions in the period before.
        rule: the share and the strata.

    Returns:
        Names in alphabetical order.

    Raises:
        ValueError: there are fewer than two tenants.
    """
    if len(sizes) < 2:
        raise ValueError("a canary needs another tenant to be compared with")
    by_size = sorted(sizes, key=lambda tenant: (sizes[tenant], tenant))
    places: list[tuple[float, str]] = []
    for number, stratum in enumerate(np.array_split(np.arange(len(by_size)), rule.strata)):
        tenants = sorted((by_size[i] for i in stratum), key=lambda tenant: position(salt, tenant))
        offset = position(salt, f"stratum {number}")
        places += [((rank + offset) / len(tenants), tenant) for rank, tenant in enumerate(tenants)]
    count = min(max(round(rule.share * len(sizes)), 1), len(sizes) - 1)
    return tuple(sorted(tenant for _, tenant in sorted(places)[:count]))


def due(rule: CanaryRule, hours: float, looked: int) -> int | None:
    """Which look to take now, if any: the last whose hour has come, unless it or a later one was taken.

    Looks that were slept through are skipped, and their α is not spent.

    Args:
        rule: the hours of the looks.
        hours: since the start.
        looked: the number of the last look taken, −1 for none.
    """
    come = sum(hour <= hours for hour in rule.hours) - 1
    return come if come > looked else None


def decide(
    rule: CanaryRule,
    look: int,
    canary: Sequence[TenantPeriods],
    control: Sequence[TenantPeriods],
    guardrails: Mapping[str, Gate],
) -> Decision:
    """What a look decides.

    ROLLBACK on significant harm or a breached guardrail; PROMOTE at the last look where all was measured,
    both groups have enough sessions, and harm of the margin is excluded; else HOLD. Missing data never
    promotes.

    Args:
        rule: the levels and limits.
        look: which one, from 0.
        canary: one entry for each canary tenant.
        control: one for each other tenant.
        guardrails: by name; one of the rule's that is absent counts as not measured.

    Raises:
        ValueError: the rule has no such look.
    """
    if not 0 <= look < len(rule.hours):
        raise ValueError(f"looks are numbered from 0 to {len(rule.hours) - 1}, not {look}")
    found = adjusted_comparison(canary, control)
    spread = merge(tenant.since for tenant in control).deviation
    alpha = rule.alpha_of_a_look
    hard = [guardrails.get(name, Gate(name, nan, "≤", nan)) for name in rule.guardrails]
    hard += [gate for name, gate in guardrails.items() if name not in rule.guardrails]
    no_harm = Gate("harm_p", found.p_less if found else nan, "≥", alpha)
    gates = (
        *hard,
        no_harm,
        Gate("look", look + 1, "≥", len(rule.hours)),
        Gate("canary_sessions", sum(tenant.since.n for tenant in canary), "≥", rule.sessions),
        Gate("control_sessions", sum(tenant.since.n for tenant in control), "≥", rule.sessions),
        Gate("harm_bound", found.lower_bound(alpha) if found else nan, ">", -rule.margin * spread),
    )
    if any(not gate.passed and not gate.missing for gate in (*hard, no_harm)):
        return Decision("ROLLBACK", look, found, gates)
    return Decision("HOLD" if failed(gates) else "PROMOTE", look, found, gates)


def adjusted_comparison(
    canary: Sequence[TenantPeriods], control: Sequence[TenantPeriods]
) -> Comparison | None:
    """Welch's test of the tenants' means, canary − control, after CUPED; None where it cannot be made.

    A tenant without sessions since the start has no number. One without a period before keeps its own number:
    it counts as average before.
    """
    (x_canary, y_canary), (x_control, y_control) = _means(canary), _means(control)
    if min(len(y_canary), len(y_control)) < 2:
        return None
    before = np.concatenate((x_canary, x_control))
    known = ~np.isnan(before)
    average = before[known].mean() if known.any() else 0.0
    theta = _slope((x_canary, x_control), (y_canary, y_control))
    groups = [
        Moments.of(y - theta * np.where(np.isnan(x), 0.0, x - average))
        for x, y in ((x_control, y_control), (x_canary, y_canary))
    ]
    return compare(*groups) if comparable(*groups) else None


def _means(tenants: Sequence[TenantPeriods]) -> tuple[Floats, Floats]:
    """The means before, NaN where there is none, and since, of those that have sessions since."""
    present = [tenant for tenant in tenants if tenant.since.n]
    before = np.array(
        [tenant.before.mean if tenant.before.n else nan for tenant in present], dtype=np.float64
    )
    return before, np.array([tenant.since.mean for tenant in present], dtype=np.float64)


def _slope(before: Sequence[Floats], since: Sequence[Floats]) -> float:
    """θ: the pooled slope of since on before within the groups, 0 where nothing varies."""
    covariance = variance = 0.0
    for x, y in zip(before, since, strict=True):
        known = ~np.isnan(x)
        if known.any():
            deviations = x[known] - x[known].mean()
            covariance += float(deviations @ y[known])
            variance += float(deviations @ deviations)
    return covariance / variance if variance > 0 else 0.0
