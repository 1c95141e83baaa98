"""A million changes of weights, read and folded: `python -m benchmarks.replay [--events 1000000]`.

Real ratings (BYU Chit-Chat, 100 people, over again until there are enough) land in a real Postgres in bulk.
The floor is reading their changes: the same binary COPY into numpy, and nothing else. The product's replay
reads and folds them, checks the weights after each change, and compares the end with the live state. Beside
it stand other ways to fold: over Python's integers, by an object a tenant with a method call an event, and by
pandas' groupby and apply. They check no row, but must end at the live weights.

Each run is a process of its own, the contenders taking turns. Writes reports/replay.json; exit 1 if anything
does not hold.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis import land_all, real_ratings
from benchmarks.report import Figures, Spread, write_report
from somabrain_dagster.learning.replay import Log
from somabrain_dagster.learning.weights import NANO, WEIGHTS, Nanos
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import read_configurations, read_states
from somabrain_dagster.store.binary import read_blocks
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.log_reading import CHANGE, LogReader, changes_query
from somabrain_dagster.store.verification import (
    chain_findings,
    event_findings,
    folded_findings,
    read_log,
    rederivation_findings,
    replay_findings,
    seal_findings,
)

REPORT = Path("reports/replay.json")
EVENTS = 1_000_000
SMALLER = 4
"""How many times fewer changes there are where memory is compared."""
REPEATS = 3
LARGEST_RATIO = 1.5
LARGEST_GROWTH = 1.2
_NAMES = [weight.name for weight in WEIGHTS]


def reading(connection: Connection) -> None:
    """The floor."""
    for _ in read_blocks(connection, changes_query(read_configurations(connection)), CHANGE):
        pass


def folding(connection: Connection) -> None:
    """`somabrain replay --fold`."""
    assert not list(folded_findings(connection))


def whole(connection: Connection) -> None:
    """What `somabrain replay` begins with, which holds the log to derive each shift again."""
    assert not list(replay_findings(read_log(connection)))


def rows_of(reader: LogReader) -> Iterator[tuple[int, Log]]:
    """Of each block, the rows of one tenant after the other."""
    for block, _ in reader.blocks():
        ends = np.cumsum(block.lengths)
        for tenant in np.flatnonzero(block.lengths).tolist():
            rows = slice(int(ends[tenant] - block.lengths[tenant]), int(ends[tenant]))
            yield tenant, Log(block.lengths, block.versions[rows], block.shifts[rows], block.after[rows])


def integers(connection: Connection) -> Nanos:
    """The definition, over Python's integers."""
    reader = LogReader.of(connection)
    weights = [[0] * len(WEIGHTS) for _ in reader.states]
    for tenant, rows in rows_of(reader):
        held = weights[tenant]
        shifts = rows.shifts
        for shift, low, high in zip(
            shifts.shift.tolist(), shifts.low.tolist(), shifts.high.tolist(), strict=True
        ):
            held = [
                min(max(w + a, floor), top) for w, a, floor, top in zip(held, shift, low, high, strict=True)
            ]
        weights[tenant] = held
    return np.array(weights, dtype=np.int64)


class AdaptationEngine:
    """A tenant's weights as attributes, adapted event by event: floats in units, not nano-units."""

    def __init__(self) -> None:
        for name in _NAMES:
            setattr(self, name, 0.0)

    def apply(self, shift: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
        for place, name in enumerate(_NAMES):
            moved = getattr(self, name) + shift[place]
            setattr(self, name, min(max(moved, low[place]), high[place]))


def objects(connection: Connection) -> Nanos:
    """An object a tenant, a method call an event."""
    reader = LogReader.of(connection)
    engines = [AdaptationEngine() for _ in reader.states]
    for tenant, rows in rows_of(reader):
        engine, shifts = engines[tenant], rows.shifts
        for event in zip(
            (shifts.shift / NANO).tolist(),
            (shifts.low / NANO).tolist(),
            (shifts.high / NANO).tolist(),
            strict=True,
        ):
            engine.apply(*event)
    units = [[getattr(engine, name) for name in _NAMES] for engine in engines]
    return np.array(np.rint(np.array(units) * NANO), dtype=np.int64)


def pandas(connection: Connection) -> Nanos:
    """A frame of the log; groupby, and a fold of each group's rows."""
    parts = [
        pd.DataFrame(np.hstack([rows.shifts.shift, rows.shifts.low, rows.shifts.high])).assign(tenant=tenant)
        for tenant, rows in rows_of(LogReader.of(connection))
    ]
    width = len(WEIGHTS)

    def fold(group: pd.DataFrame) -> "pd.Series[int]":
        held = [0] * width
        for row in group.itertuples(index=False, name=None):
            held = [
                min(max(held[place] + row[place], row[width + place]), row[2 * width + place])
                for place in range(width)
            ]
        return pd.Series(held)

    folded = pd.concat(parts, ignore_index=True).groupby("tenant").apply(fold)
    return np.array(folded.to_numpy(), dtype=np.int64)


@dataclass(frozen=True)
class Contender:
    """A way to replay; what it returns is compared with the live weights."""

    what: str
    work: Callable[[Connection], Nanos | None]


CONTENDERS = {
    "reading": Contender("reading alone", reading),
    "fold": Contender("replay: read, check every change, fold", folding),
    "whole": Contender("the same, with the log held for rederivation", whole),
    "integers": Contender("fold over Python's integers", integers),
    "objects": Contender("an object a tenant, a call an event (floats)", objects),
    "pandas": Contender("pandas: groupby, apply", pandas),
}


def run_one(name: str, url: str) -> dict[str, Any]:
    """A contender's seconds, its memory, and by how many nano-units at most it misses the live weights."""
    with Database(url) as database, database.snapshot() as connection:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of imports
        before = peak_mb()
        began = time.perf_counter()
        weights = CONTENDERS[name].work(connection)
        found: dict[str, Any] = {"seconds": time.perf_counter() - began}
        found["own_mb"] = peak_mb() - before
        if weights is not None:
            live = np.array([state.weights for state in read_states(connection)])
            found["off_by"] = int(np.abs(weights - live).max())
        return found


def peak_mb() -> float:
    """The most resident memory of this process, as Linux counts it."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def measured(names: Sequence[str], url: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Each contender so many times, taking turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.replay", "--one", name, "--url", url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr[-500:]}")
            found[name].append(json.loads(done.stdout))
            print(f"{CONTENDERS[name].what}: {found[name][-1]['seconds']:.2f} s", flush=True)
    return found


def proofs(database: Database) -> dict[str, float]:
    """What `somabrain replay` does besides, each part once, in seconds."""
    with database.snapshot() as connection:
        log = read_log(connection)
        parts: dict[str, Callable[[], Iterator[object]]] = {
            "each shift derived again from its event": lambda: rederivation_findings(connection, log),
            "the hash of each change and the chain": lambda: chain_findings(connection),
            "the digest of each event": lambda: event_findings(connection),
            "the seals of what was pruned": lambda: seal_findings(connection, log),
        }
        seconds = {}
        for what, part in parts.items():
            began = time.perf_counter()
            assert not list(part()), what
            seconds[what] = time.perf_counter() - began
            print(f"{what}: {seconds[what]:.2f} s", flush=True)
    return seconds


def run(events: int, repeats: int) -> bool:
    """Land, measure, and write the report; whether all holds."""
    runs: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for count, names in ((events // SMALLER, ("fold",)), (events, tuple(CONTENDERS))):
        with scratch_database(Settings(), "bench") as database:
            land_all(database, real_ratings(count, apart=False), count)
            runs[count] = measured(names, database.url, repeats)
            if count == events:
                besides = proofs(database)
    found = runs[events]
    floor = [one["seconds"] for one in found["reading"]]
    ratios = {
        name: Spread.of([one["seconds"] / read for one, read in zip(those, floor, strict=True)])
        for name, those in found.items()
    }
    peak = {count: max(one["own_mb"] for one in those["fold"]) for count, those in runs.items()}
    table = Figures(
        f"{events:,} changes of 100 tenants, {repeats} runs each in turn: median (least to most)",
        ("", "seconds", "× reading", "memory MB", "ends at the live weights"),
        [
            (
                CONTENDERS[name].what,
                str(Spread.of([one["seconds"] for one in those])),
                str(ratios[name]),
                f"{max(one['own_mb'] for one in those):.0f}",
                "" if name == "reading" else _exactness(those[0].get("off_by", 0)),
            )
            for name, those in found.items()
        ],
    )
    more = Figures(
        "What `somabrain replay` does besides, once",
        ("", "seconds"),
        [(what, f"{seconds:.1f}") for what, seconds in besides.items()],
    )
    return write_report(
        REPORT,
        [table, more],
        {
            f"reading and folding {events:,} changes takes {ratios['fold'].median:.2f} times as long as "
            f"reading them, at most {LARGEST_RATIO}": ratios["fold"].median <= LARGEST_RATIO,
            f"replay takes {peak[events]:.0f} MB for {events:,} changes and {peak[events // SMALLER]:.0f} MB "
            f"for {events // SMALLER:,}: it does not grow with them": peak[events]
            <= LARGEST_GROWTH * peak[events // SMALLER],
            "whatever folds integers ends at the live weights": all(
                one.get("off_by", 0) == 0 for name in found if name != "objects" for one in found[name]
            ),
        },
        packages=("numpy", "pandas", "psycopg"),
        repeats=repeats,
        runs={str(count): those for count, those in runs.items()},
        besides_seconds=besides,
    )


def _exactness(off_by: int) -> str:
    return "yes" if off_by == 0 else f"off by up to {off_by:,} nano-units"


def main() -> None:
    """Measure, or be one of what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_one(given.one, given.url)))
    elif not run(given.events, given.repeats):
        sys.exit(1)


if __name__ == "__main__":
    main()
