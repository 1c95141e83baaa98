"""What recall needs: embeddings, full text, frozen scales, and a log that says how it came about."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql_beside(__file__)
