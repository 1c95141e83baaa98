"""Imports: real conversations as they were held, a person's own lines as they were written, nothing twice."""

import json
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from somabrain_dagster.embedded import PostgresServer, ensure_database
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.chitchat import (
    ChitChat,
    Conversation,
    import_chitchat,
    person,
    read_chitchat,
    utility,
)
from somabrain_dagster.operations.importing import BATCH_LINES, import_feedback, import_memories
from somabrain_dagster.operations.lines import LONGEST_LINE, CannotImport, read_lines
from somabrain_dagster.operations.summary import FEEDBACK, LINKS, MEMORIES, ImportSummary
from somabrain_dagster.operations.tokens import MiniLMTokens
from somabrain_dagster.store.adaptation import UnknownTenant, create_tenants
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.corpora import delete_tenant
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import (
    LARGEST_PAYLOAD,
    LARGEST_TEXT,
    InvalidLink,
    InvalidMemory,
    Link,
    Memory,
    UnknownMemory,
    content_digest,
    link_all,
    parse_memory,
    remember_all,
)
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.usage import TokenUsage, record_tokens, record_tokens_once
from somabrain_dagster.store.verification import verify

CONFIGURATION = LearningConfiguration()
TENANTS = 24
NOON = datetime(2018, 5, 2, 12, tzinfo=UTC)


class Interrupted(Exception):
    """A person stops an import."""


def count(database: Database, query: str, *parameters: Any) -> Any:
    with database.as_operator() as connection:
        return (connection.execute(query, parameters).fetchone() or (None,))[0]


def rows(database: Database, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with database.as_operator() as connection:
        return connection.execute(query, parameters).fetchall()


# The data themselves


@pytest.fixture(scope="module")
def chitchat() -> ChitChat:
    return read_chitchat(TENANTS)


def test_the_data_are_all_there(chitchat: ChitChat) -> None:
    messages = sum(len(held.messages) for held in chitchat.conversations)
    left_out = sum((held.left_out for held in chitchat.conversations), Counter[str]())
    assert len(chitchat.conversations) == 7_168
    assert left_out == {"blank": 33}
    assert messages + left_out.total() == 258_145
    assert len(chitchat.people) == 1_315
    assert sum(held >= 20 for held in chitchat.people.values()) == 86
    assert sum(held >= 10 for held in chitchat.people.values()) == 181
    assert list(chitchat.people.values())[99] == 17
    rated = [held for held in chitchat.conversations if held.ratings is not None]
    assert len(rated) == 5_988
    assert round(100 * sum(held.untouched for held in rated) / len(rated), 1) == 48.8


def test_tenants_are_the_heaviest_people_and_of_equals_the_first_by_key(chitchat: ChitChat) -> None:
    assert len(chitchat.tenants) == TENANTS
    assert chitchat.tenants[:3] == ("person-549cc1d1", "person-31267496", "person-720840be")
    assert all(
        (-held, key) < (-other, another)
        for (key, held), (another, other) in pairwise(chitchat.people.items())
    )
    assert read_chitchat(30).tenants[:TENANTS] == chitchat.tenants


def test_a_tenant_key_is_the_beginning_of_the_persons_id() -> None:
    assert person("549cc1d1-270e-4a53-b561-133a8d0086b4") == "person-549cc1d1"


@pytest.mark.parametrize("tenants", [0, 1_316])
def test_there_are_only_so_many_people(tenants: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 1315"):
        read_chitchat(tenants)


@pytest.mark.parametrize(
    ("score", "value"),
    [(1, -1), (2, -0.75), (3, -0.5), (4, -0.25), (5, 0), (6, 0.2), (7, 0.4), (8, 0.6), (9, 0.8), (10, 1)],
)
def test_a_rating_is_a_utility(score: int, value: float) -> None:
    assert utility(score) == value


@pytest.mark.parametrize("score", [0, 11])
def test_no_other_rating_is(score: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 10"):
        utility(score)


def held_as(chitchat: ChitChat, conversation_id: str) -> Conversation:
    return next(held for held in chitchat.conversations if held.conversation_id == conversation_id)


def test_ratings_are_feedback(chitchat: ChitChat) -> None:
    feedback = held_as(chitchat, "8a346881-9d16-483e-9730-41b2c0f09ae5").feedback("person-549cc1d1")
    assert feedback is not None
    assert feedback.utility == pytest.approx((-0.25 + 0.2 + 0.4) / 3)
    assert feedback.metadata == {"witty": 4, "upbeat": 6, "interesting": 7}
    assert feedback.source == "conversation_rating"
    assert feedback.session_id == "8a346881-9d16-483e-9730-41b2c0f09ae5"
    assert feedback.occurred_at == datetime(2018, 4, 24, 3, 58, 37, tzinfo=UTC)


def test_a_message_answers_the_last_one_before_it_by_somebody_else(chitchat: ChitChat) -> None:
    conversation = next(
        held
        for held in chitchat.conversations
        if [message.text for message in held.messages[:2]] == ["Hello!", "Hey Tyler!"]
    )
    a, b = (conversation.messages[position].speaker for position in (0, 1))
    assert [message.speaker for message in conversation.messages] == [a, b, a, b, b, a, a, b]
    assert conversation.replies() == [(1, 0), (2, 1), (3, 2), (4, 2), (5, 4), (6, 4), (7, 6)]


def test_who_speaks_alone_answers_nobody(chitchat: ChitChat) -> None:
    alone = [held for held in chitchat.conversations if len(held.speakers) == 1]
    assert len(alone) == 3_150
    assert not any(held.replies() for held in alone)


def test_tokens_are_counted_without_markers_and_however_many_there_are() -> None:
    # "unaffable" is the example of the BERT reference implementation: una ##ffa ##ble.
    assert MiniLMTokens().count(["", "hello", "unaffable", "word " * 1_000]) == [0, 1, 3, 1_000]


# The data in the brain


@pytest.fixture(scope="module")
def brain(postgres: PostgresServer) -> Iterator[Database]:
    """A brain of the module's own."""
    ensure_database(postgres, "test_import_chitchat")
    migrate(postgres.url("test_import_chitchat"))
    with Database(postgres.url("test_import_chitchat")) as opened:
        yield opened


@pytest.fixture(scope="module")
def interrupted(brain: Database) -> int:
    """How many memories the brain had when a person stopped the import."""

    def stop(what: str, done: int, total: int | None) -> None:
        assert total is not None
        if done > total / 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        import_chitchat(brain, CONFIGURATION, TENANTS, stop)
    return int(count(brain, "SELECT count(*) FROM memories"))


@pytest.fixture(scope="module")
def finished(brain: Database, interrupted: int) -> ImportSummary:
    """What the import did when it was started again."""
    assert interrupted > 0
    return import_chitchat(brain, CONFIGURATION, TENANTS)


def test_an_interrupted_import_is_finished_by_starting_it_again(
    brain: Database, interrupted: int, finished: ImportSummary, chitchat: ChitChat
) -> None:
    contents = {
        (tenant, held.conversation_id, message)
        for tenant, held in chitchat.sessions
        for message in held.messages
    }
    said = sum(len(held.messages) for _, held in chitchat.sessions)
    assert (len(contents), said) == (261_302, 261_503)
    assert count(brain, "SELECT count(*) FROM memories") == len(contents)
    tally = finished.tallies[MEMORIES]
    assert tally.landed == len(contents) - interrupted
    assert tally.landed + tally.repeated == said
    assert (finished.tallies[FEEDBACK].landed, finished.tallies[FEEDBACK].repeated) == (2_023, 0)


def test_what_was_left_out_is_counted(finished: ImportSummary, chitchat: ChitChat) -> None:
    rated = sum(held.ratings is not None for _, held in chitchat.sessions)
    assert finished.tallies[MEMORIES].refused == {"blank": 27}
    assert finished.tallies[FEEDBACK].refused == {"untouched": rated - 2_023}
    assert finished.tallies[LINKS].refused.total() == 0


def test_an_import_is_told_to_a_person(finished: ImportSummary) -> None:
    told = str(finished)
    assert "feedback: 2,023 new, 0 repeated, 2,507 left out (2,507 untouched)" in told
    assert "2018-04-13 17:26 to 2018-11-16 17:09 UTC" in told


def test_people_whose_tenants_were_deleted_are_left_out(database: Database, chitchat: ChitChat) -> None:
    with database.as_operator() as connection:
        create_tenants(connection, chitchat.tenants[:1], CONFIGURATION)
        delete_tenant(connection, chitchat.tenants[0], "ada")
    summary = import_chitchat(database, CONFIGURATION, tenants=1)
    assert (summary.landed, summary.tenants_created, summary.tenants_deleted) == (0, 0, 1)
    assert "tenants left out, since they were deleted: 1" in str(summary)


def test_every_message_that_has_one_before_it_by_somebody_else_is_linked_to_it(
    brain: Database, finished: ImportSummary
) -> None:
    links = rows(
        brain,
        """
        SELECT count(*),
            bool_and(s.conversation_id = t.conversation_id), bool_and(s.speaker <> t.speaker),
            bool_and(t.occurred_at <= s.occurred_at), bool_and(l.occurred_at = s.occurred_at),
            bool_and(t.memory_id < s.memory_id), bool_and(l.kind = 'reply' AND l.weight = 1)
        FROM memory_links l
        JOIN memories s ON (s.tenant_id, s.memory_id) = (l.tenant_id, l.source_id)
        JOIN memories t ON (t.tenant_id, t.memory_id) = (l.tenant_id, l.target_id)
        """,
    )
    assert links == [(250_051, True, True, True, True, True, True)]
    # By the order of ids alone: what precedes a message, by somebody else, and is nearest to it.
    expected = count(
        brain,
        """
        SELECT count(*) FROM memories m
        WHERE (
            SELECT min(o.memory_id) FROM memories o
            WHERE o.tenant_id = 'person-f3314e6b' AND o.conversation_id = m.conversation_id
                AND o.speaker <> m.speaker
        ) < m.memory_id AND m.tenant_id = 'person-f3314e6b'
        """,
    )
    assert expected > 1_000
    assert expected == count(
        brain,
        "SELECT count(DISTINCT source_id) FROM memory_links WHERE tenant_id = 'person-f3314e6b'",
    )


def test_each_event_says_what_its_ratings_say(brain: Database, finished: ImportSummary) -> None:
    values = {1: -1, 2: -0.75, 3: -0.5, 4: -0.25, 5: 0, 6: 0.2, 7: 0.4, 8: 0.6, 9: 0.8, 10: 1}
    events = rows(brain, "SELECT utility, metadata, source FROM feedback_events")
    assert len(events) == 2_023
    for said, ratings, source in events:
        assert set(ratings) == {"witty", "interesting", "upbeat"}
        assert set(ratings.values()) != {5}
        assert said == pytest.approx(sum(values[score] for score in ratings.values()) / 3)
        assert source == "conversation_rating"


def test_an_event_happened_when_its_conversation_ended(brain: Database, finished: ImportSummary) -> None:
    assert count(
        brain,
        """
        SELECT bool_and(e.occurred_at = m.last) FROM feedback_events e JOIN (
            SELECT tenant_id, conversation_id, max(occurred_at) AS last FROM memories GROUP BY 1, 2
        ) m ON (m.tenant_id, m.conversation_id) = (e.tenant_id, e.session_id)
        """,
    )


def test_learning_followed_the_order_of_the_events(brain: Database, finished: ImportSummary) -> None:
    ordered = count(
        brain,
        """
        SELECT bool_and(later) FROM (
            SELECT occurred_at >= lag(occurred_at, 1, occurred_at) OVER (
                PARTITION BY tenant_id ORDER BY seq
            ) AS later FROM feedback_events
        ) pairs
        """,
    )
    assert ordered
    with brain.snapshot() as connection:
        assert verify(connection).findings == []


def test_a_session_counts_the_tokens_of_its_messages(
    brain: Database, finished: ImportSummary, chitchat: ChitChat
) -> None:
    assert count(brain, "SELECT count(*) FROM token_usage") == len(chitchat.sessions) == 5_231
    tenant, held = chitchat.sessions[17]
    counted = rows(
        brain,
        "SELECT tokens, tokenizer, occurred_at FROM token_usage WHERE (tenant_id, session_id) = (%s, %s)",
        tenant,
        held.conversation_id,
    )
    tokens = sum(MiniLMTokens().count([message.text for message in held.messages]))
    assert counted == [(tokens, "all-MiniLM-L6-v2", held.last)]


def test_importing_again_adds_nothing(brain: Database, finished: ImportSummary) -> None:
    def rows_there() -> list[tuple[Any, ...]]:
        return rows(
            brain,
            """
            SELECT (SELECT count(*) FROM memories), (SELECT count(*) FROM memory_links),
                (SELECT count(*) FROM feedback_events), (SELECT count(*) FROM token_usage),
                (SELECT count(*) FROM weight_changes), (SELECT count(*) FROM tenants)
            """,
        )

    before = rows_there()
    again = import_chitchat(brain, CONFIGURATION, tenants=1)
    assert [tally.landed for tally in again.tallies.values()] == [0, 0, 0, 0]
    assert all(tally.repeated for tally in again.tallies.values())
    assert again.tenants_created == 0
    assert rows_there() == before


# Memories in the store


@pytest.fixture
def tenant(shared_database: Database) -> str:
    """A tenant of the test's own."""
    return new_tenant(shared_database)


def new_tenant(database: Database) -> str:
    key = f"import-{uuid4().hex[:12]}"
    with database.as_operator() as connection:
        create_tenants(connection, [key], CONFIGURATION)
    return key


def memory(tenant_id: str, text: str = "Hello!", **fields: Any) -> Memory:
    return Memory(**{"tenant_id": tenant_id, "text": text, "occurred_at": NOON, **fields})


def refused_memory(**fields: Any) -> str:
    row = {"tenant_id": "ada", "text": "Hello!", "occurred_at": "2018-05-02T12:00:00Z", **fields}
    with pytest.raises(InvalidMemory) as refusal:
        parse_memory(row)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tenant_id": "Ada"}, r"\$\.tenant_id"),
        ({"tenant_id": "ada\n"}, r"\$\.tenant_id"),
        ({"text": ""}, "`text` is blank"),
        ({"text": " \n\t "}, "`text` is blank"),
        ({"text": "a\0b"}, "`text` has a NUL"),
        ({"text": "\ud800"}, "`text` is not Unicode"),
        ({"text": "é" * (LARGEST_TEXT // 2) + "!"}, "65537 bytes of UTF-8"),
        ({"occurred_at": "2018-05-02T12:00:00"}, r"\$\.occurred_at"),
        ({"occurred_at": "yesterday"}, r"\$\.occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "years 2 to 9998"),
        ({"occurred_at": "9999-12-31T23:59:59-14:00"}, "years 2 to 9998"),
        ({"speaker": ""}, r"\$\.speaker"),
        ({"namespace": "a\0b"}, r"\$\.namespace"),
        ({"conversation_id": "c" * 201}, r"\$\.conversation_id"),
        ({"payload": {"a": "\0"}}, "`payload` has a NUL"),
        ({"payload": {"a": "\ud800"}}, "`payload` must be JSON"),
        ({"payload": {"a": "b" * LARGEST_PAYLOAD}}, "bytes of JSON"),
        ({"payload": {"a": float("nan")}}, "`payload` must be JSON"),
        ({"payload": json.loads('{"a":' * 65 + "1" + "}" * 65)}, "at most 64 levels"),
        ({"payload": []}, r"\$\.payload"),
        ({"speaker": "\ud800"}, r"\$\.speaker"),
        ({"mood": "good"}, "mood"),
    ],
)
def test_a_memory_that_cannot_be_kept_says_why(fields: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refused_memory(**fields))


@pytest.mark.parametrize("row", ["", "[]", "{", "null", "[" * 100_000, b'{"text": "\xff"}', '"\\ud800"'])
def test_what_is_no_memory_at_all_says_so(row: str | bytes) -> None:
    with pytest.raises(InvalidMemory):
        parse_memory(row)


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300
).filter(lambda text: not text.isspace())
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
moments = st.datetimes(
    datetime(2, 1, 1),
    datetime(9998, 12, 31),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-9))]),
)
payloads = st.dictionaries(
    words,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
        lambda entries: st.lists(entries, max_size=3) | st.dictionaries(words, entries, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@st.composite
def fields_of_memories(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "text": draw(texts),
        "occurred_at": draw(moments),
        "speaker": draw(st.none() | words),
        "conversation_id": draw(st.none() | words),
        "payload": draw(payloads),
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(fields_of_memories(), min_size=1, max_size=20))
def test_what_the_contract_allows_is_kept_as_it_was_given(
    shared_database: Database, many: Sequence[dict[str, Any]]
) -> None:
    tenant = new_tenant(shared_database)
    memories = [parse_memory({"tenant_id": tenant, "namespace": str(n), **f}) for n, f in enumerate(many)]
    with shared_database.as_tenants([tenant]) as connection:
        kept = remember_all(connection, memories)
    stored = rows(
        shared_database,
        "SELECT namespace, text, occurred_at, speaker, conversation_id, content_digest, payload "
        "FROM memories WHERE tenant_id = %s ORDER BY memory_id",
        tenant,
    )
    assert [row[:-1] for row in stored] == [
        (m.namespace, m.text, m.occurred_at, m.speaker, m.conversation_id, content_digest(m))
        for m in memories
    ]
    # Postgres keeps a number by its value, so that 1e22 comes back as an integer.
    assert [canonical_json(payload) for *_, payload in stored] == [
        canonical_json(m.payload) for m in memories
    ]
    assert not any(answer.repeated for answer in kept)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(0, 30))
def test_the_same_content_always_has_the_same_id(
    shared_database: Database, said: Sequence[str], cut: int
) -> None:
    tenant = new_tenant(shared_database)
    answers = []
    for part in (said[:cut], said[cut:]):
        with shared_database.as_tenants([tenant]) as connection:
            answers += remember_all(connection, [memory(tenant, text) for text in part])
    ids = [answer.memory_id for answer in answers]
    first = {text: said.index(text) for text in said}
    assert ids == [ids[first[text]] for text in said]
    assert len(set(ids)) == len(set(said))
    assert [answer.repeated for answer in answers] == [first[t] != place for place, t in enumerate(said)]


def test_the_digest_is_that_of_the_moment_and_not_of_its_spelling() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert content_digest(memory("ada")) == content_digest(memory("ada", occurred_at=east))


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "Hello"},
        {"namespace": "work"},
        {"conversation_id": "c"},
        {"speaker": "c"},
        {"occurred_at": NOON + timedelta(microseconds=1)},
    ],
)
def test_what_makes_a_memory_another_one(fields: dict[str, Any]) -> None:
    assert content_digest(memory("ada")) != content_digest(memory("ada", **fields))


def test_what_is_remembered_twice_at_once_is_kept_once(shared_database: Database, tenant: str) -> None:
    memories = [memory(tenant, f"message {number}") for number in range(5_000)]

    def remember(_: int) -> list[tuple[int, bool]]:
        with shared_database.as_tenants([tenant]) as connection:
            return [(kept.memory_id, kept.repeated) for kept in remember_all(connection, memories)]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(remember, range(3)))
    assert len({tuple(memory_id for memory_id, _ in answer) for answer in answers}) == 1
    assert all(sum(not repeated for _, repeated in at) == 1 for at in zip(*answers, strict=True))


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "not of the transaction"])
def test_a_stranger_is_remembered_nothing(shared_database: Database, tenant: str, known: bool) -> None:
    stranger = new_tenant(shared_database) if known else "nobody"
    with shared_database.as_tenants([tenant]) as connection:
        with pytest.raises(UnknownTenant, match=stranger):
            remember_all(connection, [memory(tenant), memory(stranger)])
        assert remember_all(connection, [memory(tenant)])[0].repeated is False


@pytest.fixture
def two(shared_database: Database, tenant: str) -> tuple[int, int]:
    """The ids of two memories of the tenant."""
    with shared_database.as_tenants([tenant]) as connection:
        one, other = remember_all(connection, [memory(tenant), memory(tenant, "Hey Tyler!")])
    return one.memory_id, other.memory_id


def link(tenant_id: str, source_id: int, target_id: int, **fields: Any) -> Link:
    return Link(tenant_id=tenant_id, source_id=source_id, target_id=target_id, occurred_at=NOON, **fields)


def test_a_link_is_new_once(shared_database: Database, tenant: str, two: tuple[int, int]) -> None:
    one, other = two
    there, back = link(tenant, one, other), link(tenant, other, one)
    reply = link(tenant, other, one, kind="reply", weight=0.5)
    with shared_database.as_tenants([tenant]) as connection:
        assert link_all(connection, [there, there]) == 1
        assert link_all(connection, [reply, there, back]) == 2
        assert link_all(connection, []) == 0
    stored = "SELECT source_id, target_id, kind, weight FROM memory_links WHERE tenant_id = %s ORDER BY 1, 3"
    assert rows(shared_database, stored, tenant) == [
        (one, other, "related", 1.0),
        (other, one, "related", 1.0),
        (other, one, "reply", 0.5),
    ]


def test_a_link_joins_two_memories_of_its_own_tenant(
    shared_database: Database, tenant: str, two: tuple[int, int]
) -> None:
    one, other = two
    stranger = new_tenant(shared_database)
    with shared_database.as_tenants([stranger]) as connection:
        theirs = remember_all(connection, [memory(stranger)])[0].memory_id
    good = link(tenant, one, other)
    with shared_database.as_tenants([tenant, stranger]) as connection:
        for bad, missing in [
            (link(tenant, one, 2**62), 2**62),
            (link(tenant, theirs, one), theirs),
            (link(stranger, theirs, one), one),
        ]:
            with pytest.raises(UnknownMemory, match=f"has no memory {missing}") as unknown:
                link_all(connection, [good, bad])
            assert (unknown.value.position, unknown.value.memory_id) == (1, missing)
    with (
        shared_database.as_tenants([stranger]) as connection,
        pytest.raises(UnknownMemory, match=f"{tenant}.*{one}"),
    ):
        link_all(connection, [good])
    assert count(shared_database, "SELECT count(*) FROM memory_links WHERE tenant_id = %s", tenant) == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_link_has_a_weight(
    shared_database: Database, tenant: str, two: tuple[int, int], weight: float
) -> None:
    with shared_database.as_tenants([tenant]) as connection, pytest.raises(InvalidLink, match="above 0"):
        link_all(connection, [link(tenant, *two, weight=weight)])


def test_no_memory_is_linked_to_itself(shared_database: Database, tenant: str, two: tuple[int, int]) -> None:
    with shared_database.as_tenants([tenant]) as connection, pytest.raises(InvalidLink, match="itself"):
        link_all(connection, [link(tenant, two[0], two[0])])


def test_tokens_are_recorded_at_every_use_or_once_a_session(shared_database: Database, tenant: str) -> None:
    used = TokenUsage(tenant_id=tenant, session_id="c1", tokens=7, tokenizer="words", occurred_at=NOON)
    other = msgspec.structs.replace(used, session_id="c2", tokens=5)

    def record_once(_: int) -> int:
        with shared_database.as_tenants([tenant]) as connection:
            return record_tokens_once(connection, [used, other])

    with shared_database.as_tenants([tenant]) as connection:
        assert record_tokens(connection, [used, used]) == 2
    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(record_once, range(3))) == [0, 0, 1]
    assert count(shared_database, "SELECT sum(tokens) FROM token_usage WHERE tenant_id = %s", tenant) == 19


# A person's own lines


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines, given as objects or as bytes, to a file."""

    def write_lines(*lines: Any, name: str = "lines.jsonl", end: bytes = b"\n") -> Path:
        path = tmp_path / name
        path.write_bytes(
            b"".join((at if isinstance(at, bytes) else json.dumps(at).encode()) + end for at in lines)
        )
        return path

    return write_lines


@pytest.fixture
def rejects(tmp_path: Path) -> Path:
    return tmp_path / "rejects.jsonl"


def read_rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def line(tenant_id: str, text: str = "Hello!", **fields: Any) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "text": text, "occurred_at": "2018-05-02T12:00:00Z", **fields}


def said(tenant_id: str, utility: float = 0.5, **fields: Any) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "session_id": "c1", "utility": utility, **fields}


def as_lines(tenant: str, sessions: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """Conversations of the data as a person would write them into a file."""
    for held in sessions:
        answered = dict(held.replies())
        for place, message in enumerate(held.messages):
            row = {
                "tenant_id": tenant,
                "id": f"{held.conversation_id}/{place}",
                "text": message.text,
                "speaker": message.speaker,
                "occurred_at": message.occurred_at.isoformat(),
                "conversation_id": held.conversation_id,
            }
            if place in answered:
                row["reply_to"] = f"{held.conversation_id}/{answered[place]}"
            yield row


def test_a_file_of_the_same_conversations_gives_the_same_memories_and_links(
    shared_database: Database,
    brain: Database,
    finished: ImportSummary,
    chitchat: ChitChat,
    write: Write,
    rejects: Path,
) -> None:
    tenant = chitchat.tenants[-1]
    lines = list(as_lines(tenant, [held for key, held in chitchat.sessions if key == tenant]))
    assert len(lines) > BATCH_LINES
    path = write(*lines)

    def stop(what: str, done: int, total: int | None) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        import_memories(shared_database, CONFIGURATION, path, rejects, stop, create_tenants=True)
    assert count(shared_database, "SELECT count(*) FROM memories WHERE tenant_id = %s", tenant) > 0
    assert count(shared_database, "SELECT count(*) FROM memory_links WHERE tenant_id = %s", tenant) == 0

    told: list[tuple[str, int, int | None]] = []
    summary = import_memories(
        shared_database, CONFIGURATION, path, rejects, lambda *progress: told.append(progress)
    )
    assert told[-1][0] == LINKS
    assert [told_of for told_of in told if told_of[0] == MEMORIES][-1][1:] == (path.stat().st_size,) * 2
    assert summary.rejects is None
    assert not rejects.exists()
    memories = "SELECT content_digest FROM memories WHERE tenant_id = %s ORDER BY 1"
    links = """
        SELECT s.content_digest, t.content_digest, l.kind, l.weight, l.occurred_at
        FROM memory_links l
        JOIN memories s ON (s.tenant_id, s.memory_id) = (l.tenant_id, l.source_id)
        JOIN memories t ON (t.tenant_id, t.memory_id) = (l.tenant_id, l.target_id)
        WHERE l.tenant_id = %s ORDER BY 1, 2
    """
    for query in (memories, links):
        assert rows(shared_database, query, tenant) == rows(brain, query, tenant)


def test_bad_lines_are_named_and_the_others_kept(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    too_long = json.dumps(line(tenant, "x" * LONGEST_LINE)).encode()
    path = write(
        line(tenant, "one"),
        b"not json",
        b"",
        line(tenant, " "),
        json.dumps(line(tenant, "two")).encode().replace(b"two", b"\xff\xfe"),
        line("nobody"),
        too_long,
        line(tenant, "three", mood="good"),
        line(tenant, "four"),
    )
    summary = import_memories(shared_database, CONFIGURATION, path, rejects)
    assert summary.tallies[MEMORIES].landed == 2
    assert summary.rejects == rejects
    assert summary.tallies[MEMORIES].refused == {
        "invalid": 3,
        "not_utf8": 1,
        "unknown_tenant": 1,
        "too_long": 1,
    }
    by_line = {reject["line"]: reject for reject in read_rejects(rejects)}
    expected = {
        2: ("invalid", "malformed"),
        4: ("invalid", "`text` is blank"),
        5: ("not_utf8", "save the file as UTF-8"),
        6: ("unknown_tenant", "nobody"),
        7: ("too_long", "1,048,576"),
        8: ("invalid", "mood"),
    }
    assert {number: reject["code"] for number, reject in by_line.items()} == {
        number: code for number, (code, _) in expected.items()
    }
    for number, (_, reason) in expected.items():
        assert reason in by_line[number]["reason"]
    original = path.read_bytes().split(b"\n")
    for number in (2, 4, 6, 8):
        assert by_line[number]["text"] == original[number - 1].decode()
    assert "\\xff\\xfe" in by_line[5]["text"]
    assert by_line[7]["text"] == too_long[:1000].decode()
    assert rows(shared_database, "SELECT text FROM memories WHERE tenant_id = %s ORDER BY 1", tenant) == [
        ("four",),
        ("one",),
    ]
    assert "6 left out" in str(summary)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_line_may_have_so_many_bytes_and_not_one_more(write: Write, extra: int) -> None:
    path = write(b"x" * (LONGEST_LINE + extra), b"next")
    with path.open("rb") as file:
        first, second = read_lines(file)
    assert first.too_long == bool(extra)
    assert (second.number, second.content, second.end) == (2, b"next", path.stat().st_size)


def test_a_line_of_50_megabytes_is_never_held_in_memory(write: Write) -> None:
    path = write(b"x" * 50_000_000, b"next")
    tracemalloc.start()
    with path.open("rb") as file:
        lines = list(read_lines(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(at.number, at.length) for at in lines] == [(1, 50_000_001), (2, 4)]
    assert peak < 5 * LONGEST_LINE


def test_an_empty_file_is_an_import_of_nothing(
    shared_database: Database, write: Write, rejects: Path
) -> None:
    for importing in (import_memories, import_feedback):
        summary = importing(shared_database, CONFIGURATION, write(), rejects)
        assert all(tally.landed == tally.refused.total() == 0 for tally in summary.tallies.values())
        assert not rejects.exists()


def test_what_cannot_be_read_or_written_is_said_before_anything_is_done(
    shared_database: Database, tenant: str, tmp_path: Path, write: Write, rejects: Path
) -> None:
    path = write(line(tenant))
    for lines, refused, reason in [
        (tmp_path / "missing", rejects, "No such file"),
        (tmp_path, rejects, "Is a directory"),
        (path, tmp_path / "missing" / "rejects", "name another file"),
        (path, path, "name another one for the rejects"),
    ]:
        for importing in (import_memories, import_feedback):
            with pytest.raises(CannotImport, match=reason):
                importing(shared_database, CONFIGURATION, lines, refused)
    assert path.read_bytes()
    assert count(shared_database, "SELECT count(*) FROM memories WHERE tenant_id = %s", tenant) == 0


def test_marks_and_line_breaks_of_other_systems_are_read(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    path = write(b"\xef\xbb\xbf" + json.dumps(line(tenant, "one")).encode(), line(tenant, "two"), end=b"\r\n")
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
    assert import_memories(shared_database, CONFIGURATION, path, rejects).tallies[MEMORIES].landed == 2


def test_unknown_tenants_are_created_if_so_wanted(
    shared_database: Database, write: Write, rejects: Path
) -> None:
    first, second = (f"import-{uuid4().hex[:12]}" for _ in range(2))
    memories = import_memories(
        shared_database, CONFIGURATION, write(line(first), line(first, "two")), rejects, create_tenants=True
    )
    feedback = import_feedback(
        shared_database, CONFIGURATION, write(said(first), said(second)), rejects, create_tenants=True
    )
    assert (memories.tenants_created, feedback.tenants_created) == (1, 1)
    assert (memories.tallies[MEMORIES].landed, feedback.tallies[FEEDBACK].landed) == (2, 2)


def test_links_lead_to_lines_before_and_after(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    later = "2018-05-02T13:00:00+00:00"
    path = write(
        line(tenant, "one", id="m1", links=[{"to": "m2", "kind": "cause", "weight": 2.5}]),
        line(tenant, "two", id="m2", reply_to="m1", occurred_at=later),
        line(tenant, "three", reply_to="m9", links=[{"to": "m1"}]),
        line(tenant, "four", id="m4", reply_to="m4"),
        line(tenant, "five", id="m1"),
        line(tenant, "one", id="m1"),
    )
    summary = import_memories(shared_database, CONFIGURATION, path, rejects)
    assert summary.tallies[MEMORIES].refused == {"id_taken": 1}
    assert summary.tallies[LINKS].refused == {"unknown_id": 1, "self_link": 1}
    assert [(reject["line"], reject["code"]) for reject in read_rejects(rejects)] == [
        (5, "id_taken"),
        (3, "unknown_id"),
        (4, "self_link"),
    ]
    assert "line 1" in read_rejects(rejects)[0]["reason"]
    assert read_rejects(rejects)[1]["text"] == path.read_text().splitlines()[2]
    linked = rows(
        shared_database,
        """
        SELECT s.text, t.text, l.kind, l.weight, l.occurred_at FROM memory_links l
        JOIN memories s ON (s.tenant_id, s.memory_id) = (l.tenant_id, l.source_id)
        JOIN memories t ON (t.tenant_id, t.memory_id) = (l.tenant_id, l.target_id)
        WHERE l.tenant_id = %s ORDER BY l.source_id
        """,
        tenant,
    )
    assert linked == [
        ("one", "two", "cause", 2.5, NOON + timedelta(hours=1)),
        ("two", "one", "reply", 1.0, NOON + timedelta(hours=1)),
        ("three", "one", "related", 1.0, NOON),
    ]


def test_an_id_is_a_tenants_own(shared_database: Database, tenant: str, write: Write, rejects: Path) -> None:
    other = new_tenant(shared_database)
    path = write(line(tenant, id="m1"), line(other, "two", id="m1"), line(other, "three", reply_to="m1"))
    summary = import_memories(shared_database, CONFIGURATION, path, rejects)
    assert (summary.refused, summary.tallies[LINKS].landed) == (0, 1)
    assert count(shared_database, "SELECT count(*) FROM memory_links WHERE tenant_id = %s", other) == 1


def test_a_file_of_feedback_lands_once_and_equal_lines_of_it_are_events_of_their_own(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    lines = [said(tenant), said(tenant, 0.25), said(tenant), said(tenant, 1, idempotency_key="mine")]
    path = write(*lines)
    landed = [
        (tally.landed, tally.repeated)
        for tally in (
            import_feedback(shared_database, CONFIGURATION, path, rejects).tallies[FEEDBACK],
            import_feedback(shared_database, CONFIGURATION, path, rejects).tallies[FEEDBACK],
            import_feedback(shared_database, CONFIGURATION, write(*lines, said(tenant)), rejects).tallies[
                FEEDBACK
            ],
        )
    ]
    assert landed == [(4, 0), (0, 4), (1, 4)]
    keys = [
        key
        for (key,) in rows(
            shared_database, "SELECT key FROM idempotency_keys WHERE tenant_id = %s ORDER BY seq", tenant
        )
    ]
    assert keys[3] == "mine"
    numbered = [re.findall(r"\Aimport:[0-9a-f]{64}:(\d)\Z", key) for key in keys]
    assert numbered == [["1"], ["1"], ["2"], [], ["3"]]
    assert rows(
        shared_database, "SELECT utility FROM feedback_events WHERE tenant_id = %s ORDER BY seq", tenant
    ) == [(0.5,), (0.25,), (0.5,), (1.0,), (0.5,)]


def test_bad_feedback_is_named_and_the_rest_landed(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    path = write(
        said(tenant, 0.1, occurred_at="2018-05-02T12:00:00Z"),
        said(tenant, 1.1),
        said("nobody"),
        said(tenant, recall_id=2**62, helpful=[{"memory": 1}]),
        b"\xff",
        b"[" * 200_000,
        b'{"metadata": ' + b'{"a": ' * 900 + b"1" + b"}" * 901,
        said(tenant, 0.2, idempotency_key="k"),
        said(tenant, 0.3, idempotency_key="k"),
        said(tenant, 0.4, occurred_at="2018-05-03T12:00:00Z"),
    )
    summary = import_feedback(shared_database, CONFIGURATION, path, rejects)
    assert summary.tallies[FEEDBACK].landed == 3
    assert {reject["line"]: reject["code"] for reject in read_rejects(rejects)} == {
        2: "invalid",
        3: "unknown_tenant",
        4: "unknown_recall",
        5: "not_utf8",
        6: "invalid",
        7: "invalid",
        9: "key_reused",
    }
    assert (summary.first, summary.last) == (NOON, NOON + timedelta(days=1))


def test_feedback_is_learned_from_in_the_order_of_the_lines(
    shared_database: Database, tenant: str, write: Write, rejects: Path
) -> None:
    utilities = [((number * 37) % 201 - 100) / 100 for number in range(BATCH_LINES + 500)]
    path = write(*(said(tenant, value) for value in utilities))

    def stop(what: str, done: int, total: int | None) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        import_feedback(shared_database, CONFIGURATION, path, rejects, stop)
    tally = import_feedback(shared_database, CONFIGURATION, path, rejects).tallies[FEEDBACK]
    assert (tally.landed, tally.repeated) == (500, BATCH_LINES)
    landed = rows(
        shared_database, "SELECT utility FROM feedback_events WHERE tenant_id = %s ORDER BY seq", tenant
    )
    assert [value for (value,) in landed] == utilities
