"""When new feedback is worth a run."""

import dagster as dg

from somabrain_dagster.assets.proposals import tenant_weights
from somabrain_dagster.jobs import LEARNING_CHAIN, PROOF, learning_chain
from somabrain_dagster.partitions import last_day
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.sensors.requests import run_for, unfinished_run
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.daily import UnseenDays, read_unseen_days
from somabrain_dagster.store.positions import ADAPTATION_STATE, position, read_heads, read_lag

POSITION_TAG = "somabrain/position"
FIRST_DAY_TAG = "dagster/asset_partition_range_start"
LAST_DAY_TAG = "dagster/asset_partition_range_end"


def feedback_landed_sensor(settings: Settings, days: dg.DailyPartitionsDefinition) -> dg.SensorDefinition:
    """The sensor `feedback_landed`.

    What is new is told by comparing the end of each tenant's log with the marks that the assets keep in
    Postgres, never by a cursor in time: so a commit that comes late is seen, and an event is new until it is
    aggregated and verified, whatever became of the ticks and runs between.

    Args:
        settings: for the interval and the first day.
        days: the partitions of `feedback_daily`.
    """

    @dg.sensor(
        name="feedback_landed",
        job=learning_chain,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs the learning chain over the days that new feedback is about, once for each "
        "position of the log. It aggregates, proves and proposes whether or not the autopilot is on; only "
        "with it does it carry out fits of tenants' own weights.",
    )
    def feedback_landed(
        context: dg.SensorEvaluationContext, brain: dg.ResourceParam[Brain]
    ) -> dg.SensorResult:
        with brain.database.snapshot() as connection:
            heads = read_heads(connection)
            lag = read_lag(connection, ADAPTATION_STATE, heads)
            unseen = read_unseen_days(connection, heads, settings.first_day, last_day(days))
        here = position(heads)
        if not lag.tenants and unseen.first is None:
            return _skip(
                f"everything up to position {here} is aggregated and verified{_outside(unseen, settings)}"
            )

        run = unfinished_run(context.instance, LEARNING_CHAIN)
        if run is not None:
            return _skip(
                f"run {run.run_id} for position {run.tags.get(POSITION_TAG, 'unknown')} is "
                f"{run.status.value.lower()}: position {here} waits for it"
            )
        # The days as well: one that was still to come when an event landed may have come since.
        tags = {POSITION_TAG: here, **_span(unseen)}
        request = run_for(
            context.instance,
            LEARNING_CHAIN,
            tags,
            # Without new days there is nothing to aggregate, and only the weights are proven.
            asset_selection=PROOF if unseen.first is None else None,
            run_config={"ops": {tenant_weights.op.name: {"config": {"change": settings.autopilot}}}},
        )
        if isinstance(request, dg.DagsterRun):
            return _skip(
                f"position {here} had its run {request.run_id}, which ended as "
                f"{request.status.value.lower()}: it is not repeated; see why, and re-execute it, or wait "
                f"for more feedback{_outside(unseen, settings)}",
            )
        context.log.info(
            "%d tenants beyond their marks, %d events to aggregate%s",
            len(lag.tenants),
            unseen.events,
            _outside(unseen, settings),
        )
        return dg.SensorResult(run_requests=[request], cursor=here)

    return feedback_landed


def _skip(reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason)


def _span(unseen: UnseenDays) -> dict[str, str]:
    """The tags by which one run takes all the days."""
    if unseen.first is None or unseen.last is None:
        return {}
    return {FIRST_DAY_TAG: unseen.first.isoformat(), LAST_DAY_TAG: unseen.last.isoformat()}


def _outside(unseen: UnseenDays, settings: Settings) -> str:
    """What is not aggregated, and why, for the end of a sentence."""
    said = ""
    if unseen.before:
        said += f"; {unseen.before} events are about days before {settings.first_day} (SOMABRAIN_FIRST_DAY)"
    if unseen.after:
        said += f"; {unseen.after} events are about days to come"
    return said
