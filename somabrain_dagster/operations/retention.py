"""Retention: how long what landed is kept, and what becomes of it then.

Feedback, recalls and token usage go by the week in which they landed, whatever day they are about. A week of
feedback goes only once every event in it is counted in `feedback_daily`. The log of weight changes is never
pruned, nor are aggregates, seals and the audit trail.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.store import audit
from somabrain_dagster.store.daily import Uncounted, aggregate, read_uncounted, read_unseen_days
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.outbox import count_unpublished
from somabrain_dagster.store.positions import FEEDBACK_DAILY, read_heads, read_lag
from somabrain_dagster.store.retention import (
    AGED,
    PRUNED,
    Partition,
    Pruning,
    TableBusy,
    cutoff,
    decide,
    delete_old,
    detach,
    drop,
    read_partitions,
    read_prunings,
    running,
)
from somabrain_dagster.store.usage import ensure_partitions

_NAMED = 3
"""How many of the reasons against dropping a partition are told."""


@dataclass(frozen=True)
class Refusal:
    """A partition that is old enough and stays all the same, and why."""

    partition: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a run of retention did.

    Attributes:
        before: what landed earlier was too old.
        made: partitions for the weeks to come.
        dropped: what was pruned, the oldest first.
        refused: partitions that should have gone and did not.
        held: how many partitions are old enough, with all of their rows under a legal hold.
        deleted: old rows of tables that have no partitions, by table.
        seconds: that it took.
    """

    before: datetime
    made: int
    dropped: list[Pruning]
    refused: list[Refusal]
    held: int
    deleted: dict[str, int]
    seconds: float


def run(
    database: Database,
    kept: timedelta,
    first_day: date,
    actor: str,
    progress: Progress = unwatched,
    *,
    relayed: bool = False,
) -> Outcome:
    """Prune what is too old, and go on with what an earlier run left undone.

    Args:
        database: the brain's.
        kept: for how long rows are kept after they landed.
        first_day: events about earlier days are never aggregated.
        actor: for the audit trail.
        progress: told how many of the partitions that are old enough are done.
        relayed: feedback is published to Kafka: what was not yet stays until it was.

    Raises:
        RetentionRuns: another run is at work.
    """
    began = time.perf_counter()
    with running(database) as connection:
        made = ensure_partitions(connection)
        before = cutoff(connection, kept)
        today = (before + kept).astimezone(UTC).date()
        due = [each for each in read_partitions(connection) if each.ends <= before or each.detaching]
        attached = {each.name: each for each in due if not each.detaching}
        halfway = {each.name: each for each in due if each.detaching}
        # What is detached, or half of it, and not dropped was left by a run that was killed.
        left = [one for one in read_prunings(connection, pending=True) if one.partition not in attached]
        uncounted = partial(_uncounted, database, connection, first_day, today)
        steps: list[Callable[[], Pruning | Refusal | None]] = [
            *(partial(_finish, connection, pruning, halfway.get(pruning.partition)) for pruning in left),
            *(partial(_prune, connection, each, uncounted, actor, relayed) for each in attached.values()),
        ]
        results = []
        for step in steps:
            results.append(step())
            progress("partitions", len(results), len(steps))
        deleted = {table: _delete_all_old(connection, table, before, actor) for table in AGED}
    return Outcome(
        before=before,
        made=made,
        dropped=[result for result in results if isinstance(result, Pruning)],
        refused=[result for result in results if isinstance(result, Refusal)],
        held=sum(result is None for result in results),
        deleted=deleted,
        seconds=time.perf_counter() - began,
    )


def _uncounted(
    database: Database, connection: Connection, first_day: date, today: date, partition: Partition
) -> list[Uncounted]:
    """What no aggregate counts of a partition of feedback, once what can be counted is."""
    if read_uncounted(connection, partition.name, first_day):
        _aggregate_unseen(database, first_day, today)
        return read_uncounted(connection, partition.name, first_day)
    return []


def _aggregate_unseen(database: Database, first_day: date, today: date) -> None:
    """Count what no aggregate has counted yet, as the asset would."""
    with database.snapshot() as connection:
        heads = read_heads(connection)
        behind = read_lag(connection, FEEDBACK_DAILY, heads).tenants
        unseen = read_unseen_days(connection, heads, first_day, today)
    if behind:
        with database.as_operator() as connection:
            aggregate(connection, unseen.first or today, unseen.last or today, first_day)


def _prune(
    connection: Connection,
    partition: Partition,
    uncounted_of: Callable[[Partition], list[Uncounted]],
    actor: str,
    relayed: bool,
) -> Pruning | Refusal | None:
    """Take one partition through all steps; None where all of it is under a legal hold."""
    if partition.relation == "feedback_events":
        uncounted = uncounted_of(partition)
        if uncounted:
            return Refusal(
                partition.name,
                "it would be forgotten, for `feedback_daily` does not count it: "
                + "; ".join(map(str, uncounted[:_NAMED]))
                + (f"; and {len(uncounted) - _NAMED:,} more" if len(uncounted) > _NAMED else "")
                + ". Materialise these days, then run retention again.",
            )
        unpublished = count_unpublished(connection, partition.name) if relayed else 0
        if unpublished:
            return Refusal(
                partition.name,
                f"{unpublished:,} of its events are not published to Kafka yet: see `somabrain kafka lag`",
            )
    try:
        decision = decide(connection, partition, actor)
        if decision.pruning is None:
            return None
        if not decision.rows_stay:
            detach(connection, partition)
        return drop(connection, decision.pruning)
    except TableBusy as busy:
        return Refusal(partition.name, str(busy))


def _finish(connection: Connection, pruning: Pruning, halfway: Partition | None) -> Pruning | Refusal:
    """Take a partition through the steps that are left, once its detachment has begun."""
    try:
        if halfway is not None:
            detach(connection, halfway)
        return drop(connection, pruning)
    except TableBusy as busy:
        return Refusal(pruning.partition, str(busy))


def _delete_all_old(connection: Connection, table: str, before: datetime, actor: str) -> int:
    """Delete what is too old, some rows at a time, so that nobody waits for long."""
    deleted = 0
    while more := delete_old(connection, table, before):
        deleted += more
    if deleted:
        body = {"relation": table, "before": before.isoformat(), "rows": deleted}
        with connection.transaction():
            audit.record(connection, audit.SYSTEM, actor, PRUNED, body)
    return deleted
