"""The audit trail: who changed what besides weights, each tenant's events a hash chain of their own."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.weight_log import START_HASH

SYSTEM = "_system"
"""Whose chain holds what concerns no tenant, or all of them."""


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


def verify_chain(connection: Connection, tenant_id: str) -> int | None:
    """The first version that is missing or is not what was recorded; None where the chain is intact.

    Whoever owns the table can cut off the end of a chain, or write all of it anew: against that helps only a
    copy of the last hash in another's hands.
    """
    previous = START_HASH
    rows = connection.execute(
        """
        SELECT version, created_at, actor, action, body, hash
        FROM audit_events WHERE tenant_id = %s ORDER BY version
        """,
        (tenant_id,),
    )
    for due, (version, created_at, actor, action, body, hashed) in enumerate(rows):
        if version != due or hashed != _hash(previous, tenant_id, version, created_at, actor, action, body):
            return due
        previous = hashed
    return None


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
