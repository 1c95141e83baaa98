"""The OpenAPI document: made of the very types by which requests are checked."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from somabrain_dagster import __version__
from somabrain_dagster.serving.operations import IDEMPOTENCY_KEY, Operation
from somabrain_dagster.serving.problems import ProblemDetails

_REFERENCE = "#/components/schemas/{name}"
_OF_KEYS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_OF_ALL = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_IN_PATHS = {
    "experiment_id": {"type": "string", "minLength": 1, "pattern": "^[a-z0-9._-]+$"},
    "memory_id": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
}
_PATH_PARAMETER = re.compile(r"{(\w+)}")


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1 of these operations."""
    types: list[Any] = [ProblemDetails]
    for operation in operations:
        types += operation.body.values()
        for answer in _bodies(operation):
            types += _alternatives(answer)
        if operation.query is not None:
            types.append(operation.query)
    # No JSON text in UTF-8 holds a surrogate, and not every dialect of regular expressions can name one.
    schemas, components = _replaced(
        msgspec.json.schema_components(types, ref_template=_REFERENCE), "\\ud800-\\udfff", ""
    )
    known = iter(schemas)
    problem = next(known)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        bodies = {media_type: next(known) for media_type in operation.body}
        answers = {
            status: _any([next(known) for _ in _alternatives(answer)]) if answer is not None else None
            for status, answer in operation.answers.items()
        }
        query = next(known) if operation.query is not None else None
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, bodies, answers, None if query is None else _resolve(query, components), problem
        )
    queries = {operation.query.__name__ for operation in operations if operation.query is not None}
    _say_what_types_cannot(components)
    for described in components.values():
        _say_which_years(described)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SomaBrain",
            "version": __version__,
            "description": "Lands feedback durably, adapts each tenant's weights, and serves them.",
        },
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "bearerFormat": "sb_<id>_<secret>"}
            },
        },
    }


def _replaced(value: Any, old: str, new: str) -> Any:
    """A value with another text in every text of it."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {name: _replaced(entry, old, new) for name, entry in value.items()}
    return (
        type(value)(_replaced(entry, old, new) for entry in value)
        if isinstance(value, list | tuple)
        else value
    )


def _bodies(operation: Operation) -> list[Any]:
    return [answer for answer in operation.answers.values() if answer is not None]


def _alternatives(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _any(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _resolve(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference: str = schema.get("$ref", "")
    return components[reference.rsplit("/", 1)[-1]] if reference else schema


def _operation(
    operation: Operation,
    bodies: dict[str, Any],
    answers: dict[int, Any],
    query: dict[str, Any] | None,
    problem: dict[str, Any],
) -> dict[str, Any]:
    statuses = {*operation.problems, *_OF_ALL, *(_OF_KEYS if operation.scope else ())}
    if operation.body or operation.query or _PATH_PARAMETER.search(operation.path):
        statuses.add(HTTPStatus.UNPROCESSABLE_ENTITY)
    if operation.body:
        statuses.add(HTTPStatus.BAD_REQUEST)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z]+', '_', operation.path.lower())}".rstrip(
            "_"
        ),
        "parameters": list(_parameters(operation, query)),
        "responses": {
            str(int(status)): _response(status, operation.media_type, schema)
            for status, schema in answers.items()
        }
        | {
            str(int(status)): _response(status, "application/problem+json", problem)
            for status in sorted(statuses - answers.keys())
        },
        "security": [{"key": []}] if operation.scope else [],
    }
    if bodies:
        described["requestBody"] = {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type, schema in bodies.items()},
        }
    return described


def _response(status: int, media_type: str, schema: dict[str, Any] | None) -> dict[str, Any]:
    headers = {"x-request-id": {"description": "To be found in the log.", "schema": {"type": "string"}}}
    if status in (HTTPStatus.TOO_MANY_REQUESTS,):
        headers["retry-after"] = {"description": "Seconds.", "schema": {"type": "string"}}
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": headers}
    if schema is not None:
        described["content"] = {media_type: {"schema": schema}}
    return described


def _parameters(operation: Operation, query: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    for name in _PATH_PARAMETER.findall(operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": _IN_PATHS[name]}
    if query is not None:
        for name, schema in query["properties"].items():
            yield {
                "name": name,
                "in": "query",
                "required": name in query.get("required", ()),
                "schema": schema,
            }
    if operation.idempotent:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Makes a retry safe: the same key gives the same answer and lands once.",
            "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY.pattern},
        }


def _say_which_years(schema: Any) -> None:
    """What is outside of the years 2 to 9998 cannot be written in every zone, and is refused."""
    if isinstance(schema, dict):
        if schema.get("format") == "date-time":
            schema["pattern"] = "^(?!0000|0001|9999)"
        for entry in schema.values():
            _say_which_years(entry)
    elif isinstance(schema, list):
        for entry in schema:
            _say_which_years(entry)


def _say_what_types_cannot(components: dict[str, Any]) -> None:
    for name, schema in components.items():
        if name.endswith("Request") and "tenant_id" in schema["properties"]:
            schema["properties"]["tenant_id"].pop("default", None)
    feedback = components["FeedbackRequest"]
    feedback["anyOf"] = [
        {"required": ["recall_id"], "properties": {"recall_id": {"type": "integer"}}},
        {"properties": {"helpful": {"maxItems": 0}}},
    ]
