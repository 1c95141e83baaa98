"""Where the tenants' logs are, and how far each consumer has followed them.

A tenant's versions have no gap and are given under the lock of its state, in the order of commits. So one
mark (version, hash) for each tenant says exactly what a consumer has seen: what lands in a transaction that
began early and commits late is beyond its tenant's mark, whatever landed for others meanwhile.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from somabrain_dagster.store.database import Connection

FEEDBACK_DAILY = "feedback_daily"
ADAPTATION_STATE = "adaptation_state"
PERFORMANCE_TRENDS = "performance_trends"
CONSUMERS = (FEEDBACK_DAILY, ADAPTATION_STATE, PERFORMANCE_TRENDS)
"""Each has a mark for every tenant that it has followed."""


@dataclass(frozen=True)
class Head:
    """The end of a tenant's log.

    Attributes:
        version, hash: of the last change of weights.
        feedback_seq: of the last feedback event, 0 before the first.
        updated_at: when the last change landed.
    """

    tenant_id: str
    version: int
    hash: bytes
    feedback_seq: int
    updated_at: datetime


def read_heads(connection: Connection) -> list[Head]:
    """The end of every tenant's log, by tenant."""
    rows = connection.execute(
        "SELECT tenant_id, version, hash, feedback_seq, updated_at FROM adaptation_states"
    )
    return sorted((Head(*row) for row in rows), key=lambda head: head.tenant_id)


def position(heads: Sequence[Head]) -> str:
    """Where all logs are, as one word: how many changes they hold, and a digest of where each one ends.

    The digest tells apart what the number cannot: a log that was rewound and went on.

    Args:
        heads: by tenant.

    Returns:
        `<changes>-<digest>`: Σ(version + 1), and the first 16 hexadecimal digits of the SHA-256 over each
        tenant's name (preceded by its length), version and hash.
    """
    digest = hashlib.sha256()
    for head in heads:
        name = head.tenant_id.encode()
        digest.update(struct.pack(f">i{len(name)}sq", len(name), name, head.version) + head.hash)
    return f"{sum(head.version + 1 for head in heads)}-{digest.hexdigest()[:16]}"


# A mark whose hash is not the log's at its version tells of a log that was rewound: it counts as absent.
BEHIND = """
    behind AS (
        SELECT
            h.*,
            CASE WHEN c.hash = m.hash THEN m.version ELSE -1 END AS seen_version,
            CASE WHEN c.hash = m.hash THEN m.feedback_seq ELSE 0 END AS seen_seq,
            m.hash IS NOT NULL AND c.hash IS DISTINCT FROM m.hash AS rewound
        FROM unnest(%(tenants)s::text[], %(versions)s::bigint[], %(hashes)s::bytea[], %(seqs)s::bigint[])
            AS h (tenant_id, version, hash, feedback_seq)
        LEFT JOIN log_marks m ON m.tenant_id = h.tenant_id AND m.consumer = %(consumer)s
        LEFT JOIN weight_changes c ON c.tenant_id = m.tenant_id AND c.version = m.version
        WHERE (h.version, h.hash) IS DISTINCT FROM (m.version, m.hash)
    )
"""
"""A common table expression over `followed`: the heads that a consumer's marks are not at, what it has seen
of each of these tenants, and whether the log was rewound."""


def followed(consumer: str, heads: Sequence[Head]) -> dict[str, Any]:
    """The parameters of `BEHIND`."""
    return {
        "consumer": consumer,
        "tenants": [head.tenant_id for head in heads],
        "versions": [head.version for head in heads],
        "hashes": [head.hash for head in heads],
        "seqs": [head.feedback_seq for head in heads],
    }


@dataclass(frozen=True)
class Lag:
    """What a consumer has not followed.

    Attributes:
        tenants: those whose mark is not at the head of their log.
        rewound: those of them whose log is not the one that the mark was set on.
        events: feedback events beyond the marks.
        waiting_since: when the oldest change beyond the marks landed; None where nothing waits.
    """

    tenants: list[str]
    rewound: list[str]
    events: int
    waiting_since: datetime | None


def read_lag(connection: Connection, consumer: str, heads: Sequence[Head]) -> Lag:
    """Compare a consumer's marks with the heads."""
    rows = connection.execute(
        f"""
        WITH {BEHIND}
        SELECT b.tenant_id, b.rewound, greatest(b.feedback_seq - b.seen_seq, 0), c.created_at
        FROM behind b
        LEFT JOIN weight_changes c ON c.tenant_id = b.tenant_id AND c.version = b.seen_version + 1
        ORDER BY b.tenant_id
        """,  # noqa: S608 — of constants
        followed(consumer, heads),
    ).fetchall()
    return Lag(
        tenants=[tenant_id for tenant_id, *_ in rows],
        rewound=[tenant_id for tenant_id, rewound, *_ in rows if rewound],
        events=sum(unseen for *_, unseen, _ in rows),
        waiting_since=min((landed for *_, landed in rows if landed is not None), default=None),
    )


def advance_marks(connection: Connection, consumer: str, heads: Sequence[Head]) -> None:
    """Set a consumer's marks to these heads; in the transaction of its work, if that is in Postgres too.

    Args:
        connection: an operator's transaction.
        consumer: whose marks.
        heads: as they were where the consumer read.
    """
    connection.execute(
        f"""
        WITH {BEHIND}
        INSERT INTO log_marks (tenant_id, consumer, version, hash, feedback_seq)
        SELECT tenant_id, %(consumer)s, version, hash, feedback_seq FROM behind
        ON CONFLICT (tenant_id, consumer) DO UPDATE
        SET (version, hash, feedback_seq, marked_at)
            = (EXCLUDED.version, EXCLUDED.hash, EXCLUDED.feedback_seq, now())
        """,  # noqa: S608 — of constants
        followed(consumer, heads),
    )
