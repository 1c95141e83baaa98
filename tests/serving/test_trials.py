"""What the service says of trials: the arm that a session sees, known within a moment of its beginning."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import numpy as np
import pytest

from somabrain_dagster.client import SomaBrain
from somabrain_dagster.learning.experiments import Plan, shared_equally
from somabrain_dagster.learning.weights import NAMES, POSITION, to_nanos
from somabrain_dagster.store.experiments import create_experiment, start_experiment, stop_experiment
from somabrain_dagster.store.promotions import promote, undo_promotion
from somabrain_dagster.store.trials import read_trials
from tests.brain import CONFIGURATION
from tests.serving.running import Running, until

SESSIONS = [f"session-{number}" for number in range(20)]
SHIFTS = np.zeros((2, len(NAMES)), dtype=np.int64)
SHIFTS[1, POSITION["alpha"]] = to_nanos([0.5])[0]


@contextmanager
def experiment(service: Running) -> Iterator[str]:
    """An experiment that runs until the end of the block."""
    name = f"experiment-{uuid4().hex[:8]}"
    plan = Plan(shared_equally(["control", "warm"]), size=176)
    with service.database.as_operator() as connection:
        create_experiment(connection, name, plan, SHIFTS, CONFIGURATION, "tests")
        start_experiment(connection, name, CONFIGURATION, "tests")
    try:
        yield name
    finally:
        with service.database.as_operator() as connection:
            stop_experiment(connection, name, "tests", "the test is over")


@contextmanager
def canary(service: Running, experiment_id: str, tenant: str) -> Iterator[str]:
    """A canary of one tenant that runs until the end of the block."""
    with service.database.as_operator() as connection:
        ((number,),) = connection.execute(
            "INSERT INTO canaries (experiment_id, arm, actor, shift, rule) "
            "VALUES (%s, 'warm', 'tests', %s, '{}') RETURNING canary_id",
            (experiment_id, SHIFTS[1].tolist()),
        ).fetchall()
        connection.execute(
            "INSERT INTO canary_members (tenant_id, canary_id, canary) VALUES (%s, %s, true)",
            (tenant, number),
        )
    try:
        yield f"canary-{number}/canary"
    finally:
        with service.database.as_operator() as connection:
            connection.execute(
                "UPDATE canaries SET status = 'rolled_back', ended_at = now() WHERE canary_id = %s", (number,)
            )


@pytest.fixture
def brain(service: Running, tenant: tuple[str, str]) -> Iterator[SomaBrain]:
    with SomaBrain(service.url, tenant[1]) as connected:
        yield connected


def test_a_session_is_told_its_arm_while_the_experiment_runs(
    service: Running, tenant: tuple[str, str], brain: SomaBrain
) -> None:
    name, _ = tenant
    assert brain.state("session-1").arm is None
    with experiment(service) as experiment_id:
        until(lambda: brain.state("session-1").arm is not None, seconds=1)
        with service.database.as_operator() as connection:
            trials = read_trials(connection)
        told = {session: brain.state(session).arm for session in SESSIONS}
        assert told == {session: trials.arm_of(name, session) for session in SESSIONS}
        assert set(told.values()) == {f"{experiment_id}/control", f"{experiment_id}/warm"}
        for session, arm in told.items():
            assert arm == f"{experiment_id}/{brain.assignment(experiment_id, f'{name}/{session}').arm}"
        assert brain.state().arm is None  # outside of any session nothing is tried
        brain.remember("bob bakes bread")
        assert brain.recall("who bakes?", session_id="session-1")["arm"] == told["session-1"]
    until(lambda: brain.state("session-1").arm is None, seconds=1)


def test_a_tenant_of_a_canary_is_told_so_in_every_session_and_outside(
    service: Running, tenant: tuple[str, str], brain: SomaBrain
) -> None:
    other, key = f"{tenant[0]}-other", service.add_tenants([f"{tenant[0]}-other"])[f"{tenant[0]}-other"]
    with experiment(service) as experiment_id:
        pass
    with canary(service, experiment_id, tenant[0]) as arm, SomaBrain(service.url, key) as elsewhere:
        until(lambda: brain.state().arm == arm, seconds=1)
        assert brain.state("session-1").arm == arm
        assert (elsewhere.state().arm, elsewhere.state().tenant_id) == (None, other)
        assert brain.reset().arm == arm
    until(lambda: brain.state().arm is None, seconds=1)


def test_a_promotion_is_served_within_a_moment_whoever_made_it(
    service: Running, tenant: tuple[str, str], brain: SomaBrain
) -> None:
    before = brain.state()
    with service.database.as_operator() as connection:
        promote(connection, {"beta": 0.25}, CONFIGURATION, "tests")
    until(lambda: brain.state().version > before.version, seconds=1)
    assert brain.state().weights["beta"] == 0.25
    assert brain.promoted().weights["beta"] == 0.25
    with service.database.as_operator() as connection:
        undo_promotion(connection, CONFIGURATION, "tests")
    until(lambda: brain.state().weights == before.weights, seconds=1)
