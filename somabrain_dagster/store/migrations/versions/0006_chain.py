"""What the learning chain needs: trends, proposals, fits, trials, and promotions that can be undone."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql_beside(__file__)
