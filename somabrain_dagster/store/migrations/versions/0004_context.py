"""What assembling contexts needs: token usage that names the recall whose context it was."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql_beside(__file__)
