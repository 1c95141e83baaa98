"""Tenants as people read them: who there is, and how far each has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from somabrain_dagster.store.database import Connection


@dataclass(frozen=True)
class Tenant:
    """A tenant.

    Attributes:
        learning_loop_enabled: whether corpora may be made of it.
        version: of its last change of weights.
        weights: nano-units.
        feedback_seq: how many feedback events it has had.
        updated_at: when its state last changed.
    """

    tenant_id: str
    created_at: datetime
    learning_loop_enabled: bool
    version: int
    weights: Sequence[int]
    feedback_seq: int
    updated_at: datetime


def read_tenants(
    connection: Connection, prefix: str = "", after: str | None = None, most: int = 100
) -> list[Tenant]:
    """The tenants that the transaction sees and that were not deleted, by name.

    Args:
        connection: an operator's transaction, or a tenant's.
        prefix: with which their names begin.
        after: only names behind this one.
        most: at most so many.
    """
    rows = connection.execute(
        """
        SELECT
            t.tenant_id, t.created_at, t.learning_loop_enabled, s.version, s.weights, s.feedback_seq,
            s.updated_at
        FROM tenants t JOIN adaptation_states s USING (tenant_id)
        WHERE t.deleted_at IS NULL AND starts_with(t.tenant_id, %(prefix)s)
            AND (%(after)s::text IS NULL OR t.tenant_id > %(after)s)
        ORDER BY t.tenant_id LIMIT %(most)s
        """,
        {"prefix": prefix, "after": after, "most": most},
    )
    return [Tenant(*row) for row in rows]
