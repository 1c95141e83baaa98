"""What is so of many tenants at once, for metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from somabrain_dagster.learning.guard import Micros
from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.store.database import Connection

OTHERS = "_others"
"""The label of the tenants beyond the cap."""

NAMED = "SELECT tenant_id FROM tenants ORDER BY created_at, tenant_id LIMIT %(most)s"
"""The tenants that have labels of their own: those that were created first, so that a label stays."""


@dataclass(frozen=True, eq=False)
class TenantGauges:
    """A tenant's state in numbers, or the mean of several tenants' states.

    Attributes:
        tenant_id: `_others` for a mean.
        tenants: how many they are.
        version: of the weights; a mean's is the largest.
        weights: nano-units.
        levels: of the neuromodulators, by name.
        reward_mean, reward_variance, delta: V, v, and the last prediction error.
        diversity: of what was recalled last; None while that is too little.
        recent_rewards: as the rollback guard remembers them; none of a mean.
        configuration: the digest of the last change's; None for a mean.
    """

    tenant_id: str
    tenants: int
    version: int
    weights: Sequence[float]
    levels: dict[str, float]
    reward_mean: float
    reward_variance: float
    delta: float
    diversity: float | None
    recent_rewards: Micros
    configuration: bytes | None


_MEASURES = (*LEVELS, "reward_mean", "reward_variance", "delta", "diversity")
_DIVERSITY = "1 - repeated::float8 / cardinality(recalled)"


def read_gauges(connection: Connection, most: int) -> tuple[list[TenantGauges], TenantGauges]:
    """The tenants that are named, and the mean of all others.

    Args:
        connection: an operator's transaction.
        most: how many tenants are named.
    """
    measures = ", ".join(_MEASURES[:-1])
    named = connection.execute(
        f"""
        SELECT tenant_id, version, weights, recent_rewards, configuration, {measures}, {_DIVERSITY}
        FROM adaptation_states JOIN ({NAMED}) AS named USING (tenant_id) ORDER BY tenant_id
        """,  # noqa: S608 — of constants
        {"most": most},
    )
    tenants = [
        _gauges(tenant_id, 1, version, weights, rewards, configuration, measured)
        for tenant_id, version, weights, rewards, configuration, *measured in named
    ]
    means = ", ".join(f"avg({name})" for name in _MEASURES[:-1])
    count, version, weights, *measured = connection.execute(
        f"""
        WITH others AS MATERIALIZED (
            SELECT s.* FROM adaptation_states s
            JOIN (SELECT tenant_id FROM tenants ORDER BY created_at, tenant_id OFFSET %(most)s) AS rest
                USING (tenant_id)
        )
        SELECT count(*), coalesce(max(version), 0), (
            SELECT array_agg(mean ORDER BY position) FROM (
                SELECT position, avg(weight)::float8 AS mean
                FROM others, unnest(weights) WITH ORDINALITY AS w (weight, position) GROUP BY position
            ) AS means
        ), {means}, avg({_DIVERSITY})
        FROM others
        """,  # noqa: S608 — of constants
        {"most": most},
    ).fetchall()[0]
    return tenants, _gauges(OTHERS, count, version, weights or [], [], None, measured)


def _gauges(
    tenant_id: str,
    tenants: int,
    version: int,
    weights: Sequence[float],
    rewards: Sequence[int],
    configuration: bytes | None,
    measured: Sequence[float],
) -> TenantGauges:
    named = dict(zip(_MEASURES, measured, strict=True))
    return TenantGauges(
        tenant_id=tenant_id,
        tenants=tenants,
        version=version,
        weights=weights,
        levels={name: named.pop(name) for name in LEVELS},
        recent_rewards=np.array(rewards, dtype=np.int64),
        configuration=configuration,
        **named,
    )


def read_named(connection: Connection, most: int) -> list[str]:
    """The tenants that are named.

    Args:
        connection: an operator's transaction.
        most: how many.
    """
    return [tenant_id for (tenant_id,) in connection.execute(NAMED, {"most": most})]


def read_adjustments(connection: Connection, most: int) -> list[tuple[str, str, int]]:
    """How many changes of weights answer no feedback: tenant, cause, count.

    Args:
        connection: an operator's transaction.
        most: how many tenants are named; the rest is added up.
    """
    rows = connection.execute(
        f"""
        SELECT coalesce(n.tenant_id, %(others)s) AS name, c.cause, count(*)
        FROM weight_changes c LEFT JOIN ({NAMED}) AS n USING (tenant_id)
        WHERE c.cause NOT IN ('feedback', 'start') GROUP BY name, c.cause ORDER BY name, c.cause
        """,  # noqa: S608 — of a constant
        {"most": most, "others": OTHERS},
    )
    return [(name, cause, count) for name, cause, count in rows]
