"""Backups: taken under load, restored exactly, and refused where they are not what was written."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import dagster as dg
import msgspec
import psycopg
import pytest
import zstandard
from click.testing import CliRunner
from msgspec.structs import replace
from psycopg import sql
from pydantic import SecretStr

from somabrain_dagster.cli.main import main
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import (
    PostgresServer,
    discard_servers,
    postgres_status,
    start_postgres,
    start_valkey,
)
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.backup_manifest import (
    CLUSTER,
    MANIFEST,
    MARKS,
    REDIS,
    ROWS,
    Backup,
    BackupFile,
    InvalidBackup,
    decode,
    encode,
)
from somabrain_dagster.operations.backup_store import NoBackup
from somabrain_dagster.operations.backups import back_up, store_of
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.redis_copy import CannotCopyRedis
from somabrain_dagster.operations.restoring import (
    RestoreRefused,
    drill,
    replace_home,
    restore_database,
    restore_into,
)
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.backups import BackupRunning, alone, last_proof, marked, read_identity
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database, ensure_sibling_database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed, land
from somabrain_dagster.store.operations_gauges import read_operations_gauges
from somabrain_dagster.store.positions import position, read_heads
from somabrain_dagster.store.row_digests import TableDigest, digests_at, table_digests
from somabrain_dagster.store.working_memory import Noted, WorkingMemory
from tests.forgery import nudge_live_alpha

PEOPLE = 2
MORE_PEOPLE = 12
CONFIGURATION = LearningConfiguration()


def place(base: Path, name: str) -> Path:
    """A directory that nobody has, where root's servers can have it too."""
    return base / f"{name}-{uuid4().hex[:8]}"


def settings_of(home: Path, backups: Path) -> Settings:
    return Settings(home=home, backup_url=f"file://{backups}", backup_keep=3)


def position_at(url: str) -> str:
    with Database(url) as database, database.snapshot() as connection:
        return position(read_heads(connection))


def memories_at(url: str) -> list[tuple[str, int, str]]:
    with Database(url) as database, database.snapshot() as connection:
        return [
            (tenant, number, text)
            for tenant, number, text in connection.execute(
                "SELECT tenant_id, memory_id, text FROM memories ORDER BY tenant_id, memory_id"
            )
        ]


@dataclass
class Brain:
    """Real people's conversations in servers of their own, and a place for backups."""

    settings: Settings
    url: str
    redis_url: str
    backups: Path

    @property
    def home(self) -> Path:
        return self.settings.home


def new_brain(base: Path, backups: Path, people: int) -> Brain:
    settings = settings_of(place(base, "home"), backups)
    started = servers.start(settings)
    if people:
        with Database(started.database_url) as database:
            import_chitchat(database, CONFIGURATION, people)
    return Brain(settings, started.database_url, started.redis_url, backups)


@pytest.fixture(scope="module")
def brain(reachable_path: Path) -> Iterator[Brain]:
    made = new_brain(reachable_path, place(reachable_path, "backups"), PEOPLE)
    yield made
    discard_servers(made.home)


@pytest.fixture(scope="module")
def whole(brain: Brain) -> Backup:
    """A backup of the brain while nothing happens."""
    return back_up(brain.settings).backup


@pytest.fixture
def elsewhere(reachable_path: Path) -> Iterator[Path]:
    """A directory to restore into, which does not exist yet."""
    home = place(reachable_path, "restored")
    yield home
    discard_servers(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def copied(brain: Brain, whole: Backup, tmp_path: Path) -> tuple[Settings, Path]:
    """A copy of the backup that a test may damage, and settings that find it."""
    shutil.copytree(brain.backups / whole.backup_id, tmp_path / whole.backup_id)
    return settings_of(brain.home, tmp_path), tmp_path / whole.backup_id


@dataclass
class Load:
    """Feedback of more people, which lands one by one until it is told to end."""

    url: str
    acknowledged: list[tuple[Feedback, int]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        said = read_chitchat(PEOPLE).feedback
        with Database(self.url) as database:
            number = 0
            while not self.ending.is_set():
                # Said again under another key, it is another event: there is always one more.
                event = replace(said[number % len(said)], idempotency_key=f"load-{number}")
                (outcome,) = land(database, [event], CONFIGURATION)
                assert isinstance(outcome, Landed)
                self.acknowledged.append((event, outcome.seq))
                number += 1


def import_more(url: str) -> None:
    """Memories, links and token usage of more people, which no lock of the backup holds back."""
    with Database(url) as database:
        import_chitchat(database, CONFIGURATION, MORE_PEOPLE)


@pytest.mark.learning
@pytest.mark.slow
def test_a_backup_under_load_restores_to_its_position_after_everything_is_lost(reachable_path: Path) -> None:
    brain = new_brain(reachable_path, place(reachable_path, "backups"), PEOPLE)
    try:
        load = Load(brain.url)
        threads = [threading.Thread(target=load.run), threading.Thread(target=import_more, args=[brain.url])]
        for thread in threads:
            thread.start()
        try:
            while len(load.acknowledged) < 20:
                load.ending.wait(0.01)
            before = len(load.acknowledged)
            made = back_up(brain.settings).backup
            after = len(load.acknowledged)
            importing = threads[1].is_alive()
        finally:
            load.ending.set()
            for thread in threads:
                thread.join()
        assert importing, "nothing was written to other tables while the backup was taken"
        assert after > before, "nothing landed while the backup was taken"
        latest = position_at(brain.url)

        discard_servers(brain.home)
        shutil.rmtree(brain.home)

        restored = replace_home(brain.settings, None, actor="tests")
        url = servers.start(brain.settings).database_url
        assert position_at(url) == restored.backup.position == made.position != latest
        with Database(url) as database, database.as_operator() as connection:
            found = {
                (tenant, key): seq
                for tenant, key, seq in connection.execute("SELECT tenant_id, key, seq FROM idempotency_keys")
            }
        kept = [
            found.get((event.tenant_id, str(event.idempotency_key))) == seq
            for event, seq in load.acknowledged
        ]
        assert all(kept[:before]), "what was acknowledged before the backup began is in it"
        assert kept == sorted(kept, reverse=True), "what is in it has no gap"
        assert sum(kept) < len(kept)
    finally:
        discard_servers(brain.home)


@pytest.mark.slow
def test_a_restored_brain_goes_on_in_a_new_epoch_and_says_so(
    brain: Brain, whole: Backup, elsewhere: Path
) -> None:
    restored = restore_into(brain.settings, whole.backup_id, elsewhere, actor="tests")
    url = start_postgres(elsewhere).url(servers.BRAIN)
    with Database(url) as database, database.as_operator() as connection:
        identity = read_identity(connection)
        told = connection.execute(
            "SELECT actor, body FROM audit_events WHERE tenant_id = %s AND action = 'restore'",
            (audit.SYSTEM,),
        ).fetchall()
    assert identity.brain_id == whole.brain_id
    assert identity.epoch == restored.epoch > whole.epoch
    body = {"backup": whole.backup_id, "position": whole.position, "epoch": restored.epoch}
    assert told == [("tests", body)]
    with Database(url) as database:
        event = replace(read_chitchat(PEOPLE).feedback[0], idempotency_key="afterwards")
        assert isinstance(land(database, [event], CONFIGURATION)[0], Landed)


@pytest.mark.slow
def test_what_was_restored_is_backed_up_like_any_other(brain: Brain, whole: Backup, elsewhere: Path) -> None:
    restore_into(brain.settings, whole.backup_id, elsewhere, actor="tests")
    again = back_up(settings_of(elsewhere, elsewhere / "backups")).backup
    assert (again.kind, again.brain_id, again.position) == ("base", whole.brain_id, whole.position)
    assert again.epoch > whole.epoch


@pytest.mark.slow
def test_a_server_of_ones_own_is_copied_by_a_role_that_may_replicate(
    brain: Brain, dumped: tuple[Settings, Backup], elsewhere: Path
) -> None:
    server = postgres_of(brain.home)
    url = f"postgresql://copier:of-a-test@{server.host}:{server.port}/{servers.BRAIN}"
    settings = dumped[0].model_copy(update={"backup_database_url": SecretStr(url)})
    with psycopg.connect(server.admin_url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE copier LOGIN REPLICATION PASSWORD 'of-a-test'")
        admin.execute("ALTER SYSTEM SET shared_preload_libraries = 'only_on_that_machine'")
        try:
            made = back_up(settings).backup
        finally:
            admin.execute("ALTER SYSTEM RESET shared_preload_libraries")
    assert (made.kind, made.embedded) == ("base", False)
    restore_into(settings, made.backup_id, elsewhere, actor="tests")
    restored = start_postgres(elsewhere).url(servers.BRAIN)
    assert position_at(restored) == made.position == position_at(brain.url)


@pytest.mark.slow
def test_dagsters_database_is_in_it_too(brain: Brain, whole: Backup, elsewhere: Path) -> None:
    with psycopg.connect(postgres_of(brain.home).url(servers.DAGSTER)) as connection:
        connection.execute("CREATE TABLE runs_of_somebody AS SELECT 42 AS run")
    made = back_up(brain.settings).backup
    restore_into(brain.settings, made.backup_id, elsewhere, actor="tests")
    with psycopg.connect(start_postgres(elsewhere).url(servers.DAGSTER)) as connection:
        assert connection.execute("SELECT run FROM runs_of_somebody").fetchone() == (42,)


def postgres_of(home: Path) -> PostgresServer:
    server = postgres_status(home)
    assert server is not None
    return server


def test_working_memory_comes_back_and_a_state_that_is_not_postgres_is_rebuilt(
    brain: Brain, elsewhere: Path
) -> None:
    with Database(brain.url) as database, database.as_operator() as connection:
        states = read_states(connection)
    cache = SnapshotCache(brain.redis_url)
    cache.rebuild([states[0]])
    with WorkingMemory(brain.redis_url, 8, 86_400) as working:
        working.remember(states[0].tenant_id, "session", [Noted(3, 0.5), Noted(1)])

    made = back_up(brain.settings).backup
    restored = restore_into(brain.settings, made.backup_id, elsewhere, actor="tests")

    url = start_valkey(elsewhere).url
    with WorkingMemory(url, 8, 86_400) as working:
        assert working.recent(states[0].tenant_id, "session") == [Noted(1), Noted(3, 0.5)]
    assert restored.rebuilt == len(states) - 1
    names = [state.tenant_id for state in states]
    assert SnapshotCache(url).versions(names) == [state.version for state in states]


# What is refused, and leaves what is there as it was


def cut(folder: Path, name: str) -> None:
    path = folder / name
    os.truncate(path, path.stat().st_size - 1)


def flip(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


@pytest.mark.parametrize("name", [CLUSTER, REDIS, MARKS, "wal"])
@pytest.mark.parametrize(
    ("damage", "reason"), [(cut, "bytes, and had"), (flip, "was changed"), (remove, "is missing")]
)
def test_a_backup_whose_file_is_cut_changed_or_missing_is_refused(
    brain: Brain,
    copied: tuple[Settings, Path],
    elsewhere: Path,
    name: str,
    damage: Callable[[Path, str], None],
    reason: str,
) -> None:
    settings, folder = copied
    if name == "wal":
        name = f"wal/{sorted(path.name for path in (folder / 'wal').iterdir())[0]}"
    damage(folder, name)
    assert_refused(
        settings, brain, folder.name, elsewhere, InvalidBackup, f"{name} .*{reason}|{name} {reason}"
    )


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_account_is_refused(
    brain: Brain, copied: tuple[Settings, Path], elsewhere: Path, damage: Callable[[Path, str], None]
) -> None:
    settings, folder = copied
    if damage is cut:
        os.truncate(folder / MANIFEST, 300)
    else:
        damage(folder, MANIFEST)
    reason = "is no account of a backup|was changed"
    assert_refused(settings, brain, folder.name, elsewhere, InvalidBackup, reason)
    with pytest.raises(NoBackup):
        store_of(settings).read(None)
    assert len(list(store_of(settings).damaged())) == 1


def amended(folder: Path, **changes: object) -> None:
    """An account that is whole, and says something else."""
    account = decode((folder / MANIFEST).read_bytes(), MANIFEST)
    (folder / MANIFEST).write_bytes(encode(replace(account, **changes)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"postgres_version": 170004}, "is of PostgreSQL 17, and the programs here are of 18"),
        ({"schema_revision": "9999"}, "has schema revision 9999"),
        ({"format": 2}, "has format 2"),
    ],
)
def test_a_backup_of_other_versions_is_refused(
    brain: Brain, copied: tuple[Settings, Path], elsewhere: Path, changes: dict[str, object], reason: str
) -> None:
    settings, folder = copied
    amended(folder, **changes)
    assert_refused(settings, brain, folder.name, elsewhere, InvalidBackup, reason)


@pytest.mark.slow
def test_what_restores_to_another_position_than_the_account_says_is_refused(
    brain: Brain, copied: tuple[Settings, Path], elsewhere: Path
) -> None:
    settings, folder = copied
    amended(folder, position="7-0123456789abcdef")
    reason = "the position is .*, and was 7-0123456789abcdef"
    assert_refused(settings, brain, folder.name, elsewhere, RestoreRefused, reason)


@pytest.mark.slow
def test_what_restores_to_other_rows_than_the_account_says_is_refused(
    brain: Brain, copied: tuple[Settings, Path], elsewhere: Path
) -> None:
    settings, folder = copied
    told = msgspec.json.Decoder(TableDigest).decode_lines(
        zstandard.ZstdDecompressor().stream_reader((folder / ROWS).read_bytes()).read()
    )
    told = [replace(each, rows=7) if each.table == "memory_links" else each for each in told]
    told = [replace(each, digest="1") if each.table == "memories" else each for each in told]
    content = zstandard.compress(msgspec.json.Encoder().encode_lines(told))
    (folder / ROWS).write_bytes(content)
    account = BackupFile(ROWS, len(content), hashlib.sha256(content).hexdigest())
    files = decode((folder / MANIFEST).read_bytes(), MANIFEST).files
    amended(folder, files=tuple(account if file.path == ROWS else file for file in files))
    reason = r"rows of the table memories are not those .*\n.*memory_links has [\d,]+ rows, and had 7"
    assert_refused(settings, brain, folder.name, elsewhere, RestoreRefused, reason)


@pytest.mark.slow
def test_a_foreign_brains_backup_does_not_take_this_ones_place(
    brain: Brain, whole: Backup, reachable_path: Path
) -> None:
    other = new_brain(reachable_path, brain.backups, 0)
    try:
        made = back_up(other.settings).backup
        before = position_at(brain.url)
        with pytest.raises(InvalidBackup, match=f"is of brain {made.brain_id}, and here is brain"):
            replace_home(brain.settings, made.backup_id, actor="tests")
        assert position_at(brain.url) == before
        store_of(brain.settings).remove(made.backup_id)
    finally:
        discard_servers(other.home)


def assert_refused(
    settings: Settings, brain: Brain, backup_id: str, elsewhere: Path, kind: type[Exception], reason: str
) -> None:
    before, files = position_at(brain.url), sorted(path.name for path in brain.home.iterdir())
    pid = postgres_of(brain.home).pid
    with pytest.raises(kind, match=reason):
        restore_into(settings, backup_id, elsewhere, actor="tests")
    assert not elsewhere.exists()
    with pytest.raises(kind, match=reason):
        replace_home(settings, backup_id, actor="tests")
    assert sorted(path.name for path in brain.home.iterdir()) == files
    assert postgres_of(brain.home).pid == pid
    assert position_at(brain.url) == before


def test_a_directory_with_something_in_it_is_left_alone(brain: Brain, whole: Backup, elsewhere: Path) -> None:
    elsewhere.mkdir()
    (elsewhere / "letter").write_text("dear")
    with pytest.raises(RestoreRefused, match="has something in it"):
        restore_into(brain.settings, whole.backup_id, elsewhere, actor="tests")
    assert (elsewhere / "letter").read_text() == "dear"


@pytest.mark.slow
def test_what_is_replaced_is_kept_as_a_home_of_its_own(reachable_path: Path) -> None:
    brain = new_brain(reachable_path, place(reachable_path, "backups"), 2)
    aside = None
    try:
        back_up(brain.settings)
        with Database(brain.url) as database:
            event = replace(read_chitchat(2).feedback[0], idempotency_key="later")
            land(database, [event], CONFIGURATION)
        latest = position_at(brain.url)
        restored = replace_home(brain.settings, None, actor="tests")
        aside = restored.aside
        assert aside is not None
        assert position_at(start_postgres(brain.home).url(servers.BRAIN)) == restored.backup.position
        assert position_at(start_postgres(aside).url(servers.BRAIN)) == latest
    finally:
        discard_servers(brain.home)
        if aside is not None:
            discard_servers(aside)


# The place in the log, and the rows that are there at it


def test_the_place_is_at_an_instant_at_which_nobody_writes(brain: Brain) -> None:
    def heard() -> list[int]:
        with marked(brain.url) as (_, view):
            return [each.rows for each in table_digests(view) if each.table == "audit_events"]

    before = heard()
    with ThreadPoolExecutor(1) as other, Database(brain.url) as database:
        with database.as_operator() as connection:
            audit.record(connection, audit.SYSTEM, "tests", "wrote", {})
            answer = other.submit(heard)
            with pytest.raises(TimeoutError):
                answer.result(timeout=1.0)
        assert answer.result() == [before[0] + 1]


def test_who_reads_or_locks_a_row_does_not_hold_a_backup_up(brain: Brain) -> None:
    with Database(brain.url) as database, database.as_operator() as connection:
        connection.execute("SELECT FROM adaptation_states FOR SHARE")
        with marked(brain.url) as (standing, _):
            assert position(standing.heads) == position_at(brain.url)


def test_the_owner_counts_every_row_that_a_superuser_sees(brain: Brain) -> None:
    assert digests_at(brain.url) == digests_at(postgres_of(brain.home).admin_url(servers.BRAIN))


# One at a time, as many as are wanted


def test_two_backups_at_once_are_one_too_many(brain: Brain) -> None:
    before = store_of(brain.settings).backups()
    with alone(brain.url), pytest.raises(BackupRunning, match="another backup of this brain runs"):
        back_up(brain.settings)
    assert store_of(brain.settings).backups() == before


@pytest.mark.slow
def test_so_many_are_kept_and_the_last_that_was_proven(brain: Brain, reachable_path: Path) -> None:
    backups = place(reachable_path, "kept")
    settings = brain.settings.model_copy(update={"backup_url": f"file://{backups}", "backup_keep": 1})
    store = store_of(settings)
    first, second = (back_up(settings).backup.backup_id for _ in range(2))
    assert [each.backup_id for each in store.backups()] == [second]
    store.set_proven(second, b"{}")
    unfinished = backups / f"20200101T000000000Z-{first.rpartition('-')[2]}"
    unfinished.mkdir()
    (unfinished / CLUSTER).write_bytes(b"begun")
    last = back_up(settings)
    assert [each.backup_id for each in store.backups()] == [second, last.backup.backup_id]
    assert last.removed == []
    assert not unfinished.exists()


def test_a_backup_that_fails_leaves_nothing(brain: Brain, reachable_path: Path) -> None:
    backups = place(reachable_path, "failed")
    nowhere = {"backup_url": f"file://{backups}", "redis_url": SecretStr("redis://127.0.0.1:1/0")}
    settings = brain.settings.model_copy(update=nowhere)
    with pytest.raises(CannotCopyRedis, match="SOMABRAIN_BACKUP_REDIS=0"):
        back_up(settings)
    assert not list(backups.glob("*"))
    made = back_up(settings.model_copy(update={"backup_redis": False})).backup
    assert not made.has(REDIS)
    assert made.redis_version is None


# Where all that one has is the right to read


@pytest.fixture(scope="module")
def dumped(brain: Brain) -> tuple[Settings, Backup]:
    """A backup of the same brain by its owner alone, who may not replicate."""
    server = postgres_of(brain.home)
    apart = settings_of(brain.home / "apart", brain.backups.with_name(f"{brain.backups.name}-dumps"))
    settings = apart.model_copy(
        update={
            "database_url": SecretStr(server.url(servers.BRAIN)),
            "dagster_database_url": SecretStr(server.url(servers.DAGSTER)),
            "redis_url": SecretStr(brain.redis_url),
        }
    )
    return settings, back_up(settings).backup


@pytest.mark.slow
def test_a_dump_is_restored_into_servers_of_its_own(
    brain: Brain, dumped: tuple[Settings, Backup], elsewhere: Path
) -> None:
    settings, made = dumped
    assert made.kind == "dump"
    assert made.position == position_at(brain.url)
    restore_into(settings, made.backup_id, elsewhere, actor="tests")
    url = start_postgres(elsewhere).url(servers.BRAIN)
    assert position_at(url) == made.position
    assert memories_at(url) == memories_at(brain.url)


@pytest.mark.slow
def test_a_dump_is_restored_into_an_empty_database_and_no_other(
    brain: Brain, dumped: tuple[Settings, Backup]
) -> None:
    settings, made = dumped
    with pytest.raises(RestoreRefused, match="has tables"):
        restore_database(settings, made.backup_id, brain.url, actor="tests")
    server = postgres_of(brain.home)
    url = ensure_sibling_database(brain.url, "_restored")
    with psycopg.connect(server.admin_url(f"{servers.BRAIN}_restored")) as admin:
        for extension in ("vector", "pg_trgm"):
            admin.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
    restore_database(settings, made.backup_id, url, actor="tests")
    assert position_at(url) == made.position
    with pytest.raises(RestoreRefused, match="names a server of your own"):
        replace_home(
            settings.model_copy(update={"home": brain.home / "nowhere"}), made.backup_id, actor="tests"
        )


# When a backup was proven


def test_a_drill_proves_a_backup_and_leaves_nothing_behind(brain: Brain, whole: Backup) -> None:
    with Database(brain.url) as database:
        result, seconds = drill(brain.settings, database, whole.backup_id)
        with database.as_operator() as connection:
            proof = last_proof(connection)
            done = read_operations_gauges(connection)
    assert result.findings == ()
    assert done.backups >= 1
    assert (done.drills_refuted, done.proven_backup_at) == (0, whole.created_at)
    assert done.backup_at is not None
    assert done.backup_at >= whole.created_at
    assert done.backup_changes >= int(whole.position.split("-")[0]) > 0
    assert {"pg_verifybackup", "pg_amcheck", "replay and chains"} <= seconds.keys()
    assert proof is not None
    assert (proof.backup_id, proof.position) == (whole.backup_id, whole.position)
    assert store_of(brain.settings).is_proven(whole.backup_id)
    assert not any((brain.home / "drills").iterdir())


@pytest.mark.slow
def test_a_drill_of_a_damaged_backup_says_what_is_wrong_and_proves_nothing(
    brain: Brain, copied: tuple[Settings, Path]
) -> None:
    settings, folder = copied
    (folder / "proven.json").unlink(missing_ok=True)
    marks = zstandard.ZstdCompressor().compress(b'{"tenant_id":"nobody","version":1,"hash":"00"}\n')
    (folder / MARKS).write_bytes(marks)
    account = decode((folder / MANIFEST).read_bytes(), MANIFEST)
    files = tuple(
        replace(file, bytes=len(marks), sha256=hashlib.sha256(marks).hexdigest())
        if file.path == MARKS
        else file
        for file in account.files
    )
    amended(folder, files=files)
    with Database(brain.url) as database:
        result, _ = drill(settings, database, folder.name)
    assert result.findings == ("the marks of the tenants' logs are not those that were backed up",)
    assert not store_of(settings).is_proven(folder.name)


@pytest.mark.slow
def test_dagster_backs_up_and_proves(brain: Brain) -> None:
    definitions = build_definitions(brain.settings)
    checks: dict[str, bool] = {}
    with dg.DagsterInstance.ephemeral() as instance:
        for job in ("backup", "backup_drill", "backup"):
            result = definitions.resolve_job_def(job).execute_in_process(instance=instance)
            assert result.success
            checks |= {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
            if job == "backup_drill":
                (drilled,) = result.asset_materializations_for_node("restore_drill")
    assert checks == {
        "every_file_reads_back": True,
        "the_restored_brain_is_the_one_backed_up": True,
        "a_backup_was_proven_lately": True,
    }
    assert "data:image/png" in str(drilled.metadata["what it took"].value)
    schema = drilled.metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchemaMetadataValue)
    assert [column.name for column in schema.schema.columns][:3] == ["drill_id", "created_at", "backup_id"]


@pytest.mark.slow
def test_the_commands_tell_what_they_did(
    brain: Brain, whole: Backup, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMABRAIN_HOME", str(brain.home))
    monkeypatch.setenv("SOMABRAIN_BACKUP_URL", f"file://{brain.backups}")

    def said(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.output

    newest = store_of(brain.settings).read(None)
    assert newest.backup_id in said("backup", "list")
    assert newest.brain_id in said("backup", "show")
    assert "files as they were written" in said("backup", "verify")
    assert "say where" in said("restore", code=1)
    assert "there is no backup nothing" in said("backup", "show", "nothing", code=1)
    restored = said("restore", newest.backup_id, "--into", str(elsewhere), "--brain", newest.brain_id)
    assert f"{newest.backup_id} is restored and proven, at position {newest.position}" in restored
    options = ["--into", f"{elsewhere}-2", "--brain", "other"]
    assert "and here is brain other" in said("restore", newest.backup_id, *options, code=1)
    assert "there is no backup of brain other" in said("restore", *options, code=1)


# When the brain itself was not what it should be


@pytest.fixture
def tampered(reachable_path: Path, tmp_path: Path) -> Iterator[Brain]:
    """A brain in which somebody who owns the tables added one nano-unit to a live weight."""
    made = new_brain(reachable_path, tmp_path, 1)
    with Database(made.url) as database:
        with database.as_operator() as connection:
            (state,) = read_states(connection)
        nudge_live_alpha(database, state.tenant_id)
    yield made
    discard_servers(made.home)


@pytest.mark.slow
def test_a_brain_that_does_not_replay_is_found_by_the_drill_and_takes_nobodys_place(
    tampered: Brain, elsewhere: Path
) -> None:
    made = back_up(tampered.settings).backup
    with Database(tampered.url) as database:
        result, _ = drill(tampered.settings, database, made.backup_id)
        with database.as_operator() as connection:
            assert last_proof(connection) is None
    assert any("alpha" in finding and "(+1)" in finding for finding in result.findings)
    with pytest.raises(RestoreRefused, match=r"alpha .* the replay gives .* \(\+1\)"):
        replace_home(tampered.settings, made.backup_id, actor="tests")
    with pytest.raises(RestoreRefused, match="the replay gives"):
        restore_into(tampered.settings, made.backup_id, elsewhere, actor="tests")
    assert not elsewhere.exists()
    assert position_at(tampered.url) == made.position
