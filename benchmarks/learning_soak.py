"""A soak of the learning loop: `python -m benchmarks.learning_soak [--events 1000 | --minutes 60]`.

Two agents share a service that is a process of its own, on a Postgres and a Valkey of their own. Both have
the first messages of one real person in memory, and meet the same real questions in their real order:

- the *rater* has a context built and rates it: the scalar rule. Its utilities are the real ratings of the
  person's conversations, those above the middle, in order: feedback that is positive throughout.
- the *judge* recalls and names the memory that its message really answers: the rule that credits memories,
  by which working memory grows. An agent's session is a hundred turns.

A turn is one question and one feedback event of each. Questions and ratings begin again when they are
through, in new sessions. What the weights did is read from the log in the end, to the nano-unit; what is kept
meanwhile is a few numbers a hundred turns. Ctrl-C ends it early, with its report: reports/soak.json and
soak.png. Exit 1 if anything does not hold.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec
import numpy as np
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import theilslopes

from benchmarks.report import Figures, write_report
from somabrain_dagster.client import Refused, SomaBrain
from somabrain_dagster.learning.weights import POSITION, WEIGHTS, Nanos, to_nanos, to_units
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import EmbeddedOnce, Kept, Story, judged, keep, question, story
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.memories import Memory
from somabrain_dagster.store.verification import WeightLog, verify
from somabrain_dagster.store.working_memory import WorkingMemory
from somabrain_dagster.traffic import NO_CANDIDATE, service_process

REPORT, PICTURE = Path("reports/soak.json"), Path("reports/soak.png")
RATER, JUDGE = "rater", "judge"
MEMORIES = 2000
EVENTS, LEAST_EVENTS = 1000, 300
SESSION = 100
"""Turns of an agent's session, and of a row of figures."""
SAMPLE = 10
"""Turns from one reading of the process's memory to the next."""
WARM = 100
"""Turns before anything is timed or weighed: a process grows and slows until it has seen every path once."""
SHOWN_ROWS = 10
DRAWN = 1000
LOOKS = 300
"""Points of a slope: it is taken of all pairs."""

SOON, SOON_RISE = 20, 0.3
"""α must have risen so much after so many events."""
LEAST_GROWTH = 0.5
MOST_SLOPE = 1.0
"""MiB of the service's process a thousand turns: four thousand requests, half of them questions."""
MOST_SLOWDOWN = 1.5
MOST_FEEDBACK_MS = 300.0
MOST_SECONDS = 300.0

Answer = TypeVar("Answer")


@dataclass
class Growth:
    """How working memory grows by the events of a session, over all sessions.

    Attributes:
        capacity: how many memories it may hold.
        items, events: that came before it was full, and the events that brought them.
        sums, least, most, sessions: of its size by the event of a session, (SESSION,).
    """

    capacity: int
    items: int = 0
    events: int = 0
    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SESSION, dtype=np.int64))
    least: NDArray[np.int64] = field(default_factory=lambda: np.full(SESSION, np.iinfo(np.int64).max))
    most: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SESSION, dtype=np.int64))
    sessions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SESSION, dtype=np.int64))
    _before: int = 0

    def add(self, place: int, size: int) -> None:
        """Count an event.

        Args:
            place: of the event in its session, from 0.
            size: of the session's working memory after it.
        """
        before = 0 if place == 0 else self._before
        if before < self.capacity:
            self.items += size - before
            self.events += 1
        self._before = size
        self.sums[place] += size
        self.least[place] = min(self.least[place], size)
        self.most[place] = max(self.most[place], size)
        self.sessions[place] += 1

    @property
    def rate(self) -> float:
        """Memories an event, before it was full."""
        return self.items / self.events


def evenly(count: int, most: int) -> NDArray[np.intp]:
    """So many of the places from 0 to before `count` at most, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.intp))


def slope_per_thousand(turns: NDArray[np.floating], values: NDArray[np.floating]) -> float:
    """The median slope of all pairs (Theil–Sen), in units of `values` a thousand turns.

    One page more or less at a single reading does not tilt it. Of many readings some are taken, evenly.
    """
    places = evenly(len(turns), LOOKS)
    return float(theilslopes(values[places], turns[places]).slope * 1000)


@dataclass(frozen=True)
class Latency:
    """Of one kind of request over a hundred turns."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Hundred:
    """A hundred turns.

    Attributes:
        until: the turn with which they end.
        resident_mib: of the service's process.
        latencies: of each kind of request.
    """

    until: int
    resident_mib: float
    latencies: dict[str, Latency]


class Clock:
    """Times requests, and keeps of them what a row of figures needs."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def timed(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """The answer to a request, whose latency is counted."""
        began = time.perf_counter()
        answer = ask()
        self._seconds.setdefault(what, []).append(time.perf_counter() - began)
        return answer

    def latencies(self) -> dict[str, Latency]:
        """Of each kind of request since the last call."""
        found = {
            what: Latency(*(np.quantile(seconds, [0.5, 0.95]) * 1000).round(3).tolist())
            for what, seconds in self._seconds.items()
        }
        self._seconds.clear()
        return found


@dataclass(frozen=True)
class Stage:
    """What the agents work with.

    Attributes:
        database: the service's.
        told: the story that both remember.
        kept: the ids of each agent's memories.
        ratings: the real utilities, all positive.
        brains: a client of each.
        working: the service's working memory.
        capacity: of a session's.
        service: its process.
    """

    database: Database
    told: Story
    kept: dict[str, Kept]
    ratings: list[float]
    brains: dict[str, SomaBrain]
    working: WorkingMemory
    capacity: int
    service: psutil.Process

    def resident_mib(self) -> float:
        """What the service's process and its children hold in memory."""
        processes = [self.service, *self.service.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes) / 2**20


class Soak:
    """The turns of both agents, and what was seen of them.

    Attributes:
        turns: how many there were.
        unweighed: questions whose answer recall did not weigh, so that the judge could not name it.
        hundreds: a row of figures each.
        readings: turn and MiB of the service's process.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._clock = Clock()
        self.turns = 0
        self.unweighed = 0
        self.growth = Growth(stage.capacity)
        self.hundreds: list[Hundred] = []
        self.readings: list[tuple[int, float]] = []

    def turn(self) -> None:
        """One question and one feedback event of each agent."""
        place = self.turns % SESSION
        session = f"session-{self.turns // SESSION}"
        self._rate(session)
        self._judge(session)
        self.growth.add(place, len(self._stage.working.recent(JUDGE, session)))
        self.turns += 1
        if self.turns % SAMPLE == 0:
            self.readings.append((self.turns, self._stage.resident_mib()))
        if self.turns % SESSION == 0:
            self.hundreds.append(Hundred(self.turns, self.readings[-1][1], self._clock.latencies()))

    def _asked(self, tenant: str) -> tuple[Memory, int]:
        """What an agent says at this turn, which is its question, and the memory that it answers."""
        told = self._stage.told
        turn = told.turns[self.turns % len(told.turns)]
        asked = msgspec.structs.replace(told.memories[turn.question], tenant_id=tenant)
        return asked, self._stage.kept[tenant].ids[turn.answer]

    def _rate(self, session: str) -> None:
        brain, ratings = self._stage.brains[RATER], self._stage.ratings
        asked, _ = self._asked(RATER)
        query = msgspec.to_builtins(question(asked)) | {"session_id": session}
        built = self._clock.timed("context", lambda: brain.context(**query))
        said = {
            "session_id": session,
            "utility": ratings[self.turns % len(ratings)],
            "recall_id": built["recall"]["recall_id"],
        }
        self._clock.timed("feedback", lambda: brain.feedback(**said))

    def _judge(self, session: str) -> None:
        brain = self._stage.brains[JUDGE]
        asked, right = self._asked(JUDGE)
        query = msgspec.to_builtins(question(asked)) | {"session_id": session}
        recalled = self._clock.timed("recall", lambda: brain.recall(**query))
        first = bool(recalled["hits"]) and recalled["hits"][0]["memory_id"] == right

        def tell(named: int | None) -> None:
            said = judged(asked, recalled["recall_id"], named, first)
            brain.feedback(**(msgspec.to_builtins(said) | {"session_id": session}))

        try:
            self._clock.timed("feedback", lambda: tell(right))
        except Refused as refused:
            if refused.problem.type != NO_CANDIDATE:
                raise
            self.unweighed += 1
            tell(None)


@contextmanager
def stage_in(home: Path) -> Iterator[Stage]:
    """Servers, a service and both agents' memories, until the end of the block."""
    settings = Settings(home=home, database_url=None, redis_url=None, dagster_database_url=None)
    with ExitStack() as opened:
        opened.callback(servers.stop, settings)
        running = servers.start(settings)
        database = opened.enter_context(Database(running.database_url))
        data = read_chitchat(1)
        (person,) = data.tenants
        told = story(person, data.held[person], MEMORIES)
        print(f"embedding {len(told.memories):,} messages of one person", flush=True)
        once = EmbeddedOnce(embedder_of(settings))
        once.prepare((embedded_text(memory.speaker, memory.text) for memory in told.memories), 2)
        with database.as_operator() as connection:
            create_tenants(connection, [RATER, JUDGE], settings.learning_configuration)
            keys = {agent: create_key(connection, agent, "tenant", "soak") for agent in (RATER, JUDGE)}
        room = Memories(database, once, settings)
        kept = {agent: keep(room, told.of(agent)) for agent in keys}
        service = opened.enter_context(service_process(settings, running))
        brains = {agent: opened.enter_context(SomaBrain(service.url, key)) for agent, key in keys.items()}
        capacity, seconds = settings.working_memory_capacity, settings.working_memory_seconds
        working = opened.enter_context(WorkingMemory(running.redis_url, capacity, seconds))
        ratings = [event.utility for event in data.feedback if event.utility > 0]
        process = psutil.Process(service.pid)
        yield Stage(database, told, kept, ratings, brains, working, capacity, process)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, instead of what they do elsewhere."""
    told = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def soak(stage: Stage, events: int | None, minutes: float | None) -> tuple[Soak, float]:
    """Turn after turn, until there were so many events of each agent, or for so many minutes.

    Returns:
        What was seen, and how many seconds it took.
    """
    soaking = Soak(stage)
    began = time.monotonic()
    with interruptible() as interrupted:
        while not interrupted.is_set():
            seconds = time.monotonic() - began
            if soaking.turns == events or (minutes is not None and seconds >= 60 * minutes):
                break
            soaking.turn()
            if soaking.turns % SESSION == 0 and (soaking.turns <= EVENTS or soaking.turns % EVENTS == 0):
                _tell(soaking, time.monotonic() - began)
    return soaking, time.monotonic() - began


def _tell(soaking: Soak, seconds: float) -> None:
    last = soaking.hundreds[-1]
    p50 = ", ".join(f"{what} {one.p50_ms:.1f} ms" for what, one in last.latencies.items())
    print(f"{soaking.turns:,} turns in {seconds:.0f} s: {last.resident_mib:.0f} MiB, {p50}", flush=True)


@dataclass(frozen=True, eq=False)
class Course:
    """What became of an agent's weights, as the log has it; V versions.

    Attributes:
        events: (V,) how many of the agent's events had landed.
        after: (V, K) its weights, nano-units.
    """

    events: NDArray[np.int64]
    after: Nanos

    def of(self, name: str) -> Nanos:
        """One weight, (V,)."""
        return self.after[:, POSITION[name]]

    def never_falls(self, name: str) -> bool:
        """Whether no change ever lowered a weight."""
        return bool((np.diff(self.of(name)) >= 0).all())

    def reached(self, name: str, units: float) -> int | None:
        """After which event a weight first had so many units; None where it never had."""
        there = np.flatnonzero(self.of(name) >= to_nanos(units))
        return int(self.events[there[0]]) if len(there) else None

    def risen(self, name: str, events: int) -> float:
        """By how many units a weight had risen after so many events."""
        path = self.of(name)
        return float(to_units(path[np.searchsorted(self.events, events)] - path[0]))


def course(log: WeightLog, agent: str) -> Course:
    """The part of the log that is an agent's."""
    rows = log.owners == log.tenants.index(agent)
    return Course(np.maximum.accumulate(log.event_seqs[rows]), log.log.after[rows])


def high(name: str) -> float:
    """The upper bound of a weight."""
    return WEIGHTS[POSITION[name]].high


def slowdowns(hundreds: list[Hundred]) -> dict[str, float]:
    """The p50 of each kind of request in the last quarter over that in the first, medians of both."""
    steady = [one for one in hundreds if one.until > WARM]
    quarter = max(1, len(steady) // 4)

    def p50(some: list[Hundred], what: str) -> float:
        return float(np.median([one.latencies[what].p50_ms for one in some]))

    return {
        what: round(p50(steady[-quarter:], what) / p50(steady[:quarter], what), 2)
        for what in steady[0].latencies
    }


def report(stage: Stage, soaking: Soak, seconds: float) -> bool:
    """Judge what was seen in so many seconds, draw it, and write it down; whether all holds."""
    with stage.database.snapshot() as connection:
        verification = verify(connection)
    log = verification.log
    courses = {agent: course(log, agent) for agent in (RATER, JUDGE)}
    rater = courses[RATER]
    low, top = (to_nanos([getattr(weight, bound) for weight in WEIGHTS]) for bound in ("low", "high"))
    live = {agent: brain.state().nanos for agent, brain in stage.brains.items()}
    turns, mib = np.array([one for one in soaking.readings if one[0] > WARM], dtype=np.float64).T
    slope = slope_per_thousand(turns, mib)
    growth, slower = soaking.growth, slowdowns(soaking.hundreds)
    risen = rater.risen("alpha", SOON)
    soonest = rater.reached("alpha", WEIGHTS[POSITION["alpha"]].start + SOON_RISE)
    at_bound = {name: rater.reached(name, high(name)) for name in ("alpha", "lambda")}
    shown = [soaking.hundreds[place] for place in evenly(len(soaking.hundreds), SHOWN_ROWS).tolist()]
    steady = [one for one in soaking.hundreds if one.until > WARM]
    worst_feedback = max(one.latencies["feedback"].p95_ms for one in steady)
    tables = [
        Figures(
            "the two agents",
            ("", RATER, JUDGE),
            [
                ("feedback events", *(f"{one.events[-1]:,}" for one in courses.values())),
                (
                    "other changes",
                    *(f"{len(one.after) - 1 - one.events[-1]:,}" for one in courses.values()),
                ),
                *(
                    (
                        f"{weight.symbol} in the end",
                        *(f"{to_units(one.of(weight.name)[-1]):.3f}" for one in courses.values()),
                    )
                    for weight in WEIGHTS
                ),
            ],
        ),
        Figures(
            "what the rater's positive feedback did",
            ("", "figure"),
            [
                ("mean utility of the ratings", f"{np.mean(stage.ratings):.2f}"),
                (f"α after {SOON} events", f"+{risen:.2f}"),
                (f"α had risen by {SOON_RISE}", f"after event {soonest}"),
                ("α at its bound", f"after event {at_bound['alpha']}"),
                ("λ at its bound", f"after event {at_bound['lambda']}"),
            ],
        ),
        Figures(
            "latency, and the memory of the service's process",
            (
                "turns until",
                *(f"{what} {p} ms" for what in soaking.hundreds[0].latencies for p in ("p50", "p95")),
                "MiB",
            ),
            [
                (
                    f"{one.until:,}",
                    *(f"{value:.1f}" for of in one.latencies.values() for value in (of.p50_ms, of.p95_ms)),
                    f"{one.resident_mib:.0f}",
                )
                for one in shown
            ],
        ),
    ]
    holds = {
        "under positive feedback α never falls": rater.never_falls("alpha"),
        "under positive feedback λ never falls": rater.never_falls("lambda"),
        "α and λ stand at their bounds in the end": all(
            to_units(rater.of(name)[-1]) == high(name) for name in at_bound
        ),
        f"α rises by {SOON_RISE} at least within {SOON} events": risen >= SOON_RISE,
        f"working memory grows by {LEAST_GROWTH} an event at least before it is full": growth.rate
        >= LEAST_GROWTH,
        "every weight is within its bounds at every version": bool(
            ((log.log.after >= low) & (log.log.after <= top)).all()
        ),
        f"the service's process grows by {MOST_SLOPE:g} MiB a thousand turns at most": slope <= MOST_SLOPE,
        f"no kind of request is slower than {MOST_SLOWDOWN:g} times what it was": max(slower.values())
        <= MOST_SLOWDOWN,
        f"feedback's p95 is below {MOST_FEEDBACK_MS:g} ms in every hundred": worst_feedback
        < MOST_FEEDBACK_MS,
        "the service answers with what the log says": all(
            courses[agent].after[-1].tolist() == nanos for agent, nanos in live.items()
        ),
        "replay and rederivation equal what is live": not verification.findings,
    }
    if soaking.turns == EVENTS:
        holds[f"{EVENTS:,} events of each agent take less than five minutes"] = seconds < MOST_SECONDS
    PICTURE.parent.mkdir(exist_ok=True)
    draw(courses, soaking, slope).savefig(PICTURE)
    return write_report(
        REPORT,
        tables,
        holds,
        turns=soaking.turns,
        seconds=round(seconds, 1),
        unweighed=soaking.unweighed,
        alpha={"risen_after_20": risen, "rose_by_0.3_after": soonest, "at_bound_after": at_bound["alpha"]},
        lambda_={"at_bound_after": at_bound["lambda"]},
        working_memory={
            "capacity": growth.capacity,
            "items_an_event_before_full": round(growth.rate, 3),
            "events_before_full": growth.events,
        },
        memory={"slope_mib_a_thousand_turns": round(slope, 3), "readings": len(soaking.readings)},
        slowdowns=slower,
        findings=[str(finding) for finding in verification.findings],
        hundreds=[asdict(one) for one in soaking.hundreds],
    )


def draw(courses: dict[str, Course], soaking: Soak, slope: float) -> Figure:
    """Weights, working memory, latency, and the memory of the process, over events."""
    figure = Figure(figsize=(12, 6.6), dpi=100, layout="constrained")
    (rater, judge, working), (latency, feedback, memory) = figure.subplots(2, 3)
    _draw_weights(rater, courses[RATER], ("alpha", "gamma", "lambda", "mu", "nu"))
    rater.set_title("the rater: positive ratings", fontsize=10)
    _draw_weights(judge, courses[JUDGE], ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "tau"))
    judge.set_title("the judge: it names what helped", fontsize=10)

    growth = soaking.growth
    seen = np.flatnonzero(growth.sessions)
    working.fill_between(seen + 1, growth.least[seen], growth.most[seen], color=_COLORS[0], alpha=0.2)
    working.plot(seen + 1, growth.sums[seen] / growth.sessions[seen], color=_COLORS[0])
    working.axhline(growth.capacity, color="#555555", linewidth=1, linestyle=":")
    working.axline((0, 0), slope=LEAST_GROWTH, color=_COLORS[1], linewidth=1, linestyle="--")
    working.set(xlim=(0, SESSION), ylim=(0, growth.capacity * 1.1), xlabel="event of a session")
    working.set_title(f"working memory: {growth.rate:.2f} an event (dashed: {LEAST_GROWTH:g})", fontsize=10)

    until = [one.until for one in soaking.hundreds]
    for axes, kinds in ((latency, ("recall", "context")), (feedback, ("feedback",))):
        for what, color in zip(kinds, _COLORS, strict=False):
            found = [one.latencies[what] for one in soaking.hundreds]
            axes.plot(until, [one.p50_ms for one in found], color=color, label=f"{what} p50")
            axes.plot(until, [one.p95_ms for one in found], ":", color=color, label=f"{what} p95")
        axes.set(ylim=(0, None), xlabel="turn")
        axes.set_title(f"{' and '.join(kinds)}, ms", fontsize=10)
        axes.legend(frameon=False, fontsize=8)

    memory.plot(*zip(*soaking.readings, strict=True), color=_COLORS[0])
    memory.axvline(WARM, color="#555555", linewidth=1, linestyle=":")
    memory.set(ylim=(0, None), xlabel="turn")
    memory.set_title(f"the service's process, MiB: {slope:+.2f} a thousand turns", fontsize=10)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eaeaea", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


_COLORS = ("#004488", "#bb5566", "#ddaa33", "#44aa99", "#aa4499", "#332288", "#888888")


def _draw_weights(axes: Axes, of: Course, names: tuple[str, ...]) -> None:
    """Some weights by the event after which they were so; the first events have as much room as the rest."""
    points = np.unique(np.geomspace(1, len(of.events), DRAWN).round().astype(np.intp)) - 1
    for name, color in zip(names, _COLORS, strict=False):
        axes.plot(
            of.events[points],
            to_units(of.of(name)[points]),
            color=color,
            label=WEIGHTS[POSITION[name]].symbol,
        )
    axes.set(xscale="symlog", xlim=(0, of.events[-1]), xlabel="feedback event")
    axes.legend(frameon=False, fontsize=8, ncols=2)


def main() -> None:
    """Soak, print what holds, and write the report and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--events", type=int, help=f"of each agent; {EVENTS:,} unless told otherwise")
    length.add_argument("--minutes", type=float, help="instead of so many events")
    given = parser.parse_args()
    events = EVENTS if given.events is None and given.minutes is None else given.events
    if events is not None and events < LEAST_EVENTS:
        parser.error(f"fewer than {LEAST_EVENTS} events show nothing: ask for more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    with tempfile.TemporaryDirectory(prefix="somabrain-soak-", dir="/var/tmp") as directory:
        place = Path(directory)
        place.chmod(0o711)
        with stage_in(place / "home") as stage:
            soaking, seconds = soak(stage, events, given.minutes)
            if soaking.turns < LEAST_EVENTS:
                sys.exit(f"ended after {soaking.turns} turns: a report takes {LEAST_EVENTS}")
            sound = report(stage, soaking, seconds)
    print(f"drawn in {PICTURE}")
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
