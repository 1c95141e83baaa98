"""What the tests of recall share: real messages as memories, a room of memories, and its log read back."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
from psycopg.rows import dict_row

from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.memory.embedding import Embedder, Vectors
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.chitchat import Message, read_chitchat
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import Link, Memory

Row = dict[str, Any]
SECOND = timedelta(seconds=1)


class EmbeddedOnce:
    """An embedder that keeps the vectors of the texts it has seen; they are those of the one within."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[str, Vectors] = {}
        self.name, self.dimension, self.digest = embedder.name, embedder.dimension, embedder.digest

    def embed(self, texts: Sequence[str]) -> Vectors:
        new = sorted(set(texts) - self._vectors.keys())
        self._vectors.update(zip(new, self._embedder.embed(new), strict=True))
        return np.array([self._vectors[text] for text in texts]).reshape(-1, self.dimension)


@cache
def messages(count: int) -> tuple[Message, ...]:
    """The first messages in the conversations of the heaviest tenant, by time, no text and no time twice."""
    chosen: list[Message] = []
    texts: set[str] = set()
    for _, conversation in read_chitchat(1).sessions:
        for message in conversation.messages:
            if message.text not in texts and (not chosen or message.occurred_at > chosen[-1].occurred_at):
                texts.add(message.text)
                chosen.append(message)
    return tuple(chosen[:count])


def memory_of(tenant_id: str, message: Message, **fields: Any) -> Memory:
    """A message as a memory."""
    return Memory(
        **{
            "tenant_id": tenant_id,
            "text": message.text,
            "occurred_at": message.occurred_at,
            "speaker": message.speaker,
            **fields,
        }
    )


def room(database: Database, embedder: Embedder, seed: int = 0, **settings: Any) -> Memories:
    """A room of memories whose draws repeat; τ stands still unless the settings say otherwise."""
    return Memories(
        database,
        embedder,
        Settings(**{"tau_adaptation": False, **settings}),
        generator=np.random.default_rng(seed),
    )


def remember(memories: Memories, tenant_id: str, said: Sequence[Message]) -> list[int]:
    """Remember messages; their ids, in order."""
    return [kept.memory_id for kept in memories.remember_all([memory_of(tenant_id, one) for one in said])]


def link(tenant_id: str, source: int, target: int, occurred_at: datetime, weight: float = 1.0) -> Link:
    return Link(
        tenant_id=tenant_id, source_id=source, target_id=target, occurred_at=occurred_at, weight=weight
    )


def logged(database: Database, tenant_id: str, recall_id: int) -> Row:
    """A recall as the log has it; its features as an array, one row a candidate."""
    with database.as_tenants([tenant_id]) as connection, connection.cursor(row_factory=dict_row) as cursor:
        row: Row | None = cursor.execute(
            "SELECT * FROM recalls WHERE tenant_id = %s AND recall_id = %s", (tenant_id, recall_id)
        ).fetchone()
    assert row is not None
    row["features"] = np.array(row["features"]).reshape(-1, len(FEATURES))
    return row


def essence(row: Row) -> Row:
    """All that a recall found, weighed and returned, exactly; without its id and its time of landing."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in row.items()
        if name not in ("recall_id", "created_at")
    }
