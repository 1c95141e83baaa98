"""Backups, and the proof that they restore."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg
from matplotlib.figure import Figure

from somabrain_dagster.assets.ann_index import OPERATIONS
from somabrain_dagster.assets.metadata import OWNERS, column_schema, made_every, plot
from somabrain_dagster.operations.backup_manifest import Backup, InvalidBackup
from somabrain_dagster.operations.backup_store import NoBackup
from somabrain_dagster.operations.backups import Made, back_up
from somabrain_dagster.operations.postgres_copy import CopyFailed
from somabrain_dagster.operations.redis_copy import CannotCopyRedis
from somabrain_dagster.operations.restoring import drill
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.backups import BackupRunning, Drill, PositionBusy, last_proof
from somabrain_dagster.store.landed import read_columns_of

READ_BACK = "every_file_reads_back"
PROVEN = "the_restored_brain_is_the_one_backed_up"
PROVEN_LATELY = "a_backup_was_proven_lately"
LATELY = timedelta(days=8)
"""A week, from one drill to the next, and a day for one that is late."""


@dg.asset(
    description="A backup of Postgres and Redis, taken while the brain works, at one place in its log; its "
    "files are read back before older backups are removed. `somabrain restore` restores it.",
    deps=["feedback_events", "memories", "recalls"],
    group_name=OPERATIONS,
    kinds={"postgres", "redis"},
    owners=OWNERS,
    tags={"somabrain/layer": "backup"},
    pool="state_backup",
    freshness_policy=made_every(timedelta(days=1)),
    check_specs=[
        dg.AssetCheckSpec(
            READ_BACK,
            asset="state_backup",
            description="Every file of the backup, read from where it is kept, has the SHA-256 that it was "
            "written with.",
            blocking=True,
        ),
        dg.AssetCheckSpec(
            PROVEN_LATELY,
            asset="state_backup",
            description=f"In the last {LATELY.days} days a drill restored a backup and found it whole.",
        ),
    ],
)
def state_backup(brain: dg.ResourceParam[Brain]) -> Iterator[dg.MaterializeResult[None]]:
    """Back up, and say what the backup holds and when one was last proven."""
    try:
        made = back_up(brain.settings)
    except (BackupRunning, CannotCopyRedis, CopyFailed, InvalidBackup, PositionBusy) as error:
        raise dg.Failure(str(error)) from error
    with brain.database.as_operator() as connection:
        proof = last_proof(connection)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(made.backup.position),
        metadata=backup_metadata(made),
        check_results=[
            dg.AssetCheckResult(
                check_name=READ_BACK, passed=True, metadata={"files": len(made.backup.files)}
            ),
            _proven_lately(proof),
        ],
    )


def backup_metadata(made: Made) -> Mapping[str, dg.MetadataValue | str | int | float]:
    """What is in a backup."""
    backup: Backup = made.backup
    return {
        "dagster/row_count": len(backup.files),
        "backup": backup.backup_id,
        "url": dg.MetadataValue.url(made.url),
        "kind": backup.kind,
        "position": backup.position,
        "tenants": backup.tenants,
        "bytes": backup.bytes,
        "seconds": backup.seconds,
        "removed": ", ".join(made.removed) or "none",
        "files": dg.MetadataValue.table(
            [
                dg.TableRecord({"file": file.path, "bytes": file.bytes, "sha256": file.sha256})
                for file in backup.files
            ]
        ),
    }


def _proven_lately(proof: Drill | None) -> dg.AssetCheckResult:
    proven_at = None if proof is None else proof.created_at
    passed = proven_at is not None and datetime.now(UTC) - proven_at <= LATELY
    if proof is None or proven_at is None:
        description = "No backup was ever proven: materialise `restore_drill`."
    else:
        description = f"{proof.backup_id} was proven on {proven_at:%Y-%m-%d %H:%M} UTC."
    return dg.AssetCheckResult(
        check_name=PROVEN_LATELY,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
    )


@dg.asset(
    description="When the last backup was proven. It is restored into a scratch instance, whose files, "
    "indexes, log, chains and weights must be those that were backed up; then the instance is removed.",
    deps=["state_backup"],
    group_name=OPERATIONS,
    kinds={"postgres", "redis"},
    owners=OWNERS,
    tags={"somabrain/layer": "backup"},
    metadata={"dagster/table_name": "restore_drills"},
    pool="restore_drill",
    freshness_policy=made_every(timedelta(weeks=1)),
    check_specs=[
        dg.AssetCheckSpec(
            PROVEN,
            asset="restore_drill",
            description="Digests, pg_verifybackup, pg_amcheck, the marks of every log, replay, "
            "rederivation and the hash chains of changes and of audit events: all hold of the restored copy.",
            blocking=True,
        )
    ],
)
def restore_drill(brain: dg.ResourceParam[Brain]) -> Iterator[dg.MaterializeResult[None]]:
    """Restore the newest backup, prove it and record the drill."""
    try:
        result, seconds = drill(brain.settings, brain.database)
    except NoBackup as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    with brain.database.snapshot() as connection:
        columns = read_columns_of(connection, "restore_drills")
    findings = [dg.TableRecord({"finding": finding}) for finding in result.findings]
    schema = dg.TableSchema([dg.TableColumn("finding", "string")])
    yield dg.MaterializeResult(
        metadata={
            "dagster/column_schema": column_schema(columns),
            "backup": result.backup_id,
            "backup began": dg.MetadataValue.timestamp(result.backup_at),
            "position": result.position,
            "seconds": result.seconds,
            "what it took": plot(draw_steps(seconds), "seconds by step"),
            "steps": dg.MetadataValue.table(
                [dg.TableRecord({"step": step, "seconds": took}) for step, took in seconds.items()],
                schema=dg.TableSchema([dg.TableColumn("step", "string"), dg.TableColumn("seconds", "float")]),
            ),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=PROVEN,
                passed=not findings,
                description=result.findings[0] if findings else f"{result.backup_id} is proven.",
                metadata={"findings": dg.MetadataValue.table(findings, schema=schema)},
            )
        ],
    )


def draw_steps(seconds: Mapping[str, float]) -> Figure:
    """How long each step of a drill took, the first on top."""
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(seconds)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.barh(list(seconds), list(seconds.values()), color="#4477aa")
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
