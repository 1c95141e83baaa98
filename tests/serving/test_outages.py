"""Servers that go away and come back: nothing acknowledged is lost, nothing is made up, and it says so."""

import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from somabrain_dagster.embedded import (
    PostgresServer,
    ValkeyServer,
    ensure_database,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
)
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.cache import snapshot_key
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.landing import land
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify
from tests.serving.conftest import QUICK
from tests.serving.running import Running, running, until

pytestmark = pytest.mark.slow


@dataclass
class Own:
    """Servers of the test's own, to be killed."""

    home: Path
    postgres: PostgresServer
    valkey: ValkeyServer


@pytest.fixture
def own(reachable_path: Path) -> Iterator[Own]:
    home = reachable_path / f"outage-{time.time_ns()}"
    try:
        postgres = start_postgres(home)
        ensure_database(postgres, "brain")
        migrate(postgres.url("brain"))
        yield Own(home, postgres, start_valkey(home))
    finally:
        stop_postgres(home)
        stop_valkey(home)
        shutil.rmtree(home, ignore_errors=True)


def said(number: int) -> dict[str, Any]:
    return {"session_id": "s", "utility": 0.1, "idempotency_key": f"event-{number}"}


def test_postgres_away_is_503_and_nothing_is_acknowledged(own: Own, tmp_path: Path) -> None:
    with (
        Database(own.postgres.url("brain")) as database,
        running(database, own.valkey.url, tmp_path / "log", variables=QUICK) as service,
    ):
        key = service.add_tenants(["alice"])["alice"]
        with service.client(key) as client:
            assert client.post("/context/feedback", json=said(0)).status_code == 200
            stop_postgres(own.home)
            refused = client.post("/context/feedback", json=said(1))
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["content-type"] == "application/problem+json"
            assert client.get("/healthz").status_code == 200
            not_ready = client.get("/readyz")
            assert (not_ready.status_code, not_ready.json()["postgres"]) == (503, "cannot be reached")
            start_postgres(own.home)
            until(lambda: bool(client.get("/readyz").json()["listening"]))
            again = client.post("/context/feedback", json=said(1)).json()
            assert (again["seq"], again["repeated"]) == (2, False)
            assert client.get("/context/adaptation/state").json()["version"] == 2


def test_redis_emptied_and_killed_is_rebuilt_while_the_service_serves(own: Own, tmp_path: Path) -> None:
    with (
        Database(own.postgres.url("brain")) as database,
        running(database, own.valkey.url, tmp_path / "log", variables=QUICK) as service,
        redis.Redis.from_url(own.valkey.url) as cache,
    ):
        key = service.add_tenants(["alice"])["alice"]

        def snapshot_version() -> int:
            try:
                return int(cache.hget(snapshot_key("alice"), "version") or -1)
            except redis.RedisError:
                return -1

        with service.client(key) as client:
            assert client.post("/context/feedback", json=said(0)).status_code == 200
            until(lambda: snapshot_version() == 1)
            cache.flushall()
            assert client.post("/context/feedback", json=said(1)).status_code == 200
            assert client.get("/context/adaptation/state").json()["version"] == 2
            until(lambda: snapshot_version() == 2)
            stop_valkey(own.home)
            assert client.post("/context/feedback", json=said(2)).status_code == 200
            assert client.get("/context/adaptation/state").json()["version"] == 3
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["redis"]) == (200, "cannot be reached")
            start_valkey(own.home)
            until(lambda: snapshot_version() == 3)


def test_what_others_commit_is_heard_of(service: Running, tenant: tuple[str, str]) -> None:
    """A landing by another program, such as an import, is soon what the service answers."""
    name, key = tenant
    with service.client(key) as client:
        before = client.get("/context/adaptation/state").json()["version"]
        feedback = parse_feedback({"tenant_id": name, **said(0)})
        land(service.database, [feedback], LearningConfiguration())
        until(lambda: client.get("/context/adaptation/state").json()["version"] == before + 1, 2.0)


def test_a_hundred_tenants_are_restored_at_once(
    valkey: ValkeyServer, database: Database, tmp_path: Path
) -> None:
    with running(database, f"{valkey.url}/8", tmp_path / "log", variables=QUICK) as service:
        keys = service.add_tenants([f"tenant-{number}" for number in range(100)])
    with running(database, f"{valkey.url}/8", tmp_path / "log", variables=QUICK) as service:
        sources = set()
        for key in keys.values():
            with service.client(key) as client:
                sources.add(client.get("/context/adaptation/state").json()["source"])
    assert sources == {"memory"}
    (line,) = [line for line in service.lines() if "restored the states of 100 tenants" in line]
    assert float(line.split("tenants in ")[1].split(" s")[0]) < 2.0


def test_told_to_end_it_says_so_first_and_loses_nothing(
    valkey: ValkeyServer, database: Database, tmp_path: Path
) -> None:
    variables = {"SOMABRAIN_SERVICE_DRAIN_SECONDS": "0.7"}
    with running(database, f"{valkey.url}/9", tmp_path / "log", variables=variables) as service:
        names = [f"tenant-{number}" for number in range(8)]
        keys = service.add_tenants(names)
        acknowledged: list[str] = []

        def send(name: str) -> None:
            with service.client(keys[name]) as client:
                number = 0
                while True:
                    try:
                        answer = client.post("/context/feedback", json=said(number))
                    except httpx.TransportError:
                        return  # it listens no more
                    if answer.status_code == 200:
                        acknowledged.append(answer.json()["event_id"])
                    number += 1

        with ThreadPoolExecutor(len(names)) as pool, service.client(None) as watcher:
            for name in names:
                pool.submit(send, name)
            until(lambda: len(acknowledged) > 50)
            assert watcher.get("/readyz").status_code == 200
            before = len(acknowledged)
            service.process.send_signal(signal.SIGTERM)
            until(lambda: watcher.get("/readyz").status_code == 503, 0.6)
            assert watcher.get("/readyz").json()["draining"] is True
            until(lambda: len(acknowledged) > before)
            assert service.process.wait(30) == 0
        with database.snapshot() as connection:
            stored = {
                f"{tenant}:{seq}"
                for tenant, seq in connection.execute("SELECT tenant_id, seq FROM feedback_events")
            }
            assert verify(connection).findings == []
        assert set(acknowledged) <= stored
        assert len(set(acknowledged)) == len(acknowledged)
