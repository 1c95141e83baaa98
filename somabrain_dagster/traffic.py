"""Traffic for the service: recorded conversations re-enacted over HTTP, as agents would hold them.

Each tenant is a person of the Chit-Chat data with a key of their own. Their memories are kept beforehand,
through the library and in bulk, since what a question may see is decided by its own time and not by the order
in which things were written. What is asked and what is said of the answers goes through the public service,
one question after the other, in the order in which the person really spoke. Nobody saw what was recalled: it
is a randomised re-enactment on recorded conversations, and no experiment with users.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

import httpx
import msgspec
import numpy as np

from somabrain_dagster.client import Refused, SomaBrain
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.operations import processes
from somabrain_dagster.operations.chitchat import ChitChat, Conversation
from somabrain_dagster.operations.reenactment import (
    Counter,
    EmbeddedOnce,
    Kept,
    Session,
    Story,
    Turn,
    judged,
    keep,
    question,
    sessions,
    story,
)
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key

ACTOR = "traffic"
"""Who makes the keys, for the audit trail."""

REMEMBERING, SESSIONS = "remembering", "sessions"
"""What progress is told of, besides the embedding."""

SERVICE_PORT = 8450
"""Of the service beside; the next free one if it is taken."""

READY_SECONDS = 60.0

NO_CANDIDATE = "urn:somabrain:problem:unknown_candidate"
"""The problem of feedback on a memory that its recall did not weigh."""


@dataclass(frozen=True)
class Cast:
    """Who takes part, and how much of what they said.

    Attributes:
        people: tenants: those with the most conversations.
        conversations: of each, the first so many in which something is asked.
        messages: of a conversation, the first so many.
        questions: of a conversation at most, spread evenly over its turns.
    """

    people: int = 100
    conversations: int = 120
    messages: int = 12
    questions: int = 3


def staged(data: ChitChat, cast: Cast) -> list[Story]:
    """The story of each tenant of the data."""
    return [story(tenant, _first(held, cast)) for tenant, held in data.held.items()]


def _first(held: Sequence[Conversation], cast: Cast) -> list[Conversation]:
    beginnings = (conversation.beginning(cast.messages) for conversation in held)
    asked = [
        conversation for conversation in beginnings if len({m.speaker for m in conversation.messages}) > 1
    ]
    return asked[: cast.conversations]


@dataclass(frozen=True)
class Prepared:
    """What was there before the first question.

    Attributes:
        memories, links: that were kept.
        texts: different ones that were embedded.
        embedding_seconds, remembering_seconds: how long it took.
    """

    memories: int
    links: int
    texts: int
    embedding_seconds: float
    remembering_seconds: float


@dataclass(frozen=True)
class Enacted:
    """What came of a session.

    Attributes:
        reward: the mean over its questions of whether the first hit was the right one.
        recalls: how many were made.
        unweighed: questions whose answer was no candidate, so that feedback could not name it.
        arm: of the trial that the session was in, as recall said; None for none.
        seconds: how long each recall took, as its client saw it.
    """

    session: Session
    reward: float
    recalls: int
    unweighed: int
    arm: str | None
    seconds: tuple[float, ...]


class Traffic:
    """Re-enacts sessions on a service. A context manager, or call `close`.

    Attributes:
        sessions: of everybody, in the order of their real time.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        settings: Settings,
        url: str,
        stories: Sequence[Story],
        cast: Cast,
        *,
        workers: int = 4,
    ) -> None:
        """Connect to nothing yet.

        Args:
            database: the service's, without these tenants.
            embedder: the service's.
            settings: the service's.
            url: of the service.
            stories: of each tenant.
            cast: how much is asked.
            workers: threads, each a client that waits for its answers.
        """
        self._database, self._embedder, self._settings = database, embedder, settings
        self._url, self._workers = url, workers
        self._stories = {told.tenant_id: told for told in stories}
        self._kept: Mapping[str, Kept] = {}
        self._brains: dict[str, SomaBrain] = {}
        self._opened = ExitStack()
        every = chain.from_iterable(sessions(told, cast.questions) for told in stories)
        self.sessions = sorted(every, key=lambda one: (one.begins, one.tenant_id, one.session_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection to the service."""
        self._opened.close()

    def prepare(self, progress: Progress = unwatched) -> Prepared:
        """Create the tenants, a key for each, and all their memories and links, in bulk and not over HTTP.

        Args:
            progress: told how many texts are embedded, and of how many tenants the memories are kept.
        """
        began = time.monotonic()
        once = EmbeddedOnce(self._embedder)
        memories = chain.from_iterable(told.memories for told in self._stories.values())
        texts = once.prepare(
            (embedded_text(memory.speaker, memory.text) for memory in memories), os.cpu_count() or 1, progress
        )
        embedded = time.monotonic()
        with self._database.as_operator() as connection:
            create_tenants(connection, list(self._stories), self._settings.learning_configuration)
            keys = {tenant: create_key(connection, tenant, "tenant", ACTOR) for tenant in self._stories}
        for tenant, key in keys.items():
            self._brains[tenant] = self._opened.enter_context(SomaBrain(self._url, key))
        room = Memories(self._database, once, self._settings)
        counter = Counter(progress, len(self._stories), REMEMBERING)

        def remember(told: Story) -> Kept:
            kept = keep(room, told)
            counter.advance()
            return kept

        with ThreadPoolExecutor(self._workers) as pool:
            kept = pool.map(remember, self._stories.values())
            self._kept = dict(zip(self._stories, kept, strict=True))
        return Prepared(
            memories=sum(len(set(kept.ids)) for kept in self._kept.values()),
            links=sum(kept.links for kept in self._kept.values()),
            texts=texts,
            embedding_seconds=embedded - began,
            remembering_seconds=time.monotonic() - embedded,
        )

    def enact_all(self, batch: Sequence[Session], progress: Progress = unwatched) -> list[Enacted]:
        """Re-enact sessions: those of several tenants at a time, those of one tenant in their order.

        Returns:
            What came of each, tenant by tenant.
        """
        of_tenants: dict[str, list[Session]] = {}
        for session in batch:
            of_tenants.setdefault(session.tenant_id, []).append(session)
        counter = Counter(progress, len(batch), SESSIONS)

        def enact(held: Sequence[Session]) -> list[Enacted]:
            enacted = []
            for session in held:
                enacted.append(self.enact(session))
                counter.advance()
            return enacted

        # Whoever has most to say begins, so that nobody is left to speak alone at the end.
        with ThreadPoolExecutor(self._workers) as pool:
            by_length = sorted(of_tenants.values(), key=len, reverse=True)
            return list(chain.from_iterable(pool.map(enact, by_length)))

    def enact(self, session: Session) -> Enacted:
        """Re-enact one session: recall each question as of its time, and say what was right.

        Raises:
            Refused: the service refuses a question or a feedback.
            httpx.TransportError: the service does not answer.
        """
        asked = [self._ask(session, turn) for turn in session.turns]
        return Enacted(
            session=session,
            reward=float(np.mean([one.first for one in asked])),
            recalls=len(asked),
            unweighed=sum(not one.weighed for one in asked),
            arm=asked[-1].arm,
            seconds=tuple(one.seconds for one in asked),
        )

    def _ask(self, session: Session, turn: Turn) -> "_Asked":
        brain, told = self._brains[session.tenant_id], self._stories[session.tenant_id]
        asked, right = told.memories[turn.question], self._kept[session.tenant_id].ids[turn.answer]
        began = time.monotonic()
        recalled = brain.recall(**msgspec.to_builtins(question(asked, "sample")))
        seconds = time.monotonic() - began
        recall_id, hits = recalled["recall_id"], recalled["hits"]
        first = bool(hits) and hits[0]["memory_id"] == right
        try:
            brain.feedback(**msgspec.to_builtins(judged(asked, recall_id, right, first)))
            weighed = True
        except Refused as refused:
            if refused.problem.type != NO_CANDIDATE:
                raise
            # Recall did not weigh it: that nothing helped is still said, for it counts.
            brain.feedback(**msgspec.to_builtins(judged(asked, recall_id, None, first)))
            weighed = False
        return _Asked(first, weighed, recalled["arm"], seconds)


@dataclass(frozen=True)
class _Asked:
    """A question as it was answered: whether its answer came first, and whether it was weighed at all."""

    first: bool
    weighed: bool
    arm: str | None
    seconds: float


class ServiceDown(RuntimeError):
    """The service does not come up; the message says where its log is."""


@dataclass(frozen=True)
class ServiceProcess:
    """A service that runs beside, where it listens, and the id of its process."""

    url: str
    pid: int


@contextmanager
def service_beside(settings: Settings, running: Servers) -> Iterator[str]:
    """The HTTP service as `service_process` runs it; its URL once it is ready."""
    with service_process(settings, running) as service:
        yield service.url


@contextmanager
def service_process(settings: Settings, running: Servers) -> Iterator[ServiceProcess]:
    """The HTTP service as a process of its own until the end of the block, once it is ready.

    Args:
        settings: whose home its log goes to; it has the knobs of this process's environment.
        running: the servers that it works with.

    Raises:
        ServiceDown: it ended, or was not ready in time.
    """
    port = processes.free_port(SERVICE_PORT)
    url, log = f"http://127.0.0.1:{port}", settings.home / "logs" / "service.log"
    command = [sys.executable, "-m", "somabrain_dagster.serving", "--port", str(port)]
    environment = {**os.environ, **running.environment(), "SOMABRAIN_HOME": str(settings.home)}
    with processes.beside(command, environment, log) as process:
        deadline = time.monotonic() + READY_SECONDS
        while not ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceDown(f"the service does not come up: {log} says why")
            time.sleep(0.1)
        yield ServiceProcess(url, process.pid)


def ready(url: str) -> bool:
    """Whether the service at this URL answers, and hears of every commit."""
    try:
        return bool(httpx.get(f"{url}/readyz", timeout=2).json()["listening"])
    except httpx.TransportError:
        return False


def parts(every: Sequence[Session], share: float) -> tuple[list[Session], list[Session]]:
    """The first share of each tenant's sessions, and all that follow; each in the order of its real time."""
    count: dict[str, int] = {}
    for session in every:
        count[session.tenant_id] = count.get(session.tenant_id, 0) + 1
    left = {tenant: round(share * sessions) for tenant, sessions in count.items()}
    first: list[Session] = []
    rest: list[Session] = []
    for session in every:
        left[session.tenant_id] -= 1
        (first if left[session.tenant_id] >= 0 else rest).append(session)
    return first, rest


def batches(every: Sequence[Session], size: int) -> Iterator[list[Session]]:
    """Sessions, so many at a time."""
    for start in range(0, len(every), size):
        yield list(every[start : start + size])
