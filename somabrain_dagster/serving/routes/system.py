"""The service itself: health, readiness, metrics, and its description."""

import asyncio
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from somabrain_dagster import __version__
from somabrain_dagster.serving.answers import Answer, json_answer
from somabrain_dagster.serving.contracts import HealthAnswer, ReadyAnswer
from somabrain_dagster.serving.operations import Call, Operation
from somabrain_dagster.serving.overview import overview
from somabrain_dagster.serving.page import page
from somabrain_dagster.store.database import DatabaseUnreachable
from somabrain_dagster.store.schema import newest_revision, revision_in

_NEEDED = newest_revision()


async def health(call: Call) -> Answer:
    """The process answers; nothing else is asked."""
    return json_answer(HealthAnswer(status="ok", version=__version__))


async def ready(call: Call) -> Answer:
    """Whether feedback can be landed here, now."""
    service = call.service

    def revision() -> str | None:
        with service.database.as_owner() as connection:
            return revision_in(connection)

    postgres = migrations = "ok"
    try:
        found = await asyncio.to_thread(revision)
    except DatabaseUnreachable:
        postgres, migrations = "cannot be reached", "unknown"
    else:
        if found != _NEEDED:
            migrations = f"at {found}, not at {_NEEDED}"
    redis = "ok" if await asyncio.to_thread(service.redis_answers) else "cannot be reached"
    queue = "ok" if service.committer.alive and service.committer.room > 0 else "full"
    is_ready = not service.draining and postgres == migrations == queue == "ok"
    return json_answer(
        ReadyAnswer(
            ready=is_ready,
            draining=service.draining,
            postgres=postgres,
            migrations=migrations,
            redis=redis,
            queue=queue,
            listening=service.states.true,
        ),
        HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE,
    )


async def metrics(call: Call) -> Answer:
    """What Prometheus reads."""
    return Answer(await call.service.metrics.render(), media_type=CONTENT_TYPE_LATEST.encode())


OPERATIONS = (
    Operation(
        "GET", "/healthz", health, "Whether the process answers.", scope=None, answers={200: HealthAnswer}
    ),
    Operation(
        "GET",
        "/readyz",
        ready,
        "Whether feedback can be landed here, now.",
        scope=None,
        answers={200: ReadyAnswer, 503: ReadyAnswer},
    ),
)


def measuring(open_to_all: bool) -> Operation:
    """The metrics, for operators or for everybody."""
    return Operation(
        "GET",
        "/metrics",
        metrics,
        "Metrics in the text format of Prometheus.",
        scope=None if open_to_all else "operator",
        answers={200: str},
        media_type="text/plain",
    )


def showing() -> Operation:
    """The page for people."""
    page_for_people = overview()

    async def show(call: Call) -> Answer:
        return page_for_people

    return Operation(
        "GET",
        "/",
        show,
        "Tenants, their weights and what was said of them, for people.",
        scope=None,
        answers={200: str},
        media_type="text/html",
    )


def describing(document: dict[str, Any]) -> tuple[Operation, Operation]:
    """The OpenAPI document, and a page that shows it without anything from elsewhere."""
    text = json_answer(document)
    html = page(document).encode()

    async def openapi(call: Call) -> Answer:
        return text

    async def docs(call: Call) -> Answer:
        return Answer(html, media_type=b"text/html; charset=utf-8")

    return (
        Operation(
            "GET", "/openapi.json", openapi, "This description.", scope=None, answers={200: dict[str, Any]}
        ),
        Operation(
            "GET",
            "/docs",
            docs,
            "This description, for people.",
            scope=None,
            answers={200: str},
            media_type="text/html",
        ),
    )
