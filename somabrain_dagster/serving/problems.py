"""What went wrong, as RFC 9457 problem details."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec

MEDIA_TYPE = b"application/problem+json"


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details.

    Attributes:
        type: names the kind of problem, as `urn:somabrain:problem:<code>`.
        title: the kind of problem, in words.
        status: of the answer.
        detail: this very problem, and what to do about it.
        request_id: of the request, to be found in the service's log.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None


class Problem(Exception):
    """An answer that is not what was asked for.

    Attributes:
        status: of HTTP.
        code: the kind of problem, in words joined by underscores.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}

    def details(self, request_id: str | None = None) -> ProblemDetails:
        """As it is sent."""
        return ProblemDetails(
            type=f"urn:somabrain:problem:{self.code}",
            title=self.code.replace("_", " "),
            status=self.status,
            detail=self.detail,
            request_id=request_id,
        )


def invalid(detail: str) -> Problem:
    """What was sent cannot be understood as it is."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail)


def unavailable(what: str, retry_after: int = 1) -> Problem:
    """A server behind the service does not answer; nothing was done."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        f"{what} cannot be reached: nothing was done; try again",
        {"retry-after": str(retry_after)},
    )


def too_many(detail: str, retry_after: float) -> Problem:
    """More than may wait, or than a tenant may ask for."""
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too_many_requests",
        detail,
        {"retry-after": str(max(1, round(retry_after)))},
    )


def method_not_allowed(allowed: Sequence[str]) -> Problem:
    """The path knows other methods."""
    return Problem(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method_not_allowed",
        f"use {' or '.join(allowed)}",
        {"allow": ", ".join(allowed)},
    )
