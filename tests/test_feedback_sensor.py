"""When the learning chain runs: once for each position of the log, late commits included, one at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.jobs import LEARNING_CHAIN
from somabrain_dagster.operations.dagster_home import prepare, workspace
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.sensors.feedback import FIRST_DAY_TAG, LAST_DAY_TAG, POSITION_TAG
from somabrain_dagster.store.audit import SYSTEM, verify_chain
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.positions import ADAPTATION_STATE, FEEDBACK_DAILY
from tests.brain import landed, new_tenant, new_tenants, said
from tests.chain import Chain, daemon, opened_instance, settings_for, wait_until
from tests.conftest import new_database

TODAY = datetime.now(UTC).date().isoformat()


@pytest.fixture
def chain(instance: dg.DagsterInstance, database: Database, valkey: ValkeyServer) -> Chain:
    return Chain(instance, settings_for(database.url, valkey), database)


@contextmanager
def held_open(database: Database, feedback: Feedback) -> Iterator[None]:
    """A landing whose transaction has begun and learned, and commits only at the end of the block.

    It has to wait for the table of idempotency keys, which another transaction holds.
    """
    assert feedback.idempotency_key
    landing = threading.Thread(target=landed, args=(database, [feedback]))
    with database.as_owner() as gate:
        gate.execute("LOCK TABLE idempotency_keys IN SHARE MODE")
        landing.start()

        def waits() -> bool:
            with database.as_owner() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_locks "
                    "WHERE NOT granted AND relation = 'idempotency_keys'::regclass"
                ).fetchone()
            return row == (1,)

        wait_until(waits)
        yield
    landing.join()


def test_where_nothing_landed_nothing_runs(chain: Chain) -> None:
    tick = chain.tick()

    assert tick.requests == []
    assert tick.skipped == f"everything up to position {chain.position} is aggregated and verified"


def test_feedback_asks_for_one_run_over_its_days_and_then_rests(chain: Chain) -> None:
    tenant, other = new_tenants(chain.database, 2)
    landed(
        chain.database,
        [
            said(tenant, occurred_at="2026-03-05T23:59:59Z"),
            said(other, occurred_at="2026-03-03T00:30:00+02:00"),
        ],
    )

    asked = chain.tick()

    (request,) = asked.requests
    assert request.tags[POSITION_TAG] == asked.cursor == chain.position
    assert (request.tags[FIRST_DAY_TAG], request.tags[LAST_DAY_TAG]) == ("2026-03-02", "2026-03-05")
    assert request.run_key == f"{chain.position} 2026-03-02 2026-03-05"
    assert chain.follow(asked).success
    assert chain.tick().skipped == f"everything up to position {chain.position} is aggregated and verified"


def test_a_new_tenant_is_proven_and_no_day_is_counted(chain: Chain) -> None:
    new_tenant(chain.database)

    asked = chain.tick()

    (request,) = asked.requests
    assert FIRST_DAY_TAG not in request.tags
    result = chain.follow(asked)
    assert result.success
    assert {event.asset_key for event in result.get_asset_materialization_events()} == {
        dg.AssetKey("adaptation_state"),
        dg.AssetKey("performance_trends"),
        dg.AssetKey("parameter_proposals"),
        dg.AssetKey("tenant_weights"),
    }
    assert not chain.tick().requests


def test_days_before_the_first_are_left_out_and_said(
    chain: Chain, instance: dg.DagsterInstance, valkey: ValkeyServer
) -> None:
    late = Chain(
        instance,
        settings_for(chain.database.url, valkey, first_day="2026-03-02"),
        chain.database,
    )
    tenant = new_tenant(chain.database)
    landed(chain.database, [said(tenant, occurred_at=f"2026-03-0{day}T12:00:00Z") for day in (1, 2)])
    asked = late.tick()
    assert asked.requests[0].tags[FIRST_DAY_TAG] == "2026-03-02"
    assert late.follow(asked).success
    assert not late.tick().requests

    landed(chain.database, [said(tenant, occurred_at="2026-03-01T12:00:00Z")])
    only_early = late.tick()
    assert FIRST_DAY_TAG not in only_early.requests[0].tags
    assert late.follow(only_early).success
    assert late.tick().skipped.endswith("; 1 events are about days before 2026-03-02 (SOMABRAIN_FIRST_DAY)")


def test_a_position_that_failed_is_not_tried_again_until_more_lands(chain: Chain) -> None:
    tenant = new_tenant(chain.database)
    landed(chain.database, [said(tenant)])
    chain.rows("UPDATE adaptation_states SET weights[1] = weights[1] + 1")
    asked = chain.tick()
    failed = chain.follow(asked)
    assert not failed.success

    for _ in range(2):
        tick = chain.tick()
        assert tick.requests == []
        assert tick.skipped.startswith(
            f"position {chain.position} had its run {failed.run_id}, which ended as failure"
        )

    chain.rows("UPDATE adaptation_states SET weights[1] = weights[1] - 1")
    landed(chain.database, [said(tenant)])
    again = chain.tick()
    assert again.requests[0].run_key != asked.requests[0].run_key
    assert chain.follow(again).success


def test_a_run_that_was_interrupted_is_repeated_but_not_for_ever(
    chain: Chain, instance: dg.DagsterInstance
) -> None:
    landed(chain.database, [said(new_tenant(chain.database))])
    keys = set()
    for _ in range(3):
        (request,) = chain.tick().requests
        keys.add(request.run_key)
        # As a worker leaves its run that is killed between two steps.
        instance.create_run_for_job(
            chain.definitions.resolve_job_def(LEARNING_CHAIN),
            tags=dict(request.tags),
            status=dg.DagsterRunStatus.FAILURE,
        )
    assert len(keys) == 3, "a key that was used would be ignored by the daemon"
    assert chain.tick().skipped.startswith(f"position {chain.position} had its run ")


def test_a_run_under_way_is_not_joined_by_another(chain: Chain, instance: dg.DagsterInstance) -> None:
    landed(chain.database, [said(new_tenant(chain.database))])
    (request,) = chain.tick().requests
    run = instance.create_run_for_job(
        chain.definitions.resolve_job_def(LEARNING_CHAIN),
        tags=dict(request.tags),
        status=dg.DagsterRunStatus.STARTED,
    )

    landed(chain.database, [said(new_tenant(chain.database))])
    tick = chain.tick()
    instance.delete_run(run.run_id)

    assert tick.requests == []
    assert tick.skipped == (
        f"run {run.run_id} for position {request.tags[POSITION_TAG]} is started: "
        f"position {chain.position} waits for it"
    )
    assert len(chain.tick().requests) == 1


def test_a_transaction_that_began_first_and_commits_last_is_seen(chain: Chain) -> None:
    early, prompt = new_tenants(chain.database, 2)
    with held_open(chain.database, said(early, occurred_at="2026-03-01T12:00:00Z", idempotency_key="1")):
        landed(chain.database, [said(prompt, occurred_at="2026-03-02T12:00:00Z")])
        first = chain.tick()
        assert first.requests[0].tags[FIRST_DAY_TAG] == "2026-03-02"
        assert chain.follow(first).success

    second = chain.tick()

    assert second.requests[0].tags[FIRST_DAY_TAG] == second.requests[0].tags[LAST_DAY_TAG] == "2026-03-01"
    assert chain.follow(second).success
    assert chain.lag(FEEDBACK_DAILY).tenants == chain.lag(ADAPTATION_STATE).tenants == []


def test_a_failed_run_is_in_the_audit_trail(chain: Chain) -> None:
    landed(chain.database, [said(new_tenant(chain.database))])
    chain.rows("UPDATE adaptation_states SET weights[1] = weights[1] + 1")
    failed = chain.run_days(TODAY, TODAY)
    chain.tell_of(failed)

    assert chain.rows("SELECT actor, action, body FROM audit_events WHERE tenant_id = %s", SYSTEM) == [
        (
            "dagster",
            "run_failed",
            {
                "run_id": failed.run_id,
                "job": LEARNING_CHAIN,
                "errors": {"adaptation_state": "DagsterAssetCheckFailedError"},
            },
        )
    ]
    with chain.database.as_operator() as connection:
        assert verify_chain(connection, SYSTEM) is None


def test_the_daemon_itself_sees_a_late_commit(
    postgres: PostgresServer, database: Database, valkey: ValkeyServer, empty_template: str, tmp_path: Path
) -> None:
    early, prompt = new_tenants(database, 2)
    settings = settings_for(database.url, valkey, home=tmp_path)
    with ExitStack() as stack:
        storage = stack.enter_context(new_database(postgres, empty_template))
        servers = Servers(database.url, postgres.url(storage), valkey.url)
        environment = {**os.environ, **prepare(settings, servers), "SOMABRAIN_SENSOR_INTERVAL_SECONDS": "1"}
        instance = stack.enter_context(opened_instance(settings, servers))
        chain = Chain(instance, settings, database)

        late = stack.enter_context(ExitStack())
        late.enter_context(held_open(database, said(early, idempotency_key="1")))
        landed(database, [said(prompt)])
        assert chain.follow(chain.tick()).success
        log = tmp_path / "daemon.log"
        stack.enter_context(daemon(environment, workspace(settings), log))
        looked = f"feedback_landed skipped: everything up to position {chain.position} is aggregated"
        wait_until(lambda: looked in log.read_text())

        late.close()

        def followed() -> bool:
            return bool(
                instance.get_runs(
                    dg.RunsFilter(
                        job_name=LEARNING_CHAIN,
                        tags={"dagster/sensor_name": "feedback_landed", POSITION_TAG: chain.position},
                        statuses=[dg.DagsterRunStatus.SUCCESS],
                    )
                )
            )

        wait_until(followed)
        assert chain.rows("SELECT tenant_id FROM feedback_daily ORDER BY tenant_id") == [(early,), (prompt,)]
        assert chain.lag(FEEDBACK_DAILY).tenants == chain.lag(ADAPTATION_STATE).tenants == []
