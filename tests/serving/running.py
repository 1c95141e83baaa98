"""The service as it runs for real: a process of its own, on real servers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key

START_SECONDS = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@dataclass
class Running:
    """A service, its store, and the keys that were made for it."""

    url: str
    process: "subprocess.Popen[bytes]"
    database: Database
    redis_url: str
    operator: str
    tenants: dict[str, str] = field(default_factory=dict)
    log: Path = Path(os.devnull)

    def client(
        self, key: str | None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Client:
        headers = {**(headers or {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, verify=False, **options)

    def add_tenants(self, names: Sequence[str]) -> dict[str, str]:
        """Tenants that did not exist, each with a key."""
        with self.database.as_operator() as connection:
            assert sorted(create_tenants(connection, names, LearningConfiguration())) == sorted(names)
            made = {name: create_key(connection, name, "tenant", "tests") for name in names}
        self.tenants |= made
        return made

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the service ended with {process.returncode}"
        try:
            if httpx.get(f"{url}/readyz", timeout=2).json()["listening"]:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise AssertionError("the service did not become ready")


def start_process(
    database_url: str, redis_url: str, port: int, log: Path, workers: int, variables: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")} | {
        "SOMABRAIN_DATABASE_URL": database_url,
        "SOMABRAIN_DAGSTER_DATABASE_URL": database_url,
        "SOMABRAIN_REDIS_URL": redis_url,
        **variables,
    }
    command = [
        sys.executable,
        "-m",
        "somabrain_dagster.serving",
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    with log.open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


@contextmanager
def running(
    database: Database,
    redis_url: str,
    log: Path,
    *,
    workers: int = 1,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A service until the end of the block, told to end by SIGTERM."""
    port = free_port()
    with database.as_operator() as connection:
        operator = create_key(connection, audit.SYSTEM, "operator", "tests")
    process = start_process(database.url, redis_url, port, log, workers, variables or {})
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield Running(url, process, database, redis_url, operator, log=log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.05)
