"""Read a query of fixed-size columns straight into a numpy array, by Postgres' binary COPY."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.abc import Buffer

from somabrain_dagster.store.database import Connection

Kind = Literal["int2", "int4", "int8", "float8", "bool", "digest", "timestamptz"] | int
"""The type of a column; a number n stands for a bigint[] of n elements."""

BLOCK_ROWS = 8_192
"""Rows that are read together: enough that numpy has its work, few enough that they stay in the cache."""

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_END = b"\xff\xff"
_SCALARS = {
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "float8": ">f8",
    "bool": "?",
    "digest": "V32",
    "timestamptz": ">i8",
}
_ARRAY_HEADER = np.dtype([("shape", "V20")])
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">i8")])


def read_columns(
    connection: Connection, query: sql.Composable, columns: Mapping[str, Kind]
) -> dict[str, NDArray[Any]]:
    """Run a query whose rows all have the same size and return its columns.

    Args:
        connection: an open transaction.
        query: a SELECT without nulls, its columns in the order of `columns`.
        columns: the type of each: a scalar, or the length n of a bigint[].

    Returns:
        For each column an array (N,), or (N, n) for a bigint[], in the machine's byte order; a digest is V32,
        a timestamptz the microseconds since 2000.

    Raises:
        ValueError: a row is of another size: a column is null or of another type or length.
    """
    blocks = list(read_blocks(connection, query, columns))
    return {name: np.concatenate([block.pop(name) for block in blocks]) for name in columns}


def read_blocks(
    connection: Connection, query: sql.Composable, columns: Mapping[str, Kind], rows: int = BLOCK_ROWS
) -> Iterator[dict[str, NDArray[Any]]]:
    """The same, in blocks of so many consecutive rows, the last of fewer or none, as they come."""
    fields: list[Any] = [("fields", ">i2")]
    sizes = {}
    for name, kind in columns.items():
        if isinstance(kind, int):
            size = _ARRAY_HEADER.itemsize + kind * _ELEMENT.itemsize
            fields += [(f"{name}:size", ">i4"), (f"{name}:shape", "V20"), (name, _ELEMENT, (kind,))]
        else:
            size = np.dtype(_SCALARS[kind]).itemsize
            fields += [(f"{name}:size", ">i4"), (name, _SCALARS[kind])]
        sizes[name] = size
    row = np.dtype(fields)

    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)
    with connection.cursor().copy(statement) as copy:
        for body in _bodies(copy, rows):
            if len(body) % row.itemsize:
                raise ValueError(
                    f"the rows are not all of {row.itemsize} bytes: a column is null or of another length"
                )
            read = np.frombuffer(body, dtype=row)
            for name, size in sizes.items():
                if (read[f"{name}:size"] != size).any():
                    raise ValueError(f"column {name} is not of {size} bytes in every row")
            yield {
                name: _native(read[name]["value"] if isinstance(kind, int) else read[name])
                for name, kind in columns.items()
            }


def _bodies(messages: Iterable[Buffer], rows: int) -> Iterator[memoryview]:
    """What lies between the signature and the end of a binary COPY, cut between rows."""
    coming = iter(messages)  # a row each; what begins and ends all of it comes with a row or alone
    block = memoryview(b"".join(islice(coming, rows)))[len(_SIGNATURE) :]
    while block:
        then = memoryview(b"".join(islice(coming, rows)))
        yield block if then else block[: -len(_END)]
        block = then


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))


def sent_floats(arrays: Iterable[bytes]) -> NDArray[np.float64]:
    """The elements of double precision[] values, as `array_send` gives them, one after the other."""
    return _sent(arrays, ">f8")


def sent_bigints(arrays: Iterable[bytes]) -> NDArray[np.int64]:
    """The elements of bigint[] values, as `array_send` gives them, one after the other."""
    return _sent(arrays, ">i8")


def _sent(arrays: Iterable[bytes], element: str) -> NDArray[Any]:
    body = b"".join(memoryview(sent)[_ARRAY_HEADER.itemsize :] for sent in arrays)
    return _native(np.frombuffer(body, dtype=[("size", ">i4"), ("value", element)])["value"])
