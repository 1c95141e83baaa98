"""What one of each costs, for capacity: `python -m benchmarks.unit_costs [--events 60000] [--no-kafka]`.

One event of feedback through the service and in bulk, one change of weights proven, one day's event
aggregated, one record relayed, one recall, one fit, one memory in a corpus, and the bytes of a row of each
table with its indexes; of real ratings and conversations (Chit-Chat) on a real Postgres. What counts is the
processor's time of the processes that do the work, Postgres' own counted apart: a wall's time would be that
of this machine's disk and of whoever else is at work. Writes reports/unit-costs.json, of which
benchmarks/capacity.py makes the tables of docs/SCALING.md.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.analysis import land_all, real_ratings
from benchmarks.capacity import COSTS, UnitCosts, with_unit
from benchmarks.load import write_requests
from benchmarks.meter import Meter
from benchmarks.report import Figures, write_report
from benchmarks.serving import bare_commits, feedback_requests
from scripts.killing import Stage, directory, stage_in, wait_until
from somabrain_dagster.corpus.build import Plan as CorpusPlan
from somabrain_dagster.corpus.exporting import artifacts_of, export
from somabrain_dagster.embedded import ensure_database
from somabrain_dagster.embedded.kafka import KafkaToolsMissing, fetch_kafka, start_kafka, stop_kafka
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.reenactment import QUESTIONS, Plan, reenact, stories
from somabrain_dagster.operations.relay import Relay
from somabrain_dagster.settings import KafkaSettings, Settings
from somabrain_dagster.store.corpora import set_learning_loop
from somabrain_dagster.store.daily import aggregate
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.outbox import LOGS, Outbox
from somabrain_dagster.store.schema import migrate
from somabrain_dagster.store.tenant_fits import fit_tenant
from somabrain_dagster.store.verification import verify
from somabrain_dagster.traffic import ready

REPORT = Path("reports/unit-costs.json")
LIBRARIES = Path(".somabrain/kafka-libs")
ACTOR = "benchmark"
PEOPLE, CLIENTS, SECONDS = 100, 32, 10.0
START_SECONDS, RELAY_SECONDS = 60.0, 300.0
TAUGHT = Plan(memories=450, feedback=100, held_out=1)
TAUGHT_PEOPLE = 3
CORPUS_PEOPLE = 20
PARTITION_RECORDS = 200
"""Records whose mean size is taken."""


def microseconds(work: Callable[[], object], many: int, *pids: int) -> float:
    """What one of many costs this process and these others."""
    # This process by its own clock: what it started, the servers, is not its work.
    own, meter = time.process_time(), Meter(*pids)
    work()
    return (time.process_time() - own + (meter.seconds if pids else 0.0)) / many * 1e6


def through_the_service(stage: Stage, keys: Mapping[str, str], place: Path) -> tuple[float, float, float]:
    """Microseconds of the service and of Postgres an event, and events a second."""
    stage.start_service()
    assert stage.service is not None
    asked = place / "requests.bin"
    write_requests(asked, feedback_requests(dict(keys), "/context/feedback"))
    wait_until(lambda: answers(stage), START_SECONDS, "the service did not start")
    service, postgres = Meter(stage.service.pid), Meter(stage.postgres.pid)
    with Database(stage.postgres.url("brain")) as database:
        before = count(database, "feedback_events")
        options = ["--clients", str(CLIENTS), "--warm", "0", "--seconds", str(SECONDS)]
        command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(stage.port), str(asked)]
        said = json.loads(subprocess.run([*command, *options], check=True, capture_output=True).stdout)
        taken = service.seconds, postgres.seconds
        landed = count(database, "feedback_events") - before
    if set(said["statuses"]) != {"200"}:
        raise RuntimeError(f"the service refused: {said['statuses']}, {said['failure']}")
    stage.service.terminate()
    stage.service.wait(60)
    stage.service = None
    return taken[0] / landed * 1e6, taken[1] / landed * 1e6, said["rps"]


def answers(stage: Stage) -> bool:
    """Whether the service answers, which is started again where it ended."""
    stage.tend()
    return ready(stage.url)


def count(database: Database, table: str) -> int:
    """How many rows a table has."""
    with database.as_owner() as connection:
        query = f"SELECT count(*) FROM {table}"  # noqa: S608 — of a constant
        ((rows,),) = connection.execute(query.encode()).fetchall()
    return int(rows)


def row_bytes(database: Database, table: str) -> float:
    """Of a row, its share of indexes and of what is stored aside; of all partitions together."""
    with database.as_owner() as connection:
        ((size,),) = connection.execute(
            """
            SELECT pg_total_relation_size(%(table)s::regclass)::float8 + coalesce((
                SELECT sum(pg_total_relation_size(relid))
                FROM pg_partition_tree(%(table)s::regclass) WHERE isleaf
            ), 0)::float8
            """,
            {"table": table},
        ).fetchall()
    return float(size) / count(database, table)


def relayed(database: Database, url: str, events: int, place: Path) -> float:
    """Microseconds of a relay a record; three nodes of Kafka acknowledge each."""
    kafka = KafkaSettings(bootstrap=start_kafka(place, LIBRARIES.absolute()).bootstrap)
    stopping = threading.Event()
    relay = threading.Thread(target=Relay(url, kafka, print).run, args=(stopping,))
    own = time.process_time()
    relay.start()
    try:
        wait_until(
            lambda: published(database) >= events, RELAY_SECONDS, "the relay did not come to the end", 0.5
        )
        taken = time.process_time() - own
    finally:
        stopping.set()
        relay.join()
        stop_kafka(place)
    return taken / (2 * events) * 1e6


def published(database: Database) -> int:
    """How many events are, and how many of their changes, whichever are fewer."""
    with database.as_owner() as connection:
        ((least,),) = connection.execute(
            """
            SELECT least(
                sum(version) FILTER (WHERE log = 'feedback_events'),
                sum(version) FILTER (WHERE log = 'weight_changes')
            )::bigint FROM relay_marks
            """
        ).fetchall()
    return int(least or 0)


def record_bytes(stage: Stage) -> float:
    """The mean size of a record's value."""
    with Database(stage.postgres.url("brain")) as database, database.as_operator() as connection:
        names = [name for (name,) in connection.execute("SELECT min(tenant_id) FROM adaptation_states")]
    with Outbox(stage.postgres.url("brain")) as outbox:
        found = [
            len(record.value)
            for log in LOGS
            if log != "audit_events"
            for record in outbox.unpublished(log, names, PARTITION_RECORDS)[0]
        ]
    return sum(found) / len(found)


@contextmanager
def taught(stage: Stage) -> Iterator[tuple[Database, list[str], float]]:
    """A second brain, in which people asked and were answered; and what a recall cost, in milliseconds."""
    ensure_database(stage.postgres, "taught")
    migrate(stage.postgres.url("taught"))
    first: list[tuple[float, Meter, int]] = []

    def progress(what: str, done: int, _total: int | None) -> None:
        # From the first question on: before it memories are embedded.
        if what == QUESTIONS and not first:
            first.append((time.process_time(), Meter(stage.postgres.pid), done))

    with Database(stage.postgres.url("taught")) as database:
        told = stories(read_chitchat(TAUGHT_PEOPLE), TAUGHT.memories)
        settings = Settings(home=Path("/nowhere"))
        reenact(database, MiniLM(), settings, told, TAUGHT, workers=1, progress=progress)
        began, meter, before = first[0]
        asked = TAUGHT_PEOPLE * (TAUGHT.feedback + TAUGHT.held_out) - before
        recall = (time.process_time() - began + meter.seconds) / asked * 1e3
        yield database, [one.tenant_id for one in told], recall


def measure(events: int, with_kafka: bool, place: Path) -> tuple[UnitCosts, dict[str, Any]]:
    """Every unit cost, and what else was seen."""
    settings = Settings(home=place / "home", learning_loop_enabled=True)
    configuration = settings.learning_configuration
    with stage_in(place / "stage") as stage:
        pid, url = stage.postgres.pid, stage.postgres.url("brain")
        seen: dict[str, Any] = {"commits a second, one connection": round(bare_commits(url))}
        keys = stage.add_tenants(list(read_chitchat(PEOPLE).tenants))
        service, landing, rate = through_the_service(stage, keys, place)
        seen["feedback a second through the service"] = rate
        with Database(url) as database:
            said = real_ratings(events, apart=False)
            began = time.perf_counter()
            bulk = microseconds(lambda: land_all(database, said, events), events, pid)
            seen["events a second in bulk"] = round(events / (time.perf_counter() - began))
            every = count(database, "feedback_events")
            print(f"{every:,} events are there", flush=True)

            def daily() -> None:
                with database.as_operator() as connection:
                    aggregate(connection, settings.first_day, datetime.now(UTC).date(), settings.first_day)

            def proof() -> None:
                with database.snapshot() as connection:
                    if verify(connection).findings:
                        raise RuntimeError("the log is not sound")

            day = microseconds(daily, every, pid)
            verified = microseconds(proof, count(database, "weight_changes"), pid)
            event_bytes, change_bytes = (
                row_bytes(database, name) for name in ("feedback_events", "weight_changes")
            )
            record = record_bytes(stage)
            relay = None
            if with_kafka:
                try:
                    fetch_kafka(LIBRARIES.absolute())
                    relay = relayed(database, url, every, place / "kafka")
                except KafkaToolsMissing as missing:
                    seen["kafka"] = str(missing)
        with taught(stage) as (database, people, recall):
            fits = microseconds(
                lambda: [fit_tenant(database, name, configuration, settings.fit_recalls) for name in people],
                len(people),
                pid,
            )
            recall_bytes, memory_bytes = (row_bytes(database, name) for name in ("recalls", "memories"))
            import_chitchat(database, configuration, CORPUS_PEOPLE)
            key_bytes = row_bytes(database, "idempotency_keys")
            with database.as_operator() as connection:
                for (name,) in connection.execute("SELECT tenant_id FROM tenants").fetchall():
                    set_learning_loop(connection, name, True, ACTOR)
            memories = count(database, "memories")
            corpus = microseconds(
                lambda: export(database, settings, artifacts_of(settings), CorpusPlan(), actor=ACTOR),
                memories,
                pid,
            )
    costs = UnitCosts(
        service_us=service,
        landing_us=landing,
        bulk_us=bulk,
        recall_ms=recall,
        verify_us=verified,
        daily_us=day,
        relay_us=relay,
        fit_ms=fits / 1e3,
        corpus_us=corpus,
        event_bytes=event_bytes,
        key_bytes=key_bytes,
        change_bytes=change_bytes,
        recall_bytes=recall_bytes,
        memory_bytes=memory_bytes,
        record_bytes=record,
    )
    return costs, seen


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--no-kafka", action="store_true")
    parser.add_argument("--report", type=Path, default=REPORT)
    asked = parser.parse_args()
    load_before = os.getloadavg()
    with directory() as place:
        costs, seen = measure(asked.events, not asked.no_kafka, place)
    rows = [(what, with_unit(costs, name)) for name, (what, _) in COSTS.items()]
    fine = write_report(
        asked.report,
        [
            Figures("What one costs", ("one of", ""), rows),
            Figures("On this machine", ("", ""), [(what, str(value)) for what, value in seen.items()]),
        ],
        {},
        packages=("psycopg", "numpy", "uvicorn", "confluent-kafka"),
        events=asked.events,
        load_average={"before": load_before, "after": os.getloadavg()},
        costs=asdict(costs),
        seen=seen,
    )
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
