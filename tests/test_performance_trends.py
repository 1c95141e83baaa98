"""Trends on real Postgres, as Dagster analyses them: what is found, what is not, and what is new."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import sqrt
from typing import Any

import dagster as dg
import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import sql
from scipy.signal import lfilter

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.learning.trend_rule import TrendRule
from somabrain_dagster.learning.trends import LEAST_BINS, judge, session_means, trend
from somabrain_dagster.operations.chitchat import ChitChat, read_chitchat
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.trends import read_falling, read_trends
from tests.brain import CONFIGURATION, landed, new_tenants, said
from tests.chain import Chain, checks_of, failed_checks, settings_for
from tests.test_learning_chain import materialised, picture

pytestmark = pytest.mark.learning

TRENDS = dg.AssetKey("performance_trends")
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def chain(instance: dg.DagsterInstance, database: Database, valkey: ValkeyServer) -> Chain:
    return Chain(instance, settings_for(database.url, valkey), database)


@pytest.fixture(scope="module")
def people() -> ChitChat:
    return read_chitchat(100)


def analysed(chain: Chain) -> dict[str, Any]:
    """What an analysis that succeeds says of itself, by name."""
    result = chain.run({}, [TRENDS])
    assert result.success
    assert failed_checks(result) == set()
    (told,) = materialised(result, "performance_trends")
    return {name: entry.value for name, entry in told.metadata.items()}


def series(tenant_id: str, utilities: Sequence[float] | NDArray[np.float64]) -> list[Feedback]:
    """One rated session a day, with these utilities."""
    return [
        said(
            tenant_id,
            float(utility),
            session_id=f"session-{day}",
            occurred_at=(FIRST + timedelta(days=day)).isoformat(),
        )
        for day, utility in enumerate(utilities)
    ]


def generated(seed: int, n: int, phi: float = 0.0, ramp: float = 0.0) -> NDArray[np.float64]:
    """AR(1) noise of marginal standard deviation 1 plus a ramp, generated, brought into utility's range."""
    shocks = np.random.default_rng(seed).normal(size=n)
    shocks[1:] *= sqrt(1 - phi**2)
    noise = np.asarray(lfilter([1.0], [1.0, -phi], shocks))
    return np.asarray(np.clip((noise + ramp * np.linspace(-0.5, 0.5, n)) / 5, -1, 1))


def falling(chain: Chain) -> list[str]:
    with chain.database.snapshot() as connection:
        return read_falling(connection)


def directions(chain: Chain) -> dict[str, int]:
    with chain.database.snapshot() as connection:
        return {found.tenant_id: found.direction for found in read_trends(connection)}


# Real ratings


def test_the_trends_of_real_people_are_those_of_their_rated_conversations(
    chain: Chain, people: ChitChat
) -> None:
    with chain.database.as_operator() as connection:
        create_tenants(connection, people.tenants, CONFIGURATION)
    landed(chain.database, people.feedback)

    told = analysed(chain)

    by_tenant: dict[str, list[Feedback]] = {tenant: [] for tenant in people.tenants}
    for feedback in people.feedback:
        by_tenant[feedback.tenant_id].append(feedback)
    rated = {tenant: events for tenant, events in by_tenant.items() if len(events) >= LEAST_BINS}
    expected = {
        tenant: trend(
            session_means(
                np.array([feedback.session_id for feedback in events]),
                np.array([feedback.occurred_at.timestamp() / 86_400 for feedback in events]),  # type: ignore[union-attr]
                np.array([feedback.utility for feedback in events]),
            )
        )
        for tenant, events in sorted(rated.items())
    }
    with chain.database.snapshot() as connection:
        kept = read_trends(connection)

    assert len(rated) == 27
    assert [one.tenant_id for one in kept] == list(expected)
    for one, judged in zip(kept, judge(list(expected.values()), TrendRule()), strict=True):
        truth = judged.trend
        assert one.feedback_seq == len(rated[one.tenant_id])
        assert (one.trend.n, one.direction) == (truth.n, judged.direction)
        for name in ("tau", "p", "uncorrected_p", "autocorrelation", "slope", "low", "high", "effect"):
            assert getattr(one.trend, name) == pytest.approx(getattr(truth, name), rel=1e-6, abs=1e-9), name
        assert one.q == pytest.approx(judged.q)

    assert told["dagster/row_count"] == 27
    assert told["tenants with new feedback"] == sum(map(bool, by_tenant.values()))
    assert told["tenants without a trend"] == 73
    assert told["falling"] + told["rising"] == sum(one.direction != 0 for one in kept)
    assert told["position"] == chain.position
    records = told["trends"].records
    assert [record.data["tenant"] for record in records] == [
        one.tenant_id for one in sorted(kept, key=lambda one: one.trend.p)
    ]
    assert {column.name for column in told["dagster/column_schema"].columns} >= {
        "tenant_id",
        "q",
        "direction",
    }
    assert picture(told["the surest falls and rises"]).width == 900


# Known truths


def test_a_planted_fall_is_found_and_asks_for_better_weights_and_noise_does_not(chain: Chain) -> None:
    down, up, constant, *noisy = new_tenants(chain.database, 13)
    landed(
        chain.database,
        [
            *series(down, generated(1, 90, phi=0.3, ramp=-3)),
            *series(up, generated(2, 90, phi=0.3, ramp=3)),
            *series(constant, [0.1] * 60),
            *(
                event
                for seed, tenant in enumerate(noisy)
                for event in series(tenant, generated(seed, 90, 0.6))
            ),
        ],
    )

    told = analysed(chain)

    assert directions(chain) == {down: -1, up: 1, constant: 0} | dict.fromkeys(noisy, 0)
    assert falling(chain) == [down]
    assert (told["falling"], told["rising"]) == (1, 1)
    assert chain.rows("SELECT p, q FROM performance_trends WHERE tenant_id = %s", constant) == [(1.0, 1.0)]


def test_an_exact_line_is_found_and_shown_without_an_infinity(chain: Chain) -> None:
    (tenant,) = new_tenants(chain.database, 1)
    landed(chain.database, series(tenant, np.arange(32) / 32))

    (record,) = analysed(chain)["trends"].records

    assert chain.rows("SELECT effect FROM performance_trends") == [(float("inf"),)]
    assert record.data["direction"] == "rising"
    assert record.data["slope"] == 0.03125
    assert record.data["effect"] is None


def test_a_session_counts_once_however_many_events_it_has(chain: Chain) -> None:
    once, often = new_tenants(chain.database, 2)
    values = generated(3, 40, ramp=2)
    landed(chain.database, series(once, values))
    landed(chain.database, [event for event in series(often, values) for _ in range(3)])

    analysed(chain)

    (one, other) = chain.rows(
        "SELECT bins, p, slope, low, high FROM performance_trends ORDER BY tenant_id = %s", often
    )
    assert one[0] == 40
    assert other == pytest.approx(one)


# What has no trend


@pytest.mark.parametrize(
    ("sessions", "apart"), [(LEAST_BINS - 1, timedelta(days=1)), (LEAST_BINS + 10, timedelta())]
)
def test_a_tenant_of_too_few_sessions_or_of_one_moment_is_counted_and_has_no_trend(
    chain: Chain, sessions: int, apart: timedelta
) -> None:
    (tenant,) = new_tenants(chain.database, 1)
    times = [(FIRST + day * apart).isoformat() for day in range(sessions)]
    landed(
        chain.database,
        [
            said(tenant, day / 100, session_id=f"session-{day}", occurred_at=at)
            for day, at in enumerate(times)
        ],
    )

    told = analysed(chain)

    assert (told["tenants with new feedback"], told["tenants without a trend"]) == (1, 1)
    assert told["dagster/row_count"] == 0
    assert "the surest falls and rises" not in told
    assert analysed(chain)["tenants with new feedback"] == 0


def test_without_tenants_there_is_nothing_to_say(chain: Chain) -> None:
    assert analysed(chain)["dagster/row_count"] == 0


# What is new


def test_only_a_tenant_with_new_feedback_gets_a_row_and_the_others_are_told_their_worth(chain: Chain) -> None:
    tenants = new_tenants(chain.database, 3)
    for seed, tenant in enumerate(tenants):
        landed(chain.database, series(tenant, generated(seed, 60, ramp=1 + seed)))
    assert analysed(chain)["rows written"] == 3
    before = chain.rows("SELECT * FROM performance_trends ORDER BY tenant_id")

    told = analysed(chain)
    assert (told["tenants with new feedback"], told["rows written"]) == (0, 0)
    assert chain.rows("SELECT * FROM performance_trends ORDER BY tenant_id") == before

    first, *others = tenants
    landed(chain.database, [said(first, -1, session_id="later", occurred_at="2026-04-01T00:00:00Z")])
    told = analysed(chain)
    assert told["tenants with new feedback"] == 1
    rows = chain.rows("SELECT tenant_id, feedback_seq FROM performance_trends ORDER BY 1, 2")
    assert rows == [(first, 60), (first, 61), *((other, 60) for other in others)]
    with chain.database.snapshot() as connection:
        newest = read_trends(connection)
    assert [one.feedback_seq for one in newest] == [61, 60, 60]
    together = judge([one.trend for one in newest], TrendRule())
    assert [(one.q, one.direction) for one in newest] == [(one.q, one.direction) for one in together]


def test_a_change_of_weights_without_feedback_is_no_news(chain: Chain) -> None:
    (tenant,) = new_tenants(chain.database, 1)
    landed(chain.database, series(tenant, generated(0, 40)))
    analysed(chain)
    chain.rows("UPDATE adaptation_states SET version = version + 1, hash = sha256(hash)")

    assert analysed(chain)["tenants with new feedback"] == 0


def test_another_rule_judges_again_what_was_found(
    chain: Chain, instance: dg.DagsterInstance, valkey: ValkeyServer
) -> None:
    (tenant,) = new_tenants(chain.database, 1)
    landed(chain.database, series(tenant, generated(1, 60, ramp=-3)))
    analysed(chain)
    assert directions(chain) == {tenant: -1}

    demanding = settings_for(chain.database.url, valkey, trend_effect=100.0)
    told = analysed(Chain(instance, demanding, chain.database))

    assert told["rule"] == "q < 0.05 and |effect| ≥ 100"
    assert (told["tenants with new feedback"], told["rows written"]) == (0, 1)
    assert directions(chain) == {tenant: 0}
    assert falling(chain) == []


def test_a_fall_asks_until_a_proposal_has_learned_from_it_and_again_when_it_goes_on(chain: Chain) -> None:
    tenant, other = new_tenants(chain.database, 2)
    for name in (tenant, other):
        landed(chain.database, series(name, generated(1, 60, ramp=-3)))
    analysed(chain)
    assert falling(chain) == sorted([tenant, other])

    def proposed(last_seq: int) -> None:
        chain.rows(
            """
            WITH made AS (
                INSERT INTO parameter_proposals (
                    reason, label, promotion_version, registry_version, configuration, from_scales, to_scales,
                    before, weights, recalls, first_recall_id, last_recall_id, accepted, gates, fit
                )
                SELECT 'a fall', 'full', 0, 1, digest, 1, 1, '{0}', '{0}', 1, 1, 1, false, '[]', '{}'
                FROM configurations LIMIT 1 RETURNING proposal_id
            )
            INSERT INTO proposal_tenants (tenant_id, proposal_id, first_seq, last_seq, recalls)
            SELECT %s, proposal_id, 1, %s, 1 FROM made
            """,
            tenant,
            last_seq,
        )

    proposed(59)
    assert falling(chain) == sorted([tenant, other]), "the last event is not among what was learned from"
    proposed(60)
    assert falling(chain) == [other]

    landed(chain.database, [said(tenant, -0.9, session_id="later", occurred_at="2026-04-01T00:00:00Z")])
    analysed(chain)
    assert falling(chain) == sorted([tenant, other])


def test_a_number_that_cannot_be_stops_what_is_made_of_trends(chain: Chain) -> None:
    (tenant,) = new_tenants(chain.database, 1)
    landed(chain.database, series(tenant, generated(0, 40)))
    analysed(chain)
    for name, value in (("slope", "NaN"), ("uncorrected_p", "1"), ("low", "1")):
        kept = chain.rows("SELECT * FROM performance_trends")
        column = sql.Identifier(name)
        with chain.database.as_owner() as connection:
            connection.execute(
                sql.SQL("UPDATE performance_trends SET {} = %s::float8").format(column), (value,)
            )

        result = chain.run({}, [TRENDS])

        assert failed_checks(result) == {"no_trend_is_surer_than_its_series_allows"}, name
        found = checks_of(result)["no_trend_is_surer_than_its_series_allows"]
        assert found.blocking
        assert found.description == f"1 of 1 trends cannot be so, the first of {tenant}"
        chain.rows("DELETE FROM performance_trends")
        chain.rows("DELETE FROM log_marks")
        analysed(chain)
        assert [row[:2] for row in chain.rows("SELECT * FROM performance_trends")] == [
            row[:2] for row in kept
        ]
