"""How long results take to analyse, beside peers on the same numbers: `python -m benchmarks.analysis`.

Experiments are generated: only how many there are matters. The events of the trends are the real ratings of
100 people (BYU Chit-Chat: three scores a conversation, each an event), one after another and over again until
there are a million, landed in a real Postgres as any feedback; what is timed includes reading them and
writing what was found. gbstats and pymannkendall run in an environment of their own, on the same numbers.
Where a peer computes the same thing and disagrees, the benchmark fails. Writes reports/bench-analysis.json.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, theilslopes, ttest_ind

from benchmarks.calibration import ALPHA, autoregressive, trends_of
from benchmarks.peers import HOME, PeerMissing, installed
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.experiments import Analysis, Arm, Plan, analyse, sample_size
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.multiplicity import lord_levels
from somabrain_dagster.learning.trend_rule import TrendRule
from somabrain_dagster.learning.trends import Series, Trend, coarsened, judge, trend
from somabrain_dagster.operations.chitchat import read_chitchat, utility
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import trends as store
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import land

REPORT = Path("reports/bench-analysis.json")
PEERS = ("gbstats==0.8.0", "pymannkendall==1.4.3")
PEERS_PROGRAM = Path(__file__).with_name("analysis_peers.py")
PEERS_SECONDS = 1200
EXPERIMENTS = 1_000
TENANTS = 100
EVENTS = 1_000_000
EVENTS_TOGETHER = 5_000
REPEATS = 3
ALARMS = 2_000
"""Draws of noise in which each test's false alarms are counted."""
NOISE = 0.6
"""The autocorrelation of that noise."""
NOISE_BINS = 90
SCORES = 3
"""Of a rating: witty, interesting, upbeat."""

Floats = NDArray[np.float64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """How long something took.

    Attributes:
        part: what it belongs to; only what is of one part is comparable.
        who: us or a peer.
        what: was done.
        seconds: the best of so many repeats.
    """

    part: str
    who: str
    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:>9.3f} s  {self.who:<14} {self.what}"


def timed(work: Callable[[], Result], before: Callable[[], None] = lambda: None) -> tuple[float, Result]:
    """The best time of some runs, each after what must be done before it, and what the last gave."""
    best = float("inf")
    for _ in range(REPEATS):
        before()
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


# Experiments


def generated_experiments() -> Floats:
    """Sessions of experiments of two arms, (experiments, 2, sessions); every other one has an effect."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(EXPERIMENTS, 2, sample_size(0.3)))
    numbers[::2, 1] += 0.3
    return numbers


def experiments(numbers: Floats) -> Iterator[Timing]:
    part = f"{EXPERIMENTS:,} experiments"
    plan = Plan((Arm("control", 0.5), Arm("treatment", 0.5)), numbers.shape[2])

    def moments() -> list[tuple[Moments, Moments]]:
        return [(Moments.of(control), Moments.of(treatment)) for control, treatment in numbers]

    seconds, samples = timed(moments)
    yield Timing(part, "somabrain", f"moments of 2 × {numbers.shape[2]} sessions each", seconds)

    def analyses() -> list[Analysis]:
        return [analyse(plan, {"control": a, "treatment": b}) for a, b in samples]

    seconds, found = timed(analyses)
    yield Timing(part, "somabrain", "Welch, interval, d, its interval, g, SRM, Holm, gates", seconds)
    p = [one.p for one in found]
    seconds, _ = timed(lambda: lord_levels(p))
    yield Timing(part, "somabrain", "LORD++ over all of them in a row", seconds)
    seconds, theirs = timed(
        lambda: [float(ttest_ind(b, a, equal_var=False).pvalue) for a, b in numbers],
    )
    yield Timing(part, "scipy", "ttest_ind, p alone", seconds)
    agree("scipy's p-values", theirs, p)


# Trends


def rated_people() -> dict[str, list[Feedback]]:
    """What was said of the conversations of the 100 people with most ratings, each one's in order."""
    rated: dict[str, list[Feedback]] = {}
    for feedback in read_chitchat(2 * TENANTS).feedback:
        rated.setdefault(feedback.tenant_id, []).append(feedback)
    people = sorted(rated, key=lambda person: (-len(rated[person]), person))[:TENANTS]
    return {person: rated[person] for person in people}


def rating_of(sessions: Sequence[Feedback], number: int, *, apart: bool = True) -> Feedback:
    """A person's score of that number as an event of its own; after the last it begins again.

    Args:
        sessions: the person's ratings, three scores each.
        number: from 0.
        apart: each repetition is as much later as the person's conversations last, into the future if need
            be; else it is about the same days.
    """
    session, score = divmod(number, SCORES)
    again, place = divmod(session, len(sessions))
    rated = sessions[place]
    first, last, time = (one.occurred_at for one in (sessions[0], sessions[-1], rated))
    assert first is not None
    assert last is not None
    assert time is not None
    span = last - first + timedelta(days=1)
    return Feedback(
        tenant_id=rated.tenant_id,
        session_id=f"{rated.session_id}/{again}",
        utility=utility(int(list(rated.metadata.values())[score])),
        source=rated.source,
        occurred_at=time + (again * span if apart else timedelta(0)),
    )


def real_ratings(events: int, *, apart: bool = True) -> Iterator[Feedback]:
    """Events of the 100 people with most ratings, over again until there are enough, person by person.

    Args:
        events: how many.
        apart: as in `rating_of`.
    """
    people = rated_people()
    for sessions in people.values():
        for number in range(events // len(people)):
            yield rating_of(sessions, number, apart=apart)


def land_all(database: Database, said: Iterator[Feedback], events: int) -> list[str]:
    """Land so many events, and return whose they are."""
    configuration = LearningConfiguration()
    people: list[str] = []
    began, landed = time.perf_counter(), 0
    while batch := list(islice(said, EVENTS_TOGETHER)):
        fresh = {feedback.tenant_id for feedback in batch} - set(people)
        if fresh:
            with database.as_operator() as connection:
                people += create_tenants(connection, sorted(fresh), configuration)
        land(database, batch, configuration)
        landed += len(batch)
        if landed % (20 * EVENTS_TOGETHER) == 0:
            rate = landed / (time.perf_counter() - began)
            print(f"{landed:,} of {events:,} events landed, {rate:,.0f}/s", flush=True)
    with database.as_owner() as connection:
        connection.execute("ANALYZE feedback_events, adaptation_states")
    return people


def trends(database: Database, people: Sequence[str], events: int) -> tuple[list[Timing], list[Series]]:
    part = f"{events:,} events of {len(people)} tenants"

    def read() -> dict[str, Series]:
        with database.snapshot() as connection:
            return store.read_session_means(connection, people)

    def whole() -> store.Trends:
        with database.snapshot() as connection:
            found = store.analyse(connection, TrendRule())
        with database.as_operator() as connection:
            store.write_trends(connection, found)
        return found

    def forget() -> None:
        with database.as_owner() as connection:
            connection.execute("DELETE FROM performance_trends; DELETE FROM log_marks")

    reading, means = timed(read)
    series = [coarsened(one) for one in means.values()]
    computing, _ = timed(lambda: judge([trend(one) for one in series], TrendRule()))
    everything, found = timed(whole, forget)
    idle, again = timed(whole)
    if (len(found.judged), again.analysed) != (len(people), []):
        raise SystemExit(f"{len(found.judged)} trends, {len(again.analysed)} tenants analysed again")

    def theirs() -> list[tuple[float, float]]:
        return [
            (kendalltau(one.times, one.values).pvalue, theilslopes(one.values, one.times).slope)
            for one in series
        ]

    scipys, pairs = timed(theirs)
    by_tenant = {one.tenant_id: one.trend for one in found.judged}
    ours = [(by_tenant[tenant].uncorrected_p, by_tenant[tenant].slope) for tenant in means]
    # Two reads of the same sessions differ in the last places of their mean times.
    agree("scipy's trends", np.ravel(pairs).tolist(), np.ravel(ours).tolist())
    sessions = sum(len(one.times) for one in means.values())
    bins = f"{len(series[0].times)} bins of {len(people)} tenants"
    return [
        Timing(part, "somabrain", "read, bin, test, judge together, write", everything),
        Timing(part, "somabrain", f"reading alone: {sessions:,} session means", reading),
        Timing(part, "somabrain", "the whole again, when nothing is new", idle),
        Timing(bins, "somabrain", "test, line, interval, q", computing),
        Timing(bins, "scipy", "kendalltau, theilslopes", scipys),
    ], series


def false_alarms(found: Sequence[Trend]) -> dict[str, float]:
    return {
        "somabrain": float(np.mean([one.p < ALPHA for one in found])),
        "scipy": float(np.mean([one.uncorrected_p < ALPHA for one in found])),
    }


# Peers in an environment of their own


def peers(numbers: Floats, series: Sequence[Series], noise: Floats) -> tuple[list[Timing], dict[str, float]]:
    """What gbstats and pymannkendall take for the same experiments and bins, and their false alarms.

    Raises:
        PeerMissing: they cannot be installed or run here.
    """
    python = installed("analysis", PEERS) / "python"
    given = HOME / "analysis.npz"
    np.savez(given, experiments=numbers, values=np.array([one.values for one in series]), noise=noise)
    command = [str(python), str(PEERS_PROGRAM), str(given), str(REPEATS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEERS_SECONDS, check=False)
    if done.returncode:
        raise PeerMissing(f"the peers failed: {done.stderr.strip().splitlines()[-1:]}")
    said = json.loads(done.stdout)
    ours = [
        analyse(
            Plan((Arm("control", 0.5), Arm("treatment", 0.5)), numbers.shape[2]),
            {"control": Moments.of(a), "treatment": Moments.of(b)},
        ).p
        for a, b in numbers
    ]
    agree("gbstats' p-values", said["p"], ours)
    return [Timing(**row) for row in said["timings"]], said["false_alarms"]


def agree(what: str, theirs: Sequence[float], ours: Sequence[float]) -> None:
    if not np.allclose(theirs, ours, rtol=1e-6, atol=1e-12):
        raise SystemExit(f"{what} disagree by up to {np.abs(np.subtract(theirs, ours)).max():.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS)
    events = parser.parse_args().events
    numbers = generated_experiments()
    noise = autoregressive(np.random.default_rng(1), ALARMS, NOISE_BINS, NOISE)
    timings = list(experiments(numbers))
    print(*timings, sep="\n", flush=True)
    with scratch_database(Settings(), "bench") as database:
        people = land_all(database, real_ratings(events), events)
        found, series = trends(database, people, events)
    print(*found, sep="\n", flush=True)
    timings += found
    alarms = false_alarms(trends_of(noise))
    left_out: dict[str, str] = {}
    try:
        found, theirs = peers(numbers, series, noise)
        print(*found, sep="\n", flush=True)
        timings, alarms = timings + found, alarms | theirs
    except PeerMissing as error:
        left_out["gbstats, pymannkendall"] = str(error)
        print(f"gbstats and pymannkendall left out: {error}")
    print(f"false alarms at {ALPHA:.0%}, AR(1) noise, φ = {NOISE}, {NOISE_BINS} bins, {ALARMS:,} draws:")
    print(*(f"{rate:>10.1%}  {who}" for who, rate in alarms.items()), sep="\n")
    report = {
        "repeats": REPEATS,
        "timings": [asdict(timing) for timing in timings],
        "false_alarms": alarms,
        "left_out": left_out,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {REPORT}")


if __name__ == "__main__":
    main()
