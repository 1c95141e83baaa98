"""Feedback by tenant and day (UTC): sufficient statistics for the mean and variance of any span."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import sql

from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.positions import (
    BEHIND,
    FEEDBACK_DAILY,
    Head,
    advance_marks,
    followed,
    read_heads,
)

# What the marks have not seen, by the day that it is about; of a rewound log also the days that were counted.
_UNSEEN = f"""
    {BEHIND},
    unseen AS (
        SELECT b.tenant_id, (e.occurred_at AT TIME ZONE 'UTC')::date AS day, count(*) AS events
        FROM behind b JOIN feedback_events e
            ON e.tenant_id = b.tenant_id AND e.seq > b.seen_seq AND e.seq <= b.feedback_seq
        GROUP BY b.tenant_id, day
        UNION ALL
        SELECT d.tenant_id, d.day, 0 FROM behind b JOIN feedback_daily d USING (tenant_id) WHERE b.rewound
    )
"""  # noqa: S608 — of constants


@dataclass(frozen=True)
class UnseenDays:
    """The days that feedback is about which no aggregate has counted yet.

    Attributes:
        first, last: of those days, clamped to the span that was asked for; None if there are none in it.
        events: new feedback events about days in the span.
        before, after: new feedback events about days before and after the span.
    """

    first: date | None
    last: date | None
    events: int
    before: int
    after: int


def read_unseen_days(
    connection: Connection, heads: Sequence[Head], first_day: date, last_day: date
) -> UnseenDays:
    """Which days to aggregate, given where the logs are and what was aggregated.

    Args:
        connection: an operator's transaction, the one that the heads were read in.
        heads: where the logs are.
        first_day: the first day to look at.
        last_day: the last one.
    """
    row = connection.execute(
        f"""
        WITH {_UNSEEN}
        SELECT
            min(day) FILTER (WHERE day BETWEEN %(first)s AND %(last)s),
            max(day) FILTER (WHERE day BETWEEN %(first)s AND %(last)s),
            coalesce(sum(events) FILTER (WHERE day BETWEEN %(first)s AND %(last)s), 0)::bigint,
            coalesce(sum(events) FILTER (WHERE day < %(first)s), 0)::bigint,
            coalesce(sum(events) FILTER (WHERE day > %(last)s), 0)::bigint
        FROM unseen
        """,  # noqa: S608 — of constants
        {**followed(FEEDBACK_DAILY, heads), "first": first_day, "last": last_day},
    ).fetchone()
    assert row is not None
    return UnseenDays(*row)


@dataclass(frozen=True)
class Day:
    """One day over all tenants."""

    day: date
    tenants: int
    events: int
    sessions: int
    utility_sum: float
    reward_sum: float


@dataclass(frozen=True)
class Aggregation:
    """What an aggregation made.

    Attributes:
        heads: where the logs were that it counted up to.
        days: those that have feedback, in order.
        rows: of the table, in these days.
        tenants: with feedback in these days.
        kept: rows that stay as they were because raw events that they count are pruned.
    """

    heads: list[Head]
    days: list[Day]
    rows: int
    tenants: int
    kept: int


def aggregate(connection: Connection, first: date, last: date, first_day: date) -> Aggregation:
    """Replace the statistics of some days by those of the events that are there, and advance the marks.

    The mark of a tenant moves only if each of its new events is about one of these days (or about a day that
    is never aggregated): aggregating one day by hand hides no other day's events. A day that lost all its
    events loses its row. But where raw events are gone because they were pruned, what was counted of them
    stands: nothing is counted down for want of rows.

    Args:
        connection: an operator's transaction; all is done in it.
        first: the first of the days.
        last: the last of them.
        first_day: events about earlier days are never aggregated.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('feedback_daily'))")
    heads = read_heads(connection)
    # Sequence numbers have no gap, so those up to the head are one instant for every statement below.
    span: dict[str, Any] = {**followed(FEEDBACK_DAILY, heads), "first": first, "last": last}
    connection.execute(
        """
        DELETE FROM feedback_daily d
        USING unnest(%(tenants)s::text[], %(seqs)s::bigint[]) AS h (tenant_id, feedback_seq)
        WHERE d.tenant_id = h.tenant_id AND d.day BETWEEN %(first)s AND %(last)s AND (
            h.feedback_seq = 0
            OR EXISTS (SELECT FROM feedback_events e WHERE e.tenant_id = h.tenant_id AND e.seq = 1)
        )
        """,
        span,
    )
    written = connection.execute(
        f"""
        WITH {BEHIND},
        said AS (
            SELECT
                e.tenant_id, (e.occurred_at AT TIME ZONE 'UTC')::date AS day, e.seq, e.session_id, e.utility,
                coalesce(e.reward, e.utility) AS reward,
                b.tenant_id IS NULL OR e.seq <= b.seen_seq AS seen, b.seen_seq
            FROM feedback_events e
            JOIN unnest(%(tenants)s::text[], %(seqs)s::bigint[]) AS h (tenant_id, feedback_seq)
                ON h.tenant_id = e.tenant_id AND e.seq <= h.feedback_seq
            LEFT JOIN behind b ON b.tenant_id = e.tenant_id
            WHERE e.occurred_at >= %(first)s::date::timestamp AT TIME ZONE 'UTC'
                AND e.occurred_at < (%(last)s::date + 1)::timestamp AT TIME ZONE 'UTC'
        ),
        stands AS (
            SELECT d.* FROM feedback_daily d
            JOIN (
                SELECT tenant_id, day, count(*) FILTER (WHERE seen) AS events
                FROM said GROUP BY tenant_id, day
            ) AS there USING (tenant_id, day)
            WHERE d.events > there.events
        )
        INSERT INTO feedback_daily (
            tenant_id, day, events, sessions, utility_sum, utility_square_sum, reward_sum, reward_square_sum
        )
        SELECT
            tenant_id, day,
            coalesce(d.events, 0) + count(*),
            coalesce(d.sessions, 0) + count(DISTINCT s.session_id),
            coalesce(d.utility_sum, 0) + sum(s.utility ORDER BY s.seq),
            coalesce(d.utility_square_sum, 0) + sum(s.utility * s.utility ORDER BY s.seq),
            coalesce(d.reward_sum, 0) + sum(s.reward ORDER BY s.seq),
            coalesce(d.reward_square_sum, 0) + sum(s.reward ^ 2 ORDER BY s.seq)
        FROM said s LEFT JOIN stands d USING (tenant_id, day)
        WHERE d.events IS NULL OR (NOT s.seen AND s.seen_seq > 0)
        GROUP BY tenant_id, day, d.events, d.sessions, d.utility_sum, d.utility_square_sum, d.reward_sum,
            d.reward_square_sum
        ON CONFLICT (tenant_id, day) DO UPDATE SET (
            events, sessions, utility_sum, utility_square_sum, reward_sum, reward_square_sum, aggregated_at
        ) = (
            EXCLUDED.events, EXCLUDED.sessions, EXCLUDED.utility_sum, EXCLUDED.utility_square_sum,
            EXCLUDED.reward_sum, EXCLUDED.reward_square_sum, now()
        )
        """,  # noqa: S608 — of constants
        span,
    ).rowcount
    covered = connection.execute(
        f"""
        WITH {_UNSEEN}
        SELECT tenant_id FROM behind b WHERE NOT EXISTS (
            SELECT FROM unseen u
            WHERE u.tenant_id = b.tenant_id AND u.day >= %(first_day)s
                AND NOT u.day BETWEEN %(first)s AND %(last)s
        )
        """,  # noqa: S608 — of constants
        {**span, "first_day": first_day},
    )
    complete = {tenant_id for (tenant_id,) in covered}
    advance_marks(connection, FEEDBACK_DAILY, [head for head in heads if head.tenant_id in complete])

    (rows, tenants) = connection.execute(
        "SELECT count(*), count(DISTINCT tenant_id) FROM feedback_daily WHERE day BETWEEN %s AND %s",
        (first, last),
    ).fetchone() or (0, 0)
    return Aggregation(heads, read_days(connection, first, last), rows, tenants, kept=rows - written)


def read_days(connection: Connection, first: date, last: date) -> list[Day]:
    """The days from `first` to `last` that have feedback, over all tenants."""
    rows = connection.execute(
        """
        SELECT
            day, count(*), sum(events)::bigint, sum(sessions)::bigint,
            sum(utility_sum ORDER BY tenant_id), sum(reward_sum ORDER BY tenant_id)
        FROM feedback_daily WHERE day BETWEEN %s AND %s GROUP BY day ORDER BY day
        """,
        (first, last),
    )
    return [Day(*row) for row in rows]


@dataclass(frozen=True)
class Uncounted:
    """Feedback of a partition that no aggregate counts.

    Attributes:
        day: that it is about; None where the tenant's mark is not past it.
        events: how many there are of it in the partition.
    """

    tenant_id: str
    day: date | None
    events: int

    def __str__(self) -> str:
        about = "beyond the mark of feedback_daily" if self.day is None else f"about {self.day}"
        return f"{self.events:,} events of {self.tenant_id} {about}"


def read_uncounted(connection: Connection, partition: str, first_day: date) -> list[Uncounted]:
    """What would be forgotten if a partition of feedback were dropped now.

    A tenant's events are numbered without a gap. So where its days count as many events as its mark has
    passed, each of them is counted, and only the events of other tenants are looked at one by one.

    Args:
        connection: an owner's.
        partition: its name.
        first_day: events about earlier days are never aggregated.
    """
    names = {"partition": sql.Identifier(partition), "consumer": sql.Literal(FEEDBACK_DAILY)}
    marks = sql.SQL(
        """
        marks AS (
            SELECT m.tenant_id, m.feedback_seq FROM log_marks m
            JOIN weight_changes c ON (c.tenant_id, c.version, c.hash) = (m.tenant_id, m.version, m.hash)
            WHERE m.consumer = {consumer}
        )
        """
    ).format(**names)
    suspects = connection.execute(
        sql.SQL(
            """
            WITH {marks},
            counted AS (SELECT tenant_id, sum(events) AS events FROM feedback_daily GROUP BY tenant_id)
            SELECT s.tenant_id FROM adaptation_states s
            CROSS JOIN LATERAL (
                SELECT max(seq) AS last_seq FROM {partition} p WHERE p.tenant_id = s.tenant_id
            ) AS there
            LEFT JOIN marks m ON m.tenant_id = s.tenant_id
            LEFT JOIN counted d ON d.tenant_id = s.tenant_id
            WHERE last_seq IS NOT NULL
                AND (last_seq > coalesce(m.feedback_seq, 0) OR d.events IS DISTINCT FROM m.feedback_seq)
            """
        ).format(marks=marks, **names)
    ).fetchall()
    if not suspects:
        return []
    rows = connection.execute(
        sql.SQL(
            """
            WITH {marks},
            days AS (
                SELECT
                    tenant_id, (occurred_at AT TIME ZONE 'UTC')::date AS day, count(*) AS events,
                    max(seq) AS last_seq
                FROM {partition} WHERE tenant_id = ANY (%(suspects)s) GROUP BY tenant_id, day
            )
            SELECT tenant_id, NULL::date, sum(t.events)::bigint
            FROM days t LEFT JOIN marks m USING (tenant_id)
            GROUP BY tenant_id, m.feedback_seq HAVING max(t.last_seq) > coalesce(m.feedback_seq, 0)
            UNION ALL
            SELECT tenant_id, day, t.events FROM days t LEFT JOIN feedback_daily d USING (tenant_id, day)
            WHERE day >= %(first_day)s AND coalesce(d.events, 0) < t.events
            """
        ).format(marks=marks, **names),
        {"suspects": [tenant_id for (tenant_id,) in suspects], "first_day": first_day},
    )
    return sorted((Uncounted(*row) for row in rows), key=str)
