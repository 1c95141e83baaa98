"""Columns as Postgres' binary arrays: many rows in one statement, without a text that both sides parse.

A statement takes them apart by `unnest`. Rows of bigint[] go as one flat array that is sliced by row: an
array of arrays would come out of `unnest` as single elements.
"""

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NULL = struct.pack(">i", -1)
_pack_length = struct.Struct(">i").pack
_pack_bigint = struct.Struct(">iq").pack
_header = struct.Struct(">iiiii")
_BIGINT = np.dtype([("size", ">i4"), ("value", ">i8")])
_FLOAT = np.dtype([("size", ">i4"), ("value", ">f8")])


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


def bigints(values: Iterable[int] | NDArray[np.int64]) -> BigintColumn:
    """Integers; a matrix row by row."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.int64).ravel()
    elements = np.empty(len(array), dtype=_BIGINT)
    elements["size"] = 8
    elements["value"] = array
    return BigintColumn(20, len(array), False, elements.tobytes())


def bigints_or_null(values: Sequence[int | None]) -> BigintColumn:
    """Integers, some of them null."""
    elements = b"".join([_NULL if value is None else _pack_bigint(8, value) for value in values])
    return BigintColumn(20, len(values), None in values, elements)


def floats(values: Sequence[float]) -> FloatColumn:
    """Floating-point numbers."""
    elements = np.empty(len(values), dtype=_FLOAT)
    elements["size"] = 8
    elements["value"] = values
    return FloatColumn(701, len(values), False, elements.tobytes())


def floats_or_null(values: Sequence[float | None]) -> FloatColumn:
    """Floating-point numbers, some of them null."""
    pack = struct.Struct(">id").pack
    elements = b"".join([_NULL if value is None else pack(8, value) for value in values])
    return FloatColumn(701, len(values), None in values, elements)


def texts(values: Sequence[str | None]) -> TextColumn:
    """Texts, some of them null."""
    encoded = [None if value is None else value.encode() for value in values]
    return TextColumn(25, len(values), None in values, _framed(encoded))


def byteas(values: Sequence[bytes | None]) -> ByteaColumn:
    """Byte strings, some of them null."""
    return ByteaColumn(17, len(values), None in values, _framed(values))


def timestamps(values: Sequence[datetime]) -> TimestampColumn:
    """Times with a zone."""
    elements = [_pack_bigint(8, (value - POSTGRES_EPOCH) // _MICROSECOND) for value in values]
    return TimestampColumn(1184, len(values), False, b"".join(elements))


def _framed(values: Sequence[bytes | None]) -> bytes:
    return b"".join([_NULL if value is None else _pack_length(len(value)) + value for value in values])
