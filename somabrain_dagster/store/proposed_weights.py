"""Weights that somebody offers to everybody: a proposal like any other, and audited as that person's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.proposal import Diagnostics, Proposal
from somabrain_dagster.learning.weights import NAMES, POSITION, to_nanos
from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.promotions import lock_promotions, promoted, promoted_scales
from somabrain_dagster.store.proposals import insert_proposal
from somabrain_dagster.store.scales import read_scales
from somabrain_dagster.store.trials import lock_trials

ACTION = "weights_proposed"


class NotWithinBounds(ValueError):
    """Weights that are unknown or outside their bounds; the message names the weight."""


def propose(
    connection: Connection,
    weights: Mapping[str, float],
    scales: Scales,
    configuration: LearningConfiguration,
    actor: str,
    gates: Sequence[Gate],
    evidence: Mapping[str, Any],
) -> int:
    """Keep a proposal that rests on none of this brain's recalls, and record it in the audit trail.

    Args:
        connection: an operator's transaction.
        weights: in units, by name; the others stay as they are promoted.
        scales: in which they are meant; of version `NOT_STORED` for scales that are to be added.
        configuration: gives the bounds.
        actor: who offers them.
        gates: that they met elsewhere: one at least.
        evidence: what speaks for them, as JSON.

    Returns:
        The version of the audit event.

    Raises:
        NotWithinBounds: nothing was recorded.
    """
    for name, value in weights.items():
        if name not in NAMES:
            raise NotWithinBounds(f"there is no weight {name!r}; there are {', '.join(NAMES)}")
        if not configuration.low[name] <= value <= configuration.high[name]:
            raise NotWithinBounds(
                f"{name} must be from {configuration.low[name]} to {configuration.high[name]}, not {value}"
            )
    lock_trials(connection)
    lock_promotions(connection)
    promotion = promoted(connection, configuration)
    in_force = read_scales(connection, promoted_scales(connection))
    before = np.clip(
        rescaled(promotion.weights, in_force, scales), configuration.low_nanos, configuration.high_nanos
    )
    after = before.copy()
    for name, value in weights.items():
        after[POSITION[name]] = to_nanos(value)
    stored = insert_proposal(
        connection,
        Proposal("full", before, after, scales, 0, tuple(gates), Diagnostics(tenants=0)),
        configuration,
        reason=f"{actor} offers it",
        promotion_version=promotion.version,
        from_scales=in_force.version,
        measured_from=f"what {actor} offers",
        also={"evidence": dict(evidence), "half_life_seconds": scales.half_life_seconds},
    )
    body = {
        "proposal_id": stored.proposal_id,
        "registry_version": REGISTRY_VERSION,
        "weights": dict(weights),
        "nano_units": {name: int(to_nanos(value)) for name, value in weights.items()},
        "configuration": configuration.digest,
        "evidence": dict(evidence),
    }
    return audit.record(connection, audit.SYSTEM, actor, ACTION, body)
