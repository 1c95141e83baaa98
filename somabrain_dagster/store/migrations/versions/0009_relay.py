"""What the relay and the seals need: how far logs were published, the heads of all chains at an instant."""

from somabrain_dagster.store.migrations import run_sql_beside

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql_beside(__file__)
