"""What landed: external assets that Dagster observes and does not make."""

from collections.abc import Iterator
from typing import get_args

import dagster as dg

from somabrain_dagster.assets.metadata import LANDED, OWNERS, beta_accepted, column_schema
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.landed import CountedTable, read_columns_of, read_landed
from somabrain_dagster.store.positions import position, read_heads
from somabrain_dagster.store.retention import count_pruned

FEEDBACK_EVENTS = dg.AssetKey("feedback_events")

_DESCRIPTIONS = {
    "feedback_events": "What people and programs say of what was recalled, each event with the "
    "neuromodulators that it met. The data version is the position of the log: how many changes of weights "
    "the tenants' logs hold, and a digest of where each one ends. It is safe against late commits, because a "
    "tenant's versions are given under a lock and have no gap.",
    "recalls": "Recalls as they were made: candidates, features, policy and the weights in force. The data "
    "version counts the rows, and names the greatest id and the latest landing.",
    "memories": "What tenants remember. The data version counts the rows, and names the greatest id and the "
    "latest landing.",
    "token_usage": "Tokens that sessions used. The data version counts the rows, and names the greatest id "
    "and the latest landing.",
}

LANDED_KEYS = [dg.AssetKey(table) for table in _DESCRIPTIONS]


@beta_accepted()
def landed_assets() -> dg.AssetsDefinition:
    """The assets of `LANDED_KEYS`, each of which can be observed alone."""

    @dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]
        description="Look how far each table has come.",
        specs=[
            dg.AssetSpec(
                table,
                description=description,
                group_name=LANDED,
                kinds={"postgres"},
                owners=OWNERS,
                tags={"somabrain/layer": "landed"},
                metadata={"dagster/table_name": table},
            )
            for table, description in _DESCRIPTIONS.items()
        ],
        can_subset=True,
    )
    def observe_landed(
        context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
    ) -> Iterator[dg.ObserveResult]:
        """Observe those tables that are selected, all at one instant."""
        with brain.database.snapshot() as connection:
            if FEEDBACK_EVENTS in context.selected_asset_keys:
                yield _observe_feedback(connection)
            for table in get_args(CountedTable):
                if dg.AssetKey(table) in context.selected_asset_keys:
                    yield _observe_table(connection, table)

    assert isinstance(observe_landed, dg.AssetsDefinition)
    return observe_landed


def _observe_feedback(connection: Connection) -> dg.ObserveResult:
    heads = read_heads(connection)
    pruned = count_pruned(connection, "feedback_events")
    return dg.ObserveResult(
        asset_key=FEEDBACK_EVENTS,
        data_version=dg.DataVersion(position(heads)),
        metadata={
            "dagster/row_count": sum(head.feedback_seq for head in heads) - pruned,
            "events that are pruned": pruned,
            "dagster/column_schema": column_schema(read_columns_of(connection, "feedback_events")),
            "position": position(heads),
            "tenants": len(heads),
            "changes of weights": sum(head.version + 1 for head in heads),
            "latest landing": max((head.updated_at.isoformat() for head in heads), default="never"),
        },
    )


def _observe_table(connection: Connection, table: CountedTable) -> dg.ObserveResult:
    counted = read_landed(connection, table)
    return dg.ObserveResult(
        asset_key=table,
        data_version=dg.DataVersion(counted.version),
        metadata={
            "dagster/row_count": counted.rows,
            "dagster/column_schema": column_schema(read_columns_of(connection, table)),
            "tenants": counted.tenants,
            "greatest id": counted.last_id,
            "latest landing": "never" if counted.last_landing is None else counted.last_landing.isoformat(),
        },
    )
