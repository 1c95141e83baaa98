"""Retention at a million events: `python -m benchmarks.retention [--events 1000000] [--rate 200]`.

A million real ratings land, and are aggregated as the chain would have done. Then feedback is retrieved by
session, by tenant and by day, in the role of its tenant: every plan must use an index, and the p95 be below
10 ms. Then the week is cut in two, so that the million is old, and pruned in a process of its own while a
service answers requests that are due at even times; its p95 meanwhile is compared with that of before. In the
end the whole log is verified. Writes reports/bench-retention.json; exit 1 if anything is not as it should be.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis import land_all, real_ratings
from benchmarks.beside import CLIENTS, PORT, SOMABRAIN, program
from benchmarks.load import request, write_requests
from benchmarks.serving import feedback_requests
from somabrain_dagster.operations import retention, servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.processes import NICENESS
from somabrain_dagster.operations.provenance import commit
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants, read_states
from somabrain_dagster.store.daily import aggregate
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.verification import verify
from tests.ageing import cut_weeks

REPORT = Path("reports/bench-retention.json")
EVENTS = 1_000_000
DRAWS = 500
MOST_RETRIEVAL_MS = 10.0
MOST_SECONDS = 5.0
MOST_RATIO = 2.0
SECONDS_ALONE = 20.0
SECONDS_BEFORE = 4.0
"""Of load, its warm-up included, before the pruning begins beside it."""
Latencies = NDArray[np.float64]
"""(N, 2): the time of each answer, and its latency in seconds."""


@dataclass(frozen=True)
class Retrieval:
    """A way of retrieving feedback.

    Attributes:
        index: that the plan uses on the partition with the rows.
        p50_ms, p95_ms: of so many draws, a round trip each.
    """

    what: str
    index: str | None
    p50_ms: float
    p95_ms: float

    @property
    def holds(self) -> bool:
        """Whether it is by an index, and fast enough."""
        return self.index is not None and self.p95_ms < MOST_RETRIEVAL_MS


RETRIEVALS = {
    "a session": "SELECT * FROM feedback_events WHERE session_id = %(session)s ORDER BY created_at",
    "a tenant's last hundred": "SELECT * FROM feedback_events WHERE tenant_id = %(tenant)s "
    "ORDER BY seq DESC LIMIT 100",
    "the first hundred of a tenant's day": "SELECT * FROM feedback_events WHERE tenant_id = %(tenant)s "
    "AND occurred_at >= %(day)s AND occurred_at < %(day)s + interval '1 day' "
    "ORDER BY occurred_at LIMIT 100",
}


def retrievals(database: Database, partition: str) -> list[Retrieval]:
    """Measure each on draws from the events that are there."""
    with database.as_owner() as connection:
        connection.execute("SELECT setseed(0.5)")
        draws = connection.execute(
            "SELECT tenant_id, session_id, date_trunc('day', occurred_at) FROM feedback_events "
            "TABLESAMPLE bernoulli(1) ORDER BY random() LIMIT %s",
            (DRAWS,),
        ).fetchall()
    found = []
    for what, query in RETRIEVALS.items():
        seconds = []
        for tenant, session, day in draws:
            asked = {"tenant": tenant, "session": session, "day": day}
            with database.as_tenants([tenant]) as connection:
                began = time.perf_counter()
                rows = connection.execute(query.encode(), asked).fetchall()
                seconds.append(time.perf_counter() - began)
            assert rows, what
        with database.as_tenants([tenant]) as connection:
            index = index_used(connection, query, asked, partition)
        p50, p95 = (np.quantile(seconds, [0.5, 0.95]) * 1000).round(3).tolist()
        found.append(Retrieval(what, index, p50, p95))
    return found


def index_used(connection: Connection, query: str, asked: dict[str, Any], partition: str) -> str | None:
    """The index by which a plan reads a partition; None where it reads all of it."""
    ((plan,),) = connection.execute(f"EXPLAIN (FORMAT json) {query}".encode(), asked).fetchall()
    nodes = [plan[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    for node in nodes:
        if node.get("Relation Name") == partition:
            below = [child.get("Index Name") for child in node.get("Plans", [])]
            return node.get("Index Name") or next(filter(None, below), None)
    raise AssertionError(f"the plan does not read {partition}: {plan}")


def large_partition(database: Database) -> str:
    """The name of the partition of feedback with the most rows."""
    with database.as_owner() as connection:
        ((name,),) = connection.execute(
            "SELECT tableoid::regclass::text FROM feedback_events GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
        ).fetchall()
    return str(name)


def load(requests: Sequence[bytes], rate: float, seconds: float, trace: Path) -> "subprocess.Popen[str]":
    """Requests from a process of their own, which begins now."""
    asked = trace.with_suffix(".bin")
    write_requests(asked, requests)
    options = {"clients": CLIENTS, "rate": rate, "warm": 2, "seconds": seconds, "trace": trace}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(PORT), str(asked), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def latencies_of(process: "subprocess.Popen[str]", trace: Path) -> Latencies:
    """What it saw.

    Raises:
        RuntimeError: something was refused.
    """
    said = json.loads(process.communicate(timeout=300)[0])
    if set(said["statuses"]) != {"200"}:
        raise RuntimeError(f"the service refused: {said['statuses']}, {said['failure']}")
    latencies: Latencies = np.load(trace)
    return latencies


def prune(url: str) -> tuple[float, float, int, list[str]]:
    """Prune all that is old; when it began and ended, how many rows went, and what did not go."""
    settings = Settings()
    with Database(url) as database:
        began = time.time()
        outcome = retention.run(database, timedelta(0), settings.first_day, "benchmark")
        ended = time.time()
    refused = [f"{one.partition}: {one.reason}" for one in outcome.refused]
    return began, ended, sum(one.rows for one in outcome.dropped), refused


def p95_ms(latencies: Latencies) -> float:
    return round(float(np.quantile(latencies[:, 1], 0.95)) * 1000, 2)


def run(events: int, rate: float, place: Path) -> dict[str, Any]:
    """Land, retrieve, prune beside a service, verify, and return the report."""
    settings = Settings(home=place / "home")
    where = servers.start(settings)
    with Database(where.database_url) as database:
        tenants = land_all(database, real_ratings(events, apart=False), events)
        began = time.perf_counter()
        with database.as_operator() as connection:
            aggregate(connection, settings.first_day, datetime.now(UTC).date(), settings.first_day)
        aggregated = time.perf_counter() - began
        with database.as_owner() as connection:
            connection.execute("ANALYZE feedback_events")
        found = retrievals(database, large_partition(database))
        for one in found:
            print(f"{one.what}: by {one.index}, p95 {one.p95_ms} ms", flush=True)
        with database.as_operator() as connection:
            others = sorted(set(read_chitchat(100).tenants) - set(tenants))
            create_tenants(connection, others, settings.learning_configuration)
            names = [state.tenant_id for state in read_states(connection)]
            keys = {name: create_key(connection, name, "tenant", "benchmark") for name in names}
        cut_weeks(database)
    reads = [
        request("GET", "/context/adaptation/state", {"authorization": f"Bearer {key}"})
        for key in keys.values()
    ]
    feedback = feedback_requests(keys, "/context/feedback")
    requests = [one for pair in zip(feedback, reads * len(feedback), strict=False) for one in pair]
    environment = os.environ | {"SOMABRAIN_HOME": str(settings.home)}
    with program([SOMABRAIN, "serve", "--port", str(PORT)], environment, place / "log", ""):
        alone = latencies_of(load(requests, rate, SECONDS_ALONE, place / "alone.npy"), place / "alone.npy")
        with ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(NICENESS,)
        ) as pool:
            pool.submit(random.random).result()  # the process is there, and has imported what it needs
            loading = load(requests, rate, SECONDS_BEFORE + 3 * MOST_SECONDS, place / "beside.npy")
            time.sleep(SECONDS_BEFORE)
            started, ended, rows, refused = pool.submit(prune, where.database_url).result()
            beside = latencies_of(loading, place / "beside.npy")
    meanwhile = (beside[:, 0] >= started) & (beside[:, 0] - beside[:, 1] <= ended)
    with Database(where.database_url) as database, database.snapshot() as connection:
        began = time.perf_counter()
        verification = verify(connection)
        verified = time.perf_counter() - began
    seconds = round(ended - started, 2)
    ratio = round(p95_ms(beside[meanwhile]) / p95_ms(alone), 2)
    return {
        "commit": commit(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "events": events,
        "tenants": len(tenants),
        "aggregated_seconds": round(aggregated, 2),
        "retrievals": [asdict(one) for one in found],
        "pruned": {"rows": rows, "seconds": seconds, "refused": refused},
        "service": {
            "rate": rate,
            "requests_alone": len(alone),
            "requests_meanwhile": int(meanwhile.sum()),
            "p95_ms_alone": p95_ms(alone),
            "p95_ms_meanwhile": p95_ms(beside[meanwhile]),
            "worst_ms_meanwhile": round(float(beside[meanwhile, 1].max()) * 1000, 1),
            "ratio": ratio,
        },
        "verification": {
            "seconds": round(verified, 2),
            "changes": len(verification.log.causes),
            "sealed_events": verification.sealed_events,
            "findings": [str(finding) for finding in verification.findings],
        },
        "holds": {
            "retrieval by an index, p95 below 10 ms": all(one.holds for one in found),
            f"{events:,} events pruned in less than 5 s": rows == events and seconds < MOST_SECONDS,
            "the service's p95 meanwhile at most twice its normal": ratio <= MOST_RATIO,
            "the log replays, and its seals hold": not verification.findings
            and verification.sealed_events == events,
        },
    }


def main() -> None:
    """Measure, print what holds, and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rate", type=float, default=200.0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    with tempfile.TemporaryDirectory(prefix="somabrain-bench-", dir="/var/tmp") as directory:
        place = Path(directory)
        place.chmod(0o711)
        try:
            report = run(given.events, given.rate, place)
        finally:
            servers.stop(Settings(home=place / "home"))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"pruned {report['pruned']['rows']:,} events in {report['pruned']['seconds']} s")
    service = report["service"]
    print(
        f"the service's p95: {service['p95_ms_alone']} ms alone, {service['p95_ms_meanwhile']} ms meanwhile"
    )
    for claim, holds in report["holds"].items():
        print(f"{'✓' if holds else '✗'} {claim}")
    print(f"written to {REPORT}")
    if not all(report["holds"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
