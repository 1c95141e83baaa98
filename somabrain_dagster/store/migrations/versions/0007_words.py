"""Words in the row of their memory, so that a search of full text need not fetch them one by one."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql_beside(__file__)
