"""What an import did, counted while it runs and told to a person at the end."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

Progress = Callable[[str, int, int | None], None]
"""Told, after every batch, what is being done, how much is done and, if it is known, how much there is."""

MEMORIES, LINKS, FEEDBACK, USAGE = "memories", "links", "feedback", "token usage"
"""The kinds of rows."""


def unwatched(what: str, done: int, total: int | None) -> None:
    """The progress that nobody watches."""


@dataclass
class Tally:
    """Rows of one kind.

    Attributes:
        landed: rows that are new.
        repeated: rows that were there already, from before or from earlier in the same import.
        refused: rows that were left out, by reason.
    """

    landed: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def count(self, *, repeated: bool) -> None:
        """Count one row."""
        self.count_all(1, new=0 if repeated else 1)

    def count_all(self, rows: int, *, new: int) -> None:
        """Count rows, of which some are new."""
        self.landed += new
        self.repeated += rows - new

    def __str__(self) -> str:
        told = [f"{self.landed:,} new", f"{self.repeated:,} repeated"]
        if self.refused:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.refused.most_common())
            told.append(f"{self.refused.total():,} left out ({reasons})")
        return ", ".join(told)


@dataclass
class ImportSummary:
    """What an import did. `str` gives it as text for a person.

    Attributes:
        source: what was imported.
        tallies: what became of the rows of each kind, by kind.
        tenants_created: tenants that were not there before.
        tenants_deleted: tenants that were deleted, and left out.
        first, last: the earliest and the latest time that memories or feedback speak of.
        rejects: the file with what was refused; None if nothing was.
        seconds: how long it took.
    """

    source: str
    tallies: dict[str, Tally]
    tenants_created: int = 0
    tenants_deleted: int = 0
    first: datetime | None = None
    last: datetime | None = None
    rejects: Path | None = None
    seconds: float = 0.0

    @property
    def landed(self) -> int:
        """How many rows are new, of every kind."""
        return sum(tally.landed for tally in self.tallies.values())

    @property
    def refused(self) -> int:
        """How many rows were left out, of every kind."""
        return sum(tally.refused.total() for tally in self.tallies.values())

    def span(self, moment: datetime) -> None:
        """Widen the time from `first` to `last` so that it holds this moment."""
        self.first = moment if self.first is None else min(self.first, moment)
        self.last = moment if self.last is None else max(self.last, moment)

    def __str__(self) -> str:
        lines = [f"{self.source}: imported in {self.seconds:.1f} s"]
        if self.tenants_created:
            lines.append(f"  tenants created: {self.tenants_created:,}")
        if self.tenants_deleted:
            lines.append(f"  tenants left out, since they were deleted: {self.tenants_deleted:,}")
        lines += [f"  {kind}: {tally}" for kind, tally in self.tallies.items()]
        if self.first is not None and self.last is not None:
            lines.append(f"  they speak of {_minute(self.first)} to {_minute(self.last)} UTC")
        if self.rejects is not None:
            lines.append(f"  what was left out, and why: {self.rejects}")
        return "\n".join(lines)


def _minute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
