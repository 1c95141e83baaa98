"""What models are judged by is not in what they learn from."""

from pathlib import Path

from somabrain_dagster.corpus.build import HeldOut, Plan
from somabrain_dagster.corpus.contamination import Decontaminate, held_out_hashes
from somabrain_dagster.corpus.examples import Example, Turn
from somabrain_dagster.corpus.formats import EXAMPLES
from somabrain_dagster.corpus.reading import Corpus
from somabrain_dagster.corpus.verification import leaks
from tests.corpus.records import (
    PSEUDONYMS,
    built,
    conversations,
    examples_in,
    memory_records,
    refusals_in,
)
from tests.corpus.test_duplicates import long_ones, said_again
from tests.corpus.test_manifest import account

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def judged(text: str, held_out: list[str], split: str = "train") -> bool:
    """Whether an example with this text is kept."""
    example = Example((Turn("user", "And then?"), Turn("assistant", text)), split=split)  # type: ignore[arg-type]
    (outcome,) = Decontaminate(held_out_hashes(held_out)).judge([example])
    return outcome == example


def test_thirteen_words_in_a_row_are_enough() -> None:
    assert not judged(f"He said: {THIRTEEN.upper()}, and left.", [f"well, {THIRTEEN} indeed"])
    assert judged(f"He said: {THIRTEEN.replace('seven', '7')}", [THIRTEEN])


def test_a_shorter_text_counts_where_a_turn_is_exactly_it() -> None:
    short = "where did you put the green keys yesterday"
    assert not judged(f"{short}?", [short])
    assert judged(f"so {short}", [short])


def test_what_everybody_says_counts_for_nothing() -> None:
    assert judged("how are you today", ["how are you today"])


def test_what_is_held_out_itself_stays() -> None:
    assert judged(THIRTEEN, [THIRTEEN], split="validation")


def test_planted_queries_of_evaluations_are_found(tmp_path: Path) -> None:
    records = long_ones(30)
    planted = {
        **records[0],
        "conversation_id": "planted",
        "messages": [
            {"role": "user", "content": f"Tell me: {THIRTEEN}?"},
            {"role": "assistant", "content": "Fourteen."},
        ],
    }
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0)
    folder, _ = built(tmp_path, [*records, planted], plan, HeldOut((THIRTEEN,)))
    assert [row["line"] for row in refusals_in(folder) if row["stage"] == "decontaminate"] == [31]


def test_sessions_of_experiments_are_left_out(tmp_path: Path) -> None:
    records = long_ones(20)
    whose = records[3]
    held = PSEUDONYMS.session(whose["tenant_id"], whose["conversation_id"])
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0)
    folder, _ = built(tmp_path, records, plan, HeldOut(sessions=frozenset([held])))
    assert [row["line"] for row in refusals_in(folder) if row["stage"] == "decontaminate"] == [4]
    assert held not in {example.session for example in examples_in(folder)}


def test_the_split_is_of_sessions_and_nothing_leaks(tmp_path: Path) -> None:
    records = memory_records(conversations())
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.3)
    folder, found = built(tmp_path, records, plan)
    train, validation = (examples_in(folder, split) for split in ("train", "validation"))
    assert len(train) > len(validation) > 30
    assert not {one.session for one in train} & {one.session for one in validation}
    corpus = Corpus(str(folder), account(found, plan))
    assert list(leaks(corpus)) == []


def test_a_planted_leak_is_left_out_of_what_is_trained_on(tmp_path: Path) -> None:
    """A held-out conversation said again in a session of the training split: too little alike to be a
    duplicate, but with the same words in a row."""
    records = long_ones(80)
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.3)
    folder, _ = built(tmp_path, records, plan)
    held = next(
        example
        for example in examples_in(folder, "validation")
        if any(len(turn.content.split()) > 13 for turn in example.turns)
    )
    quoted = next(turn.content for turn in held.turns if len(turn.content.split()) > 13)
    host = next(one for one in examples_in(folder, "train"))
    original = records[host.line - 1]
    planted = [said_again(original, f"planted-{place}", f" {quoted}") for place in range(12)]
    again, _ = built(tmp_path, [*records, *planted], plan)
    assert not any(quoted in turn.content for one in examples_in(again) for turn in one.turns)
