"""How requests to the service went, by tenant and minute, as its processes count them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.guardrails import (
    LATENCY_EDGES,
    GuardrailRule,
    RequestCounts,
    gates,
    latency_bin,
)
from somabrain_dagster.store.database import Connection


@dataclass(slots=True)
class Tally:
    """Counts that grow."""

    requests: int = 0
    errors: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES) + 1))

    def count(self, seconds: float, *, failed: bool) -> None:
        """Count a request."""
        self.requests += 1
        self.errors += failed
        self.latencies[latency_bin(seconds)] += 1

    def add(self, other: "Tally") -> None:
        """Count what another counted."""
        self.requests += other.requests
        self.errors += other.errors
        self.latencies = [own + more for own, more in zip(self.latencies, other.latencies, strict=True)]


def add_requests(connection: Connection, counted: Mapping[tuple[str, datetime], Tally]) -> None:
    """Add counts to what is stored; several processes may count the same tenant and minute.

    Args:
        connection: an operator's transaction.
        counted: by tenant and minute; those of tenants that do not exist are left out.
    """
    rows = [
        {
            "tenant_id": tenant_id,
            "minute": minute.isoformat(),
            "requests": tally.requests,
            "errors": tally.errors,
            "latencies": tally.latencies,
        }
        for (tenant_id, minute), tally in counted.items()
    ]
    # In the order of the key, so that two processes never wait for each other.
    connection.execute(
        """
        INSERT INTO request_stats (tenant_id, minute, requests, errors, latencies)
        SELECT tenant_id, minute, requests, errors, latencies
        FROM json_to_recordset(%s::json) AS counted (
            tenant_id text, minute timestamptz, requests bigint, errors bigint, latencies bigint[]
        )
        JOIN tenants USING (tenant_id)
        ORDER BY tenant_id, minute
        ON CONFLICT (tenant_id, minute) DO UPDATE SET
            requests = request_stats.requests + excluded.requests,
            errors = request_stats.errors + excluded.errors,
            latencies = (
                SELECT array_agg(own + more ORDER BY place)
                FROM unnest(request_stats.latencies, excluded.latencies)
                    WITH ORDINALITY AS bins (own, more, place)
            )
        """,
        (json.dumps(rows),),
    )


def read_requests(connection: Connection, tenants: Collection[str], since: datetime) -> RequestCounts:
    """How the requests of some tenants went, all together.

    Args:
        connection: a transaction that sees the tenants.
        tenants: their names.
        since: only whole minutes that began at this time or later.
    """
    rows = connection.execute(
        """
        SELECT sum(count)::bigint
        FROM request_stats, unnest(ARRAY[requests, errors] || latencies) WITH ORDINALITY AS c (count, place)
        WHERE tenant_id = ANY (%s) AND minute >= %s
        GROUP BY place ORDER BY place
        """,
        (sorted(tenants), since),
    )
    requests, errors, *latencies = [count for (count,) in rows] or [0, 0]
    return RequestCounts(requests, errors, tuple(latencies))


def guardrails(
    connection: Connection,
    canary: Collection[str],
    control: Collection[str],
    since: datetime,
    rule: GuardrailRule,
) -> dict[str, Gate]:
    """The hard guardrails of a canary, by name: how requests went for its tenants and for the others.

    Args:
        connection: a transaction that sees the tenants.
        canary: the tenants that see new weights.
        control: those that they are compared with.
        since: when they began to; the minute in which that was is left out.
        rule: how much worse the canary's may be.
    """
    return gates(read_requests(connection, canary, since), read_requests(connection, control, since), rule)
