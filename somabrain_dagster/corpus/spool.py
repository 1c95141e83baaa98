"""Files that examples wait in between two passes: short-lived, in buckets, in one process's own pieces.

A frame is a key of 32 bytes and a body. A bucket holds the keys of one range, so that buckets in order, each
sorted, are everything sorted: an external sort whose memory is that of one bucket.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

_HEAD = struct.Struct("<I32s")

Frame = tuple[bytes, bytes]


class Spool:
    """A folder of buckets. Each process appends to files of its own."""

    def __init__(self, folder: Path, buckets: int) -> None:
        """Open nothing yet.

        Args:
            folder: exists.
            buckets: ≥ 1.
        """
        self._folder = folder
        self.buckets = buckets
        self._pending: list[list[bytes]] = [[] for _ in range(buckets)]

    def add(self, key: bytes, body: bytes) -> None:
        """Add a frame; it is in its file after `flush`."""
        bucket = int.from_bytes(key[:4], "big") * self.buckets >> 32
        self._pending[bucket] += (_HEAD.pack(len(body), key), body)

    def flush(self) -> None:
        """Append to the files what was added."""
        for bucket, pending in enumerate(self._pending):
            if pending:
                with (self._folder / f"{bucket:05}-{os.getpid()}").open("ab") as file:
                    file.write(b"".join(pending))
                self._pending[bucket] = []

    def read(self, bucket: int) -> Iterator[Frame]:
        """The frames of a bucket, in no order."""
        for path in sorted(self._folder.glob(f"{bucket:05}-*")):
            yield from read_frames(path)


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of one file, in order; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb", buffering=1 << 20) as file:
        while head := file.read(_HEAD.size):
            length, key = _HEAD.unpack(head)
            yield key, file.read(length)


def write_frames(path: Path, frames: Sequence[Frame]) -> None:
    """Write a file of frames."""
    with path.open("wb", buffering=1 << 20) as file:
        for key, body in frames:
            file.write(_HEAD.pack(len(body), key))
            file.write(body)
