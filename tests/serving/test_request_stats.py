"""How requests went, by tenant and minute: what the service counts and what a canary's guardrails read."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.learning.guardrails import LATENCY_EDGES, GuardrailRule, RequestCounts
from somabrain_dagster.serving.request_tallies import RequestTallies
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.request_stats import Tally, add_requests, guardrails, read_requests
from tests.brain import away, new_tenant, new_tenants
from tests.serving.conftest import QUICK
from tests.serving.running import Running, running, until

EVER = datetime(2000, 1, 1, tzinfo=UTC)
NOON = datetime(2018, 4, 1, 12, tzinfo=UTC)


def requests_of(database: Database, *tenants: str, since: datetime = EVER) -> RequestCounts:
    with database.as_operator() as connection:
        return read_requests(connection, tenants, since)


def tally(*seconds: float, failed: bool = False) -> Tally:
    counted = Tally()
    for one in seconds:
        counted.count(one, failed=failed)
    return counted


def test_all_processes_counts_come_together_when_the_service_ends(
    database: Database, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """Recalls, contexts and feedback are counted; refusals, other paths and streams are not."""
    with running(database, f"{valkey.url}/6", tmp_path / "log", workers=2, variables=QUICK) as service:
        keys = service.add_tenants(["alice", "bob"])
        for _ in range(4):  # a connection of its own each, so that both workers have some
            with service.client(keys["alice"]) as alice:
                assert alice.post("/memory/recall", json={"text": "who bakes?"}).status_code == 200
                assert alice.post("/memory/context", json={"text": "who bakes?"}).status_code == 200
                said = {"session_id": "s", "utility": 0.5}
                assert alice.post("/context/feedback", json=said).status_code == 200
                assert alice.post("/memory/recall", json={"text": ""}).status_code == 422
                assert alice.get("/context/adaptation/state").status_code == 200
                streamed = alice.post(
                    "/context/feedback",
                    content=b'{"session_id": "s", "utility": 0.5}\n',
                    headers={"content-type": "application/x-ndjson"},
                )
                assert streamed.json()["landed"] == 1
    counted = requests_of(database, "alice")
    assert (counted.requests, counted.errors, sum(counted.latencies)) == (12, 0, 12)
    assert 0 < counted.latency(0.95) < 30
    assert requests_of(database, "bob").requests == 0


def test_counts_are_written_down_while_the_service_serves(service: Running, tenant: tuple[str, str]) -> None:
    name, key = tenant
    with service.client(key) as client:
        assert client.post("/context/feedback", json={"session_id": "s", "utility": 0.5}).status_code == 200
    until(lambda: requests_of(service.database, name).requests == 1)


def test_counts_of_the_same_minute_are_added_and_strangers_left_out(shared_database: Database) -> None:
    tenant = new_tenant(shared_database)
    for counted in (tally(0.004, 0.02), tally(100.0, failed=True)):
        with shared_database.as_operator() as connection:
            add_requests(connection, {(tenant, NOON): counted, ("nobody", NOON): counted})
    stored = requests_of(shared_database, tenant)
    expected = [0] * (len(LATENCY_EDGES) + 1)
    expected[4] = expected[9] = expected[-1] = 1
    assert stored == RequestCounts(3, 1, tuple(expected))
    assert requests_of(shared_database, "nobody").requests == 0


def test_guardrails_compare_two_groups_since_a_time(shared_database: Database) -> None:
    canary, slow, *control = new_tenants(shared_database, 4)
    before, start = NOON - timedelta(minutes=1), NOON - timedelta(seconds=30)
    counted = {
        (canary, before): tally(*[30.0] * 50, failed=True),  # over before the canary began
        (canary, NOON): tally(*[0.02] * 50),
        (slow, NOON): tally(*[0.2] * 50),
        **{(one, NOON): tally(*[0.02] * 50) for one in control},
    }
    with shared_database.as_operator() as connection:
        add_requests(connection, counted)
        rule = GuardrailRule(requests=50)
        good = guardrails(connection, [canary], control, start, rule)
        bad = guardrails(connection, [slow], control, start, rule)
        early = guardrails(connection, [canary], control, NOON + timedelta(minutes=1), rule)
    assert [gate.passed for gate in good.values()] == [True, True]
    assert [gate.passed for gate in bad.values()] == [True, False]
    assert all(gate.missing and not gate.passed for gate in early.values())


def test_a_database_that_is_away_loses_no_counts(owner_url: str, postgres: PostgresServer) -> None:
    async def count(database: Database, tenant: str) -> None:
        counts = RequestTallies(database)
        counts.count(tenant, 200, 0.02)
        await counts.flush()
        with away(postgres, database):
            counts.count(tenant, 503, 3.0)
            await counts.flush()
            counts.count(tenant, 503, 3.0)
            await counts.flush()
        counts.count(tenant, 404, 0.001)
        await counts.flush()
        await counts.flush()

    with Database(owner_url, wait_seconds=0.5) as database:
        tenant = new_tenant(database)
        asyncio.run(count(database, tenant))
        counted = requests_of(database, tenant)
    assert (counted.requests, counted.errors) == (3, 2)


def test_what_waits_for_the_database_is_bounded_and_the_newest_kept(
    owner_url: str, postgres: PostgresServer
) -> None:
    async def count(database: Database, tenants: list[str]) -> None:
        counts = RequestTallies(database, most_kept=2)
        with away(postgres, database):
            for tenant in tenants:
                counts.count(tenant, 503, 3.0)
                await counts.flush()
        await counts.flush()

    with Database(owner_url, wait_seconds=0.5) as database:
        tenants = new_tenants(database, 3)
        asyncio.run(count(database, tenants))
        assert [requests_of(database, tenant).requests for tenant in tenants] == [0, 1, 1]
