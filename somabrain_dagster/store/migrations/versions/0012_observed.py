"""What metrics tell of that was written down nowhere: proofs, backups, how Kafka fares, diversity."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql_beside(__file__)
