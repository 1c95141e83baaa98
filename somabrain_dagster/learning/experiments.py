"""Experiments: which arm a session sees, how many it takes, and what the outcome allows.

The unit of assignment and of analysis is the session, one number a session: what happens within one is
correlated, and would be counted as if it were not. The number of sessions is fixed before the start, and the
outcome is judged once, on completion. Before that, only harm stops an experiment (see `sequential`).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, isclose, nan, sqrt

import numpy as np
import scipy

from somabrain_dagster.learning.comparison import Comparison, comparable, compare
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.multiplicity import holm


@dataclass(frozen=True)
class Arm:
    """A name, and the share of units in (0, 1] that see it."""

    name: str
    share: float


@dataclass(frozen=True)
class PromotionRule:
    """When an arm is better for certain, and by enough.

    With p < .05, d > .3 and 176 sessions an arm, a true effect of .3 is promoted half of the time whatever
    the size, one of .39 about four times in five, and none in about 1 of 400 experiments: d binds, not p.

    Attributes:
        alpha: p, by Holm's method over the arms, must be below it.
        effect: d must be above it.
        sample_ratio: arms of sizes that chance gives more rarely than this make the experiment invalid.
    """

    alpha: float = 0.05
    effect: float = 0.3
    sample_ratio: float = 0.001


@dataclass(frozen=True)
class Plan:
    """What is fixed before an experiment starts.

    Attributes:
        arms: the first is the control.
        size: how many sessions each arm needs.
        rule: when an arm is promoted.

    Raises:
        ValueError: there is no arm beside the control, or nothing could be assigned to the arms.
    """

    arms: tuple[Arm, ...]
    size: int
    rule: PromotionRule = PromotionRule()

    def __post_init__(self) -> None:
        check(self.arms)
        if len(self.arms) < 2 or self.size < 2:
            raise ValueError("an experiment needs a control, a treatment, and two sessions in each at least")

    @property
    def control(self) -> str:
        """The name of the control."""
        return self.arms[0].name

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of the other arms, in their order."""
        return tuple(arm.name for arm in self.arms[1:])


@dataclass(frozen=True)
class Treatment:
    """An arm beside the control, and by how much it shifts which weights, in units."""

    name: str
    shifts: Mapping[str, float]


BUILT_IN = {
    "exp_retrieval_alpha_vs_tau": (
        Treatment("alpha", {"alpha": 0.5}),
        Treatment("tau", {"tau": -0.2}),
    )
}
"""Experiments that need no arms to be named: does recall gain more by meaning or by certainty?"""


def shared_equally(names: Sequence[str]) -> tuple[Arm, ...]:
    """Arms of equal shares."""
    return tuple(Arm(name, 1 / len(names)) for name in names)


@dataclass(frozen=True)
class Finding:
    """What one treatment showed against the control.

    Attributes:
        arm: its name.
        comparison: None where a sample is too small or nothing varies.
        p: Holm's, over the treatments.
        gates: every condition of a promotion, passed or not.
    """

    arm: str
    comparison: Comparison | None
    p: float
    gates: tuple[Gate, ...]

    @property
    def promotable(self) -> bool:
        """Every gate passed."""
        return not failed(self.gates)


@dataclass(frozen=True)
class Analysis:
    """The outcome of an experiment.

    Attributes:
        sample_ratio: the p-value of the arms' sizes.
        findings: one for each treatment, in the order of the plan.
    """

    sample_ratio: float
    findings: tuple[Finding, ...]

    @property
    def p(self) -> float:
        """Of no treatment differing: one test in a sequence of experiments."""
        return min(finding.p for finding in self.findings)

    @property
    def promoted(self) -> str | None:
        """The treatment to promote: of those that passed every gate, the one of the largest difference."""
        passed = [(f.comparison.difference, f.arm) for f in self.findings if f.promotable and f.comparison]
        return max(passed)[1] if passed else None


def position(salt: str, unit: str) -> float:
    """Where a unit stands in [0, 1]: the first eight bytes of SHA-256 of "salt:unit", over 2⁶⁴."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{unit}".encode()).digest()[:8], "big") / 2**64


def assign(salt: str, unit: str, arms: Sequence[Arm]) -> str:
    """The name of the unit's arm: the first one whose cumulative share is above the unit's position.

    It depends on nothing but the arguments. An arm whose share grows at the cost of its neighbours keeps
    every unit that it had; so the order of the arms is part of the experiment.

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


def power(d: float, size: int, alpha: float) -> float:
    """How often a two-sided t-test of two samples of this size finds an effect of d.

    Student's with equal variances, by the noncentral t distribution.
    """
    df = 2 * (size - 1)
    critical = -float(scipy.special.stdtrit(df, alpha / 2))
    shift = abs(d) * sqrt(size / 2)
    return float(scipy.special.nctdtr(df, -shift, -critical) + scipy.special.nctdtr(df, shift, -critical))


def sample_size(d: float, *, alpha: float = 0.05, power_wanted: float = 0.8) -> int:
    """The least number of units an arm that finds an effect of d: 176 for 0.3 at the defaults.

    Raises:
        ValueError: d is 0, or α or the power is not between 0 and 1.
    """
    if d == 0 or not 0 < alpha < power_wanted < 1:
        raise ValueError("an effect other than 0 and 0 < α < power < 1 are needed to plan a size")
    enough = 2
    while power(d, enough, alpha) < power_wanted:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = ceil((enough + too_few) / 2)
        if power(d, middle, alpha) < power_wanted:
            too_few = middle
        else:
            enough = middle
    return enough


def sample_ratio(counts: Sequence[int], arms: Sequence[Arm]) -> float:
    """The χ² p-value of arms of these sizes under the configured shares; NaN where all are empty.

    A small one says that sessions were lost, doubled or assigned otherwise than recorded: the experiment is
    invalid, whatever else it shows (Fabijan et al. 2019).
    """
    total = sum(counts)
    if total == 0:
        return nan
    expected = total * np.array([arm.share for arm in arms])
    statistic = float(((np.array(counts) - expected) ** 2 / expected).sum())
    return float(scipy.special.chdtrc(len(arms) - 1, statistic))


def analyse(
    plan: Plan,
    outcomes: Mapping[str, Moments],
    *,
    guardrails: Mapping[str, Sequence[Gate]] | None = None,
    online_level: float | None = None,
) -> Analysis:
    """What a completed experiment showed, and whether an arm may be promoted.

    Args:
        plan: as it was stored before the start.
        outcomes: the moments of the sessions' numbers, by arm.
        guardrails: further conditions, by treatment.
        online_level: the level that p must not exceed among all experiments, where one is enforced.

    Raises:
        ValueError: an arm has no outcome, or an outcome or guardrail no arm.
    """
    further = guardrails or {}
    if set(outcomes) != {arm.name for arm in plan.arms} or not set(further) <= set(plan.treatments):
        raise ValueError(
            f"outcomes must be of the arms {[a.name for a in plan.arms]}, guardrails of treatments"
        )
    control = outcomes[plan.control]
    comparisons = [
        compare(control, outcomes[arm]) if comparable(control, outcomes[arm]) else None
        for arm in plan.treatments
    ]
    ratio = sample_ratio([outcomes[arm.name].n for arm in plan.arms], plan.arms)
    adjusted = holm([found.p if found else 1.0 for found in comparisons])
    findings = []
    for arm, found, p in zip(plan.treatments, comparisons, adjusted.tolist(), strict=True):
        gates = [
            Gate("sample_ratio", ratio, "≥", plan.rule.sample_ratio),
            Gate("control_sessions", control.n, "≥", plan.size),
            Gate("sessions", outcomes[arm].n, "≥", plan.size),
            Gate("p", p, "<", plan.rule.alpha),
            Gate("difference", found.difference if found else nan, ">", 0.0),
            Gate("d", found.d if found else nan, ">", plan.rule.effect),
            *further.get(arm, ()),
        ]
        if online_level is not None:
            gates.append(Gate("online_p", p, "≤", online_level))
        findings.append(Finding(arm, found, p, tuple(gates)))
    return Analysis(ratio, tuple(findings))
