"""What Dagster's own tables say of its daemon, its sensors and its runs; read, and never written.

The times are taken from the bodies of its rows, in seconds since 1970: those of its columns are in the time
zone of whoever wrote them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from somabrain_dagster.store.database import Connection, Database, DatabaseUnreachable


@dataclass(frozen=True)
class Instigator:
    """A sensor or a schedule.

    Attributes:
        kind: `sensor` or `schedule`.
        ticked_at: when its last tick began.
        failed: whether that tick did.
    """

    name: str
    kind: str
    ticked_at: float
    failed: bool


@dataclass(frozen=True)
class JobRuns:
    """The runs of a job.

    Attributes:
        unfinished: those that wait or work.
        failed: whether the last one that ended did.
        seconds: that it worked; None where it never began to, or none has ended.
        succeeded_at: when a run last ended well; 0 where none did.
    """

    job: str
    unfinished: int
    failed: bool
    seconds: float | None
    succeeded_at: float


@dataclass(frozen=True)
class DagsterGauges:
    """What is so of Dagster.

    Attributes:
        heartbeats: when each part of the daemon last said that it is there.
        instigators: that ever ticked.
        jobs: that ever ran.
    """

    heartbeats: Sequence[tuple[str, float]]
    instigators: Sequence[Instigator]
    jobs: Sequence[JobRuns]


def read_dagster(database: Database) -> DagsterGauges | None:
    """What is so of Dagster.

    Args:
        database: its storage.

    Returns:
        None where its tables cannot be read: the server does not answer, or Dagster has never run on it.
    """
    try:
        with database.as_owner() as connection:
            heartbeats = connection.execute(
                "SELECT daemon_type, (body::json ->> 'timestamp')::float8 FROM daemon_heartbeats"
            ).fetchall()
            return DagsterGauges(heartbeats, _instigators(connection), _jobs(connection))
    except (DatabaseUnreachable, psycopg.ProgrammingError):
        return None


def _instigators(connection: Connection) -> list[Instigator]:
    # The tables hold years of ticks and runs: the index is asked for each name after the one before.
    rows = connection.execute(
        """
        WITH RECURSIVE known AS (
            SELECT min(selector_id) AS selector FROM job_ticks
            UNION ALL
            SELECT (SELECT min(selector_id) FROM job_ticks WHERE selector_id > known.selector)
            FROM known WHERE known.selector IS NOT NULL
        )
        SELECT body ->> 'job_name', lower(type), (body ->> 'timestamp')::float8, status = 'FAILURE'
        FROM known CROSS JOIN LATERAL (
            SELECT type, status, tick_body::json AS body FROM job_ticks
            WHERE selector_id = known.selector ORDER BY timestamp DESC LIMIT 1
        ) AS last
        """
    )
    return [Instigator(*row) for row in rows]


def _jobs(connection: Connection) -> list[JobRuns]:
    rows = connection.execute(
        """
        WITH RECURSIVE known AS (
            SELECT min(pipeline_name) AS job FROM runs
            UNION ALL
            SELECT (SELECT min(pipeline_name) FROM runs WHERE pipeline_name > known.job)
            FROM known WHERE known.job IS NOT NULL
        ), unfinished AS (
            SELECT pipeline_name, count(*) AS runs FROM runs
            WHERE status IN ('QUEUED', 'NOT_STARTED', 'MANAGED', 'STARTING', 'STARTED', 'CANCELING')
            GROUP BY pipeline_name
        )
        SELECT
            known.job, coalesce(unfinished.runs, 0), coalesce(ended.status = 'FAILURE', false),
            ended.end_time - ended.start_time, coalesce(succeeded.end_time, 0)
        FROM known
        LEFT JOIN unfinished ON unfinished.pipeline_name = known.job
        LEFT JOIN LATERAL (
            SELECT status, start_time, end_time FROM runs
            WHERE pipeline_name = known.job AND status IN ('SUCCESS', 'FAILURE', 'CANCELED')
            ORDER BY id DESC LIMIT 1
        ) AS ended ON true
        LEFT JOIN LATERAL (
            SELECT end_time FROM runs
            WHERE pipeline_name = known.job AND status = 'SUCCESS' ORDER BY id DESC LIMIT 1
        ) AS succeeded ON true
        WHERE known.job IS NOT NULL
        """
    )
    return [JobRuns(*row) for row in rows]
