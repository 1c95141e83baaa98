"""What retention needs: what was pruned and when, the seals of rows that are gone, and legal holds."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run_sql_beside(__file__)
