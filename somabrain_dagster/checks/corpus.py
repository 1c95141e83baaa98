"""What must hold of a corpus, as sentences."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from somabrain_dagster.corpus.artifacts import Artifacts
from somabrain_dagster.corpus.exporting import pseudonyms_of, tombstones_of
from somabrain_dagster.corpus.verification import (
    DIGESTS,
    PERSONAL,
    RULES,
    SPLIT,
    TOMBSTONES,
    Finding,
    verify,
)
from somabrain_dagster.resources.brain import Brain

SENTENCES: Mapping[str, tuple[str, str]] = {
    "digests_match": (
        DIGESTS,
        "Every file has the SHA-256 that its account says; there is no other file.",
    ),
    "trainers_can_read_it": (RULES, "Every file keeps the rules that its trainer documents for it."),
    "nothing_leaks_across_the_split": (
        SPLIT,
        "No session, no content and no run of 13 words of the validation split is in what is trained on.",
    ),
    "no_personal_data_is_left": (PERSONAL, "No pattern of personal data or secrets is left in any text."),
    "no_row_is_tombstoned": (TOMBSTONES, "No example is made of a tenant or a memory that was deleted."),
}
"""By check: the claim of `verify`, and what it means."""

LISTED = 20


def corpus_check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of a corpus; what is made of it waits for them."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=description, blocking=True)
        for name, (_, description) in SENTENCES.items()
    ]


def corpus_check_results(
    brain: Brain, artifacts: Artifacts, corpus_id: str, asset: dg.AssetKey
) -> list[dg.AssetCheckResult]:
    """Pull a corpus as its readers do, and verify it."""
    with tempfile.TemporaryDirectory() as folder:
        pulled = artifacts.pull(corpus_id, Path(folder))
        findings = verify(pulled, tombstones_of(brain.database, pseudonyms_of(brain.settings)))
    return [
        _result(name, asset, [finding for finding in findings if finding.claim == claim])
        for name, (claim, _) in SENTENCES.items()
    ]


def _result(name: str, asset: dg.AssetKey, findings: Sequence[Finding]) -> dg.AssetCheckResult:
    listed = [dg.TableRecord({"finding": str(finding)}) for finding in findings[:LISTED]]
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset,
        passed=not findings,
        description=f"{len(findings)} found, the first: {findings[0]}" if findings else None,
        metadata={
            "findings": len(findings),
            **({f"first {len(listed)}": dg.MetadataValue.table(listed)} if listed else {}),
        },
    )
