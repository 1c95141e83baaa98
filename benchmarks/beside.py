"""Requests beside a learning chain: `python -m benchmarks.beside [--seconds 60] [--rate 100]`.

The service answers feedback and reads of weights that are due at even times, from a second process: first
alone, then beside what `make up` starts, Dagster's web server and its daemon, whose sensor runs the learning
chain over what lands. Latency counts from when a request was due. Dagster's own record says when a run was at
work, so that the requests that were answered meanwhile are told apart. Writes reports/bench-beside.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.load import request, write_requests
from benchmarks.serving import feedback_requests
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.chitchat import import_chitchat
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.traffic import ready

REPORT = Path("reports/bench-beside.json")
PORT, UI_PORT = 8471, 8472
CLIENTS = 8
START_SECONDS = 240
LARGEST_RATIO = 2.0
SOMABRAIN = str(Path(sys.executable).parent / "somabrain")

Latencies = NDArray[np.float64]
"""(N, 2): the time of each answer, and its latency in seconds."""


@contextmanager
def program(command: Sequence[str], environment: Mapping[str, str], log: Path, said: str) -> Iterator[None]:
    """A program of ours until the end of the block, once the service answers and the log says so."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (said in log.read_text() and ready(f"http://127.0.0.1:{PORT}")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(90)


def measured(requests: Sequence[bytes], seconds: float, rate: float, place: Path) -> Latencies:
    """What a second process sees."""
    asked, trace = place / "requests.bin", place / "trace.npy"
    write_requests(asked, requests)
    command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(PORT), str(asked)]
    options = {"clients": CLIENTS, "rate": rate, "warm": 5, "seconds": seconds, "trace": trace}
    arguments = chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    if set(said["statuses"]) != {"200"}:
        raise RuntimeError(f"the service refused: {said['statuses']}, {said['failure']}")
    latencies: Latencies = np.load(trace)
    return latencies


def runs_between(where: Servers, begin: float, end: float) -> list[tuple[float, float]]:
    """When there were runs, by Dagster's own record: from its request, which starts a process, to its end."""
    with psycopg.connect(where.dagster_database_url) as connection:
        rows = connection.execute(
            """
            SELECT requested, ended FROM (
                SELECT
                    extract(epoch FROM create_timestamp AT TIME ZONE 'UTC')::float8 AS requested,
                    coalesce(end_time, %(end)s) AS ended
                FROM runs
            ) AS r WHERE requested < %(end)s AND ended > %(begin)s ORDER BY requested
            """,
            {"begin": begin, "end": end},
        ).fetchall()
    return [(max(started, begin), min(ended, end)) for started, ended in rows]


def summary(what: str, latencies: Latencies) -> dict[str, Any]:
    """Quantiles in milliseconds."""
    if not len(latencies):
        return {"what": what, "requests": 0}
    p50, p95, p99 = (np.quantile(latencies[:, 1], [0.5, 0.95, 0.99]) * 1000).round(2).tolist()
    return {"what": what, "requests": len(latencies), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def run(seconds: float, rate: float, place: Path) -> dict[str, Any]:
    """Measure alone, then beside the chain, and return the report."""
    settings = Settings(home=place / "home")
    where = servers.start(settings)
    with Database(where.database_url) as database:
        import_chitchat(database, settings.learning_configuration, 100)
        with database.as_operator() as connection:
            names = [state.tenant_id for state in read_states(connection)]
            keys = {name: create_key(connection, name, "tenant", "benchmark") for name in names}
    reads = [
        request("GET", "/context/adaptation/state", {"authorization": f"Bearer {key}"})
        for key in keys.values()
    ]
    feedback = feedback_requests(keys, "/context/feedback")
    requests = [one for pair in zip(feedback, reads * len(feedback), strict=False) for one in pair]
    environment = os.environ | {
        "SOMABRAIN_HOME": str(settings.home),
        "SOMABRAIN_SENSOR_INTERVAL_SECONDS": "5",
    }
    serve = [SOMABRAIN, "serve", "--port", str(PORT)]
    with program(serve, environment, place / "alone.log", ""):
        alone = measured(requests, seconds, rate, place)
    up = [SOMABRAIN, "ui", "--port", str(UI_PORT), "--service-port", str(PORT)]
    with program(up, environment, place / "beside.log", "Dagster's UI: "):
        beside = measured(requests, seconds, rate, place)
    at = beside[:, 0]
    runs = runs_between(where, at.min(), at.max())
    meanwhile = np.zeros(len(at), dtype=np.bool_)
    for started, ended in runs:
        meanwhile |= (at >= started) & (at <= ended)
    rows = [
        summary("the service alone", alone),
        summary("beside the daemon, no run at work", beside[~meanwhile]),
        summary("beside a run of the learning chain", beside[meanwhile]),
    ]
    return {
        "seconds": seconds,
        "rate": rate,
        "clients": CLIENTS,
        "cores": os.cpu_count(),
        "runs": len(runs),
        "seconds_in_runs": round(sum(ended - started for started, ended in runs), 1),
        "latencies": rows,
        "p95_ratio": round(rows[2]["p95_ms"] / rows[0]["p95_ms"], 2) if meanwhile.any() else None,
    }


def show(report: dict[str, Any]) -> None:
    """The table for a person."""
    table = Table(box=None)
    for heading in ("", "requests", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in report["latencies"]:
        figures = (f"{row[name]:.2f}" if name in row else "" for name in ("p50_ms", "p95_ms", "p99_ms"))
        table.add_row(row["what"], f"{row['requests']:,}", *figures)
    console = Console()
    console.print(table)
    console.print(
        f"{report['runs']} runs, {report['seconds_in_runs']} of {report['seconds']:g} s; "
        f"p95 beside a run over p95 alone: {report['p95_ratio']} (at most {LARGEST_RATIO:g} is wanted)",
        highlight=False,
    )


def main() -> None:
    """Measure, print the table and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    with tempfile.TemporaryDirectory(prefix="somabrain-bench-", dir="/var/tmp") as directory:
        place = Path(directory)
        place.chmod(0o711)
        try:
            report = run(given.seconds, given.rate, place)
        finally:
            servers.stop(Settings(home=place / "home"))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    print(f"written to {REPORT}")
    if report["p95_ratio"] is None:
        sys.exit("no run was at work meanwhile: measure for longer")


if __name__ == "__main__":
    main()
