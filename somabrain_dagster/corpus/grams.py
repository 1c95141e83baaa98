"""Words and runs of words as 64-bit numbers, many texts at a time.

A word is a run of letters, digits and apostrophes; upper-case ASCII letters count as lower-case, and every
byte beyond ASCII as a letter. Its number is a polynomial over its bytes, each byte standing for a number of
its own that was drawn from SHA-256: word = Σ v(byte_i)·r^i mod 2⁶⁴, read off the running sums of the whole
batch, so that no word is ever handled alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BATCH = 1 << 17
"""Bytes of text that are hashed at once, few enough for a processor's cache.

A longer text makes a batch of its own.
"""

_RADIX = 0x9E3779B97F4A7C15
_INVERSE = pow(_RADIX, -1, 1 << 64)
_STEP = np.uint64(0x100000001B3)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def _values() -> Hashes:
    drawn = b"".join(hashlib.sha256(bytes([byte])).digest()[:8] for byte in range(256))
    values = np.frombuffer(drawn, dtype="<u8").astype(np.uint64)
    values[ord("A") : ord("Z") + 1] = values[ord("a") : ord("z") + 1]
    return values


_VALUES = _values()
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() or chr(byte) == "'" for byte in range(256)], np.int8)


def _powers(radix: int, count: int) -> Hashes:
    """radix⁰ … radix^(count − 1) mod 2⁶⁴."""
    powers = np.ones(count, dtype=np.uint64)
    done = 1
    while done < count:
        more = min(done, count - done)
        powers[done : done + more] = powers[:more] * np.uint64(pow(radix, done, 1 << 64))
        done += more
    return powers


_RAISED = [_powers(_RADIX, 1), _powers(_INVERSE, 1)]


def _raised(count: int) -> tuple[Hashes, Hashes]:
    if len(_RAISED[0]) < count:
        _RAISED[:] = [_powers(_RADIX, count), _powers(_INVERSE, count)]
    return _RAISED[0][:count], _RAISED[1]


@dataclass(frozen=True)
class Words:
    """The words of several texts.

    Attributes:
        hashes: a number for each word, (n,).
        rows: where each text's words begin, and at last n; (texts + 1,).
    """

    hashes: Hashes
    rows: NDArray[np.int64]

    def grams(self, n: int) -> "Words":
        """The runs of n words within one text; a text of fewer words has none.

        Args:
            n: ≥ 1.
        """
        count = len(self.hashes) - n + 1
        if count <= 0:
            return Words(np.empty(0, np.uint64), np.zeros(len(self.rows), np.int64))
        grams = self.hashes[:count].copy()
        for place in range(1, n):
            grams *= _STEP
            grams ^= self.hashes[place : place + count]
        grams ^= grams >> np.uint64(29)
        grams *= _MIX
        grams ^= grams >> np.uint64(32)
        within = np.ones(count, dtype=bool)
        for back in range(1, n):
            # A run that begins fewer than n words before the end of its text reaches into the next one.
            ends = self.rows[1:] - back
            within[ends[(ends >= 0) & (ends < count)]] = False
        before = np.concatenate(([0], np.cumsum(within)))
        return Words(grams[within], before[np.minimum(self.rows, count)])


def words(texts: Sequence[bytes]) -> Words:
    """The words of these texts, each UTF-8 without NUL."""
    if not texts:
        return Words(np.empty(0, np.uint64), np.zeros(1, np.int64))
    parts = []
    start = size = 0
    for place, text in enumerate(texts):
        if place > start and size + len(text) > _BATCH:
            parts.append(_hashed(texts[start:place]))
            start, size = place, 0
        size += len(text) + 1
    parts.append(_hashed(texts[start:]))
    if len(parts) == 1:
        return parts[0]
    offsets = np.concatenate(([0], np.cumsum([len(part.hashes) for part in parts])))
    rows = [part.rows[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Words(np.concatenate([part.hashes for part in parts]), np.concatenate([*rows, offsets[-1:]]))


def _hashed(texts: Sequence[bytes]) -> Words:
    blob = np.frombuffer(b"\0".join(texts) + b"\0", dtype=np.uint8)
    inside = _IN_WORD[blob]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate(([0], edges))
    starts, ends = edges[::2], edges[1::2]
    raised, lowered = _raised(len(blob))
    sums = np.empty(len(blob) + 1, dtype=np.uint64)
    sums[0] = 0
    np.cumsum(_VALUES[blob] * raised, out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * lowered[starts]
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    begins = np.concatenate(([0], np.cumsum(lengths)))
    return Words(hashes, np.searchsorted(starts, begins).astype(np.int64))
