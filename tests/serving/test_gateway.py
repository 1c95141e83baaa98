"""The gateway's configuration: it lets through what the service has under /memory, by open-source plugins.

Kong itself does not run here. The entities and the plugins' settings are held, field by field and without
any that Kong does not know, to the schemas in Kong's own source (`kong/plugins/*/schema.lua`, July 2026).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]

from somabrain_dagster.serving.app import operations_of
from somabrain_dagster.settings import Settings

CONFIGURATION: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "deploy" / "kong" / "memory-gateway.yaml").read_text()
)
(SERVICE,) = CONFIGURATION["services"]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 2)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Header = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]+$")]
Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._~-]+$")]


class _Entity(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class _KeyAuth(_Entity):
    key_names: Annotated[
        list[Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]+$")]], msgspec.Meta(min_length=1)
    ]
    key_in_header: bool
    key_in_query: bool
    key_in_body: bool
    hide_credentials: bool


class _Acl(_Entity):
    allow: Annotated[list[str], msgspec.Meta(min_length=1)]
    hide_groups_header: bool


class _Redis(_Entity):
    host: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class _RateLimiting(_Entity):
    second: Positive
    minute: Positive
    limit_by: Literal["consumer", "credential", "ip", "service", "header", "path"]
    policy: Literal["local", "cluster", "redis"]
    redis: _Redis
    fault_tolerant: bool
    hide_client_headers: bool


class _RequestSizeLimiting(_Entity):
    allowed_payload_size: int
    size_unit: Literal["megabytes", "kilobytes", "bytes"]
    require_content_length: bool


class _CorrelationId(_Entity):
    header_name: str
    generator: Literal["uuid", "uuid#counter", "tracker"]
    echo_downstream: bool


class _HttpLog(_Entity):
    http_endpoint: Annotated[str, msgspec.Meta(pattern="^https?://")]
    method: Literal["POST", "PUT", "PATCH"]
    content_type: Literal["application/json", "application/json; charset=utf-8"]
    headers: dict[str, str]
    custom_fields_by_lua: dict[str, str]


SETTINGS: dict[str, Any] = {
    "key-auth": _KeyAuth,
    "acl": _Acl,
    "rate-limiting": _RateLimiting,
    "request-size-limiting": _RequestSizeLimiting,
    "correlation-id": _CorrelationId,
    "http-log": _HttpLog,
}


class _Plugin(_Entity):
    name: str
    config: dict[str, Any]


class _Route(_Entity):
    name: Name
    paths: list[Annotated[str, msgspec.Meta(pattern="^~?/")]]
    methods: list[Annotated[str, msgspec.Meta(pattern="^[A-Z]+$")]]
    strip_path: bool
    preserve_host: bool
    plugins: list[_Plugin] = []


class _Service(_Entity):
    name: Name
    url: Annotated[str, msgspec.Meta(pattern="^https?://[a-z0-9.-]+(:[0-9]+)?$")]
    connect_timeout: Milliseconds
    read_timeout: Milliseconds
    write_timeout: Milliseconds
    retries: Annotated[int, msgspec.Meta(ge=0, le=32767)]
    routes: list[_Route]
    plugins: list[_Plugin]


class _Group(_Entity):
    group: str


class _Consumer(_Entity):
    username: str
    acls: list[_Group]


class _Declared(_Entity):
    format_version: Literal["3.0"] = msgspec.field(name="_format_version")
    transform: bool = msgspec.field(name="_transform")
    services: list[_Service]
    consumers: list[_Consumer]


MEMORY = [one for one in operations_of(Settings()) if one.path.startswith("/memory/")]


def lets_through(method: str, path: str) -> bool:
    """Whether a route of the gateway matches, as Kong matches: by a prefix, or by a pattern after `~`."""
    return any(
        method in route["methods"]
        and any(
            re.match(pattern.removeprefix("~"), path) if pattern.startswith("~") else path.startswith(pattern)
            for pattern in route["paths"]
        )
        for route in SERVICE["routes"]
    )


@pytest.mark.parametrize("operation", MEMORY, ids=lambda one: f"{one.method} {one.path}")
def test_every_memory_route_passes(operation: Any) -> None:
    assert lets_through(operation.method, operation.path.replace("{memory_id}", "17"))


@pytest.mark.parametrize("path", ["/context/feedback", "/config/weights", "/metrics", "/memory/17/more"])
def test_nothing_else_passes(path: str) -> None:
    assert not any(lets_through(method, path) for method in ("GET", "POST", "PUT", "DELETE"))


def test_every_field_is_one_that_kong_knows_and_of_its_type() -> None:
    declared = msgspec.convert(CONFIGURATION, _Declared)
    (service,) = declared.services
    for plugin in [*service.plugins, *(plugin for route in service.routes for plugin in route.plugins)]:
        msgspec.convert(plugin.config, SETTINGS[plugin.name])
    allowed = {group.group for consumer in declared.consumers for group in consumer.acls}
    wanted = {group for route in service.routes for one in route.plugins for group in one.config["allow"]}
    assert wanted <= allowed


def test_its_plugins_are_open_source_and_all_gates_are_there() -> None:
    used = {plugin["name"] for plugin in SERVICE["plugins"]}
    used |= {plugin["name"] for route in SERVICE["routes"] for plugin in route.get("plugins", ())}
    assert used == SETTINGS.keys()
