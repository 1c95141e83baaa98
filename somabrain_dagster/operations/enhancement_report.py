"""The report of the evidence: what every policy was worth, what candidates gain, and what that rests on."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Integers
from somabrain_dagster.learning.enhancement import (
    METRICS,
    Rankings,
    rankings,
    two_level_intervals,
)
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.gated_fit import GatedFit
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.pooled_fit import PooledFit
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, by_name
from somabrain_dagster.operations.enhancement import (
    FAST_RULE,
    FIT,
    FIT_HALF_LIFE,
    RECENCY,
    STARTING,
    Kind,
    Learned,
    Policy,
)
from somabrain_dagster.operations.reenactment import Plan, Reenacted

CONFIDENCE = 0.95
REPLICATES = 2000
"""Of the bootstrap."""

TARGET = 0.05
"""What top-1 shall rise by over the starting weights, with an interval above 0."""

JUDGED = ("top1", "r5", "r10", "mrr")
"""The measures that can be too much worse; a margin has its policy's own unit and is only told."""

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class InvalidReport(ValueError):
    """A file that is no report, or reports that cannot be compared; the message says why."""


class Measures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a policy was worth: see `METRICS`."""

    top1: _Share
    r5: _Share
    r10: _Share
    mrr: _Share
    margin: float


class PolicyReport(Measures, frozen=True, kw_only=True):
    """A policy over all tenants.

    Attributes:
        kind: `baseline`, `candidate`, or `reference` for what is shown to explain the others.
        what: in words.
        queries, tenants: that it was measured on.
        unanswerable: queries whose answer recall did not weigh: misses for every policy.
        recall_p95_ms: of the recalls whose candidates it ranks; weights do not change what a recall costs.
    """

    kind: Kind
    what: str
    queries: int
    tenants: int
    unanswerable: int
    recall_p95_ms: float


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Candidate minus baseline on the same queries, and its 95% interval (two-level: tenants, queries)."""

    candidate: str
    baseline: str
    metric: str
    delta: float
    low: float
    high: float


class OwnFit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant's own fit came to.

    Attributes:
        gain: in reciprocal rank over what others taught, cross-validated; None where too little was taught.
        lower: the one-sided bound of the gain, which is the gate: above 0 it is applied.
        weights: in force after the gate.
    """

    gain: float | None
    lower: float | None
    applied: bool
    weights: dict[str, float]


class TenantReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tenant.

    Attributes:
        memories, links: that it had.
        taught: events that landed.
        untaught: queries among them whose answer recall did not weigh.
        version: of the weights in its log after those events; steps of τ count too.
        queries, unanswerable: held-out ones.
        policies: what each was worth here.
        learned: the weights that the fast rule left.
        fit, fit_half_life: its own fits.
        half_life_seconds: that fits the others best; None where their gate stayed shut.
    """

    tenant_id: str
    memories: int
    links: int
    taught: int
    untaught: int
    version: int
    queries: int
    unanswerable: int
    policies: dict[str, Measures]
    learned: dict[str, float]
    fit: OwnFit
    fit_half_life: OwnFit
    half_life_seconds: float | None


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights for everybody, fitted to what all tenants taught.

    What speaks for them is the policy of the same name, which was fitted likewise to all tenants but one and
    measured on that one.

    Attributes:
        weights: in units; those that everybody starts with where the gate stayed shut.
        gate: on the last part of what was taught, in words.
        passed: whether it did.
        half_life_seconds, scales: the new scales, by feature, without which they mean nothing; None where the
            scales in force do.
    """

    weights: dict[str, float]
    gate: str
    passed: bool
    half_life_seconds: float | None = None
    scales: dict[str, float] | None = None


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the numbers rest on.

    Attributes:
        data: what was re-enacted, in words.
        tenants, memories, links, conversations, feedback, recalls: that there were.
        plan: how much of each tenant.
        configuration: the digest of all settings that decide what is done.
        scale_version: of the features.
        embedding: the model.
        commit: of the code; None outside a repository.
        machine: on which it was measured.
        changes, findings: of the log of weights, replayed and derived again: findings must be 0.
        seconds: that it all took.
    """

    data: str
    tenants: int
    memories: int
    links: int
    conversations: int
    feedback: int
    recalls: int
    plan: Plan
    configuration: str
    scale_version: int
    embedding: str
    commit: str | None
    machine: dict[str, str | int | None]
    changes: int
    findings: int
    seconds: float


class EnhancementReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole report, as it is in JSON.

    Attributes:
        headline: recency's figure first.
        policies: by name, in the order in which to read them.
        differences: of every candidate against every baseline, in every measure.
        tenants: one by one.
        proposals: what all of them taught, by the policy that speaks for it.
        origin: what it all rests on.
    """

    headline: str
    policies: dict[str, PolicyReport]
    differences: list[Difference]
    tenants: list[TenantReport]
    proposals: dict[str, Proposal]
    origin: Origin

    def candidates(self) -> list[str]:
        """Their names."""
        return [name for name, policy in self.policies.items() if policy.kind == "candidate"]

    def baselines(self) -> list[str]:
        """Their names."""
        return [name for name, policy in self.policies.items() if policy.kind == "baseline"]

    def difference(self, candidate: str, baseline: str, metric: str = "top1") -> Difference:
        """One of the differences.

        Raises:
            KeyError: there is none.
        """
        for one in self.differences:
            if (one.candidate, one.baseline, one.metric) == (candidate, baseline, metric):
                return one
        raise KeyError((candidate, baseline, metric))

    def winner(self) -> str | None:
        """The proposal with the best top-1 of those surely better than the start; None if none is."""
        better = [
            name
            for name, proposed in self.proposals.items()
            if proposed.passed and self.difference(name, STARTING).low > 0
        ]
        return max(better, key=lambda name: self.policies[name].top1, default=None)

    def on_target(self, candidate: str) -> bool:
        """Whether top-1 rises by `TARGET` over the starting weights, with an interval above 0."""
        found = self.difference(candidate, STARTING)
        return found.delta >= TARGET and found.low > 0


def encode(report: EnhancementReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def read_report(path: Path) -> EnhancementReport:
    """Read a report.

    Raises:
        InvalidReport: the file cannot be read, or is no report.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=EnhancementReport)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidReport(f"{path} is no report of the evidence: {error}") from error


def measure(
    reenacted: Sequence[Reenacted],
    learned: Sequence[Learned],
    policies: Sequence[Policy],
    proposals: Mapping[str, Proposal],
    origin: Origin,
) -> EnhancementReport:
    """Measure the policies and write down what came of it.

    Args:
        reenacted: the tenants.
        learned: what the slow loop made for each, in the same order.
        policies: in the order in which to read them.
        proposals: what all of them taught together.
        origin: what it rests on.
    """
    ranked = {policy.name: rankings(policy.questions, policy.weights) for policy in policies}
    tenant = policies[0].questions.tenant
    p95 = float(np.quantile(np.concatenate([one.held_out.seconds for one in reenacted]), 0.95) * 1000)
    told = {
        policy.name: PolicyReport(
            **_means(ranked[policy.name].measures),
            kind=policy.kind,
            what=policy.what,
            queries=len(tenant),
            tenants=len(reenacted),
            unanswerable=int((~policy.questions.answered).sum()),
            recall_p95_ms=round(p95, 3),
        )
        for policy in policies
    }
    differences = list(_differences(policies, ranked, tenant, origin.plan.seed))
    return EnhancementReport(
        headline=_headline(told, differences, origin.plan),
        policies=told,
        differences=differences,
        tenants=[
            _tenant(one, own, ranked, tenant == number)
            for number, (one, own) in enumerate(zip(reenacted, learned, strict=True))
        ],
        proposals=dict(proposals),
        origin=origin,
    )


def proposal(fitted: PooledFit, in_force: Scales) -> Proposal:
    """A fit to what all tenants taught, as it is offered.

    Args:
        fitted: the fit.
        in_force: the scales of the features that it was fitted to.
    """
    half_life = fitted.half_life
    if half_life is None:
        return Proposal(_named(fitted.weights), str(fitted.gate), fitted.gate.passed)
    over = half_life.over(np.array(in_force.values))
    scales = dict(zip((feature.name for feature in FEATURES), over.tolist(), strict=True))
    return Proposal(_named(fitted.weights), str(fitted.gate), fitted.gate.passed, half_life.seconds, scales)


def _means(measures: Floats) -> dict[str, float]:
    return dict(zip(METRICS, measures.mean(axis=0).tolist(), strict=True))


def _named(weights: Floats) -> dict[str, float]:
    return dict(zip(NAMES[RETRIEVAL], weights.tolist(), strict=True))


def _differences(
    policies: Sequence[Policy], ranked: Mapping[str, Rankings], tenant: Integers, seed: int
) -> Iterator[Difference]:
    pairs = [
        (candidate.name, baseline.name)
        for candidate in policies
        if candidate.kind == "candidate"
        for baseline in policies
        if baseline.kind == "baseline"
    ]
    values = np.hstack(
        [ranked[candidate].measures - ranked[baseline].measures for candidate, baseline in pairs]
    )
    found = two_level_intervals(
        values, tenant, replicates=REPLICATES, confidence=CONFIDENCE, generator=np.random.default_rng(seed)
    )
    columns = zip(found.mean.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    for candidate, baseline in pairs:
        for metric in METRICS:
            yield Difference(candidate, baseline, metric, *next(columns))


def _headline(told: Mapping[str, PolicyReport], differences: Sequence[Difference], plan: Plan) -> str:
    def gained(candidate: str) -> str:
        (found,) = (
            one
            for one in differences
            if (one.candidate, one.baseline, one.metric) == (candidate, STARTING, "top1")
        )
        return (
            f"{told[candidate].top1:.1%} ({found.delta * 100:+.1f} points over the start, "
            f"95% {found.low * 100:+.1f} to {found.high * 100:+.1f})"
        )

    return (
        f"Recency alone puts the right memory first in {told[RECENCY].top1:.1%} of "
        f"{told[RECENCY].queries:,} held-out questions, the starting weights in {told[STARTING].top1:.1%}; "
        f"after {plan.feedback} feedback events a tenant, the fast rule in {gained(FAST_RULE)}, the fit in "
        f"{gained(FIT)}, the fit with a half-life of its own in {gained(FIT_HALF_LIFE)}."
    )


def _tenant(
    one: Reenacted, own: Learned, ranked: Mapping[str, Rankings], mine: NDArray[np.bool_]
) -> TenantReport:
    return TenantReport(
        tenant_id=one.tenant_id,
        memories=one.memories,
        links=one.links,
        taught=len(one.taught.sessions),
        untaught=one.untaught,
        version=one.version,
        queries=int(mine.sum()),
        unanswerable=int((~one.held_out.questions.answered).sum()),
        policies={name: Measures(**_means(ranking.measures[mine])) for name, ranking in ranked.items()},
        learned=by_name(one.learned),
        fit=_own_fit(own.fitted),
        fit_half_life=_own_fit(own.fitted_profiled),
        half_life_seconds=None if own.profiled.half_life is None else own.profiled.half_life.seconds,
    )


def _own_fit(fitted: GatedFit) -> OwnFit:
    gain = fitted.gain
    return OwnFit(
        gain=None if gain is None else gain.mean,
        lower=None if gain is None else gain.lower,
        applied=fitted.own,
        weights=_named(fitted.weights),
    )


def compare(before: EnhancementReport, after: EnhancementReport) -> list[Difference]:
    """How the candidates of one report stand to those of another, measured on the same questions.

    The intervals are by tenants alone: what each question gave is not in a report.

    Raises:
        InvalidReport: the reports speak of different tenants or questions, or share no candidate.
    """
    if before.origin.plan != after.origin.plan:
        raise InvalidReport(
            f"the reports re-enacted differently, {before.origin.plan} and {after.origin.plan}: "
            "make both with the same plan"
        )
    if [one.tenant_id for one in before.tenants] != [one.tenant_id for one in after.tenants]:
        raise InvalidReport(
            "the reports are about different tenants: make both with the same number of people"
        )
    shared = [name for name in after.candidates() if name in before.candidates()]
    if not shared:
        raise InvalidReport("the reports have no candidate in common")
    differences = []
    tenants = np.arange(len(after.tenants))
    for name in shared:
        values = np.array(
            [
                [getattr(new.policies[name], m) - getattr(old.policies[name], m) for m in METRICS]
                for old, new in zip(before.tenants, after.tenants, strict=True)
            ]
        )
        generator = np.random.default_rng(after.origin.plan.seed)
        found = two_level_intervals(values, tenants, replicates=REPLICATES, generator=generator)
        columns = zip(METRICS, found.mean.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
        differences += [Difference(name, name, *column) for column in columns]
    return differences


def worse(differences: Sequence[Difference], tolerance: float) -> list[Difference]:
    """Those that fall by more than the tolerance, in a measure that is judged."""
    return [one for one in differences if one.metric in JUDGED and one.delta < -tolerance]
