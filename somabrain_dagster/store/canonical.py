"""One way to write a value down, so that its digest can be computed again from what was stored."""

import hashlib
import math
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
    """JSON text. Written out here because every event is digested, and `json` takes three times as long."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return str(_quoted(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if value.is_integer():
            # int(1e23) is 99999999999999991611392, but 1e23 in JSON text, which Postgres reads, is 10²³.
            return str(int(value) if abs(value) < _EXACT else int(Decimal(float.__repr__(value))))
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number of JSON")
        return float.__repr__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key of a JSON object must be text")
        return f"{{{','.join([f'{_quoted(key)}:{_written(value[key])}' for key in sorted(value)])}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join([_written(entry) for entry in value])}]"
    raise TypeError(f"JSON has no {type(value).__name__}")
