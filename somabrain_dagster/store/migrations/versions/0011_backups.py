"""Which brain this is, when it was last restored, and which of its backups were proven."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql_beside(__file__)
