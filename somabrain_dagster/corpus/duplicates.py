"""Examples that teach the same, and examples that nearly do.

Equal content has an equal digest. Near duplicates are found by MinHash (Broder 1997) over runs of three words
with locality-sensitive hashing: 128 numbers an example, by `rensa`, in 21 bands of 6, so that a pair of
Jaccard similarity 0.8 meets in a band with probability 0.998 and one of 0.3 with 0.015. A pair that meets is
compared by all 128. Clusters are closed transitively; the example with the best reward stays, of equals the
first in canonical order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from somabrain_dagster.corpus.examples import Example
from somabrain_dagster.corpus.grams import words
from somabrain_dagster.corpus.stages import EXACT, NEAR

NUMBERS = 128
BANDS = 21
ROWS = 6
SEED = 1997
SHINGLE = 3
"""Words in a run."""

_COMPARED = 1 << 12
"""Pairs that are compared at once."""

Signatures = NDArray[np.uint32]
Places = NDArray[np.int64]


def signatures(texts: Sequence[str]) -> Signatures:
    """The MinHash of each text over its runs of three words, or over its words if it has fewer; (n, 128)."""
    if not texts:
        return np.empty((0, NUMBERS), np.uint32)
    found = words([text.encode() for text in texts])
    grams = found.grams(SHINGLE)
    hashes, rows = grams.hashes, grams.rows
    short = np.flatnonzero(np.diff(rows) == 0)
    if len(short):
        pieces, lengths = [], np.diff(rows)
        before = 0
        for place in short.tolist():
            own = found.hashes[found.rows[place] : found.rows[place + 1]]
            pieces += [hashes[rows[before] : rows[place]], own]
            lengths[place] = len(own)
            before = place
        hashes = np.concatenate([*pieces, hashes[rows[before] :]])
        rows = np.concatenate(([0], np.cumsum(lengths)))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, NUMBERS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def bands(numbers: Signatures) -> NDArray[np.uint64]:
    """A number for each band of each signature, shape (21, n)."""
    keys = np.zeros((BANDS, len(numbers)), np.uint64)
    for band in range(BANDS):
        for row in range(ROWS):
            keys[band] *= np.uint64(0x9E3779B97F4A7C15)
            keys[band] ^= numbers[:, band * ROWS + row]
            keys[band] ^= keys[band] >> np.uint64(31)
    return keys


def meeting(keys: NDArray[np.uint64]) -> Places:
    """Pairs of places with an equal key: each place with the first one, and with the one before; (m, 2)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    if not same.any():
        return np.empty((0, 2), np.int64)
    begins = np.concatenate(([True], ~same))
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    later = np.flatnonzero(same) + 1
    pairs = np.concatenate(
        (
            np.stack((first[later], order[later]), axis=1),
            np.stack((order[later - 1], order[later]), axis=1),
        )
    )
    return np.unique(pairs, axis=0)


def alike(numbers: Signatures, pairs: Places, threshold: float) -> Places:
    """Those of the pairs whose signatures agree in so large a share of their numbers."""
    kept = []
    for start in range(0, len(pairs), _COMPARED):
        some = pairs[start : start + _COMPARED]
        share = (numbers[some[:, 0]] == numbers[some[:, 1]]).mean(axis=1)
        kept.append(some[share >= threshold])
    return np.concatenate(kept) if kept else pairs


def clusters(pairs: Places, rewards: NDArray[np.float64]) -> tuple[Places, Places]:
    """Whom to leave out, in order, and who stays in the place of each.

    Args:
        pairs: near duplicates, (m, 2), places in canonical order.
        rewards: of every place.
    """
    parents: dict[int, int] = {}

    def root(place: int) -> int:
        while (parent := parents.get(place, place)) != place:
            parents[place] = parents.get(parent, parent)
            place = parent
        return place

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    members: dict[int, list[int]] = {}
    for place in sorted({place for pair in pairs.tolist() for place in pair}):
        members.setdefault(root(place), []).append(place)
    left_out = []
    for cluster in members.values():
        best = min(cluster, key=lambda place: (-rewards[place], place))
        left_out += [(place, best) for place in cluster if place != best]
    left_out.sort()
    table = np.array(left_out, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def near_duplicates(
    numbers: Signatures, keys: Sequence[Path], rewards: NDArray[np.float64], threshold: float
) -> tuple[Places, Places]:
    """Find them among all examples.

    Args:
        numbers: their signatures, (n, 128); may be a memory map.
        keys: a file for each band with its n keys.
        rewards: 0 where none is known, (n,).
        threshold: Jaccard similarity from which on two examples are near duplicates.

    Returns:
        Whom to leave out, in order, and who stays in the place of each.
    """
    found = []
    for path in keys:
        found.append(alike(numbers, meeting(np.fromfile(path, np.uint64)), threshold))
    return clusters(np.unique(np.concatenate(found), axis=0), rewards)


class ExactDuplicates:
    """Each content once; examples come in canonical order, the one to keep first."""

    name = EXACT

    def __init__(self) -> None:
        self._last = b""

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Leave out what equals the one before."""
        judged: list[Example | str] = []
        for example in examples:
            digest = example.digest
            judged.append(again(digest) if digest == self._last else example)
            self._last = digest
        return judged


def again(digest: bytes) -> str:
    """Why an exact duplicate is left out."""
    return f"the same as {digest.hex()[:16]}"


class NearDuplicates:
    """One example of each cluster; examples come in canonical order, none left out."""

    name = NEAR

    def __init__(self, first: int, left_out: Places, stays: Sequence[str]) -> None:
        """Judge by what was found.

        Args:
            first: the place of the first example that will come.
            left_out: places, in order.
            stays: the beginning of the digest of the one that stays instead of each.
        """
        self._next = first
        self._left_out = dict(zip(left_out.tolist(), stays, strict=True))

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Leave out those that were found."""
        judged: list[Example | str] = []
        for place, example in enumerate(examples, self._next):
            other = self._left_out.get(place)
            judged.append(example if other is None else f"nearly the same as {other}")
        self._next += len(examples)
        return judged
