"""Back the brain up while it works, and keep as many backups as are wanted.

Redis is copied first and the place in Postgres's log is marked last: so no working memory names a memory that
the restored Postgres does not have.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from somabrain_dagster import __version__
from somabrain_dagster.embedded import PostgresServer, binaries_path, postgres_status
from somabrain_dagster.operations import postgres_copy, redis_copy, servers
from somabrain_dagster.operations.backup_manifest import (
    BRAIN_DUMP,
    CLUSTER,
    DAGSTER_DUMP,
    KEY,
    MARKS,
    REDIS,
    ROWS,
    Backup,
    BackupFile,
    InvalidBackup,
)
from somabrain_dagster.operations.backup_store import BackupStore
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.backups import (
    Server,
    Standing,
    TakenBackup,
    alone,
    describe_server,
    exported,
    identity_at,
    kept_log,
    marked,
    record_backup,
)
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.positions import Head, position
from somabrain_dagster.store.row_digests import table_digests


class _Write(Protocol):
    """Takes the content of a file of a backup."""

    def __call__(self, path: str, chunks: Iterator[bytes], *, pack: bool = True) -> None: ...


@dataclass(frozen=True)
class Source:
    """What is backed up.

    Attributes:
        embedded: the home's own Postgres, where it is the brain's.
        copying_url: for the role that copies the cluster.
    """

    servers: servers.Servers
    embedded: PostgresServer | None
    copying_url: str = field(repr=False)


def store_of(settings: Settings) -> BackupStore:
    """Where the backups of these settings are.

    Raises:
        NoPlace: the URL cannot be opened.
    """
    return BackupStore(settings.backups)


def embedded_behind(settings: Settings, database_url: str) -> PostgresServer | None:
    """The home's own Postgres, if it is behind the URL: Dagster's programs are given nothing but the URL."""
    server = postgres_status(settings.home)
    if server is None or _server_of(database_url) != (server.host, server.port):
        return None
    return server


def _server_of(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or 5432


def source_of(settings: Settings) -> Source:
    """The servers of these settings, started if need be."""
    started = servers.start(settings)
    embedded = embedded_behind(settings, started.database_url)
    if embedded is not None:
        copying = embedded.admin_url()
    elif settings.backup_database_url is not None:
        copying = settings.backup_database_url.get_secret_value()
    else:
        copying = started.database_url
    return Source(started, embedded, copying)


@dataclass(frozen=True)
class Made:
    """A backup that was made and read back, and the older ones that it allowed to remove."""

    backup: Backup
    url: str
    removed: Sequence[str]


def back_up(settings: Settings, progress: Progress = unwatched) -> Made:
    """Back up Postgres and Redis, read the backup back, then remove those that are not kept.

    Raises:
        BackupRunning: another one runs.
        CopyFailed, CannotCopyRedis: a server did not give its copy; nothing is left of the attempt.
        InvalidBackup: what was written is not what is read back; likewise.
    """
    source, store = source_of(settings), store_of(settings)
    programs = binaries_path(settings.postgres_binaries)
    with alone(source.servers.database_url):
        identity = identity_at(source.servers.database_url)
        assert identity is not None
        began, clock = datetime.now(UTC), time.monotonic()
        suffix = f"-{identity.brain_id[:8]}"
        for leftover in store.leftovers(suffix):
            store.remove(leftover)
        backup_id = f"{began:%Y%m%dT%H%M%S}{began.microsecond // 1000:03d}Z{suffix}"
        try:
            backup = _written(settings, source, store, programs, backup_id, progress)
            backup = msgspec.structs.replace(backup, created_at=began, seconds=time.monotonic() - clock)
            if findings := store.check(backup, lambda done: progress("read back", done, backup.bytes)):
                raise InvalidBackup("the backup was written and cannot be read back: " + "; ".join(findings))
            store.publish(backup)
        except BaseException:
            with suppress(OSError):  # what is left is removed by the next backup
                store.remove(backup_id)
            raise
        record_backup(
            source.servers.database_url,
            TakenBackup(backup_id, began, backup.seconds, backup.kind, backup.bytes, backup.position),
        )
        removed = _prune(store, settings.backup_keep, identity.brain_id)
        return Made(backup, f"{store.url}/{backup_id}", removed)


def _written(
    settings: Settings, source: Source, store: BackupStore, programs: Path, backup_id: str, progress: Progress
) -> Backup:
    """Write all files of a backup; its account says what they are."""
    server = describe_server(source.copying_url)
    files: list[BackupFile] = []

    def write(path: str, chunks: Iterator[bytes], *, pack: bool = True) -> None:
        files.append(store.write(backup_id, path, _watched(chunks, path, progress), pack=pack))

    redis_version = None
    if settings.backup_redis:
        redis_version = redis_copy.redis_version(source.servers.redis_url)
        write(REDIS, redis_copy.copied(source.servers.redis_url))
    key = settings.home / KEY
    if settings.pseudonym_key is None and key.is_file():
        write(KEY, iter([key.read_bytes()]), pack=False)

    as_base = server.may_replicate and server.major == postgres_copy.major_version(programs)
    brain_url, dagster_url = source.servers.database_url, source.servers.dagster_database_url
    if as_base:
        standing = _copy_cluster(settings, source, programs, write, progress)
    else:
        with exported(brain_url) as (snapshot, standing, view):
            write(BRAIN_DUMP, postgres_copy.database(programs, brain_url, snapshot), pack=False)
            write(ROWS, _rows_of(view, progress))
    covered = _server_of(dagster_url) == _server_of(brain_url) if as_base else dagster_url == brain_url
    if not covered:
        write(DAGSTER_DUMP, postgres_copy.database(programs, dagster_url, None), pack=False)
    write(MARKS, marks_of(standing.heads))
    return _account(source, server, standing, backup_id, as_base, redis_version, tuple(files))


def _copy_cluster(
    settings: Settings, source: Source, programs: Path, write: "_Write", progress: Progress
) -> Standing:
    settings.home.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=settings.home, prefix=".backup-") as scratch,
        ExitStack() as open_view,
    ):
        segments = Path(scratch)
        with kept_log(source.copying_url):
            with postgres_copy.received_log(programs, source.copying_url, segments):
                write(CLUSTER, postgres_copy.cluster(programs, source.copying_url))
                standing, view = open_view.enter_context(marked(source.servers.database_url))
            postgres_copy.complete_log(programs, source.copying_url, segments, standing.end)
        for segment in sorted(segments.iterdir()):
            write(f"wal/{segment.name}.zst", _read(segment))
        write(ROWS, _rows_of(view, progress))
    return standing


def _rows_of(view: Connection, progress: Progress) -> Iterator[bytes]:
    """What every table holds, a line of JSON each."""
    for each in table_digests(view, lambda done, of: progress("digests of rows", done, of)):
        yield msgspec.json.encode(each) + b"\n"


def _account(
    source: Source,
    server: Server,
    standing: Standing,
    backup_id: str,
    as_base: bool,
    redis_version: str | None,
    files: tuple[BackupFile, ...],
) -> Backup:
    owner = urlsplit(source.servers.database_url)
    return Backup(
        backup_id=backup_id,
        brain_id=standing.identity.brain_id,
        epoch=standing.identity.epoch,
        kind="base" if as_base else "dump",
        created_at=datetime.now(UTC),
        seconds=0.0,
        software=__version__,
        schema_revision=standing.revision or "",
        postgres_version=server.version,
        redis_version=redis_version,
        position=position(standing.heads),
        tenants=len(standing.heads),
        stop_before=standing.lsn if as_base else None,
        database=owner.path.removeprefix("/"),
        dagster_database=urlsplit(source.servers.dagster_database_url).path.removeprefix("/"),
        owner=owner.username or "",
        superuser=server.superuser,
        embedded=source.embedded is not None,
        files=files,
    )


def marks_of(heads: Sequence[Head]) -> Iterator[bytes]:
    """The ends of all logs, a line of JSON each, by tenant."""
    for head in heads:
        mark = {"tenant_id": head.tenant_id, "version": head.version, "hash": head.hash.hex()}
        yield msgspec.json.encode(mark | {"feedback_seq": head.feedback_seq}) + b"\n"


def _prune(store: BackupStore, keep: int, brain_id: str) -> list[str]:
    """Remove this brain's oldest backups but `keep`, and never the last one that was proven."""
    known = [backup.backup_id for backup in store.backups(brain_id)]
    spared = {*known[-keep:], *[each for each in known if store.is_proven(each)][-1:]}
    removed = [each for each in known if each not in spared]
    for each in removed:
        store.remove(each)
    return removed


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(postgres_copy.CHUNK):
            yield chunk


def _watched(chunks: Iterator[bytes], what: str, progress: Progress) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress(what, done, None)
