"""The learning chain at work: from an empty brain to a promotion, a refusal or a HOLD, on real conversations.

People's recorded conversations are re-enacted through the public service (`traffic.py`). Between batches of
sessions the project's own sensors are looked at, as the daemon looks at them, and the runs that they ask for
are made (`ticks.py`): a proposal, an experiment, a canary and a promotion come about as they would in
production with the autopilot on. What is told of them (`story.py`) is read from the store.
"""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from rich.console import Console

from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations import dagster_home, servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Session
from somabrain_dagster.operations.summary import Progress
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import CanarySettings, Settings
from somabrain_dagster.store.verification import Verification, verify
from somabrain_dagster.story import AFTERWARDS, COLLECTING, Story
from somabrain_dagster.ticks import Ticks, instance_in
from somabrain_dagster.traffic import Cast, Traffic, batches, parts, service_beside, staged

logging.getLogger("dagster").setLevel(logging.WARNING)  # its story is in the UI, the report is here

LEAST_MINUTES = 2.0
"""Of a canary: guardrails are measured over whole minutes."""

WAIT_SECONDS = 3.0
"""Between looks at the sensors when no traffic is left and only the canary's clock goes on."""


@dataclass(frozen=True)
class Performance:
    """How the chain is shown.

    At the defaults an experiment gets its 352 sessions; after it a canary of 10% of the tenants gets about
    250, and its 176 for 93 of 100 draws of who they are.

    Attributes:
        cast: who takes part.
        collecting: the share of each tenant's sessions, the first ones, before the chain begins.
        batch: sessions between two looks at the sensors.
        afterwards: sessions, the last ones, that are kept for what comes after a promotion.
        canary_minutes: how long a canary's hours last; None for as long as all that is left when the
            collecting ends should take, of which the canary has the greater part.
    """

    cast: Cast = field(default_factory=Cast)
    collecting: float = 0.25
    batch: int = 150
    afterwards: int = 150
    canary_minutes: float | None = None


def run(settings: Settings, performance: Performance, console: Console, progress: Progress) -> Verification:
    """The whole show, in the directory `learn` of the home, made anew; its servers are stopped at the end.

    Returns:
        The proof of the log that it left.

    Raises:
        ChitChatMissing: the data are not installed.
        ServiceDown: the service does not come up.
        dagster.DagsterExecutionStepExecutionError: a step of a run failed.
    """
    own = own_settings(settings, settings.canary)
    servers.stop(own)
    shutil.rmtree(own.home, ignore_errors=True)
    running = servers.start(own)
    with ExitStack() as stack:
        stack.callback(servers.stop, own)
        database, snapshots = servers.open_store(running)
        stack.enter_context(database)
        stack.enter_context(closing(snapshots))
        url = stack.enter_context(service_beside(own, running))
        told = staged(read_chitchat(performance.cast.people), performance.cast)
        traffic = Traffic(database, embedder_of(own), own, url, told, performance.cast)
        instance = stack.enter_context(instance_in(dagster_home.prepare(own, running)))
        story = Story(database, console)
        show = Show(stack.enter_context(traffic), performance, story, progress)

        def ticks(canary: CanarySettings) -> Ticks:
            own = own_settings(settings, canary)
            return Ticks(build_definitions(own), instance, Brain(own, database, snapshots))

        rest = show.begin()
        show.let(ticks(settings.canary))
        canary = shortened(settings.canary, performance, show.expected_seconds(rest))
        looks = ", ".join(f"{hour * 60:.3g}" for hour in canary.hours)
        story.say(
            f"a canary's {settings.canary.hours[-1]:g} h are shortened: it is looked at after {looks} min"
        )
        show.go_on(ticks(canary), rest)
        with database.snapshot() as connection:
            return verify(connection)


def own_settings(settings: Settings, canary: CanarySettings) -> Settings:
    """The settings of the show: a home of its own with embedded servers, and the autopilot on."""
    return Settings(
        home=settings.home / "learn",
        database_url=None,
        redis_url=None,
        dagster_database_url=None,
        autopilot=True,
        canary=canary,
    )


def shortened(canary: CanarySettings, performance: Performance, seconds: float) -> CanarySettings:
    """A canary with the same looks in less time: in so many seconds, as whole minutes."""
    minutes = performance.canary_minutes or max(LEAST_MINUTES, math.ceil(seconds / 60))
    return canary.model_copy(
        update={"hours": tuple(hour / canary.hours[-1] * minutes / 60 for hour in canary.hours)}
    )


class Show:
    """Traffic in batches, with a look at the sensors between them, until the chain comes to an end."""

    def __init__(self, traffic: Traffic, performance: Performance, story: Story, progress: Progress) -> None:
        """Do nothing yet."""
        self._traffic, self._performance = traffic, performance
        self._story, self._progress = story, progress
        self._seconds, self._recalls, self._settling = 0.0, 0, 0.0

    def begin(self) -> list[Session]:
        """Keep the memories, and collect feedback; the sessions that are left, in order."""
        story = self._story
        story.title("What is remembered")
        prepared = self._traffic.prepare(self._progress)
        story.say(
            f"{prepared.memories:,} memories and {prepared.links:,} links of {self._performance.cast.people} "
            f"people, kept in bulk: {prepared.texts:,} texts embedded in {prepared.embedding_seconds:.0f} s, "
            f"the rest in {prepared.remembering_seconds:.0f} s"
        )
        story.title("What is collected")
        first, rest = parts(self._traffic.sessions, self._performance.collecting)
        self._play(first, COLLECTING)
        story.say(
            f"{len(first):,} sessions over HTTP in {self._seconds:.0f} s: {self._recalls:,} recalls and as "
            f"many feedback events, {self._recalls / self._seconds:.0f} of each a second; top-1 "
            f"{story.top1(COLLECTING):.3f}"
        )
        story.title("What the chain does")
        return rest

    def let(self, ticks: Ticks) -> None:
        """Let the sensors do what they find to be due."""
        began = time.monotonic()
        for look in ticks.settle():
            self._story.tell(look.runs)
            if self._story.ending is not None:
                break
        self._settling = time.monotonic() - began

    def expected_seconds(self, sessions: Sequence[Session]) -> float:
        """How long some sessions take at the rate so far, with what the sensors do between batches."""
        traffic = sum(len(session.turns) for session in sessions) * self._seconds / self._recalls
        return traffic + math.ceil(len(sessions) / self._performance.batch) * self._settling

    def go_on(self, ticks: Ticks, rest: Sequence[Session]) -> None:
        """Let the chain run beside the other sessions, until it ends or they do."""
        story = self._story
        kept = max(len(rest) - self._performance.afterwards, 0)
        coming = batches(rest[:kept], self._performance.batch)
        while story.ending is None:
            batch = next(coming, None)
            if batch is not None:
                self._play(batch, story.phase)
            elif story.waits_for_the_clock:
                time.sleep(WAIT_SECONDS)
            else:
                break
            self.let(ticks)
        left = sum(map(len, coming))
        if story.promoted:
            self._play(rest[kept:], AFTERWARDS)
        story.end(left)

    def _play(self, batch: Sequence[Session], phase: str) -> None:
        began = time.monotonic()
        enacted = self._traffic.enact_all(batch, self._progress)
        self._seconds += time.monotonic() - began
        self._recalls += sum(one.recalls for one in enacted)
        self._story.enacted(phase, enacted)
