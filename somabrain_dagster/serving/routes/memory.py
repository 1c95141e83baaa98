"""Memory: remember, link, recall, assemble contexts; read, erase and export."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, TypeVar

import msgspec

from somabrain_dagster.learning.configuration import InvalidConfiguration
from somabrain_dagster.learning.utility import Room
from somabrain_dagster.memory.context import assemble_context
from somabrain_dagster.memory.embedding import EmbeddingError
from somabrain_dagster.memory.exporting import exported_lines
from somabrain_dagster.memory.indexes import rebuild_all, status
from somabrain_dagster.memory.query import InvalidQuery, Query
from somabrain_dagster.memory.remember import NewMemory
from somabrain_dagster.memory.vectors import InvalidEmbedding
from somabrain_dagster.serving.answers import NDJSON, Answer, json_answer
from somabrain_dagster.serving.contracts import TenantName, TenantQuery
from somabrain_dagster.serving.operations import Call, Operation, in_utc
from somabrain_dagster.serving.problems import Problem, invalid, unavailable
from somabrain_dagster.store.embedding_models import ModelMismatch
from somabrain_dagster.store.memories import InvalidLink, InvalidMemory, KeyReused, Link, UnknownMemory
from somabrain_dagster.store.memory_bodies import StoredMemory, erase_memory, read_memory

_log = logging.getLogger(__name__)

MOST_MEMORIES = 500
EXPORT_CHUNK = 200

Result = TypeVar("Result")

# Spelt out, for what `\s` means differs between languages, and the description is read by many.
_BLANK = r"\x09-\x0D\x1C-\x20\x85\xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
Text = Annotated[str, msgspec.Meta(min_length=1, pattern=rf"^[^\x00]*[^\x00{_BLANK}][^\x00]*$")]
MemoryId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class MemoryRequest(NewMemory, frozen=True, kw_only=True):
    """A memory as it is sent; it happens at the time of the request where none is given."""

    tenant_id: TenantName = ""
    text: Text
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None  # type: ignore[assignment]


class LinkRequest(Link, frozen=True, kw_only=True):
    """A link as it is sent."""

    tenant_id: TenantName = ""
    source_id: MemoryId
    target_id: MemoryId
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None  # type: ignore[assignment]


class QueryRequest(Query, frozen=True, kw_only=True):
    """A question as it is sent."""

    tenant_id: TenantName = ""
    text: Text


class ContextRequest(QueryRequest, frozen=True, kw_only=True):
    """A question whose answer is to be read by a model.

    Attributes:
        budget: tokens that the context may have.
        capacity: memories that it may hold.
        working_share: the probability that what helps now has helped in this session before;
            without a session nothing has.
    """

    budget: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    capacity: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    working_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


MemoryList = Annotated[list[MemoryRequest], msgspec.Meta(min_length=1, max_length=MOST_MEMORIES)]
LinkList = Annotated[list[LinkRequest], msgspec.Meta(min_length=1, max_length=MOST_MEMORIES)]


class RememberedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A memory that is kept; repeated if the same content was there before."""

    memory_id: int
    repeated: bool


class RememberedList(msgspec.Struct, frozen=True, kw_only=True):
    """One answer for each memory, in order."""

    memories: list[RememberedAnswer]


class LinkedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How many links are new."""

    linked: int


class RebuildAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The rebuild has begun; where to look for what becomes of it."""

    look_at: str


class MemoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A memory, with the links that lead from it."""

    memory_id: int
    text: str
    speaker: str | None
    occurred_at: datetime
    created_at: datetime
    namespace: str
    conversation_id: str | None
    payload: dict[str, Any]
    links: list[dict[str, Any]]


async def remember(call: Call) -> Answer:
    """Keep a memory, or several."""
    asked = await call.json(_MEMORIES)
    given = asked if isinstance(asked, list) else [asked]
    now = datetime.now(UTC)
    owners = {named: call.about(named) for named in {memory.tenant_id or None for memory in given}}
    memories = [
        NewMemory(
            **{
                **{name: getattr(memory, name) for name in NewMemory.__struct_fields__},
                "tenant_id": owners[memory.tenant_id or None],
                "occurred_at": in_utc("occurred_at", memory.occurred_at) or now,
            }
        )
        for memory in given
    ]
    kept = await _at_work(call, lambda: call.service.memories.remember_all(memories))
    answers = [RememberedAnswer(memory_id=one.memory_id, repeated=one.repeated) for one in kept]
    body = RememberedList(memories=answers) if isinstance(asked, list) else answers[0]
    return json_answer(body, HTTPStatus.CREATED)


async def link(call: Call) -> Answer:
    """Link two memories, or several."""
    asked = await call.json(_LINKS)
    given = asked if isinstance(asked, list) else [asked]
    now = datetime.now(UTC)
    owners = {named: call.about(named) for named in {one.tenant_id or None for one in given}}
    links = [
        Link(
            **{
                **{name: getattr(one, name) for name in Link.__struct_fields__},
                "tenant_id": owners[one.tenant_id or None],
                "occurred_at": in_utc("occurred_at", one.occurred_at) or now,
            }
        )
        for one in given
    ]
    linked = await _at_work(call, lambda: call.service.memories.link_all(links))
    return json_answer(LinkedAnswer(linked=linked), HTTPStatus.CREATED)


def _query(call: Call, asked: QueryRequest) -> Query:
    fields = {name: getattr(asked, name) for name in Query.__struct_fields__}
    times = {name: in_utc(name, fields[name]) for name in ("as_of", "since")}
    return Query(**{**fields, **times, "tenant_id": call.about(asked.tenant_id or None)})


async def recall(call: Call) -> Answer:
    """What a question brings to mind."""
    query = _query(call, await call.json(QueryRequest))
    recalled = await _at_work(call, lambda: call.service.memories.recall(query))
    call.service.metrics.recalled(query.tenant_id, recalled.cleanup_backend)
    return json_answer(asdict(recalled))


async def context(call: Call) -> Answer:
    """What is worth its room of what a question brings to mind."""
    asked = await call.json(ContextRequest)
    query = _query(call, asked)
    service = call.service
    assembled = await _at_work(
        call,
        lambda: assemble_context(
            service.database,
            service.memories,
            service.tokens,
            query,
            Room(asked.budget, asked.capacity),
            working=service.working,
            working_share=0.0 if query.session_id is None else asked.working_share,
        ),
    )
    service.metrics.recalled(query.tenant_id, assembled.recall.cleanup_backend)
    return json_answer(asdict(assembled))


async def read(call: Call) -> Answer:
    """One memory."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    memory_id = _memory_id(call)

    def look() -> StoredMemory | None:
        with call.service.database.as_tenants([tenant_id]) as connection:
            return read_memory(connection, tenant_id, memory_id)

    found = await call.service.at_work(look)
    if found is None:
        raise _unknown(tenant_id, memory_id)
    return json_answer(asdict(found))


async def erase(call: Call) -> Answer:
    """Erase one memory and its links."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    memory_id = _memory_id(call)

    def remove() -> bool:
        with call.service.database.as_tenants([tenant_id]) as connection:
            return erase_memory(connection, tenant_id, memory_id, call.who.actor)

    if not await call.service.at_work(remove):
        raise _unknown(tenant_id, memory_id)
    return Answer(b"", HTTPStatus.NO_CONTENT)


async def rebuild(call: Call) -> Answer:
    """Start to rebuild the indexes of large tenants; the answer says where to look."""
    service = call.service
    actor = call.who.actor

    def work() -> None:
        built = rebuild_all(
            service.database,
            service.settings.hnsw_threshold,
            actor=actor,
            embedder=service.embedder,
        )
        for one in built:
            service.metrics.rebuilt("sufficient" if one.proof.sufficient else "insufficient")

    async def rebuilding() -> None:
        try:
            await service.at_work(work)
        except Exception:  # noqa: BLE001 — nobody waits for it: it is counted and logged
            service.metrics.rebuilt("failed")
            _log.exception("the rebuild of the indexes failed")

    service.in_background(rebuilding())
    where = "/memory/admin/indexes"
    return json_answer(RebuildAnswer(look_at=where), HTTPStatus.ACCEPTED, {"location": where})


async def indexes(call: Call) -> Answer:
    """How each tenant's memories are searched."""
    found = await call.service.at_work(lambda: status(call.service.database))
    return json_answer({"tenants": [asdict(one) for one in found]})


async def export(call: Call) -> Answer:
    """All memories of a tenant, a line of JSON each."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    service = call.service
    await service.states.state(tenant_id)

    async def chunks() -> AsyncIterator[bytes]:
        with service.database.as_tenants([tenant_id]) as connection:
            lines = exported_lines(connection, tenant_id)
            while chunk := await service.at_work(lambda: b"".join(islice(lines, EXPORT_CHUNK))):
                yield chunk

    return Answer(chunks(), media_type=NDJSON)


def _memory_id(call: Call) -> int:
    given = call.path["memory_id"]
    if not (given.isascii() and given.isdecimal() and 1 <= int(given[:20]) <= 2**63 - 1):
        raise invalid("`memory_id` must be a whole number above 0")
    return int(given)


def _unknown(tenant_id: str, memory_id: int) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "unknown_memory", f"tenant {tenant_id!r} has no memory {memory_id}")


async def _at_work(call: Call, work: Callable[[], Result]) -> Result:
    """Do work in a thread, its refusals as problems.

    Raises:
        Problem: 404, 409, 422 or 503.
    """
    try:
        return await call.service.at_work(work)
    except (InvalidMemory, InvalidQuery) as error:
        raise invalid(str(error)) from error
    except InvalidLink as error:
        raise Problem(HTTPStatus.CONFLICT, "invalid_link", str(error)) from error
    except InvalidEmbedding as error:
        raise Problem(HTTPStatus.CONFLICT, "invalid_embedding", str(error)) from error
    except UnknownMemory as error:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown_memory", str(error)) from error
    except KeyReused as error:
        raise Problem(HTTPStatus.CONFLICT, "key_reused", str(error)) from error
    except (ModelMismatch, InvalidConfiguration) as error:
        raise Problem(HTTPStatus.CONFLICT, "conflict", str(error)) from error
    except EmbeddingError as error:
        raise unavailable("the embedding of texts") from error


_MEMORIES: Any = MemoryRequest | MemoryList
_LINKS: Any = LinkRequest | LinkList
_USUAL = (404, 409, 413, 415, 429)

OPERATIONS = (
    Operation(
        "POST",
        "/memory/remember",
        remember,
        "Keep a memory, or several; the same content is kept once.",
        scope="tenant",
        body={"application/json": _MEMORIES},
        answers={201: (RememberedAnswer, RememberedList)},
        problems=_USUAL,
    ),
    Operation(
        "POST",
        "/memory/link",
        link,
        "Link memories: recalling the source brings the target to mind.",
        scope="tenant",
        body={"application/json": _LINKS},
        answers={201: LinkedAnswer},
        problems=_USUAL,
    ),
    Operation(
        "POST",
        "/memory/recall",
        recall,
        "What a question brings to mind, and why; logged, so that feedback can speak of it.",
        scope="tenant",
        body={"application/json": QueryRequest},
        answers={200: dict[str, Any]},
        problems=_USUAL,
    ),
    Operation(
        "POST",
        "/memory/context",
        context,
        "What is worth its room of what a question brings to mind, as one text.",
        scope="tenant",
        body={"application/json": ContextRequest},
        answers={200: dict[str, Any]},
        problems=_USUAL,
    ),
    Operation(
        "POST",
        "/memory/admin/rebuild-ann",
        rebuild,
        "Start to rebuild the indexes of large tenants, each proven against an exact search.",
        scope="operator",
        answers={202: RebuildAnswer},
    ),
    Operation(
        "GET",
        "/memory/admin/indexes",
        indexes,
        "How each tenant's memories are searched, and how well its index was last seen to find.",
        scope="operator",
        answers={200: dict[str, Any]},
    ),
    Operation(
        "GET",
        "/memory/export",
        export,
        "All memories of a tenant, a line of JSON each.",
        query=TenantQuery,
        answers={200: MemoryAnswer},
        problems=(404, 429),
        media_type="application/x-ndjson",
    ),
    Operation(
        "GET",
        "/memory/{memory_id}",
        read,
        "One memory, with the links that lead from it.",
        query=TenantQuery,
        answers={200: MemoryAnswer},
        problems=(404, 429),
    ),
    Operation(
        "DELETE",
        "/memory/{memory_id}",
        erase,
        "Erase one memory and its links.",
        scope="tenant",
        query=TenantQuery,
        answers={204: None},
        problems=(404, 429),
    ),
)
