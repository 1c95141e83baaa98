"""How assets are cut into partitions."""

from datetime import date

import dagster as dg

from somabrain_dagster.settings import Settings


def feedback_days(settings: Settings) -> dg.DailyPartitionsDefinition:
    """The days (UTC) that feedback can be about: the settings' first day to today, both included."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.first_day.isoformat(), timezone="UTC", end_offset=1
    )


def last_day(days: dg.DailyPartitionsDefinition) -> date:
    """Today, as Dagster knows it; the first day at the earliest.

    Raises:
        ValueError: the first day is in the future.
    """
    last = days.get_last_partition_key()
    if last is None:
        raise ValueError("SOMABRAIN_FIRST_DAY is in the future: no day can be aggregated; set an earlier one")
    return date.fromisoformat(last)


tenants = dg.DynamicPartitionsDefinition(name="tenants")
"""The tenants. A key that was removed is never given to another: its partitions would seem materialised."""

SHARES = 16
"""Of how many shares all tenants are one: more than there are workers, so that a heavy one holds few up."""

tenant_shares = dg.StaticPartitionsDefinition([f"{share:02d}" for share in range(SHARES)])
"""Shares of the tenants, by the hash of their keys: what is made of each may be made share by share."""
