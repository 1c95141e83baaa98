"""What a feedback may say, and what is answered to one that cannot be."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.store.feedback_contract import (
    LARGEST_METADATA,
    Feedback,
    InvalidFeedback,
    parse_feedback,
)
from somabrain_dagster.store.plain_json import DEEPEST

LEAST = {"tenant_id": "alice", "session_id": "session-1", "utility": 0.5}
EVERYTHING = {
    **LEAST,
    "reward": -0.25,
    "recall_id": 7,
    "helpful": [{"memory": 3}, {"memory": 4, "credit": -0.5}],
    "label": "full",
    "source": "rater",
    "occurred_at": "2018-04-01T14:00:00.000001+02:00",
    "arm": "control",
    "metadata": {"witty": 5, "said": ["ha", None]},
    "idempotency_key": "once",
}

Read = Callable[[dict[str, Any]], Feedback]


def from_json(row: dict[str, Any]) -> Feedback:
    return parse_feedback(json.dumps(row))


@pytest.mark.parametrize("read", [parse_feedback, from_json])
def test_a_mapping_and_its_json_read_alike(read: Read) -> None:
    feedback = read(EVERYTHING)
    assert feedback.utility == 0.5
    assert feedback.occurred_at == datetime(2018, 4, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert feedback.helpful is not None
    assert [(entry.memory, entry.credit) for entry in feedback.helpful] == [(3, 1.0), (4, -0.5)]
    assert feedback.metadata == EVERYTHING["metadata"]
    assert feedback == parse_feedback(EVERYTHING)


def test_the_reward_is_the_utility_where_none_is_given() -> None:
    assert parse_feedback(LEAST).effective_reward == 0.5
    assert parse_feedback({**LEAST, "reward": 0.0}).effective_reward == 0.0


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        ({"utility": 1.0000001}, "utility", "<= 1.0"),
        ({"utility": -1.5}, "utility", ">= -1.0"),
        ({"reward": 2}, "reward", "<= 1.0"),
        ({"utility": "0.5"}, "utility", "Expected `float`, got `str`"),
        ({"utility": True}, "utility", "Expected `float`, got `bool`"),
        ({"utility": None}, "utility", "Expected `float`, got `null`"),
        ({"tenant_id": "Alice"}, "tenant_id", "matching regex"),
        ({"tenant_id": "alice,bob"}, "tenant_id", "matching regex"),
        ({"tenant_id": "_system"}, "tenant_id", "matching regex"),
        ({"tenant_id": "a" * 64}, "tenant_id", "matching regex"),
        ({"session_id": ""}, "session_id", "length >= 1"),
        ({"session_id": "s" * 201}, "session_id", "length <= 200"),
        ({"session_id": "a\0b"}, "session_id", "matching regex"),
        ({"source": "\0"}, "source", "matching regex"),
        ({"idempotency_key": ""}, "idempotency_key", "length >= 1"),
        ({"idempotency_key": "\0"}, "idempotency_key", "matching regex"),
        ({"arm": "\n\0"}, "arm", "matching regex"),
        ({"recall_id": 0}, "recall_id", ">= 1"),
        ({"recall_id": 2**63}, "recall_id", "9223372036854775807"),
        ({"recall_id": 1.5}, "recall_id", "Expected `int"),
        ({"helpful": []}, "helpful", "length >= 1"),
        ({"helpful": [{"memory": 1, "credit": 1.1}]}, "credit", "<= 1.0"),
        ({"helpful": [{"memory": 1, "weight": 1}]}, "helpful", "unknown field `weight`"),
        ({"helpful": [{"memory": -1}]}, "memory", ">= 1"),
        ({"helpful": [{"memory": 1}, {"memory": 1}]}, "helpful", "twice"),
        ({"recall_id": None}, "helpful", "`recall_id`"),
        ({"label": "certain"}, "label", "Invalid enum value 'certain'"),
        ({"occurred_at": "2018-04-01T12:00:00"}, "occurred_at", "timezone"),
        ({"occurred_at": "yesterday"}, "occurred_at", "RFC3339"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "occurred_at", "the years 2 to 9998"),
        ({"occurred_at": "9999-12-31T23:59:59-12:00"}, "occurred_at", "the years 2 to 9998"),
        ({"metadata": ["witty"]}, "metadata", "Expected `object`, got `array`"),
        ({"metadata": {"x": "a\0"}}, "metadata", "NUL"),
        ({"metadata": {"\0": 1}}, "metadata", "NUL"),
        ({"metadata": {"x": "\\\0"}}, "metadata", "NUL"),
        ({"metadata": {"x": "é" * LARGEST_METADATA}}, "metadata", str(LARGEST_METADATA)),
        ({"colour": "red"}, "colour", "unknown field"),
    ],
)
@pytest.mark.parametrize("read", [parse_feedback, from_json])
def test_an_error_names_the_field_and_what_it_must_be(
    read: Read, wrong: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidFeedback) as error:
        read({**EVERYTHING, **wrong})
    assert field in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", LEAST)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(InvalidFeedback, match=f"missing required field `{name}`"):
        parse_feedback({field: value for field, value in LEAST.items() if field != name})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["utility", "reward"])
def test_what_is_not_a_number_is_out_of_range(name: str, number: float) -> None:
    with pytest.raises(InvalidFeedback, match=rf"`float` [<>]= -?1\.0 - at `\$\.{name}`"):
        parse_feedback({**LEAST, name: number})


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "1e999", "0.5, 'x'", '{"metadata": {"x": 1e999}}', '{"utility": NaN}', "", "{"],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidFeedback):
        parse_feedback(text)


@pytest.mark.parametrize("name", ["tenant_id", "session_id", "source", "arm", "idempotency_key"])
def test_a_lone_surrogate_is_refused_wherever_it_is(name: str) -> None:
    row = {**EVERYTHING, name: "a\ud800"}
    with pytest.raises(InvalidFeedback, match=name):
        parse_feedback(row)
    with pytest.raises(InvalidFeedback):
        parse_feedback(json.dumps(row))
    with pytest.raises(InvalidFeedback):
        parse_feedback(json.dumps(row, ensure_ascii=False))


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        {1, 2},
        (1, 2),
        b"bytes",
        Decimal("0.1"),
        datetime(2018, 4, 1, tzinfo=UTC),
        object(),
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_metadata_that_would_come_back_as_something_else_is_refused(value: object) -> None:
    with pytest.raises(InvalidFeedback, match="`metadata` must be JSON"):
        parse_feedback({**LEAST, "metadata": {"x": [value]}})


@pytest.mark.parametrize("read", [parse_feedback, from_json])
@pytest.mark.parametrize("value", ["\\u0000", "\\\\u0000", "\\", "\u2028", "\U0001f9e0", "\uffff"])
def test_text_that_only_looks_like_trouble_is_kept(read: Read, value: str) -> None:
    assert read({**LEAST, "metadata": {"x": value}}).metadata == {"x": value}


def nested(levels: int) -> dict[str, Any]:
    """An object with so many levels of objects and arrays, itself included."""
    inner: Any = 1
    for level in range(levels - 1):
        inner = [inner] if level % 2 else {"x": inner}
    return {"x": inner}


@pytest.mark.parametrize("read", [parse_feedback, from_json])
def test_metadata_has_so_many_levels_and_no_more(read: Read) -> None:
    assert read({**LEAST, "metadata": nested(DEEPEST)}).metadata == nested(DEEPEST)
    with pytest.raises(InvalidFeedback, match=f"`metadata` must have at most {DEEPEST} levels"):
        read({**LEAST, "metadata": nested(DEEPEST + 1)})


def test_json_nested_beyond_all_recursion_is_refused_too() -> None:
    text = json.dumps(LEAST)[:-1] + ', "metadata": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}"
    with pytest.raises(InvalidFeedback, match="levels"):
        parse_feedback(text)


def test_metadata_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    with pytest.raises(InvalidFeedback, match="levels"):
        parse_feedback({**LEAST, "metadata": endless})


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused(text: bytes | str) -> None:
    with pytest.raises(InvalidFeedback):
        parse_feedback(text)


@given(
    st.dictionaries(st.sampled_from(sorted(EVERYTHING)), st.none() | st.integers() | st.floats() | st.text())
)
def test_any_mapping_is_read_or_refused(wrong: dict[str, Any]) -> None:
    try:
        feedback = parse_feedback({**EVERYTHING, **wrong})
    except InvalidFeedback:
        return
    assert parse_feedback(msgspec.to_builtins(feedback)) == feedback


def test_the_same_words_have_the_same_digest_under_any_key() -> None:
    said = parse_feedback(EVERYTHING)
    assert parse_feedback({**EVERYTHING, "idempotency_key": "another"}).digest() == said.digest()
    assert parse_feedback({**LEAST, "source": "api"}).digest() == parse_feedback(LEAST).digest()
    assert (
        parse_feedback({**LEAST, "utility": 1}).digest() == parse_feedback({**LEAST, "utility": 1.0}).digest()
    )


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "idempotency_key"])
def test_other_words_have_another_digest(name: str) -> None:
    other = {
        "tenant_id": "bob",
        "session_id": "session-2",
        "utility": 0.25,
        "reward": None,
        "recall_id": 8,
        "helpful": [{"memory": 4, "credit": -0.5}, {"memory": 3}],
        "label": None,
        "source": "api",
        "occurred_at": None,
        "arm": "variant",
        "metadata": {"witty": 5, "said": ["ha"]},
    }
    said = parse_feedback(EVERYTHING)
    assert parse_feedback({**EVERYTHING, name: other[name]}).digest() != said.digest()


def test_a_time_zone_is_any_that_a_datetime_has() -> None:
    odd = datetime(2018, 4, 1, 12, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    assert parse_feedback({**LEAST, "occurred_at": odd}).occurred_at == odd
