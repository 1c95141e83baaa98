"""The whole log of weight changes, read block by block in the order of tenants and versions.

A row has the bounds that its change clips to, or names the configuration that has them. The few that have
their own (starts, rollbacks, promotions) are read first, so that no other need carry any.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.replay import Log, lengths_between
from somabrain_dagster.learning.shifts import Shifts
from somabrain_dagster.learning.weights import WEIGHTS
from somabrain_dagster.store.adaptation import AdaptationState, read_configurations, read_states
from somabrain_dagster.store.binary import BLOCK_ROWS, Kind, read_blocks, read_columns
from somabrain_dagster.store.database import Connection

_K = len(WEIGHTS)
CHANGE: Mapping[str, Kind] = {
    "version": "int8",
    "explicit": "bool",
    "configuration": "int4",
    "shift": _K,
    "after": _K,
}
_CHANGE_EXPRESSIONS = sql.SQL(
    "c.version, c.low IS NOT NULL, coalesce(array_position({digests}, c.configuration), 0) - 1, "
    "c.shift, c.after"
)
_ROWS = """
    SELECT {}
    FROM weight_changes c
    WHERE c.tenant_id IN (SELECT tenant_id FROM adaptation_states)
    ORDER BY c.tenant_id, c.version
"""
_OWN_BOUNDS = """
    SELECT c.low, c.high
    FROM weight_changes c
    WHERE c.tenant_id IN (SELECT tenant_id FROM adaptation_states) AND c.low IS NOT NULL
    ORDER BY c.tenant_id, c.version
"""


@dataclass(frozen=True)
class Column:
    """Something else of a row: an SQL expression over `c`, never null, and its type."""

    expression: sql.Composable
    kind: Kind


@dataclass(frozen=True, eq=False)
class LogReader:
    """What is needed to read the log, all of one snapshot.

    Attributes:
        states: (T,) the live states, by tenant.
        lengths: (T,) how many changes each has.
        configurations: those that are stored, by digest.
        low, high: (E, K) the bounds of the rows that have their own, in the order of the log.
    """

    connection: Connection
    states: list[AdaptationState]
    lengths: NDArray[np.intp]
    configurations: Mapping[bytes, LearningConfiguration]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @classmethod
    def of(cls, connection: Connection) -> "LogReader":
        """Read what comes before the rows.

        Args:
            connection: a snapshot, so that all is of one instant.
        """
        states = read_states(connection)
        counts: dict[str, int] = dict(
            connection.execute("SELECT tenant_id, count(*) FROM weight_changes GROUP BY tenant_id").fetchall()
        )
        bounds = read_columns(connection, sql.SQL(_OWN_BOUNDS), {"low": _K, "high": _K})
        return cls(
            connection,
            states,
            np.array([counts.get(state.tenant_id, 0) for state in states], dtype=np.intp),
            read_configurations(connection),
            bounds["low"],
            bounds["high"],
        )

    def blocks(
        self, others: Mapping[str, Column] | None = None, rows: int = BLOCK_ROWS
    ) -> Iterator[tuple[Log, dict[str, NDArray[Any]]]]:
        """The log from its first row on, in blocks.

        Args:
            others: what else to read of each row.
            rows: of a block.

        Yields:
            The changes; and by name `explicit`, whether the row has its own bounds, `configuration`, the
            position in `configurations`, −1 for one that is not stored, and the others.
        """
        others = others or {}
        inherited_low, inherited_high = (
            np.array([*bounds, [0] * _K], dtype=np.int64)
            for bounds in (
                [known.low_nanos for known in self.configurations.values()],
                [known.high_nanos for known in self.configurations.values()],
            )
        )
        ends = np.cumsum(self.lengths)
        row = own = 0
        for columns in read_blocks(
            self.connection,
            changes_query(self.configurations, others),
            {**CHANGE, **{name: column.kind for name, column in others.items()}},
            rows,
        ):
            explicit, configuration = columns["explicit"], columns["configuration"]
            low, high = inherited_low[configuration], inherited_high[configuration]
            then = own + int(explicit.sum())
            low[explicit], high[explicit] = self.low[own:then], self.high[own:then]
            until = row + len(explicit)
            lengths = lengths_between(ends, row, until)
            row, own = until, then
            shifts = Shifts(columns.pop("shift"), low, high)
            yield Log(lengths, columns.pop("version"), shifts, columns.pop("after")), columns

    def whole(self, others: Mapping[str, Column]) -> tuple[Log, dict[str, NDArray[Any]]]:
        """The log in one piece, and beside it what `blocks` has; each block is let go once it is copied."""
        count = int(self.lengths.sum())
        filled: dict[str, NDArray[Any]] = {}
        row = 0
        for block, columns in self.blocks(others):
            columns |= {
                "version": block.versions,
                "shift": block.shifts.shift,
                "low": block.shifts.low,
                "high": block.shifts.high,
                "after": block.after,
            }
            until = row + len(block.versions)
            for name, values in columns.items():
                if name not in filled:
                    filled[name] = np.empty((count, *values.shape[1:]), values.dtype)
                filled[name][row:until] = values
            row = until
        shifts = Shifts(*(filled.pop(name) for name in ("shift", "low", "high")))
        return Log(self.lengths, filled.pop("version"), shifts, filled.pop("after")), filled


def changes_query(
    configurations: Iterable[bytes], others: Mapping[str, Column] | None = None
) -> sql.Composable:
    """The SELECT of the rows: the columns of `CHANGE`, and the others."""
    digests = sql.Literal(list(configurations)) + sql.SQL("::bytea[]")
    expressions = [
        _CHANGE_EXPRESSIONS.format(digests=digests),
        *(column.expression for column in (others or {}).values()),
    ]
    return sql.SQL(_ROWS).format(sql.SQL(", ").join(expressions))
