"""The trends of tenants' utility: what they are told from, and what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from somabrain_dagster.learning.trend_rule import TrendRule
from somabrain_dagster.learning.trends import (
    Series,
    Trend,
    coarsened,
    judge,
    ordered,
    shows_trends,
    trend,
)
from somabrain_dagster.store.arrays import bigints, floats, texts
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.positions import (
    BEHIND,
    PERFORMANCE_TRENDS,
    Head,
    advance_marks,
    followed,
    read_heads,
)

_MEASURES = ("tau", "p", "uncorrected_p", "autocorrelation", "slope", "low", "high", "effect")
"""Of a trend, as the table has them."""


@dataclass(frozen=True)
class TenantTrend:
    """The newest trend of a tenant.

    Attributes:
        tenant_id: whose.
        feedback_seq: of the tenant's last feedback event that it knew.
        trend: of its sessions' mean utility, per day.
        q: by Benjamini & Hochberg, among all tenants.
        direction: 1 or −1 where it is to be acted upon, rising or falling; else 0.
    """

    tenant_id: str
    feedback_seq: int
    trend: Trend
    q: float
    direction: int


@dataclass(frozen=True)
class Trends:
    """What an analysis found.

    Attributes:
        heads: where the logs were that it knew, by tenant.
        analysed: tenants with feedback that no earlier analysis had seen.
        judged: the newest trend of every tenant that has one, all judged together, by tenant.
    """

    heads: list[Head]
    analysed: list[str]
    judged: list[TenantTrend]

    @property
    def silent(self) -> int:
        """Tenants without a trend: too few of their sessions were rated, or all at one time."""
        return len(self.heads) - len(self.judged)


def read_session_means(connection: Connection, tenants: Sequence[str]) -> dict[str, Series]:
    """The mean utility of each session at the mean time of its events, in days since 1970, by tenant.

    Args:
        connection: an operator's transaction.
        tenants: whose; those without feedback have empty series.
    """
    # One row a tenant, since each has its price; both aggregates take the sessions as they come.
    rows = connection.cursor(binary=True).execute(
        """
        SELECT
            tenant_id, string_agg(float8send(at / 86400), ''::bytea),
            string_agg(float8send(utility), ''::bytea)
        FROM (
            SELECT tenant_id, session_id, avg(date_part('epoch', occurred_at)) AS at, avg(utility) AS utility
            FROM feedback_events WHERE tenant_id = ANY (%s) GROUP BY tenant_id, session_id
        ) AS sessions
        GROUP BY tenant_id
        """,
        (list(tenants),),
    )
    means = dict.fromkeys(tenants, ordered(np.zeros(0), np.zeros(0)))
    for tenant_id, times, utilities in rows:
        means[tenant_id] = ordered(
            *(np.frombuffer(sent, dtype=">f8").astype(np.float64) for sent in (times, utilities))
        )
    return means


def analyse(connection: Connection, rule: TrendRule) -> Trends:
    """The trends of all tenants, judged together; only those with new feedback are taken anew.

    A tenant whose sessions have become too few, because old ones were pruned, keeps the trend that it had.

    Args:
        connection: a snapshot over all tenants.
        rule: when a trend is to be acted upon.
    """
    heads = read_heads(connection)
    moved = connection.execute(
        f"WITH {BEHIND} SELECT tenant_id FROM behind "  # noqa: S608 — of constants
        "WHERE feedback_seq > seen_seq OR rewound ORDER BY tenant_id",
        followed(PERFORMANCE_TRENDS, heads),
    )
    analysed = [tenant_id for (tenant_id,) in moved]
    newest = {found.tenant_id: (found.feedback_seq, found.trend) for found in read_trends(connection)}
    if analysed:
        seqs = {head.tenant_id: head.feedback_seq for head in heads}
        for tenant_id, means in read_session_means(connection, analysed).items():
            if shows_trends(series := coarsened(means)):
                newest[tenant_id] = seqs[tenant_id], trend(series)
    tenants = sorted(newest)
    judged = judge([newest[tenant_id][1] for tenant_id in tenants], rule)
    return Trends(
        heads,
        analysed,
        [
            TenantTrend(tenant_id, newest[tenant_id][0], one.trend, one.q, one.direction)
            for tenant_id, one in zip(tenants, judged, strict=True)
        ],
    )


def write_trends(connection: Connection, found: Trends) -> int:
    """Keep what an analysis found, and mark how far it knew the logs.

    A tenant with new feedback gets a row; where the others have changed what a tenant's trend is worth among
    them, its row is told so.

    Args:
        connection: an operator's transaction.
        found: by `analyse`.

    Returns:
        How many rows were added or changed.
    """
    judged = found.judged
    written = connection.execute(
        """
        INSERT INTO performance_trends AS t (
            tenant_id, feedback_seq, bins, tau, p, uncorrected_p, autocorrelation, slope, low, high, effect,
            q, direction
        )
        SELECT * FROM unnest(
            %s::text[], %s::bigint[], %s::bigint[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
            %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::bigint[]
        )
        ON CONFLICT (tenant_id, feedback_seq) DO UPDATE
        SET (q, direction, analysed_at) = (EXCLUDED.q, EXCLUDED.direction, now())
        WHERE (t.q, t.direction) IS DISTINCT FROM (EXCLUDED.q, EXCLUDED.direction)
        """,
        (
            texts([one.tenant_id for one in judged]),
            bigints([one.feedback_seq for one in judged]),
            bigints([one.trend.n for one in judged]),
            *(floats([getattr(one.trend, name) for one in judged]) for name in _MEASURES),
            floats([one.q for one in judged]),
            bigints([one.direction for one in judged]),
        ),
    ).rowcount
    advance_marks(connection, PERFORMANCE_TRENDS, found.heads)
    return written


_NEWEST = """
    SELECT
        s.tenant_id, t.feedback_seq, t.bins, t.tau, t.p, t.uncorrected_p, t.autocorrelation, t.slope, t.low,
        t.high, t.effect, t.q, t.direction
    FROM adaptation_states s CROSS JOIN LATERAL (
        SELECT * FROM performance_trends t
        WHERE t.tenant_id = s.tenant_id ORDER BY t.feedback_seq DESC LIMIT 1
    ) AS t
"""


def read_trends(connection: Connection) -> list[TenantTrend]:
    """The newest trend of every tenant that has one, by tenant."""
    return [
        TenantTrend(tenant_id, feedback_seq, Trend(*numbers), q, direction)
        for tenant_id, feedback_seq, *numbers, q, direction in connection.execute(
            f"{_NEWEST} ORDER BY s.tenant_id"
        )
    ]


def read_falling(connection: Connection) -> list[str]:
    """The tenants whose utility falls, as far as their newest trend says, by feedback that no proposal knew.

    They ask for better weights; once a proposal has learned from what they said, they ask again only when
    later feedback still falls.
    """
    rows = connection.execute(
        f"""
        SELECT tenant_id FROM ({_NEWEST}) AS newest
        WHERE direction = -1 AND feedback_seq > coalesce(
            (SELECT max(last_seq) FROM proposal_tenants p WHERE p.tenant_id = newest.tenant_id), 0
        )
        ORDER BY tenant_id
        """  # noqa: S608 — of constants
    )
    return [tenant_id for (tenant_id,) in rows]
