"""Remembering: what is kept, once, by one model; what cannot be is refused by name and changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from somabrain_dagster.memory.embedding import Embedder, Vectors
from somabrain_dagster.memory.memories import CHUNK, Memories
from somabrain_dagster.memory.query import InvalidQuery, Query, parse_query
from somabrain_dagster.memory.remember import NewMemory, embedded_text
from somabrain_dagster.memory.vectors import InvalidEmbedding
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.embedding_models import ModelMismatch
from somabrain_dagster.store.memories import (
    InvalidLink,
    InvalidMemory,
    KeyReused,
    Link,
    LinkEnds,
    Memory,
    UnknownMemory,
    parse_memory,
    remember_all,
)
from tests.brain import new_tenant
from tests.remembering import link, memory_of, messages, remember, room
from tests.test_row_security import on, tables

SAID = messages(100)
NOON = datetime(2018, 4, 1, 12, tzinfo=UTC)
NAIVE = datetime(2018, 4, 1, 12)
NAN = float("nan")


def everything(database: Database) -> dict[str, int]:
    """How many rows there are in each table, of all tenants."""
    with database.as_operator() as connection:
        return {
            table: connection.execute(on(table, "SELECT FROM {}")).rowcount
            for table in [*tables(connection), "embedding_models", "configurations"]
        }


def vector(dimension: int = 384, **components: float) -> tuple[float, ...]:
    return tuple(
        {0: 1.0, **{int(place[1:]): value for place, value in components.items()}}.get(i, 0.0)
        for i in range(dimension)
    )


# What is kept


def test_a_memory_is_kept_with_all_that_it_says(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    memory = NewMemory(
        tenant_id=tenant,
        text="Ein Text\nmit 🙂 und 'Zeichen'",
        occurred_at=NOON,
        speaker="Ada",
        namespace="work",
        conversation_id="a conversation",
        payload={"entities": ["Ada"], "n": 1.5, "deep": {"x": [None, True]}},
        key="the key",
    )
    kept = memories.remember(memory)
    (hit,) = memories.recall(Query(tenant_id=tenant, text="Text")).hits
    assert not kept.repeated
    assert hit.memory_id == kept.memory_id
    for name in ("text", "occurred_at", "speaker", "namespace", "conversation_id", "payload"):
        assert getattr(hit, name) == getattr(memory, name)


@pytest.mark.parametrize(
    "text", ["x" * 65536, "Ada " * 16384, "🙂" * 16384, " ".join(map(str, range(12000)))[:65536]]
)
def test_the_longest_text_is_kept_and_recalled(
    shared_database: Database, minilm: Embedder, text: str
) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    memories.remember(Memory(tenant_id=tenant, text=text, occurred_at=NOON))
    (hit,) = memories.recall(Query(tenant_id=tenant, text="Ada 7")).hits
    assert hit.text == text


def test_words_are_in_the_row_of_their_memory_beside_its_vector(
    shared_database: Database, minilm: Embedder
) -> None:
    """The longest of real messages: a search of full text that had to fetch their words would take longer."""
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    longest = sorted(messages(600), key=lambda one: len(one.text))[-10:]
    remember(memories, tenant, longest)
    with shared_database.as_tenants([tenant]) as connection:
        ((texts, words),) = connection.execute(
            """
            SELECT count(pg_column_toast_chunk_id(text)), count(pg_column_toast_chunk_id(lexemes))
            FROM memories
            """
        ).fetchall()
    assert (texts > 0, words) == (True, 0)


def stored(database: Database, tenant: str) -> dict[int, Vectors]:
    """Embeddings as they are stored, by memory."""
    with database.as_tenants([tenant]) as connection:
        rows = connection.execute(
            "SELECT memory_id, embedding::real[] FROM memories WHERE embedding IS NOT NULL"
        )
        return {memory_id: np.array(values, dtype=np.float32) for memory_id, values in rows}


def test_vectors_are_stored_to_the_last_bit_with_their_model(database: Database, minilm: Embedder) -> None:
    memories, tenant = room(database, minilm), new_tenant(database)
    ids = remember(memories, tenant, SAID[:20])
    vectors = stored(database, tenant)
    expected = minilm.embed([embedded_text(one.speaker, one.text) for one in SAID[:20]])
    assert (np.array([vectors[memory_id] for memory_id in ids]) == expected).all()
    with database.as_tenants([tenant]) as connection:
        rows = connection.execute(
            "SELECT DISTINCT e.name, dimension, digest FROM memories JOIN embedding_models e USING (model_id)"
        ).fetchall()
    assert rows == [(minilm.name, minilm.dimension, minilm.digest)]


def test_a_memory_may_bring_its_own_vector_of_any_length(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    texts = {"short": 1e-200, "long": 1e200, "plain": 1.0}
    ids = [
        memories.remember(
            NewMemory(
                tenant_id=tenant, text=text, occurred_at=NOON, embedding=vector(c0=3 * size, c1=4 * size)
            )
        ).memory_id
        for text, size in texts.items()
    ]
    vectors = stored(shared_database, tenant)
    for memory_id in ids:
        assert vectors[memory_id][:2] == pytest.approx([0.6, 0.8])
        assert not vectors[memory_id][2:].any()


def test_the_same_content_is_kept_once(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    batch = [memory_of(tenant, one) for one in SAID[:10]]
    first = memories.remember_all([*batch, batch[3]])
    again = memories.remember_all(batch)
    assert [kept.repeated for kept in first] == [False] * 10 + [True]
    assert first[10].memory_id == first[3].memory_id
    assert [kept.memory_id for kept in again] == [kept.memory_id for kept in first[:10]]
    assert all(kept.repeated for kept in again)
    elsewhere = memories.remember(memory_of(tenant, SAID[0], namespace="other"))
    assert not elsewhere.repeated


def test_a_key_makes_a_retry_safe_and_never_stands_for_another_memory(
    shared_database: Database, minilm: Embedder
) -> None:
    memories, tenant, other = (
        room(shared_database, minilm),
        new_tenant(shared_database),
        new_tenant(shared_database),
    )

    def keyed(text: str, key: str, of: str = tenant) -> NewMemory:
        return NewMemory(tenant_id=of, text=text, occurred_at=NOON, key=key)

    kept = memories.remember(keyed("first", "key"))
    assert memories.remember(keyed("first", "key")).memory_id == kept.memory_id
    assert memories.remember(keyed("first", "another key")).memory_id == kept.memory_id
    before = everything(shared_database)
    with pytest.raises(KeyReused, match="'key' was used for another memory") as refused:
        memories.remember_all([keyed("new", "new key"), keyed("second", "key")])
    assert refused.value.position == 1
    with pytest.raises(KeyReused):
        memories.remember_all([keyed("one", "fresh"), keyed("two", "fresh")])
    assert everything(shared_database) == before
    assert not memories.remember(keyed("second", "key", other)).repeated


def test_many_are_kept_in_chunks_with_a_bar(
    database: Database, minilm: Embedder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each with its own vector, so that nothing is embedded: more than two chunks."""
    memories, tenant = room(database, minilm), new_tenant(database)
    count = 2 * CHUNK + 1
    batch = [
        NewMemory(
            tenant_id=tenant,
            text=f"memory {place}",
            occurred_at=NOON + timedelta(seconds=place),
            embedding=vector(c1=place / count),
        )
        for place in range(count)
    ]
    kept = memories.remember_all(batch, progress=True)
    assert f"{count}/{count}" in capfd.readouterr().err
    assert len({one.memory_id for one in kept}) == count
    assert everything(database)["memories"] == count
    assert all(one.repeated for one in memories.remember_all(batch))
    assert "remembering" not in capfd.readouterr().err


def test_what_came_without_a_vector_gets_one_later(database: Database, minilm: Embedder) -> None:
    memories, tenant = room(database, minilm), new_tenant(database)
    with database.as_tenants([tenant]) as connection:
        remember_all(connection, [memory_of(tenant, one) for one in SAID[:30]])
    assert stored(database, tenant) == {}
    query = Query(tenant_id=tenant, text=SAID[5].text, k=30)
    by_words = memories.recall(query).hits
    assert all("similarity" not in hit.sources and hit.features["semantic"] == 0 for hit in by_words)
    assert memories.embed_missing() == 30
    assert memories.embed_missing() == 0
    assert len(stored(database, tenant)) == 30
    assert memories.recall(query).hits[0].text == SAID[5].text
    assert all("similarity" in hit.sources for hit in memories.recall(query).hits)


# One model a tenant


class Shortened:
    """Another model, whose vectors are shorter: the first 64 components of another's, at unit length."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name, self.dimension, self.digest = "shortened", 64, f"{embedder.digest}:64"

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = self._embedder.embed(texts)[:, :64]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_embeddings_of_two_models_never_mix(database: Database, minilm: Embedder) -> None:
    tenant, fresh = new_tenant(database), new_tenant(database)
    own, other = (
        room(database, minilm),
        Memories(database, Shortened(minilm), Settings(tau_adaptation=False)),
    )
    remember(own, tenant, SAID[:3])
    remember(other, fresh, SAID[:3])
    before = everything(database)
    with pytest.raises(ModelMismatch, match=rf"tenant '{tenant}' are embedded by {minilm.name} \("):
        other.remember_all([memory_of(fresh, SAID[4]), memory_of(tenant, SAID[4])])
    with pytest.raises(ModelMismatch, match=r"use .* for this tenant, or remember anew in another tenant"):
        other.recall(Query(tenant_id=tenant, text="hello"))
    with pytest.raises(ModelMismatch):
        own.recall(Query(tenant_id=fresh, text="hello"))
    assert everything(database) == before
    for memories, of in ((own, tenant), (other, fresh)):
        hits = memories.recall(Query(tenant_id=of, text="hello")).hits
        assert ["similarity" in hit.sources for hit in hits] == [True] * 3


# What is refused


@dataclass(frozen=True)
class Place:
    """Two tenants, each with two linked memories."""

    memories: Memories
    tenant: str
    other: str
    own: list[int]
    strange: list[int]

    def memory(self, **fields: Any) -> NewMemory:
        return NewMemory(**{"tenant_id": self.tenant, "text": "text", "occurred_at": NOON, **fields})

    def query(self, **fields: Any) -> Query:
        return Query(**{"tenant_id": self.tenant, "text": "text", **fields})

    def link(self, **fields: Any) -> Link:
        one, two = self.own
        ends = {"tenant_id": self.tenant, "source_id": two, "target_id": one, "occurred_at": NOON}
        return Link(**{**ends, **fields})


@pytest.fixture(scope="module")
def place(shared_database: Database, minilm: Embedder) -> Place:
    memories = room(shared_database, minilm)
    tenant, other = new_tenant(shared_database), new_tenant(shared_database)
    own, strange = remember(memories, tenant, SAID[:2]), remember(memories, other, SAID[:2])
    for of, (source, target) in ((tenant, own), (other, strange)):
        memories.link(link(of, source, target, NOON))
    return Place(memories, tenant, other, own, strange)


MEGABYTE = "word " * 200_000
WRONG_MEMORIES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "empty text": ({"text": ""}, InvalidMemory, "`text` is blank"),
    "blank text": ({"text": " \n\t\u3000"}, InvalidMemory, "`text` is blank"),
    "1 MB of text": ({"text": MEGABYTE}, InvalidMemory, "1000000 bytes of UTF-8, at most 65536"),
    "NUL": ({"text": "a\0b"}, InvalidMemory, "NUL"),
    "lone surrogate": ({"text": "a\ud800"}, InvalidMemory, "not Unicode"),
    "text that is none": ({"text": 7}, InvalidMemory, r"\$.text"),
    "naive time": ({"occurred_at": NAIVE}, InvalidMemory, r"timezone.*\$.occurred_at"),
    "time that is none": ({"occurred_at": "yesterday"}, InvalidMemory, r"\$.occurred_at"),
    "time before time": ({"occurred_at": datetime.min.replace(tzinfo=UTC)}, InvalidMemory, "years 2 to 9998"),
    "unknown tenant": ({"tenant_id": "nobody"}, UnknownTenant, "tenant create nobody"),
    "no tenant's name": ({"tenant_id": "No, Body"}, InvalidMemory, r"\$.tenant_id"),
    "empty speaker": ({"speaker": ""}, InvalidMemory, r"\$.speaker"),
    "payload with NaN": ({"payload": {"x": NAN}}, InvalidMemory, "`payload`"),
    "payload too large": ({"payload": {"x": MEGABYTE}}, InvalidMemory, "`payload`"),
    "payload that is none": ({"payload": [1]}, InvalidMemory, r"\$.payload"),
    "empty key": ({"key": ""}, InvalidMemory, r"\$.key"),
    "long key": ({"key": "k" * 201}, InvalidMemory, r"\$.key"),
    "short vector": ({"embedding": (1.0, 2.0)}, InvalidEmbedding, "2 numbers where the model makes 384"),
    "long vector": ({"embedding": vector(385)}, InvalidEmbedding, "385 numbers where the model makes 384"),
    "no numbers": ({"embedding": ()}, InvalidEmbedding, "0 numbers where the model makes 384"),
    "matrix": ({"embedding": (vector(),)}, InvalidEmbedding, "1 × 384"),
    "ragged": ({"embedding": ((1.0,), (1.0, 2.0))}, InvalidEmbedding, "list of 384 numbers"),
    "NaN vector": ({"embedding": vector(c5=NAN)}, InvalidEmbedding, "NaN or infinite"),
    "infinite vector": ({"embedding": vector(c5=-float("inf"))}, InvalidEmbedding, "NaN or infinite"),
    "zero vector": ({"embedding": vector(c0=0.0)}, InvalidEmbedding, "all zeros"),
    "words": ({"embedding": ("a",) * 384}, InvalidEmbedding, "list of 384 numbers"),
}


@pytest.mark.parametrize("fields", WRONG_MEMORIES.values(), ids=WRONG_MEMORIES)
def test_a_memory_that_cannot_be_is_refused_and_nothing_is_kept(
    shared_database: Database, place: Place, fields: tuple[dict[str, Any], type[Exception], str]
) -> None:
    """Nor are the good ones before it and behind it."""
    wrong, error, message = fields
    before = everything(shared_database)
    batch = [place.memory(text="good"), place.memory(**wrong), place.memory(text="good too")]
    with pytest.raises(error, match=message) as refused:
        place.memories.remember_all(batch)
    if error is not UnknownTenant:
        assert "memory 1: " in str(refused.value)
    assert everything(shared_database) == before


WRONG_QUESTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "empty text": ({"text": ""}, InvalidQuery, "`text` is blank"),
    "blank text": ({"text": " \n"}, InvalidQuery, "`text` is blank"),
    "1 MB of text": ({"text": MEGABYTE}, InvalidQuery, "1000000 bytes of UTF-8, at most 8192"),
    "NUL": ({"text": "a\0b"}, InvalidQuery, "NUL"),
    "lone surrogate": ({"text": "a\ud800"}, InvalidQuery, "not Unicode"),
    "k 0": ({"k": 0}, InvalidQuery, r">= 1.*\$.k"),
    "k negative": ({"k": -1}, InvalidQuery, r">= 1.*\$.k"),
    "k huge": ({"k": 10**9}, InvalidQuery, r"<= 100.*\$.k"),
    "k beyond any integer": ({"k": 10**30}, InvalidQuery, r"\$.k"),
    "k a fraction": ({"k": 1.5}, InvalidQuery, r"\$.k"),
    "k true": ({"k": True}, InvalidQuery, r"\$.k"),
    "unknown mode": ({"mode": "best"}, InvalidQuery, r"\$.mode"),
    "naive as_of": ({"as_of": NAIVE}, InvalidQuery, r"timezone.*\$.as_of"),
    "naive since": ({"since": NAIVE}, InvalidQuery, r"timezone.*\$.since"),
    "as_of after time": ({"as_of": datetime.max.replace(tzinfo=UTC)}, InvalidQuery, "years 2 to 9998"),
    "no namespaces": ({"namespaces": ()}, InvalidQuery, r"\$.namespaces"),
    "additions negative": ({"graph_augment_max_additions": -1}, InvalidQuery, r"\$.graph_augment"),
    "additions huge": ({"graph_augment_max_additions": 101}, InvalidQuery, r"\$.graph_augment"),
    "unknown tenant": ({"tenant_id": "nobody"}, UnknownTenant, "tenant create nobody"),
    "no tenant's name": ({"tenant_id": "a,b"}, InvalidQuery, r"\$.tenant_id"),
    "empty asker": ({"asker": ""}, InvalidQuery, r"\$.asker"),
    "NUL in a session": ({"session_id": "a\0"}, InvalidQuery, r"\$.session_id"),
    "short vector": ({"embedding": (1.0,)}, InvalidEmbedding, "1 numbers where the model makes 384"),
    "NaN vector": ({"embedding": vector(c3=NAN)}, InvalidEmbedding, "NaN or infinite"),
    "zero vector": ({"embedding": vector(c0=0.0)}, InvalidEmbedding, "all zeros"),
}


@pytest.mark.parametrize("fields", WRONG_QUESTIONS.values(), ids=WRONG_QUESTIONS)
def test_a_question_that_cannot_be_is_refused_and_nothing_is_logged(
    shared_database: Database, place: Place, fields: tuple[dict[str, Any], type[Exception], str]
) -> None:
    wrong, error, message = fields
    before = everything(shared_database)
    with pytest.raises(error, match=message):
        place.memories.recall(place.query(**wrong))
    assert everything(shared_database) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "malformed|truncated"),
        (b"\xff", "Unicode|utf-8|malformed"),
        ('{"tenant_id": "a", "text": "x", "limit": 3}', "unknown field `limit`"),
        ('{"tenant_id": "a"}', "missing required field `text`"),
        ('{"tenant_id": "a", "text": "x", "embedding": [NaN]}', "malformed"),
        ('{"tenant_id": "a", "text": ' + "[" * 100_000, "recursion|str"),
    ],
)
def test_a_question_in_json_is_checked_alike(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        parse_query(text)


WRONG_LINKS: dict[str, tuple[Callable[[Place], dict[str, Any]], type[Exception], str]] = {
    "unknown source": (lambda place: {"source_id": 10**15}, UnknownMemory, "no memory 1000000000000000"),
    "unknown target": (lambda place: {"target_id": 2**63 - 1}, UnknownMemory, f"no memory {2**63 - 1}"),
    "a target before any id": (lambda place: {"target_id": 0}, InvalidLink, "target_id"),
    "a target beyond any id": (lambda place: {"target_id": 2**63}, InvalidLink, "target_id"),
    "a source beyond any id": (lambda place: {"source_id": -(2**63) - 1}, InvalidLink, "source_id"),
    "another's target": (lambda place: {"target_id": place.strange[0]}, UnknownMemory, "of its own tenant"),
    "another's source": (lambda place: {"source_id": place.strange[0]}, UnknownMemory, "of its own tenant"),
    "another's both": (
        lambda place: {"source_id": place.strange[1], "target_id": place.strange[0]},
        UnknownMemory,
        "of its own tenant",
    ),
    "the other tenant": (lambda place: {"tenant_id": place.other}, UnknownMemory, "of its own tenant"),
    "unknown tenant": (lambda place: {"tenant_id": "nobody"}, UnknownMemory, "'nobody'"),
    "itself": (lambda place: {"target_id": place.own[1]}, InvalidLink, "to itself"),
    "weight 0": (lambda place: {"weight": 0.0}, InvalidLink, "finite and above 0"),
    "weight negative": (lambda place: {"weight": -1.0}, InvalidLink, "finite and above 0"),
    "weight NaN": (lambda place: {"weight": NAN}, InvalidLink, "finite and above 0"),
    "weight infinite": (lambda place: {"weight": float("inf")}, InvalidLink, "finite and above 0"),
    "empty kind": (lambda place: {"kind": ""}, InvalidLink, r"\$.kind"),
    "naive time": (lambda place: {"occurred_at": NAIVE}, InvalidLink, r"timezone.*\$.occurred_at"),
    "a word for an id": (lambda place: {"source_id": "first"}, InvalidLink, r"\$.source_id"),
}


@pytest.mark.parametrize("wrong", WRONG_LINKS.values(), ids=WRONG_LINKS)
def test_a_link_that_cannot_be_is_refused_and_nothing_is_linked(
    shared_database: Database,
    place: Place,
    wrong: tuple[Callable[[Place], dict[str, Any]], type[Exception], str],
) -> None:
    fields, error, message = wrong
    before = everything(shared_database)
    with pytest.raises(error, match=message) as refused:
        place.memories.link_all(
            [place.link(kind="good"), place.link(**fields(place)), place.link(kind="fine")]
        )
    assert cast(InvalidLink | UnknownMemory, refused.value).position == 1
    assert everything(shared_database) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source_id": 2**63}, "source_id"),
        ({"kind": ""}, r"\$.kind"),
        ({"tenant_id": "a,b"}, r"\$.tenant_id"),
    ],
    ids=str,
)
def test_ends_that_cannot_be_are_refused(
    shared_database: Database, place: Place, wrong: dict[str, Any], message: str
) -> None:
    before = everything(shared_database)
    ends = {"tenant_id": place.tenant, "source_id": place.own[0], "target_id": place.own[1], **wrong}
    with pytest.raises(InvalidLink, match=message):
        place.memories.unlink(LinkEnds(**ends))
    assert everything(shared_database) == before


def test_a_memory_in_json_is_checked_alike() -> None:
    row = msgspec.to_builtins(Memory(tenant_id="a", text="x", occurred_at=NOON))
    assert parse_memory(row).occurred_at == NOON
    with pytest.raises(InvalidMemory, match="timezone"):
        parse_memory({**row, "occurred_at": "2018-04-01T12:00:00"})


def test_nothing_is_asked_of_nothing(place: Place, shared_database: Database) -> None:
    before = everything(shared_database)
    assert place.memories.remember_all([]) == []
    assert place.memories.link_all([]) == 0
    assert everything(shared_database) == before
