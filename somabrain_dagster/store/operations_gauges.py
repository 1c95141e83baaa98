"""What was promoted, proven, sealed, pruned and backed up, for metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import dict_row

from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.partition_seals import Relation
from somabrain_dagster.store.retention import RELATIONS, read_partitions


@dataclass(frozen=True)
class OperationsGauges:
    """What was done; a time is None where it never was.

    Attributes:
        promoted_version: of the weights that are promoted to all; 0 before the first promotion.
        promoted_at: when they were.
        proven_at: when the whole log was last verified.
        findings: against each claim, then.
        sealed_at: when the heads of all chains were last sealed.
        holds: tenants under a legal hold.
        dropped_at: when a partition was last dropped.
        dropped: rows that were, by table.
        backups: that were made.
        backup_at, backup_seconds, backup_bytes, backup_changes: of the last one, when it began, how long it
            took, its size, and how many changes of weights it holds; 0 before the first.
        drills_proven, drills_refuted: restore drills, by what they came to.
        drilled_at: when the last one was.
        proven_backup_at: when the last backup began that a drill proved.
        restore_proven_at: when that drill was.
    """

    promoted_version: int
    promoted_at: datetime | None
    proven_at: datetime | None
    findings: Mapping[str, int]
    sealed_at: datetime | None
    holds: int
    dropped_at: datetime | None
    dropped: Mapping[str, int]
    backups: int
    backup_at: datetime | None
    backup_seconds: float
    backup_bytes: int
    backup_changes: int
    drills_proven: int
    drills_refuted: int
    drilled_at: datetime | None
    proven_backup_at: datetime | None
    restore_proven_at: datetime | None


def read_operations_gauges(connection: Connection) -> OperationsGauges:
    """What was done, in one statement.

    Args:
        connection: an operator's transaction.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        row: dict[str, Any] | None = cursor.execute(
            """
            SELECT
                coalesce(p.version, 0) AS promoted_version, p.created_at AS promoted_at,
                proof.*, drills.*, coalesce(b.backups, 0) AS backups,
                b.created_at AS backup_at, coalesce(b.seconds, 0) AS backup_seconds,
                coalesce(b.bytes, 0) AS backup_bytes, coalesce(b.changes, 0) AS backup_changes,
                proven.backup_at AS proven_backup_at, proven.created_at AS restore_proven_at,
                (SELECT max(sealed_at) FROM audit_seals) AS sealed_at,
                (SELECT count(*) FROM legal_holds) AS holds,
                (SELECT max(dropped_at) FROM prunings) AS dropped_at,
                (
                    SELECT coalesce(jsonb_object_agg(relation, rows), '{}') FROM (
                        SELECT relation, sum(rows) AS rows FROM prunings
                        WHERE dropped_at IS NOT NULL GROUP BY relation
                    ) AS dropped
                ) AS dropped
            FROM (
                SELECT
                    max(proven_at) AS proven_at, coalesce(jsonb_object_agg(claim, findings), '{}') AS findings
                FROM proofs
            ) AS proof
            CROSS JOIN (
                SELECT
                    count(*) FILTER (WHERE findings = '{}') AS drills_proven,
                    count(*) FILTER (WHERE findings <> '{}') AS drills_refuted, max(created_at) AS drilled_at
                FROM restore_drills
            ) AS drills
            LEFT JOIN (SELECT * FROM promotions ORDER BY version DESC LIMIT 1) AS p ON true
            LEFT JOIN (
                SELECT *, (SELECT count(*) FROM backups) AS backups
                FROM backups ORDER BY created_at DESC LIMIT 1
            ) AS b ON true
            LEFT JOIN (
                SELECT * FROM restore_drills WHERE findings = '{}' ORDER BY drill_id DESC LIMIT 1
            ) AS proven ON true
            """
        ).fetchone()
    assert row is not None
    return OperationsGauges(**row)


@dataclass(frozen=True)
class PartitionCounts:
    """The weeks of a table.

    Attributes:
        ahead: to come, that have their partition.
        due: that are older than is kept, and are there still.
    """

    ahead: int
    due: int


def read_partition_counts(connection: Connection, kept: timedelta) -> dict[Relation, PartitionCounts]:
    """How the partitions by landing stand, by table.

    Args:
        connection: an operator's transaction.
        kept: for how long rows are kept after they landed.
    """
    ((now,),) = connection.execute("SELECT now()").fetchall()
    there = read_partitions(connection)
    return {
        relation: PartitionCounts(
            ahead=sum(one.relation == relation and one.begins > now for one in there),
            due=sum(one.relation == relation and one.ends <= now - kept for one in there),
        )
        for relation in RELATIONS
    }
