"""Files of lines, read and refused a line at a time, however long a line is."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

LONGEST_LINE = 1024 * 1024
"""Bytes, without the line break."""

SHOWN = 1000
"""Bytes that are kept of a line that is longer than that, to tell a person which one it was."""


class CannotImport(Exception):
    """The import cannot begin; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Attributes:
        number: from 1.
        content: its bytes without the line break; only the first ones if it is too long.
        length: how many bytes it has; if it is too long, its line break is counted too.
        end: how many bytes the file has up to the end of the line.
    """

    number: int
    content: bytes
    length: int
    end: int

    @property
    def too_long(self) -> bool:
        """Whether the line is longer than a line may be."""
        return self.length > len(self.content)

    @property
    def text(self) -> str:
        """The line for a person; a byte that is not UTF-8 is written as its escape."""
        return self.content.decode(errors="backslashreplace")


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file that are not blank; what is too long of a line is passed over, never kept."""
    number = end = 0
    while content := file.readline(LONGEST_LINE + 1):
        number += 1
        start, end = end, end + len(content)
        if len(content) > LONGEST_LINE and not content.endswith(b"\n"):
            while rest := file.readline(LONGEST_LINE):
                end += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, content[:SHOWN], end - start, end)
            continue
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")  # the mark some editors put before UTF-8
        content = content.strip()
        if content:
            yield Line(number, content, len(content), end)


class Rejects:
    """A JSONL file of what was refused: line, code, reason and the original text.

    Written anew each time. A context manager; at its end a file without rows is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise CannotImport(
                f"cannot write the rejects to {path} ({error.strerror}): name another file"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._count:
            self.path.unlink()

    @property
    def written(self) -> Path | None:
        """The file, if anything was refused."""
        return self.path if self._count else None

    def write(self, line: int, code: str, reason: str, text: str) -> None:
        """Refuse a line, or a part of it."""
        row = {"line": line, "code": code, "reason": reason, "text": text}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._count += 1


@contextmanager
def opened(lines: Path, rejects: Path) -> Iterator[tuple[BinaryIO, Rejects]]:
    """A file to import and the file for what is refused of it.

    Raises:
        CannotImport: one cannot be read, the other cannot be written, or both are the same.
    """
    try:
        file = lines.open("rb")
    except OSError as error:
        raise CannotImport(f"cannot read {lines} ({error.strerror}): name a file of JSON lines") from error
    with file:
        if rejects.exists() and os.path.samestat(os.fstat(file.fileno()), rejects.stat()):
            raise CannotImport(f"{rejects} is the file to import: name another one for the rejects")
        with Rejects(rejects) as refused:
            yield file, refused
