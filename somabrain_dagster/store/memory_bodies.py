"""Single memories: read, erased, and all of a tenant's as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from somabrain_dagster.store import audit
from somabrain_dagster.store.database import Connection


@dataclass(frozen=True)
class StoredMemory:
    """A memory as it is kept, with the links that lead from it.

    Attributes:
        links: each as target_id, kind, weight and occurred_at.
    """

    memory_id: int
    text: str
    speaker: str | None
    occurred_at: datetime
    created_at: datetime
    namespace: str
    conversation_id: str | None
    payload: dict[str, Any]
    links: list[dict[str, Any]]


_SELECT = """
    SELECT m.memory_id, m.text, m.speaker, m.occurred_at, m.created_at, m.namespace, m.conversation_id,
        m.payload, coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'target_id', l.target_id, 'kind', l.kind, 'weight', l.weight, 'occurred_at', l.occurred_at
            ) ORDER BY l.target_id, l.kind)
            FROM memory_links l WHERE l.tenant_id = m.tenant_id AND l.source_id = m.memory_id
        ), '[]')
    FROM memories m WHERE m.tenant_id = %(tenant)s
"""


def read_memory(connection: Connection, tenant_id: str, memory_id: int) -> StoredMemory | None:
    """One memory; None where the tenant has no such memory."""
    row = connection.execute(
        _SELECT + " AND m.memory_id = %(memory)s", {"tenant": tenant_id, "memory": memory_id}
    ).fetchone()
    return None if row is None else StoredMemory(*row)


def erase_memory(connection: Connection, tenant_id: str, memory_id: int, actor: str) -> bool:
    """Erase a memory and its links, and note it in the audit trail; whether it was there.

    Args:
        connection: a transaction for the tenant.
        tenant_id: whose memory it is.
        memory_id: its id.
        actor: who asks.
    """
    erased = connection.execute(
        "DELETE FROM memories WHERE tenant_id = %s AND memory_id = %s", (tenant_id, memory_id)
    ).rowcount
    if erased:
        audit.record(connection, tenant_id, actor, "memory.erase", {"memory_id": memory_id})
    return erased > 0


def all_memories(connection: Connection, tenant_id: str) -> Iterator[StoredMemory]:
    """All memories of a tenant by id, as many at a time as fit in little room."""
    with connection.cursor(name="memories") as cursor:
        cursor.itersize = 500
        cursor.execute(_SELECT + " ORDER BY m.memory_id", {"tenant": tenant_id})
        for row in cursor:
            yield StoredMemory(*row)
