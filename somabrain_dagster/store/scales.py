"""The scales that features are divided by: a small reference table in which a version never changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from somabrain_dagster.learning.features import FEATURES, REGISTRY_VERSION
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.store.database import Connection

SHIPPED_SCALES = 2
"""The version that new tenants have, and in which the configured start is meant."""

FIRST_SCALES = 1
"""The version of tenants whose log names none: they are older than a log that could."""


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
            "`somabrain scales list` shows those that there are"
        )
    return Scales(version, tuple(row[0]), row[1])


@dataclass(frozen=True)
class KnownScales:
    """A version of the scales, as a person sees it.

    Attributes:
        measured_from: on what they were measured, and how often.
        tenants: how many use them.
    """

    scales: Scales
    measured_from: str
    tenants: int


def list_scales(connection: Connection) -> list[KnownScales]:
    """Every version of the scales of the present registry, the oldest first.

    Args:
        connection: an operator's transaction, or one for the tenants that are to be counted.
    """
    rows = connection.execute(
        """
        SELECT f.version, f.scales, f.half_life_seconds, f.measured_from, count(t.tenant_id)
        FROM feature_scales f LEFT JOIN tenants t ON t.scale_version = f.version
        WHERE f.registry_version = %s GROUP BY f.version ORDER BY f.version
        """,
        (REGISTRY_VERSION,),
    )
    return [
        KnownScales(Scales(version, tuple(scales), half_life), measured_from, tenants)
        for version, scales, half_life, measured_from, tenants in rows
    ]


def read_scale_versions(connection: Connection, tenants: Sequence[str]) -> list[int]:
    """The version of the scales that each of these tenants' recalls use, in their order."""
    rows = connection.execute(
        """
        SELECT t.scale_version FROM unnest(%s::text[]) WITH ORDINALITY AS asked (tenant_id, position)
        JOIN tenants t USING (tenant_id) ORDER BY asked.position
        """,
        (list(tenants),),
    )
    return [version for (version,) in rows]


def add_next_scales(connection: Connection, scales: Scales, measured_from: str) -> Scales:
    """Add scales under the next version, and return them with it.

    Args:
        connection: an operator's transaction.
        scales: their version is not read.
        measured_from: on what, and how often, for a person.

    Raises:
        ValueError: a scale is not a number above 0.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('somabrain_scales'))")
    (newest,) = connection.execute("SELECT max(version) FROM feature_scales").fetchone() or (0,)
    added = replace(scales, version=newest + 1)
    add_scales(connection, added, measured_from)
    return added


def add_scales(connection: Connection, scales: Scales, measured_from: str) -> None:
    """Add a version.

    Args:
        connection: an operator's transaction.
        scales: under a version that is not there yet.
        measured_from: on what, and how often, for a person.

    Raises:
        ValueError: they are not one number above 0 for each feature.
        psycopg.errors.UniqueViolation: the version is there already.
    """
    values = np.array(scales.values)
    if len(values) != len(FEATURES) or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"scales must be {len(FEATURES)} numbers above 0, not {scales.values}")
    connection.execute(
        """
        INSERT INTO feature_scales (version, registry_version, scales, half_life_seconds, measured_from)
        VALUES (%s, %s, %s, %s, %s)
        """,
        (scales.version, REGISTRY_VERSION, list(scales.values), scales.half_life_seconds, measured_from),
    )
