"""BYU's Chit-Chat data as memories, links, feedback and token usage: real people, each of them a tenant.

The package `chitchat-dataset` carries 7,168 conversations of 1,315 people, of 2018, as JSON. It is read as
data; none of the package's code is run.

A tenant is a person, and remembers the messages that they sent or received. A conversation is a session. A
message is linked to the one that it answers: the last one before it in its conversation that is by somebody
else. Most conversations have three ratings from 1 to 10, by whom is not known; where somebody moved a slider
from its middle, that is feedback for each tenant who took part.
"""

import importlib.util
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.summary import (
    FEEDBACK,
    LINKS,
    MEMORIES,
    USAGE,
    ImportSummary,
    Progress,
    Tally,
    unwatched,
)
from somabrain_dagster.operations.tokens import MiniLMTokens
from somabrain_dagster.store.adaptation import create_tenants, deleted_among
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.memories import (
    REPLY,
    InvalidMemory,
    Link,
    Memory,
    check_memory,
    link_all,
    remember_all,
)
from somabrain_dagster.store.usage import TokenUsage, ensure_partitions, record_tokens_once

SOURCE = "conversation_rating"
"""What the feedback names as its source."""

MIDDLE = 5
"""Where a slider stands that nobody has touched."""

BATCH = 2000
"""Messages, and events, that are committed together; a conversation is never divided."""


class ChitChatMissing(RuntimeError):
    """The data are not installed, or are not what they should be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a person said, and when."""

    speaker: str
    text: str
    occurred_at: datetime


@dataclass(frozen=True)
class Conversation:
    """A conversation, as far as it can be remembered.

    Attributes:
        conversation_id: of the data.
        speakers: who sent anything.
        messages: by time; those that cannot be remembered are left out.
        left_out: how many messages were, by reason: `blank` or `invalid`.
        ratings: witty, interesting and upbeat from 1 to 10; None if nobody was asked.
    """

    conversation_id: str
    speakers: frozenset[str]
    messages: tuple[Message, ...]
    left_out: Counter[str]
    ratings: Mapping[str, int] | None

    @property
    def last(self) -> datetime:
        """The time of the last message."""
        return self.messages[-1].occurred_at

    @property
    def untouched(self) -> bool:
        """Whether it was rated, but with every slider in its middle."""
        return self.ratings is not None and set(self.ratings.values()) == {MIDDLE}

    def beginning(self, messages: int) -> "Conversation":
        """The conversation up to so many messages."""
        return replace(self, messages=self.messages[:messages])

    def memories(self, tenant_id: str) -> list[Memory]:
        """The messages as a tenant's memories, in order."""
        return [
            Memory(
                tenant_id=tenant_id,
                text=message.text,
                occurred_at=message.occurred_at,
                speaker=message.speaker,
                conversation_id=self.conversation_id,
            )
            for message in self.messages
        ]

    def replies(self) -> list[tuple[int, int]]:
        """Positions of messages, each before the position of the message that it answers."""
        replies = []
        last: dict[str, int] = {}
        for position, message in enumerate(self.messages):
            others = [place for speaker, place in last.items() if speaker != message.speaker]
            if others:
                replies.append((position, max(others)))
            last[message.speaker] = position
        return replies

    def feedback(self, tenant_id: str) -> Feedback | None:
        """The ratings as a tenant's feedback; None where nobody rated or touched a slider."""
        if self.ratings is None or self.untouched:
            return None
        scores = [utility(score) for score in self.ratings.values()]
        return Feedback(
            tenant_id=tenant_id,
            session_id=self.conversation_id,
            utility=sum(scores) / len(scores),
            source=SOURCE,
            occurred_at=self.last,
            metadata=dict(self.ratings),
            idempotency_key=f"chitchat:{self.conversation_id}",
        )


@dataclass(frozen=True)
class ChitChat:
    """The data, and who of their people are tenants.

    Attributes:
        conversations: all of them, by the time of their first message.
        people: everybody, with the number of their conversations, the heaviest first.
        tenants: the first so many of them.
    """

    conversations: tuple[Conversation, ...]
    people: Mapping[str, int]
    tenants: tuple[str, ...]

    @cached_property
    def held(self) -> Mapping[str, tuple[Conversation, ...]]:
        """The conversations of each tenant, by time."""
        taking_part: dict[str, list[Conversation]] = {tenant: [] for tenant in self.tenants}
        for conversation in self.conversations:
            for person in conversation.speakers & taking_part.keys():
                taking_part[person].append(conversation)
        return {tenant: tuple(conversations) for tenant, conversations in taking_part.items()}

    @cached_property
    def sessions(self) -> tuple[tuple[str, Conversation], ...]:
        """Each tenant with each of their conversations, tenant by tenant, by time."""
        return tuple((tenant, held) for tenant, all_held in self.held.items() for held in all_held)

    @cached_property
    def feedback(self) -> tuple[Feedback, ...]:
        """The feedback of every tenant, by time."""
        said = (conversation.feedback(tenant) for tenant, conversation in self.sessions)
        return tuple(
            sorted(
                (feedback for feedback in said if feedback is not None),
                key=lambda feedback: (feedback.occurred_at, feedback.session_id, feedback.tenant_id),
            )
        )

    @property
    def untouched(self) -> int:
        """Ratings of tenants' sessions in which no slider was moved: they say nothing and are left out."""
        return sum(conversation.untouched for _, conversation in self.sessions)


def utility(score: int) -> float:
    """A rating as a utility in [−1, 1]: 1 is −1, the slider's middle 5 is 0, and 10 is 1; linear between."""
    if not 1 <= score <= 10:
        raise ValueError(f"a rating is from 1 to 10, not {score}")
    return (score - MIDDLE) / 5 if score >= MIDDLE else (score - MIDDLE) / 4


def person(sender: str) -> str:
    """A person's tenant key, and their name as a speaker: the first eight digits of their id in the data."""
    return f"person-{sender[:8]}"


class _Message(msgspec.Struct):
    text: str
    timestamp: datetime
    sender: str


class _Conversation(msgspec.Struct):
    messages: list[list[_Message]]
    ratings: dict[str, int] | None = None


def read_chitchat(tenants: int = 100) -> ChitChat:
    """Read the data.

    Args:
        tenants: how many people are tenants: those in the most conversations; of equals, the first by key.

    Raises:
        ChitChatMissing: the package is not installed, or its file is not what it should be.
        ValueError: there are not that many people, or `tenants` < 1.
    """
    path = _data_path()
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, _Conversation])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ChitChatMissing(
            f"cannot read {path} ({error}): reinstall the package chitchat-dataset"
        ) from error
    conversations = [_conversation(name, held) for name, held in raw.items()]
    counted = Counter(speaker for held in conversations for speaker in held.speakers)
    people = dict(sorted(counted.items(), key=lambda entry: (-entry[1], entry[0])))
    if not 1 <= tenants <= len(people):
        raise ValueError(f"tenants must be from 1 to {len(people)}, not {tenants}")
    held = [conversation for conversation in conversations if conversation.messages]
    held.sort(key=lambda conversation: (conversation.messages[0].occurred_at, conversation.conversation_id))
    return ChitChat(tuple(held), people, tuple(people)[:tenants])


def _data_path() -> Path:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise ChitChatMissing(
            "the Chit-Chat data are not installed: pip install 'somabrain-dagster[demo]' brings them"
        )
    return Path(spec.submodule_search_locations[0]) / "dataset.json"


def _conversation(name: str, raw: _Conversation) -> Conversation:
    messages = []
    left_out: Counter[str] = Counter()
    speakers = set()
    for sent in (sent for turn in raw.messages for sent in turn):
        speaker = person(sent.sender)
        speakers.add(speaker)
        # A time without a zone is on the clock of those that have one: UTC.
        moment = sent.timestamp if sent.timestamp.tzinfo else sent.timestamp.replace(tzinfo=UTC)
        if not sent.text.strip():
            left_out["blank"] += 1
            continue
        try:
            check_memory(Memory(tenant_id=speaker, text=sent.text, occurred_at=moment))
        except InvalidMemory:
            left_out["invalid"] += 1
        else:
            messages.append(Message(speaker, sent.text, moment))
    messages.sort(key=lambda message: message.occurred_at)
    return Conversation(name, frozenset(speakers), tuple(messages), left_out, raw.ratings)


def import_chitchat(
    database: Database,
    configuration: LearningConfiguration,
    tenants: int = 100,
    progress: Progress = unwatched,
    *,
    snapshots: SnapshotCache | None = None,
) -> ImportSummary:
    """Import the data: memories, links and token usage conversation by conversation, then the feedback.

    Importing again adds nothing, and finishes what was interrupted; more tenants add what is new.

    Args:
        database: the brain's.
        configuration: the global learning configuration.
        tenants: how many people are tenants; they are created unless they are there. Those whose tenants were
            deleted are left out.
        progress: told how many memories, then how many events, are done.
        snapshots: where the new states are published after each commit.

    Raises:
        ChitChatMissing: the data are not installed.
        ValueError: there are not that many people, or `tenants` < 1.
    """
    started = time.monotonic()
    data = read_chitchat(tenants)
    landing = _Import(database, MiniLMTokens())
    with database.as_operator() as connection:
        deleted = deleted_among(connection, data.tenants)
        data = replace(data, tenants=tuple(each for each in data.tenants if each not in deleted))
        landing.summary.tenants_deleted = len(deleted)
        landing.summary.tenants_created = len(create_tenants(connection, data.tenants, configuration))
        ensure_partitions(connection)
    total, done = sum(len(conversation.messages) for _, conversation in data.sessions), 0
    for batch in _batches(data.sessions):
        landing.remember(batch)
        done += sum(len(conversation.messages) for _, conversation in batch)
        progress(MEMORIES, done, total)

    tally = landing.summary.tallies[FEEDBACK]
    tally.refused["untouched"] += data.untouched
    for start in range(0, len(data.feedback), BATCH):
        events = data.feedback[start : start + BATCH]
        for outcome in land(database, events, configuration, snapshots):
            if isinstance(outcome, Refused):
                tally.refused[outcome.code] += 1
            else:
                tally.count(repeated=outcome.repeated)
        progress(FEEDBACK, start + len(events), len(data.feedback))
    landing.summary.seconds = time.monotonic() - started
    return landing.summary


def _batches(
    sessions: Sequence[tuple[str, Conversation]],
) -> Iterator[list[tuple[str, Conversation]]]:
    batch: list[tuple[str, Conversation]] = []
    size = 0
    for session in sessions:
        batch.append(session)
        size += len(session[1].messages)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass
class _Import:
    """What an import needs from batch to batch."""

    database: Database
    tokenizer: MiniLMTokens
    tokens: dict[str, int] = field(default_factory=dict)
    summary: ImportSummary = field(
        default_factory=lambda: ImportSummary(
            "Chit-Chat", {kind: Tally() for kind in (MEMORIES, LINKS, FEEDBACK, USAGE)}
        )
    )

    def remember(self, batch: Sequence[tuple[str, Conversation]]) -> None:
        """Commit the memories, links and token usage of whole conversations."""
        memories = [memory for tenant, held in batch for memory in held.memories(tenant)]
        usages = self._usages(batch)
        with self.database.as_tenants(sorted({tenant for tenant, _ in batch})) as connection:
            remembered = remember_all(connection, memories)
            links = []
            start = 0
            for tenant, conversation in batch:
                for source, target in conversation.replies():
                    links.append(
                        Link(
                            tenant_id=tenant,
                            source_id=remembered[start + source].memory_id,
                            target_id=remembered[start + target].memory_id,
                            kind=REPLY,
                            occurred_at=conversation.messages[source].occurred_at,
                        )
                    )
                start += len(conversation.messages)
            linked = link_all(connection, links)
            recorded = record_tokens_once(connection, usages)
        tallies = self.summary.tallies
        for kept in remembered:
            tallies[MEMORIES].count(repeated=kept.repeated)
        tallies[LINKS].count_all(len(links), new=linked)
        tallies[USAGE].count_all(len(usages), new=recorded)
        for _, conversation in batch:
            tallies[MEMORIES].refused += conversation.left_out
            self.summary.span(conversation.messages[0].occurred_at)
            self.summary.span(conversation.last)

    def _usages(self, batch: Sequence[tuple[str, Conversation]]) -> list[TokenUsage]:
        fresh = {held.conversation_id: held for _, held in batch if held.conversation_id not in self.tokens}
        counts = iter(self.tokenizer.count([m.text for held in fresh.values() for m in held.messages]))
        for name, conversation in fresh.items():
            self.tokens[name] = sum(next(counts) for _ in conversation.messages)
        return [
            TokenUsage(
                tenant_id=tenant,
                session_id=conversation.conversation_id,
                tokens=self.tokens[conversation.conversation_id],
                tokenizer=self.tokenizer.name,
                occurred_at=conversation.last,
            )
            for tenant, conversation in batch
        ]
