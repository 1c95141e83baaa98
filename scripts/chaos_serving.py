"""Kill the service, Postgres and Valkey under load, and count what was acknowledged, found and duplicated.

    python scripts/chaos_serving.py [--kills 20]

Clients send feedback with idempotency keys and send again whatever was not acknowledged. Every kill is
SIGKILL. At the end each acknowledged event must be in Postgres, once, under its key; the log must replay and
be derived again; and Redis must have been rebuilt. Writes reports/chaos-serving.json; exit 1 if anything is
missing.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from somabrain_dagster.store.adaptation import create_tenants, read_states
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify

REPORT = Path("reports/chaos-serving.json")
CLIENTS = 16
PORT = 8451
BETWEEN_KILLS = 0.6
"""Seconds of load between a recovery and the next kill."""


class Clients:
    """Clients that do not give up: each sends an event until it is acknowledged, then the next."""

    def __init__(self, keys: dict[str, str], prefix: str) -> None:
        self._keys = keys
        self._prefix = prefix
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.retried = 0
        self.refusals: dict[int, int] = {}
        self._ending = False

    def end(self) -> None:
        """Let each finish what it sends."""
        self._ending = True

    async def run(self) -> None:
        """Send until the end."""
        await asyncio.gather(*(self._client(tenant, key) for tenant, key in self._keys.items()))

    async def _client(self, tenant: str, key: str) -> None:
        number = 0
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._ending:
            name = f"{self._prefix}-{tenant}-{number}"
            utility = ((number * 37) % 201 - 100) / 100
            body = json.dumps({"session_id": "s", "utility": utility}).encode()
            headers = {
                "authorization": f"Bearer {key}",
                "content-type": "application/json",
                "idempotency-key": name,
            }
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", PORT)
                status, answer = await asyncio.wait_for(
                    _ask(streams, request("POST", "/context/feedback", headers, body)), 15
                )
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                streams = None
                self.retried += 1
                await asyncio.sleep(0.02)
                continue
            if status != 200:
                self.refusals[status] = self.refusals.get(status, 0) + 1
                self.retried += 1
                await asyncio.sleep(0.05)
                continue
            self.acknowledged[name] = (tenant, answer["seq"])
            number += 1


async def _ask(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], asked: bytes
) -> tuple[int, dict[str, Any]]:
    reader, writer = streams
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    return int(head[9:12]), json.loads(body)


class Stage:
    """The servers and the service, to be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.postgres: PostgresServer = start_postgres(home)
        ensure_database(self.postgres, "brain")
        migrate(self.postgres.url("brain"))
        self.valkey: ValkeyServer = start_valkey(home)
        self.service: subprocess.Popen[bytes] | None = None
        self.log = (home.parent / f"{home.name}.log").open("ab")

    def start_service(self) -> None:
        """Start it, without waiting for it."""
        environment = os.environ | {
            "SOMABRAIN_DATABASE_URL": self.postgres.url("brain"),
            "SOMABRAIN_DAGSTER_DATABASE_URL": self.postgres.url("brain"),
            "SOMABRAIN_REDIS_URL": self.valkey.url,
        }
        self.service = subprocess.Popen(
            [sys.executable, "-m", "somabrain_dagster.serving", "--port", str(PORT)],
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )

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
        """Kill Valkey and throw away what it had."""
        os.kill(self.valkey.pid, signal.SIGKILL)
        self.valkey = start_valkey(self.home)
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


async def _until_acknowledged(clients: Clients, more: int) -> float:
    """Wait until so many more events are acknowledged, and return how long it took."""
    began = time.monotonic()
    wanted = len(clients.acknowledged) + more
    while len(clients.acknowledged) < wanted:
        if time.monotonic() - began > 60:
            raise TimeoutError("nothing is acknowledged any more")
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def _round(clients: Clients, kill: Callable[[], None], kills: int) -> list[float]:
    """Kill again and again under load; the seconds from each kill to the next acknowledgements."""
    loading = asyncio.create_task(clients.run())
    outages = []
    await _until_acknowledged(clients, CLIENTS)
    for _ in range(kills):
        await asyncio.sleep(BETWEEN_KILLS)
        await asyncio.to_thread(kill)
        outages.append(round(await _until_acknowledged(clients, CLIENTS), 2))
    clients.end()
    await loading
    return outages


def _account(stage: Stage, clients: Clients, kills: int, outages: list[float]) -> dict[str, Any]:
    """What was acknowledged against what is in Postgres."""
    with Database(stage.postgres.url("brain")) as database, database.snapshot() as connection:
        stored = connection.execute("SELECT key, tenant_id, seq FROM idempotency_keys").fetchall()
        events = connection.execute(
            "SELECT tenant_id, seq, count(*) FROM feedback_events GROUP BY tenant_id, seq"
        ).fetchall()
        findings = [str(finding) for finding in verify(connection).findings]
        states = read_states(connection)
    by_key = {key: (tenant, seq) for key, tenant, seq in stored}
    found = {(tenant, seq): count for tenant, seq, count in events}
    missing = [name for name, event in clients.acknowledged.items() if by_key.get(name) != event]
    lost = [name for name, event in clients.acknowledged.items() if found.get(event, 0) == 0]
    cache = SnapshotCache(stage.valkey.url)
    deadline = time.monotonic() + 20
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
        "kills": kills,
        "acknowledged": len(clients.acknowledged),
        "found": len(clients.acknowledged) - len(set(missing) | set(lost)),
        "missing": len(set(missing) | set(lost)),
        "duplicated": sum(count - 1 for count in found.values())
        + len(clients.acknowledged)
        - len(set(clients.acknowledged.values())),
        "sent_again": clients.retried,
        "refused_with": {str(status): count for status, count in sorted(clients.refusals.items())},
        "seconds_until_acknowledged_again": {
            "median": sorted(outages)[len(outages) // 2],
            "worst": max(outages),
        },
        "replay_findings": findings,
        "tenants_behind_in_redis": len(behind),
    }


def main() -> None:
    """Kill each in turn, print what became of it, and exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often each is killed")
    kills = parser.parse_args().kills
    base = Path(tempfile.mkdtemp(prefix="somabrain-chaos-", dir="/var/tmp"))
    base.chmod(0o711)
    report: dict[str, Any] = {"clients": CLIENTS}
    sound = True
    try:
        for what in ("service", "postgres", "valkey"):
            stage = Stage(base / what)
            try:
                with Database(stage.postgres.url("brain")) as database, database.as_operator() as connection:
                    fsync = connection.execute(
                        "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
                    ).fetchone()
                    names = [f"tenant-{number}" for number in range(CLIENTS)]
                    create_tenants(connection, names, LearningConfiguration())
                    keys = {name: create_key(connection, name, "tenant", "chaos") for name in names}
                stage.start_service()
                clients = Clients(keys, what)
                outages = asyncio.run(_round(clients, getattr(stage, f"kill_{what}"), kills))
                told = {**_account(stage, clients, kills, outages), "fsync, synchronous_commit": fsync}
            finally:
                stage.end()
            report[what] = told
            holds = not (
                told["missing"]
                or told["duplicated"]
                or told["replay_findings"]
                or told["tenants_behind_in_redis"]
            )
            sound &= holds
            print(
                f"{'✓' if holds else '✗'} {what} killed {kills} times: "
                f"{told['acknowledged']:,} acknowledged, {told['found']:,} found, {told['missing']} missing, "
                f"{told['duplicated']} duplicated; acknowledging again after "
                f"{told['seconds_until_acknowledged_again']['median']} s (median)",
                flush=True,
            )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {REPORT}")
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
