"""Jobs: which assets run together."""

import dagster as dg

from somabrain_dagster.assets.adaptation import adaptation_state
from somabrain_dagster.assets.ann_index import ann_index
from somabrain_dagster.assets.corpus import CORPUS_KINDS, corpus_key
from somabrain_dagster.assets.landed import LANDED_KEYS

LEARNING_CHAIN = "learning_chain"

PROOF = [*LANDED_KEYS, adaptation_state.key]
"""What the chain does besides aggregating days."""

learning_chain = dg.define_asset_job(
    LEARNING_CHAIN,
    selection=[*PROOF, dg.AssetKey("feedback_daily")],
    description="Observe what landed, aggregate the days that it is about, and prove the weights. In one "
    "process: the steps are short, and starting a process costs more than each of them.",
    executor_def=dg.in_process_executor,
)

index_rebuild = dg.define_asset_job(
    "index_rebuild",
    selection=[ann_index],
    description="Rebuild the indexes of large tenants while they serve, and prove each by an exact search.",
    executor_def=dg.in_process_executor,
)

tenant_corpora = dg.define_asset_job(
    "tenant_corpora",
    selection=[corpus_key(kind, pooled=False) for kind in CORPUS_KINDS],
    description="The corpora of one tenant, a partition each: examples, formats, tokens and preferences.",
    executor_def=dg.in_process_executor,
)

pooled_corpora = dg.define_asset_job(
    "pooled_corpora",
    selection=[corpus_key(kind, pooled=True) for kind in CORPUS_KINDS],
    description="The corpora of all tenants that agreed, together.",
    executor_def=dg.in_process_executor,
)
