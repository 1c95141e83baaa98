"""Tenants become partitions."""

import dagster as dg

from somabrain_dagster.partitions import tenants
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import list_tenants


def tenants_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor `tenants`, which adds a partition for each new tenant.

    Args:
        settings: for the interval.
    """

    @dg.sensor(
        name="tenants",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Adds a dynamic partition for each tenant that has none yet. It takes none away: what "
        "was materialised for a tenant that is gone stays on the record.",
    )
    def tenants_to_partitions(
        context: dg.SensorEvaluationContext, brain: dg.ResourceParam[Brain]
    ) -> dg.SensorResult:
        assert tenants.name is not None
        with brain.database.snapshot() as connection:
            there = list_tenants(connection)
        known = set(context.instance.get_dynamic_partitions(tenants.name))
        new = [tenant for tenant in there if tenant not in known]
        if not new:
            return dg.SensorResult(skip_reason=f"each of {len(there)} tenants has its partition")
        return dg.SensorResult(dynamic_partitions_requests=[tenants.build_add_request(new)])

    return tenants_to_partitions
