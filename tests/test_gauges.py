"""What metrics tell of the store is what is there."""

from somabrain_dagster.store.chain_gauges import LagGauges, read_log_gauges
from somabrain_dagster.store.dagster_storage import read_dagster
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.gauges import read_gauges, read_named
from somabrain_dagster.store.operations_gauges import read_operations_gauges
from somabrain_dagster.store.positions import ADAPTATION_STATE, CONSUMERS, advance_marks, read_heads
from somabrain_dagster.store.proofs import record_proof
from somabrain_dagster.store.verification import CLAIMS, REPLAY, verify
from tests.brain import landed, new_tenants, said
from tests.forgery import nudge_live_alpha


def prove(database: Database) -> dict[str, int]:
    """Verify the log, and return the findings by claim that are told of it."""
    with database.snapshot() as connection:
        verification = verify(connection)
    with database.as_operator() as connection:
        record_proof(connection, verification)
        return dict(read_operations_gauges(connection).findings)


def lag_of(database: Database, consumer: str) -> LagGauges:
    with database.as_operator() as connection:
        return read_log_gauges(connection).lags[consumer]


def test_where_nothing_was_done_nothing_is_told_of(database: Database) -> None:
    with database.as_operator() as connection:
        done = read_operations_gauges(connection)
        logs = read_log_gauges(connection)
    assert (done.promoted_version, done.backups, done.drills_proven, done.holds) == (0, 0, 0, 0)
    times = (done.promoted_at, done.proven_at, done.sealed_at, done.dropped_at, done.backup_at)
    assert set(times) == {None}
    assert logs.changes == 0
    assert logs.lags == dict.fromkeys(CONSUMERS, LagGauges(0, 0, 0.0))


def test_a_claim_that_does_not_hold_is_told_until_it_holds_again(database: Database) -> None:
    (tenant,) = new_tenants(database, 1)
    landed(database, [said(tenant)])
    assert prove(database) == dict.fromkeys(CLAIMS, 0)
    nudge_live_alpha(database, tenant)
    assert {claim for claim, findings in prove(database).items() if findings} >= {REPLAY}
    nudge_live_alpha(database, tenant, nanos=-1)
    assert prove(database) == dict.fromkeys(CLAIMS, 0)


def test_what_landed_is_behind_until_it_is_followed(database: Database) -> None:
    alice, bob = new_tenants(database, 2)
    landed(database, [said(alice), said(alice), said(bob)])
    lag = lag_of(database, ADAPTATION_STATE)
    assert (lag.tenants, lag.events) == (2, 3)
    assert 0 < lag.seconds < 60
    with database.as_operator() as connection:
        advance_marks(connection, ADAPTATION_STATE, read_heads(connection))
    assert lag_of(database, ADAPTATION_STATE) == LagGauges(0, 0, 0.0)
    landed(database, [said(bob)])
    lag = lag_of(database, ADAPTATION_STATE)
    assert (lag.tenants, lag.events) == (1, 1)


def test_those_that_were_created_first_are_named_whoever_speaks(database: Database) -> None:
    first, second = new_tenants(database, 1), new_tenants(database, 2)
    landed(database, [said(second[0], 0.5), said(second[1], 0.1)])
    with database.as_operator() as connection:
        tenants, others = read_gauges(connection, most=1)
        assert read_named(connection, 1) == first
    assert [tenant.tenant_id for tenant in tenants] == first
    assert (others.tenants, others.version) == (2, 1)
    assert abs(others.reward_mean - 0.1 * (0.5 + 0.1) / 2) < 1e-12


def test_diversity_is_that_of_the_last_recall_that_was_steered(taught: Database) -> None:
    with taught.as_operator() as connection:
        tenants, _ = read_gauges(connection, most=1000)
        last = dict(
            connection.execute(
                """
                SELECT DISTINCT ON (tenant_id) tenant_id, 1 - repeated::float8 / cardinality(recalled)
                FROM recalls WHERE repeated IS NOT NULL ORDER BY tenant_id, recall_id DESC
                """
            ).fetchall()
        )
    assert {tenant.tenant_id: tenant.diversity for tenant in tenants} == last
    assert all(0 <= share <= 1 for share in last.values())
    assert len(last) == 6


def test_a_database_without_dagsters_tables_tells_nothing_of_it(database: Database) -> None:
    assert read_dagster(database) is None
