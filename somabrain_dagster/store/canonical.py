"""One way to write a value down, so that its digest can be computed again from what was stored."""

import hashlib
import json
from decimal import Decimal
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, in which equal numbers read the same.

    Postgres keeps a jsonb number by value: 1e23 comes back as an integer, −0.0 as 0. So a whole float is
    written as the integer that its shortest decimal form stands for.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is nothing that JSON knows, or a key is not text.
    """
    return json.dumps(
        _with_whole_numbers(value), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def digest(value: Any) -> bytes:
    """SHA-256 of the canonical JSON, 32 bytes."""
    return hashlib.sha256(canonical_json(value)).digest()


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        # int(1e23) is 99999999999999991611392, but 1e23 in JSON text, which Postgres reads, is 10²³.
        return int(Decimal(repr(value)))
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key of a JSON object must be text")
        return {key: _with_whole_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_whole_numbers(entry) for entry in value]
    return value
