"""Duplicates that were planted among real conversations are found, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.duplicates import Clusters, alike, meeting, signatures
from somabrain_dagster.corpus.formats import EXAMPLES
from tests.corpus.records import built, conversations, examples_in, message_records, refusals_in

ALL = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0)


def long_ones(count: int) -> list[dict[str, Any]]:
    """Records of conversations of 40 words and more, no two of them alike."""
    records = message_records(conversations())
    long = [
        record
        for record in records
        if sum(len(message["content"].split()) for message in record["messages"]) >= 80
    ]
    return long[:count]


def said_again(record: dict[str, Any], planted: str, change: str = "") -> dict[str, Any]:
    """A planted copy of a record, in a session of its own, with something added to its last answer."""
    messages = [dict(message) for message in record["messages"]]
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    messages[last]["content"] += change
    return {**record, "conversation_id": planted, "messages": messages}


def test_a_planted_copy_is_left_out_whatever_its_session(tmp_path: Path) -> None:
    records = long_ones(60)
    copies = [said_again(record, f"planted-{place}") for place, record in enumerate(records)]
    once, _ = built(tmp_path, records, ALL)
    twice, found = built(tmp_path, records + copies, ALL)
    assert [one.digest for one in examples_in(twice)] == [one.digest for one in examples_in(once)]
    left_out = {stage: count for stage, _, count in found.ledger.table()}
    assert left_out["exact duplicates"] >= len(examples_in(once))


def test_a_planted_near_copy_is_left_out_and_names_who_stays(tmp_path: Path) -> None:
    records = long_ones(60)
    once, _ = built(tmp_path, records, ALL)
    clean = {one.digest.hex()[:16] for one in examples_in(once)}
    copies = [said_again(record, f"planted-{place}", " okay then") for place, record in enumerate(records)]
    twice, _ = built(tmp_path, records + copies, ALL)
    left_out = [row for row in refusals_in(twice) if row["stage"] == "near duplicates"]
    assert len(examples_in(twice)) == len(clean)
    assert len(left_out) >= len(clean)
    stay = {one.digest.hex()[:16] for one in examples_in(twice)}
    assert {row["reason"].removeprefix("nearly the same as ") for row in left_out} <= stay


def test_of_duplicates_the_one_with_the_best_reward_stays(tmp_path: Path) -> None:
    record = long_ones(1)[0]
    near = [
        {**said_again(record, f"planted-{reward}", f" okay {reward}"), "reward": reward}
        for reward in (-0.5, 0.75, 0.25)
    ]
    exact = [{**said_again(record, f"same-{reward}"), "reward": reward} for reward in (0.1, -0.1)]
    folder, _ = built(tmp_path, near + exact, ALL)
    (kept,) = examples_in(folder)
    assert kept.reward == 0.75


def test_without_a_threshold_near_copies_stay(tmp_path: Path) -> None:
    record = long_ones(1)[0]
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0, near_duplicate=None)
    folder, _ = built(tmp_path, [record, said_again(record, "planted", " okay then")], plan)
    assert len(examples_in(folder)) == 2


def test_the_order_and_repetition_of_runs_do_not_matter() -> None:
    one, other, third = signatures(["a b c d", "a b c d", "e f g h i"])
    assert (one == other).all()
    assert (one != third).mean() > 0.9


def test_signatures_estimate_the_similarity_of_real_texts() -> None:
    """Against Jaccard similarity itself, over runs of three words: the mean error of 128 numbers."""
    texts = [
        " ".join(message.text for message in one.messages) for one in conversations() if len(one.messages) > 5
    ][:40]
    pairs = [(text, " ".join(text.split()[: int(len(text.split()) * 0.8)])) for text in texts]

    def shingles(text: str) -> set[tuple[str, ...]]:
        spaced = "".join(
            letter if letter.isalnum() or letter == "'" or ord(letter) > 127 else " " for letter in text
        )
        spoken = spaced.lower().split()
        return set(zip(spoken, spoken[1:], spoken[2:], strict=False))

    errors = []
    for text, cut in pairs:
        one, other = signatures([text, cut])
        both = shingles(text), shingles(cut)
        errors.append((one == other).mean() - len(both[0] & both[1]) / len(both[0] | both[1]))
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).max() < 0.2


def test_short_texts_are_told_apart_by_their_words() -> None:
    one, same, other = signatures(["thank you", "Thank, you!", "good night"])
    assert (one == same).all()
    assert (one != other).any()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_those_who_share_a_key_meet(keys: list[int]) -> None:
    """Each is joined to the first and to the one before: all of one key are one cluster."""
    found = Clusters(len(keys))
    found.join(meeting(np.array(keys, np.uint64)))
    left_out, stays = found.left_out(np.zeros(len(keys)))
    firsts = {key: keys.index(key) for key in keys}
    expected = [(place, firsts[key]) for place, key in enumerate(keys) if firsts[key] != place]
    assert list(zip(left_out.tolist(), stays.tolist(), strict=True)) == expected


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=10, max_size=10),
)
def test_of_all_that_are_joined_by_others_the_best_stays(
    pairs: list[tuple[int, int]], rewards: list[float]
) -> None:
    """Against sets that are merged one by one; of equals the first stays, and what is joined is not apart."""
    sets = [{place} for place in range(10)]
    found = Clusters(10)
    for one, other in pairs:
        found.join(found.apart(np.array([[one, other]])))
        merged = next(held for held in sets if one in held) | next(held for held in sets if other in held)
        sets = [merged, *(held for held in sets if not held & merged)]
    best = [min(held, key=lambda place: (-rewards[place], place)) for held in sets]
    expected = sorted(
        (place, stays) for held, stays in zip(sets, best, strict=True) for place in held if place != stays
    )
    left_out, stays = found.left_out(np.array(rewards))
    assert list(zip(left_out.tolist(), stays.tolist(), strict=True)) == expected
    joined = np.array(pairs, np.int64).reshape(-1, 2)
    assert len(found.apart(joined)) == 0


@pytest.mark.parametrize(("threshold", "expected"), [(1.0, [1, 0]), (0.5, [1, 1]), (1.1, [0, 0])])
def test_signatures_are_compared_by_the_share_of_equal_numbers(threshold: float, expected: list[int]) -> None:
    one = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.uint32)
    other = np.array([[1, 2, 3, 4], [1, 2, 0, 0]], np.uint32)
    assert alike(one, other, threshold).tolist() == expected
