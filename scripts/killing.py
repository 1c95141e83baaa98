"""Servers that are killed under load, clients that do not give up, and the account of what was acknowledged.

Every kill is SIGKILL. A client sends again whatever was not acknowledged, under the same idempotency key.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.load import request
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
from somabrain_dagster.operations.processes import free_port
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import create_tenants, read_states
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify

_FIRST_PORT = 8451
_SILENCE_SECONDS = 120.0
"""After so long without an acknowledgement something is broken."""
_ANSWER_SECONDS = 15.0
_REBUILD_SECONDS = 20.0
"""How long Redis has to become what Postgres says."""

Event = tuple[str, int]
"""A tenant, and a number of its own sequence."""


class Stage:
    """The servers and the service, to be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.postgres: PostgresServer = start_postgres(home)
        ensure_database(self.postgres, "brain")
        migrate(self.postgres.url("brain"))
        self.valkey: ValkeyServer = start_valkey(home)
        self.service: subprocess.Popen[bytes] | None = None
        self.port = free_port(_FIRST_PORT)
        self.ended_by_itself = 0
        self.log = (home.parent / f"{home.name}.log").open("ab")

    @property
    def url(self) -> str:
        """Of the service."""
        return f"http://127.0.0.1:{self.port}"

    def add_tenants(self, names: list[str]) -> dict[str, str]:
        """Tenants, each with a key."""
        with Database(self.postgres.url("brain")) as database, database.as_operator() as connection:
            create_tenants(connection, names, LearningConfiguration())
            return {name: create_key(connection, name, "tenant", "chaos") for name in names}

    def start_service(self) -> None:
        """Start it, without waiting for it."""
        environment = os.environ | {
            "SOMABRAIN_DATABASE_URL": self.postgres.url("brain"),
            "SOMABRAIN_DAGSTER_DATABASE_URL": self.postgres.url("brain"),
            "SOMABRAIN_REDIS_URL": self.valkey.url,
        }
        self.service = subprocess.Popen(
            [sys.executable, "-m", "somabrain_dagster.serving", "--port", str(self.port)],
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )

    def tend(self) -> None:
        """Start the service again if it ended by itself, as whoever supervises it would."""
        if self.service is not None and self.service.poll() is not None:
            self.ended_by_itself += 1
            self.start_service()

    def kill_service(self) -> None:
        """Kill it and start another."""
        assert self.service is not None
        self.service.kill()
        self.service.wait()
        self.start_service()

    def kill_postgres(self) -> None:
        """Kill it and start it on the same data."""
        os.kill(self.postgres.pid, signal.SIGKILL)
        self.postgres = start_postgres(self.home)

    def kill_valkey(self) -> None:
        """Kill Valkey and start it on the same data."""
        os.kill(self.valkey.pid, signal.SIGKILL)
        self.valkey = start_valkey(self.home)

    def lose_valkey(self) -> None:
        """Kill Valkey and throw away what it had."""
        self.kill_valkey()
        with redis.Redis.from_url(self.valkey.url) as cache:
            cache.flushall()

    def end(self) -> None:
        """Stop everything."""
        if self.service is not None:
            self.service.terminate()
            self.service.wait(60)
        stop_valkey(self.home)
        stop_postgres(self.home)
        self.log.close()


@contextmanager
def stage_in(home: Path) -> Iterator[Stage]:
    """A stage until the end of the block."""
    stage = Stage(home)
    try:
        yield stage
    finally:
        stage.end()


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for stages that root's unprivileged servers can reach, gone at the end of the block."""
    base = Path(tempfile.mkdtemp(prefix="somabrain-chaos-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def wait_until(holds: Callable[[], bool], seconds: float, why: str, pause: float = 0.1) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not come about, which `why` explains.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(why)
        time.sleep(pause)


class Clients:
    """Clients of which each sends a feedback until it is acknowledged, then the next.

    Attributes:
        acknowledged: the event that each key got.
        retried: how often something was sent again.
        refusals: how often, by the status of the answer.
    """

    def __init__(self, stage: Stage, keys: Mapping[str, str], prefix: str) -> None:
        self._stage = stage
        self._keys = keys
        self._prefix = prefix
        self.acknowledged: dict[str, Event] = {}
        self.retried = 0
        self.refusals: dict[int, int] = {}
        self._ending = False

    def end(self) -> None:
        """Let each finish what it sends."""
        self._ending = True

    async def run(self) -> None:
        """Send until the end."""
        await asyncio.gather(*(self._client(tenant, key) for tenant, key in self._keys.items()))

    async def until_acknowledged(self, more: int) -> float:
        """Wait until so many more events are acknowledged, and return how long it took."""
        began = time.monotonic()
        wanted = len(self.acknowledged) + more
        while len(self.acknowledged) < wanted:
            if time.monotonic() - began > _SILENCE_SECONDS:
                raise TimeoutError("nothing is acknowledged any more")
            self._stage.tend()
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def _client(self, tenant: str, key: str) -> None:
        line = _Line(self._stage.port)
        number = 0
        while not self._ending:
            name = f"{self._prefix}-{tenant}-{number}"
            utility = ((number * 37) % 201 - 100) / 100
            headers = {
                "authorization": f"Bearer {key}",
                "content-type": "application/json",
                "idempotency-key": name,
            }
            body = json.dumps({"session_id": "s", "utility": utility}).encode()
            answer = await self._answer(line, request("POST", "/context/feedback", headers, body))
            self.acknowledged[name] = (tenant, answer["seq"])
            number += 1

    async def _answer(self, line: "_Line", asked: bytes) -> dict[str, Any]:
        """Send until there is an answer, even if the end has come: what was sent may have landed."""
        while True:
            try:
                status, answer = await line.ask(asked)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                await asyncio.sleep(0.02)
            else:
                if status == 200:
                    return answer
                self.refusals[status] = self.refusals.get(status, 0) + 1
                await asyncio.sleep(0.05)
            self.retried += 1


class _Line:
    """A connection to the service, opened again after it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, asked: bytes) -> tuple[int, dict[str, Any]]:
        """The status and body of an answer.

        Raises:
            OSError, asyncio.IncompleteReadError, TimeoutError: there is none.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._streams
                writer.write(asked)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                return int(head[9:12]), json.loads(await reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError):  # a time-out is an OSError, too
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None
            raise


def account(stage: Stage, acknowledged: Mapping[str, Event]) -> dict[str, Any]:
    """What was acknowledged against what is in Postgres, once every client has finished.

    Args:
        stage: the servers.
        acknowledged: the event that each idempotency key got.
    """
    with Database(stage.postgres.url("brain")) as database, database.snapshot() as connection:
        stored = connection.execute("SELECT key, tenant_id, seq FROM idempotency_keys").fetchall()
        events = connection.execute("SELECT tenant_id, seq FROM feedback_events").fetchall()
        findings = [str(finding) for finding in verify(connection).findings]
        broken = list(audit.broken_chains(connection))
        states = read_states(connection)
        settings = connection.execute(
            "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
        ).fetchone()
    by_key = {key: (tenant, seq) for key, tenant, seq in stored}
    found = set(events)
    missing = [key for key, event in acknowledged.items() if by_key.get(key) != event or event not in found]
    cache = SnapshotCache(stage.valkey.url)
    deadline = time.monotonic() + _REBUILD_SECONDS
    while True:
        behind = [
            state.tenant_id
            for state in states
            if (cache.read(state.tenant_id) or {"version": -1})["version"] != state.version
        ]
        if not behind or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    cache.close()
    return {
        "acknowledged": len(acknowledged),
        "found": len(acknowledged) - len(missing),
        "missing": len(missing),
        # Nobody sends any more, so whatever is there was acknowledged: what is more is there twice.
        "duplicated": len(events) - len(set(acknowledged.values()) & found),
        "findings": findings,
        "broken_audit_chains": broken,
        "tenants_behind_in_redis": len(behind),
        "fsync, synchronous_commit": settings,
    }


def holds(told: Mapping[str, Any]) -> bool:
    """Whether an account says that nothing is missing, double, contradictory or behind."""
    claims = ("missing", "duplicated", "findings", "broken_audit_chains", "tenants_behind_in_redis")
    return not any(told[claim] for claim in claims)


def outages_of(seconds: list[float]) -> dict[str, float]:
    """How long it took until something was acknowledged again."""
    return {"median": sorted(seconds)[len(seconds) // 2], "worst": max(seconds)}
