"""Examples: what a model is to learn from, made of real records and of nothing else.

A record is one line of JSON. It holds an example by itself, as

- `prompt` and `response`, with `history` before them: pairs of texts, or messages;
- `messages`, or `conversation`: objects with `role` and `content`; a bare array of them will do;
- `prompt`, `chosen` and `rejected`: an answer that was preferred to another;

each at the top or in its `payload`; or it is a memory, as the service exports it, and becomes a turn of its
conversation. What the tenant said itself is the assistant's, what others said is the user's.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeGuard

import msgspec

Role = Literal["system", "user", "assistant", "rejected"]
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
}

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

Scalar = str | int | float | None


class Turn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who says what; `rejected` is what the assistant should not have said in place of the turn before."""

    role: Role
    content: str


class Example(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A conversation of at least one question and its answer, and where it comes from.

    Attributes:
        turns: perhaps one of the system, then user and assistant in turn, the assistant last; behind it what
            was rejected, if this is a preference.
        tenant, session: pseudonyms; empty where the record names none.
        split: of its session.
        line: of the record, or of the first record of its conversation, from 1.
        memories: pseudonyms of the memories that it is made of.
        reward: the mean of what was said of its session, in [−1, 1]; None where nothing was.
        tokens: of its text, as little-endian numbers; empty until they are counted.
        spans: begin and end of each run of them that the assistant is to learn, one after the other.
    """

    turns: tuple[Turn, ...]
    tenant: str = ""
    session: str = ""
    split: Split = "train"
    line: int = 0
    memories: tuple[str, ...] = ()
    reward: float | None = None
    tokens: bytes = b""
    spans: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """All that is said, a paragraph a turn."""
        return "\n\n".join([turn.content for turn in self.turns])

    @property
    def digest(self) -> bytes:
        """SHA-256 over roles and contents: equal for examples that teach the same; 32 bytes."""
        # Neither separator is left in a normalised text.
        return sha256("\x1e".join([f"{t.role}\x1f{t.content}" for t in self.turns]).encode()).digest()


class Spoken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A memory that is a turn of a conversation.

    Attributes:
        tenant, conversation: as they are named.
        occurred_at: as the record has it: times of one form sort as text.
        memory_id: 0 where it has none.
        line: of the record.
        speaker: who said it.
        role: where the record says so.
        text: what was said.
        answers: the memory that it answers; 0 where no link says so.
        reward: of its session.
    """

    tenant: str
    conversation: str
    occurred_at: str
    memory_id: int
    line: int
    speaker: str
    role: Role | None
    text: str
    answers: int
    reward: float | None


class Record(msgspec.Struct, gc=False):
    """The fields of a record that are looked at, whatever else it has."""

    prompt: Any = None
    response: Any = None
    completion: Any = None
    chosen: Any = None
    rejected: Any = None
    history: Any = None
    messages: Any = None
    conversation: Any = None
    payload: Any = None
    text: Any = None
    speaker: Any = None
    role: Any = None
    occurred_at: Any = None
    tenant_id: Any = None
    memory_id: Any = None
    memory_ids: Any = None
    conversation_id: Any = None
    session_id: Any = None
    links: Any = None
    reward: Any = None


class _Said(msgspec.Struct, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _Messages(msgspec.Struct, gc=False):
    """A record of messages as most are written: what need not be looked at piece by piece."""

    messages: list[_Said]
    tenant_id: str | None = None
    memory_id: int | None = None
    memory_ids: tuple[int, ...] = ()
    conversation_id: str | None = None
    session_id: str | None = None
    reward: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None


class NoExample(ValueError):
    """A record of which no example can be made; the message says why."""


class Drawn(msgspec.Struct, frozen=True, gc=False):
    """What a record gives by itself: turns that are not checked yet, and whose they are, where it says so."""

    turns: tuple[Turn, ...]
    tenant: str
    session: str
    memory_ids: tuple[int, ...]
    reward: float | None


_decode = msgspec.json.Decoder(Record | list[Any]).decode
_decode_messages = msgspec.json.Decoder(_Messages).decode


def read_record(line: bytes, number: int) -> Drawn | Spoken:
    """Make of a line what it holds.

    Args:
        line: of JSON.
        number: of the line, from 1.

    Raises:
        NoExample: it is no JSON, or nothing that an example can be made of.
    """
    if b'"messages"' in line:
        try:
            plain = _decode_messages(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # written otherwise, or wrong: what follows says which
        else:
            memory_id = plain.memory_id or 0
            return Drawn(
                tuple([Turn(said.role, said.content) for said in plain.messages]),
                plain.tenant_id or "",
                plain.conversation_id or plain.session_id or (f"memory {memory_id}" if memory_id else ""),
                plain.memory_ids or (memory_id,),
                plain.reward,
            )
    try:
        record = _decode(line)
    except UnicodeDecodeError as error:
        raise NoExample(f"not UTF-8: {error}") from error
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise NoExample(f"not a record: {error}") from error
    if isinstance(record, list):
        return Drawn(tuple(_messages(record)), "", "", (), None)
    tenant = _name(record.tenant_id, "tenant_id")
    memory_id = _whole(record.memory_id, "memory_id")
    conversation = _name(record.conversation_id, "conversation_id") or _name(record.session_id, "session_id")
    reward = _reward(record.reward)
    if (turns := _own_turns(record)) is None and isinstance(record.payload, dict) and record.payload:
        inner = msgspec.convert(record.payload, Record)
        turns = _own_turns(inner)
        conversation = conversation or _name(inner.session_id, "payload.session_id")
        if reward is None:
            reward = _reward(inner.reward)
    if turns is not None:
        session = conversation or (f"memory {memory_id}" if memory_id else "")
        return Drawn(tuple(turns), tenant, session, _ids(record.memory_ids) or (memory_id,), reward)
    if not isinstance(record.text, str):
        raise NoExample("no prompt and response, no messages, and no text")
    payload = record.payload if isinstance(record.payload, dict) else {}
    speaker = record.speaker if isinstance(record.speaker, str) else ""
    role = record.role or payload.get("role") or speaker
    return Spoken(
        tenant=tenant,
        conversation=conversation,
        occurred_at=str(record.occurred_at or ""),
        memory_id=memory_id,
        line=number,
        speaker=speaker,
        role=_ROLES.get(role.lower()) if isinstance(role, str) else None,
        text=record.text,
        answers=0 if (answers := _answered(record.links)) == memory_id else answers,
        reward=reward,
    )


def _own_turns(record: Record) -> list[Turn] | None:
    messages = record.messages if record.messages is not None else record.conversation
    if messages is not None:
        return _messages(messages)
    answers = (record.response, record.completion, record.chosen)
    response = next((answer for answer in answers if answer is not None), None)
    if record.prompt is None and response is None:
        return None
    if not isinstance(record.prompt, str) or not isinstance(response, str):
        raise NoExample("`prompt` and `response` must both be text")
    turns = [*_history(record.history), Turn("user", record.prompt), Turn("assistant", response)]
    if isinstance(record.rejected, str):
        turns.append(Turn("rejected", record.rejected))
    return turns


def _history(history: Any) -> Iterable[Turn]:
    if not history:
        return []
    if not _is_list(history):
        raise NoExample("`history` must be a list")
    if isinstance(history[0], dict):
        return _messages(history)
    turns = []
    for pair in history:
        if not (_is_list(pair) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise NoExample("an entry of `history` must be a pair of texts, or a message")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _messages(messages: Any) -> list[Turn]:
    if not _is_list(messages):
        raise NoExample("`messages` must be a list")
    turns = []
    for message in messages:
        role = message.get("role", message.get("from")) if isinstance(message, dict) else None
        content = message.get("content", message.get("value")) if isinstance(message, dict) else None
        if not isinstance(role, str) or role.lower() not in _ROLES or not isinstance(content, str):
            raise NoExample(
                "a message must have a `role`, one of system, user and assistant, and text as `content`"
            )
        turns.append(Turn(_ROLES[role.lower()], content))
    return turns


def _answered(links: Any) -> int:
    if _is_list(links):
        for link in links:
            if isinstance(link, dict) and link.get("kind") == "reply":
                return _whole(link.get("target_id"), "links[].target_id")
    return 0


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _name(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise NoExample(f"`{field}` must be text")
    return str(value)


def _whole(value: Any, field: str) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise NoExample(f"`{field}` must be a whole number from 0 to 2⁶³ − 1")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not _is_list(value) or not all(isinstance(entry, int) for entry in value):
        raise NoExample("`memory_ids` must be a list of whole numbers")
    return tuple(value)


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not -1 <= value <= 1:
        raise NoExample("`reward` must be a number from -1 to 1")
    return float(value)


def assemble(spoken: Sequence[Spoken]) -> list[tuple[tuple[Turn, ...], tuple[Spoken, ...]]]:
    """Turns of the examples of one conversation of one tenant, each with the memories that they are.

    A conversation is one example. Memories of none make an example for each that answers another.

    Args:
        spoken: of one tenant, by time: a conversation, or a memory of none with those that answer it.

    Raises:
        NoExample: none can be made of it.
    """
    if spoken[0].conversation:
        return [(tuple(_cast(spoken)), tuple(spoken))]
    by_id = {one.memory_id: one for one in spoken if one.memory_id}
    pairs = [(by_id[one.answers], one) for one in spoken if one.answers in by_id]
    if not pairs:
        raise NoExample("of no conversation, and neither a reply to a memory that is there nor replied to")
    return [
        ((Turn("user", asked.text), Turn("assistant", said.text)), (asked, said)) for asked, said in pairs
    ]


def _cast(spoken: Sequence[Spoken]) -> list[Turn]:
    """Give each turn its role.

    Raises:
        NoExample: nothing says which side is the tenant's.
    """
    if all(one.role for one in spoken):
        return [Turn(one.role or "user", one.text) for one in spoken]
    tenant = spoken[0].tenant
    speakers = list(dict.fromkeys(one.speaker for one in spoken))
    own = tenant if tenant in speakers else speakers[1] if len(speakers) == 2 else None
    if own is None:
        raise NoExample(f"{len(speakers)} speakers, none of them the tenant and none with a role")
    return [Turn(one.role or ("assistant" if one.speaker == own else "user"), one.text) for one in spoken]
