"""Reading a corpus as a stream: examples or blocks of tokens, from any place, in parts, from any point on."""

import os
from collections.abc import Iterator
from typing import Any

import fsspec
import msgspec
import numpy as np
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from somabrain_dagster.corpus.artifacts import read_manifest
from somabrain_dagster.corpus.examples import Example, Split
from somabrain_dagster.corpus.formats import EXAMPLES, example_of
from somabrain_dagster.corpus.manifest import Manifest

_LINE = 1 << 16


class NotInCorpus(LookupError):
    """A corpus does not hold what was asked for; the message says what it holds."""


class Corpus:
    """A corpus that can be read.

    Every stream takes `shard = (i, n)`, and then gives the i-th of every n items, and `start`, how many items
    of that stream were taken already: a reader that notes how many it took goes on where it stopped.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        """Use `open_corpus`."""
        self.url = url
        self.manifest = manifest

    def examples(
        self, split: Split = "train", *, shard: tuple[int, int] = (0, 1), start: int = 0
    ) -> Iterator[Example]:
        """The examples of a split, in canonical order.

        Raises:
            NotInCorpus: the corpus has no examples of its own.
        """
        return _part(self._examples(split), shard, start)

    def _examples(self, split: Split) -> Iterator[Example]:
        for path in self._paths(EXAMPLES, split):
            with (
                fsspec.open(f"{self.url}/{path}", "rb") as file,
                zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as plain,
            ):
                for line in _lines(plain):
                    yield example_of(msgspec.json.decode(line), split)

    def blocks(
        self,
        split: Split = "train",
        *,
        size: int,
        shard: tuple[int, int] = (0, 1),
        start: int = 0,
    ) -> Iterator[NDArray[np.unsignedinteger]]:
        """The tokens of a split, example after example, in blocks of one size; the rest is not given.

        Args:
            split: train or validation.
            size: tokens in a block, ≥ 1.
            shard: which part of how many.
            start: blocks of that part that were taken already.

        Raises:
            NotInCorpus: the corpus has no tokens.
        """
        return _part(self._blocks(split, size), shard, start)

    def _blocks(self, split: Split, size: int) -> Iterator[NDArray[np.unsignedinteger]]:
        rest: NDArray[np.unsignedinteger] = np.empty(0, np.uint16)
        for path in self._paths("tokenized", split):
            with fsspec.open(f"{self.url}/{path}", "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(1024, columns=["input_ids"]):
                    tokens = np.concatenate((rest, batch.column(0).values.to_numpy(zero_copy_only=False)))
                    whole = len(tokens) // size * size
                    yield from tokens[:whole].reshape(-1, size)
                    rest = tokens[whole:]

    def _paths(self, folder: str, split: Split) -> list[str]:
        paths = [entry.path for entry in self.manifest.files if entry.path.startswith(f"{folder}/{split}")]
        if not paths and not any(entry.path.startswith(f"{folder}/") for entry in self.manifest.files):
            held = sorted({entry.path.split("/")[0] for entry in self.manifest.files if "/" in entry.path})
            raise NotInCorpus(
                f"{self.manifest.corpus_id} has no `{folder}`: it holds {', '.join(held)}; build one with it"
            )
        return sorted(paths)

    def torch(self, split: Split = "train", *, block: int | None = None, start: int = 0) -> Any:
        """The stream as a torch `IterableDataset`, divided among ranks and workers.

        Ranks are those of torch.distributed, or of RANK and WORLD_SIZE. Blocks are tensors of int64; without
        `block`, examples come as they are.

        Raises:
            ImportError: torch is not installed.
        """
        import torch
        from torch.utils.data import IterableDataset, get_worker_info

        corpus = self

        class Stream(IterableDataset[Any]):  # type: ignore[misc, unused-ignore]
            def __iter__(self) -> Iterator[Any]:
                worker = get_worker_info()
                number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
                rank, ranks = _rank()
                shard = (rank * workers + number, ranks * workers)
                if block is None:
                    return corpus.examples(split, shard=shard, start=start)
                blocks = corpus.blocks(split, size=block, shard=shard, start=start)
                return (torch.from_numpy(one.astype(np.int64)) for one in blocks)

        return Stream()


def _rank() -> tuple[int, int]:
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _lines(plain: Any) -> Iterator[bytes]:
    rest = b""
    while chunk := plain.read(_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _part(stream: Iterator[Any], shard: tuple[int, int], start: int) -> Iterator[Any]:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"a shard is one of (0, n) to (n − 1, n), not {shard}")
    if start < 0:
        raise ValueError(f"start must be 0 or more, not {start}")
    skipped = start * count
    for place, item in enumerate(stream):
        if place >= skipped and place % count == index:
            yield item


def open_corpus(url: str) -> Corpus:
    """Open a corpus, wherever it is.

    Args:
        url: of the corpus, or a path to it: with what `somabrain corpus list` says, or what `pull` made.

    Raises:
        NoCorpus: there is none.
        InvalidManifest: its account cannot be read.
    """
    return Corpus(url.rstrip("/"), read_manifest(url))
