"""The formats that trainers take: small writers behind one protocol.

A format is made for a folder, is given examples in canonical order, and says at its end which files it wrote.
Equal examples give equal bytes: nothing in a file depends on when, where or by how many it was written.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from somabrain_dagster.corpus.examples import SPLITS, Example, Split, Turn
from somabrain_dagster.corpus.tokens import TokenizerError, Tokens, written_out

NANOCHAT_ROW_GROUP = 1024
ROW_GROUP = 1024
"""Rows that are held until they are written."""

_FLUSH = 1 << 20
_LEVEL = 3


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a corpus.

    Attributes:
        path: within it.
        sha256: of its bytes, in hexadecimal.
        bytes: how many they are.
        rows: examples, or lines, in it.
        tokens: of those examples; None where they were not counted.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    tokens: int | None = None


@dataclass(frozen=True)
class Target:
    """Where and how a format is written.

    Attributes:
        root: the folder of the corpus.
        tokens: the tokenizer, if there is one.
        zstd: whether lines of JSON are compressed.
        shard_rows: rows in a file at most; 0 for any number.
    """

    root: Path
    tokens: Tokens | None = None
    zstd: bool = False
    shard_rows: int = 0

    def count(self, example: Example) -> int | None:
        """The tokens of an example, if they were counted."""
        return None if self.tokens is None else len(example.tokens) // self.tokens.dtype.itemsize


class Writer(Protocol):
    """A format that is being written."""

    def write(self, example: Example) -> None:
        """Take an example, if the format has a place for it."""
        ...

    def close(self) -> list[FileEntry]:
        """Finish, and say what was written."""
        ...


class HashedFile:
    """A file whose digest is known when it is written. Buffered, and compressed where that is asked."""

    def __init__(self, path: Path, *, zstd: bool = False) -> None:
        """Create the file, and its folder where that is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("wb")
        self._packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj() if zstd else None
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._size = 0
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending, self._size = [], 0
        self._put(data if self._packer is None else self._packer.compress(data))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def close(self) -> str:
        """Finish the file; its SHA-256 in hexadecimal."""
        self._flush()
        if self._packer is not None:
            self._put(self._packer.flush())
        self._file.close()
        return self._digest.hexdigest()


def entry_of(root: Path, path: Path, rows: int, tokens: int | None = None) -> FileEntry:
    """A file that another has written."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(
        path=path.relative_to(root).as_posix(),
        sha256=digest,
        bytes=path.stat().st_size,
        rows=rows,
        tokens=tokens,
    )


def _sum(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


class _Shards:
    """The files of one split, one after the other."""

    def __init__(self, target: Target, folder: str, stem: str, suffix: str) -> None:
        self.target = target
        self._folder, self._stem, self._suffix = folder, stem, suffix
        self.entries: list[FileEntry] = []
        self.rows = 0
        self.tokens: int | None = None if target.tokens is None else 0

    @property
    def path(self) -> Path:
        number = f"-{len(self.entries):05}" if self.target.shard_rows else ""
        return self.target.root / self._folder / f"{self._stem}{number}{self._suffix}"

    @property
    def full(self) -> bool:
        return 0 < self.target.shard_rows <= self.rows

    def count(self, example: Example) -> None:
        self.rows += 1
        self.tokens = _sum(self.tokens, self.target.count(example))

    def closed(self, sha256: str, size: int) -> None:
        self.entries.append(
            FileEntry(
                path=self.path.relative_to(self.target.root).as_posix(),
                sha256=sha256,
                bytes=size,
                rows=self.rows,
                tokens=self.tokens,
            )
        )
        self.rows, self.tokens = 0, None if self.target.tokens is None else 0


Row = Callable[[Example], object | None]
"""What a format makes of an example; None where it has no place for it."""

_encode = msgspec.json.Encoder().encode


class Lines:
    """A line of JSON an example, in `train.jsonl` and `validation.jsonl`."""

    def __init__(self, target: Target, folder: str, row: Row) -> None:
        """Open nothing yet."""
        suffix = ".jsonl.zst" if target.zstd else ".jsonl"
        self._row = row
        self._zstd = target.zstd
        self._shards = {split: _Shards(target, folder, split, suffix) for split in SPLITS}
        self._files: dict[Split, HashedFile] = {}

    def write(self, example: Example) -> None:
        """Add a line."""
        row = self._row(example)
        if row is None:
            return
        split = example.split
        shards = self._shards[split]
        file = self._files.get(split)
        if file is None:
            file = self._files[split] = HashedFile(shards.path, zstd=self._zstd)
        file.write(_encode(row) + b"\n")
        shards.count(example)
        if shards.full:
            self._end(split)

    def _end(self, split: Split) -> None:
        file = self._files.pop(split)
        sha256 = file.close()
        self._shards[split].closed(sha256, file.bytes)

    def close(self) -> list[FileEntry]:
        """Finish the last file of each split."""
        for split in tuple(self._files):
            self._end(split)
        return [entry for split in SPLITS for entry in self._shards[split].entries]


class Table:
    """A Parquet file, written in groups of rows."""

    def __init__(self, path: Path, schema: pa.Schema, group: int) -> None:
        """Create the file, and its folder where that is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._schema, self._group = schema, group
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=_LEVEL, write_statistics=True
        )
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == self._group:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema), self._group)
        self._rows = []

    def close(self) -> None:
        """Finish the file."""
        if self._rows:
            self._flush()
        self._writer.close()


class Tables:
    """Parquet files, `train.parquet` and `validation.parquet`."""

    def __init__(
        self, target: Target, folder: str, schema: pa.Schema, row: Callable[[Example], dict[str, Any] | None]
    ) -> None:
        """Open nothing yet."""
        self._target, self._schema, self._row = target, schema, row
        self._shards = {split: _Shards(target, folder, split, ".parquet") for split in SPLITS}
        self._tables: dict[Split, Table] = {}

    def write(self, example: Example) -> None:
        """Add a row."""
        row = self._row(example)
        if row is None:
            return
        split = example.split
        shards = self._shards[split]
        if split not in self._tables:
            self._tables[split] = Table(shards.path, self._schema, ROW_GROUP)
        self._tables[split].write(row)
        shards.count(example)
        if shards.full:
            self._end(split)

    def _end(self, split: Split) -> None:
        table = self._tables.pop(split)
        table.close()
        entry = entry_of(self._target.root, table.path, 0)
        self._shards[split].closed(entry.sha256, entry.bytes)

    def close(self) -> list[FileEntry]:
        """Finish the last file of each split."""
        for split in tuple(self._tables):
            self._end(split)
        return [entry for split in SPLITS for entry in self._shards[split].entries]


class NanochatParquet:
    """Texts in the column `text`, in groups of 1,024 rows; the last file is the validation split."""

    def __init__(self, target: Target) -> None:
        """Open nothing yet."""
        self._target = target
        self._folder = target.root / "nanochat-parquet"
        self._schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
        self._shards: list[tuple[Path, int, int | None]] = []
        self._tables: dict[Split, Table] = {}
        self._rows = dict.fromkeys(SPLITS, 0)
        self._tokens: dict[Split, int | None] = dict.fromkeys(SPLITS, None if target.tokens is None else 0)

    def write(self, example: Example) -> None:
        """Add a text."""
        if example.turns[-1].role == "rejected":
            return
        split = example.split
        if split not in self._tables:
            name = "held-out" if split == "validation" else f"shard_{len(self._shards):05}"
            self._tables[split] = Table(self._folder / f"{name}.parquet", self._schema, NANOCHAT_ROW_GROUP)
        self._tables[split].write({"text": written_out(example)})
        self._rows[split] += 1
        self._tokens[split] = _sum(self._tokens[split], self._target.count(example))
        if split == "train" and 0 < self._target.shard_rows <= self._rows[split]:
            self._end(split)

    def _end(self, split: Split) -> None:
        table = self._tables.pop(split)
        table.close()
        path = self._folder / f"shard_{len(self._shards):05}.parquet"
        table.path.rename(path)
        self._shards.append((path, self._rows[split], self._tokens[split]))
        self._rows[split], self._tokens[split] = 0, None if self._target.tokens is None else 0

    def close(self) -> list[FileEntry]:
        """Finish; the held-out texts come last."""
        for split in SPLITS:
            if split in self._tables:
                self._end(split)
        return [entry_of(self._target.root, path, rows, tokens) for path, rows, tokens in self._shards]


class NanoGPT:
    """`train.bin` and `val.bin`: the tokens of one example after the other, uint16 without a header."""

    def __init__(self, target: Target) -> None:
        """Open nothing yet.

        Raises:
            TokenizerError: there is no tokenizer, or it has more tokens than uint16 can tell apart.
        """
        if target.tokens is None or target.tokens.dtype != np.dtype("<u2"):
            raise TokenizerError("nanogpt needs a tokenizer of at most 65,536 tokens: name `gpt2`")
        self._shards = {
            "train": _Shards(replace(target, shard_rows=0), "nanogpt", "train", ".bin"),
            "validation": _Shards(replace(target, shard_rows=0), "nanogpt", "val", ".bin"),
        }
        self._files: dict[Split, HashedFile] = {}

    def write(self, example: Example) -> None:
        """Add tokens."""
        if example.turns[-1].role == "rejected":
            return
        shards = self._shards[example.split]
        if example.split not in self._files:
            self._files[example.split] = HashedFile(shards.path)
        self._files[example.split].write(example.tokens)
        shards.count(example)

    def close(self) -> list[FileEntry]:
        """Finish both files."""
        for split, file in self._files.items():
            self._shards[split].closed(file.close(), file.bytes)
        return [entry for split in SPLITS for entry in self._shards[split].entries]


def _message(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


def _is_preference(example: Example) -> bool:
    return example.turns[-1].role == "rejected"


def prompt_response(example: Example) -> dict[str, Any] | None:
    """`prompt` and `response`: the last question and its answer; `history` is what was said before."""
    if _is_preference(example):
        return None
    *before, asked, answered = example.turns
    row: dict[str, Any] = {"prompt": asked.content, "response": answered.content}
    if before and before[0].role == "system":
        row["system"] = before.pop(0).content
    if before:
        said = [turn.content for turn in before]
        row["history"] = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    return row


def messages(example: Example) -> dict[str, Any] | None:
    """`messages`, each with role and content: TRL's conversational form, and OpenAI's."""
    return None if _is_preference(example) else {"messages": [_message(turn) for turn in example.turns]}


def nanochat(example: Example) -> list[dict[str, str]] | None:
    """A bare array of messages that alternate from the user on; what the system says opens the first."""
    if _is_preference(example):
        return None
    turns = list(example.turns)
    if turns[0].role == "system":
        system = turns.pop(0)
        turns[0] = Turn("user", f"{system.content}\n\n{turns[0].content}")
    return [_message(turn) for turn in turns]


def trl(example: Example) -> dict[str, Any] | None:
    """TRL's `prompt` and `completion`, both messages."""
    if _is_preference(example):
        return None
    *prompt, answer = [_message(turn) for turn in example.turns]
    return {"prompt": prompt, "completion": [answer]}


def dpo(example: Example) -> dict[str, Any] | None:
    """TRL's preference: `prompt`, `chosen` and `rejected`, of what was preferred to what."""
    if not _is_preference(example):
        return None
    *prompt, chosen, rejected = example.turns
    return {
        "prompt": [_message(turn) for turn in prompt],
        "chosen": [_message(chosen)],
        "rejected": [{"role": "assistant", "content": rejected.content}],
    }


def kto(example: Example) -> dict[str, Any] | None:
    """TRL's unpaired preference: `label` says whether the completion was worth anything."""
    if _is_preference(example) or not example.reward:
        return None
    *prompt, answer = [_message(turn) for turn in example.turns]
    return {"prompt": prompt, "completion": [answer], "label": example.reward > 0}


def whole(example: Example) -> dict[str, Any]:
    """All that is known of an example, tokens excepted; `example_of` reads it back."""
    return {
        "id": example.digest.hex(),
        "messages": [_message(turn) for turn in example.turns],
        "tenant": example.tenant,
        "session": example.session,
        "reward": example.reward,
        "memories": list(example.memories),
        "line": example.line,
    }


def example_of(row: Mapping[str, Any], split: Split) -> Example:
    """An example as `whole` wrote it."""
    return Example(
        turns=tuple(Turn(message["role"], message["content"]) for message in row["messages"]),
        tenant=row["tenant"],
        session=row["session"],
        split=split,
        line=row["line"],
        memories=tuple(row["memories"]),
        reward=row["reward"],
    )


_SOURCES = pa.schema(
    [
        ("id", pa.string()),
        ("tenant", pa.string()),
        ("session", pa.string()),
        ("memories", pa.list_(pa.string())),
    ]
)


def _sources(example: Example) -> dict[str, Any]:
    return {
        "id": example.digest.hex(),
        "tenant": example.tenant,
        "session": example.session,
        "memories": list(example.memories),
    }


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PARQUET = pa.schema(
    [
        ("id", pa.string()),
        ("messages", _MESSAGES),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("tenant", pa.string()),
        ("session", pa.string()),
        ("reward", pa.float64()),
    ]
)


def _parquet(example: Example) -> dict[str, Any] | None:
    if _is_preference(example):
        return None
    row = whole(example)
    row["prompt"], row["response"] = example.turns[-2].content, example.turns[-1].content
    return row


def _tokenized(target: Target) -> Writer:
    tokens = target.tokens
    if tokens is None:
        raise TokenizerError("tokenized needs a tokenizer: name `gpt2`, or a tokenizer.json")
    number = pa.uint16() if tokens.dtype.itemsize == 2 else pa.uint32()
    schema = pa.schema(
        [("id", pa.string()), ("input_ids", pa.list_(number)), ("supervised", pa.list_(pa.uint8()))]
    )

    def row(example: Example) -> dict[str, Any] | None:
        if _is_preference(example):
            return None
        ids = np.frombuffer(example.tokens, tokens.dtype)
        return {"id": example.digest.hex(), "input_ids": ids, "supervised": supervised(example, len(ids))}

    return Tables(target, "tokenized", schema, row)


def supervised(example: Example, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """1 for each token that the assistant is to learn, 0 for those that it reads."""
    mask = np.zeros(count, np.uint8)
    for begin, end in zip(example.spans[::2], example.spans[1::2], strict=True):
        mask[begin:end] = 1
    return mask


EXAMPLES = "examples"
SOURCES = "sources"
"""What each example was made of, in pseudonyms: by it a deletion finds the corpora that it touches."""

FORMATS: Mapping[str, Callable[[Target], Writer]] = {
    EXAMPLES: lambda target: Lines(replace(target, zstd=True), EXAMPLES, whole),
    SOURCES: lambda target: Tables(target, SOURCES, _SOURCES, _sources),
    "prompt-response": lambda target: Lines(target, "prompt-response", prompt_response),
    "messages": lambda target: Lines(target, "messages", messages),
    "openai": lambda target: Lines(target, "openai", messages),
    "nanochat": lambda target: Lines(target, "nanochat", nanochat),
    "nanochat-parquet": NanochatParquet,
    "trl": lambda target: Lines(target, "trl", trl),
    "dpo": lambda target: Lines(target, "dpo", dpo),
    "kto": lambda target: Lines(target, "kto", kto),
    "nanogpt": NanoGPT,
    "parquet": lambda target: Tables(target, "parquet", _PARQUET, _parquet),
    "tokenized": _tokenized,
}
"""By name; each is the name of a folder too."""

TEXTS = ("prompt-response", "messages", "openai", "nanochat", "nanochat-parquet", "trl", "kto", "parquet")
TOKENS = ("tokenized", "nanogpt")
PREFERENCES = ("dpo", "kto")


def write_all(formats: Sequence[str], target: Target, examples: Iterable[Example]) -> list[FileEntry]:
    """Write formats in one go over the examples.

    Raises:
        TokenizerError: one of them needs another tokenizer.
    """
    writers = [FORMATS[name](target) for name in formats]
    for example in examples:
        for writer in writers:
            writer.write(example)
    return [entry for writer in writers for entry in writer.close()]
