"""Many at once: no cross-talk, the offline fold to the nano-unit, several processes that agree."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.load import request
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.verification import verify
from tests.folding import folded
from tests.serving.conftest import QUICK
from tests.serving.running import Running, running, until

pytestmark = pytest.mark.learning

TENANTS, LOOPS = 100, 100


def generated_utilities(tenant: int) -> list[float]:
    """What a tenant says, drawn at random: the fold is what is tested, not the tenant."""
    draw = random.Random(tenant)
    return [draw.uniform(-1, 1) for _ in range(LOOPS)]


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], asked: bytes) -> dict[str, Any]:
    """One request on a connection that stays open; ten thousand are too many for a comfortable client."""
    reader, writer = streams
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    assert head.startswith(b"http/1.1 200"), body
    answer: dict[str, Any] = json.loads(body)
    return answer


async def loop(url: str, key: str, utilities: list[float]) -> None:
    """Send, and read what became of it, again and again."""
    parts = urlsplit(url)
    streams = await asyncio.open_connection(parts.hostname, parts.port)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    for number, utility in enumerate(utilities, start=1):
        body = json.dumps({"session_id": "s", "utility": utility}).encode()
        sent = await ask(streams, request("POST", "/context/feedback", headers, body))
        assert sent["seq"] == number
        state = await ask(streams, request("GET", "/context/adaptation/state", headers))
        assert state["weights"] == sent["weights"]
    streams[1].close()


async def all_loops(service: Running, keys: dict[str, str], utilities: dict[str, list[float]]) -> None:
    await asyncio.gather(*(loop(service.url, key, utilities[name]) for name, key in keys.items()))


def test_a_hundred_tenants_at_once_learn_each_alone_and_exactly(service: Running) -> None:
    names = [f"many-{number}" for number in range(TENANTS)]
    keys = service.add_tenants(names)
    utilities = {name: generated_utilities(number) for number, name in enumerate(names)}
    asyncio.run(all_loops(service, keys, utilities))
    for name in names:
        with service.client(keys[name]) as client:
            state = client.get("/context/adaptation/state").json()
        path, trips = folded(utilities[name])
        assert (state["version"], state["source"]) == (LOOPS + len(trips), "memory")
        assert state["nanos"] == path[-1]
    with service.database.snapshot() as connection:
        assert verify(connection).findings == []


def test_several_processes_agree(
    postgres: PostgresServer, valkey: ValkeyServer, database: Database, tmp_path: Path
) -> None:
    """Whatever process a request comes to: a tenant's events are in one order, and all soon answer alike."""
    with running(database, f"{valkey.url}/6", tmp_path / "log", workers=2, variables=QUICK) as service:
        name = "shared"
        key = service.add_tenants([name])[name]

        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

        async def one(utility: float) -> int:
            parts = urlsplit(service.url)
            streams = await asyncio.open_connection(parts.hostname, parts.port)  # so both processes get some
            body = json.dumps({"session_id": "s", "utility": utility}).encode()
            seq: int = (await ask(streams, request("POST", "/context/feedback", headers, body)))["seq"]
            streams[1].close()
            return seq

        async def load() -> list[int]:
            return await asyncio.gather(*(one(number / 100) for number in range(60)))

        assert sorted(asyncio.run(load())) == list(range(1, 61))
        processes = set()

        def answered_by_both() -> bool:
            with service.client(key) as client:
                answer = client.get("/context/adaptation/state")
            assert answer.json()["version"] == 60
            processes.add(answer.headers["x-request-id"].split("-")[0])
            return len(processes) == 2

        until(answered_by_both)
        with service.client(service.operator) as operator:

            def metrics() -> list[str]:
                return operator.get("/metrics").text.splitlines()

            until(lambda: "somabrain_listening 1.0" in metrics())
            assert f'somabrain_feedback_total{{outcome="landed",tenant_id="{name}"}} 60.0' in metrics()
