"""What is so of many tenants at once, for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.store.database import Connection


@dataclass(frozen=True)
class TenantGauges:
    """A tenant's state in numbers, or the mean of several tenants' states.

    Attributes:
        tenant_id: `_others` for a mean.
        tenants: how many they are.
        version: of the weights; a mean's is the largest.
        weights: nano-units.
        levels: of the neuromodulators, by name.
        configuration: the digest of the last change's; None for a mean of several.
    """

    tenant_id: str
    tenants: int
    version: int
    weights: Sequence[float]
    levels: dict[str, float]
    configuration: bytes | None


_COLUMNS = "s.tenant_id, s.version, s.weights, s.dopamine, s.serotonin, s.noradrenaline, s.acetylcholine"


def read_gauges(connection: Connection, most: int) -> tuple[list[TenantGauges], TenantGauges]:
    """The tenants whose weights changed last, and the mean of all others.

    Args:
        connection: an operator's transaction.
        most: how many tenants are named.
    """
    named = connection.execute(
        f"SELECT {_COLUMNS}, s.configuration FROM adaptation_states s "  # noqa: S608 — a constant
        "ORDER BY s.updated_at DESC, s.tenant_id LIMIT %s",
        (most,),
    )
    tenants = [
        TenantGauges(row[0], 1, row[1], row[2], dict(zip(LEVELS, row[3:7], strict=True)), row[7])
        for row in named
    ]
    count, version, dopamine, serotonin, noradrenaline, acetylcholine, weights = connection.execute(
        """
        WITH others AS MATERIALIZED (
            SELECT * FROM adaptation_states ORDER BY updated_at DESC, tenant_id OFFSET %s
        )
        SELECT count(*), max(version),
            avg(dopamine), avg(serotonin), avg(noradrenaline), avg(acetylcholine), (
            SELECT array_agg(mean ORDER BY position) FROM (
                SELECT position, avg(weight)::float8 AS mean
                FROM others, unnest(weights) WITH ORDINALITY AS w (weight, position) GROUP BY position
            ) AS means
        )
        FROM others
        """,
        (most,),
    ).fetchall()[0]
    levels = dict(zip(LEVELS, (dopamine, serotonin, noradrenaline, acetylcholine), strict=True))
    return tenants, TenantGauges("_others", count, version or 0, weights or [], levels, None)


def read_adjustments(connection: Connection, most: int, others: str) -> list[tuple[str, str, int]]:
    """How many changes of weights answer no feedback: tenant, cause, count.

    Args:
        connection: an operator's transaction.
        most: how many tenants are named, the same ones as by `read_gauges`.
        others: under which name the rest is added up.
    """
    rows = connection.execute(
        """
        WITH named AS (
            SELECT tenant_id FROM adaptation_states ORDER BY updated_at DESC, tenant_id LIMIT %s
        )
        SELECT coalesce(n.tenant_id, %s) AS name, c.cause, count(*)
        FROM weight_changes c LEFT JOIN named n USING (tenant_id)
        WHERE c.cause NOT IN ('feedback', 'start') GROUP BY name, c.cause ORDER BY name, c.cause
        """,
        (most, others),
    )
    return [(name, cause, count) for name, cause, count in rows]


@dataclass(frozen=True)
class ChainCounts:
    """How much the learning chain did, each by what came of it.

    Attributes:
        failed_runs: of Dagster, by job.
        proposals: accepted and refused.
        experiments: by status.
        looks: at canaries, by action.
        promotions: promoted, and undone.
    """

    failed_runs: Mapping[str, int]
    proposals: Mapping[str, int]
    experiments: Mapping[str, int]
    looks: Mapping[str, int]
    promotions: Mapping[str, int]


def read_chain_counts(connection: Connection) -> ChainCounts:
    """What the learning chain did.

    Args:
        connection: an operator's transaction.
    """
    counted: dict[str, dict[str, int]] = {field.name: {} for field in fields(ChainCounts)}
    rows = connection.execute(
        """
        SELECT 'failed_runs', body ->> 'job', count(*) FROM audit_events
        WHERE tenant_id = '_system' AND action = 'run_failed' GROUP BY 2
        UNION ALL
        SELECT 'proposals', CASE WHEN accepted THEN 'accepted' ELSE 'refused' END, count(*)
        FROM parameter_proposals GROUP BY 2
        UNION ALL SELECT 'experiments', status, count(*) FROM experiments GROUP BY 2
        UNION ALL SELECT 'looks', action, count(*) FROM canary_looks GROUP BY 2
        UNION ALL
        SELECT 'promotions', CASE WHEN reverts IS NULL THEN 'promoted' ELSE 'undone' END, count(*)
        FROM promotions GROUP BY 2
        """
    )
    for what, label, count in rows:
        counted[what][label] = count
    return ChainCounts(**counted)
