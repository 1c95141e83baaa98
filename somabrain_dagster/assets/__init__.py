"""Software-defined assets, one module a group: they read the store, call the mathematics, write the store."""

import warnings

# Of Dagster's minor version that the project pins; the others' warnings are shown.
warnings.filterwarnings(
    "ignore",
    message="(Function `multi_observable_source_asset`|Parameter `backfill_policy`) .*is currently in beta",
)
