"""What is remembered of an embedded server between processes, and the lock that orders them."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

import msgspec

from somabrain_dagster.embedded.account import REACHABLE_BASE, Account, make_directory
from somabrain_dagster.embedded.errors import EmbeddedServerError

LOCK_SECONDS = 180.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One server's state file.

    Attributes:
        data: its data directory, relative to the home where it lies inside it.
        port: the port of its last start.
        password: of the role for everyday use.
    """

    data: str
    port: int
    password: str


S = TypeVar("S", bound=State)


def make_home(home: Path) -> Path:
    """Create the home and its logs directory; return the home, absolute and resolved."""
    home = home.expanduser().resolve()
    for directory in [home, home / "logs"]:
        if not directory.exists():
            # Traversable by root's unprivileged servers; what is inside guards itself.
            make_directory(directory, 0o711 if os.geteuid() == 0 else 0o700)
            if os.geteuid() == 0:  # root in a person's project leaves that person's files, not root's
                owner = directory.parent.stat()
                os.chown(directory, owner.st_uid, owner.st_gid)
    return home


def state_path(home: Path, server: str) -> Path:
    """The state file of the server named `postgres` or `valkey`."""
    return home / f"{server}.json"


def read_state(home: Path, server: str, kind: type[S]) -> S | None:
    """The state of a server, or None where it has never been set up.

    Raises:
        EmbeddedServerError: if the file is not a state file.
    """
    path = state_path(home, server)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise EmbeddedServerError(
            f"{path} is damaged ({error}): put back a copy of it, or move it and the data away to begin anew."
        ) from error


def write_state(home: Path, server: str, state: State) -> None:
    """Replace a server's state file; it belongs to the home's owner."""
    owner = home.stat()
    text = msgspec.json.format(msgspec.json.encode(state), indent=2)
    write_private(state_path(home, server), text, owner.st_uid, owner.st_gid)


def write_private(path: Path, content: bytes, uid: int, gid: int) -> None:
    """Replace a file, whole or not at all, by one that only this user may read."""
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        with _opened(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, uid, gid) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name, too, survives a loss of power
        finally:
            os.close(directory)
    finally:
        draft.unlink(missing_ok=True)


def _opened(path: Path, flags: int, uid: int, gid: int) -> BinaryIO:
    """Open a file of this user, mode 0600. Root follows no symbolic link that the user may have laid."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        os.fchown(descriptor, uid, gid)
    return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "wb")


def choose_data(home: Path, server: str, account: Account) -> str:
    """Where a new server keeps its data: in the home, or where its user can reach it."""
    if account.passes("-x", str(home)):
        return server
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    make_directory(REACHABLE_BASE, 0o755)
    return str(make_directory(REACHABLE_BASE / digest, 0o711) / server)


def data_directory(home: Path, state: State) -> Path:
    """The absolute data directory that a state names."""
    return home / state.data


@contextmanager
def locked(home: Path, server: str) -> Iterator[None]:
    """Let one process at a time set up, start, attach to or stop a server.

    The kernel releases the lock of a process that dies.

    Raises:
        EmbeddedServerError: if another process holds the lock for `LOCK_SECONDS`.
    """
    path = home / f"{server}.lock"
    deadline = time.monotonic() + LOCK_SECONDS
    with _opened_lock(path) as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"Another process has been starting or stopping {server} in {home} for "
                    f"{LOCK_SECONDS:.0f} s (it holds {path}): wait for it, or end it."
                )
            time.sleep(0.02)
        yield


@contextmanager
def alone(home: Path, name: str, said: str) -> Iterator[None]:
    """Be the only process that does this in a home, until the end of the block or of the process.

    Args:
        home: where; it exists.
        name: of what is done.
        said: to a second process that tries to, about this one.

    Raises:
        EmbeddedServerError: another process does it; what that one said.
    """
    path = home / f"{name}.lock"
    with _opened_lock(path) as file:
        if not _try_lock(file):
            raise EmbeddedServerError(path.read_text())
        file.truncate(0)
        file.write(said.encode())
        file.flush()
        yield


def _opened_lock(path: Path) -> BinaryIO:
    """The file of a lock, whose owner is the home's."""
    owner = path.parent.stat()
    return _opened(path, os.O_WRONLY | os.O_CREAT, owner.st_uid, owner.st_gid)


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def opened_log(home: Path, server: str, account: Account) -> Iterator[tuple[Path, BinaryIO]]:
    """The server's log, opened for appending, to be inherited by the server.

    A file, never a pipe: a pipe would break, or block its reader for ever, when one of its ends dies.
    """
    path = home / "logs" / f"{server}.log"
    with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, account.uid, account.gid) as file:
        yield path, file
