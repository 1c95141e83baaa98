"""The evidence that learned weights recall better, as an asset: only a person materialises it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from somabrain_dagster.assets.metadata import OWNERS, plot
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations.enhancement_plot import draw
from somabrain_dagster.operations.enhancement_report import JUDGED, EnhancementReport, encode
from somabrain_dagster.operations.evidence import PEOPLE, evidence
from somabrain_dagster.operations.reenactment import Plan
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings

EVALUATION = "evaluation"
"""The group of what judges recall."""

TOLD_EVERY = 10
"""Of a hundred parts of what is being done, one line in the log of the run."""


class EvidencePlan(dg.Config):
    """How much is re-enacted: people, and of each the first memories, feedback events and later questions."""

    people: int = PEOPLE
    memories: int = Plan.memories
    feedback: int = Plan.feedback
    held_out: int = Plan.held_out
    seed: int = Plan.seed
    workers: int = 2


@dg.asset(
    description="What learning is worth: recorded conversations are re-enacted in a database of their own, "
    "100 feedback events a tenant land, and all policies rank the same later questions, whose right answer "
    "is known. Recency alone stands beside the starting weights and a fixed hybrid. It takes minutes and "
    "reads nothing of what landed in the brain: same data, code and settings, same figures.",
    group_name=EVALUATION,
    kinds={"postgres", "numpy"},
    owners=OWNERS,
    tags={"somabrain/layer": "evidence"},
    pool="enhancement_report",
)
def enhancement_report(
    context: dg.AssetExecutionContext, config: EvidencePlan, brain: dg.ResourceParam[Brain]
) -> dg.MaterializeResult[None]:
    """Measure, write the report beside the brain's other files, and show it."""
    plan = Plan(config.memories, config.feedback, config.held_out, config.seed)
    report = evidence(
        brain.settings,
        embedder_of(brain.settings),
        config.people,
        plan,
        workers=config.workers,
        progress=_told(context.log.info),
    )
    written = encode(report)
    path = report_path(brain.settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written)
    if report.origin.findings:
        context.log.warning("the log of weights does not hold: %d findings", report.origin.findings)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(hashlib.sha256(written).hexdigest()),
        metadata={
            "headline": report.headline,
            "dagster/row_count": report.origin.recalls,
            "policies": policies_table(report),
            "what candidates gain": differences_table(report),
            "top-1": plot(draw(report), "top-1 by policy, and what candidates gain"),
            "report": dg.MetadataValue.path(path),
            "findings in the log of weights": report.origin.findings,
            "commit": report.origin.commit or "unknown",
            "seconds": report.origin.seconds,
        },
    )


def report_path(settings: Settings) -> Path:
    """Where the report is written."""
    return settings.home / "reports" / "enhancement.json"


def policies_table(report: EnhancementReport) -> dg.TableMetadataValue:
    """What each policy was worth over all tenants."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "policy": name,
                    "kind": policy.kind,
                    **{metric: round(getattr(policy, metric), 4) for metric in (*JUDGED, "margin")},
                    "p95 of recall, ms": policy.recall_p95_ms,
                    "queries": policy.queries,
                    "unanswerable": policy.unanswerable,
                    "what": policy.what,
                }
            )
            for name, policy in report.policies.items()
        ]
    )


def differences_table(report: EnhancementReport) -> dg.TableMetadataValue:
    """Top-1 of each candidate less that of each baseline, with its interval."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "candidate": candidate,
                    "baseline": baseline,
                    "difference in top-1": round(found.delta, 4),
                    "low": round(found.low, 4),
                    "high": round(found.high, 4),
                }
            )
            for candidate in report.candidates()
            for baseline in report.baselines()
            for found in [report.difference(candidate, baseline)]
        ]
    )


def _told(log: Callable[[str], None]) -> Callable[[str, int, int | None], None]:
    last: dict[str, int] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        part = 0 if not total else 100 * done // total // TOLD_EVERY
        if part > last.get(what, -1):
            last[what] = part
            log(f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}")

    return tell
