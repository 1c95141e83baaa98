"""Columns as Postgres' binary arrays: many rows in one statement, without a text that both sides parse.

A statement takes them apart by `unnest`. Rows of bigint[] go as one flat array that is sliced by row: an
array of arrays would come out of `unnest` as single elements.
"""

import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from somabrain_dagster.store import frames

_header = struct.Struct(">iiiii")
_EIGHTS = {
    "q": np.dtype([("size", ">i4"), ("value", ">i8")]),
    "d": np.dtype([("size", ">i4"), ("value", ">f8")]),
}

MOST_PACKED = 64
"""Elements of an array that are quicker packed one by one."""


class Column:
    """An array parameter in binary form."""

    __slots__ = ("data",)

    def __init__(self, element: int, length: int, nulls: bool, elements: bytes) -> None:
        shape = _header.pack(1, nulls, element, length, 1) if length else struct.pack(">iii", 0, 0, element)
        self.data = shape + elements


class BigintColumn(Column):
    """A bigint[]."""


class FloatColumn(Column):
    """A double precision[]."""


class TextColumn(Column):
    """A text[]."""


class ByteaColumn(Column):
    """A bytea[]."""


class TimestampColumn(Column):
    """A timestamptz[]."""


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Column) -> Buffer:
        return obj.data


def _register(column: type[Column], oid: int) -> None:
    psycopg.adapters.register_dumper(column, type("Dumper", (_ColumnDumper,), {"oid": oid}))


_register(BigintColumn, 1016)
_register(FloatColumn, 1022)
_register(TextColumn, 1009)
_register(ByteaColumn, 1001)
_register(TimestampColumn, 1185)


def bigints(values: Sequence[int] | NDArray[np.int64]) -> BigintColumn:
    """Integers; a matrix row by row."""
    count, elements = _eights("q", values)
    return BigintColumn(20, count, False, elements)


def bigints_or_null(values: Sequence[int | None]) -> BigintColumn:
    """Integers, some of them null."""
    return BigintColumn(20, len(values), None in values, b"".join(map(frames.bigint, values)))


def floats(values: Sequence[float] | NDArray[np.float64]) -> FloatColumn:
    """Floating-point numbers; a matrix row by row."""
    count, elements = _eights("d", values)
    return FloatColumn(701, count, False, elements)


def floats_or_null(values: Sequence[float | None]) -> FloatColumn:
    """Floating-point numbers, some of them null."""
    return FloatColumn(701, len(values), None in values, b"".join(map(frames.double, values)))


def texts(values: Sequence[str | None]) -> TextColumn:
    """Texts, some of them null."""
    return TextColumn(25, len(values), None in values, b"".join(map(frames.text, values)))


def names(values: Sequence[str | None]) -> TextColumn:
    """Texts that many rows share, some of them null."""
    return TextColumn(25, len(values), None in values, b"".join(map(frames.name, values)))


def byteas(values: Sequence[bytes | None]) -> ByteaColumn:
    """Byte strings, some of them null."""
    return ByteaColumn(17, len(values), None in values, b"".join(map(frames.binary, values)))


def timestamps(values: Sequence[datetime]) -> TimestampColumn:
    """Times with a zone."""
    return TimestampColumn(1184, len(values), False, b"".join(map(frames.timestamp, values)))


def _eights(kind: Literal["q", "d"], values: Sequence[float] | NDArray[Any]) -> tuple[int, bytes]:
    """How many elements there are, and all of them."""
    if isinstance(values, np.ndarray):
        values = values.ravel()
        if len(values) > MOST_PACKED:
            elements = np.empty(len(values), dtype=_EIGHTS[kind])
            elements["size"] = 8
            elements["value"] = values
            return len(values), elements.tobytes()
        values = values.tolist()
    return len(values), frames.eights(kind, values)
