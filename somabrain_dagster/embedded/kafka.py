"""Apache Kafka as three nodes on loopback, to try out and to test what happens when nodes die.

Maven gets it from Maven Central and checks each file's digest; this module runs it on Java 17 or newer. Each
node is broker and controller in one, with a small heap. It is no cluster for production: three nodes of one
machine are lost together.
"""

import base64
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec

from somabrain_dagster.embedded.errors import EmbeddedServerError, advice, explained, tail
from somabrain_dagster.embedded.process import LOOPBACK, end, pids_at_work, port_is_free
from somabrain_dagster.embedded.state import locked, make_home, write_private

NODES = (1, 2, 3)
STATE = "cluster.json"
FETCH_SECONDS = 600
START_SECONDS = 90.0
STOP_SECONDS = 30.0

_POM = Path(__file__).with_name("kafka.pom.xml")
_FETCH = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_JAVA_OPTIONS = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_STARTED = b"Kafka Server started"
_SETTINGS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "log.dirs": "data",
    # What is acknowledged is on two nodes at least, whatever topic it belongs to.
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "3",
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "transaction.state.log.num.partitions": "3",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "share.coordinator.state.topic.num.partitions": "3",
    "group.initial.rebalance.delay.ms": "0",
}
_LOGGING = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
logger.started.name = kafka.server.KafkaRaftServer
logger.started.level = INFO
"""


class KafkaToolsMissing(EmbeddedServerError):
    """There is no Java or no Maven on this machine."""


class _Places(msgspec.Struct, frozen=True, kw_only=True):
    """The state file: what the nodes are called, and where they listen."""

    cluster_id: str
    broker_ports: tuple[int, ...]
    controller_ports: tuple[int, ...]
    libraries: str


@dataclass(frozen=True)
class KafkaCluster:
    """Three nodes, which may run or not.

    Attributes:
        directory: of the cluster: each node works in a directory of its own beneath it.
        libraries: the jars.
        broker_ports: of nodes 1, 2 and 3.
    """

    directory: Path
    libraries: Path
    broker_ports: tuple[int, ...]

    @property
    def bootstrap(self) -> str:
        """The addresses of the brokers, as clients take them."""
        return ",".join(f"{LOOPBACK}:{port}" for port in self.broker_ports)

    def running(self) -> list[int]:
        """The nodes that run."""
        return [node for node in NODES if self._pids(node)]

    def kill(self, node: int) -> None:
        """End a node by SIGKILL, as a loss of power does."""
        self._end(node, [signal.SIGKILL])

    def stop(self) -> list[int]:
        """Tell the nodes to end, by force if they do not; return those that ran."""
        ran = self.running()
        for node in ran:
            for pid in self._pids(node):
                os.kill(pid, signal.SIGTERM)
        for node in ran:
            # The last one waits in vain for a controller that lets it go.
            self._end(node, [signal.SIGTERM, signal.SIGKILL])
        return ran

    def start(self, nodes: Sequence[int] = NODES) -> None:
        """Start nodes that do not run, and wait until each serves; that takes two of three.

        Raises:
            EmbeddedServerError: one of them ends, or does not serve in time.
        """
        starting = {node: self._launch(node) for node in nodes if not self._pids(node)}
        deadline = time.monotonic() + START_SECONDS
        for node, (process, logged) in starting.items():
            while _STARTED not in self._log(node).read_bytes()[logged:]:
                ended = process.poll()
                if ended is not None or time.monotonic() > deadline:
                    ending = tail(self._log(node))
                    what = (
                        f"does not serve after {START_SECONDS:.0f} s" if ended is None else f"ended ({ended})"
                    )
                    raise EmbeddedServerError(f"Kafka node {node} {what}.{advice(ending)}{ending}")
                time.sleep(0.1)

    def _launch(self, node: int) -> tuple["subprocess.Popen[bytes]", int]:
        """Start a node; return its process, and how long its log was before."""
        with self._log(node).open("ab") as log:
            logged = log.tell()
            process = subprocess.Popen(
                [*_java(self.directory, self.libraries), "kafka.Kafka", "server.properties"],
                cwd=self._place(node),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return process, logged

    def _pids(self, node: int) -> list[int]:
        return pids_at_work("java", self._place(node))

    def _place(self, node: int) -> Path:
        return self.directory / f"node-{node}"

    def _log(self, node: int) -> Path:
        return self.directory / f"node-{node}.log"

    def _end(self, node: int, signals: Sequence[signal.Signals]) -> None:
        for pid in self._pids(node):
            if not end(pid, self._place(node), signals, STOP_SECONDS):
                raise EmbeddedServerError(f"Kafka node {node} (process {pid}) does not stop: end it by hand.")


def start_kafka(home: Path, libraries: Path | None = None) -> KafkaCluster:
    """Start the home's trial cluster, or what of it does not run; get and format it where there is none.

    Args:
        home: a directory of the project's own, e.g. `.somabrain`; created if missing.
        libraries: where the jars are kept; unset is beside the nodes.

    Raises:
        KafkaToolsMissing: there is no Java or no Maven.
        EmbeddedServerError: it cannot be got or started; the message says what to do.
    """
    with explained("start Kafka", home):
        home = make_home(home)
        directory = home / "kafka"
        directory.mkdir(exist_ok=True)
        with locked(home, "kafka"):
            cluster = _known(directory) or _formatted(directory, libraries or directory / "libs")
            cluster.start()
            return cluster


def stop_kafka(home: Path) -> bool:
    """Stop the home's trial cluster; return whether any node ran. What it holds stays."""
    with explained("stop Kafka", home):
        cluster = kafka_cluster(home)
        return bool(cluster and cluster.stop())


def kafka_cluster(home: Path) -> KafkaCluster | None:
    """The home's trial cluster, whether it runs or not; None where none was made."""
    return _known(home.expanduser().resolve() / "kafka")


def fetch_kafka(libraries: Path) -> None:
    """Get Kafka's jars from Maven Central, unless they are there; each is checked against its digest.

    Raises:
        KafkaToolsMissing: there is no Java or no Maven.
        EmbeddedServerError: Maven cannot get them.
    """
    _tool("java", "a Java runtime of version 17 or newer (on Debian: apt install openjdk-17-jre-headless)")
    if libraries.exists():
        return
    maven = _tool("mvn", "Maven, which gets Kafka from Maven Central (on Debian: apt install maven)")
    draft = libraries.with_name(f".{libraries.name}-{uuid4().hex}")
    options = ["--batch-mode", "--quiet", "--strict-checksums", "--file", str(_POM)]
    try:
        got = subprocess.run(
            [maven, *options, _FETCH, f"-DoutputDirectory={draft}", "-DincludeScope=runtime"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
        if got.returncode:
            ending = "\n".join((got.stdout + got.stderr).splitlines()[-5:])
            raise EmbeddedServerError(f"Maven cannot get Kafka: try again once the cause is gone.\n{ending}")
        draft.rename(libraries)
    except subprocess.TimeoutExpired as error:
        raise EmbeddedServerError(f"Maven did not get Kafka in {FETCH_SECONDS} s: try again.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tool(name: str, what: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise KafkaToolsMissing(f"`{name}` is not on the PATH: install {what}.")
    return path


def _formatted(directory: Path, libraries: Path) -> KafkaCluster:
    """A new cluster without data."""
    fetch_kafka(libraries)
    ports = _free_ports(2 * len(NODES))
    places = _Places(
        cluster_id=base64.urlsafe_b64encode(uuid4().bytes).decode().strip("=").replace("-", "_"),
        broker_ports=tuple(ports[: len(NODES)]),
        controller_ports=tuple(ports[len(NODES) :]),
        libraries=str(libraries),
    )
    (directory / "log4j2.properties").write_text(_LOGGING)
    voters = ",".join(
        f"{node}@{LOOPBACK}:{port}" for node, port in zip(NODES, places.controller_ports, strict=True)
    )
    for node, broker, controller in zip(NODES, places.broker_ports, places.controller_ports, strict=True):
        place = directory / f"node-{node}"
        shutil.rmtree(place, ignore_errors=True)  # of a formatting that was interrupted
        place.mkdir()
        settings = _SETTINGS | {
            "node.id": str(node),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{LOOPBACK}:{broker},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{broker}",
        }
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        (place / "server.properties").write_text(text)
        formatted = subprocess.run(
            [
                *_java(directory, libraries),
                "kafka.tools.StorageTool",
                *("format", "--cluster-id", places.cluster_id, "--config", "server.properties"),
            ],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if formatted.returncode:
            raise EmbeddedServerError(
                f"Kafka cannot format {place}:\n{formatted.stdout}{formatted.stderr}".rstrip()
            )
    owner = directory.stat()
    write_private(directory / STATE, msgspec.json.encode(places), owner.st_uid, owner.st_gid)
    return KafkaCluster(directory, libraries, places.broker_ports)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to clients: one of them must not take a dead node's."""
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        if len(free) < count and port_is_free(port):
            free.append(port)
    return free


def _java(directory: Path, libraries: Path) -> list[str]:
    logging = f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}"
    return ["java", *_JAVA_OPTIONS, logging, "-cp", f"{libraries}/*"]


def _known(directory: Path) -> KafkaCluster | None:
    try:
        places = msgspec.json.decode((directory / STATE).read_bytes(), type=_Places)
    except FileNotFoundError:
        return None
    return KafkaCluster(directory, Path(places.libraries), places.broker_ports)
