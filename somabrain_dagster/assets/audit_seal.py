"""The seals over the history."""

from datetime import timedelta

import dagster as dg

from somabrain_dagster.assets.ann_index import OPERATIONS
from somabrain_dagster.assets.metadata import OWNERS, column_schema, made_every
from somabrain_dagster.operations.sealing import seal_history
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.landed import read_columns_of


@dg.asset(
    description="The Merkle root over the heads of all hash chains at an instant. It is kept in Postgres, "
    "told of in the audit trail, which Kafka gets where it is configured, and put into the artifact store "
    "where one is named. `somabrain audit verify` compares.",
    deps=["feedback_events"],
    group_name=OPERATIONS,
    kinds={"postgres"},
    owners=OWNERS,
    tags={"somabrain/layer": "audit"},
    metadata={"dagster/table_name": "audit_seals"},
    freshness_policy=made_every(timedelta(hours=1)),
)
def audit_seal(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> dg.MaterializeResult[None]:
    """Seal, unless nothing happened since the last seal."""
    made = seal_history(
        brain.database, brain.settings.artifacts_url, actor=f"dagster run {context.run.run_id}"
    )
    with brain.database.snapshot() as connection:
        schema = column_schema(read_columns_of(connection, "audit_seals"))
    if made is None:
        return dg.MaterializeResult(
            metadata={
                "dagster/column_schema": schema,
                "sealed": "nothing happened since the last seal",
            }
        )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": made.number,
            "dagster/column_schema": schema,
            "seal": made.number,
            "chains": made.chains,
            "root": made.root,
            "sealed at": dg.MetadataValue.timestamp(made.sealed_at),
        }
    )
