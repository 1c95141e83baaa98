"""A tenant's history as people read it, newest first: its changes of weights, and what was said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from somabrain_dagster.store.database import Connection


@dataclass(frozen=True)
class Change:
    """A change of weights.

    Attributes:
        before, after: nano-units; before is None for version 0.
        event_seq: the feedback event that it answers.
        restored_version, recall_id, promotion, scale_version: what its cause refers to.
    """

    version: int
    created_at: datetime
    cause: str
    before: Sequence[int] | None
    after: Sequence[int]
    event_seq: int | None
    restored_version: int | None
    recall_id: int | None
    promotion: int | None
    scale_version: int | None


def read_history(
    connection: Connection, tenant_id: str, below: int | None = None, most: int = 100
) -> list[Change]:
    """The last changes of a tenant's weights, the newest first.

    Args:
        connection: a transaction that may see the tenant.
        tenant_id: the tenant.
        below: only versions below this one.
        most: at most so many.
    """
    rows = connection.execute(
        """
        SELECT c.version, c.created_at, c.cause, b.after, c.after, c.event_seq, c.restored_version,
            c.recall_id, c.promotion, c.scale_version
        FROM weight_changes c
        LEFT JOIN weight_changes b ON b.tenant_id = c.tenant_id AND b.version = c.version - 1
        WHERE c.tenant_id = %(tenant)s AND (%(below)s::bigint IS NULL OR c.version < %(below)s)
        ORDER BY c.version DESC LIMIT %(most)s
        """,
        {"tenant": tenant_id, "below": below, "most": most},
    )
    return [Change(*row) for row in rows]


@dataclass(frozen=True)
class Said:
    """A feedback event, as it was said.

    Attributes:
        seq: its number in the tenant's own sequence.
        arm: that its recall or session saw of what was on trial.
    """

    seq: int
    created_at: datetime
    occurred_at: datetime
    session_id: str
    source: str
    utility: float
    reward: float | None
    recall_id: int | None
    label: str | None
    arm: str | None


def read_feedback(
    connection: Connection, tenant_id: str, below: int | None = None, most: int = 100
) -> list[Said]:
    """The last feedback events of a tenant, the newest first; those that were pruned are gone.

    Args:
        connection: a transaction that may see the tenant.
        tenant_id: the tenant.
        below: only events whose number is below this one.
        most: at most so many.
    """
    rows = connection.execute(
        """
        SELECT seq, created_at, occurred_at, session_id, source, utility, reward, recall_id, label, arm
        FROM feedback_events
        WHERE tenant_id = %(tenant)s AND (%(below)s::bigint IS NULL OR seq < %(below)s)
        ORDER BY seq DESC LIMIT %(most)s
        """,
        {"tenant": tenant_id, "below": below, "most": most},
    )
    return [Said(*row) for row in rows]
