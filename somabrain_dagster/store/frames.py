"""Values framed by their length, each in the binary form in which Postgres sends it, for rows' digests.

Frames are read off one by one, so no two rows read alike; and no library's way of writing a number as text
decides what a digest is.
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_MICROSECOND = timedelta(microseconds=1)
_NULL = struct.pack(">i", -1)
_BIGINT_OID = 20

_pack_length = struct.Struct(">i").pack
_pack_smallint = struct.Struct(">ih").pack
_pack_bigint = struct.Struct(">iq").pack
_pack_double = struct.Struct(">id").pack


def binary(value: bytes | None) -> bytes:
    """A bytea."""
    return _NULL if value is None else _pack_length(len(value)) + value


def text(value: str | None) -> bytes:
    """A text, in UTF-8."""
    return _NULL if value is None else binary(value.encode())


@lru_cache(maxsize=8192)
def name(value: str | None) -> bytes:
    """A text that many rows share: a tenant, a source, a cause. It is framed once and then known."""
    return text(value)


def smallint(value: int) -> bytes:
    """A smallint."""
    return _pack_smallint(2, value)


def bigint(value: int | None) -> bytes:
    """A bigint."""
    return _NULL if value is None else _pack_bigint(8, value)


def double(value: float | None) -> bytes:
    """A double precision, to the last bit."""
    return _NULL if value is None else _pack_double(8, value)


def doubles(values: Sequence[float]) -> bytes:
    """Several double precision numbers, one after the other."""
    return eights("d", values)


def timestamp(value: datetime) -> bytes:
    """A timestamptz."""
    return _pack_bigint(8, microseconds(value))


def microseconds(value: datetime) -> int:
    """A timestamptz as Postgres counts it: microseconds since 2000."""
    return (value - POSTGRES_EPOCH) // _MICROSECOND


def bigints(values: list[int] | None) -> bytes:
    """A bigint[]: dimensions, has-nulls, element type, length, lower bound, elements."""
    if values is None:
        return _NULL
    length = len(values)
    elements = [8] * (2 * length)
    elements[1::2] = values
    return _array_of(length).pack(20 + 12 * length, 1, 0, _BIGINT_OID, length, 1, *elements)


def eights(kind: str, values: Sequence[float]) -> bytes:
    """Numbers of eight bytes, each behind its size; `kind` is `q` for integers, `d` for floating point."""
    elements: list[float] = [8] * (2 * len(values))
    elements[1::2] = values
    return _pairs(kind, len(values)).pack(*elements)


@lru_cache(maxsize=1024)
def _pairs(kind: str, count: int) -> struct.Struct:
    return struct.Struct(">" + count * f"i{kind}")


@cache
def _array_of(length: int) -> struct.Struct:
    return struct.Struct(">iiiiii" + length * "iq")
