"""Connections to the brain's Postgres."""

import time

import psycopg
import pytest

from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.store.database import Database, DatabaseUnreachable
from somabrain_dagster.store.dropping import drop_database
from tests.brain import away
from tests.vacuuming import autovacuum_at_work

AWAY_SECONDS = 4.0
"""Longer than a pause that doubles would have let pass for the attempt after it."""


def one(database: Database) -> tuple[int, ...]:
    with database.as_operator() as connection:
        row = connection.execute("SELECT 1").fetchone()
        assert row is not None
        return row


def test_the_first_request_after_an_outage_is_served(owner_url: str, postgres: PostgresServer) -> None:
    with Database(owner_url, wait_seconds=0.5) as database:
        one(database)
        with away(postgres, database):
            end = time.monotonic() + AWAY_SECONDS
            while time.monotonic() < end:
                with pytest.raises(DatabaseUnreachable):
                    one(database)
        assert one(database) == (1,)


def test_a_database_in_which_an_autovacuum_is_at_work_is_dropped(
    migrated_template: str, postgres: PostgresServer
) -> None:
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE vacuumed OWNER {postgres.user} TEMPLATE {migrated_template}")
        with psycopg.connect(postgres.url("vacuumed")) as connected:
            connected.execute("CREATE TABLE pages AS SELECT n AS tenant_id FROM generate_series(1, 50000) n")
            connected.commit()
            with autovacuum_at_work(postgres, "vacuumed", "pages"):
                drop_database(postgres.url("vacuumed"), postgres.url("postgres"))
        assert admin.execute("SELECT FROM pg_database WHERE datname = 'vacuumed'").rowcount == 0
