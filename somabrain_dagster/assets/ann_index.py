"""The indexes of large tenants, rebuilt and proven."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg

from somabrain_dagster.assets.metadata import OWNERS, made_every
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.indexes import SUFFICIENT_RECALL, Rebuilt, rebuild_all
from somabrain_dagster.resources.brain import Brain

OPERATIONS = "operations"
"""The group of what keeps the brain in order."""

INDEXES_FIND = "every_index_finds_what_an_exact_search_finds"


@dg.asset(
    description="The approximate index of each large tenant. A tenant that has become large gets a partition "
    "of memories with an HNSW index of its own; indexes that are there are built anew while they serve. Then "
    "each is compared with an exact search, by questions that the tenant asked, and serves only if it "
    "passes: other searches are exact.",
    deps=["memories"],
    group_name=OPERATIONS,
    kinds={"postgres"},
    owners=OWNERS,
    tags={"somabrain/layer": "index"},
    pool="ann_index",
    freshness_policy=made_every(timedelta(weeks=1)),
    check_specs=[
        dg.AssetCheckSpec(
            INDEXES_FIND,
            asset="ann_index",
            description=f"Every index gives at least {SUFFICIENT_RECALL:.0%} of the ten nearest memories "
            "that an exact search gives. One that does not is no longer in use when this fails.",
            blocking=True,
        )
    ],
)
def ann_index(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Rebuild all, promote the tenants that have become large, and say what each index is worth."""
    rebuilt = rebuild_all(
        brain.database,
        brain.settings.hnsw_threshold,
        actor=f"dagster run {context.run.run_id}",
        embedder=embedder_of(brain.settings),
    )
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(rebuilt),
            "threshold": brain.settings.hnsw_threshold,
            "bytes": sum(each.index_bytes for each in rebuilt),
            "seconds": sum(each.seconds for each in rebuilt),
            "indexes": indexes_table(rebuilt),
        },
        check_results=[check_result(rebuilt)],
    )


def indexes_table(rebuilt: Sequence[Rebuilt]) -> dg.TableMetadataValue:
    """Each tenant's index."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "tenant": each.tenant_id,
                    "memories": each.embedded,
                    "recall@10": round(each.proof.recall_at_10, 4),
                    "questions asked": each.proof.asked,
                    "own memories": each.proof.own,
                    "bytes": each.index_bytes,
                    "seconds": round(each.seconds, 2),
                    "serves": each.proof.sufficient,
                }
            )
            for each in rebuilt
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("tenant", "string"),
                dg.TableColumn("memories", "int", description="that have an embedding"),
                dg.TableColumn("recall@10", "float", description="against an exact search"),
                dg.TableColumn(
                    "questions asked", "int", description="of the tenant's own, in the comparison"
                ),
                dg.TableColumn("own memories", "int", description="whose neighbours were compared"),
                dg.TableColumn("bytes", "int", description="of the index on disk"),
                dg.TableColumn("seconds", "float", description="to build it, a move of the rows included"),
                dg.TableColumn("serves", "bool"),
            ]
        ),
    )


def check_result(rebuilt: Sequence[Rebuilt]) -> dg.AssetCheckResult:
    """Whether every index gives enough."""
    low = [each for each in rebuilt if not each.proof.sufficient]
    if not rebuilt:
        description = "No tenant is large enough for an index: every search is exact."
    elif low:
        description = "Searched exactly until a rebuild does better: " + ", ".join(
            f"{each.tenant_id} ({each.proof.recall_at_10:.3f})" for each in low
        )
    else:
        description = f"{len(rebuilt)} indexes serve."
    lowest = min((each.proof.recall_at_10 for each in rebuilt), default=1.0)
    return dg.AssetCheckResult(
        check_name=INDEXES_FIND,
        passed=not low,
        description=description,
        metadata={"lowest recall@10": lowest, "indexes": len(rebuilt)},
    )
