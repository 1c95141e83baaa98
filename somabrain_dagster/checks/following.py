"""Whether what is derived follows what landed."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.positions import ADAPTATION_STATE, position, read_heads, read_lag

ALLOWED_TICKS = 3
SLOWEST_RUN = timedelta(minutes=2)


def state_follows_what_landed(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that no verified state is older than a few of the sensor's ticks and one run allow.

    A window since the last run would be a lie here: where nothing lands, an old state is up to date.
    """
    allowed = ALLOWED_TICKS * timedelta(seconds=settings.sensor_interval_seconds) + SLOWEST_RUN

    @dg.asset_check(
        asset="adaptation_state",
        description="No change of weights has waited for its verification longer than "
        f"{int(allowed.total_seconds())} s: {ALLOWED_TICKS} ticks of the sensor and a run. Where nothing "
        "landed, a state of any age follows.",
    )
    def state_follows_what_landed(brain: dg.ResourceParam[Brain]) -> dg.AssetCheckResult:
        with brain.database.snapshot() as connection:
            heads = read_heads(connection)
            lag = read_lag(connection, ADAPTATION_STATE, heads)
        waited = timedelta() if lag.waiting_since is None else datetime.now(UTC) - lag.waiting_since
        return dg.AssetCheckResult(
            passed=waited <= allowed,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(lag.tenants)} of {len(heads)} tenants have changes that are not verified yet",
            metadata={
                "position": position(heads),
                "tenants behind": len(lag.tenants),
                "rewound logs": len(lag.rewound),
                "events not verified": lag.events,
                "longest wait in seconds": waited.total_seconds(),
            },
        )

    return state_follows_what_landed
