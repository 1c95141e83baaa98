"""Weights that somebody offers to everybody: kept in the audit trail until they are tried and promoted."""

from collections.abc import Mapping
from typing import Any

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.weights import NAMES, to_nanos
from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Connection

ACTION = "weights_proposed"


class NotWithinBounds(ValueError):
    """Weights that are unknown or outside their bounds; the message names the weight."""


def propose(
    connection: Connection,
    weights: Mapping[str, float],
    configuration: LearningConfiguration,
    actor: str,
    evidence: Mapping[str, Any],
) -> int:
    """Record a proposal in the chain of what concerns all tenants.

    Args:
        connection: an operator's transaction.
        weights: in units, by name; the others stay as they are.
        configuration: gives the bounds.
        actor: who offers them.
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
    body = {
        "registry_version": REGISTRY_VERSION,
        "weights": dict(weights),
        "nano_units": {name: int(to_nanos(value)) for name, value in weights.items()},
        "configuration": configuration.digest,
        "evidence": dict(evidence),
    }
    return audit.record(connection, audit.SYSTEM, actor, ACTION, body)
