"""What a model must not have seen because it is judged by it.

Held out are the queries of experiments and of evaluations, with the sessions that they were asked in, and the
sessions of the validation split. A training example that shares with them a run of 13 words is left out; a
held-out text of 8 to 12 words counts where a turn is exactly it; a shorter one says nothing, since everybody
says "how are you?" (the sizes are those of Brown et al. 2020, appendix C).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from somabrain_dagster.corpus.examples import Example
from somabrain_dagster.corpus.grams import Hashes, words

RUN = 13
"""Words that two texts must share."""

SHORTEST = 8
"""Words of a text that counts as a whole."""

SAME_SESSION = "its session is one of an experiment"
SHARED = f"it shares {RUN} words with what is held out, or a whole turn"

_WHOLE = np.uint64(0xA5A5A5A5A5A5A5A5)
"""Told apart from runs of words of the same number."""


def held_out_hashes(texts: Sequence[str]) -> Hashes:
    """The numbers of what is held out, sorted: runs of 13 words, and whole texts of 8 to 12."""
    return np.unique(_hashes(texts)[0])


def _hashes(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """All numbers of the texts, and of each the place of its text."""
    found = words([text.encode() for text in texts])
    places = np.arange(len(texts), dtype=np.uint64)
    runs = found.grams(RUN)
    lengths = np.diff(found.rows)
    hashes, where = [runs.hashes], [np.repeat(places, np.diff(runs.rows))]
    for length in range(SHORTEST, RUN):
        wholes = found.grams(length)
        single = np.flatnonzero(lengths == length)
        if len(single):
            hashes.append(wholes.hashes[wholes.rows[single]] ^ _WHOLE)
            where.append(places[single])
    return np.concatenate(hashes), np.concatenate(where)


class Decontaminate:
    """Nothing that is held out, in examples to train on."""

    name = "decontaminate"

    def __init__(self, held_out: Hashes, sessions: frozenset[str] = frozenset()) -> None:
        """Judge by what is held out.

        Args:
            held_out: sorted, as `held_out_hashes` gives them.
            sessions: pseudonyms of the sessions of experiments.
        """
        self._held_out = held_out
        self._sessions = sessions

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Leave out what shares anything, of the training split; and the experiments' sessions of both."""
        shared = self._shared(examples)
        return [
            SAME_SESSION if example.session in self._sessions else SHARED if place in shared else example
            for place, example in enumerate(examples)
        ]

    def _shared(self, examples: Sequence[Example]) -> frozenset[int]:
        if not len(self._held_out):
            return frozenset()
        owners, texts = [], []
        for place, example in enumerate(examples):
            if example.split == "train":
                owners += [place] * len(example.turns)
                texts += [turn.content for turn in example.turns]
        if not texts:
            return frozenset()
        hashes, where = _hashes(texts)
        at = np.searchsorted(self._held_out, hashes)
        at[at == len(self._held_out)] = 0
        found = where[self._held_out[at] == hashes]
        return frozenset(owners[place] for place in found.tolist())


def texts_of(examples: Iterable[Example]) -> list[str]:
    """What is said in the validation split."""
    return [turn.content for example in examples if example.split == "validation" for turn in example.turns]


def load(path: Path) -> Hashes:
    """Sorted numbers from a file, read as they are needed."""
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)
