"""The application: every operation under its path."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.serving.answers import encode
from somabrain_dagster.serving.openapi import document
from somabrain_dagster.serving.operations import Operation, Resource
from somabrain_dagster.serving.problems import MEDIA_TYPE, Problem
from somabrain_dagster.serving.routes import adaptation, configuration, feedback, memory, system
from somabrain_dagster.serving.service import Service
from somabrain_dagster.settings import Settings

ASKED_MOST = ("/context/adaptation/state", "/context/feedback")
"""Paths that are tried first: a router tries one after the other."""


def operations_of(settings: Settings) -> list[Operation]:
    """Every operation that describes itself, in the order of the description."""
    return [
        *feedback.OPERATIONS,
        *adaptation.OPERATIONS,
        *configuration.OPERATIONS,
        configuration.promoting(settings.learning_configuration),
        *memory.OPERATIONS,
        *system.OPERATIONS,
        system.measuring(settings.service.metrics_open),
    ]


def create_app(settings: Settings, servers: Servers) -> Starlette:
    """The service as an ASGI application.

    Args:
        settings: of the process.
        servers: where the brain and the cache are, migrated.
    """
    service = Service(settings, servers)
    operations = operations_of(settings)
    described = document(operations)
    operations += [*system.describing(described), system.showing()]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    by_path = sorted(operations, key=lambda operation: (operation.path not in ASKED_MOST, operation.path))
    app = Starlette(
        routes=[
            Route(path, Resource(service, path, list(of_path)), name=path)
            for path, of_path in groupby(by_path, key=lambda operation: operation.path)
        ],
        exception_handlers={HTTPException: _problem},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _problem(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path that is not there."""
    assert isinstance(error, HTTPException)
    problem = Problem(
        error.status_code, "not_found", f"there is no {request.url.path}: `/docs` shows what there is"
    )
    body = encode(problem.details(request.headers.get("x-request-id")))
    return Response(body, error.status_code, media_type=MEDIA_TYPE.decode())


def application() -> Any:
    """The application of the process's environment, for servers that import one by name."""
    from somabrain_dagster.operations import servers

    settings = Settings()
    return create_app(settings, servers.start(settings))
