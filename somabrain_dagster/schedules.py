"""Schedules: what runs by the calendar."""

import dagster as dg

from somabrain_dagster.jobs import backup, backup_drill, history_seal, index_rebuild, retention

weekly_index_rebuild = dg.ScheduleDefinition(
    name="weekly_index_rebuild",
    job=index_rebuild,
    cron_schedule="0 3 * * 0",
    execution_timezone="UTC",
    description="Sundays at three: rebuild and prove the indexes, and give one to each tenant that has "
    "become large.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

hourly_history_seal = dg.ScheduleDefinition(
    name="hourly_history_seal",
    job=history_seal,
    cron_schedule="7 * * * *",
    execution_timezone="UTC",
    description="Every hour: seal what has been recorded.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

daily_retention = dg.ScheduleDefinition(
    name="daily_retention",
    job=retention,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    description="At half past two: make the partitions of the weeks to come, and prune what is too old.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

daily_backup = dg.ScheduleDefinition(
    name="daily_backup",
    job=backup,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    description="Every day at one: back up Postgres and Redis.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

weekly_restore_drill = dg.ScheduleDefinition(
    name="weekly_restore_drill",
    job=backup_drill,
    cron_schedule="0 5 * * 0",
    execution_timezone="UTC",
    description="Sundays at five: restore the newest backup into a scratch instance, and prove it.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
