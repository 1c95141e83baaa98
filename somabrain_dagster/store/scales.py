"""The scales that features are divided by: a small reference table in which a version never changes."""

import numpy as np

from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.store.database import Connection


class UnknownScales(LookupError):
    """A version of the scales that is not there, or is of another registry of features."""


def read_scales(connection: Connection, version: int) -> Scales:
    """One version of the scales.

    Raises:
        UnknownScales: there is no such version for the present registry of features.
    """
    row = connection.execute(
        """
        SELECT scales, half_life_seconds FROM feature_scales
        WHERE version = %s AND registry_version = %s
        """,
        (version, REGISTRY_VERSION),
    ).fetchone()
    if row is None:
        raise UnknownScales(
            f"there are no scales of version {version} for the features of registry {REGISTRY_VERSION}: "
            "measure them and add them with add_scales"
        )
    return Scales(version, tuple(row[0]), row[1])


def add_scales(connection: Connection, scales: Scales, measured_from: str) -> None:
    """Add a version.

    Args:
        connection: an operator's transaction.
        scales: under a version that is not there yet.
        measured_from: on what, and how often, for a person.

    Raises:
        ValueError: a scale is not a number above 0.
        psycopg.errors.UniqueViolation: the version is there already.
    """
    values = np.array(scales.values)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"scales must be numbers above 0, not {scales.values}")
    connection.execute(
        """
        INSERT INTO feature_scales (version, registry_version, scales, half_life_seconds, measured_from)
        VALUES (%s, %s, %s, %s, %s)
        """,
        (scales.version, REGISTRY_VERSION, list(scales.values), scales.half_life_seconds, measured_from),
    )
