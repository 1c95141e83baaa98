"""Jobs: which assets run together."""

import dagster as dg

LEARNING_CHAIN = "learning_chain"

learning_chain = dg.define_asset_job(
    LEARNING_CHAIN,
    selection=dg.AssetSelection.assets(
        "feedback_events", "recalls", "memories", "token_usage", "feedback_daily", "adaptation_state"
    ),
    description="Observe what landed, aggregate the days that it is about, and prove the weights. In one "
    "process: the steps are short, and starting a process costs more than each of them.",
    executor_def=dg.in_process_executor,
)
