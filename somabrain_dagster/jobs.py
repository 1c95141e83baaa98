"""Jobs: which assets run together."""

from typing import Any

import dagster as dg

from somabrain_dagster.assets.adaptation import adaptation_state
from somabrain_dagster.assets.ann_index import ann_index
from somabrain_dagster.assets.audit_seal import audit_seal
from somabrain_dagster.assets.backups import restore_drill, state_backup
from somabrain_dagster.assets.corpus import CORPUS_KINDS, corpus_key
from somabrain_dagster.assets.landed import LANDED_KEYS
from somabrain_dagster.assets.promotion import promoted_weights, served_weights
from somabrain_dagster.assets.proposals import parameter_proposals, tenant_weights
from somabrain_dagster.assets.retention import feedback_retention
from somabrain_dagster.assets.trends import performance_trends
from somabrain_dagster.assets.trials import canary_rollout, experiment_results
from somabrain_dagster.partitions import SHARES, tenant_shares

LEARNING_CHAIN = "learning_chain"

PROOF = [
    *LANDED_KEYS,
    adaptation_state.key,
    performance_trends.key,
    parameter_proposals.key,
    tenant_weights.key,
]
"""What the chain does besides aggregating days."""

learning_chain = dg.define_asset_job(
    LEARNING_CHAIN,
    selection=[*PROOF, dg.AssetKey("feedback_daily")],
    description="Observe what landed, aggregate the days that it is about, prove the weights, judge the "
    "trends of what is said, and where enough is new fit better weights, for everybody and for each tenant. "
    "In one process: the steps are short, and starting a process costs more than each of them.",
    executor_def=dg.in_process_executor,
)

EXPERIMENT_ANALYSIS = "experiment_analysis"

experiment_analysis = dg.define_asset_job(
    EXPERIMENT_ANALYSIS,
    selection=[experiment_results, canary_rollout],
    description="Look at the experiment: analyse it once it is complete, end it where it does harm, begin "
    "the one that waits; and begin the canary of an arm that is better.",
    executor_def=dg.in_process_executor,
)

CANARY_LOOK = "canary_look"

canary_look = dg.define_asset_job(
    CANARY_LOOK,
    selection=[canary_rollout, promoted_weights, served_weights],
    description="Take the look at the canary that is due, promote what it allows, and publish the weights.",
    executor_def=dg.in_process_executor,
)

index_rebuild = dg.define_asset_job(
    "index_rebuild",
    selection=[ann_index],
    description="Rebuild the indexes of large tenants while they serve, and prove each by an exact search.",
    executor_def=dg.in_process_executor,
)

history_seal = dg.define_asset_job(
    "history_seal",
    selection=[audit_seal],
    description="Seal the heads of all hash chains, if any has moved.",
    executor_def=dg.in_process_executor,
)

retention = dg.define_asset_job(
    "retention",
    selection=[feedback_retention],
    description="Seal what landed too long ago, and drop it, a week at a time.",
    executor_def=dg.in_process_executor,
)

backup = dg.define_asset_job(
    "backup",
    selection=[state_backup],
    description="Back up Postgres and Redis while they serve, and remove the backups that are not kept.",
    executor_def=dg.in_process_executor,
)

backup_drill = dg.define_asset_job(
    "backup_drill",
    selection=[restore_drill],
    description="Restore the newest backup into a scratch instance and prove it there.",
    executor_def=dg.in_process_executor,
)

tenant_corpora = dg.define_asset_job(
    "tenant_corpora",
    selection=[corpus_key(kind, pooled=False) for kind in CORPUS_KINDS],
    description="The corpora of one tenant, a partition each: examples, formats, tokens and preferences.",
    executor_def=dg.in_process_executor,
)


def _of_share(partition: str) -> dict[str, Any]:
    fitting = {"share": int(partition), "shares": SHARES}
    return {"ops": {tenant_weights.op.name: {"config": fitting}}}


tenant_fits = dg.define_asset_job(
    "tenant_fits",
    selection=[tenant_weights],
    description="Fit the weights of one share of the tenants: what the chain does for all of them one after "
    "the other, a backfill of this job does on as many workers as there are.",
    config=dg.PartitionedConfig(tenant_shares, run_config_for_partition_key_fn=_of_share),
    executor_def=dg.in_process_executor,
)

pooled_corpora = dg.define_asset_job(
    "pooled_corpora",
    selection=[corpus_key(kind, pooled=True) for kind in CORPUS_KINDS],
    description="The corpora of all tenants that agreed, together.",
    executor_def=dg.in_process_executor,
)
