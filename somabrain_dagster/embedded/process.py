"""Processes and ports of this machine, as the embedded servers need to know them."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"


def _works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(directory))
    except psutil.Error:  # it has ended, or it is another user's, hence not ours
        return False


def is_at_work(pid: int, directory: Path) -> bool:
    """Whether the process is alive, no zombie, and has `directory` (absolute, resolved) as its own.

    A pid alone proves nothing: after a crash or a reboot it may belong to anybody.
    """
    try:
        return _works_in(psutil.Process(pid), directory)
    except (psutil.Error, ValueError, OverflowError):
        return False


def pids_at_work(program: str, directory: Path) -> list[int]:
    """The processes of `program`, forked children too, whose working directory is `directory`."""
    return [
        process.pid
        for process in psutil.process_iter()
        if _has_name(process, program) and _works_in(process, directory)
    ]


def _has_name(process: psutil.Process, program: str) -> bool:
    try:
        return bool(process.name() == program)
    except psutil.Error:
        return False


def wait_until_gone(program: str, directory: Path, seconds: float) -> list[int]:
    """Wait for the processes of `program` in `directory` to end; return those that have not."""
    deadline = time.monotonic() + seconds
    while (left := pids_at_work(program, directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def end(pid: int, directory: Path, signals: Sequence[signal.Signals], seconds: float) -> bool:
    """Send one signal after another, each with its time to act, until the process has ended."""
    for each in signals:
        try:
            os.kill(pid, each)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_at_work(pid, directory):
                return True
            time.sleep(0.02)
    return False


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        # As the servers do: connections of a killed predecessor that linger do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
