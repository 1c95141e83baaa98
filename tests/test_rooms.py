"""The rooms of the project import one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "somabrain_dagster"

LAYERS = [
    {"learning"},
    {"store"},
    {"memory", "corpus", "operations"},
    {
        "assets",
        "checks",
        "sensors",
        "schedules",
        "jobs",
        "partitions",
        "resources",
        "workers",
        "serving",
        "client",
        "traffic",
    },
    {"definitions", "ticks", "demo", "story", "learn", "cli"},
]
ASIDE = {"settings", "embedded"}
"""Imported by any room above `learning`, and importing no other room but each other."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """The absolute name of every module that the file imports."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "somabrain_dagster":
                yield from (f"somabrain_dagster.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    names = (module.split(".") for module in imported_modules(path))
    return {parts[1] for parts in names if parts[0] == "somabrain_dagster" and len(parts) > 1}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    here = room(path)
    imports = imported_rooms(path) - {here, "__version__"}
    if here in ASIDE:
        allowed = ASIDE | ({"learning"} if here == "settings" else set())
    elif here == "learning":
        allowed = set()
    else:
        peers = LAYERS[level[here]]
        allowed = ASIDE | peers | {name for name, index in level.items() if index < level[here]}
    assert imports <= allowed, f"{here} must not import {sorted(imports - allowed)}"


@pytest.mark.parametrize(
    "name", ["learning", "store", "memory", "corpus", "operations", "embedded", "serving"]
)
def test_only_the_orchestrating_rooms_know_dagster(name: str) -> None:
    for path in (PACKAGE / name).rglob("*.py"):
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert not {root for root in roots if root.startswith("dagster")}, path


def test_the_mathematics_touches_no_world() -> None:
    forbidden = {"os", "pathlib", "time", "socket", "psycopg", "redis", "random", "subprocess"}
    for path in (PACKAGE / "learning").rglob("*.py"):
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert not roots & forbidden, path


def test_only_the_store_has_sql() -> None:
    for path in FILES:
        if room(path) in {"store", "embedded"}:
            continue
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert "psycopg" not in roots, path
