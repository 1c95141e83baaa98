"""The service against its floor and its peers: `python -m benchmarks.serving [--no-peers] [--seconds 5]`.

The load comes from a second process. The feedback is real: people's ratings of their conversations (BYU
Chit-Chat), as the import lands it. All of it is durable: fsync and synchronous_commit are read back from the
server. The floor is the same framework doing as little as can be: a constant answer, and the same feedback
put by one multi-row INSERT and COMMIT a batch into one bare table, whose rows are as large. The peers are set
up by the script itself. Writes reports/bench-serving.json.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.load import request, write_requests
from benchmarks.meter import Meter
from somabrain_dagster.embedded import (
    ensure_database,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
)
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.provenance import commit, machine
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.verification import verify

REPORT = Path("reports/bench-serving.json")
CLIENTS = (8, 32)
SERVICE, FLOOR, PEER = 8461, 8462, 8463
JSON = {"content-type": "application/json"}


@contextmanager
def program(command: Sequence[str], url: str, log: Path, variables: dict[str, str]) -> Iterator[int]:
    """A program of ours until the end of the block, once its URL answers: its process id."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | variables, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} did not start: {log.read_text()[-500:]}") from None
                time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def measured(
    name: str,
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    place: Path,
    numbers: Sequence[int] = CLIENTS,
    watched: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """What a second process sees of a contender, at each of these numbers of clients.

    Args:
        name: of the contender.
        port: where it listens.
        requests: taken in turn.
        seconds: how long.
        place: a directory for the requests.
        numbers: of clients.
        watched: processes, by name, whose processor's time a request is counted, and the client's own.
    """
    path = place / "requests.bin"
    write_requests(path, requests)
    rows = []
    for clients in numbers:
        command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(port), str(path)]
        options = ["--clients", str(clients), "--warm", "1.5", "--seconds", str(seconds)]
        meters = {who: Meter(pid) for who, pid in (watched or {}).items()}
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(f"the load on {name} failed: {done.stderr[-500:]}")
        row = {"contender": name, **json.loads(done.stdout)}
        answered = sum(row["statuses"].values())
        good = sum(count for status, count in row["statuses"].items() if int(status) < 400)
        if good < answered and port < PEER:
            raise RuntimeError(f"{name} refused: {row['statuses']}, {row['failure']}")
        if meters:
            row["cpu_us"] = {who: round(meter.seconds / answered * 1e6) for who, meter in meters.items()}
            row["cpu_us"]["client"] = round(row["client_cpu_seconds"] / answered * 1e6)
        # A peer that fails some is counted by what it did.
        row["rps"] = round(row["rps"] * good / max(answered, 1), 1)
        rows.append(row)
        print(f"{name}, {clients} clients: {row['rps']:,.0f}/s, p95 {row['p95_ms']} ms", flush=True)
    return rows


def feedback_requests(keys: dict[str, str], path: str) -> list[bytes]:
    """Real ratings as requests, in the order of the data, without the keys by which they land only once."""
    requests = []
    for feedback in read_chitchat(100).feedback:
        body = msgspec.to_builtins(feedback)
        body.pop("idempotency_key", None)
        headers = JSON | {"authorization": f"Bearer {keys[feedback.tenant_id]}"}
        requests.append(request("POST", path, headers, msgspec.json.encode(body)))
    return requests


def durability(database: Database) -> dict[str, str]:
    """What makes an answer durable, as the server has it."""
    with database.as_owner() as connection:
        names = ("fsync", "synchronous_commit", "wal_sync_method", "full_page_writes", "server_version")
        return {
            name: str((connection.execute("SELECT current_setting(%s)", (name,)).fetchone() or ("",))[0])
            for name in names
        }


def bytes_of_a_row(url: str, *tables: str) -> int:
    """How large rows are on average, those of several tables together."""
    average = sql.SQL("(SELECT avg(pg_column_size(t.*)) FROM {} t)")
    sizes = sql.SQL(" + ").join(average.format(sql.Identifier(table)) for table in tables)
    with psycopg.connect(url) as connection:
        (size,) = connection.execute(sql.SQL("SELECT round({})::int").format(sizes)).fetchone() or (0,)
    return int(size)


def bare_commits(url: str) -> float:
    """How many INSERT + COMMIT a second one connection does here: how fast this disk is."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS one (id bigserial PRIMARY KEY, body text)")
        began = time.perf_counter()
        for _ in range(300):
            connection.execute("INSERT INTO one (body) VALUES ('x')")
        return 300 / (time.perf_counter() - began)


Peer = Callable[[], AbstractContextManager[peers.Requests]]


@dataclass(frozen=True)
class Brain:
    """An empty brain with servers of its own.

    Attributes:
        url: of its database, as its owner.
        floor_url: of another database on the same Postgres.
        admin_url: of that Postgres.
        postgres_pid: its main process.
        redis_url: of its Valkey.
        keys: of each tenant.
        variables: by which a program of ours finds all of it.
        durability: what makes an answer durable, as the server has it.
    """

    url: str
    floor_url: str
    admin_url: str
    postgres_pid: int
    redis_url: str
    keys: dict[str, str]
    variables: dict[str, str]
    durability: dict[str, str]


@contextmanager
def brain(place: Path) -> Iterator[Brain]:
    """Servers and a brain in this directory until the end of the block, with the tenants of Chit-Chat."""
    try:
        postgres = start_postgres(place)
        valkey = start_valkey(place)
        ensure_database(postgres, "brain")
        ensure_database(postgres, "floor")
        url = postgres.url("brain")
        migrate(url)
        tenants = read_chitchat(100).tenants
        with Database(url) as database:
            with database.as_operator() as connection:
                create_tenants(connection, tenants, LearningConfiguration())
                keys = {name: create_key(connection, name, "tenant", "benchmark") for name in tenants}
            settings = durability(database)
        yield Brain(
            url,
            postgres.url("floor"),
            postgres.admin_url(),
            postgres.pid,
            valkey.url,
            keys,
            {
                "SOMABRAIN_DATABASE_URL": url,
                "SOMABRAIN_DAGSTER_DATABASE_URL": url,
                "SOMABRAIN_REDIS_URL": valkey.url,
            },
            settings,
        )
    finally:
        stop_valkey(place)
        stop_postgres(place)


def run(seconds: float, with_peers: bool, place: Path) -> dict[str, Any]:
    """Measure every contender and return the report."""
    with brain(place) as held:
        return compare(held, seconds, with_peers, place)


def state_requests(keys: Iterable[str]) -> list[bytes]:
    """A read of each tenant's weights, with its key."""
    return [request("GET", "/context/adaptation/state", {"authorization": f"Bearer {key}"}) for key in keys]


def peers_of(held: Brain, port: int) -> dict[str, Peer]:
    """The peers, each on this port once it is entered."""
    admin, redis = held.admin_url, held.redis_url
    return {
        "MLflow": lambda: peers.mlflow(admin, port, tuned=False),
        "MLflow, tuned": lambda: peers.mlflow(admin, port, tuned=True),
        "Feast": lambda: peers.feast(admin, port, tuned=False),
        "Feast, tuned": lambda: peers.feast(admin, port, tuned=True),
        "Feast on Redis": lambda: peers.feast_on_redis(redis, port, tuned=False),
        "Feast on Redis, tuned": lambda: peers.feast_on_redis(redis, port, tuned=True),
        "Phoenix": lambda: peers.phoenix(admin, port, waits=False),
        "Phoenix, waiting for its commit": lambda: peers.phoenix(admin, port, waits=True),
    }


def compare(held: Brain, seconds: float, with_peers: bool, place: Path) -> dict[str, Any]:
    """Measure every contender and return the report."""
    load_before = os.getloadavg()
    keys = held.keys
    commits = [bare_commits(held.floor_url)]
    log = place / "log"
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    # The floor is measured before and after: a machine that others use too is not the same all the time.
    floor = ["-m", "benchmarks.serving_floor", held.floor_url, str(FLOOR)]
    with program(floor, f"http://127.0.0.1:{FLOOR}/hello", log, {}) as floor_pid:
        hello = [request("GET", "/hello", JSON)]
        bare = feedback_requests(keys, "/bare")
        service = ["-m", "somabrain_dagster.serving", "--port", str(SERVICE)]
        with program(service, f"http://127.0.0.1:{SERVICE}/healthz", log, held.variables) as service_pid:
            of_floor = {"program": floor_pid, "server": held.postgres_pid}
            of_service = {"program": service_pid, "server": held.postgres_pid}
            reads = state_requests(keys.values())
            rows += measured("hello", FLOOR, hello, seconds, place)
            rows += measured("service: state", SERVICE, reads, seconds, place)
            rows += measured("bare INSERT+COMMIT", FLOOR, bare, seconds, place, watched=of_floor)
            landing = feedback_requests(keys, "/context/feedback")
            rows += measured("service: feedback", SERVICE, landing, seconds, place, watched=of_service)
            rows += measured("bare INSERT+COMMIT, again", FLOOR, bare, seconds, place)
    commits.append(bare_commits(held.floor_url))
    row_bytes = {
        "floor": bytes_of_a_row(held.floor_url, "bare"),
        "service": bytes_of_a_row(held.url, "feedback_events", "weight_changes"),
    }
    with Database(held.url) as database, database.snapshot() as connection:
        verification = verify(connection)
    for name, contender in peers_of(held, PEER).items() if with_peers else ():
        try:
            with contender() as asked:
                rows += measured(name, PEER, asked.landing, seconds, place)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            skipped[name] = str(error)
            print(f"{name} left out: {error}", flush=True)
    return {
        "seconds": seconds,
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("uvicorn", "starlette", "msgspec", "psycopg")}
        | peers.versions(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "bytes_of_a_row": row_bytes,
        "durability": held.durability,
        "commits_per_second_of_one_connection": [round(value) for value in commits],
        "contenders": rows,
        "ratios": ratios(rows),
        "left_out": skipped,
        "changes_verified": len(verification.log.causes),
        "findings": [str(finding) for finding in verification.findings],
    }


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The service's throughput over that of its floor and of each peer."""
    found = {(row["contender"], row["clients"]): row for row in rows}
    wanted = []
    for clients in CLIENTS:
        feedback = found["service: feedback", clients]
        floors = [found[name, clients]["rps"] for name in ("bare INSERT+COMMIT", "bare INSERT+COMMIT, again")]
        wanted.append(
            {
                "clients": clients,
                "feedback_over_bare": round(feedback["rps"] / (sum(floors) / len(floors)), 3),
                "feedback_p95_ms": feedback["p95_ms"],
                "state_over_hello": round(
                    found["service: state", clients]["rps"] / found["hello", clients]["rps"], 3
                ),
                **{
                    f"feedback_over_{name}": round(feedback["rps"] / found[name, clients]["rps"], 1)
                    for name, at in found
                    if at == clients
                    and name.startswith(("MLflow", "Feast", "Phoenix"))
                    and found[name, at]["rps"]
                },
            }
        )
    return wanted


def show(report: dict[str, Any]) -> None:
    """The table for a person."""
    console = Console()
    table = Table(box=None)
    for heading in ("contender", "clients", "requests", "requests/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for row in report["contenders"]:
        table.add_row(
            row["contender"],
            str(row["clients"]),
            f"{row['requests']:,}",
            f"{row['rps']:,.0f}",
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
        )
    console.print(table)
    for row in report["contenders"]:
        if "cpu_us" in row:
            console.print(
                f"{row['contender']}, {row['clients']} clients, µs of the processor a request:", row["cpu_us"]
            )
    for row in report["ratios"]:
        console.print(row)
    console.print(report["machine"], report["versions"], "bytes of a row", report["bytes_of_a_row"])
    for name, reason in report["left_out"].items():
        console.print(f"{name} left out: {reason}")
    console.print(
        report["durability"], "commits/s of one connection", report["commits_per_second_of_one_connection"]
    )
    console.print(f"{report['changes_verified']:,} changes derived again, {len(report['findings'])} findings")


def main() -> None:
    """Measure, print the table and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--no-peers", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    place = Path(tempfile.mkdtemp(prefix="somabrain-bench-", dir="/var/tmp"))
    place.chmod(0o711)
    try:
        report = run(given.seconds, not given.no_peers, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    print(f"written to {REPORT}")


if __name__ == "__main__":
    main()
