"""Real conversations as records, in the shapes that a corpus is built from."""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from somabrain_dagster.corpus.build import Built, HeldOut, Plan, build
from somabrain_dagster.corpus.consumers import read_lines
from somabrain_dagster.corpus.examples import Example, Split
from somabrain_dagster.corpus.formats import EXAMPLES, example_of
from somabrain_dagster.corpus.pseudonyms import Pseudonyms
from somabrain_dagster.operations.chitchat import Conversation, read_chitchat

PSEUDONYMS = Pseudonyms(b"a key of tests, of thirty-two bytes and more")


@lru_cache(1)
def conversations() -> tuple[Conversation, ...]:
    """Those in which somebody answers, the first 600 by time."""
    held = [one for one in read_chitchat(1).conversations if len(one.speakers) == 2 and one.replies()]
    return tuple(held[:600])


def memory_records(held: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Each message as the memory of the one who answered first."""
    records: list[dict[str, Any]] = []
    for one in held:
        tenant = one.messages[one.replies()[0][0]].speaker
        for message in one.messages:
            records.append(
                {
                    "tenant_id": tenant,
                    "memory_id": len(records) + 1,
                    "conversation_id": one.conversation_id,
                    "speaker": message.speaker,
                    "text": message.text,
                    "occurred_at": message.occurred_at.isoformat(),
                }
            )
    return records


def message_records(held: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Each conversation as messages; who answered first is the assistant."""
    records = []
    for one in held:
        tenant = one.messages[one.replies()[0][0]].speaker
        messages = [
            {"role": "assistant" if message.speaker == tenant else "user", "content": message.text}
            for message in one.messages
        ]
        records.append({"tenant_id": tenant, "conversation_id": one.conversation_id, "messages": messages})
    return records


def write(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def built(
    tmp_path: Path,
    records: Iterable[dict[str, Any]] | bytes,
    plan: Plan | None = None,
    held_out: HeldOut | None = None,
    **how: Any,
) -> tuple[Path, Built]:
    """A corpus of records in a folder of its own."""
    number = len(list(tmp_path.glob("corpus-*")))
    source = tmp_path / f"records-{number}.jsonl"
    if isinstance(records, bytes):
        source.write_bytes(records)
    else:
        write(source, records)
    folder = tmp_path / f"corpus-{number}"
    folder.mkdir()
    plan = plan or Plan(tokenizer=None, formats=(EXAMPLES,))
    return folder, build(source, folder, plan, PSEUDONYMS, held_out or HeldOut(), **how)


def examples_in(folder: Path, split: Split = "train") -> list[Example]:
    path = folder / EXAMPLES / f"{split}.jsonl.zst"
    return [example_of(json.loads(line), split) for line in read_lines(path)] if path.exists() else []


def refusals_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(folder / "rejects.jsonl.zst")]


def everything_in(folder: Path) -> dict[str, bytes]:
    """Each file of a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
