"""The operating system's user that a server runs as.

An ordinary user's servers are that user's own processes. PostgreSQL refuses to run as root, so servers
that root starts run as a dedicated unprivileged user; what that user cannot reach is copied to, or kept
in, a directory that it can reach. Permissions of directories that are not ours are never changed.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

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
        return subprocess.run(["test", *condition], cwd="/", **self.identity).returncode == 0

    def own(self, path: Path) -> None:
        """Make the file or directory this user's."""
        if self.switch:
            os.chown(path, self.uid, self.gid)


def server_account(data: Path | None) -> Account:
    """The user for a server with this data directory: its owner if root asks and it exists.

    Root without a data directory gets the dedicated user, which is created at the first time; where that
    is impossible (no useradd), `nobody`.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    if data is not None and data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, switch=True)
    entry = _dedicated_user()
    return Account(entry.pw_uid, entry.pw_gid, switch=True)


def _dedicated_user() -> pwd.struct_passwd:
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


def reachable_copy(name: str, sources: dict[str, Path]) -> Path:
    """Copy files or directories to `REACHABLE_BASE/name` once, readable by everybody; return that directory.

    The keys of `sources` are the places of the copies in it. It appears whole or not at all: it is made
    beside its place, then renamed.
    """
    place = REACHABLE_BASE / name
    if place.exists():
        return place
    make_reachable_base()
    draft = REACHABLE_BASE / f".{name}-{uuid4().hex}"
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


def make_reachable_base() -> None:
    """Create `REACHABLE_BASE`, traversable by everybody whatever the umask."""
    if not REACHABLE_BASE.exists():
        REACHABLE_BASE.mkdir(parents=True, exist_ok=True)
        REACHABLE_BASE.chmod(0o755)
