"""Run the service: one process, or a supervisor over several that share a socket."""

import asyncio
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from somabrain_dagster.operations.servers import Servers, start
from somabrain_dagster.settings import Settings

if TYPE_CHECKING:
    from somabrain_dagster.serving.service import Service

_log = logging.getLogger(__name__)

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
FINISH_SECONDS = 30
"""How long requests that are on their way may take once the service ends."""

_RESTART_PAUSE = 1.0


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8400, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT.

    Told to end, a process says so on `/readyz`, serves for `drain_seconds` more, stops listening, finishes
    what is on its way, lands what waits, and ends. A second signal ends it at once.

    Args:
        settings: of the process; the servers that they name no URL for are started.
        host: where to listen.
        port: where to listen.
        workers: processes; one that dies is started again.

    Raises:
        OSError: the port is taken.
        EmbeddedServerError: an embedded server cannot be started.
        DatabaseUnreachable: a server by URL cannot be reached.
    """
    servers = start(settings)
    listening = socket.create_server((host, port), backlog=2048, reuse_port=False)
    if workers == 1:
        work(settings, servers, listening)
        return
    metrics = tempfile.mkdtemp(prefix="somabrain-metrics-")
    os.environ[MULTIPROCESS] = metrics
    try:
        _supervise(settings, servers, listening, workers)
    finally:
        shutil.rmtree(metrics, ignore_errors=True)


def work(settings: Settings, servers: Servers, listening: socket.socket) -> None:
    """Serve in this process."""
    # Imported here: the metrics client decides at its import whether it is one of several processes.
    from somabrain_dagster.serving.app import create_app
    from somabrain_dagster.serving.logs import configure
    from somabrain_dagster.serving.protocol import Protocol
    from somabrain_dagster.serving.telemetry import traced

    configure()
    app = create_app(settings, servers)
    gc.freeze()  # what is loaded stays: no collection need look at it again
    config = uvicorn.Config(
        traced(app) if settings.service.telemetry else app,
        loop="uvloop",
        http=Protocol,
        proxy_headers=False,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=FINISH_SECONDS,
        backlog=2048,
    )
    _Server(config, app.state.service, settings.service.drain_seconds).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Uvicorn, which says on `/readyz` that it will end before it does."""

    def __init__(self, config: uvicorn.Config, service: "Service", drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once if it is said twice."""
        if self._service.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        asyncio.get_running_loop().call_later(self._drain_seconds, self._end)

    def _end(self) -> None:
        # Not by the signal itself, which would be raised again at the end: to end when told is no failure.
        self.should_exit = True


def _supervise(settings: Settings, servers: Servers, listening: socket.socket, workers: int) -> None:
    spawning = multiprocessing.get_context("spawn")
    ending = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    def start_worker() -> BaseProcess:
        process = spawning.Process(target=work, args=(settings, servers, listening))
        process.start()
        return process

    processes = [start_worker() for _ in range(workers)]
    while not ending:
        time.sleep(0.1)
        for place, process in enumerate(processes):
            if process.is_alive() or ending:
                continue
            print(f"a worker ended by itself (exit {process.exitcode}): starting another", file=sys.stderr)
            _forget_metrics(process.pid)
            time.sleep(_RESTART_PAUSE)
            processes[place] = start_worker()
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(FINISH_SECONDS + settings.service.drain_seconds + 5)
        if process.is_alive():
            process.kill()


def _forget_metrics(pid: int | None) -> None:
    """A dead process has no gauges; what it counted stays counted."""
    for path in Path(os.environ[MULTIPROCESS]).glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)
