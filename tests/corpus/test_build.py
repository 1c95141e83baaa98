"""Building: the same bytes each time, every line accounted for, and nothing half written."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from somabrain_dagster.corpus.build import CannotBuild, Plan, waits_for
from somabrain_dagster.corpus.examples import Spoken, read_record
from somabrain_dagster.corpus.formats import EXAMPLES, FORMATS
from somabrain_dagster.corpus.stages import EXACT, READ
from tests.corpus.records import (
    built,
    conversations,
    everything_in,
    examples_in,
    memory_records,
    message_records,
    refusals_in,
    write,
)

EXPORT = Path(__file__).parent.parent.parent / "scripts" / "export_learning_corpus.py"
SMALL: dict[str, Any] = {"piece": 40_000, "bucket": 60_000}
"""So that few records are many parts."""

EVERY = Plan(formats=tuple(FORMATS), validation=0.1, least_reward=-0.2, zstd=True, shard_rows=40)


def judged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a reward that differs from conversation to conversation."""
    return [{**record, "reward": len(record["conversation_id"]) % 3 / 2 - 0.5} for record in records]


@pytest.fixture(scope="module")
def mixed() -> list[dict[str, Any]]:
    """Memories and messages, some of them twice, word for word and in other sessions."""
    held = conversations()[:200]
    messages = message_records(held[100:])
    again = [{**record, "conversation_id": f"again-{place}"} for place, record in enumerate(messages[:30])]
    return judged([*memory_records(held[:100]), *messages, *again, *messages[:40]])


def test_the_same_bytes_from_one_worker_and_from_four(mixed: list[dict[str, Any]], tmp_path: Path) -> None:
    one, _ = built(tmp_path, mixed, EVERY, **SMALL)
    four, _ = built(tmp_path, mixed, EVERY, workers=4, **SMALL)
    assert everything_in(one) == everything_in(four)
    assert len(everything_in(one)) > len(FORMATS)


def test_the_size_of_the_parts_changes_nothing(mixed: list[dict[str, Any]], tmp_path: Path) -> None:
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.1)
    whole, _ = built(tmp_path, mixed, plan)
    parts, _ = built(tmp_path, mixed, plan, **SMALL)
    assert everything_in(whole) == everything_in(parts)


def test_the_order_of_the_records_changes_nothing_but_line_numbers(
    mixed: list[dict[str, Any]], tmp_path: Path
) -> None:
    plan = Plan(tokenizer=None, formats=("messages", "sources"), validation=0.1)
    forward, _ = built(tmp_path, mixed, plan)
    backward, _ = built(tmp_path, mixed[::-1], plan)
    one, other = (
        {path: content for path, content in everything_in(folder).items() if "rejects" not in path}
        for folder in (forward, backward)
    )
    assert one == other


def test_every_line_is_an_example_or_a_refusal(mixed: list[dict[str, Any]], tmp_path: Path) -> None:
    folder, found = built(tmp_path, mixed, EVERY, **SMALL)
    came = sum(found.ledger.came.values())
    kept = sum(rows for rows, _ in found.splits.values())
    assert came == kept + len(refusals_in(folder))
    alone = [record for record in mixed if "messages" in record]
    together = {record["conversation_id"] for record in mixed if "messages" not in record}
    assert came == len(alone) + len(together)


def test_examples_are_in_the_order_of_their_digests(mixed: list[dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = built(tmp_path, mixed, **SMALL)
    digests = [example.digest for example in examples_in(folder)]
    assert digests == sorted(set(digests))


def test_memories_of_no_conversation_need_no_more_memory_than_others(tmp_path: Path) -> None:
    """Each waits in a bucket of its own number, and with the one that it answers: a tenant fills none."""
    records: list[dict[str, Any]] = []
    for record in memory_records(conversations()[:40]):
        before = records[-1] if records else record
        together = before["conversation_id"] == record["conversation_id"] and before is not record
        link = {"kind": "reply", "target_id": before["memory_id"]}
        records.append({**record, "tenant_id": "everybody", "links": [link] if together else []})
    for record in records:
        del record["conversation_id"]
    spoken = [read_record(json.dumps(record).encode(), 1) for record in records]
    keys = [key for one in spoken if isinstance(one, Spoken) for key in waits_for(one)]
    answers = sum(bool(record["links"]) for record in records)
    assert len(keys) == len(records) + answers
    assert len(set(keys)) == len(records)

    missing = {**records[0], "memory_id": 10**6, "links": [{"kind": "reply", "target_id": 10**7}]}
    again = records[1]
    plan = Plan(tokenizer=None, near_duplicate=None, formats=(EXAMPLES,), validation=0.0)
    whole, found = built(tmp_path, [*records, missing, again], plan)
    parts, _ = built(tmp_path, [*records, missing, again], plan, **SMALL)
    assert everything_in(whole) == everything_in(parts)
    refused = refusals_in(whole)
    assert len(examples_in(whole)) + sum(row["stage"] == EXACT for row in refused) == answers
    reasons = Counter(row["reason"] for row in refused if row["stage"] == READ)
    alone = sum(not one["links"] for one in records) - len(
        {link["target_id"] for one in records for link in one["links"]}
        & {one["memory_id"] for one in records if not one["links"]}
    )
    assert reasons.pop("the memory of line 2 again") == 1
    assert reasons.total() == alone + 1
    assert found.ledger.came.total() == len(examples_in(whole)) + len(refused)


def test_a_reward_below_the_threshold_is_left_out_and_what_nobody_judged_stays(tmp_path: Path) -> None:
    records = message_records(conversations()[:60])
    for place, record in enumerate(records):
        if place % 3:
            record["reward"] = place % 2 - 0.5
    plan = Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0, least_reward=0.0)
    folder, _ = built(tmp_path, records, plan)
    assert {example.reward for example in examples_in(folder)} == {0.5, None}
    assert all("is below 0" in row["reason"] for row in refusals_in(folder) if row["stage"] == "reward")


def test_every_example_has_something_to_learn_within_the_window(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "tell me " * 100}
    said = {"role": "assistant", "content": "no"}
    records = [{"messages": [asked, said]}, *message_records(conversations()[:60])]
    plan = Plan(formats=(EXAMPLES,), validation=0.0, window=64)
    folder, found = built(tmp_path, records, plan)
    (left_out,) = [row for row in refusals_in(folder) if row["line"] == 1]
    assert left_out["reason"] == "its first 64 tokens hold no word of the assistant"
    assert found.over_window > 0


GOOD = b'{"prompt": "Where is it?", "response": "Under the mat."}\n'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"prompt": "half', "not a record: Input data was truncated"),
        (b'{"prompt": "caf\xe9", "response": "x"}', "not UTF-8"),
        ('{"prompt": "x", "response": "y"}'.encode("utf-16"), "not "),
        (b'{"prompt": "' + b"x" * 50_000_000 + b'"}', "a line has at most 1,048,576"),
        (b'{"prompt": "' + b"x" * 2_000_000 + b'"}', "a line has at most 1,048,576"),
        (b"[" * 100_000, "not a record"),
        (b"{}", "no prompt and response, no messages, and no text"),
    ],
    ids=["malformed", "latin-1", "utf-16", "50 MB", "2 MB", "deep", "empty"],
)
def test_a_bad_line_is_named_by_its_number_and_the_others_are_kept(
    tmp_path: Path, bad: bytes, reason: str
) -> None:
    lines = GOOD + b"\n" + bad + b"\n" + GOOD.replace(b"mat", b"bed").rstrip()
    folder, _ = built(tmp_path, lines, Plan(tokenizer=None, formats=(EXAMPLES,), validation=0.0))
    assert len(examples_in(folder)) == 2
    refused = refusals_in(folder)
    assert refused[0]["line"] == 3
    assert reason in refused[0]["reason"]


def test_line_numbers_hold_behind_a_line_that_fills_many_pieces(tmp_path: Path) -> None:
    lines = GOOD + b"x" * 300_000 + b"\n" + b"broken\n" + GOOD
    folder, _ = built(tmp_path, lines, piece=100_000)
    assert {row["line"] for row in refusals_in(folder)} == {2, 3, 4}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CannotBuild, match="must have a record of JSON a line"):
        built(tmp_path, content)
    assert list((tmp_path / "corpus-0").iterdir()) == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, output = export(tmp_path, tmp_path / "nowhere.jsonl")
    assert code == 1
    assert "nowhere.jsonl (No such file or directory): name a file of JSON lines" in output


def export(tmp_path: Path, source: Path, *options: str, most_bytes: int | None = None) -> tuple[int, str]:
    """Run the script as the specification has it; no file may be larger than `most_bytes`."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    bare = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    output = tmp_path / "out" / "output.jsonl"
    metadata = tmp_path / "out" / "run-metadata.json"
    done = subprocess.run(
        [sys.executable, EXPORT, source, output, "--metadata-out", metadata, "--workers", "1", *options],
        env={**bare, "SOMABRAIN_HOME": str(tmp_path / "home"), "SOMABRAIN_LEARNING_LOOP_ENABLED": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_specifications_command_needs_no_database(tmp_path: Path) -> None:
    source = write(tmp_path / "input.jsonl", memory_records(conversations()[:40]))
    code, printed = export(tmp_path, source)
    assert code == 0, printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["prompt"] and row["response"] for row in rows)
    account = json.loads((tmp_path / "out" / "run-metadata.json").read_text())
    assert json.loads(printed) == account
    assert account["created_at"].endswith("+00:00")
    assert len(account["config_digest"]) == 64
    assert account["git_commit"]
    (written,) = [entry for entry in account["files"] if entry["path"] == "output.jsonl"]
    assert (written["rows"], written["tokens"] > 0) == (len(rows), True)
    assert not (tmp_path / "home" / "postgres").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB in memory, which only root may mount."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("nobody may mount a small file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_nothing_half_written_is_left(tmp_path: Path, small_disk: Path) -> None:
    source = write(tmp_path / "input.jsonl", message_records(conversations()[:300]))
    code, printed = export(tmp_path, source)
    assert code == 1
    assert "(No space left on device): nothing was kept; make room there" in printed
    assert "Traceback" not in printed
    assert list(small_disk.iterdir()) == []


def test_no_room_is_said_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk: the write fails in the same place."""
    source = write(tmp_path / "input.jsonl", message_records(conversations()[:300]))
    code, printed = export(tmp_path, source, most_bytes=100_000)
    assert code == 1
    assert "nothing was kept; make room there" in printed
    assert "Traceback" not in printed
    assert list((tmp_path / "out").iterdir()) == []
