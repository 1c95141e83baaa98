"""Answers, and how they are sent."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.types import Send

from somabrain_dagster.serving.problems import MEDIA_TYPE, Problem

_encode = msgspec.json.Encoder(enc_hook=lambda value: value.tolist()).encode

JSON = b"application/json"
NDJSON = b"application/x-ndjson"


class Answer:
    """A status, a body and headers; the body is sent whole, or as a stream if it is an iterator."""

    __slots__ = ("body", "headers", "media_type", "status")

    def __init__(
        self,
        body: bytes | AsyncIterator[bytes],
        status: int = 200,
        media_type: bytes = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.media_type = media_type
        self.headers = headers

    async def send(self, send: Send, request_id: str) -> None:
        """Send it by ASGI."""
        headers = [(b"content-type", self.media_type), (b"x-request-id", request_id.encode())]
        if self.headers:
            headers += [(name.encode(), value.encode()) for name, value in self.headers.items()]
        if isinstance(self.body, bytes):
            headers.append((b"content-length", b"%d" % len(self.body)))
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": self.body})
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        async for chunk in self.body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A value as JSON."""
    return Answer(_encode(value), status, headers=headers)


def problem_answer(problem: Problem, request_id: str | None) -> Answer:
    """A problem as RFC 9457 wants it."""
    return Answer(_encode(problem.details(request_id)), problem.status, MEDIA_TYPE, problem.headers)


def encode(value: Any) -> bytes:
    """JSON text."""
    return _encode(value)
