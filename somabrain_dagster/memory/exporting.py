"""A tenant's memories as a stream of JSON lines: what `GET /memory/export` answers and the CLI writes."""

from collections.abc import Iterator
from dataclasses import asdict

import msgspec

from somabrain_dagster.store.adaptation import require_tenants
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.memory_bodies import all_memories

_encode = msgspec.json.Encoder().encode


def exported_lines(connection: Connection, tenant_id: str) -> Iterator[bytes]:
    """Each memory of a tenant with the links that lead from it, a line each, by id.

    Args:
        connection: a transaction that sees the tenant, open for as long as lines are taken.
        tenant_id: whose memories.

    Raises:
        UnknownTenant: there is no such tenant.
    """
    require_tenants(connection, [tenant_id])
    return (_encode(asdict(memory)) + b"\n" for memory in all_memories(connection, tenant_id))
