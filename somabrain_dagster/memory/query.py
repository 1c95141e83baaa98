"""What a recall is asked: its fields, their limits, and errors that name the field and what it must be."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from somabrain_dagster.store.feedback_contract import TENANT_PATTERN

LARGEST_QUESTION = 8 * 1024
"""Bytes of UTF-8."""

LARGEST_K = 100
"""Hits of one recall."""

LARGEST_AUGMENTATION = 100
"""Memories that links alone may bring in."""

Mode = Literal["rank", "sample"]

_TEXT = r"^[^\x00\ud800-\udfff]*\Z"
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=_TEXT)]
_Name = Annotated[str, msgspec.Meta(max_length=200, pattern=_TEXT)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class InvalidQuery(ValueError):
    """A recall that cannot be made as it is asked; the message names the field and what it must be."""


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A question to a tenant's memory.

    Attributes:
        tenant_id: whose memory is asked.
        text: the question: not blank, at most 8 KiB of UTF-8.
        k: how many memories to return at most, 1 to 100.
        asker: who asks, as memories name their speakers; without it nothing tells own words from others'.
        session_id: the session in which it is asked.
        as_of: only memories and links strictly earlier exist, and ages are measured from it; the time of the
            recall where none is given.
        namespaces: only memories of these.
        since: only memories of this time or later.
        mode: `rank` returns the best in order, `sample` draws without replacement from the policy.
        graph_augment_max_additions: how many memories links alone may bring in; the setting's where none.
        embedding: the question's own vector, by the tenant's model; else the question is embedded here.
    """

    tenant_id: Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN.removesuffix("$") + r"\Z")]
    text: str
    k: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_K)] = 10
    asker: _Word | None = None
    session_id: _Word | None = None
    as_of: _Time | None = None
    namespaces: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=100)] | None = None
    since: _Time | None = None
    mode: Mode = "rank"
    graph_augment_max_additions: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_AUGMENTATION)] | None = None
    embedding: tuple[float, ...] | None = None


def parse_query(row: bytes | str | Mapping[str, Any]) -> Query:
    """Read a question from JSON text or from a mapping.

    Raises:
        InvalidQuery: it is not JSON, a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        query = (
            msgspec.json.decode(row, type=Query)
            if isinstance(row, bytes | str)
            else msgspec.convert(row, type=Query)
        )
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidQuery(str(error)) from error
    check_text(query)
    return query


def check_query(query: Query) -> None:
    """Check a question that was made in Python, where nothing has checked its fields yet.

    Raises:
        InvalidQuery: as for `parse_query`.
    """
    try:
        msgspec.convert({name: getattr(query, name) for name in query.__struct_fields__}, type=Query)
    except msgspec.ValidationError as error:
        raise InvalidQuery(str(error)) from error
    check_text(query)


def check_text(query: Query) -> None:
    """Check what the field types alone cannot say.

    Raises:
        InvalidQuery: the question is blank, too long or cannot be stored, or a time is out of range.
    """
    text = query.text
    if not text or text.isspace():
        raise InvalidQuery("`text` is blank: ask something")
    if "\0" in text:
        raise InvalidQuery("`text` has a NUL character, which cannot be stored")
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidQuery(f"`text` is not Unicode: {error}") from error
    if length > LARGEST_QUESTION:
        raise InvalidQuery(
            f"`text` has {length} bytes of UTF-8, at most {LARGEST_QUESTION} are read: ask shorter"
        )
    for name in ("as_of", "since"):
        moment = getattr(query, name)
        # A year of each end of the calendar is left out: its last hours have no date in another time zone.
        if moment is not None and not 1 < moment.year < 9999:
            raise InvalidQuery(f"`{name}` must be in the years 2 to 9998, not {moment}")
