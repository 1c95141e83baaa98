"""Postgres is killed in the midst of an import: what was acknowledged is there, once, and replays."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest

from somabrain_dagster.embedded import PostgresServer, ensure_database, start_postgres, stop_postgres
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed, land
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify

BATCH = 25


Key = tuple[str, str]
"""A tenant and an idempotency key of its own."""


def key_of(event: Feedback) -> Key:
    assert event.idempotency_key is not None
    return event.tenant_id, event.idempotency_key


def import_until_killed(
    server: PostgresServer, events: tuple[Feedback, ...], kill_after: int
) -> dict[Key, int]:
    """Land events; once enough are acknowledged, kill the server in the midst of what comes next.

    Returns:
        The sequence number that each acknowledged event got.
    """
    acknowledged: dict[Key, int] = {}
    enough = threading.Event()

    def kill() -> None:
        enough.wait()
        time.sleep(random.uniform(0, 0.02))
        os.kill(server.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with Database(server.url("brain")) as database:
            for first in range(0, len(events), BATCH):
                batch = events[first : first + BATCH]
                for event, outcome in zip(batch, land(database, batch, LearningConfiguration()), strict=True):
                    assert isinstance(outcome, Landed)
                    acknowledged[key_of(event)] = outcome.seq
                if len(acknowledged) >= kill_after:
                    enough.set()
    except psycopg.OperationalError:
        return acknowledged
    finally:
        enough.set()
        killer.join()
    raise AssertionError("the server was killed, yet every event was acknowledged")


@pytest.mark.learning
@pytest.mark.parametrize("round_", range(3))
def test_an_acknowledged_event_survives_the_death_of_postgres(reachable_path: Path, round_: int) -> None:
    home = reachable_path / f"crash-{round_}"
    data = read_chitchat(12)
    server = start_postgres(home)
    ensure_database(server, "brain")
    migrate(server.url("brain"))
    with Database(server.url("brain")) as database, database.as_operator() as connection:
        create_tenants(connection, data.tenants, LearningConfiguration())

    kill_after = random.randrange(BATCH, len(data.feedback) - 4 * BATCH)
    acknowledged = import_until_killed(server, data.feedback, kill_after)
    print(f"killed after {len(acknowledged)} of {len(data.feedback)} events were acknowledged")

    server = start_postgres(home)
    try:
        with Database(server.url("brain")) as database:
            with database.as_operator() as connection:
                rows = connection.execute(
                    "SELECT e.tenant_id, k.key, e.seq FROM feedback_events e "
                    "JOIN idempotency_keys k ON (k.tenant_id, k.seq) = (e.tenant_id, e.seq)"
                ).fetchall()
            with database.snapshot() as connection:
                verification = verify(connection)
            again = [
                outcome
                for first in range(0, len(data.feedback), BATCH)
                for outcome in land(database, data.feedback[first : first + BATCH], LearningConfiguration())
            ]
            with database.snapshot() as connection:
                finished = verify(connection)
    finally:
        stop_postgres(home)

    found = {(tenant_id, key): seq for tenant_id, key, seq in rows}
    assert len(found) == len(rows), "an event is there twice"
    assert acknowledged.items() <= found.items()
    assert verification.findings == []
    assert finished.findings == []
    assert sum(outcome.repeated for outcome in again if isinstance(outcome, Landed)) == len(found)
