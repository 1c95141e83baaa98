"""What each trainer asks of its files, from its own documentation, as rules that files hold or break."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zstandard

from somabrain_dagster.corpus.formats import NANOCHAT_ROW_GROUP
from somabrain_dagster.corpus.manifest import Manifest

NANOGPT_BLOCK = 1024
"""nanoGPT's own `block_size`: of a shorter file it cannot draw one block."""

Rule = Callable[[Any], str | None]


def broken_rules(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Each rule that a file breaks: the file, the row and what is wrong with it."""
    paths: dict[str, list[Path]] = {}
    for entry in manifest.files:
        name, _, rest = entry.path.partition("/")
        if rest:
            paths.setdefault(name, []).append(folder / entry.path)
    for name, files in paths.items():
        if name in LINES:
            for path in files:
                yield from _broken_lines(folder, path, LINES[name])
        elif name in FOLDERS:
            for fault in FOLDERS[name](sorted(files), manifest):
                yield f"{name}: {fault}"


def _broken_lines(folder: Path, path: Path, rule: Rule) -> Iterator[str]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            fault = rule(json.loads(line))
        except ValueError as error:
            fault = f"not JSON: {error}"
        if fault:
            yield f"{path.relative_to(folder)}, line {number}: {fault}"


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, compressed or not."""
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield from file
            return
        rest = b""
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as plain:
            while chunk := plain.read(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest:
            yield rest


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _conversation(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "`messages` must be a list with something in it"
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            return "a message has `role` and `content`, and nothing else"
        if message["role"] not in ("system", "user", "assistant") or not _text(message["content"]):
            return f"role {message['role']!r}, or content that is no text"
    return None


def _prompt_response(row: Any) -> str | None:
    if not isinstance(row, dict) or not {"prompt", "response"} <= set(row):
        return "a row has `prompt` and `response`"
    if not set(row) <= {"prompt", "response", "history", "system"}:
        return f"unknown fields {sorted(set(row) - {'prompt', 'response', 'history', 'system'})}"
    pairs = row.get("history", [])
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_text, pair)) for pair in pairs):
        return "`history` is a list of pairs of texts"
    return None if _text(row["prompt"]) and _text(row["response"]) else "`prompt` and `response` are texts"


def _messages(row: Any) -> str | None:
    if not isinstance(row, dict) or set(row) != {"messages"}:
        return "a row has `messages` and nothing else"
    if fault := _conversation(row["messages"]):
        return fault
    return None if row["messages"][-1]["role"] == "assistant" else "the last message is not the assistant's"


def _nanochat(row: Any) -> str | None:
    if not isinstance(row, list):
        return "a row is a bare array of messages"
    if len(row) < 2:
        return "a conversation has at least two messages"
    if fault := _conversation(row):
        return fault
    for place, message in enumerate(row):
        due = "user" if place % 2 == 0 else "assistant"
        if message["role"] != due:
            return f"message {place} is {message['role']}'s and should be {due}'s"
    return None


def _completed(row: Any, fields: set[str], completions: tuple[str, ...]) -> str | None:
    if not isinstance(row, dict) or set(row) != fields:
        return f"a row has {', '.join(sorted(fields))}, and nothing else"
    for name in ("prompt", *completions):
        if fault := _conversation(row[name]):
            return fault
    if row["prompt"][-1]["role"] != "user":
        return "the prompt does not end with the user"
    if any(len(row[name]) != 1 or row[name][0]["role"] != "assistant" for name in completions):
        return "a completion is one message of the assistant"
    return None


def _trl(row: Any) -> str | None:
    return _completed(row, {"prompt", "completion"}, ("completion",))


def _dpo(row: Any) -> str | None:
    if fault := _completed(row, {"prompt", "chosen", "rejected"}, ("chosen", "rejected")):
        return fault
    return "what was chosen is what was rejected" if row["chosen"] == row["rejected"] else None


def _kto(row: Any) -> str | None:
    if fault := _completed(row, {"prompt", "completion", "label"}, ("completion",)):
        return fault
    return None if isinstance(row["label"], bool) else "`label` is true or false"


LINES: Mapping[str, Rule] = {
    "prompt-response": _prompt_response,
    "messages": _messages,
    "openai": _messages,
    "nanochat": _nanochat,
    "trl": _trl,
    "dpo": _dpo,
    "kto": _kto,
}


def _nanochat_parquet(files: list[Path], manifest: Manifest) -> Iterator[str]:
    rows = []
    for path in files:
        parquet = pq.ParquetFile(path)
        if "text" not in parquet.schema_arrow.names:
            yield f"{path.name} has no column `text`"
            return
        groups = [parquet.metadata.row_group(place).num_rows for place in range(parquet.num_row_groups)]
        if any(size != NANOCHAT_ROW_GROUP for size in groups[:-1]) or max(groups) > NANOCHAT_ROW_GROUP:
            yield f"{path.name} has row groups of {sorted(set(groups))}, not of {NANOCHAT_ROW_GROUP:,}"
        rows.append(parquet.metadata.num_rows)
    held_out = manifest.splits.get("validation")
    if held_out and (len(files) < 2 or rows[-1] > held_out.examples):
        yield "the last file is not the validation split"


def _nanogpt(files: list[Path], manifest: Manifest) -> Iterator[str]:
    vocabulary = manifest.tokenizer.vocabulary if manifest.tokenizer else 0
    end = manifest.tokenizer.end if manifest.tokenizer else 0
    for path in files:
        if path.stat().st_size % 2:
            yield f"{path.name} is not a row of uint16"
            continue
        tokens = np.memmap(path, "<u2", "r")
        if len(tokens) <= NANOGPT_BLOCK:
            yield f"{path.name} has {len(tokens)} tokens, not more than a block of {NANOGPT_BLOCK}"
        if int(tokens.max()) >= vocabulary:
            yield f"{path.name} has a token that the vocabulary of {vocabulary:,} has not"
        if int(tokens[-1]) != end:
            yield f"{path.name} does not end with the token that ends a text"


def _tokenized(files: list[Path], manifest: Manifest) -> Iterator[str]:
    window = manifest.plan.window
    for path in files:
        row = 0
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for ids, supervised in zip(
                batch.column("input_ids").to_pylist(), batch.column("supervised").to_pylist(), strict=True
            ):
                row += 1
                if len(ids) != len(supervised):
                    yield f"{path.name}, row {row}: {len(ids)} tokens and {len(supervised)} marks"
                elif not any(supervised[:window]):
                    yield f"{path.name}, row {row}: nothing to learn within {window:,} tokens"


FOLDERS: Mapping[str, Callable[[list[Path], Manifest], Iterator[str]]] = {
    "nanochat-parquet": _nanochat_parquet,
    "nanogpt": _nanogpt,
    "tokenized": _tokenized,
}
