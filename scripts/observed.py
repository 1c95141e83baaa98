"""A whole SomaBrain that has something to show: real servers, real conversations, everything done once.

A scratch home with Postgres, Valkey, Kafka, relay, service, Dagster's daemon and Prometheus of its own. A
hundred people's ratings are imported; some of them are re-enacted over HTTP, before, during and after an
experiment whose treatment is to trust recency. There is a canary if that was better, a promotion by hand, a
corpus, a backup, a drill that fails for want of one and one that proves it, retention of what landed until
then, and a seal.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, cycle
from pathlib import Path

import dagster as dg
import httpx
import numpy as np

from somabrain_dagster.corpus.build import Plan as CorpusPlan
from somabrain_dagster.corpus.exporting import artifacts_of, export
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import discard_servers
from somabrain_dagster.embedded.kafka import start_kafka, stop_kafka
from somabrain_dagster.embedded.prometheus import (
    Prometheus,
    PrometheusTools,
    prometheus_beside,
    prometheus_tools,
)
from somabrain_dagster.learning.experiments import Plan, PromotionRule, shared_equally
from somabrain_dagster.learning.weights import NAMES, POSITION, to_nanos
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations import dagster_home, processes, retention, servers
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.kafka import ensure_topics
from somabrain_dagster.operations.reenactment import Session
from somabrain_dagster.operations.trials import advance_canary, advance_experiment
from somabrain_dagster.settings import CanarySettings, Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.corpora import set_learning_loop
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import create_experiment, start_experiment
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.outbox import LOGS
from somabrain_dagster.store.promotions import promote
from somabrain_dagster.ticks import QUIETLY, instance_in
from somabrain_dagster.traffic import Cast, Traffic, batches, service_beside, staged
from tests.ageing import cut_weeks

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
ACTOR = "observability"

PEOPLE = 100
CAST = Cast(people=4, conversations=30, messages=10, questions=3)
SIZE = 12
"""Sessions of each arm: few, for what is shown is the machinery and no finding."""

BATCHES = 12
"""Of all sessions: a quarter is held before the experiment, a quarter in its canary."""

RULE = PromotionRule(alpha=0.5, effect=0.0)
SCRAPE_SECONDS = 2.0
DAEMON_SECONDS = 180.0
PAUSE_SECONDS = 0.5

# Of every process that is started: sensors look each second, and a small tenant is large enough for an index.
KNOBS = {
    "SOMABRAIN_SENSOR_INTERVAL_SECONDS": "1",
    "SOMABRAIN_HNSW_THRESHOLD": "200",
    "SOMABRAIN_LEARNING_LOOP_ENABLED": "1",
}


@dataclass(frozen=True)
class Observed:
    """What runs.

    Attributes:
        url: of the service.
        operator: a key for it.
        prometheus: which scrapes it.
        tools: its programs.
    """

    database: Database
    url: str
    operator: str
    prometheus: Prometheus
    tools: PrometheusTools
    traffic: Traffic

    def scrape(self) -> str:
        """What the service tells now."""
        headers = {"authorization": f"Bearer {self.operator}"}
        answer = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.text


@contextmanager
def observed(say: Callable[[str], None]) -> Iterator[Observed]:
    """All of it until the end of the block; then nothing of it is left.

    Args:
        say: told what is being done.
    """
    base = Path(tempfile.mkdtemp(prefix="somabrain-observed-", dir="/var/tmp"))
    base.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        stack.enter_context(_environment(base))
        stack.callback(discard_servers, base / "home")
        tools = prometheus_tools(ROOT / ".somabrain")
        say("starting Kafka, Postgres, Valkey and the relay")
        stack.callback(stop_kafka, base)
        cluster = start_kafka(base, ROOT / ".somabrain" / "kafka-libs")
        os.environ["SOMABRAIN_KAFKA_BOOTSTRAP"] = cluster.bootstrap
        settings = Settings(canary=CanarySettings(share=0.5, strata=1, hours=(1e-6, 0.02), sessions=2))
        running = servers.start(settings)
        ensure_topics(settings.kafka, LOGS)
        environment = {**os.environ, **dagster_home.prepare(settings, running)}
        logs = settings.home / "logs"
        stack.enter_context(
            processes.beside(_program("somabrain", "kafka", "relay"), environment, logs / "relay.log")
        )
        database, snapshots = servers.open_store(running)
        stack.enter_context(database)
        stack.enter_context(closing(snapshots))
        with database.as_operator() as connection:
            operator = create_key(connection, audit.SYSTEM, "operator", ACTOR)
        url = stack.enter_context(service_beside(settings, running))
        prometheus = stack.enter_context(
            prometheus_beside(
                base / "prometheus",
                tools,
                service_url=url,
                key=operator,
                rules=_at_the_scrapes_pace(base / "rules"),
                seconds=SCRAPE_SECONDS,
            )
        )
        told = staged(read_chitchat(CAST.people), CAST)
        traffic = stack.enter_context(Traffic(database, embedder_of(settings), settings, url, told, CAST))
        made = Observed(database, url, operator, prometheus, tools, traffic)

        say(f"remembering, and re-enacting {CAST.people} people; importing what {PEOPLE} people rated")
        traffic.prepare()
        coming = batches(traffic.sessions, len(traffic.sessions) // BATCHES)
        for _ in range(BATCHES // 4):
            _enact(made, coming)
        import_chitchat(database, settings.learning_configuration, PEOPLE, snapshots=snapshots)
        say("an experiment, a canary, a promotion")
        _try_recency(made, settings, coming)
        instance = stack.enter_context(instance_in(dagster_home.prepare(settings, running)))
        daemon = _program("dagster-daemon", "run", "-w", str(dagster_home.workspace(settings)))
        stack.enter_context(processes.beside(daemon, environment, logs / "daemon.log"))
        say("a failing drill, a corpus, a backup, a drill, retention, a seal")
        _drill_without_a_backup(made, settings, environment)
        _operate(made, settings, instance)
        with _speaking(traffic, list(coming)):
            yield made


@contextmanager
def _environment(base: Path) -> Iterator[None]:
    """The environment of somebody who has configured nothing but this."""
    before = {name: value for name, value in os.environ.items() if name.startswith("SOMABRAIN_")}
    for name in before:
        del os.environ[name]
    os.environ.update(
        KNOBS, SOMABRAIN_HOME=str(base / "home"), SOMABRAIN_BACKUP_URL=f"file://{base / 'backups'}"
    )
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("SOMABRAIN_")]:
            del os.environ[name]
        os.environ.update(before)


def _program(name: str, *arguments: str) -> Sequence[str]:
    return [str(Path(sys.executable).with_name(name)), *arguments]


def _at_the_scrapes_pace(directory: Path) -> list[Path]:
    """The rules without intervals of their own: else what is recorded every five minutes is waited for."""
    directory.mkdir()
    for path in RULES.glob("*.yml"):
        lines = path.read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("    interval:"))
        (directory / path.name).write_text(text)
    return [directory / "*.yml"]


def _enact(made: Observed, coming: Iterator[list[Session]]) -> None:
    made.traffic.enact_all(next(coming))


def _try_recency(made: Observed, settings: Settings, coming: Iterator[list[Session]]) -> None:
    """An experiment and its canary, on sessions that are really held; then a promotion, by hand."""
    configuration = settings.learning_configuration
    shifts = np.zeros((2, len(NAMES)), dtype=np.int64)
    shifts[1, POSITION["gamma"]] = to_nanos(0.8)
    plan = Plan(shared_equally(["control", "recent"]), SIZE, RULE)
    with made.database.as_operator() as connection:
        create_experiment(connection, "recency", plan, shifts, configuration, ACTOR)
        start_experiment(connection, "recency", configuration, ACTOR)
    # Chance says which arm a session sees, and both arms are to have enough of them.
    while (step := advance_experiment(made.database, settings, ACTOR, change=False)).analysed is None:
        assert step.progress is not None, step.said
        _enact(made, coming)
    advance_canary(made.database, settings, ACTOR, change=True)
    for _ in range(BATCHES // 4):
        _enact(made, coming)
    advance_canary(made.database, settings, ACTOR, change=True)
    with made.database.as_operator() as connection:
        promote(connection, {"delta": 0.6}, configuration, ACTOR)


def _drill_without_a_backup(made: Observed, settings: Settings, environment: Mapping[str, str]) -> None:
    """A run that fails, made by the daemon: its sensor of runs tells of those that end while it looks."""
    looked = 'somabrain_dagster_last_tick_timestamp_seconds{instigator="run_failure"}'
    made.prometheus.wait_for(looked, DAEMON_SECONDS)
    workspace = str(dagster_home.workspace(settings))
    subprocess.run(
        _program("dagster", "job", "launch", "-w", workspace, "-j", "backup_drill"),
        env=environment,
        check=True,
        capture_output=True,
    )
    made.prometheus.wait_for('somabrain_dagster_run_failures_total{job="backup_drill"}', DAEMON_SECONDS)


def _operate(made: Observed, settings: Settings, instance: dg.DagsterInstance) -> None:
    """All that is done beside the service, at least once."""
    definitions = build_definitions(settings)

    def run(job: str) -> bool:
        ran = definitions.resolve_job_def(job).execute_in_process(
            run_config=QUIETLY, instance=instance, raise_on_error=False
        )
        return ran.success

    for job in ("backup", "backup_drill", "history_seal"):
        assert run(job), f"the job {job} failed"
    with made.database.as_operator() as connection:
        ((tenant,),) = connection.execute("SELECT min(tenant_id) FROM memories").fetchall()
        set_learning_loop(connection, tenant, True, ACTOR)
    corpus = CorpusPlan(tokenizer=None, formats=("examples", "sources", "messages"), validation=0.1)
    export(made.database, settings, artifacts_of(settings), corpus, actor=ACTOR)
    headers = {"authorization": f"Bearer {made.operator}"}
    httpx.post(f"{made.url}/memory/admin/rebuild-ann", json={}, headers=headers).raise_for_status()
    cut_weeks(made.database)
    retention.run(made.database, timedelta(0), settings.first_day, ACTOR)


@contextmanager
def _speaking(traffic: Traffic, sessions: Sequence[Sequence[Session]]) -> Iterator[None]:
    """People go on speaking, a session after the other and then anew, until the end of the block."""
    ending = threading.Event()

    def speak() -> None:
        for session in cycle(chain.from_iterable(sessions)):
            traffic.enact(session)
            if ending.wait(PAUSE_SECONDS):
                return

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
