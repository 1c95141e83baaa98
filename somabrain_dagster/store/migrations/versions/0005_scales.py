"""Scales that are measured, and a log that says in which scales weights are meant."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql_beside(__file__)
