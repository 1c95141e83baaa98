"""What is done when a run fails."""

from typing import Any

import dagster as dg

from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.audit import SYSTEM, record


def run_failure_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor `run_failure`, which writes every failed run into the audit trail.

    Args:
        settings: for the interval.
    """

    @dg.run_failure_sensor(
        name="run_failure",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes each failed run into the audit trail: the run, its job, and for each step that "
        "failed the class of the error. Not the message, which may hold a tenant's data.",
    )
    def run_failure(context: dg.RunFailureSensorContext, brain: dg.ResourceParam[Brain]) -> None:
        run = context.dagster_run
        body: dict[str, Any] = {
            "run_id": run.run_id,
            "job": run.job_name,
            "errors": {
                event.step_key: (error.cause or error).cls_name
                for event in context.get_step_failure_events()
                if (error := event.step_failure_data.error) is not None
            },
        }
        with brain.database.as_operator() as connection:
            record(connection, SYSTEM, actor="dagster", action="run_failed", body=body)

    return run_failure
