"""The kernel: an operation is one method of one path, described and performed by one object."""

import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl
from uuid import uuid4

import msgspec
from starlette.types import Receive, Scope, Send

from somabrain_dagster.serving.access import Principal, bearer
from somabrain_dagster.serving.answers import NDJSON, Answer, problem_answer
from somabrain_dagster.serving.problems import Problem, invalid, method_not_allowed, unavailable
from somabrain_dagster.store import keys
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import DatabaseUnreachable

if TYPE_CHECKING:
    from somabrain_dagster.serving.service import Service

_log = logging.getLogger(__name__)

IDEMPOTENCY_KEY = re.compile("^[!-~]([ -~]{0,178}[!-~])?$")
"""What the header `Idempotency-Key` may be: 1 to 180 printable characters of ASCII."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROCESS = uuid4().hex[:12]
_numbers = itertools.count(1)

Known = TypeVar("Known")


class Call:
    """One request, as far as an operation needs it."""

    __slots__ = (
        "headers",
        "key",
        "path",
        "principal",
        "receive",
        "request_id",
        "scope",
        "service",
        "tenant_id",
    )

    def __init__(self, service: "Service", scope: Scope, receive: Receive) -> None:
        self.service = service
        self.scope = scope
        self.receive = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.path: Mapping[str, str] = scope["path_params"]
        given = self.headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.request_id = given.decode()
        else:
            self.request_id = f"{_PROCESS}-{next(_numbers):x}"
        self.principal: Principal | None = None
        self.tenant_id: str | None = None

    @property
    def who(self) -> Principal:
        """Who asks, of an operation that wants a key."""
        assert self.principal is not None
        return self.principal

    def about(self, named: str | msgspec.UnsetType | None) -> str:
        """The tenant that the request is about, counted against its rate.

        Raises:
            Problem: 403, 422 or 429.
        """
        self.tenant_id = tenant_id = self.who.tenant(None if named is msgspec.UNSET else named)
        self.service.gatekeeper.spend(tenant_id)
        return tenant_id

    def query(self, kind: type[Known]) -> Known:
        """The query parameters.

        Raises:
            Problem: 422 naming the parameter.
        """
        raw: bytes = self.scope["query_string"]
        if not raw:
            return _convert({}, kind)
        try:
            pairs = parse_qsl(
                raw.decode("latin-1"), keep_blank_values=True, strict_parsing=True, errors="strict"
            )
        except ValueError as error:
            raise invalid("the query is not made of name=value pairs in UTF-8") from error
        values = dict(pairs)
        if len(values) < len(pairs):
            raise invalid("a query parameter is given twice")
        return _convert(values, kind)

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Problem: 413 if it is larger than a body may be.
        """
        most = self.service.settings.service.body_bytes
        message = await self.receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body") and len(body) <= most:
            message = await self.receive()
            body += message.get("body", b"")
        if len(body) > most:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"a body has at most {most} bytes: send it in parts",
                {"connection": "close"},
            )
        return body

    async def json(self, kind: type[Known]) -> Known:
        """The body, of the given type.

        Raises:
            Problem: 413, 415, 400 where it is not JSON, 422 naming the field that is wrong.
        """
        self.media_type(b"application/json")
        return decode(await self.body(), msgspec.json.Decoder(kind))

    @property
    def given_type(self) -> bytes:
        """The type of the body, as the client states it."""
        return self.headers.get(b"content-type", b"").split(b";")[0].strip().lower()

    @property
    def streams(self) -> bool:
        """Whether the body is a stream of lines."""
        return self.given_type == NDJSON

    def media_type(self, *allowed: bytes) -> bytes:
        """The type of the body.

        Raises:
            Problem: 415 if it is none of these.
        """
        given = self.given_type
        if given not in allowed:
            raise Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "media_type",
                f"send the body as {b' or '.join(allowed).decode()}",
            )
        return given


def in_utc(name: str, moment: datetime | None) -> datetime | None:
    """A time on the clock of UTC: not every offset that ISO 8601 allows can be stored.

    Raises:
        Problem: 422 for the ends of the calendar, whose days not every zone has.
    """
    if moment is None:
        return None
    if not 1 < moment.year < 9999:
        raise invalid(f"`{name}` must be in the years 2 to 9998, not {moment}")
    return moment.astimezone(UTC)


def decode(body: bytes | str, decoder: "msgspec.json.Decoder[Known]") -> Known:
    """Read JSON of a type.

    Raises:
        Problem: 400 where it is not JSON, 422 naming the field that is wrong.
    """
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            # To JSON Schema 2.0 is an integer. What begins with another type may yet be no JSON.
            value = _whole(msgspec.json.decode(body))
            try:
                return msgspec.convert(value, decoder.type)
            except msgspec.ValidationError:
                raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "not_json", f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise invalid("the body is nested too deeply") from error


def _whole(value: Any) -> Any:
    """A value whose whole floats are integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(entry) for name, entry in value.items()}
    return [_whole(entry) for entry in value] if isinstance(value, list) else value


def _convert(values: Mapping[str, str], kind: type[Known]) -> Known:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(str(error).replace("Object contains", "the query has")) from error


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        scope: what a key must be allowed to; None where no key is asked for.
        query: the type of the query parameters.
        body: the type of the body, by media type.
        answers: the type of the answer, or several, by status.
        problems: the statuses of what can go wrong, besides those of every operation.
        idempotent: takes an Idempotency-Key.
    """

    method: str
    path: str
    perform: Callable[[Call], Awaitable[Answer]]
    summary: str
    scope: keys.Scope | None = "read_only"
    query: Any = None
    body: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, Any] = field(default_factory=dict)
    problems: Sequence[int] = ()
    idempotent: bool = False
    media_type: str = "application/json"


class Resource:
    """An ASGI application that performs the operations of one path."""

    def __init__(self, service: "Service", path: str, operations: Sequence[Operation]) -> None:
        self._service = service
        self._path = path
        self._operations = {operation.method: operation for operation in operations}
        if "GET" in self._operations:
            self._operations["HEAD"] = self._operations["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Perform a request and answer it, whatever happens."""
        began = time.perf_counter()
        service = self._service
        call = Call(service, scope, receive)
        try:
            answer = await self._perform(call)
        except Problem as problem:
            answer = problem_answer(problem, call.request_id)
        except UnknownTenant as error:
            answer = problem_answer(Problem(404, "unknown_tenant", str(error)), call.request_id)
        except DatabaseUnreachable:
            answer = problem_answer(unavailable("Postgres"), call.request_id)
        except Exception:  # noqa: BLE001 — whatever it is, it is logged and answered
            _log.exception("request %s failed", call.request_id)
            failed = Problem(500, "internal", f"this is our fault; the log names it by {call.request_id}")
            answer = problem_answer(failed, call.request_id)
        await answer.send(send, call.request_id)
        who = call.principal
        service.note(
            call.request_id,
            scope["method"],
            self._path,
            answer.status,
            time.perf_counter() - began,
            call.tenant_id,
            None if who is None else who.key_id,
            streamed=call.streams,
        )

    async def _perform(self, call: Call) -> Answer:
        operation = self._operations.get(call.scope["method"])
        if operation is None:
            raise method_not_allowed(sorted(self._operations))
        if operation.scope is not None:
            key = bearer(call.headers.get(b"authorization"))
            gatekeeper = call.service.gatekeeper
            call.principal = gatekeeper.recognise(key) or await gatekeeper.identify(key)
            call.principal.require(operation.scope)
        return await operation.perform(call)
