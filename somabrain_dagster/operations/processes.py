"""Several programs run as one: started together, ended together, none left behind."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

GRACE_SECONDS = 20.0
"""How long a program gets to end by itself before it is killed."""

NICENESS = 19
"""Of programs that give way: where all want the processor, they get next to nothing of it."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Of programs that give way: a linear algebra that spins on every core leaves none to the others."""


def free_port(preferred: int, attempts: int = 20) -> int:
    """The preferred port of loopback, or the next one that nobody has.

    Raises:
        OSError: all of them are taken.
    """
    for port in range(preferred, preferred + attempts):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"the ports {preferred} to {preferred + attempts - 1} are all taken: name another")


@contextmanager
def beside(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program beside this one, and end it with all that it started at the end of the block.

    Args:
        command: the program and its arguments.
        environment: of the program.
        log: where its output goes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _start(command, environment, log)
    try:
        yield process
    finally:
        _end([process])


def run_together(
    programs: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    logs: Path,
    when_started: Callable[[threading.Event], None],
    giving_way: Collection[str] = (),
) -> str | None:
    """Run programs until one ends, or until SIGINT or SIGTERM; then end them all.

    Each is the leader of a session of its own, and what it starts is ended with it.

    Args:
        programs: the command of each, by name.
        environment: of all of them.
        logs: a directory; each program's output goes to `<name>.log` in it.
        when_started: runs beside them; the event tells it that they are being ended.
        giving_way: the names of those that, with all that they start, leave the processor to the others.

    Returns:
        The name of the program that ended by itself, or None if a signal came.
    """
    stopping = threading.Event()
    received = {
        number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in programs.items():
            gives_way = name in giving_way
            its_own = ONE_THREAD | dict(environment) if gives_way else environment
            running[name] = _start(command, its_own, logs / f"{name}.log")
            if gives_way:
                _give_way(running[name].pid)
        threading.Thread(target=when_started, args=(stopping,), daemon=True).start()
        while not stopping.wait(0.2):
            for name, process in running.items():
                if process.poll() is not None:
                    return name
        return None
    finally:
        stopping.set()
        _end(list(running.values()))
        for number, handler in received.items():
            signal.signal(number, handler)


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a program as the leader of a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(running: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End programs and all that they started, by force if they take too long."""
    for process in running:
        _signal_session(process, signal.SIGTERM)
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        _signal_session(process, signal.SIGKILL)
        process.wait()


def _give_way(pid: int) -> None:
    """Lower the priority of a program that leads a session; what it starts has the same."""
    with suppress(ProcessLookupError):
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    # Linux may schedule by session, and then a process is nice only to those of its own.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


def _signal_session(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the program and all that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # all of them have ended
