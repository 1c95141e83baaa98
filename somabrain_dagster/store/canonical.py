"""One way to write a value down, so that its digest can be computed again from what was stored."""

import hashlib
import math
from collections.abc import Callable
from decimal import Decimal
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

_EXACT = 2.0**53
"""Below it every whole float is the integer that its digits say."""


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, in which equal numbers read the same.

    Postgres keeps a jsonb number by value: 1e23 comes back as an integer, −0.0 as 0. So a whole float is
    written as the integer that its shortest decimal form stands for.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is nothing that JSON knows, or a key is not text.
    """
    return _written(value).encode()


def digest(value: Any) -> bytes:
    """SHA-256 of the canonical JSON, 32 bytes."""
    return hashlib.sha256(canonical_json(value)).digest()


def _written(value: Any) -> str:
    """JSON text. Written out here because every event is digested, and `json` takes six times as long."""
    write = _WRITERS.get(type(value))
    if write is None:
        write = next((_WRITERS[kind] for kind in _SUBCLASSED if isinstance(value, kind)), None)
        if write is None:
            raise TypeError(f"JSON has no {type(value).__name__}")
    return write(value)


def _float(value: float) -> str:
    if value.is_integer():
        # int(1e23) is 99999999999999991611392, but 1e23 in JSON text, which Postgres reads, is 10²³.
        return str(int(value) if abs(value) < _EXACT else int(Decimal(float.__repr__(value))))
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    return float.__repr__(value)


def _object(value: dict[Any, Any]) -> str:
    try:
        return f"{{{','.join([f'{_quoted(key)}:{_written(value[key])}' for key in sorted(value)])}}}"
    except TypeError:
        if all(isinstance(key, str) for key in value):
            raise
        raise TypeError("a key of a JSON object must be text") from None


def _array(value: list[Any] | tuple[Any, ...]) -> str:
    return f"[{','.join([_written(entry) for entry in value])}]"


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    float: _float,
    type(None): lambda _: "null",
    int: int.__repr__,
    bool: lambda value: "true" if value else "false",
    dict: _object,
    list: _array,
    tuple: _array,
}
_SUBCLASSED = (str, float, int, dict, list, tuple)
