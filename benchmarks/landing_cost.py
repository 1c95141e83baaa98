"""Where the time of a landing goes, by the size of its batch: `python -m benchmarks.landing_cost`.

Real ratings (Chit-Chat, 100 people) land in batches on one connection, beside the bare INSERT + COMMIT of the
same events. The processor's time is that of the thread that lands and, by Linux' own count, of the server's
process for the connection; the rest of the wall is waiting, for the disk and for one another. The parts are
the profiler's shares of the thread's time.
"""

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import msgspec
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.serving_floor import INSERT, REST, TABLE
from somabrain_dagster.embedded import ensure_database, start_postgres, stop_postgres
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import land
from somabrain_dagster.store.schema import migrate

SIZES = (1, 8, 32, 128)
LANDINGS = 200
ROUNDS = 5
PARTS = {
    "learning: rule, fold, guard": "learn",
    "rows and digests of events": "_event_row",
    "hash chain": "chained",
    "statements: parameters and protocol": "execute",
}


def server_seconds(pid: int) -> float:
    """The processor's time of a server process so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measured(work: Callable[[], object], pid: int) -> tuple[float, float, float]:
    """Microseconds of one piece of work: wall, this thread, the server; the best of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter(), time.thread_time(), server_seconds(pid)
        for _ in range(LANDINGS):
            work()
        ended = time.perf_counter(), time.thread_time(), server_seconds(pid)
        rounds.append([(end - begin) / LANDINGS * 1e6 for begin, end in zip(began, ended, strict=True)])
    wall, thread, server = (min(values) for values in zip(*rounds, strict=True))
    return wall, thread, server


def shares(work: Callable[[], object]) -> dict[str, float]:
    """What part of the thread's time each part takes."""
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    for _ in range(LANDINGS):
        work()
    profile.disable()
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    whole = found["land"].cumtime
    return {part: found[name].cumtime / whole for part, name in PARTS.items()}


def batches(events: Sequence[Feedback], size: int) -> Iterator[list[Feedback]]:
    """The events over and over, in their order."""
    endless = cycle(events)
    while True:
        yield list(islice(endless, size))


def main() -> None:
    """Measure each size and print the table."""
    table = Table(box=None)
    for heading in ("µs a batch of", *map(str, SIZES)):
        table.add_column(heading, justify="left" if heading.startswith("µs") else "right")
    rows: dict[tuple[str, str], list[str]] = {}

    def add(of: str, name: str, value: float) -> None:
        rows.setdefault((of, name), []).append(f"{value:,.0f}")

    data = read_chitchat(100)
    events = [msgspec.structs.replace(event, idempotency_key=None) for event in data.feedback]
    configuration = LearningConfiguration()
    with tempfile.TemporaryDirectory(prefix="somabrain-bench-", dir="/var/tmp") as directory:
        home = Path(directory)
        home.chmod(0o711)
        try:
            postgres = start_postgres(home)
            ensure_database(postgres, "brain")
            migrate(postgres.url("brain"))
            with (
                Database(postgres.url("brain"), max_connections=1) as database,
                psycopg.connect(postgres.url("brain"), autocommit=True) as bare,
            ):
                with database.as_operator() as connection:
                    create_tenants(connection, data.tenants, configuration)
                    landing_pid = connection.info.backend_pid
                bare.execute(TABLE)
                for size in SIZES:
                    batch = batches(events, size)

                    def insert(batch: Iterator[list[Feedback]] = batch) -> None:
                        these = next(batch)
                        bodies = [msgspec.json.encode(event).decode() for event in these]
                        names = [event.tenant_id for event in these]
                        bare.execute(INSERT, (names, bodies, [REST] * len(these))).fetchall()

                    def one(batch: Iterator[list[Feedback]] = batch) -> None:
                        land(database, next(batch), configuration)

                    for _ in range(30):
                        one()
                        insert()
                    wall, thread, server = measured(one, landing_pid)
                    add("landing", "wall", wall)
                    add("landing", "this process", thread)
                    for part, share in shares(one).items():
                        add("landing", f"  {part}", share * thread)
                    add("landing", "the server's process", server)
                    wall, thread, server = measured(insert, bare.info.backend_pid)
                    add("bare INSERT + COMMIT", "wall", wall)
                    add("bare INSERT + COMMIT", "this process", thread)
                    add("bare INSERT + COMMIT", "the server's process", server)
        finally:
            stop_postgres(home)
    for (of, name), values in rows.items():
        table.add_row(f"{of}: {name}", *values)
    Console().print(table)


if __name__ == "__main__":
    main()
