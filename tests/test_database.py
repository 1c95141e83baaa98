"""Connections to the brain's Postgres."""

import time

import pytest

from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.store.database import Database, DatabaseUnreachable
from tests.brain import away

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
