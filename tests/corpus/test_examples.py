"""What a record may hold, and what becomes of it."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.corpus.examples import (
    Drawn,
    Example,
    NoExample,
    Record,
    Spoken,
    Turn,
    assemble,
    read_record,
)
from somabrain_dagster.corpus.stages import Normalise

ASKED = {"role": "user", "content": "Where?"}
SAID = {"role": "assistant", "content": "Here."}


FIELDS = st.sampled_from(
    [*Record.__struct_fields__, "role", "content", "from", "value", "kind", "target_id", "x"]
)


def read(record: Any) -> Drawn | Spoken:
    return read_record(json.dumps(record).encode(), 7)


def turns_of(record: Any) -> list[tuple[str, str]]:
    drawn = read(record)
    assert isinstance(drawn, Drawn)
    return [(turn.role, turn.content) for turn in drawn.turns]


QUESTION_AND_ANSWER = [("user", "Where?"), ("assistant", "Here.")]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Where?", "response": "Here."},
        {"prompt": "Where?", "completion": "Here."},
        {"payload": {"prompt": "Where?", "response": "Here."}, "text": "anything"},
        {"messages": [ASKED, SAID]},
        {"payload": {"messages": [ASKED, SAID]}},
        {"conversation": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
        [ASKED, SAID],
    ],
)
def test_an_example_by_itself(record: Any) -> None:
    assert turns_of(record) == QUESTION_AND_ANSWER


@pytest.mark.parametrize(
    "history",
    [
        [["Who?", "I."]],
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
    ],
)
def test_history_comes_before(history: Any) -> None:
    record = {"prompt": "Where?", "response": "Here.", "history": history}
    assert turns_of(record) == [("user", "Who?"), ("assistant", "I."), *QUESTION_AND_ANSWER]


def test_a_preference_has_what_was_rejected_last() -> None:
    record = {"prompt": "Where?", "chosen": "Here.", "rejected": "There."}
    assert turns_of(record) == [*QUESTION_AND_ANSWER, ("rejected", "There.")]


def test_whose_it_is() -> None:
    drawn = read(
        {"prompt": "Where?", "response": "Here.", "tenant_id": "ada", "memory_id": 3, "reward": -0.5}
    )
    assert isinstance(drawn, Drawn)
    assert (drawn.tenant, drawn.session, drawn.memory_ids, drawn.reward) == ("ada", "memory 3", (3,), -0.5)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({}, "no prompt and response"),
        ({"prompt": "Where?"}, "must both be text"),
        ({"prompt": 1, "response": "Here."}, "must both be text"),
        ({"messages": "Where?"}, "must be a list"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "one of system, user and assistant"),
        ({"prompt": "a", "response": "b", "history": [["a"]]}, "a pair of texts"),
        ({"prompt": "a", "response": "b", "reward": 3}, "from -1 to 1"),
        ({"prompt": "a", "response": "b", "tenant_id": []}, "must be text"),
        (3, "not a record"),
    ],
)
def test_what_cannot_be_an_example_says_why(record: Any, why: str) -> None:
    with pytest.raises(NoExample, match=why):
        read(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(FIELDS, JSON, max_size=6) | st.lists(JSON, max_size=3))
def test_any_json_is_a_record_or_says_why_not(record: Any) -> None:
    with suppress(NoExample):
        found = read(record)
        if isinstance(found, Spoken):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Spoken) == found


def test_half_a_character_is_refused() -> None:
    with pytest.raises(NoExample, match="not a record"):
        read_record(b'{"prompt": "\\ud800", "response": "x"}', 1)


def spoken(speaker: str, text: str, **fields: Any) -> Spoken:
    record = {"tenant_id": "ada", "conversation_id": "c", "speaker": speaker, "text": text, **fields}
    found = read(record)
    assert isinstance(found, Spoken)
    return found


def test_what_the_tenant_said_is_the_assistants() -> None:
    ((turns, _),) = assemble([spoken("bob", "Where?"), spoken("ada", "Here."), spoken("eve", "No!")])
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]


def test_a_role_that_is_given_holds() -> None:
    ((turns, _),) = assemble(
        [spoken("bob", "x", role="system"), spoken("user", "y"), spoken("assistant", "z")]
    )
    assert [turn.role for turn in turns] == ["system", "user", "assistant"]


def test_of_two_strangers_the_second_answers() -> None:
    ((turns, _),) = assemble([spoken("bob", "Where?"), spoken("eve", "Here.")])
    assert [turn.role for turn in turns] == ["user", "assistant"]


def test_of_three_strangers_nobody_knows() -> None:
    with pytest.raises(NoExample, match="3 speakers, none of them the tenant"):
        assemble([spoken(speaker, "x") for speaker in ("bob", "eve", "mal")])


def test_memories_of_no_conversation_are_pairs_by_their_links() -> None:
    alone: dict[str, Any] = {"conversation_id": None}
    asked = spoken("bob", "Where?", memory_id=1, **alone)
    said = spoken("ada", "Here.", memory_id=2, links=[{"kind": "reply", "target_id": 1}], **alone)
    ((turns, made_of),) = assemble([asked, said])
    assert [(turn.role, turn.content) for turn in turns] == QUESTION_AND_ANSWER
    assert [one.memory_id for one in made_of] == [1, 2]
    with pytest.raises(NoExample, match="neither a reply"):
        assemble([asked])


def normalised(*turns: tuple[Any, str]) -> list[tuple[str, str]] | str:
    (judged,) = Normalise().judge([Example(tuple(Turn(role, content) for role, content in turns))])
    return judged if isinstance(judged, str) else [(turn.role, turn.content) for turn in judged.turns]


def test_turns_of_one_speaker_are_joined_and_the_ends_are_cut() -> None:
    assert normalised(
        ("assistant", "Hello?"),
        ("user", " Where\r\nis it? "),
        ("user", "\u200bTell me.\x00"),
        ("assistant", "He\u0301re."),
        ("user", "Thanks"),
    ) == [("user", "Where\nis it?\nTell me."), ("assistant", "Hére.")]


def test_what_has_no_answered_question_is_left_out() -> None:
    for turns in (
        [("user", "Where?")],
        [("assistant", "Here.")],
        [("user", "Where?"), ("assistant", " ")],
        [],
    ):
        assert normalised(*turns) == "no turn of the user that the assistant answers"


def test_normalising_again_changes_nothing() -> None:
    once = normalised(("system", "s"), ("user", "a\n\n\n\nb\t"), ("assistant", "c  d"))
    assert isinstance(once, list)
    assert normalised(*once) == once
