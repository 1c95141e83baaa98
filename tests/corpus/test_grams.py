"""Words as numbers: equal ones have equal numbers wherever they stand, and runs end where their text does."""

import re
import string

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.corpus.grams import words

TEXTS = st.lists(st.text(alphabet=string.ascii_letters + string.digits + " .,'-ü\n", max_size=60), max_size=8)


def plain(text: str) -> list[str]:
    """The words of a text, told apart by nothing but the alphabet."""
    return re.findall(r"[0-9a-z'ü]+", re.sub("[A-Z]", lambda found: found.group().lower(), text))


@given(TEXTS)
def test_equal_words_have_equal_numbers_and_others_have_others(texts: list[str]) -> None:
    found = words([text.encode() for text in texts])
    spoken = [word for text in texts for word in plain(text)]
    assert len(found.hashes) == len(spoken)
    assert len(dict(zip(found.hashes.tolist(), spoken, strict=True))) == len(set(spoken))
    assert len(set(zip(found.hashes.tolist(), spoken, strict=True))) == len(set(spoken))


@given(TEXTS)
def test_each_text_has_its_own_words(texts: list[str]) -> None:
    together = words([text.encode() for text in texts])
    for place, text in enumerate(texts):
        own = together.hashes[together.rows[place] : together.rows[place + 1]]
        assert own.tolist() == words([text.encode()]).hashes.tolist()


@given(TEXTS, st.integers(1, 6))
def test_runs_of_words_stay_within_their_text(texts: list[str], n: int) -> None:
    runs = words([text.encode() for text in texts]).grams(n)
    assert np.diff(runs.rows).tolist() == [max(0, len(plain(text)) - n + 1) for text in texts]
    for place, text in enumerate(texts):
        own = words([text.encode()]).grams(n)
        assert runs.hashes[runs.rows[place] : runs.rows[place + 1]].tolist() == own.hashes.tolist()


def test_the_order_of_words_is_told() -> None:
    one, other = (words([text]).grams(2).hashes.tolist() for text in (b"ab cd", b"cd ab"))
    assert one != other


def test_many_texts_are_hashed_in_parts_and_read_the_same() -> None:
    texts = [f"text {number} of many".encode() * 2000 for number in range(80)]
    together = words(texts)
    for place in (0, 41, 79):
        own = together.hashes[together.rows[place] : together.rows[place + 1]]
        assert own.tolist() == words([texts[place]]).hashes.tolist()
