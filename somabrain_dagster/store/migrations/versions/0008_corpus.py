"""What corpora need: manifests, what each tenant gave to each, tombstones, and tenants that were deleted."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql_beside(__file__)
