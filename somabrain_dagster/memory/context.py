"""Context assembly: of what a question brings to mind, the memories that are worth their room.

The gain of a memory is the probability that it is the one that helps. Recall's policy p = softmax(s / τ) is a
conditional logit of just that, fitted to which memory helped (McFadden 1974), and so

    gain_m = (1 − ω) · p_m + ω · q_m        q_m = credit_m / Σ credit over the session's working memory

where ω, the working share, is the probability that what helps now has helped in this session before. With
ω = 0 working memory is not looked at; with more its memories are candidates beside the hits, and p_m is 0 for
those that are no hit. Gains sum to 1 at most; `learning.utility` reads them as independent, by which the gain
of a context is at most the sum of its memories' and no estimate is flattered.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import numpy as np

from somabrain_dagster.learning.utility import (
    Room,
    Terms,
    UtilityWeights,
    assemble,
    marginal_utilities,
    terms,
)
from somabrain_dagster.learning.weights import UTILITY_WEIGHTS
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Recall
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.recalls import read_bodies
from somabrain_dagster.store.trials import Overlay
from somabrain_dagster.store.usage import TokenUsage, record_context
from somabrain_dagster.store.weeks import with_partitions
from somabrain_dagster.store.working_memory import WorkingMemory, WorkingMemoryUnavailable

_log = logging.getLogger(__name__)

Reason = Literal["adds_nothing", "too_long", "no_place"]
"""Why a candidate is left out: it would add nothing to U; or it would, but has more tokens than are left, or
all places are taken."""

Mind = Literal["off", "offered", "unavailable"]
"""Whether working memory was not looked at, was offered beside the hits, or could not be reached."""


class TokenCounter(Protocol):
    """Counts tokens; lines that are joined by line breaks have no more tokens than the lines one by one."""

    name: str

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A memory that may enter a context.

    Attributes:
        text: as it would be read: who says it, and what.
        probability: of the recall's policy; 0 where it is no hit.
        in_mind: its share q of the session's working memory.
        gain: the probability that it is the one that helps.
    """

    memory_id: int
    occurred_at: datetime
    text: str
    probability: float
    in_mind: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A memory of a context, and its tokens."""

    candidate: Candidate
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A candidate that is not in the context, and why.

    Attributes:
        tokens: that it would take.
        marginal_utility: by how much U would change if it were there too.
    """

    candidate: Candidate
    tokens: int
    reason: Reason
    marginal_utility: float


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is returned for a question.

    Attributes:
        recall: from which it was assembled.
        text: the memories, a line each or more, by time; empty where none is worth its room.
        memories: as they are in the text.
        left_out: the candidates that are not, those of the largest gain first.
        tokens: of the memories, at most the budget.
        tokenizer: whose count it is.
        room: what it may hold.
        weights: λ, μ, ν in force.
        terms: context_gain, length_penalty, memory_penalty.
        utility: U = λ · context_gain − μ · length_penalty − ν · memory_penalty.
        working_memory: whether it was offered.
    """

    recall: Recall
    text: str
    memories: tuple[Chosen, ...]
    left_out: tuple[LeftOut, ...]
    tokens: int
    tokenizer: str
    room: Room
    weights: UtilityWeights
    terms: Terms
    utility: float
    working_memory: Mind


def assemble_context(
    database: Database,
    memories: Memories,
    tokens: TokenCounter,
    query: Query,
    room: Room,
    *,
    overlay: Overlay | None = None,
    working: WorkingMemory | None = None,
    working_share: float = 0.0,
) -> Context:
    """Recall for a question, choose what is worth its room, and record its tokens as the session's usage.

    Args:
        database: the brain's.
        memories: what is asked.
        tokens: counts them.
        query: the question; its k is how many hits are offered.
        room: how many tokens and memories the context may hold.
        overlay: in place of what is on trial for the session; it may shift λ, μ and ν too.
        working: working memory; one that cannot be reached is done without.
        working_share: ω, in [0, 1]; 0 leaves working memory alone.

    Raises:
        ValueError: `working_share` is outside [0, 1], or is not 0 without a working memory or a session.
        InvalidQuery, InvalidEmbedding, EmbeddingError, UnknownTenant, ModelMismatch, InvalidConfiguration: as
            `Memories.recall`.
    """
    if not 0 <= working_share <= 1:
        raise ValueError(f"the working share is a probability in [0, 1], not {working_share}")
    if working_share and (working is None or query.session_id is None):
        raise ValueError("a working share needs a working memory and a session: give them, or a share of 0")
    recall = memories.recall(query, overlay)
    mind: Mind = "off"
    noted: dict[int, float] = {}
    if working is not None and query.session_id is not None and working_share:
        try:
            noted = {one.memory_id: one.credit for one in working.recent(query.tenant_id, query.session_id)}
            mind = "offered"
        except WorkingMemoryUnavailable as error:
            _log.warning("a context is assembled without working memory: %s", error)
            mind = "unavailable"
    candidates = candidates_of(recall, _visible(database, query, recall, noted), working_share)
    context = compose(recall, candidates, tokens, room, mind)
    if query.session_id is not None:
        record_usage(database, context, query.session_id)
    return context


@dataclass(frozen=True, kw_only=True)
class InMind:
    """A memory of working memory that the recall may see.

    Attributes:
        text: as it would be read.
        credit: in (0, 1].
    """

    memory_id: int
    occurred_at: datetime
    text: str
    credit: float


def candidates_of(recall: Recall, in_mind: Sequence[InMind], working_share: float) -> list[Candidate]:
    """The hits in their order, then what is in mind and is no hit.

    Args:
        recall: gives the hits and their probabilities.
        in_mind: what the session has in mind, the latest first.
        working_share: ω; counts for nothing where nothing is in mind.
    """
    share = working_share if in_mind else 0.0
    total = sum(one.credit for one in in_mind)
    q = {one.memory_id: one.credit / total for one in in_mind}
    offered = {
        hit.memory_id: (hit.occurred_at, embedded_text(hit.speaker, hit.text), hit.probability)
        for hit in recall.hits
    }
    for one in in_mind:
        offered.setdefault(one.memory_id, (one.occurred_at, one.text, 0.0))
    return [
        Candidate(
            memory_id=memory_id,
            occurred_at=occurred_at,
            text=text,
            probability=probability,
            in_mind=q.get(memory_id, 0.0),
            gain=(1 - share) * probability + share * q.get(memory_id, 0.0),
        )
        for memory_id, (occurred_at, text, probability) in offered.items()
    ]


def compose(
    recall: Recall,
    candidates: Sequence[Candidate],
    tokens: TokenCounter,
    room: Room,
    working_memory: Mind = "off",
) -> Context:
    """The context of the largest utility that greed finds; it reads and writes nothing.

    Args:
        recall: whose λ, μ, ν count.
        candidates: between equals the earlier one is chosen.
        tokens: counts them.
        room: what the context may hold.
        working_memory: whether it is among the candidates.
    """
    weights = UtilityWeights(*(recall.weights[weight.name] for weight in UTILITY_WEIGHTS))
    gains = np.array([candidate.gain for candidate in candidates], dtype=np.float64)
    lengths = np.array(tokens.count([candidate.text for candidate in candidates]), dtype=np.int64)
    chosen = assemble(gains, lengths, room, weights).tolist()
    held = terms(gains[chosen], lengths[chosen], room)
    used = int(lengths[chosen].sum())
    marginal = marginal_utilities(gains, lengths, 1.0 - held.context_gain, room, weights)

    def reason(position: int) -> Reason:
        if marginal[position] > 0 and lengths[position] > room.budget - used:
            return "too_long"
        return "no_place" if marginal[position] > 0 and len(chosen) == room.capacity else "adds_nothing"

    by_time = sorted(chosen, key=lambda place: (candidates[place].occurred_at, candidates[place].memory_id))
    others = sorted(set(range(len(candidates))) - set(chosen), key=lambda place: (-gains[place], place))
    return Context(
        recall=recall,
        text="\n".join(candidates[place].text for place in by_time),
        memories=tuple(Chosen(candidate=candidates[place], tokens=int(lengths[place])) for place in by_time),
        left_out=tuple(
            LeftOut(
                candidate=candidates[place],
                tokens=int(lengths[place]),
                reason=reason(place),
                marginal_utility=float(marginal[place]),
            )
            for place in others
        ),
        tokens=used,
        tokenizer=tokens.name,
        room=room,
        weights=weights,
        terms=held,
        utility=held.utility(weights),
        working_memory=working_memory,
    )


def record_usage(database: Database, context: Context, session_id: str) -> bool:
    """Record a context's tokens as the usage of a session, once for its recall.

    Returns:
        Whether they are newly recorded: not where the context is empty or the recall is counted already.
    """
    recall = context.recall
    if not context.tokens:
        return False
    usage = TokenUsage(
        tenant_id=recall.tenant_id,
        session_id=session_id,
        tokens=context.tokens,
        tokenizer=context.tokenizer,
        occurred_at=recall.as_of,
    )

    def record() -> bool:
        with database.as_tenants([recall.tenant_id]) as connection:
            return record_context(connection, usage, recall.recall_id)

    return with_partitions(database, record)


def _visible(database: Database, query: Query, recall: Recall, noted: Mapping[int, float]) -> list[InMind]:
    """What is in mind as far as the recall may see it: earlier than its as_of, and what it was asked for."""
    if not noted:
        return []
    with database.as_tenants([query.tenant_id]) as connection:
        bodies = {row[0]: row[1:] for row in read_bodies(connection, query.tenant_id, list(noted))}
    in_mind = []
    for memory_id, credit in noted.items():
        if memory_id not in bodies:  # it was erased since
            continue
        text, speaker, occurred_at, namespace, *_ = bodies[memory_id]
        if (
            occurred_at < recall.as_of
            and (query.since is None or occurred_at >= query.since)
            and (query.namespaces is None or namespace in query.namespaces)
        ):
            in_mind.append(
                InMind(
                    memory_id=memory_id,
                    occurred_at=occurred_at,
                    text=embedded_text(speaker, text),
                    credit=credit,
                )
            )
    return in_mind
