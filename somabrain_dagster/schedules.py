"""Schedules: what runs by the calendar."""

import dagster as dg

from somabrain_dagster.jobs import index_rebuild

weekly_index_rebuild = dg.ScheduleDefinition(
    name="weekly_index_rebuild",
    job=index_rebuild,
    cron_schedule="0 3 * * 0",
    execution_timezone="UTC",
    description="Sundays at three: rebuild and prove the indexes, and give one to each tenant that has "
    "become large.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
