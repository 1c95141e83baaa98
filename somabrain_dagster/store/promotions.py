"""What is promoted: weights for all tenants, each promotion one shift at the end of every tenant's log."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.weights import NAMES, Nanos, by_name, to_nanos
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.changes import Change, append_changes, shift_within_bounds
from somabrain_dagster.store.database import Connection

PROMOTION = "promotion"


class InvalidWeights(ValueError):
    """Weights that cannot be promoted; the message names the weight and what it must be."""


@dataclass(frozen=True, eq=False)
class Promotion:
    """Weights that were promoted.

    Attributes:
        version: 0 for the configured start, before any promotion.
        experiment_id: the experiment that they come from; None where an operator set them.
        before, weights: (K,), nano-units, of the promotion before this one and of this one.
    """

    version: int
    created_at: datetime | None
    actor: str | None
    experiment_id: str | None
    before: Nanos
    weights: Nanos

    @property
    def shift(self) -> Nanos:
        """What each tenant's weights are shifted by."""
        return self.weights - self.before


def read_promotions(connection: Connection) -> list[Promotion]:
    """All promotions, the oldest first."""
    rows = connection.execute(
        "SELECT version, created_at, actor, experiment_id, before, weights FROM promotions ORDER BY version"
    )
    return [_from_row(*row) for row in rows]


def _from_row(
    version: int, created_at: datetime, actor: str, experiment_id: str | None, before: Any, weights: Any
) -> Promotion:
    return Promotion(
        version,
        created_at,
        actor,
        experiment_id,
        np.array(before, dtype=np.int64),
        np.array(weights, dtype=np.int64),
    )


def promoted(connection: Connection, configuration: LearningConfiguration) -> Promotion:
    """What is promoted now: the newest promotion, or the configured start where there is none."""
    promotions = read_promotions(connection)
    if promotions:
        return promotions[-1]
    start = configuration.start_nanos
    return Promotion(0, None, None, None, start, start)


def promote(
    connection: Connection,
    weights: Mapping[str, float],
    configuration: LearningConfiguration,
    actor: str,
    experiment_id: str | None = None,
) -> tuple[Promotion, list[AdaptationState]]:
    """Promote weights: shift every tenant by what changes, move the pointer and audit it, in one transaction.

    A tenant keeps what it learned by itself: its weights move by the difference, within its bounds.

    Args:
        connection: an operator's transaction.
        weights: in units, by name; those that are not named stay as they were promoted before.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.
        experiment_id: the experiment that they come from.

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
    # One promotion at a time: the difference is to the one before.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('somabrain_promotion'))")
    last = promoted(connection, configuration)
    now = to_nanos([weights.get(name, 0.0) for name in NAMES])
    named = np.array([name in weights for name in NAMES])
    after = np.where(named, now, last.weights)
    (row,) = connection.execute(
        """
        INSERT INTO promotions (version, actor, experiment_id, registry_version, before, weights)
        VALUES (%s, %s, %s, %s, %s, %s)
        RETURNING version, created_at, actor, experiment_id, before, weights
        """,
        (
            last.version + 1,
            actor,
            experiment_id,
            REGISTRY_VERSION,
            last.weights.tolist(),
            after.tolist(),
        ),
    ).fetchall()
    promotion = _from_row(*row)
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
        "before": by_name(last.weights),
        "after": by_name(after),
        "tenants": len(states),
    }
    audit.record(connection, audit.SYSTEM, actor, PROMOTION, body)
    return promotion, states
