"""The sensors as one machine: each moves the trial on by one step, once, and rests when nothing is due.

The worth of sessions is generated here, with a known effect; everything else is real.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import TickStatus

from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.jobs import CANARY_LOOK, EXPERIMENT_ANALYSIS
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.operations.dagster_home import prepare, workspace
from somabrain_dagster.operations.reenactment import reenact
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.store.audit import SYSTEM, verify_chain
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.canaries import list_canaries, running_canary
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import read_experiment
from somabrain_dagster.store.promotions import promoted
from somabrain_dagster.store.verification import verify
from tests.brain import CONFIGURATION, new_tenants
from tests.chain import (
    Chain,
    Tick,
    checks_of,
    daemon,
    opened_instance,
    settings_for,
    wait_until,
)
from tests.conftest import new_database
from tests.reenacted import PLAN, SETTINGS, Reenactment
from tests.trials import Life, new_life

pytestmark = pytest.mark.learning

SOON = {
    "share": 0.5,
    "strata": 1,
    "hours": (1e-9, 2e-9),
    "hours_before": 1.0,
    "margin": 5.0,
    "sessions": 2,
    "guardrails": (),
}
"""A canary whose looks are due at once, and that needs few sessions, and no measured requests."""


@pytest.fixture
def life(database: Database, minilm: Embedder) -> Life:
    return new_life(database, minilm)


def chain_of(instance: dg.DagsterInstance, life: Life, valkey: ValkeyServer, **knobs: Any) -> Chain:
    settings = settings_for(
        life.database.url, valkey, **{"autopilot": True, "canary": {**SOON}, "home": "/nonexistent", **knobs}
    )
    return Chain(instance, settings, life.database)


@pytest.fixture
def pilot(instance: dg.DagsterInstance, life: Life, valkey: ValkeyServer) -> Chain:
    """The project with its autopilot on."""
    return chain_of(instance, life, valkey)


@pytest.fixture
def manual(instance: dg.DagsterInstance, life: Life, valkey: ValkeyServer) -> Chain:
    """The same project, where a person decides."""
    return chain_of(instance, life, valkey, autopilot=False)


def complete(life: Life, size: int = 6) -> None:
    """A running experiment whose arms have their sessions; the treatment is better."""
    experiment = life.experiment(size)
    spread = [0.1 * (place / size - 0.5) for place in range(size)]
    life.fill(
        experiment,
        {"control": [value - 0.4 for value in spread], "warm": [value + 0.4 for value in spread]},
    )


def said_to_have(result: dg.ExecuteInProcessResult, asset: str) -> str:
    (event,) = [
        event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey(asset)
    ]
    text = event.materialization.metadata["what happened"].value
    assert isinstance(text, str)
    return text


def asked_for(tick: Tick) -> tuple[str | None, str | None]:
    (request,) = tick.requests
    return request.job_name, request.run_key


def test_nothing_on_trial_nothing_runs(pilot: Chain) -> None:
    assert pilot.tick("experiment_complete").skipped == (
        "no experiment runs, and no accepted proposal waits for one"
    )
    assert pilot.tick("canary_clock").skipped == "no canary runs"


def test_each_new_tenant_gets_a_partition_once(
    instance: dg.DagsterInstance, pilot: Chain, life: Life
) -> None:
    def tick() -> dg.SensorResult | dg.SkipReason:
        with dg.build_sensor_context(
            instance=instance, definitions=pilot.definitions, resources={"brain": pilot.brain}
        ) as context:
            seen = pilot.definitions.resolve_sensor_def("tenants").evaluate_tick(context)
        for request in seen.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        return dg.SkipReason(seen.skip_message) if seen.skip_message else dg.SensorResult()

    tick()
    assert set(life.tenants) <= set(instance.get_dynamic_partitions("tenants"))
    assert tick() == dg.SkipReason("each of 6 tenants has its partition")
    (newcomer,) = new_tenants(life.database, 1)
    tick()
    assert newcomer in instance.get_dynamic_partitions("tenants")


def test_an_experiment_is_analysed_when_it_is_complete_and_its_canary_begins(
    pilot: Chain, life: Life
) -> None:
    experiment = life.experiment(size=4)
    life.fill(experiment, {"control": [-0.4, -0.3], "warm": [0.3]})
    assert pilot.tick("experiment_complete").skipped == "warmer runs: control 2 of 4, warm 1 of 4"

    life.fill(experiment, {"control": [-0.5, -0.2], "warm": [0.4, 0.5, 0.6]})
    tick = pilot.tick("experiment_complete")
    assert asked_for(tick) == (EXPERIMENT_ANALYSIS, f"{experiment.salt} complete")
    assert asked_for(pilot.tick("experiment_complete")) == asked_for(tick), "a tick again is the same run"

    result = pilot.follow(tick)
    assert result.success
    assert said_to_have(result, "experiment_results") == "warmer is complete: warm is better"
    assert said_to_have(result, "canary_rollout").endswith("began: warmer/warm")
    assert all(check.passed for check in checks_of(result).values())
    assert "a canary does" in pilot.tick("experiment_complete").skipped
    with life.database.snapshot() as connection:
        assert verify_chain(connection, SYSTEM) is None


def test_an_arm_that_does_harm_ends_the_experiment_with_or_without_autopilot(
    manual: Chain, life: Life
) -> None:
    experiment = life.experiment(size=40)
    life.fill(
        experiment,
        {
            "control": [0.5 + 0.01 * place for place in range(12)],
            "warm": [-0.5 - 0.01 * place for place in range(12)],
        },
    )
    tick = manual.tick("experiment_complete")
    assert asked_for(tick) == (EXPERIMENT_ANALYSIS, f"{experiment.salt} harm")
    result = manual.follow(tick)
    assert "does harm" in said_to_have(result, "experiment_results")
    with life.database.snapshot() as connection:
        ended = read_experiment(connection, "warmer")
    assert ended.status == "stopped"
    assert (ended.end_reason or "").startswith("harm: warm: harm ≥ 0.05")


def test_the_canary_is_looked_at_and_promoted_and_all_tenants_are_served(
    pilot: Chain, life: Life, valkey: ValkeyServer
) -> None:
    complete(life)
    pilot.follow(pilot.tick("experiment_complete"))
    life.everybody(lambda arm: 0.6 if arm else 0.1)

    tick = pilot.tick("canary_clock")
    (request,) = tick.requests
    assert request.job_name == CANARY_LOOK
    assert (request.run_key or "").endswith("look 1"), "a look that was slept through is skipped"
    result = pilot.follow(tick)
    assert result.success
    assert "PROMOTE" in said_to_have(result, "canary_rollout")
    assert said_to_have(result, "promoted_weights") == f"promotion 1 shifted {len(life.tenants)} tenants"
    assert checks_of(result)["served_states_are_the_live_ones"].passed
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).experiment_id == "warmer"
        heads = dict(connection.execute("SELECT tenant_id, version FROM adaptation_states").fetchall())
    served = SnapshotCache(valkey.url).versions(list(heads))
    assert served == list(heads.values())
    assert pilot.tick("canary_clock").skipped == "no canary runs"
    assert life.findings() == []


def test_without_autopilot_a_person_decides_each_step(manual: Chain, life: Life) -> None:
    complete(life)
    result = manual.follow(manual.tick("experiment_complete"))
    assert said_to_have(result, "canary_rollout") == "warmer waits for a person to begin its canary"
    assert manual.tick("experiment_complete").skipped == (
        "warmer found a better arm; the autopilot is off (SOMABRAIN_AUTOPILOT), so a person decides"
    )

    assert manual.materialise("canary_rollout").success
    life.everybody(lambda arm: 0.6 if arm else 0.1)
    result = manual.follow(manual.tick("canary_clock"))
    assert "PROMOTE" in said_to_have(result, "canary_rollout")
    assert "a person decides" in said_to_have(result, "promoted_weights")
    assert "a person decides" in manual.tick("canary_clock").skipped
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).version == 0

    assert manual.materialise("promoted_weights").success
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).version == 1


def test_a_promotion_materialised_alone_is_refused_by_its_own_transaction(manual: Chain, life: Life) -> None:
    life.won(6)
    canary = life.canary()
    life.look(canary, 0, guardrails={})
    with life.database.as_owner() as owner:
        owner.execute("UPDATE canary_looks SET action = 'PROMOTE'")

    result = manual.materialise("promoted_weights")

    assert not result.success
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert "not what its stored numbers give" in str(failure.step_failure_data.error)
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).version == 0
        assert running_canary(connection) is not None
    rollout = manual.materialise("canary_rollout")
    assert not checks_of(rollout)["every_look_decides_what_its_numbers_say"].passed


def test_a_canary_that_holds_at_its_last_look_waits_for_a_person(pilot: Chain, life: Life) -> None:
    complete(life)
    pilot.follow(pilot.tick("experiment_complete"))
    result = pilot.follow(pilot.tick("canary_clock"))
    assert "HOLD" in said_to_have(result, "canary_rollout")
    assert "nothing is to be promoted" in said_to_have(result, "promoted_weights")
    with life.database.snapshot() as connection:
        (canary,) = list_canaries(connection)
    assert canary.status == "held"
    assert pilot.tick("canary_clock").skipped == "no canary runs"
    assert pilot.tick("experiment_complete").skipped == (
        "no experiment runs, and no accepted proposal waits for one"
    )


def test_a_hundred_events_land_and_the_daemon_itself_updates_the_weights(
    postgres: PostgresServer,
    database: Database,
    valkey: ValkeyServer,
    empty_template: str,
    minilm: Embedder,
    reenactment: Reenactment,
    tmp_path: Path,
) -> None:
    """Real questions, each with the answer that was really given; nothing is touched but what lands."""
    settings = settings_for(database.url, valkey, home=tmp_path)
    with ExitStack() as stack:
        storage = stack.enter_context(new_database(postgres, empty_template))
        servers = Servers(database.url, postgres.url(storage), valkey.url)
        environment = {
            **os.environ,
            **prepare(settings, servers),
            "SOMABRAIN_SENSOR_INTERVAL_SECONDS": "1",
            "SOMABRAIN_AUTOPILOT": "1",
        }
        opened = stack.enter_context(opened_instance(settings, servers))
        log = tmp_path / "daemon.log"
        stack.enter_context(daemon(environment, workspace(settings), log))
        wait_until(lambda: "feedback_landed skipped: everything up to position" in log.read_text())

        told = reenactment.stories[:2]
        reenact(database, minilm, SETTINGS, told, replace(PLAN, feedback=100, held_out=1))

        def updates() -> list[tuple[str, int]]:
            with database.snapshot() as connection:
                return connection.execute(
                    "SELECT tenant_id, version FROM weight_changes WHERE cause = 'tenant_fit'"
                ).fetchall()

        wait_until(lambda: bool(updates()))
        (tick, *_) = opened.get_ticks(
            *next(
                (state.instigator_origin_id, state.selector_id)
                for state in opened.all_instigator_state()
                if state.instigator_name == "feedback_landed"
            ),
            statuses=[TickStatus.SUCCESS],
            limit=1,
        )
        assert tick.run_ids, "the update came of a run that the sensor's own tick asked for"
        with database.snapshot() as connection:
            assert connection.execute("SELECT count(*) FROM parameter_proposals").fetchone() == (1,)
            assert [str(finding) for finding in verify(connection).findings] == []
