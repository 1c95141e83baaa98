"""Everything is killed, and comes back with the same weights and the same working memories."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from somabrain_dagster.embedded import (
    EmbeddedServerError,
    PostgresServer,
    ValkeyServer,
    check_append_only,
    discard_servers,
    ensure_database,
    start_postgres,
    start_valkey,
    stop_valkey,
)
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants, read_states
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify
from somabrain_dagster.store.working_memory import Noted, WorkingMemory
from tests.brain import CONFIGURATION, landed
from tests.serving.conftest import QUICK
from tests.serving.running import Running, running, until

PEOPLE = 3
BRAIN = "brain"


@dataclass
class Servers:
    """Servers of a test's own, to be killed."""

    home: Path
    postgres: PostgresServer
    valkey: ValkeyServer

    @property
    def database_url(self) -> str:
        return self.postgres.url(BRAIN)

    def kill(self) -> None:
        """SIGKILL, as a container's end, or the kernel's when memory is short."""
        for server in (self.postgres, self.valkey):
            os.kill(server.pid, signal.SIGKILL)

    def start(self) -> None:
        self.postgres, self.valkey = start_postgres(self.home), start_valkey(self.home)


@pytest.fixture
def servers(reachable_path: Path) -> Iterator[Servers]:
    home = reachable_path / f"recovery-{uuid4().hex[:8]}"
    made = Servers(home, start_postgres(home), start_valkey(home))
    ensure_database(made.postgres, BRAIN)
    migrate(made.database_url)
    yield made
    discard_servers(home)
    shutil.rmtree(home)


def states_over_http(service: Running, keys: dict[str, str]) -> dict[str, Any]:
    found = {}
    for tenant, key in keys.items():
        with service.client(key) as client:
            found[tenant] = client.get("/context/adaptation/state").raise_for_status().json()
    return found


def snapshots(valkey: ValkeyServer, tenants: list[str]) -> list[dict[str, Any] | None]:
    cache = SnapshotCache(valkey.url)
    try:
        return [cache.read(tenant) for tenant in tenants]
    finally:
        cache.close()


@pytest.mark.learning
def test_weights_and_working_memories_survive_the_death_of_all_servers(
    servers: Servers, tmp_path: Path
) -> None:
    """Real ratings land over HTTP; then the service, Postgres and Valkey are killed in one blow."""
    said = read_chitchat(PEOPLE)
    tenants = sorted({event.tenant_id for event in said.feedback})
    with (
        Database(servers.database_url) as database,
        running(database, servers.valkey.url, tmp_path / "log", variables=QUICK) as service,
    ):
        keys = service.add_tenants(tenants)
        for event in said.feedback[:: len(said.feedback) // 60]:
            body = {"session_id": event.session_id, "utility": event.utility}
            with service.client(keys[event.tenant_id]) as client:
                client.post("/context/feedback", json=body).raise_for_status()
        with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
            for place, tenant in enumerate(tenants):
                working.remember(tenant, "session", [Noted(place + 1, 0.5), Noted(place + 9)])
        before = states_over_http(service, keys)
        until(
            lambda: (
                [snapshot and snapshot["version"] for snapshot in snapshots(servers.valkey, tenants)]
                == [before[tenant]["version"] for tenant in tenants]
            )
        )
        held = snapshots(servers.valkey, tenants)
        service.process.kill()
        servers.kill()
        service.process.wait()
        servers.start()

    assert any(state["version"] > 10 for state in before.values())
    assert snapshots(servers.valkey, tenants) == held, "Valkey has what it had, before anybody writes to it"
    with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
        for place, tenant in enumerate(tenants):
            assert working.recent(tenant, "session") == [Noted(place + 9), Noted(place + 1, 0.5)]
    with (
        Database(servers.database_url) as database,
        running(database, servers.valkey.url, tmp_path / "log", variables=QUICK) as service,
    ):
        assert states_over_http(service, keys) == before
        with database.snapshot() as connection:
            assert verify(connection).findings == []


def test_the_embedded_server_keeps_an_append_only_file_and_saves_each_minute(servers: Servers) -> None:
    with redis.Redis.from_url(servers.valkey.url, decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("save") == {"save": "60 1"}


@pytest.fixture
def remembering(servers: Servers) -> tuple[Servers, list[str]]:
    """States of people who learned in both servers, and a working memory each; Valkey is stopped."""
    said = read_chitchat(PEOPLE)
    tenants = sorted(said.tenants)
    with Database(servers.database_url) as database:
        with database.as_operator() as connection:
            create_tenants(connection, tenants, CONFIGURATION)
        landed(database, said.feedback[:30])
        with database.as_operator() as connection:
            states = read_states(connection)
    cache = SnapshotCache(servers.valkey.url)
    cache.rebuild(states)
    cache.close()
    with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
        for tenant in tenants:
            working.remember(tenant, "session", [Noted(1)])
    stop_valkey(servers.home)
    return servers, tenants


def append_only(servers: Servers) -> Path:
    (file,) = (servers.valkey.data / "appendonlydir").glob("*.incr.aof")
    return file


def test_an_append_only_file_that_lacks_its_end_is_read_up_to_there(
    remembering: tuple[Servers, list[str]],
) -> None:
    """As a loss of power leaves it: the last command half written."""
    servers, tenants = remembering
    file = append_only(servers)
    os.truncate(file, file.stat().st_size - 5)
    servers.valkey = start_valkey(servers.home)
    with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
        assert working.recent(tenants[0], "session") == [Noted(1)]


def test_a_damaged_append_only_file_says_what_to_do_and_doing_it_helps(
    remembering: tuple[Servers, list[str]],
) -> None:
    servers, tenants = remembering
    file = append_only(servers)
    content = bytearray(file.read_bytes())
    damage = content.rindex(b"*") if b"*" in content else len(content) // 2
    content[damage : damage + 2] = b"!!"
    file.write_bytes(bytes(content) + b"*1\r\n$4\r\nPING\r\n")

    with pytest.raises(EmbeddedServerError, match="somabrain redis check --fix") as refused:
        start_valkey(servers.home)
    assert "come back from Postgres" in str(refused.value)
    whole, told = check_append_only(servers.home)
    assert not whole, told

    whole, told = check_append_only(servers.home, fix=True)
    assert whole, told
    servers.valkey = start_valkey(servers.home)
    assert len(list(servers.valkey.data.glob("appendonlydir-*"))) == 1
    with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
        assert working.recent(tenants[0], "session") == [Noted(1)]
    with pytest.raises(EmbeddedServerError, match="Valkey runs in"):
        check_append_only(servers.home)


def test_without_its_append_only_file_only_working_memories_are_lost(
    remembering: tuple[Servers, list[str]], tmp_path: Path
) -> None:
    servers, tenants = remembering
    shutil.rmtree(servers.valkey.data / "appendonlydir")
    servers.valkey = start_valkey(servers.home)
    assert snapshots(servers.valkey, tenants) == [None] * len(tenants)
    with Database(servers.database_url) as database:
        with database.as_operator() as connection:
            versions = {state.tenant_id: state.version for state in read_states(connection)}
        with running(database, servers.valkey.url, tmp_path / "log", variables=QUICK):
            until(lambda: all(snapshots(servers.valkey, tenants)))
    assert [snapshot and snapshot["version"] for snapshot in snapshots(servers.valkey, tenants)] == [
        versions[tenant] for tenant in tenants
    ]
    with WorkingMemory(servers.valkey.url, 8, 86_400) as working:
        assert working.recent(tenants[0], "session") == []
