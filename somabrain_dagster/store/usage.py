"""Tokens that sessions used."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.weight_log import as_recordset


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a session used.

    Attributes:
        tokens: how many, ≥ 0.
        tokenizer: whose count it is.
        occurred_at: when they were used, with a time zone.
    """

    tenant_id: str
    session_id: str
    tokens: int
    tokenizer: str
    occurred_at: datetime


_ROWS = """
    FROM json_to_recordset(%s::json) AS used (
        tenant_id text, session_id text, tokens bigint, tokenizer text, occurred_at timestamptz
    )
"""

_RECORD = f"""
    INSERT INTO token_usage (tenant_id, session_id, tokens, tokenizer, occurred_at)
    SELECT tenant_id, session_id, tokens, tokenizer, occurred_at {_ROWS}
"""

_RECORD_ONCE = f"""
    {_RECORD}
    WHERE NOT EXISTS (
        SELECT FROM token_usage known
        WHERE known.tenant_id = used.tenant_id AND known.session_id = used.session_id
            AND known.tokenizer = used.tokenizer AND known.recall_id IS NULL
    )
"""


def record_tokens(connection: Connection, usages: Sequence[TokenUsage]) -> int:
    """Add what was used; call it once for each use.

    Args:
        connection: a transaction for these tenants. `ensure_partitions` must have run this week.
        usages: what was used, in any order.

    Returns:
        How many rows were added.
    """
    return _insert(connection, _RECORD, usages)


def record_tokens_once(connection: Connection, usages: Sequence[TokenUsage]) -> int:
    """Add what was used by sessions that the tokenizer has not counted yet; safe to call again.

    What contexts took does not count as such. A session's rows must come together. Two transactions that
    count the same tenant's sessions wait for one another.

    Args:
        connection: a transaction for these tenants. `ensure_partitions` must have run this week.
        usages: what was used, in any order.

    Returns:
        How many rows were added.
    """
    # The table is partitioned by time, so no unique key can say "once"; the lock makes the look-up hold.
    connection.execute(
        """
        SELECT pg_advisory_xact_lock(hashtext('somabrain_token_usage'), hashtext(tenant_id))
        FROM unnest(%s::text[]) AS tenant_id
        """,
        (sorted({usage.tenant_id for usage in usages}),),
    )
    return _insert(connection, _RECORD_ONCE, usages)


def record_context(connection: Connection, usage: TokenUsage, recall_id: int) -> bool:
    """Add the tokens of the context that a recall led to, unless that recall is counted; safe to call again.

    Args:
        connection: a transaction for the tenant. `ensure_partitions` must have run this week.
        usage: what the context took.
        recall_id: of the recall.

    Returns:
        Whether it was added.
    """
    # As above: two that count the same recall wait for one another.
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('somabrain_context'), hashint8(%s))", (recall_id,)
    )
    added = connection.execute(
        """
        INSERT INTO token_usage (tenant_id, session_id, tokens, tokenizer, occurred_at, recall_id)
        SELECT %(tenant_id)s, %(session_id)s, %(tokens)s, %(tokenizer)s, %(occurred_at)s, %(recall_id)s
        WHERE NOT EXISTS (
            SELECT FROM token_usage
            WHERE tenant_id = %(tenant_id)s AND session_id = %(session_id)s AND recall_id = %(recall_id)s
        )
        """,
        {**msgspec.structs.asdict(usage), "recall_id": recall_id},
    )
    return added.rowcount == 1


def _insert(connection: Connection, statement: str, usages: Sequence[TokenUsage]) -> int:
    if not usages:
        return 0
    rows = [msgspec.structs.asdict(usage) for usage in usages]
    return connection.execute(statement, (as_recordset(rows),)).rowcount


def ensure_partitions(connection: Connection) -> int:
    """Make the partitions that this and the next eight weeks need; any role may ask.

    Returns:
        How many were made.
    """
    (made,) = connection.execute("SELECT ensure_partitions()").fetchone() or (0,)
    return int(made)
