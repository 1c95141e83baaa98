"""Restore a backup into a place of its own, prove it there, and only then let it take the old one's place."""

import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zstandard

from somabrain_dagster.embedded import (
    EmbeddedServerError,
    PostgresServer,
    ValkeyServer,
    adopt_postgres,
    adopt_valkey,
    binaries_path,
    discard_servers,
    ensure_database,
    replace_servers,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
)
from somabrain_dagster.operations import postgres_copy, servers
from somabrain_dagster.operations.backup_manifest import (
    BRAIN_DUMP,
    CLUSTER,
    DAGSTER_DUMP,
    KEY,
    MARKS,
    REDIS,
    ROWS,
    Backup,
    InvalidBackup,
)
from somabrain_dagster.operations.backup_store import BackupStore
from somabrain_dagster.operations.backups import embedded_behind, marks_of, store_of
from somabrain_dagster.operations.postgres_copy import CopyFailed
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit, schema
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.backups import (
    Drill,
    begin_epoch,
    drop_amcheck,
    identity_at,
    is_empty,
    read_identity,
    record_drill,
)
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.dropping import drop_database
from somabrain_dagster.store.positions import position, read_heads
from somabrain_dagster.store.row_digests import TableDigest, differences, digests_at
from somabrain_dagster.store.verification import verify

ROLES = "somabrain_roles"

_table_digests = msgspec.json.Decoder(TableDigest)


class RestoreRefused(RuntimeError):
    """Nothing was restored, and what is there was left as it is; the message says why."""


@dataclass(frozen=True)
class Restored:
    """A backup that was restored and proven.

    Attributes:
        home: where its servers are.
        epoch: that began with it.
        aside: the home that the servers before it are in; None where there were none.
        seconds: that each step took.
        rebuilt: adaptation states in Redis that were not as Postgres has them.
    """

    backup: Backup
    home: Path
    epoch: int
    aside: Path | None
    seconds: Mapping[str, float]
    rebuilt: int


@dataclass
class _Attempt:
    """A backup that is being restored into a home."""

    settings: Settings
    store: BackupStore
    backup: Backup
    home: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    rebuilt: int = 0

    @property
    def programs(self) -> Path:
        return binaries_path(self.settings.postgres_binaries)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self.progress(name, 0, 1)
        yield
        self.progress(name, 1, 1)
        self.seconds[name] = round(time.monotonic() - began, 3)


def require_fit(settings: Settings, backup: Backup, brain_id: str | None) -> None:
    """Refuse a backup that is another brain's, or that these programs cannot read.

    Args:
        settings: name the programs.
        backup: by its account.
        brain_id: of the brain that it must be of; None where anyone's will do.

    Raises:
        InvalidBackup: it does not fit; the message says why.
    """
    if brain_id is not None and backup.brain_id != brain_id:
        raise InvalidBackup(
            f"{backup.backup_id} is of brain {backup.brain_id}, and here is brain {brain_id}: restore it "
            "into a directory of its own, or name a backup of this brain"
        )
    major = postgres_copy.major_version(binaries_path(settings.postgres_binaries))
    newer = backup.kind == "dump" and backup.postgres_major <= major
    if backup.postgres_major != major and not newer:
        raise InvalidBackup(
            f"{backup.backup_id} is of PostgreSQL {backup.postgres_major}, and the programs here are of "
            f"{major}: name others by SOMABRAIN_POSTGRES_BINARIES"
        )
    if backup.schema_revision not in schema.revisions():
        raise InvalidBackup(
            f"{backup.backup_id} has schema revision {backup.schema_revision}, made by version "
            f"{backup.software}: this version does not know it, install that one or a newer one"
        )


def restore_into(
    settings: Settings,
    backup_id: str | None,
    home: Path,
    *,
    actor: str,
    brain_id: str | None = None,
    progress: Progress = unwatched,
) -> Restored:
    """Restore a backup into a new home, prove it there, and leave its servers running.

    Args:
        settings: name the place of the backups, and the programs.
        backup_id: which one; None for the newest.
        home: a directory that does not exist, or is empty.
        actor: who restores, for the audit trail.
        brain_id: refuse the backup of any other brain.
        progress: told what is done.

    Raises:
        NoBackup, InvalidBackup: there is none that can be used.
        RestoreRefused: the home has something in it, or the restored brain is not the one that was backed up.
    """
    home = home.expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise RestoreRefused(f"{home} has something in it: name a new directory")
    store = store_of(settings)
    backup = store.read(backup_id, brain_id)
    attempt = _Attempt(settings, store, backup, home, progress)
    require_fit(settings, backup, brain_id)
    try:
        postgres, _ = _proven(attempt)
        if attempt.findings:
            raise RestoreRefused(_told(attempt))
        epoch = _begin_epoch(postgres.url(backup.database), attempt, actor)
    except BaseException:
        discard_servers(home)
        shutil.rmtree(home, ignore_errors=True)
        raise
    return Restored(backup, home, epoch, None, attempt.seconds, attempt.rebuilt)


def replace_home(
    settings: Settings,
    backup_id: str | None,
    *,
    actor: str,
    brain_id: str | None = None,
    progress: Progress = unwatched,
) -> Restored:
    """Restore a backup beside the home's servers, prove it, and put it in their place; they are kept aside.

    Args:
        settings: whose home; its Postgres must be the embedded one.
        backup_id: which one; None for the newest.
        actor: who restores, for the audit trail.
        progress: told what is done.
        brain_id: whose backup it must be; unset is the brain that is here, which must answer then.

    Raises:
        as for `restore_into`; and `RestoreRefused`, if it cannot be told which brain is here.
    """
    if settings.database_url is not None and not embedded_behind(
        settings, settings.database_url.get_secret_value()
    ):
        raise RestoreRefused(
            "SOMABRAIN_DATABASE_URL names a server of your own, which is not replaced: restore with "
            "--into DIR or, from a dump, with --database URL, and let the settings name what was restored"
        )
    brain_id = brain_id or _brain_here(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    staged = settings.home / f".restoring-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    restored = restore_into(settings, backup_id, staged, actor=actor, brain_id=brain_id, progress=progress)
    try:
        for home in (staged, settings.home):
            stop_valkey(home)
            stop_postgres(home)
        aside = replace_servers(settings.home, staged)
        if (staged / KEY).exists() and not (settings.home / KEY).exists():
            (staged / KEY).rename(settings.home / KEY)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    start_postgres(settings.home, settings.postgres_binaries)
    start_valkey(settings.home, settings.valkey_binary)
    return Restored(restored.backup, settings.home, restored.epoch, aside, restored.seconds, restored.rebuilt)


def _brain_here(settings: Settings) -> str | None:
    """Which brain is in the home; None where the home has no Postgres.

    Raises:
        RestoreRefused: it has one that does not answer.
    """
    if not (settings.home / "postgres.json").exists():
        return None
    try:
        url = start_postgres(settings.home, settings.postgres_binaries).url(servers.BRAIN)
    except EmbeddedServerError as error:
        raise RestoreRefused(
            "it cannot be told which brain is here, since its Postgres does not start: name it by --brain, "
            f"as `somabrain backup list` shows it\n{error}"
        ) from error
    identity = identity_at(url)
    return None if identity is None else identity.brain_id


def restore_database(
    settings: Settings, backup_id: str | None, url: str, *, actor: str, progress: Progress = unwatched
) -> Restored:
    """Restore a dump into an empty database of a server of one's own, and prove it there.

    Args:
        settings: name the place of the backups, and Redis, whose states are rebuilt.
        backup_id: which one; None for the newest.
        actor: who restores, for the audit trail.
        progress: told what is done.
        url: of the owner of the database, which has the extensions vector and pg_trgm and nothing else.

    Raises:
        as for `restore_into`.
    """
    store = store_of(settings)
    backup = store.read(backup_id)
    require_fit(settings, backup, None)
    if backup.kind != "dump":
        raise RestoreRefused(
            f"{backup.backup_id} is a copy of a whole cluster, not of a database: restore it with --into DIR"
        )
    if not is_empty(url):
        raise RestoreRefused("the database has tables: name an empty one")
    attempt = _Attempt(settings, store, backup, settings.home, progress)
    settings.home.mkdir(parents=True, exist_ok=True)
    with _scratch(settings.home) as fetched:
        with attempt.step("fetch and check digests"):
            store.fetch(backup, fetched)
        with attempt.step("restore"):
            postgres_copy.restore_database(attempt.programs, fetched / BRAIN_DUMP, url)
        _prove_brain(attempt, url, fetched)
    if attempt.findings:
        raise RestoreRefused(_told(attempt))
    epoch = _begin_epoch(url, attempt, actor)
    if settings.redis_url is not None:
        with attempt.step("rebuild Redis"):
            attempt.rebuilt = _rebuilt(url, settings.redis_url.get_secret_value())
    return Restored(backup, settings.home, epoch, None, attempt.seconds, attempt.rebuilt)


def drill(
    settings: Settings,
    database: Database,
    backup_id: str | None = None,
    progress: Progress = unwatched,
) -> tuple[Drill, Mapping[str, float]]:
    """Restore a backup of this brain into a scratch instance, prove it, and publish what came of it.

    Args:
        settings: as for `restore_into`.
        database: the brain's, where the drill is recorded.
        backup_id: which one; None for the newest.
        progress: told what is done.

    Returns:
        The drill, with what was found against the backup, and the seconds of each step.

    Raises:
        NoBackup: there is none.
    """
    with database.as_operator() as connection:
        identity = read_identity(connection)
    store, began = store_of(settings), time.monotonic()
    backup = store.read(backup_id, identity.brain_id)
    home = settings.home / "drills" / backup.backup_id
    discard_servers(home)  # of a drill that was killed
    shutil.rmtree(home, ignore_errors=True)
    attempt = _Attempt(settings, store, backup, home, progress)
    try:
        require_fit(settings, backup, identity.brain_id)
        _proven(attempt)
    except (InvalidBackup, CopyFailed, EmbeddedServerError) as error:
        attempt.findings.append(str(error))
    finally:
        discard_servers(home)
        shutil.rmtree(home, ignore_errors=True)
    result = Drill(
        backup.backup_id,
        backup.created_at,
        backup.position,
        round(time.monotonic() - began, 3),
        tuple(attempt.findings),
    )
    with database.as_operator() as connection:
        record_drill(connection, result)
    if not result.findings:
        proof = {"proven_at": datetime.now(UTC), "seconds": attempt.seconds}
        store.set_proven(backup.backup_id, msgspec.json.encode(proof))
    return result, attempt.seconds


def _told(attempt: _Attempt) -> str:
    listed = "\n".join(f"  {finding}" for finding in attempt.findings)
    return f"what {attempt.backup.backup_id} restores to is not what was backed up:\n{listed}"


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    folder = home / f".fetched-{time.time_ns()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _proven(attempt: _Attempt) -> tuple[PostgresServer, ValkeyServer]:
    """Restore into the home, and collect what is found against it."""
    backup, store = attempt.backup, attempt.store
    attempt.home.mkdir(parents=True, exist_ok=True)
    attempt.home.chmod(0o711)
    with _scratch(attempt.home) as fetched:
        with attempt.step("fetch and check digests"):
            store.fetch(backup, fetched)
        restore = _restored_cluster if backup.kind == "base" else _restored_dumps
        postgres = restore(attempt, fetched)
        _prove_brain(attempt, postgres.url(backup.database), fetched)
        if (fetched / KEY).exists():
            (fetched / KEY).rename(attempt.home / KEY)
        with attempt.step("start Redis"):
            if (fetched / REDIS).exists():
                copy = fetched / "redis.rdb"
                _unpack(fetched / REDIS, copy)
                valkey = adopt_valkey(attempt.home, copy, attempt.settings.valkey_binary)
            else:
                valkey = start_valkey(attempt.home, attempt.settings.valkey_binary)
            attempt.rebuilt = _rebuilt(postgres.url(backup.database), valkey.url)
    return postgres, valkey


def _restored_cluster(attempt: _Attempt, fetched: Path) -> PostgresServer:
    backup, programs = attempt.backup, attempt.programs
    cluster, log = fetched / "cluster", fetched / "log"
    with attempt.step("unpack"):
        with (
            (fetched / CLUSTER).open("rb") as packed,
            zstandard.ZstdDecompressor().stream_reader(packed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            # Of its files and folders, nothing outside; before Python 3.11.4 there is no such filter.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(cluster)
        (fetched / CLUSTER).unlink()
        log.mkdir()
        for segment in sorted((fetched / "wal").iterdir()):
            _unpack(segment, log / segment.stem)
    with attempt.step("pg_verifybackup"):
        try:
            postgres_copy.run(programs, "pg_verifybackup", "--quiet", "-w", log, cluster)
        except CopyFailed as error:
            raise InvalidBackup(f"{backup.backup_id}: {error}") from error
    with attempt.step("recover and start"):
        postgres = adopt_postgres(
            attempt.home,
            cluster,
            log=log,
            stop_before=backup.stop_before,
            user=backup.owner,
            superuser=backup.superuser,
            keep_settings=backup.embedded,
            binaries=attempt.settings.postgres_binaries,
        )
    with attempt.step("pg_amcheck"):
        for name in dict.fromkeys([backup.database, backup.dagster_database]):
            url = postgres.admin_url(name)
            try:
                options = ["--install-missing", "--heapallindexed", "--jobs=2", "--no-password", "{}"]
                postgres_copy.run(programs, "pg_amcheck", *options, url=url)
            except CopyFailed as error:
                attempt.findings.append(str(error))
            drop_amcheck(url)
    return postgres


def _restored_dumps(attempt: _Attempt, fetched: Path) -> PostgresServer:
    backup = attempt.backup
    with attempt.step("start an empty Postgres"):
        postgres = start_postgres(attempt.home, attempt.settings.postgres_binaries)
        # Roles are the cluster's, not in a dump of a database: the schema of an empty one makes them.
        ensure_database(postgres, ROLES)
        schema.migrate(postgres.url(ROLES))
        drop_database(postgres.url(ROLES), postgres.url("postgres"))
    with attempt.step("restore"):
        for dump, name in ((BRAIN_DUMP, backup.database), (DAGSTER_DUMP, backup.dagster_database)):
            if (fetched / dump).exists():
                ensure_database(postgres, name)
                postgres_copy.restore_database(attempt.programs, fetched / dump, postgres.url(name))
    return postgres


def _prove_brain(attempt: _Attempt, url: str, fetched: Path) -> None:
    """Compare the restored brain with the account, replay it, and follow every chain."""
    backup = attempt.backup
    if backup.has(ROWS):  # the first backups had no digests
        with attempt.step("digests of rows"):
            told = _table_digests.decode_lines(_unpacked(fetched / ROWS))
            attempt.findings += differences(told, digests_at(url))
    with attempt.step("replay and chains"):
        schema.migrate(url)
        with Database(url) as database, database.snapshot() as connection:
            identity, heads = read_identity(connection), read_heads(connection)
            attempt.findings += _differences(
                ("brain", backup.brain_id, identity.brain_id),
                ("epoch", backup.epoch, identity.epoch),
                ("position", backup.position, position(heads)),
            )
            if _unpacked(fetched / MARKS) != b"".join(marks_of(heads)):
                attempt.findings.append("the marks of the tenants' logs are not those that were backed up")
            attempt.findings += [str(finding) for finding in verify(connection).findings]
            attempt.findings += audit.broken_chains(connection)


def _differences(*compared: tuple[str, object, object]) -> list[str]:
    return [
        f"the {what} is {found}, and was {expected} when it was backed up"
        for what, expected, found in compared
        if expected != found
    ]


def _rebuilt(database_url: str, redis_url: str) -> int:
    """Write the states as Postgres has them, and return how many were different in Redis."""
    with Database(database_url) as database, database.snapshot() as connection:
        states = read_states(connection)
    with closing(SnapshotCache(redis_url)) as snapshots:
        held = snapshots.versions([state.tenant_id for state in states])
        different = [state for state, version in zip(states, held, strict=True) if version != state.version]
        snapshots.rebuild(states)
    return len(different)


def _begin_epoch(url: str, attempt: _Attempt, actor: str) -> int:
    with Database(url) as database, database.as_operator() as connection:
        return begin_epoch(connection, actor, attempt.backup.backup_id, attempt.backup.position)


def _unpacked(packed: Path) -> bytes:
    with packed.open("rb") as read:
        return zstandard.ZstdDecompressor().stream_reader(read).read()


def _unpack(packed: Path, plain: Path) -> None:
    with packed.open("rb") as read, plain.open("wb") as written:
        zstandard.ZstdDecompressor().copy_stream(read, written)
