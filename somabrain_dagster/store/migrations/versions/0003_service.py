"""What the service needs: keys, promoted weights, experiments to assign, and word of every new state."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql_beside(__file__)
