"""The audit trail: who changed what besides weights, each tenant's events a hash chain of their own."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.weight_log import START_HASH

SYSTEM = "_system"
"""Whose chain holds what concerns no tenant, or all of them."""

CHANNEL = "somabrain_audit"
"""The channel on which the tenant of every new event is sent."""


def record(connection: Connection, tenant_id: str, actor: str, action: str, body: dict[str, Any]) -> int:
    """Append an event to a tenant's chain; it is there when the transaction commits.

    Until then, others who append to the same chain wait, so versions have no gap.

    Args:
        connection: a transaction that may write for the tenant, or an operator's.
        tenant_id: the tenant, or `SYSTEM`.
        actor: who did it.
        action: what was done, e.g. `restore`.
        body: the particulars, as JSON.

    Returns:
        The event's version: 0, 1, 2, … in each chain.

    Raises:
        ValueError, TypeError: the body is not JSON.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"audit {tenant_id}",))
    # After the lock, in a statement of its own: only so does it see what the one before it committed.
    (version, previous, now) = (
        connection.execute(
            """
        SELECT coalesce(version + 1, 0), coalesce(hash, %s), clock_timestamp()
        FROM (VALUES (%s)) AS chain (tenant_id) LEFT JOIN audit_events USING (tenant_id)
        ORDER BY version DESC LIMIT 1
        """,
            (START_HASH, tenant_id),
        ).fetchone()
        or ()
    )
    hashed = _hash(previous, tenant_id, version, now, actor, action, body)
    connection.execute(
        """
        INSERT INTO audit_events (tenant_id, version, created_at, actor, action, body, hash)
        VALUES (%s, %s, %s, %s, %s, %s::jsonb, %s)
        """,
        (tenant_id, version, now, actor, action, canonical_json(body).decode(), hashed),
    )
    return int(version)


@dataclass(frozen=True)
class AuditEvent:
    """An event of a chain, as it is stored."""

    tenant_id: str
    version: int
    created_at: datetime
    actor: str
    action: str
    body: dict[str, Any]
    hash: bytes

    def rehashed(self, previous: bytes) -> bytes:
        """What its columns give after the hash of the event before it."""
        return _hash(
            previous, self.tenant_id, self.version, self.created_at, self.actor, self.action, self.body
        )


def read_events(connection: Connection) -> Iterator[AuditEvent]:
    """Every event, chain by chain, each in its order; as a stream."""
    with connection.cursor(name="audit_events") as cursor:
        cursor.execute(
            """
            SELECT tenant_id, version, created_at, actor, action, body, hash
            FROM audit_events ORDER BY tenant_id, version
            """
        )
        for row in cursor:
            yield AuditEvent(*row)


def newest_events(
    connection: Connection, most: int, tenant_id: str | None = None, action: str | None = None
) -> list[AuditEvent]:
    """The events that were recorded last, the newest first.

    Args:
        connection: a transaction that sees them.
        most: how many.
        tenant_id: of this chain only.
        action: of this kind only.
    """
    rows = connection.execute(
        """
        SELECT tenant_id, version, created_at, actor, action, body, hash FROM audit_events
        WHERE tenant_id = coalesce(%(tenant)s, tenant_id) AND action = coalesce(%(action)s, action)
        ORDER BY created_at DESC, tenant_id, version DESC LIMIT %(most)s
        """,
        {"tenant": tenant_id, "action": action, "most": most},
    )
    return [AuditEvent(*row) for row in rows]


def verify_chain(connection: Connection, tenant_id: str) -> int | None:
    """The first version that is missing or is not what was recorded; None where the chain is intact.

    Whoever owns the table can cut off the end of a chain, or write all of it anew: against that helps only a
    copy of the last hash in another's hands.
    """
    previous = START_HASH
    rows = connection.execute(
        """
        SELECT tenant_id, version, created_at, actor, action, body, hash
        FROM audit_events WHERE tenant_id = %s ORDER BY version
        """,
        (tenant_id,),
    )
    for due, event in enumerate(AuditEvent(*row) for row in rows):
        if event.version != due or event.hash != event.rehashed(previous):
            return due
        previous = event.hash
    return None


def broken_chains(connection: Connection) -> Iterator[str]:
    """The tenants whose chain is broken, each with where, in words."""
    tenants = connection.execute("SELECT DISTINCT tenant_id FROM audit_events ORDER BY tenant_id").fetchall()
    for (tenant_id,) in tenants:
        if (version := verify_chain(connection, tenant_id)) is not None:
            yield f"the audit trail of {tenant_id} is broken at version {version}"


def _hash(
    previous: bytes,
    tenant_id: str,
    version: int,
    created_at: datetime,
    actor: str,
    action: str,
    body: dict[str, Any],
) -> bytes:
    columns = {
        "tenant_id": tenant_id,
        "version": version,
        "created_at": created_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": actor,
        "action": action,
        "body": body,
    }
    return hashlib.sha256(previous + canonical_json(columns)).digest()
