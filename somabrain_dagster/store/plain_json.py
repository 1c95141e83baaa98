"""JSON that can be stored and read back as it was given."""

import re
from typing import Any

import msgspec

DEEPEST = 64
"""Levels of objects and arrays: what reads it back may recurse."""

# An escaped NUL, and not an escaped backslash before the text u0000.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def why_not(value: dict[str, Any], largest: int) -> str | None:
    """Why Postgres could not keep an object, or would give back another one; None if it is well.

    Args:
        value: the object.
        largest: how many bytes of JSON it may have.
    """
    depth = 0
    level: list[Any] = [value]
    while level:
        if (depth := depth + 1) > DEEPEST:
            return f"must have at most {DEEPEST} levels"
        level = [
            entry
            for outer in level
            for entry in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(entry, dict | list)
        ]
    try:
        encoded = msgspec.json.encode(value)
        stored = msgspec.json.decode(encoded)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        return f"must be JSON: {error}"
    if stored != value:
        return "must be JSON: objects with keys of text, arrays, text, finite numbers, booleans, null"
    if len(encoded) > largest:
        return f"has {len(encoded)} bytes of JSON; at most {largest} are kept"
    if _NUL.search(encoded):
        return "has a NUL character, which cannot be stored"
    return None
