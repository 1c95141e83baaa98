"""Everything beside its floor and its peers: `python -m benchmarks.bench [--only service recall …]`.

Each comparison is measured several times, the contenders taking turns, so that a machine that others use too
slows all of them. A ratio is taken within a round, and its median, least and greatest are told; above 1 it is
a win, below a loss. A *peer* does the same as is done here. A *floor* does less: it is what the machine, the
framework or the database would do alone, and nothing can beat it that stands on it.

Peers are set up by the scripts, each in an environment of its own; one that cannot be is left out, with the
reason. Writes reports/bench.json. A peer that is ahead is a result, and no error.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import numpy as np

from benchmarks import analysis, conversing, corpus, recall, replay, serving
from benchmarks.calibration import autoregressive
from benchmarks.load import request
from benchmarks.peers import PeerMissing, installed, versions
from benchmarks.report import Figures, Spread, write_report
from benchmarks.serving import FLOOR, PEER, SERVICE
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database

REPORT = Path("reports/bench.json")
ROUNDS = 3
CLIENTS = 8
SECONDS = 2.0
"""Of load on each contender in a round."""
TREND_EVENTS = 200_000
REPLAYED = 250_000
MEMORIES = 100_000
DIFFERENT = 4_000
CORPUS_MB = 100
BARE, HELLO = "bare INSERT + COMMIT", "a constant answer"


@dataclass(frozen=True)
class Compared:
    """A measurement beside another's, each round of both.

    Attributes:
        what: was done.
        who: it is compared with.
        floor: whether that does less.
        unit: of both.
        here, there: a value a round.
        more: whether more is better.
    """

    what: str
    who: str
    floor: bool
    unit: str
    here: Sequence[float]
    there: Sequence[float]
    more: bool

    @property
    def times(self) -> Spread:
        """How many times better it is here; below 1 it is worse."""
        pairs = zip(self.here, self.there, strict=True)
        return Spread.of([ours / theirs if self.more else theirs / ours for ours, theirs in pairs])

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        better = self.times.median >= 1
        verdict = "won" if better else ("below its floor" if self.floor else "LOST")
        return (
            self.what,
            f"{self.who} ({'floor' if self.floor else 'peer'})",
            self.unit,
            str(Spread.of(self.here)),
            str(Spread.of(self.there)),
            str(self.times),
            verdict,
        )


@dataclass
class Part:
    """What a part of the run came to: its comparisons, and who was left out and why."""

    compared: list[Compared] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    tables: list[Figures] = field(default_factory=list)
    holds: dict[str, bool] = field(default_factory=dict)


def service() -> Part:
    """Feedback landed and weights read over HTTP, durable as the service is."""
    part = Part()
    place = Path(tempfile.mkdtemp(prefix="somabrain-bench-", dir="/var/tmp"))
    place.chmod(0o711)
    rates: dict[tuple[str, str], list[float]] = {}
    try:
        with ExitStack() as up:
            held = up.enter_context(serving.brain(place))
            log = place / "log"
            least = ["-m", "benchmarks.serving_floor", held.floor_url, str(FLOOR)]
            up.enter_context(serving.program(least, f"http://127.0.0.1:{FLOOR}/hello", log, {}))
            ours = ["-m", "somabrain_dagster.serving", "--port", str(SERVICE)]
            up.enter_context(
                serving.program(ours, f"http://127.0.0.1:{SERVICE}/healthz", log, held.variables)
            )
            loads = {
                ("here", "landed"): (SERVICE, serving.feedback_requests(held.keys, "/context/feedback")),
                ("here", "state"): (SERVICE, serving.state_requests(held.keys.values())),
                (BARE, "landed"): (FLOOR, serving.feedback_requests(held.keys, "/bare")),
                (HELLO, "state"): (FLOOR, [request("GET", "/hello", serving.JSON)]),
            }
            for number, name in enumerate(serving.peers_of(held, PEER)):
                port = PEER + 2 * number
                try:
                    asked = up.enter_context(serving.peers_of(held, port)[name]())
                except (RuntimeError, OSError, ValueError, TimeoutExpired) as error:
                    part.left_out[name] = str(error)
                    print(f"{name} left out: {error}", flush=True)
                    continue
                loads |= {(name, "landed"): (port, asked.landing), (name, "state"): (port, asked.state)}
            for _ in range(ROUNDS):
                for (name, what), (port, requests) in loads.items():
                    (row,) = serving.measured(f"{name}: {what}", port, requests, SECONDS, place, (CLIENTS,))
                    rates.setdefault((name, what), []).append(row["rps"])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    said = {"landed": "feedback landed", "state": "state read"}
    for (name, what), there in rates.items():
        if name == "here":
            continue
        if not min(there):
            part.left_out[f"{name}, {said[what]}"] = "it answered no request well"
            continue
        floor = name in (BARE, HELLO)
        part.compared.append(
            Compared(said[what], name, floor, f"/s, {CLIENTS} clients", rates["here", what], there, True)
        )
    return part


def folded() -> Part:
    """The log of weight changes, replayed."""
    with scratch_database(Settings(), "bench") as database:
        analysis.land_all(database, analysis.real_ratings(REPLAYED, apart=False), REPLAYED)
        found = replay.measured(tuple(replay.CONTENDERS), database.url, ROUNDS)
    seconds = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    return Part(
        [
            Compared(
                f"{REPLAYED:,} changes replayed",
                replay.CONTENDERS[name].what,
                name == "reading",
                "s",
                seconds["fold"],
                there,
                False,
            )
            for name, there in seconds.items()
            if name not in ("fold", "whole")
        ]
    )


def analyses() -> Part:
    """Experiments and trends, from the same numbers."""
    part = Part()
    numbers = analysis.generated_experiments()
    noise = autoregressive(np.random.default_rng(1), 200, analysis.NOISE_BINS, analysis.NOISE)
    seconds: dict[str, list[float]] = {}
    with scratch_database(Settings(), "bench") as database:
        people = analysis.land_all(database, analysis.real_ratings(TREND_EVENTS), TREND_EVENTS)
        for _ in range(ROUNDS):
            timings = list(analysis.experiments(numbers))
            found, series = analysis.trends(database, people, TREND_EVENTS)
            timings += found
            if not part.left_out:
                try:
                    timings += analysis.peers(numbers, series, noise)[0]
                except PeerMissing as error:
                    part.left_out["gbstats, pymannkendall"] = str(error)
            for timing in timings:
                seconds.setdefault(f"{timing.who}: {timing.what}", []).append(timing.seconds)
    for what, here, theirs in (
        (
            f"{analysis.EXPERIMENTS:,} experiments analysed",
            "somabrain: Welch, interval, d, its interval, g, SRM, Holm, gates",
            {"gbstats: Welch and interval, from moments": False, "scipy: ttest_ind, p alone": True},
        ),
        (
            f"trends of {len(people)} tenants, {len(series[0].times)} bins each",
            "somabrain: test, line, interval, q",
            {
                "pymannkendall: original_test": False,
                "pymannkendall: hamed_rao_modification_test": False,
                "scipy: kendalltau, theilslopes": True,
            },
        ),
    ):
        part.compared += [
            Compared(what, name, floor, "s", seconds[here], seconds[name], False)
            for name, floor in theirs.items()
            if len(seconds.get(name, ())) == ROUNDS
        ]
    return part


def recalled() -> Part:
    """Recall from a hundred thousand memories, over the bare query."""
    settings = Settings()
    held = recall.read_corpus(settings.home, DIFFERENT)
    rows = []
    with (
        scratch_database(settings, "bench") as database,
        Database(database.url, options=recall.SCAN) as bare,
    ):
        tenants = recall.load(database, held, [MEMORIES // recall.TENANTS] * recall.TENANTS)
        bench = recall.Bench(database, bare, held, settings)
        rows = [recall.compared(MEMORIES, bench, tenants, "exact") for _ in range(ROUNDS)]
    what = f"recall from {MEMORIES:,} memories of {recall.TENANTS} tenants"
    return Part(
        [
            Compared(
                what,
                "pgvector alone",
                True,
                "ms, p50",
                [r.recall.p50 for r in rows],
                [r.bare.p50 for r in rows],
                False,
            ),
            Compared(
                what,
                "pgvector alone",
                True,
                f"/s, {recall.CLIENTS} clients",
                [r.recall.per_second for r in rows],
                [r.bare.per_second for r in rows],
                True,
            ),
        ]
    )


def conversed() -> Part:
    """Memory that grows message by message."""
    rounds, left_out = conversing.run()
    part = Part(left_out=left_out, tables=[conversing.figures(rounds)], holds=conversing.claims(rounds))
    for what, field_ in (("a growing memory searched", "searched"), ("a message kept", "added")):
        milliseconds = {
            name: [1000 * float(np.median(getattr(one, field_))) for one in held]
            for name, held in rounds.items()
        }
        part.compared += [
            Compared(
                what,
                name,
                name == conversing.BARE,
                "ms, p50",
                milliseconds[conversing.HERE],
                there,
                False,
            )
            for name, there in milliseconds.items()
            if name not in (conversing.HERE, conversing.LEARNING)
        ]
    return part


def corpora() -> Part:
    """A training corpus built from conversations of which hardly two are alike, and from repeated ones."""
    part = Part()
    python: str | Path = sys.executable
    try:
        python = installed("datasets", ["datasets"]) / "python"
    except PeerMissing as error:
        part.left_out["datasets"] = str(error)
    inputs = {"word for word": corpus.repeated, "put together anew": corpus.put_together}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, records in inputs.items():
            with tempfile.TemporaryDirectory(prefix="somabrain-bench-") as folder:
                found = corpus.compare(Path(folder), name, CORPUS_MB, records, os.cpu_count() or 1, python)
            for way, one in found.items():
                seconds.setdefault((name, way), []).append(one.seconds)
    for (name, way), there in seconds.items():
        if way in (corpus.LOOP, corpus.READ) and len(there) == ROUNDS:
            part.compared.append(
                Compared(
                    f"{CORPUS_MB} MB of conversations, {name}, made a corpus",
                    "json.loads and json.dumps alone" if way == corpus.LOOP else "datasets, reading alone",
                    True,
                    "s",
                    seconds[name, corpus.UNCOUNTED],
                    there,
                    False,
                )
            )
    return part


PARTS: dict[str, Callable[[], Part]] = {
    "service": service,
    "replay": folded,
    "analysis": analyses,
    "recall": recalled,
    "conversing": conversed,
    "corpus": corpora,
}


def claims(compared: Sequence[Compared]) -> Iterator[tuple[str, bool]]:
    """For each thing that peers do too, whether it is ahead of all of them."""
    for what in dict.fromkeys(one.what for one in compared if not one.floor):
        peers = [one for one in compared if one.what == what and not one.floor]
        nearest = min(peers, key=lambda one: one.times.median)
        who = nearest.who if len(peers) == 1 else f"{nearest.who}, the nearest of {len(peers)} contenders"
        yield f"{what}: {nearest.times.median:.1f} times as fast as {who}", nearest.times.median >= 1


def report(parts: Mapping[str, Part]) -> None:
    """Write the report and print it."""
    compared = [one for part in parts.values() for one in part.compared]
    left_out = {name: reason for part in parts.values() for name, reason in part.left_out.items()}
    tables = [
        Figures(
            f"Beside floors and peers, {ROUNDS} rounds: median (least–most)",
            ("", "beside", "in", "here", "there", "times better here", ""),
            [one.cells for one in compared],
        ),
        *(table for part in parts.values() for table in part.tables),
    ]
    if left_out:
        tables.append(Figures("Left out", ("", "why"), list(left_out.items())))
    holds = dict(claims(compared)) | {
        claim: true for part in parts.values() for claim, true in part.holds.items()
    }
    raw: list[dict[str, Any]] = [vars(one) for one in compared]
    write_report(
        REPORT,
        tables,
        holds,
        packages=("numpy", "psycopg", "starlette", "uvicorn"),
        versions=versions(),
        rounds=ROUNDS,
        compared=raw,
    )


def main() -> None:
    """Run the parts, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    parts: dict[str, Part] = {}
    try:
        for name in given.only:
            print(f"— {name}", flush=True)
            parts[name] = PARTS[name]()
    finally:  # what was measured is kept if a later part fails
        if parts:
            report(parts)


if __name__ == "__main__":
    main()
