"""What runs: Postgres, Valkey, three nodes of Kafka, and what `make up` starts, in a home of its own.

Every program is started with one working directory, by which whatever a killed validation left running is
found and ended before the next one begins.
"""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from somabrain_dagster.embedded import discard_servers
from somabrain_dagster.embedded.kafka import KafkaToolsMissing, start_kafka, stop_kafka
from somabrain_dagster.embedded.process import end, is_at_work
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.kafka import ensure_topics
from somabrain_dagster.operations.processes import free_port
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.outbox import LOGS
from somabrain_dagster.traffic import ready

ROOT = Path(__file__).parents[2]
SOMABRAIN = str(Path(sys.executable).with_name("somabrain"))
PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients, and far apart: a port is used seconds after it was free."""
START_SECONDS = 240.0
END_SECONDS = 60.0


class AnotherValidation(RuntimeError):
    """Another one is at work in this home."""


@dataclass
class Stage:
    """The servers, and where programs that work with them are started.

    Attributes:
        place: the working directory of every program.
        no_kafka: why there is no Kafka; None where there is.
        largest: the most memory that each kind of program had, in bytes, as far as it was looked at.
    """

    settings: Settings
    where: servers.Servers
    database: Database
    place: Path
    no_kafka: str | None
    largest: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def program(self, command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """A program of ours until the end of the block."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    @contextmanager
    def up(self) -> Iterator[str]:
        """What `make up` starts, until the end of the block; the URL of the service."""
        port, ui_port = (free_port(port) for port in random.sample(PORTS, 2))
        command = [SOMABRAIN, "ui", "--port", str(ui_port), "--service-port", str(port)]
        with self._serving(command, port, "Dagster's UI: ") as url:
            yield url

    @contextmanager
    def served(self) -> Iterator[str]:
        """The service alone, until the end of the block; its URL."""
        port = free_port(random.choice(PORTS))
        with self._serving([SOMABRAIN, "serve", "--port", str(port)], port, "") as url:
            yield url

    @contextmanager
    def _serving(self, command: Sequence[str], port: int, said: str) -> Iterator[str]:
        url, log = f"http://127.0.0.1:{port}", self.place / f"{command[1]}.log"
        log.unlink(missing_ok=True)
        with self.program(command, log) as process:
            deadline = time.monotonic() + START_SECONDS
            while not (ready(url) and said in log.read_text()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"`{' '.join(command)}` did not start:\n{log.read_text()[-1000:]}")
                time.sleep(0.2)
            yield url

    def look(self) -> None:
        """Note how much memory our programs have."""
        self._note("this program", psutil.Process())
        for process in psutil.process_iter():
            if is_at_work(process.pid, self.place):
                try:
                    command = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                for kind, sign in _KINDS.items():
                    if sign in command:
                        self._note(kind, process)
                        break

    def _note(self, kind: str, process: psutil.Process) -> None:
        try:
            self.largest[kind] = max(self.largest.get(kind, 0), process.memory_info().rss)
        except psutil.Error:  # it has just ended
            return


_KINDS = {
    "the service": "somabrain_dagster.serving",
    "the relay": "kafka relay",
    "a run of the chain": "execute_run",
}


@contextmanager
def stage_in(home: Path) -> Iterator[Stage]:
    """The servers of a home until the end of the block; what they hold stays.

    Raises:
        AnotherValidation: one is at work there.
    """
    place = home / "work"
    place.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)
    with ExitStack() as stack:
        lock = stack.enter_context((home / "validate.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AnotherValidation(
                f"another validation is at work in {home}: wait for it, or end it"
            ) from error
        end_leftovers(place)
        _work_in(home)
        no_kafka = None
        stack.callback(stop_kafka, home)
        try:
            os.environ["SOMABRAIN_KAFKA_BOOTSTRAP"] = start_kafka(
                home, ROOT / ".somabrain" / "kafka-libs"
            ).bootstrap
        except KafkaToolsMissing as missing:
            no_kafka = str(missing)
        settings = Settings()
        if no_kafka is None:
            ensure_topics(settings.kafka, LOGS)
        stack.callback(servers.stop, settings)
        where = servers.start(settings)
        database = stack.enter_context(Database(where.database_url))
        yield Stage(settings, where, database, place, no_kafka)


def _work_in(home: Path) -> None:
    """The environment of somebody who has configured nothing but this home."""
    for name in [name for name in os.environ if name.startswith("SOMABRAIN_")]:
        del os.environ[name]
    os.environ.update(SOMABRAIN_HOME=str(home), SOMABRAIN_SENSOR_INTERVAL_SECONDS="5")


def end_leftovers(place: Path) -> None:
    """End what a validation that was killed left running: it works in a directory that nobody else has."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = [pid for pid in psutil.pids() if pid != os.getpid() and is_at_work(pid, place)]
        for pid in left:
            end(pid, place, [sign], END_SECONDS)


def discard(home: Path) -> None:
    """End whatever runs in a home, and remove it."""
    end_leftovers(home / "work")
    stop_kafka(home)
    discard_servers(home)
    shutil.rmtree(home, ignore_errors=True)
