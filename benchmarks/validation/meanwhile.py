"""What operators do while feedback lands: a week is pruned, a backup is taken and restored elsewhere.

It is done in a process that gives way to the service, as the programs of `make up` do.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.validation.progress import Progress
from somabrain_dagster.operations import retention, servers
from somabrain_dagster.operations.backups import back_up
from somabrain_dagster.operations.processes import NICENESS
from somabrain_dagster.operations.restoring import drill
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.retention import count_pruned, read_partitions
from tests.ageing import cut_weeks

BEGUN_AT, PRUNED_AT, BACKED_UP_AT = 0.001, 0.25, 0.5
"""How much of the blocks has landed by then."""
ACTOR = "validation"
_ATTEMPTS = 60
_WAIT_SECONDS = 2.0


@contextmanager
def giving_way(place: Path) -> Iterator[ProcessPoolExecutor]:
    """One process that leaves the processor to the others, with the working directory of our programs."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, initializer=_give_way, initargs=(place,)) as pool:
        pool.submit(os.getpid).result()  # the process is there, and has imported what it needs
        yield pool


def _give_way(place: Path) -> None:
    os.chdir(place)
    os.nice(NICENESS)


def operate(
    pool: ProcessPoolExecutor, progress: Progress, share: Callable[[], float], whole_seconds: float
) -> None:
    """Prune, back up and restore, each when so much has landed, and once.

    Args:
        pool: the process that gives way.
        progress: knows what is done.
        share: how much has landed.
        whole_seconds: for how long it lands, at its pace.
    """
    for step, due, work in (
        ("week ended", BEGUN_AT, partial(end_week, (PRUNED_AT - BEGUN_AT) * whole_seconds)),
        ("pruned", PRUNED_AT, prune),
        ("backed up", BACKED_UP_AT, back_up_now),
        ("restored", BACKED_UP_AT, restore_elsewhere),
    ):
        while share() < due:
            time.sleep(0.2)

        def told(step: str = step, work: Callable[[], dict[str, Any]] = work) -> dict[str, Any]:
            print(f"meanwhile: {step} …", flush=True)
            outcome = pool.submit(work).result()
            print(f"meanwhile: {step}: {outcome}", flush=True)
            return outcome

        progress.once(step, told)


def end_week(seconds: float) -> dict[str, Any]:
    """Let the week that runs end so many seconds from now: what lands until then can be pruned afterwards."""
    with Database(servers.start(Settings()).database_url) as database:
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        cut_weeks(database, ends)
    return {"at": ends.isoformat()}


def prune() -> dict[str, Any]:
    """Prune the week that has ended, for real."""
    settings = Settings()
    with Database(servers.start(settings).database_url) as database:
        seconds, refused = 0.0, ["the week has not ended"]
        for _ in range(_ATTEMPTS):
            # What is not in Kafka yet stays, and is told; a little later it is there.
            time.sleep(_WAIT_SECONDS)
            with database.as_owner() as connection:
                ((now,),) = connection.execute("SELECT now()").fetchall()
                old = max(
                    (each.ends for each in read_partitions(connection) if each.ends <= now), default=None
                )
                pruned_before = count_pruned(connection, "feedback_events") > 0
            if old is None and pruned_before:
                refused = []  # by one that was killed before it could say so
                break
            if old is None:
                continue  # it has not ended yet
            outcome = retention.run(
                database,
                now - old,
                settings.first_day,
                ACTOR,
                relayed=settings.kafka.bootstrap is not None,
            )
            seconds += outcome.seconds
            refused = [f"{one.partition}: {one.reason}" for one in outcome.refused]
            if not refused:
                break
        with database.as_operator() as connection:
            rows = count_pruned(connection, "feedback_events")
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "refused": refused,
    }


def back_up_now() -> dict[str, Any]:
    """Back up Postgres and Redis, and read the backup back."""
    made = back_up(Settings()).backup
    return {
        "backup": made.backup_id,
        "bytes": made.bytes,
        "seconds": round(made.seconds, 1),
        "position": made.position,
    }


def restore_elsewhere() -> dict[str, Any]:
    """Restore the backup into a scratch instance, and prove it there."""
    settings = Settings()
    with Database(servers.start(settings).database_url) as database:
        proof, steps = drill(settings, database)
    return {"seconds": round(proof.seconds, 1), "steps": dict(steps), "findings": list(proof.findings)}
