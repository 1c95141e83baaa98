"""What a feedback says: its fields, their limits, and errors that name the field and what it must be."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from somabrain_dagster.store import plain_json
from somabrain_dagster.store.canonical import digest

TENANT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)"
LARGEST_METADATA = 16 * 1024
"""Bytes of JSON."""

# Postgres stores no NUL in text, and UTF-8 has no lone surrogates.
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern="^[^\\x00\\ud800-\\udfff]*$")]
_Unit = Annotated[float, msgspec.Meta(ge=-1, le=1)]
_Identifier = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class InvalidFeedback(ValueError):
    """A feedback that cannot be landed as it is; the message names the field and what it must be."""


class Helpful(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A memory that helped, or with a negative credit one that misled.

    Attributes:
        memory: the id of a candidate of the recall.
        credit: in [−1, 1].
    """

    memory: _Identifier
    credit: _Unit = 1.0


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a person or a program says of what was recalled.

    Attributes:
        tenant_id: whose memory it was.
        session_id: the session in which it happened.
        utility: how useful it was, in [−1, 1].
        reward: what it was worth, in [−1, 1]; the utility where none is given.
        recall_id: the recall that it is about.
        helpful: the recall's memories that helped.
        label: `full` where any memory could have been named, `bandit` where only what was shown could.
        source: who or what says so.
        occurred_at: when it happened, with a time zone; the time of landing where none is given.
        arm: the experiment arm that the session saw.
        metadata: anything else, up to 16 KiB of JSON.
        idempotency_key: makes a retry safe: the same key gives the same answer and lands once.
    """

    tenant_id: Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN)]
    session_id: _Word
    utility: _Unit
    reward: _Unit | None = None
    recall_id: _Identifier | None = None
    helpful: Annotated[tuple[Helpful, ...], msgspec.Meta(min_length=1, max_length=1000)] | None = None
    label: Literal["full", "bandit"] | None = None
    source: _Word = "api"
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    arm: _Word | None = None
    metadata: dict[str, Any] = {}
    idempotency_key: _Word | None = None

    @property
    def effective_reward(self) -> float:
        """The reward, or the utility where none is given."""
        return self.utility if self.reward is None else self.reward

    def digest(self) -> bytes:
        """SHA-256 of what is said, without the key under which it is said."""
        body = msgspec.to_builtins(self)
        body.pop("idempotency_key", None)
        return digest(body)


def parse_feedback(row: bytes | str | Mapping[str, Any]) -> Feedback:
    """Read a feedback from JSON text or from a mapping.

    Raises:
        InvalidFeedback: it is not JSON, a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        feedback = (
            msgspec.json.decode(row, type=Feedback)
            if isinstance(row, bytes | str)
            else msgspec.convert(row, type=Feedback)
        )
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeError) as error:
        raise InvalidFeedback(str(error)) from error
    except RecursionError as error:
        raise InvalidFeedback(f"`metadata` must have at most {plain_json.DEEPEST} levels") from error
    check(feedback)
    return feedback


def check(feedback: Feedback) -> None:
    """Check what the field types alone cannot say.

    Raises:
        InvalidFeedback: fields contradict one another, or the metadata cannot be stored.
    """
    if feedback.helpful is not None and feedback.recall_id is None:
        raise InvalidFeedback("`helpful` names memories of a recall: give its `recall_id` too")
    if feedback.helpful is not None and len({entry.memory for entry in feedback.helpful}) < len(
        feedback.helpful
    ):
        raise InvalidFeedback("`helpful` names a memory twice: give each memory once, with its credit")
    # A year of each end of the calendar is left out: its last hours have no date in another time zone.
    if feedback.occurred_at is not None and not 1 < feedback.occurred_at.year < 9999:
        raise InvalidFeedback(f"`occurred_at` must be in the years 2 to 9998, not {feedback.occurred_at}")
    if feedback.metadata:
        reason = plain_json.why_not(feedback.metadata, LARGEST_METADATA)
        if reason is not None:
            raise InvalidFeedback(f"`metadata` {reason}")
