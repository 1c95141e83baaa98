"""The account of a backup, `backup.json`: what is in it, whose it is, and where its logs stand."""

import hashlib
from datetime import datetime
from typing import Literal

import msgspec

MANIFEST = "backup.json"
FORMAT = 1
REDIS = "redis.rdb.zst"
MARKS = "marks.jsonl.zst"
ROWS = "rows.jsonl.zst"
CLUSTER = "postgres.tar.zst"
BRAIN_DUMP = "brain.dump"
DAGSTER_DUMP = "dagster.dump"
KEY = "pseudonym.key"
"""The files; which of them there are depends on the kind."""


class InvalidBackup(RuntimeError):
    """A backup that cannot be used; the message says why."""


class BackupFile(msgspec.Struct, frozen=True):
    """A file as it is stored: its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a backup.

    Attributes:
        backup_id: its name: when it began, and the beginning of the brain's id.
        brain_id, epoch: which brain, and since which restore; 1 before the first.
        kind: `base`, a copy of the whole cluster, or `dump`, its databases as pg_dump writes them.
        created_at, seconds: when it began, and how long it took.
        software, schema_revision: versions of this project.
        postgres_version: as in 180006.
        redis_version: of the Redis-protocol server; None where it was left out.
        position, tenants: where all logs are, as in `store.positions`.
        stop_before: the place in the write-ahead log at which that is so; None for a dump.
        database, dagster_database: the names of the two.
        owner, superuser: the role that owns the databases, and the cluster's first one.
        embedded: whether the cluster was an embedded server's.
        files: all but this one.
        digest: SHA-256 of all of the above, so that a damaged account is known for one.
    """

    format: int = FORMAT
    backup_id: str
    brain_id: str
    epoch: int
    kind: Literal["base", "dump"]
    created_at: datetime
    seconds: float
    software: str
    schema_revision: str
    postgres_version: int
    redis_version: str | None
    position: str
    tenants: int
    stop_before: str | None
    database: str
    dagster_database: str
    owner: str
    superuser: str
    embedded: bool
    files: tuple[BackupFile, ...]
    digest: str = ""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def postgres_major(self) -> int:
        """The major version of Postgres."""
        return self.postgres_version // 10_000

    def has(self, path: str) -> bool:
        """Whether the backup has this file."""
        return any(file.path == path for file in self.files)


def encode(backup: Backup) -> bytes:
    """The content of `backup.json`."""
    sealed = msgspec.structs.replace(backup, digest=_digest(backup))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def decode(content: bytes, where: str) -> Backup:
    """Read `backup.json`.

    Args:
        content: its bytes.
        where: for the error message.

    Raises:
        InvalidBackup: it is cut off, changed, or of a newer format.
    """
    try:
        backup = msgspec.json.decode(content, type=Backup)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidBackup(f"{where} is no account of a backup ({error}): use another backup") from error
    if backup.format != FORMAT:
        raise InvalidBackup(f"{where} has format {backup.format}, this version reads {FORMAT}")
    if backup.digest != _digest(backup):
        raise InvalidBackup(f"{where} was changed since it was written: use another backup")
    return backup


def _digest(backup: Backup) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(backup, digest=""))).hexdigest()
