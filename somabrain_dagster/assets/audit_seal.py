"""The seals over the history."""

import dagster as dg

from somabrain_dagster.assets.ann_index import OPERATIONS
from somabrain_dagster.assets.metadata import OWNERS
from somabrain_dagster.operations.sealing import seal_history
from somabrain_dagster.resources.brain import Brain


@dg.asset(
    description="The Merkle root over the heads of all hash chains at an instant. It is kept in Postgres, "
    "told of in the audit trail, which Kafka gets where it is configured, and put into the artifact store "
    "where one is named. `somabrain audit verify` compares.",
    deps=["feedback_events"],
    group_name=OPERATIONS,
    kinds={"postgres"},
    owners=OWNERS,
    tags={"somabrain/layer": "audit"},
)
def audit_seal(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> dg.MaterializeResult[None]:
    """Seal, unless nothing happened since the last seal."""
    made = seal_history(
        brain.database, brain.settings.artifacts_url, actor=f"dagster run {context.run.run_id}"
    )
    if made is None:
        return dg.MaterializeResult(metadata={"sealed": "nothing happened since the last seal"})
    return dg.MaterializeResult(
        metadata={
            "seal": made.number,
            "chains": made.chains,
            "root": made.root,
            "sealed at": dg.MetadataValue.timestamp(made.sealed_at),
        }
    )
