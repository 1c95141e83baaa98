"""Feedback by tenant and day: aggregates that outlive the raw events."""

from collections.abc import Sequence
from datetime import date

import dagster as dg
import numpy as np
from matplotlib.figure import Figure

from somabrain_dagster.assets.landed import FEEDBACK_EVENTS
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, beta_accepted, column_schema, plot
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.daily import Aggregation, Day, aggregate
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.positions import position


@beta_accepted()
def feedback_daily_asset(days: dg.DailyPartitionsDefinition, first_day: date) -> dg.AssetsDefinition:
    """The asset `feedback_daily`, partitioned by these days.

    Args:
        days: the partitions.
        first_day: of the first of them.
    """

    @dg.asset(
        description="Each tenant's feedback of a day (UTC, by when it happened): the number of events and "
        "sessions, and the sums and sums of squares of utility and reward, from which the mean and variance "
        "of any span follow. A run replaces its days in one transaction; a day that lost its events loses "
        "its row. What was counted of raw events that were pruned stands, and what is new is added to it; a "
        "run of days that are pruned altogether is refused.",
        deps=[FEEDBACK_EVENTS],
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=LEARNING,
        kinds={"postgres"},
        owners=OWNERS,
        tags={"somabrain/layer": "aggregate"},
        metadata={"dagster/table_name": "feedback_daily"},
        pool="feedback_daily",
    )
    def feedback_daily(
        context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
    ) -> dg.MaterializeResult[None]:
        span = context.partition_key_range
        with brain.database.as_operator() as connection:
            made = aggregate(
                connection, date.fromisoformat(span.start), date.fromisoformat(span.end), first_day
            )
            columns = read_columns_of(connection, "feedback_daily")
        if made.rows and made.kept == made.rows:
            raise dg.Failure(
                f"nothing is left to count of {span.start} to {span.end}: the raw events are pruned, and "
                "what was counted of them stands",
                allow_retries=False,
            )
        if made.kept:
            context.log.warning("%d rows stay as they were: raw events that they count are pruned", made.kept)
        _describe_days(context, span, made)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(position(made.heads)),
            metadata={"dagster/column_schema": column_schema(columns)},
        )

    return feedback_daily


def _describe_days(context: dg.AssetExecutionContext, span: dg.PartitionKeyRange, made: Aggregation) -> None:
    """Say of each day what is in it, and of the run what it made: with its last day, not with each."""
    with_feedback = {day.day.isoformat(): day for day in made.days}
    for key in context.partition_keys:
        day = with_feedback.get(key)
        context.add_asset_metadata(
            {
                "dagster/partition_row_count": 0 if day is None else day.tenants,
                "events": 0 if day is None else day.events,
            },
            partition_key=key,
        )
    context.add_asset_metadata(
        {
            "days": f"{span.start} to {span.end}",
            "days with feedback": len(made.days),
            "rows": made.rows,
            "tenants": made.tenants,
            "rows kept because raw events are pruned": made.kept,
            "position": position(made.heads),
            **({"feedback by day": plot(draw_days(made.days), "feedback by day")} if made.days else {}),
        },
        partition_key=span.end,
    )


def draw_days(days: Sequence[Day]) -> Figure:
    """Events by day, and the mean utility and reward of each day, over all tenants."""
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    dates = [np.datetime64(day.day) for day in days]
    above.bar(dates, [day.events for day in days], width=0.9, color="#4477aa")
    above.set_ylabel("events")
    below.axhline(0, color="#bbbbbb", linewidth=1)
    utility = [day.utility_sum / day.events for day in days]
    reward = [day.reward_sum / day.events for day in days]
    below.plot(dates, utility, "o", color="#228833", markersize=5, fillstyle="none", label="utility")
    below.plot(dates, reward, ".", color="#ee6677", markersize=4, label="reward")
    below.set_ylabel("mean of the day")
    below.legend(frameon=False, ncols=2)
    below.tick_params(axis="x", rotation=20)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
