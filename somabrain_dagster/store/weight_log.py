"""The log of weight changes: how a row is hashed to the one before it, and how rows are written."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.store.database import Connection

START_HASH = bytes(32)
"""What the first change of a tenant is chained to."""

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NULL = struct.pack(">i", -1)
_BIGINT_OID = 20


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

    def hash(self, previous: bytes) -> bytes:
        """SHA-256 over the previous hash and every column, each framed by its length as Postgres sends it.

        The database computes the same with its function `weight_change_hash`.
        """
        return hashlib.sha256(
            b"".join(
                (
                    previous,
                    _text(self.tenant_id),
                    _bigint(self.version),
                    _bigint((self.created_at - _POSTGRES_EPOCH) // timedelta(microseconds=1)),
                    _text(self.cause),
                    _bigints(self.shift),
                    _bigints(self.low),
                    _bigints(self.high),
                    _bigints(self.after),
                    struct.pack(">ih", 2, self.registry_version),
                    _bytes(self.configuration),
                    _bigint(self.event_seq),
                    _bytes(self.event_digest),
                    _bigint(self.restored_version),
                    *self._later_frames(),
                )
            )
        ).digest()

    def _later_frames(self) -> tuple[bytes, ...]:
        """Of columns that were added later: none where they are null, so that a row hashes as it always did.

        Frames are read off one by one: one more makes a row that no row without it reads like.
        """
        if self.promotion is not None:
            return _bigint(self.recall_id), _bigint(self.promotion)
        return () if self.recall_id is None else (_bigint(self.recall_id),)


def _bytes(value: bytes | None) -> bytes:
    return _NULL if value is None else struct.pack(">i", len(value)) + value


def _text(value: str) -> bytes:
    return _bytes(value.encode())


def _bigint(value: int | None) -> bytes:
    return _NULL if value is None else struct.pack(">iq", 8, value)


def _bigints(values: list[int] | None) -> bytes:
    """A bigint[] as Postgres sends it: dimensions, has-nulls, element type, length, lower bound, elements."""
    if values is None:
        return _NULL
    elements = b"".join([struct.pack(">iq", 8, value) for value in values])
    return struct.pack(">iiiiii", 20 + len(elements), 1, 0, _BIGINT_OID, len(values), 1) + elements


def chained(changes: Iterable[WeightChange], heads: dict[str, bytes]) -> list[bytes]:
    """The hash of each change, in the order given, advancing each tenant's head in `heads` in place."""
    hashes = []
    for change in changes:
        hashed = heads[change.tenant_id] = change.hash(heads[change.tenant_id])
        hashes.append(hashed)
    return hashes


_encode = msgspec.json.Encoder().encode

_INSERT_CHANGES = """
    INSERT INTO weight_changes (
        tenant_id, version, created_at, cause, shift, low, high, after,
        registry_version, configuration, event_seq, event_digest, restored_version, recall_id, promotion,
        hash
    )
    SELECT
        tenant_id, version, created_at, cause, shift, low, high, after,
        registry_version, configuration, event_seq, event_digest, restored_version, recall_id, promotion,
        hash
    FROM json_to_recordset(%s::json) AS change (
        tenant_id text, version bigint, created_at timestamptz, cause text, shift bigint[], low bigint[],
        high bigint[], after bigint[], registry_version smallint, configuration bytea, event_seq bigint,
        event_digest bytea, restored_version bigint, recall_id bigint, promotion bigint, hash bytea
    )
"""


def insert_changes(connection: Connection, changes: Sequence[WeightChange], hashes: Sequence[bytes]) -> None:
    """Append rows to the log, all in one statement.

    A JSON record set is the quickest way in that row-level security allows: COPY is refused under it, and a
    role exempt from it could write any tenant's history. `benchmarks/landing_writes.py` measures the choices.
    """
    rows = [
        {**msgspec.structs.asdict(change), "hash": hashed}
        for change, hashed in zip(changes, hashes, strict=True)
    ]
    connection.execute(_INSERT_CHANGES, (as_recordset(rows),))


def as_recordset(rows: list[dict[str, Any]]) -> str:
    """Rows as the JSON text that `json_to_recordset` reads; bytes become Postgres' hexadecimal form."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, bytes):
                row[name] = "\\x" + value.hex()
    return _encode(rows).decode()
