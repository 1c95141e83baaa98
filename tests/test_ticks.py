"""Sensors looked at in this process: what the daemon would do, once each, until nothing more is due."""

from collections.abc import Iterator

import dagster as dg
import pytest

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.operations.servers import open_store, start
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.database import Database
from somabrain_dagster.ticks import Look, Ticks
from tests.brain import landed, new_tenants, said
from tests.chain import Chain, settings_for


@pytest.fixture
def ticks(instance: dg.DagsterInstance, database: Database, valkey: ValkeyServer) -> Iterator[Ticks]:
    chain = Chain(instance, settings_for(database.url, valkey), database)
    _, snapshots = open_store(start(chain.settings))
    yield Ticks(chain.definitions, instance, Brain(chain.settings, database, snapshots))
    snapshots.close()


def look_of(looks: list[Look], sensor: str) -> Look:
    (look,) = (look for look in looks if look.sensor == sensor)
    return look


def test_every_sensor_of_the_project_is_looked_at_but_those_that_watch_runs(ticks: Ticks) -> None:
    assert set(ticks.sensors) >= {"feedback_landed", "experiment_complete", "canary_clock", "tenants"}
    assert "run_failure" not in ticks.sensors


def test_what_lands_is_followed_by_one_run_and_then_by_none(ticks: Ticks, database: Database) -> None:
    tenants = new_tenants(database, 2)
    landed(database, [said(tenant) for tenant in tenants])
    looks = list(ticks.settle())
    first, last = looks[: len(ticks.sensors)], looks[-len(ticks.sensors) :]
    (run,) = look_of(first, "feedback_landed").runs
    assert run.result.success
    assert {"adaptation_state", "feedback_daily"} <= set(run.materialised)
    assert run.checks
    assert all(check.passed for check in run.checks)
    assert not any(look.runs for look in last)
    assert look_of(last, "feedback_landed").skipped.startswith("everything up to position")


def test_a_sensor_adds_the_partitions_of_new_tenants(
    ticks: Ticks, database: Database, instance: dg.DagsterInstance
) -> None:
    new = new_tenants(database, 1)
    ticks.look("tenants")
    assert set(new) <= set(instance.get_dynamic_partitions("tenants"))
    assert "has its partition" in ticks.look("tenants").skipped
