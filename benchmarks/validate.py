"""The final validation: `python -m benchmarks.validate [--events 1000000]`, or `make validate EVENTS=…`.

A million feedback events of a hundred tenants land through the public paths: real ratings of Chit-Chat, over
again until there are enough, each with an id of its own. Most land by streams to the service, every tenth
block by `somabrain import`, and one in fifty by itself over HTTP, from a second process, when it is due.
Meanwhile all of `make up` runs, with the relay to three nodes of Kafka; what landed first is pruned, and a
backup is taken and restored elsewhere. Then every objective of the roadmap is measured, and everything that
was acknowledged is looked for, by count and by hash.

It can be interrupted in any way, and goes on where it was when it is started again; `--fresh` begins anew.
Writes reports/validate.json; exit 1 if anything is not as it should be.
"""

import argparse
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from benchmarks.report import write_report
from benchmarks.retention import large_partition, retrievals
from benchmarks.validation import measures
from benchmarks.validation.account import account
from benchmarks.validation.landing import PACE, SAY_SECONDS, Landing, Refused, Singles
from benchmarks.validation.meanwhile import giving_way, operate
from benchmarks.validation.objectives import objectives, tables
from benchmarks.validation.plan import Plan, plan_of
from benchmarks.validation.progress import OtherPlan, Progress
from benchmarks.validation.proofs import differing_tenants, prove, seen_of_others
from benchmarks.validation.stage import AnotherValidation, Stage, discard, stage_in
from somabrain_dagster.embedded import EmbeddedServerError
from somabrain_dagster.jobs import LEARNING_CHAIN
from somabrain_dagster.operations.chitchat import ChitChatMissing
from somabrain_dagster.sensors.requests import INTERRUPTED
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.outbox import read_unpublished
from somabrain_dagster.store.positions import ADAPTATION_STATE, FEEDBACK_DAILY, read_heads, read_lag

REPORT = Path("reports/validate.json")
HOME = Path(".somabrain/validate")
EVENTS, EVENTS_IN_CI = 1_000_000, 50_000
DRAIN_SECONDS = 3600.0
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
"""What Dagster says of a run that is over."""
PACKAGES = ("dagster", "psycopg", "numpy", "uvicorn", "confluent-kafka")


class Clock:
    """How long each part took, those before an interruption included."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a part, and say that it begins."""
        print(f"{part} …", flush=True)
        began = time.monotonic()
        try:
            yield
        finally:
            before = self._progress.steps.get("seconds", {})
            took = before.get(part, 0.0) + time.monotonic() - began
            self._progress.done("seconds", {**before, part: round(took, 1)})


def keys_of(stage: Stage, plan: Plan) -> dict[str, str]:
    """The tenants and a key of each; under the name of the system one that may all."""
    with stage.database.as_operator() as connection:
        create_tenants(connection, plan.tenants, stage.settings.learning_configuration)
        scopes = dict.fromkeys(plan.tenants, "tenant") | {audit.SYSTEM: "operator"}
        return {
            name: create_key(
                connection, name, "operator" if scope == "operator" else "tenant", measures.ACTOR
            )
            for name, scope in scopes.items()
        }


def behind(stage: Stage) -> dict[str, int]:
    """How many events and records those who follow have not followed yet."""
    with stage.database.as_operator() as connection:
        heads = read_heads(connection)
        lags = {
            "verified": read_lag(connection, ADAPTATION_STATE, heads).events,
            "aggregated": read_lag(connection, FEEDBACK_DAILY, heads).events,
        }
        if stage.no_kafka is None:
            lags["published"] = sum(one.records for one in read_unpublished(connection))
    return lags


def waiting(lags: dict[str, int]) -> str:
    """That in words."""
    return "not yet " + ", ".join(f"{what}: {events:,}" for what, events in lags.items())


def land(stage: Stage, plan: Plan, progress: Progress, url: str, keys: dict[str, str]) -> None:
    """Everything that lands, and what operators do meanwhile.

    Raises:
        Refused: something was refused.
    """
    singles = Singles(plan, stage.place)
    landing = Landing(stage, plan, progress, url, keys[audit.SYSTEM])
    with (
        giving_way(stage.place) as pool,
        ThreadPoolExecutor(1) as beside,
        singles.sending(stage, url, keys) as sending,
    ):
        operating = beside.submit(operate, pool, progress, lambda: landing.share, plan.events / PACE)
        landing.run(lambda: waiting(behind(stage)))
        said = time.monotonic()
        while not operating.done() or (sending is not None and sending.poll() is None):
            time.sleep(0.5)
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                stage.look()
                print(
                    f"{len(singles.answers()):>9,} of {singles.total:,} one by one; {waiting(behind(stage))}",
                    flush=True,
                )
        operating.result()
    missing = singles.total - len(singles.answers())
    if missing:
        told = singles.refusals()[-1:] or [(stage.place / "load.log").read_text()[-300:]]
        raise Refused(f"{missing:,} single events are not acknowledged: {told[0]}; run it again to send them")


def drain(stage: Stage) -> None:
    """Wait until everything is verified, aggregated and published, and no run is at work.

    Raises:
        TimeoutError: it does not come to that.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    said = 0.0
    while any((lags := behind(stage)).values()) or chain_runs(stage)["at work"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {DRAIN_SECONDS:,.0f} s {waiting(lags)}; the logs are in {stage.place}")
        if time.monotonic() - said > 2 * SAY_SECONDS:
            said = time.monotonic()
            stage.look()
            print(waiting(lags), flush=True)
        time.sleep(1)


def chain_runs(stage: Stage) -> dict[str, Any]:
    """What became of the chain's runs, by Dagster's own record; one that was interrupted is no failure."""
    with psycopg.connect(stage.where.dagster_database_url) as connection:
        runs = connection.execute(
            """
            SELECT status, end_time - start_time, EXISTS (
                SELECT FROM event_logs e
                WHERE e.run_id = r.run_id AND e.dagster_event_type = 'STEP_FAILURE' AND e.event NOT LIKE %s
            )
            FROM runs r WHERE pipeline_name = %s
            """,
            (f"%{INTERRUPTED}%", LEARNING_CHAIN),
        ).fetchall()
    seconds = [took for status, took, _ in runs if status == "SUCCESS"]
    return {
        "ended well": len(seconds),
        "failed": sum(failed for *_, failed in runs),
        "at work": sum(status not in ENDED for status, *_ in runs),
        "longest seconds": round(max(seconds, default=0.0), 1),
    }


def run(stage: Stage, plan: Plan, progress: Progress) -> bool:
    """Land, wait, measure, look for everything, and write the report; whether all holds."""
    clock, steps = Clock(progress), progress.steps
    keys: dict[str, str] = progress.once("keys", partial(keys_of, stage, plan))
    with stage.up() as url:
        with clock("landing"):
            land(stage, plan, progress, url, keys)
        with clock("small measurements"):
            progress.once("adaptation", partial(measures.adaptation, stage, plan, url))
            progress.once("working memory", partial(measures.working_memory, stage, plan, url))
            progress.once("steered", partial(measures.steer, stage, plan, url, keys[audit.SYSTEM]))
            isolation: dict[str, Any] = seen_of_others(stage.database, plan, url, keys)
            isolation["agreeing"] = measures.agreeing(stage, plan, url, keys)
        with clock("waiting for chain and relay"):
            drain(stage)
    with clock("restart"):
        restart = measures.restart(stage)
    with clock("proofs of the log"), stage.database.snapshot() as connection:
        proof = prove(connection)
    singles = Singles(plan, stage.place)
    answers = singles.answers()
    kafka = stage.settings.kafka if stage.no_kafka is None else None
    with clock("account of events"), stage.database.snapshot() as connection:
        told, copies = account(connection, kafka, plan, progress.blocks, answers)
    with clock("folds of each tenant"):
        isolation["folded"] = bool(copies.there.all())
        isolation["differing"] = (
            differing_tenants(proof.verification, copies, plan, stage.settings.learning_configuration)
            if isolation["folded"]
            else list(plan.tenants)
        )
    with clock("retrieval and analysis"):
        with stage.database.as_owner() as connection:
            connection.execute("ANALYZE feedback_events")
        found_retrievals = retrievals(stage.database, large_partition(stage.database))
        analysed = measures.experiments(stage, plan.tenants)
    latencies = np.array([one.latency for one in answers.values()])
    p50, p95, p99 = (np.quantile(latencies, [0.5, 0.95, 0.99]) * 1000).round(1).tolist()
    stage.largest["this program"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "events": plan.events,
        "tenants": len(plan.tenants),
        "latency": {
            "requests": len(answers),
            "rate": singles.rate,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
        },
        "account": asdict(told),
        "isolation": isolation,
        "restart": restart,
        "retrievals": [asdict(one) for one in found_retrievals],
        "analysed": analysed,
        "runs": chain_runs(stage),
        "memory": stage.largest,
        "findings": [str(one) for one in proof.verification.findings],
        "causes": proof.causes,
        **{name: outcome for name, outcome in steps.items() if name != "keys"},
    }
    kept = objectives(found, proof)
    if stage.no_kafka is not None:
        print(f"Kafka is left out: {stage.no_kafka}")
    return write_report(
        REPORT,
        tables(found, proof, kept),
        {f"{one.asked}: {one.measured}": one.holds for one in kept},
        packages=PACKAGES,
        left_out=stage.no_kafka,
        **found,
    )


def main() -> None:
    """Validate; when it is through, nothing is left but the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = EVENTS_IN_CI if os.environ.get("CI") else EVENTS
    parser.add_argument("--events", type=int, default=default, help=f"[default: {EVENTS:,}; in CI fewer]")
    parser.add_argument(
        "--home", type=Path, default=HOME, help="where it keeps what lands until it is through"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted one has done")
    parser.add_argument("--keep", action="store_true", help="leave the home as it is in the end")
    given = parser.parse_args()
    home: Path = given.home.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which whatever was started is stopped
    try:
        if given.fresh:
            discard(home)
        plan = plan_of(given.events)
        home.mkdir(parents=True, exist_ok=True)
        progress = Progress(home / "progress.json", plan)
        if progress.blocks:
            print(f"going on: {len(progress.blocks)} of {plan.blocks} blocks are acknowledged", flush=True)
        with stage_in(home) as stage:
            holds = run(stage, plan, progress)
    except (AnotherValidation, ChitChatMissing, EmbeddedServerError, OtherPlan, Refused, ValueError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again, and it goes on from here")
    if not given.keep:
        discard(home)
    if not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
