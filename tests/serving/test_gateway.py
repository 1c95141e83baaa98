"""The gateway's configuration: it lets through what the service has under /memory, by open-source plugins."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from somabrain_dagster.serving.app import operations_of
from somabrain_dagster.settings import Settings

CONFIGURATION: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "deploy" / "kong" / "memory-gateway.yaml").read_text()
)
(SERVICE,) = CONFIGURATION["services"]
OPEN_SOURCE = {"key-auth", "acl", "rate-limiting", "request-size-limiting", "correlation-id", "http-log"}
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


def test_its_plugins_are_open_source_and_all_gates_are_there() -> None:
    used = {plugin["name"] for plugin in SERVICE["plugins"]}
    used |= {plugin["name"] for route in SERVICE["routes"] for plugin in route.get("plugins", ())}
    assert used == OPEN_SOURCE
