"""The weights as the log proves them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
import numpy as np
from matplotlib.figure import Figure

from somabrain_dagster.assets.landed import FEEDBACK_EVENTS
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, column_schema, plot
from somabrain_dagster.learning.weights import WEIGHTS, by_name, to_units
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.positions import ADAPTATION_STATE, advance_marks, position
from somabrain_dagster.store.proofs import record_proof
from somabrain_dagster.store.verification import (
    BOUNDS,
    CHAIN,
    GAPS,
    REDERIVATION,
    REPLAY,
    SEALS,
    Finding,
    WeightLog,
    verify,
)

LISTED_TENANTS = 200
LISTED_FINDINGS = 20
DRAWN_TENANTS = 6
DRAWN_POINTS = 400
"""Of a line; a longer log is thinned evenly, its last change kept."""


@dataclass(frozen=True)
class _Claim:
    check: str
    claim: str
    description: str
    blocking: bool = True


_CLAIMS = (
    _Claim(
        "replay_equals_live",
        REPLAY,
        "The fold of the stored shifts, from version 0 on, gives the live weights, to the nano-unit.",
    ),
    _Claim(
        "every_shift_is_rederived",
        REDERIVATION,
        "Each stored shift is what the rule makes of its event, the recall that it answers, the "
        "neuromodulators recorded with it and the configuration that it names. A log forged from end to end "
        "passes the replay and fails here.",
    ),
    _Claim(
        "versions_have_no_gap",
        GAPS,
        "Each tenant's versions follow one another without a gap, on which the marks of consumers rely.",
    ),
    _Claim(
        "the_hash_chain_is_intact",
        CHAIN,
        "Each change hashes to the one before it, each live state to its last change, and each event to what "
        "landed: nothing was rewritten.",
    ),
    _Claim(
        "bounds_hold",
        BOUNDS,
        "Live weights are within the bounds of the configuration in force. It does not block: what could "
        "break it breaks a proof that does.",
        blocking=False,
    ),
    _Claim(
        "pruned_events_are_sealed",
        SEALS,
        "The seal of feedback that is gone is the one that the digests in the log give, and the seals of "
        "each pruning are those that the audit trail recorded.",
    ),
)


@dg.asset(
    description="Each tenant's weights, proven: the whole log of changes and the live states are read at one "
    "instant, the log is replayed from version 0, and each shift is derived again from what it answers. The "
    "data version is the position of the log.",
    deps=[FEEDBACK_EVENTS, "recalls"],
    group_name=LEARNING,
    kinds={"postgres", "numpy"},
    owners=OWNERS,
    tags={"somabrain/layer": "state"},
    metadata={"dagster/table_name": "adaptation_states"},
    pool="adaptation_state",
    check_specs=[
        dg.AssetCheckSpec(
            claim.check, asset="adaptation_state", description=claim.description, blocking=claim.blocking
        )
        for claim in _CLAIMS
    ],
)
def adaptation_state(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Verify the log, and mark how far it holds."""
    with brain.database.snapshot() as connection:
        verification = verify(connection)
        columns = read_columns_of(connection, "adaptation_states")
    log = verification.log
    heads = log.heads
    results = [check_result(claim.check, verification.of(claim.claim)) for claim in _CLAIMS]
    with brain.database.as_operator() as connection:
        record_proof(connection, verification)
    most_changed = np.argsort(-log.log.lengths, kind="stable").tolist()
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(position(heads)),
        metadata={
            "dagster/row_count": len(heads),
            "dagster/column_schema": column_schema(columns),
            "position": position(heads),
            "tenants": len(heads),
            "changes": int(log.log.lengths.sum()),
            "events": sum(head.feedback_seq for head in heads),
            "events that are sealed": verification.sealed_events,
            "derived again from feedback since": "the first"
            if verification.derived_since is None
            else verification.derived_since.isoformat(),
            **(
                {"paths of the weights": plot(draw_paths(log, most_changed[:DRAWN_TENANTS]), "weights")}
                if heads
                else {}
            ),
            f"weights (the {LISTED_TENANTS} tenants with most changes)"
            if len(heads) > LISTED_TENANTS
            else "weights": weights_table(log, most_changed[:LISTED_TENANTS]),
        },
        check_results=results,
    )
    if all(result.passed for result in results):
        with brain.database.as_operator() as connection:
            advance_marks(connection, ADAPTATION_STATE, heads)


def check_result(name: str, findings: Sequence[Finding]) -> dg.AssetCheckResult:
    """Whether a claim holds, with the first of what contradicts it."""
    if not findings:
        return dg.AssetCheckResult(check_name=name, passed=True, metadata={"findings": 0})
    listed = [
        dg.TableRecord(
            {
                "tenant": finding.tenant_id,
                "version": "live" if finding.version is None else str(finding.version),
                "finding": finding.message,
            }
        )
        for finding in findings[:LISTED_FINDINGS]
    ]
    return dg.AssetCheckResult(
        check_name=name,
        passed=False,
        description=f"{len(findings)} found, the first: {findings[0]}",
        metadata={"findings": len(findings), f"first {len(listed)}": dg.MetadataValue.table(listed)},
    )


def weights_table(log: WeightLog, tenants: Sequence[int]) -> dg.TableMetadataValue:
    """The live weights of these tenants, in units."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "tenant": log.states[place].tenant_id,
                    "version": log.states[place].version,
                    **by_name(log.states[place].weights),
                }
            )
            for place in tenants
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("tenant", "string"),
                dg.TableColumn("version", "int"),
                *(
                    dg.TableColumn(
                        weight.name, "float", description=f"{weight.symbol}, in [{weight.low}, {weight.high}]"
                    )
                    for weight in WEIGHTS
                ),
            ]
        ),
    )


def draw_paths(log: WeightLog, tenants: Sequence[int]) -> Figure:
    """The weights of these tenants by version, one panel for each weight that ever moved."""
    paths = [log.log.after[first : first + length] for first, length in _rows(log, tenants)]
    moved = [
        place
        for place in range(len(WEIGHTS))
        if any((path[:, place] != path[0, place]).any() for path in paths)
    ] or list(range(3))
    columns = min(3, len(moved))
    rows = -(-len(moved) // columns)
    figure = Figure(figsize=(9, 0.7 + 2.1 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, place in zip(panels, moved, strict=False):
        for tenant, path, color in zip(tenants, paths, _COLORS, strict=False):
            drawn = np.unique(np.linspace(0, len(path) - 1, DRAWN_POINTS).round().astype(np.intp))
            axes.plot(
                drawn, to_units(path[drawn, place]), color=color, linewidth=1.4, label=log.tenants[tenant]
            )
        weight = WEIGHTS[place]
        axes.set_title(f"{weight.symbol} {weight.name}", fontsize=10)
        axes.set_ylabel(weight.symbol, rotation=0, labelpad=10)
        axes.set_xlabel("version")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    for axes in panels[len(moved) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _rows(log: WeightLog, tenants: Sequence[int]) -> list[tuple[int, int]]:
    firsts, lengths = log.first_rows.tolist(), log.log.lengths.tolist()
    return [(firsts[place], lengths[place]) for place in tenants]


_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme, told apart by the colour-blind too; one for each tenant that is drawn."""
