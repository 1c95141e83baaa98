"""A report of what was measured: where, by which code, what came out, and what of what is asked holds.

Each is one JSON file: `commit`, `machine`, `taken_at`, `versions`, `tables` for a person, `holds` as
sentences, and whatever else is worth to keep as it was measured.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from somabrain_dagster.operations import provenance

WIDTH = 160
"""Of the tables where nothing says how wide the terminal is."""


@dataclass(frozen=True)
class Figures:
    """A table of figures: each row has a cell a column, in words as a person reads them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Spread:
    """What several runs came to."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.least)}–{_short(self.most)})"


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def write_report(
    path: Path,
    tables: Sequence[Figures],
    holds: Mapping[str, bool],
    *,
    packages: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    **measured: Any,
) -> bool:
    """Write a report and print it; whether all that is asked holds.

    `packages` are those whose versions matter, `versions` those of what is no package of this environment;
    `measured` is the raw measurement, as JSON takes it.
    """
    report = {
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in packages} | dict(versions or {}),
        "tables": [asdict(table) for table in tables],
        "holds": dict(holds),
        **measured,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for figures in tables:
        table = Table(title=figures.title, title_justify="left", box=None)
        for number, column in enumerate(figures.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in figures.rows:
            table.add_row(*row)
        console.print(table)
    for claim, true in holds.items():
        print(f"{'✓' if true else '✗'} {claim}")
    print(f"written to {path}")
    return all(holds.values())
