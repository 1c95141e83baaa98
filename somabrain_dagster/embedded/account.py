"""The operating system's user that a server runs as.

An ordinary user's servers are that user's own processes. PostgreSQL refuses to run as root, so servers
that root starts run as a dedicated unprivileged user; what that user cannot reach is copied to, or kept
in, a directory that it can reach. Permissions of directories that are not ours are never changed.
"""

import hashlib
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

from somabrain_dagster.embedded.errors import EmbeddedServerError

DEDICATED_USER = "somabrain-db"
REACHABLE_BASE = Path("/var/lib/somabrain")
"""Where root keeps what the dedicated user must reach and cannot reach elsewhere."""


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.run` that choose a process's user; empty to keep one's own."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """A user of the operating system, and whether this process must become it to act for it."""

    uid: int
    gid: int
    switch: bool

    @property
    def identity(self) -> Identity:
        """Arguments for `subprocess.run`."""
        return Identity(user=self.uid, group=self.gid, extra_groups=[]) if self.switch else Identity()

    def passes(self, *condition: str) -> bool:
        """Ask the kernel, as this user, a condition of test(1), e.g. `("-x", directory)`."""
        try:
            return subprocess.run(["test", *condition], cwd="/", **self.identity).returncode == 0
        except PermissionError as error:
            raise EmbeddedServerError(
                f"This process is root, and may not become user {self.uid}, whom a server could run as "
                f"({error}). Run it as an ordinary user, or name the URL of a running server."
            ) from error

    def own(self, path: Path) -> None:
        """Make the file or directory this user's."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_all(self, directory: Path) -> None:
        """Make a directory and all that is in it this user's."""
        for path in [directory, *directory.rglob("*")]:
            self.own(path)


def server_account(home: Path, data: Path) -> Account:
    """The user for a server: this process's, or, where root asks, one that is not root.

    That is the owner of the data, else of the home, as in a person's project, else the dedicated user.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, switch=True)
    entry = _person(home.stat().st_uid) or _dedicated_user()
    return Account(entry.pw_uid, entry.pw_gid, switch=True)


def _person(uid: int) -> pwd.struct_passwd | None:
    """The entry of an ordinary user; PostgreSQL runs as nobody who has none."""
    try:
        return pwd.getpwuid(uid) if uid != 0 else None
    except KeyError:
        return None


def _dedicated_user() -> pwd.struct_passwd:
    """The dedicated user, created the first time; where that is impossible (no useradd), `nobody`."""
    try:
        return pwd.getpwnam(DEDICATED_USER)
    except KeyError:
        if useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin"):
            options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
            subprocess.run(
                [useradd, *options, "--shell", "/usr/sbin/nologin", DEDICATED_USER], capture_output=True
            )
    try:
        return pwd.getpwnam(DEDICATED_USER)  # made by this process or, at the same moment, by another
    except KeyError:
        return pwd.getpwnam("nobody")


def reachable_copy(program: Path, sources: dict[str, Path]) -> Path:
    """Copy a program, and what it needs, below `REACHABLE_BASE`, readable by everybody; return the directory.

    The directory is named by the program's digest, so each build is copied once. The keys of `sources` are
    the places of the copies in it. It appears whole or not at all: made beside its place, then renamed.
    """
    with program.open("rb") as file:
        name = f"{program.name}-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    place = REACHABLE_BASE / name
    if place.exists():
        return place
    draft = make_directory(REACHABLE_BASE, 0o755) / f".{name}-{uuid4().hex}"
    try:
        for place_inside, source in sources.items():
            target = draft / place_inside
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)
        for path in [draft, *draft.rglob("*")]:
            if not path.is_symlink():
                mode = path.stat().st_mode
                owners = mode & 0o500
                path.chmod(mode | owners >> 3 | owners >> 6)
        try:
            draft.rename(place)
        except OSError:
            if not place.exists():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def make_directory(path: Path, mode: int) -> Path:
    """Create a directory, and what it lies in, with this mode whatever the umask, unless it exists."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    return path
