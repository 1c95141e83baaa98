"""What goes wrong with an embedded server, in words that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TAIL_LINES = 15


class EmbeddedServerError(RuntimeError):
    """An embedded server cannot be set up, started, reached or stopped."""


def tail(log: Path) -> str:
    """The last lines of a server's log, as a paragraph for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        return f"\n(its log {log} cannot be read: {error.strerror})"
    return f"\nThe end of {log}:\n" + "\n".join(f"  {line}" for line in lines)


def advice(output: str) -> str:
    """A sentence on what to do about the causes that a person can remove."""
    if "No space left on device" in output:
        return " The disk is full: free some space, then start again."
    if "ermission denied" in output:
        return " Give this user access to the path named below, or choose another home."
    return ""


@contextmanager
def explained(action: str, home: Path) -> Iterator[None]:
    """Turn an error of the operating system into an `EmbeddedServerError` that says what to do.

    Raises:
        EmbeddedServerError: in place of any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            hint = "Choose a home that this user may write, or give it access."
        elif error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = "The disk is full: free some space, then try again."
        else:
            hint = "Remove the cause, then try again."
        raise EmbeddedServerError(f"Cannot {action} in {home}: {error}. {hint}") from error
