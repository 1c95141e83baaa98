"""Hand the asset graph to Celery's workers: all of it must be made, the same, though a worker dies.

    python -m scripts.beyond_one_machine [--people 12] [--memories 500] [--only-killed]

Real conversations are re-enacted, which teaches each person's brain. Copies of that brain then have the same
corpora made, a partition a tenant, and the same fits, a partition a share of the tenants: in this process; by
one worker; by two; and by two of which one is killed with SIGKILL in the middle of a run. Runs are given out
by Dagster's daemon as in production, by way of Valkey. Every partition must be materialised, both workers
must have worked, and every corpus, fit and change of weights must be the same as in this process, byte by
byte. Of the killed worker it is told for how long its run was lost. Writes reports/celery.json; exit 1 if
anything is not so.
"""

import argparse
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from pydantic import SecretStr

from benchmarks.report import Figures, write_report
from scripts.killing import wait_until
from somabrain_dagster.corpus.exporting import artifacts_of
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import (
    PostgresServer,
    ValkeyServer,
    discard_servers,
    ensure_database,
    start_postgres,
    start_valkey,
)
from somabrain_dagster.jobs import tenant_corpora, tenant_fits
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.operations import dagster_home, processes
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.reenactment import Plan, reenact, stories
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.partitions import tenant_shares, tenants
from somabrain_dagster.settings import CelerySettings, Settings
from somabrain_dagster.store.corpora import set_learning_loop
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.tenant_fits import TENANT_FIT
from somabrain_dagster.ticks import QUIETLY, instance_in
from somabrain_dagster.workers.launcher import Launcher

REPORT = Path("reports/celery.json")
TAUGHT = "taught"
"""The database in which people were re-enacted; what follows works on copies."""
START_SECONDS, SILENCE_SECONDS = 120.0, 300.0
BEFORE_THE_KILL = 1
"""Runs that are done when a worker is killed."""
JUST_BEGUN_SECONDS = 1.5
"""A run that is older may be done by the time that its worker is killed."""

KINDS = ("training_examples", "training_corpus", "tokenized_corpus", "preference_pairs")
CORPORA: Mapping[str, Any] = {
    "ops": {kind: {"config": {"validation": 0.1, "window": 256, "tokenizer": "gpt2"}} for kind in KINDS}
}
"""One person says little: a larger share is held out than is usual, and the window is short."""

BACKFILL = """
mutation ($wanted: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $wanted) { __typename ... on PythonError { message } }
}
"""

MADE = """
SELECT 'fit', tenant_id, last_seq, first_seq, recalls, prior::text, weights::text, accepted, gates::text
FROM tenant_fits
UNION ALL
SELECT 'change', tenant_id, version, event_seq, registry_version, shift::text, after::text, true, cause
FROM weight_changes
ORDER BY 1, 2, 3
"""


@dataclass
class Stage:
    """The servers, and the brain that was taught.

    Attributes:
        home: of everything.
        people: the tenants.
        key: under which corpora name them, so that all copies name them alike.
    """

    home: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    people: Sequence[str]
    key: SecretStr = field(default_factory=lambda: SecretStr(secrets.token_hex(32)))
    _copies: int = 0

    @contextmanager
    def engine(self, name: str, slots: int | None) -> Iterator["Engine"]:
        """A copy of the brain with a Dagster of its own; with slots its runs go to workers."""
        self._copies += 1
        with psycopg.connect(self.postgres.admin_url(), autocommit=True) as admin:
            # A pool that was closed a moment ago may still hold a connection.
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (TAUGHT,)
            )
            admin.execute(f'CREATE DATABASE "{name}" OWNER "{self.postgres.user}" TEMPLATE {TAUGHT}'.encode())
        ensure_database(self.postgres, f"{name}_dagster")
        broker = None if slots is None else SecretStr(f"{self.valkey.url.rsplit('/', 1)[0]}/{self._copies}")
        settings = Settings(
            home=self.home / name,
            database_url=SecretStr(self.postgres.url(name)),
            dagster_database_url=SecretStr(self.postgres.url(f"{name}_dagster")),
            redis_url=SecretStr(self.valkey.url),
            learning_loop_enabled=True,
            pseudonym_key=self.key,
            celery=CelerySettings(broker_url=broker, slots=slots or 1),
        )
        servers = Servers(self.postgres.url(name), self.postgres.url(f"{name}_dagster"), self.valkey.url)
        prepared = dagster_home.prepare(settings, servers)
        environment = {
            **os.environ,
            **prepared,
            "SOMABRAIN_LEARNING_LOOP_ENABLED": "1",
            "SOMABRAIN_PSEUDONYM_KEY": self.key.get_secret_value(),
            "SOMABRAIN_CELERY_SLOTS": str(slots or 1),
        }
        with instance_in(prepared) as instance:
            assert tenants.name is not None
            instance.add_dynamic_partitions(tenants.name, list(self.people))
            if slots is not None:
                for pool in ("corpora", "tenant_weights"):
                    instance.event_log_storage.set_concurrency_slots(pool, slots)
            yield Engine(name, settings, environment, instance, self.people)


@dataclass(frozen=True)
class Engine:
    """A copy of the brain, and the Dagster that works on it."""

    name: str
    settings: Settings
    environment: Mapping[str, str]
    instance: dg.DagsterInstance
    people: Sequence[str]

    def partitions(self, job: str) -> Sequence[str]:
        """Of a job, all of them."""
        return self.people if job == tenant_corpora.name else tenant_shares.get_partition_keys()

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Dagster's daemon, which gives out the runs that are queued, and asks for none by itself."""
        workspace = str(dagster_home.workspace(self.settings))
        subprocess.run(
            program("dagster", "sensor", "stop", "feedback_landed", "-w", workspace),
            env=dict(self.environment),
            check=True,
            capture_output=True,
        )
        log = self.settings.home / "daemon.log"
        with processes.beside(program("dagster-daemon", "run", "-w", workspace), self.environment, log):
            yield

    @contextmanager
    def worker(self, name: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker that takes a run at a time, once it listens."""
        log = self.settings.home / f"{name}.log"
        command = program("celery", "-A", "somabrain_dagster.workers.app", "worker", "-c", "1", "-l", "INFO")
        with processes.beside([*command, "-n", f"{name}@%h"], self.environment, log) as process:
            wait_until(lambda: " ready." in log.read_text(), START_SECONDS, f"{name} did not start")
            yield process

    def backfill(self, job: str, by_daemon: bool = False) -> None:
        """Ask for all partitions of a job, as the UI does.

        The daemon looks for backfills twice a minute and watches over their runs. Of one whose runs are
        submitted at once Dagster says that it is completed, and so begins no run of it again.
        """
        selector = {
            "partitionSetName": f"{job}_partition_set",
            "repositorySelector": {
                "repositoryLocationName": "somabrain",
                "repositoryName": "__repository__",
            },
        }
        wanted = {
            "selector": selector,
            "partitionNames": list(self.partitions(job)),
            "forceSynchronousSubmission": not by_daemon,
            **({"runConfigData": CORPORA} if job == tenant_corpora.name else {}),
        }
        asked = program("dagster-graphql", "-w", str(dagster_home.workspace(self.settings)), "-t", BACKFILL)
        # Its output has what submitting the runs logs, too.
        answered = self.settings.home / f"{job}.json"
        subprocess.run(
            [*asked, "-v", json.dumps({"wanted": wanted}), "-o", str(answered)],
            env=dict(self.environment),
            check=True,
            capture_output=True,
        )
        answer = json.loads(answered.read_text())
        if answer["data"]["launchPartitionBackfill"]["__typename"] != "LaunchBackfillSuccess":
            raise RuntimeError(f"Dagster refuses to make {job}: {answer}")

    def runs(self, job: str) -> list["Run"]:
        """The runs of a job so far, by when they were asked for."""
        found = self.instance.get_run_records(dg.RunsFilter(job_name=job), ascending=True)
        return [Run(self, one) for one in found]

    def unfinished(self, job: str) -> set[str]:
        """The partitions that no run has succeeded in."""
        return set(self.partitions(job)) - {run.partition for run in self.runs(job) if run.succeeded}

    def wait_for(self, job: str) -> None:
        """Wait until every partition is made."""
        why = f"{self.name}: not all of {job} was made"
        wait_until(lambda: not self.unfinished(job), SILENCE_SECONDS, why, pause=0.5)

    def seconds(self, job: str) -> float:
        """From when the first run of a job was asked for until the last one ended."""
        records = [run.record for run in self.runs(job)]
        begins = min(record.create_timestamp.timestamp() for record in records)
        return max(record.end_time or 0.0 for record in records) - begins

    def in_this_process(self, job: str) -> None:
        """All partitions of a job, one after the other."""
        defined = build_definitions(self.settings).resolve_job_def(job)
        for partition in self.partitions(job):
            own = CORPORA
            if job == tenant_fits.name:
                assert defined.partitioned_config is not None
                own = defined.partitioned_config.get_run_config_for_partition_key(partition)
            defined.execute_in_process(
                instance=self.instance, partition_key=partition, run_config={**own, **QUIETLY}
            )

    def materialised(self, asset: str) -> set[str]:
        """The partitions of an asset that Dagster knows to be materialised."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))

    def digests(self) -> dict[str, str]:
        """What was made, by name: every file of every corpus, every fit, every change of weights."""
        made = {
            f"{manifest.kind}/{manifest.scope}/{entry.path}": entry.sha256
            for manifest in artifacts_of(self.settings).manifests()
            for entry in manifest.files
        }
        with psycopg.connect(self.environment["SOMABRAIN_DATABASE_URL"]) as connection:
            for row in connection.execute(MADE.encode()).fetchall():
                body = json.dumps(row[3:]).encode()
                made["/".join(map(str, row[:3]))] = hashlib.sha256(body).hexdigest()
        return made

    def carried_out(self) -> int:
        """How many fits became changes of weights."""
        with psycopg.connect(self.environment["SOMABRAIN_DATABASE_URL"]) as connection:
            query = "SELECT count(*) FROM weight_changes WHERE cause = %s"
            ((changes,),) = connection.execute(query, (TENANT_FIT,)).fetchall()
        return int(changes)


@dataclass(frozen=True)
class Run:
    """A run, as Dagster's and Celery's records have it."""

    engine: Engine
    record: dg.RunRecord

    @property
    def partition(self) -> str:
        """What it makes."""
        return self.record.dagster_run.tags["dagster/partition"]

    @property
    def succeeded(self) -> bool:
        """Whether it is done, and well."""
        return self.record.dagster_run.status is dg.DagsterRunStatus.SUCCESS

    @property
    def at_work(self) -> bool:
        """Whether a worker is said to work on it."""
        return self.record.dagster_run.status is dg.DagsterRunStatus.STARTED

    @property
    def again(self) -> bool:
        """Whether another run failed before it."""
        return PARENT_RUN_ID_TAG in self.record.dagster_run.tags

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return (self.record.end_time or 0.0) - (self.record.start_time or 0.0)

    @property
    def worker(self) -> str:
        """Who has it, or had it: the name before the host's."""
        launcher = self.engine.instance.run_launcher
        task = self.record.dagster_run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task is None or not isinstance(launcher, Launcher):
            return "this process"
        result = launcher.celery.AsyncResult(task)
        info = result.info if isinstance(result.info, dict) else {}
        return str(result.worker or info.get("hostname") or "nobody").partition("@")[0]


def program(name: str, *arguments: str) -> list[str]:
    """A program that is installed beside this one."""
    return [str(Path(sys.executable).with_name(name)), *arguments]


@dataclass(frozen=True)
class Act:
    """What one engine did.

    Attributes:
        seconds: from asking for the runs of a job until all partitions were made, by job.
        runs: that were made, in order.
        digests: of what they made.
        missing: partitions that Dagster does not know to be materialised.
        carried_out: fits that became changes of weights.
        lost_for: seconds from the kill until the run that was lost had failed, and until another had done it.
    """

    name: str
    seconds: Mapping[str, float]
    runs: Sequence[Mapping[str, Any]]
    digests: Mapping[str, str]
    missing: Sequence[str]
    carried_out: int
    lost_for: tuple[float, float] | None = None

    @property
    def by_worker(self) -> Counter[str]:
        """How many runs each worker did."""
        return Counter(run["worker"] for run in self.runs if run["succeeded"])


JOBS = (tenant_corpora.name, tenant_fits.name)


def told(engine: Engine, seconds: Mapping[str, float], lost_for: tuple[float, float] | None = None) -> Act:
    """What an engine did."""
    runs = [
        {
            "job": job,
            "partition": run.partition,
            "worker": run.worker,
            "seconds": round(run.seconds, 2),
            "succeeded": run.succeeded,
            "again": run.again,
        }
        for job in JOBS
        for run in engine.runs(job)
    ]
    missing = [
        f"{kind}/{one}" for kind in KINDS for one in sorted(set(engine.people) - engine.materialised(kind))
    ]
    missing += [f"{tenant_fits.name}/{share}" for share in sorted(engine.unfinished(tenant_fits.name))]
    return Act(engine.name, dict(seconds), runs, engine.digests(), missing, engine.carried_out(), lost_for)


def in_process(stage: Stage) -> Act:
    """All of it in this process: what the others are held to."""
    seconds = {}
    with stage.engine("in_process", None) as engine:
        for job in JOBS:
            began = time.monotonic()
            engine.in_this_process(job)
            seconds[job] = time.monotonic() - began
        return told(engine, seconds)


def spread(stage: Stage, name: str, workers: Sequence[str]) -> Act:
    """All of it by workers."""
    seconds = {}
    with stage.engine(name, len(workers)) as engine, ExitStack() as stack:
        for worker in workers:
            stack.enter_context(engine.worker(worker))
        stack.enter_context(engine.daemon())
        for job in JOBS:
            engine.backfill(job)
            engine.wait_for(job)
            seconds[job] = engine.seconds(job)
        return told(engine, seconds)


def killed(stage: Stage) -> Act:
    """By two workers, of which one is killed in the middle of a run."""
    with (
        stage.engine("killed", 2) as engine,
        engine.worker("w1") as first,
        engine.worker("w2"),
        engine.daemon(),
    ):
        engine.backfill(tenant_corpora.name, by_daemon=True)
        lost = the_run_of("w1", engine)
        os.killpg(first.pid, signal.SIGKILL)
        at = time.time()
        print(f"w1 is killed in the middle of {lost.partition}", flush=True)
        engine.wait_for(tenant_corpora.name)
        engine.backfill(tenant_fits.name)
        engine.wait_for(tenant_fits.name)
        seconds = {job: engine.seconds(job) for job in JOBS}
        theirs = [run.record for run in engine.runs(tenant_corpora.name) if run.partition == lost.partition]
        failed = theirs[0].end_time or at
        done = max(record.end_time or at for record in theirs)
        return told(engine, seconds, (failed - at, done - at))


def the_run_of(worker: str, engine: Engine) -> Run:
    """A run that a worker is in the middle of, once some are done."""
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        runs = engine.runs(tenant_corpora.name)
        if sum(run.succeeded for run in runs) >= BEFORE_THE_KILL:
            for run in runs:
                age = time.time() - (run.record.start_time or 0.0)
                if run.at_work and age < JUST_BEGUN_SECONDS and run.worker == worker:
                    return run
        time.sleep(0.05)
    raise TimeoutError(f"{worker} got no run")


@contextmanager
def staged(people: int, memories: int, feedback: int) -> Iterator[Stage]:
    """People re-enacted on servers of their own, until the end of the block; then nothing is left."""
    home = Path(tempfile.mkdtemp(prefix="somabrain-celery-", dir="/var/tmp"))
    home.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        stack.callback(discard_servers, home / "servers")
        postgres, valkey = start_postgres(home / "servers"), start_valkey(home / "servers")
        ensure_database(postgres, TAUGHT)
        migrate(postgres.url(TAUGHT))
        plan = Plan(memories=memories, feedback=feedback, held_out=1)
        told_of = stories(read_chitchat(people), plan.memories)
        settings = Settings(home=home / "taught")
        print(f"re-enacting {people} people", flush=True)
        with Database(postgres.url(TAUGHT)) as database:
            reenact(database, MiniLM(), settings, told_of, plan, workers=os.cpu_count() or 1)
            # The rest of what they said, which corpora need and recalls do not.
            import_chitchat(database, settings.learning_configuration, people)
            names = sorted(one.tenant_id for one in told_of)
            with database.as_operator() as connection:
                for name in names:
                    set_learning_loop(connection, name, True, "beyond one machine")
        yield Stage(home, postgres, valkey, names)


def tables(acts: Sequence[Act]) -> list[Figures]:
    """For a person: what each engine took, and every run of the one whose worker was killed."""
    took = [
        (
            act.name,
            *(f"{act.seconds[job]:.1f}" for job in JOBS),
            ", ".join(f"{worker} {count}" for worker, count in sorted(act.by_worker.items())),
        )
        for act in acts
    ]
    last = [
        (
            run["partition"],
            run["job"],
            run["worker"],
            f"{run['seconds']:.1f}",
            ("again, " if run["again"] else "") + ("made" if run["succeeded"] else "lost"),
        )
        for run in acts[-1].runs
    ]
    return [
        Figures("Seconds until all partitions were made", ("by", *JOBS, "runs by worker"), took),
        Figures("Runs, of which one was lost", ("partition", "job", "worker", "seconds", ""), last),
    ]


def holds(acts: Sequence[Act]) -> dict[str, bool]:
    """What must hold of all engines, the first of which is this process."""
    reference, *others = acts
    one_killed = acts[-1]
    claims = {}
    for act in others:
        same = act.digests == reference.digests
        count = len(reference.digests)
        claims[f"{act.name}: all {count} files, fits and changes are as in one process, byte by byte"] = same
        claims[f"{act.name}: every partition is materialised"] = not act.missing
    for act in others:
        if act.name != "one_worker":
            claims[f"{act.name}: both workers did some of it"] = len(act.by_worker) == 2
    claims["fits that paid were carried out"] = all(act.carried_out > 0 for act in acts)
    claims["killed: the run that was lost was done again, by the other worker"] = any(
        run["again"] and run["succeeded"] and run["worker"] == "w2" for run in one_killed.runs
    )
    return claims


def main() -> None:
    """Run, print and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--memories", type=int, default=500)
    parser.add_argument("--feedback", type=int, default=80)
    parser.add_argument("--only-killed", action="store_true", help="no comparison of one worker with two")
    parser.add_argument("--report", type=Path, default=REPORT)
    asked = parser.parse_args()
    acts = []
    with staged(asked.people, asked.memories, asked.feedback) as stage:
        acts.append(in_process(stage))
        if not asked.only_killed:
            acts.append(spread(stage, "one_worker", ["w1"]))
            acts.append(spread(stage, "two_workers", ["w1", "w2"]))
        acts.append(killed(stage))
    lost = acts[-1].lost_for
    assert lost is not None
    print(f"the lost run was given up after {lost[0]:.0f} s, and done again after {lost[1]:.0f} s")
    fine = write_report(
        asked.report,
        tables(acts),
        holds(acts),
        packages=("dagster", "dagster-celery", "celery", "redis"),
        people=asked.people,
        memories=asked.memories,
        lost_seconds={"given up": round(lost[0], 1), "done again": round(lost[1], 1)},
        seconds={act.name: {job: round(took, 2) for job, took in act.seconds.items()} for act in acts},
        runs={act.name: list(act.runs) for act in acts},
    )
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
