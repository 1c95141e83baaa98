"""What is promoted: weights for all tenants, each promotion one shift at the end of every tenant's log."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.policy import rescaled
from somabrain_dagster.learning.shifts import constant
from somabrain_dagster.learning.weights import NAMES, WEIGHTS, Nanos, by_name, to_nanos, to_units
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.changes import (
    SCALES,
    Change,
    append_changes,
    change_scales,
    scale_version_at,
    shift_within_bounds,
)
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.scales import SHIPPED_SCALES, read_scales

PROMOTION = "promotion"
PROMOTION_ROLLBACK = "promotion_rollback"


class InvalidWeights(ValueError):
    """Weights that cannot be promoted; the message names the weight and what it must be."""


class NothingPromoted(LookupError):
    """There is no promotion that could be undone."""


@dataclass(frozen=True, eq=False)
class Promotion:
    """Weights that were promoted.

    Attributes:
        version: 0 for the configured start, before any promotion.
        experiment_id: the experiment that they come from; None where an operator set them.
        canary_id: the canary that they passed.
        before, weights: (K,), nano-units, of the promotion before this one and of this one, both in the
            scales that are in force with it.
        scale_version: the scales that came into force with it; None where they stayed.
        reverts: the promotion that this one undoes.
    """

    version: int
    created_at: datetime | None
    actor: str | None
    experiment_id: str | None
    canary_id: int | None
    before: Nanos
    weights: Nanos
    scale_version: int | None
    reverts: int | None

    @property
    def shift(self) -> Nanos:
        """What each tenant's weights are shifted by."""
        return self.weights - self.before

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        if self.reverts is not None:
            return f"undoes {self.reverts}"
        return self.experiment_id or "an operator's choice"

    @property
    def changed(self) -> str:
        """The weights that it changed, before and after, in words."""
        return ", ".join(
            f"{weight.symbol} {before:.4f} → {after:.4f}"
            for weight, before, after in zip(
                WEIGHTS, to_units(self.before), to_units(self.weights), strict=True
            )
            if before != after
        )


_COLUMNS = "version, created_at, actor, experiment_id, canary_id, before, weights, scale_version, reverts"


def read_promotions(connection: Connection) -> list[Promotion]:
    """All promotions, the oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM promotions ORDER BY version"  # noqa: S608 — the columns are a constant
    )
    return [_from_row(*row) for row in rows]


def _from_row(
    version: int,
    created_at: datetime,
    actor: str,
    experiment_id: str | None,
    canary_id: int | None,
    before: Any,
    weights: Any,
    scale_version: int | None,
    reverts: int | None,
) -> Promotion:
    return Promotion(
        version,
        created_at,
        actor,
        experiment_id,
        canary_id,
        np.array(before, dtype=np.int64),
        np.array(weights, dtype=np.int64),
        scale_version,
        reverts,
    )


def promoted(connection: Connection, configuration: LearningConfiguration) -> Promotion:
    """What is promoted now: the newest promotion, or the configured start where there is none."""
    promotions = read_promotions(connection)
    if promotions:
        return promotions[-1]
    start = configuration.start_nanos
    return Promotion(0, None, None, None, None, start, start, None, None)


def promoted_scales(connection: Connection) -> int:
    """The scales in which the promoted weights are meant: those of the newest promotion that brought any."""
    row = connection.execute(
        "SELECT scale_version FROM promotions WHERE scale_version IS NOT NULL ORDER BY version DESC LIMIT 1"
    ).fetchone()
    return SHIPPED_SCALES if row is None else int(row[0])


def in_scales(
    connection: Connection, configuration: LearningConfiguration, promotion: Promotion, scale_version: int
) -> Nanos:
    """The weights (K,) of what is promoted now, as they are in other scales; within the bounds."""
    now = promoted_scales(connection)
    if now == scale_version:
        return promotion.weights
    converted = rescaled(
        promotion.weights, read_scales(connection, now), read_scales(connection, scale_version)
    )
    return np.clip(converted, configuration.low_nanos, configuration.high_nanos)


def promote(
    connection: Connection,
    weights: Mapping[str, float],
    configuration: LearningConfiguration,
    actor: str,
) -> tuple[Promotion, list[AdaptationState]]:
    """Promote weights that an operator chose, past every gate: audited as the operator's own.

    A tenant keeps what it learned by itself: its weights move by the difference, within its bounds.

    Args:
        connection: an operator's transaction.
        weights: in units, by name; those that are not named stay as they were promoted before.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Returns:
        The promotion and the new states: publish them when the transaction is committed.

    Raises:
        InvalidWeights: a name is unknown, or a weight is outside its bounds.
    """
    if unknown := sorted(set(weights) - set(NAMES)):
        raise InvalidWeights(f"there is no weight {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name, value in weights.items():
        if not configuration.low[name] <= value <= configuration.high[name]:
            raise InvalidWeights(
                f"`{name}` must be from {configuration.low[name]} to {configuration.high[name]}, not {value}"
            )
    lock_promotions(connection)
    last = promoted(connection, configuration)
    now = to_nanos([weights.get(name, 0.0) for name in NAMES])
    named = np.array([name in weights for name in NAMES])
    after = np.where(named, now, last.weights)
    return append_promotion(connection, last.weights, after, configuration, actor, {})


def lock_promotions(connection: Connection) -> None:
    """Let one promotion happen at a time: the difference is to the one before."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('somabrain_promotion'))")


def append_promotion(
    connection: Connection,
    before: Nanos,
    after: Nanos,
    configuration: LearningConfiguration,
    actor: str,
    grounds: Mapping[str, Any],
    *,
    experiment_id: str | None = None,
    canary_id: int | None = None,
    scale_version: int | None = None,
) -> tuple[Promotion, list[AdaptationState]]:
    """Move the pointer, shift every tenant and audit it: all in the transaction that is given.

    Args:
        connection: an operator's transaction that holds `lock_promotions`.
        before: (K,) nano-units, in the scales that come into force.
        after: likewise.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.
        grounds: what speaks for it, for the audit trail, as JSON.
        experiment_id: where the weights come from.
        canary_id: which they passed.
        scale_version: the scales that come into force; None where they stay.

    Returns:
        The promotion and the new states.
    """
    promotion = _insert(
        connection,
        before,
        after,
        configuration,
        actor,
        experiment_id=experiment_id,
        canary_id=canary_id,
        scale_version=scale_version,
    )
    if scale_version is not None:
        change_scales(connection, None, scale_version, configuration, actor)
    states = append_changes(
        connection,
        None,
        configuration,
        lambda _, own: Change(
            PROMOTION,
            shift_within_bounds(own, promotion.shift),
            bounded=True,
            promotion=promotion.version,
        ),
    )
    body = {
        "version": promotion.version,
        "experiment_id": experiment_id,
        "canary_id": canary_id,
        "scale_version": scale_version,
        "before": by_name(before),
        "after": by_name(after),
        "tenants": len(states),
        **grounds,
    }
    audit.record(connection, audit.SYSTEM, actor, PROMOTION, body)
    return promotion, states


def _insert(
    connection: Connection,
    before: Nanos,
    after: Nanos,
    configuration: LearningConfiguration,
    actor: str,
    *,
    experiment_id: str | None = None,
    canary_id: int | None = None,
    scale_version: int | None = None,
    reverts: int | None = None,
) -> Promotion:
    (row,) = connection.execute(
        f"""
        INSERT INTO promotions (
            version, actor, experiment_id, canary_id, registry_version, before, weights, scale_version,
            reverts
        ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING {_COLUMNS}
        """,  # noqa: S608 — the columns are a constant
        (
            promoted(connection, configuration).version + 1,
            actor,
            experiment_id,
            canary_id,
            REGISTRY_VERSION,
            before.tolist(),
            after.tolist(),
            scale_version,
            reverts,
        ),
    ).fetchall()
    return _from_row(*row)


def undo_promotion(
    connection: Connection, configuration: LearningConfiguration, actor: str
) -> tuple[Promotion, list[AdaptationState]]:
    """Give every tenant the exact weights, and the scales, that it had before the promotion in force.

    What was learned since is discarded. A tenant that is younger than the promotion gets the weights that
    were promoted before it. The log keeps both.

    Args:
        connection: an operator's transaction.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Returns:
        The promotion that undoes it, and the new states: publish them when the transaction is committed.

    Raises:
        NothingPromoted: there is none that was not undone already.
    """
    lock_promotions(connection)
    promotions = read_promotions(connection)
    undone = {one.reverts for one in promotions} - {None}
    candidates = [one for one in promotions if one.reverts is None and one.version not in undone]
    if not candidates:
        raise NothingPromoted("nothing is promoted: every tenant has what it started with and learned")
    target = candidates[-1]
    scales_now, scales_then = promoted_scales(connection), _scales_before(promotions, target)
    earlier = [one.weights for one in promotions if one.version < target.version]
    revert = _insert(
        connection,
        in_scales(connection, configuration, promotions[-1], scales_then),
        earlier[-1] if earlier else configuration.start_nanos,
        configuration,
        actor,
        scale_version=None if scales_then == scales_now else scales_then,
        reverts=target.version,
    )
    former = read_former(connection, target.version)
    scales = {
        tenant_id: scale_version_at(connection, tenant_id, version)
        for tenant_id, (version, _) in former.items()
    }
    present: dict[str, int] = dict(
        connection.execute(
            "SELECT tenant_id, scale_version FROM tenants ORDER BY tenant_id FOR NO KEY UPDATE"
        ).fetchall()
    )

    def change(state: AdaptationState, own: LearningConfiguration) -> Change:
        version, weights = former.get(state.tenant_id, (None, revert.weights))
        then = scales.get(state.tenant_id, scales_then)
        return Change(
            PROMOTION_ROLLBACK,
            constant(np.clip(weights, own.low_nanos, own.high_nanos)),
            restored_version=version,
            promotion=revert.version,
            scale_version=None if present[state.tenant_id] == then else then,
        )

    states = append_changes(connection, None, configuration, change)
    connection.execute(
        """
        UPDATE tenants t SET scale_version = n.scale_version
        FROM unnest(%s::text[], %s::int[]) AS n (tenant_id, scale_version)
        WHERE t.tenant_id = n.tenant_id AND t.scale_version <> n.scale_version
        """,
        (list(present), [scales.get(tenant_id, scales_then) for tenant_id in present]),
    )
    body = {
        "version": revert.version,
        "reverts": target.version,
        "before": by_name(promotions[-1].weights),
        "after": by_name(revert.weights),
        "scale_version": revert.scale_version,
        "tenants": len(states),
    }
    audit.record(connection, audit.SYSTEM, actor, PROMOTION_ROLLBACK, body)
    return revert, states


def _scales_before(promotions: list[Promotion], target: Promotion) -> int:
    brought = [one.scale_version for one in promotions if one.version < target.version and one.scale_version]
    return brought[-1] if brought else SHIPPED_SCALES


def read_former(connection: Connection, promotion: int) -> dict[str, tuple[int, Nanos]]:
    """Of each tenant that a promotion shifted, the version before it and the weights (K,) of that version.

    Where scales came with the promotion, the change of scales just before the shift is part of it.
    """
    rows = connection.execute(
        """
        SELECT c.tenant_id, f.version, f.after
        FROM weight_changes c
        JOIN promotions p ON p.version = c.promotion
        JOIN weight_changes s ON s.tenant_id = c.tenant_id AND s.version = c.version - 1
        JOIN weight_changes f ON f.tenant_id = c.tenant_id AND f.version = c.version - CASE
            WHEN s.cause = %s AND s.scale_version = p.scale_version THEN 2 ELSE 1
        END
        WHERE c.promotion = %s AND c.cause = %s
        """,
        (SCALES, promotion, PROMOTION),
    )
    return {tenant_id: (version, np.array(after, dtype=np.int64)) for tenant_id, version, after in rows}
