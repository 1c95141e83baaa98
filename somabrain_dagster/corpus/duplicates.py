"""Examples that teach the same, and examples that nearly do.

Equal content has an equal digest. Near duplicates are found by MinHash (Broder 1997) over runs of three words
with locality-sensitive hashing: 128 numbers an example, by `rensa`, in 21 bands of 6, so that a pair of
Jaccard similarity 0.8 meets in a band with probability 0.998 and one of 0.3 with 0.015. A pair that meets is
compared by all 128. Clusters are closed transitively; the example with the best reward stays, of equals the
first in canonical order.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from somabrain_dagster.corpus.examples import Example
from somabrain_dagster.corpus.grams import words
from somabrain_dagster.corpus.stages import NEAR

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
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    starts, later = np.flatnonzero(begins), np.flatnonzero(~begins)
    first = order[starts[np.searchsorted(starts, later) - 1]]
    before, later = order[later - 1], order[later]
    apart = before != first
    return np.concatenate((np.stack((first, later), axis=1), np.stack((before[apart], later[apart]), axis=1)))


def alike(numbers: Signatures, others: Signatures, threshold: float) -> NDArray[np.bool_]:
    """Whether each signature agrees with the other in so large a share of their numbers."""
    found: NDArray[np.bool_] = (numbers == others).mean(axis=1) >= threshold
    return found


class Clusters:
    """Examples that belong together; at first each is alone."""

    def __init__(self, count: int) -> None:
        """Hold so many examples, by their places in canonical order; 8 bytes each."""
        self._parents: Places = np.arange(count, dtype=np.int64)
        self._parent = self._parents.data

    def apart(self, pairs: Places) -> Places:
        """Those of the pairs that are not in one cluster yet."""
        roots = self._roots()
        found: Places = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
        return found

    def join(self, pairs: Places) -> None:
        """Put each two together, and all that belongs to them."""
        for one, other in pairs.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low

    def _root(self, place: int) -> int:
        parent = self._parent
        while (above := int(parent[place])) != place:
            parent[place] = parent[above]
            place = int(parent[above])
        return place

    def _roots(self) -> Places:
        parents = self._parents
        while ((above := parents[parents]) != parents).any():
            parents[:] = above
        return parents

    def left_out(self, rewards: NDArray[np.float64]) -> tuple[Places, Places]:
        """Whom to leave out, in order, and who stays in the place of each.

        Args:
            rewards: of every place.
        """
        roots = self._roots()
        others = np.flatnonzero(roots != np.arange(len(roots)))
        members = np.union1d(others, roots[others])
        members = members[np.lexsort((members, -rewards[members], roots[members]))]
        begins = np.diff(roots[members], prepend=-1) != 0
        best = members[begins][np.cumsum(begins) - 1]
        table = np.stack((members, best), axis=1)[members != best]
        table = table[np.argsort(table[:, 0])]
        return table[:, 0], table[:, 1]


def near_duplicates(
    numbers: Path, keys: Sequence[Path], rewards: NDArray[np.float64], threshold: float
) -> tuple[Places, Places]:
    """Find them among all examples.

    Args:
        numbers: a file of their signatures, (n, 128).
        keys: a file for each band with its n keys.
        rewards: 0 where none is known, (n,).
        threshold: Jaccard similarity from which on two examples are near duplicates.

    Returns:
        Whom to leave out, in order, and who stays in the place of each.
    """
    found = Clusters(len(rewards))
    with numbers.open("rb", buffering=0) as file:
        for path in keys:
            pairs = found.apart(meeting(np.fromfile(path, np.uint64)))
            for start in range(0, len(pairs), _COMPARED):
                some = pairs[start : start + _COMPARED]
                one, other = (_signatures_at(file.fileno(), places) for places in some.T)
                found.join(some[alike(one, other, threshold)])
    return found.left_out(rewards)


def _signatures_at(file: int, places: Places) -> Signatures:
    """Read one by one: a map of the file would hold more of it the more there is."""
    size = NUMBERS * np.dtype(np.uint32).itemsize
    rows = b"".join([os.pread(file, size, size * place) for place in places.tolist()])
    return np.frombuffer(rows, np.uint32).reshape(-1, NUMBERS)


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
