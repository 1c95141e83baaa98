"""The log of weight changes: how a row is hashed to the one before it, and how rows are written."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.store import frames
from somabrain_dagster.store.arrays import (
    bigints,
    bigints_or_null,
    byteas,
    names,
    timestamps,
)
from somabrain_dagster.store.database import Connection

START_HASH = bytes(32)
"""What the first change of a tenant is chained to."""


class WeightChange(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the log, without its hash.

    Attributes:
        cause: what made the change: start, feedback, configuration, auto_rollback, …
        shift, low, high, after: nano-units, one for each weight of the registry; low and high are None where
            they are the bounds of the configuration.
        configuration: digest of the configuration in force.
        event_seq, event_digest: the feedback event that it answers.
        restored_version: the version whose weights a rollback gave back.
        recall_id: the recall after which τ was steered.
        promotion: the version of the promotion that it carries out.
        scale_version: the scales in which the weights are meant from this change on; None where they stay.
    """

    tenant_id: str
    version: int
    created_at: datetime
    cause: str
    shift: list[int]
    after: list[int]
    configuration: bytes
    low: list[int] | None = None
    high: list[int] | None = None
    registry_version: int = REGISTRY_VERSION
    event_seq: int | None = None
    event_digest: bytes | None = None
    restored_version: int | None = None
    recall_id: int | None = None
    promotion: int | None = None
    scale_version: int | None = None

    def hash(self, previous: bytes) -> bytes:
        """SHA-256 over the previous hash and every column, each framed by its length as Postgres sends it.

        The database computes the same with its function `weight_change_hash`.
        """
        return hashlib.sha256(
            b"".join(
                (
                    previous,
                    frames.name(self.tenant_id),
                    frames.bigint(self.version),
                    frames.timestamp(self.created_at),
                    frames.name(self.cause),
                    frames.bigints(self.shift),
                    frames.bigints(self.low),
                    frames.bigints(self.high),
                    frames.bigints(self.after),
                    frames.smallint(self.registry_version),
                    frames.binary(self.configuration),
                    frames.bigint(self.event_seq),
                    frames.binary(self.event_digest),
                    frames.bigint(self.restored_version),
                    *self._later_frames(),
                )
            )
        ).digest()

    def _later_frames(self) -> tuple[bytes, ...]:
        """Of columns that were added later: none where they are null, so that a row hashes as it always did.

        Frames are read off one by one: one more makes a row that no row without it reads like.
        """
        later = [self.recall_id, self.promotion, self.scale_version]
        while later and later[-1] is None:
            later.pop()
        return tuple(frames.bigint(value) for value in later)


def chained(changes: Sequence[WeightChange], heads: dict[str, bytes]) -> list[bytes]:
    """The hash of each change, in the order given, advancing each tenant's head in `heads` in place."""
    hashes = []
    for change in changes:
        hashed = heads[change.tenant_id] = change.hash(heads[change.tenant_id])
        hashes.append(hashed)
    return hashes


_encode = msgspec.json.Encoder().encode

_INSERT_CHANGES = """
    INSERT INTO weight_changes (
        tenant_id, version, created_at, cause, shift, low, high, after, registry_version, configuration,
        event_seq, event_digest, restored_version, recall_id, promotion, scale_version, hash
    )
    SELECT
        c.tenant_id, c.version, c.created_at, c.cause,
        (%(shift)s::bigint[])[k * (c.row - 1) + 1 : k * c.row],
        CASE WHEN c.bound > 0 THEN (%(low)s::bigint[])[k * (c.bound - 1) + 1 : k * c.bound] END,
        CASE WHEN c.bound > 0 THEN (%(high)s::bigint[])[k * (c.bound - 1) + 1 : k * c.bound] END,
        (%(after)s::bigint[])[k * (c.row - 1) + 1 : k * c.row],
        c.registry_version, c.configuration,
        c.event_seq, c.event_digest, c.restored_version, c.recall_id, c.promotion, c.scale_version, c.hash
    FROM (SELECT %(k)s::int AS k) AS weights, unnest(
        %(tenant_id)s::text[], %(version)s::bigint[], %(created_at)s::timestamptz[], %(cause)s::text[],
        %(bound)s::bigint[], %(registry_version)s::bigint[], %(configuration)s::bytea[],
        %(event_seq)s::bigint[], %(event_digest)s::bytea[], %(restored_version)s::bigint[],
        %(recall_id)s::bigint[], %(promotion)s::bigint[], %(scale_version)s::bigint[], %(hash)s::bytea[]
    ) WITH ORDINALITY AS c (
        tenant_id, version, created_at, cause, bound, registry_version, configuration,
        event_seq, event_digest, restored_version, recall_id, promotion, scale_version, hash, row
    )
"""


def insert_changes(connection: Connection, changes: Sequence[WeightChange], hashes: Sequence[bytes]) -> None:
    """Append rows to the log, all in one statement.

    Binary arrays are the quickest way in that row-level security allows: COPY is refused under it, and a role
    exempt from it could write any tenant's history.
    """
    bounded = [change for change in changes if change.low is not None and change.high is not None]
    places = iter(range(1, len(bounded) + 1))
    connection.execute(
        _INSERT_CHANGES,
        {
            "k": len(changes[0].shift) if changes else 1,
            "tenant_id": names([change.tenant_id for change in changes]),
            "version": bigints([change.version for change in changes]),
            "created_at": timestamps([change.created_at for change in changes]),
            "cause": names([change.cause for change in changes]),
            "shift": bigints([value for change in changes for value in change.shift]),
            "bound": bigints([0 if change.low is None else next(places) for change in changes]),
            "low": bigints([value for change in bounded for value in change.low or ()]),
            "high": bigints([value for change in bounded for value in change.high or ()]),
            "after": bigints([value for change in changes for value in change.after]),
            "registry_version": bigints([change.registry_version for change in changes]),
            "configuration": byteas([change.configuration for change in changes]),
            "event_seq": bigints_or_null([change.event_seq for change in changes]),
            "event_digest": byteas([change.event_digest for change in changes]),
            "restored_version": bigints_or_null([change.restored_version for change in changes]),
            "recall_id": bigints_or_null([change.recall_id for change in changes]),
            "promotion": bigints_or_null([change.promotion for change in changes]),
            "scale_version": bigints_or_null([change.scale_version for change in changes]),
            "hash": byteas(hashes),
        },
    )


def as_recordset(rows: list[dict[str, Any]]) -> str:
    """Rows as the JSON text that `json_to_recordset` reads; bytes become Postgres' hexadecimal form."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, bytes):
                row[name] = "\\x" + value.hex()
    return _encode(rows).decode()
