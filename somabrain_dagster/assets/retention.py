"""What landed too long ago, sealed and dropped."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import numpy as np
from matplotlib.figure import Figure

from somabrain_dagster.assets.ann_index import OPERATIONS
from somabrain_dagster.assets.metadata import OWNERS, column_schema, made_every, plot
from somabrain_dagster.operations.retention import Outcome, Refusal, run
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.retention import RELATIONS, Pruning, read_holds, read_prunings

NOTHING_OVERDUE = "nothing_is_overdue"


@dg.asset(
    description="Feedback, recalls and token usage of weeks that landed too long ago. A week of feedback "
    "goes once every event in it is counted in `feedback_daily`. Each tenant's rows are sealed: their number "
    "and the Merkle root over their digests stay, and the audit trail has the root over the seals. Then the "
    "partition is detached while others read and write, and dropped. Rows of a tenant under a legal hold "
    "stay, and so do changes of weights: replay goes on from version 0. Old idempotency keys and counts of "
    "requests are deleted. Partitions for the weeks to come are made.",
    deps=["feedback_events", "recalls", "token_usage", "feedback_daily"],
    group_name=OPERATIONS,
    kinds={"postgres"},
    owners=OWNERS,
    tags={"somabrain/layer": "retention"},
    metadata={"dagster/table_name": "prunings"},
    pool="feedback_retention",
    freshness_policy=made_every(timedelta(days=1)),
    check_specs=[
        dg.AssetCheckSpec(
            NOTHING_OVERDUE,
            asset="feedback_retention",
            description="Every partition that is old enough is gone, but for rows under a legal hold.",
        )
    ],
)
def feedback_retention(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Prune, and say what went, what stayed and why."""
    outcome = run(
        brain.database,
        brain.settings.retention.kept,
        brain.settings.first_day,
        actor=f"dagster run {context.run.run_id}",
        relayed=brain.settings.kafka.bootstrap is not None,
    )
    with brain.database.snapshot() as connection:
        prunings = [pruning for pruning in read_prunings(connection) if pruning.dropped_at is not None]
        holds = read_holds(connection)
        columns = read_columns_of(connection, "prunings")
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(prunings),
            "dagster/column_schema": column_schema(columns),
            "kept since": outcome.before.isoformat(),
            "partitions dropped": len(outcome.dropped),
            "rows dropped": sum(pruning.rows for pruning in outcome.dropped),
            "bytes freed": sum(pruning.bytes for pruning in outcome.dropped),
            "rows kept under a legal hold": sum(pruning.kept_rows or 0 for pruning in outcome.dropped),
            "tenants under a legal hold": len(holds),
            "partitions kept under a legal hold": outcome.held,
            "partitions made ahead": outcome.made,
            **{f"{table} deleted": rows for table, rows in outcome.deleted.items()},
            "seconds": outcome.seconds,
            **({"dropped now": prunings_table(outcome.dropped)} if outcome.dropped else {}),
            **({"pruned so far": plot(draw_prunings(prunings), "pruned so far")} if prunings else {}),
        },
        check_results=[check_result(outcome)],
    )


def prunings_table(prunings: Sequence[Pruning]) -> dg.TableMetadataValue:
    """What each of them took away."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "table": pruning.relation,
                    "from": f"{pruning.begins:%Y-%m-%d}",
                    "to": f"{pruning.ends:%Y-%m-%d}",
                    "tenants": pruning.tenants,
                    "rows": pruning.rows,
                    "rows kept": pruning.kept_rows or 0,
                    "bytes": pruning.bytes,
                }
            )
            for pruning in prunings
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("table", "string"),
                dg.TableColumn("from", "string", description="landed on this day or later"),
                dg.TableColumn("to", "string", description="landed before this day"),
                dg.TableColumn("tenants", "int", description="whose rows were sealed and are gone"),
                dg.TableColumn("rows", "int", description="that were sealed and are gone"),
                dg.TableColumn("rows kept", "int", description="of tenants under a legal hold"),
                dg.TableColumn("bytes", "int", description="of the partition on disk, with its indexes"),
            ]
        ),
    )


def draw_prunings(prunings: Sequence[Pruning]) -> Figure:
    """Rows that were pruned by the week in which they landed, one panel for each table."""
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    panels = figure.subplots(len(RELATIONS), 1, sharex=True)
    for axes, relation, color in zip(panels, RELATIONS, ("#4477aa", "#228833", "#ccbb44"), strict=True):
        own = [pruning for pruning in prunings if pruning.relation == relation]
        weeks = [np.datetime64(pruning.begins.date()) for pruning in own]
        axes.bar(weeks, [pruning.rows for pruning in own], width=timedelta(days=6), align="edge", color=color)
        axes.set_title(relation, fontsize=10, loc="left")
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].tick_params(axis="x", rotation=20)
    return figure


def check_result(outcome: Outcome) -> dg.AssetCheckResult:
    """Whether all went that should."""
    return dg.AssetCheckResult(
        check_name=NOTHING_OVERDUE,
        passed=not outcome.refused,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(map(_told, outcome.refused)) or None,
        metadata={"overdue": len(outcome.refused)},
    )


def _told(refusal: Refusal) -> str:
    return f"{refusal.partition}: {refusal.reason}"
