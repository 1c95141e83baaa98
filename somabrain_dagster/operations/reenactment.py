"""Recorded conversations re-enacted: what a person was told arrives in its real order, and memory is asked.

A tenant is a person of the Chit-Chat data. A question is a message that begins a turn: the message before it
in its conversation is by somebody else, and that one is what it answers, hence the right memory. Memory is
asked as of the question's own time, so that neither the question nor anything later exists. The right answer
is known whatever was shown, and feedback names it wherever the recall weighed it. It is a re-enactment on
recorded conversations and no experiment with users: nobody saw what was recalled.
"""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from threading import Lock
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.enhancement import NOT_THERE, Questions
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.weights import Nanos
from somabrain_dagster.memory.embedding import Embedder, Vectors
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Mode, Query
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.operations.chitchat import ChitChat, Conversation
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants, read_state
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback, Helpful
from somabrain_dagster.store.landing import Landed, LoggedRecall, land
from somabrain_dagster.store.logged_recalls import read_recalls
from somabrain_dagster.store.memories import REPLY, Link, Memory
from somabrain_dagster.store.scales import read_scales

SOURCE = "reenactment"
"""What the feedback names as its source."""

EMBEDDING, QUESTIONS = "embedding", "recalling"
"""What progress is told of."""

CHUNK = 512
"""Texts that a thread embeds at a time."""


@dataclass(frozen=True)
class Plan:
    """How much is re-enacted of each tenant.

    Attributes:
        memories: the first so many that the tenant has.
        feedback: events that teach: the first questions whose answer recall weighed.
        held_out: questions after those, spread evenly over all that come later.
        seed: of what recall draws.
    """

    memories: int = 2000
    feedback: int = 100
    held_out: int = 150
    seed: int = 2018


@dataclass(frozen=True)
class Turn:
    """A question and its answer, by their positions in a story."""

    question: int
    answer: int


@dataclass(frozen=True)
class Story:
    """What a tenant sent and received, by time.

    Attributes:
        memories: in order.
        replies: a memory and the one that it answers, by position.
        turns: the questions, in order.
    """

    tenant_id: str
    memories: tuple[Memory, ...]
    replies: tuple[tuple[int, int], ...]
    turns: tuple[Turn, ...]

    def of(self, tenant_id: str) -> "Story":
        """The same story as another tenant's own."""
        memories = tuple(msgspec.structs.replace(memory, tenant_id=tenant_id) for memory in self.memories)
        return replace(self, tenant_id=tenant_id, memories=memories)


@dataclass(frozen=True)
class Session:
    """One conversation of a tenant, with the questions that are asked in it, in order."""

    tenant_id: str
    session_id: str
    begins: datetime
    turns: tuple[Turn, ...]


def stories(data: ChitChat, most: int) -> list[Story]:
    """The story of each tenant, up to so many memories."""
    return [story(tenant, conversations, most) for tenant, conversations in data.held.items()]


def story(tenant_id: str, conversations: Sequence[Conversation], most: int | None = None) -> Story:
    """A tenant's conversations as one stream, up to so many memories, or all of them."""
    told = [
        (memory.occurred_at, number, place, memory)
        for number, conversation in enumerate(conversations)
        for place, memory in enumerate(conversation.memories(tenant_id))
    ]
    told.sort(key=lambda entry: entry[:3])
    if most is not None:
        del told[most:]
    position = {(number, place): at for at, (_, number, place, _) in enumerate(told)}
    replies = sorted(
        (position[number, place], position[number, answered], answered == place - 1)
        for number, conversation in enumerate(conversations)
        for place, answered in conversation.replies()
        if (number, place) in position
    )
    return Story(
        tenant_id=tenant_id,
        memories=tuple(memory for *_, memory in told),
        replies=tuple((source, target) for source, target, _ in replies),
        turns=tuple(Turn(source, target) for source, target, begins in replies if begins),
    )


def sessions(told: Story, questions: int) -> list[Session]:
    """The conversations of a story in which something is asked, by their first question.

    Args:
        told: the story.
        questions: how many of a conversation are asked at most, spread evenly over all of it.
    """
    turns: dict[str, list[Turn]] = {}
    for turn in told.turns:
        turns.setdefault(session_of(told.memories[turn.question]), []).append(turn)
    return [
        Session(
            told.tenant_id, session_id, told.memories[held[0].question].occurred_at, spread(held, questions)
        )
        for session_id, held in turns.items()
    ]


def session_of(memory: Memory) -> str:
    """The session in which a memory came to be."""
    return memory.conversation_id or memory.tenant_id


def spread(turns: Sequence[Turn], most: int) -> tuple[Turn, ...]:
    """So many of the turns at most, spread evenly from the first to the last."""
    places = np.linspace(0, len(turns) - 1, min(most, len(turns))).round().astype(np.intp)
    return tuple(turns[place] for place in places.tolist())


@dataclass(frozen=True)
class Kept:
    """A story in memory.

    Attributes:
        ids: of its memories, by position.
        links: how many were new.
    """

    ids: tuple[int, ...]
    links: int


def keep(room: Memories, told: Story) -> Kept:
    """Remember a story, and link what answers to what it answers."""
    ids = tuple(kept.memory_id for kept in room.remember_all(told.memories))
    links = room.link_all(
        [
            Link(
                tenant_id=told.tenant_id,
                source_id=ids[source],
                target_id=ids[target],
                kind=REPLY,
                occurred_at=told.memories[source].occurred_at,
            )
            for source, target in told.replies
        ]
    )
    return Kept(ids, links)


def question(asked: Memory, mode: Mode = "rank") -> Query:
    """What somebody asks memory as they say something: as of that time, without it."""
    return Query(
        tenant_id=asked.tenant_id,
        text=asked.text,
        asker=asked.speaker,
        session_id=asked.conversation_id,
        as_of=asked.occurred_at,
        mode=mode,
    )


def judged(asked: Memory, recall_id: int, right: int | None, first: bool) -> Feedback:
    """What the person would say of a recall: whether the first hit is what they answer, and what is.

    Args:
        asked: the memory that was the question.
        recall_id: the recall.
        right: the memory that it answers; None where recall did not weigh it, so that it cannot be named.
        first: whether that was the first hit.
    """
    return Feedback(
        tenant_id=asked.tenant_id,
        session_id=session_of(asked),
        utility=1.0 if first else 0.0,
        recall_id=recall_id,
        helpful=None if right is None else (Helpful(right),),
        label="full",
        source=SOURCE,
        occurred_at=asked.occurred_at,
    )


class EmbeddedOnce:
    """An embedder that embeds no text twice: what several tenants heard is the same message."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap an embedder; nothing is embedded yet."""
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.digest = embedder.digest
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    def prepare(self, texts: Iterable[str], workers: int, progress: Progress = unwatched) -> int:
        """Embed texts on several threads; how many different ones there were."""
        new = sorted(set(texts) - self._known.keys(), key=len)  # alike in length: full batches
        chunks = [new[start : start + CHUNK] for start in range(0, len(new), CHUNK)]
        with ThreadPoolExecutor(workers) as pool:
            for chunk, vectors in zip(chunks, pool.map(self._embedder.embed, chunks), strict=True):
                self._known.update(zip(chunk, vectors, strict=True))
                progress(EMBEDDING, len(self._known), len(new))
        return len(new)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (n, d), in the order of the texts."""
        own = [text for text in texts if text not in self._known]
        made = dict(zip(own, self._embedder.embed(own), strict=True))
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for place, text in enumerate(texts):
            vectors[place] = made[text] if text in made else self._known[text]
        return vectors


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions as they were recalled, in order.

    Attributes:
        questions: with the candidates' features, as logged.
        ages: how old each candidate was, in seconds, shape (M,), beside the features.
        sessions: the conversation of each question.
        seconds: how long each recall took.
    """

    questions: Questions
    ages: Floats
    sessions: tuple[str, ...]
    seconds: Floats

    def outside(self, conversations: frozenset[str]) -> Self:
        """The questions that were not asked in any of these conversations."""
        kept = np.flatnonzero([session not in conversations for session in self.sessions])
        return type(self)(
            self.questions.take(kept),
            self.ages[self.questions.rows(kept)],
            tuple(self.sessions[place] for place in kept.tolist()),
            self.seconds[kept],
        )


@dataclass(frozen=True, eq=False)
class Reenacted:
    """What came of one tenant.

    Attributes:
        memories, links: that were kept.
        conversations: in which the tenant took part.
        taught: the questions whose feedback landed.
        untaught: questions among those whose answer recall did not weigh, so that nothing could be named.
        held_out: later questions.
        learned: the weights after the feedback, (K,) nano-units, as the log has them.
        version: of those weights.
        scales: of the features as they were logged.
    """

    tenant_id: str
    memories: int
    links: int
    conversations: frozenset[str]
    taught: Asked
    untaught: int
    held_out: Asked
    learned: Nanos
    version: int
    scales: Scales


class TooShort(ValueError):
    """A tenant with too few questions; the message says how many there are."""


def reenact(
    database: Database,
    embedder: Embedder,
    settings: Settings,
    told: Sequence[Story],
    plan: Plan,
    *,
    workers: int = 2,
    progress: Progress = unwatched,
) -> list[Reenacted]:
    """Re-enact stories on a database without these tenants, several at a time.

    Args:
        database: where tenants, memories, recalls, feedback and weights go.
        embedder: of memories and questions; used from several threads.
        settings: by which recall and learning work.
        told: the stories.
        plan: how much of each.
        workers: threads.
        progress: told how many texts, tenants' memories, and questions are done.

    Returns:
        One for each story, in order.

    Raises:
        TooShort: a story has too few questions for the plan.
    """
    for one in told:
        if len(one.turns) < plan.feedback + plan.held_out:
            raise TooShort(
                f"{one.tenant_id} has {len(one.turns)} questions in {len(one.memories)} memories, not "
                f"{plan.feedback} that teach and {plan.held_out} held out: re-enact more memories or ask less"
            )
    once = EmbeddedOnce(embedder)
    memories = chain.from_iterable(one.memories for one in told)
    once.prepare((embedded_text(memory.speaker, memory.text) for memory in memories), workers, progress)
    with database.as_operator() as connection:
        create_tenants(connection, [one.tenant_id for one in told], settings.learning_configuration)
    counter = Counter(progress, len(told) * (plan.feedback + plan.held_out))

    def enact(number: int) -> Reenacted:
        # A generator of its own: what is drawn for one tenant must not depend on how fast others are.
        generator = np.random.default_rng([plan.seed, number])
        room = Memories(database, once, settings, generator=generator)
        return _Actor(database, room, settings, told[number], plan, counter).enact()

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(enact, range(len(told))))


class Counter:
    """Counts what several threads do."""

    def __init__(self, progress: Progress, total: int, what: str = QUESTIONS) -> None:
        self._progress, self._total, self._what, self._done, self._lock = progress, total, what, 0, Lock()

    def advance(self) -> None:
        """One more is done."""
        with self._lock:
            self._done += 1
            self._progress(self._what, self._done, self._total)


class _Actor:
    """One tenant's part."""

    def __init__(
        self,
        database: Database,
        room: Memories,
        settings: Settings,
        told: Story,
        plan: Plan,
        counter: Counter,
    ) -> None:
        self._database, self._room, self._settings = database, room, settings
        self._story, self._plan, self._counter = told, plan, counter
        self._ids: tuple[int, ...] = ()
        self._times: dict[int, datetime] = {}

    def enact(self) -> Reenacted:
        links = self._remember()
        taught: list[_Made] = []
        untaught = 0
        turns = iter(self._story.turns)
        while len(taught) < self._plan.feedback:
            turn = next(turns, None)
            if turn is None:
                raise TooShort(
                    f"{self._story.tenant_id} has {len(self._story.turns)} questions, of which only "
                    f"{len(taught)} teach: re-enact more memories, or ask for less feedback"
                )
            made = self._ask(turn)
            if self._teach(made):
                taught.append(made)
                self._counter.advance()
            else:
                untaught += 1
        with self._database.as_tenants([self._story.tenant_id]) as connection:
            state = read_state(connection, self._story.tenant_id)
            scales = read_scales(connection, taught[-1].scale_version)
        later = list(turns)
        if len(later) < self._plan.held_out:
            raise TooShort(
                f"{self._story.tenant_id} has {len(later)} questions after those that teach, not "
                f"{self._plan.held_out}: re-enact more memories, or hold out less"
            )
        held_out = []
        for turn in spread(later, self._plan.held_out):
            held_out.append(self._ask(turn))
            self._counter.advance()
        return Reenacted(
            tenant_id=self._story.tenant_id,
            memories=len(set(self._ids)),
            links=links,
            conversations=frozenset(memory.conversation_id or "" for memory in self._story.memories),
            taught=self._read(taught),
            untaught=untaught,
            held_out=self._read(held_out),
            learned=state.weights,
            version=state.version,
            scales=scales,
        )

    def _remember(self) -> int:
        story = self._story
        kept = keep(self._room, story)
        self._ids = kept.ids
        self._times = {
            memory_id: memory.occurred_at for memory_id, memory in zip(kept.ids, story.memories, strict=True)
        }
        return kept.links

    def _ask(self, turn: Turn) -> "_Made":
        asked = self._story.memories[turn.question]
        started = time.monotonic()
        recall = self._room.recall(question(asked))
        seconds = time.monotonic() - started
        with self._database.as_tenants([asked.tenant_id]) as connection:
            (logged,) = read_recalls(connection, asked.tenant_id, [recall.recall_id])
        right = self._ids[turn.answer]
        return _Made(
            recall.recall_id,
            asked,
            right,
            bool(recall.hits) and recall.hits[0].memory_id == right,
            logged,
            recall.scale_version,
            seconds,
        )

    def _teach(self, made: "_Made") -> bool:
        """Land what the person would say; whether there was anything to name."""
        if made.right not in made.logged.position:
            return False
        feedback = judged(made.asked, made.recall_id, made.right, made.first)
        (outcome,) = land(self._database, [feedback], self._settings.learning_configuration)
        if not isinstance(outcome, Landed):
            raise AssertionError(f"feedback on a recall that was just logged was refused: {outcome.reason}")
        return True

    def _read(self, made: Sequence["_Made"]) -> Asked:
        ages = [
            (one.asked.occurred_at - self._times[memory_id]).total_seconds()
            for one in made
            for memory_id in one.logged.position
        ]
        return Asked(
            Questions(
                np.concatenate([one.logged.features for one in made]),
                np.array([len(one.logged.position) for one in made], dtype=np.int64),
                np.array([one.logged.position.get(one.right, NOT_THERE) for one in made], dtype=np.int64),
                np.zeros(len(made), dtype=np.int64),
            ),
            np.array(ages),
            tuple(one.asked.conversation_id or "" for one in made),
            np.array([one.seconds for one in made]),
        )


@dataclass(frozen=True, eq=False)
class _Made:
    """A recall as it was made: `first` if the right memory was the first hit."""

    recall_id: int
    asked: Memory
    right: int
    first: bool
    logged: LoggedRecall
    scale_version: int
    seconds: float
