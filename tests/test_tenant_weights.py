"""Weights of a tenant's own, fitted to what it taught: kept always, carried out where they pay, provable."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pytest

from somabrain_dagster.assets.proposals import tenant_weights
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.learning.gated_fit import LEAST_CHOICES
from somabrain_dagster.learning.weights import POSITION, RETRIEVAL, TAU, to_nanos
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.adaptation import read_state
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.changes import reset, roll_back
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.promotions import promote
from somabrain_dagster.store.tenant_fits import (
    TENANT_FIT,
    Share,
    TenantFit,
    apply_fits,
    fit_tenant,
    fit_tenants,
    read_due,
    read_newest_fits,
    shift_of,
)
from somabrain_dagster.store.verification import REDERIVATION, verify
from tests.brain import CONFIGURATION, assert_sound, changes_of, landed, said, state_of
from tests.chain import QUIETLY
from tests.conftest import new_database
from tests.forgery import as_forger, forge_change, shuffle_labels
from tests.reenacted import PEOPLE, PLAN, SETTINGS, Reenactment

EVENTS, MOST = 25, 500


def away_from_what_people_want(database: Database) -> None:
    """Promote weights that real people's feedback speaks against, so that their own fits pay."""
    with database.as_operator() as connection:
        promote(connection, {"gamma": 0.0, "delta": 2.0, "zeta": -2.0}, CONFIGURATION, "a test")


def fitted(database: Database, events: int = EVENTS) -> list[TenantFit]:
    made = list(fit_tenants(database, CONFIGURATION, events=events, most=MOST))
    assert all(isinstance(one, TenantFit) for one in made), made
    return [one for one in made if isinstance(one, TenantFit)]


def newest(database: Database) -> dict[str, TenantFit]:
    with database.snapshot() as connection:
        return {fit.tenant_id: fit for fit in read_newest_fits(connection)}


def findings(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return [str(finding) for finding in verify(connection).findings]


def test_each_tenant_with_feedback_enough_is_fitted_and_the_fit_is_kept(taught: Database) -> None:
    made = fitted(taught)
    assert len(made) == PEOPLE
    for fit in made:
        gates = {gate.name: gate for gate in fit.gates}
        assert (fit.recalls, fit.first_seq, fit.last_seq) == (PLAN.feedback, 1, PLAN.feedback)
        assert gates["recalls"].value == PLAN.feedback
        assert fit.accepted == (gates["gain_lower_bound"].value > 0) == (not fit.refusals)
        assert fit.prior.tolist() == CONFIGURATION.start_nanos.tolist()
        assert fit.applied_version is None
        if not fit.accepted:
            assert fit.weights.tolist() == fit.prior.tolist()
    assert any(fit.accepted for fit in made)
    assert fitted(taught) == []  # nothing is new


def test_an_accepted_fit_is_one_change_of_the_retrieval_weights_and_of_nothing_else(taught: Database) -> None:
    made = fitted(taught)
    accepted = [fit for fit in made if fit.accepted]
    before = {fit.tenant_id: state_of(taught, fit.tenant_id) for fit in made}
    states = {state.tenant_id: state for state in apply_fits(taught, CONFIGURATION, made)}
    assert states.keys() == {fit.tenant_id for fit in accepted}
    for fit in accepted:
        state, was = states[fit.tenant_id], before[fit.tenant_id]
        *_, change = changes_of(taught, fit.tenant_id)
        assert change["cause"] == TENANT_FIT
        assert state.version == change["version"] == was.version + 1
        assert state.weights[RETRIEVAL].tolist() == fit.weights[RETRIEVAL].tolist()
        assert state.weights[TAU:].tolist() == was.weights[TAU:].tolist()
        assert newest(taught)[fit.tenant_id].applied_version == state.version
        assert_sound(taught, fit.tenant_id)
    for fit in made:
        if not fit.accepted:
            assert state_of(taught, fit.tenant_id).version == before[fit.tenant_id].version
    assert findings(taught) == []
    assert apply_fits(taught, CONFIGURATION, list(newest(taught).values())) == []


def test_a_tenant_goes_on_learning_from_its_fit_and_every_step_is_rederived(taught: Database) -> None:
    (fit, *_) = [one for one in fitted(taught) if one.accepted]
    apply_fits(taught, CONFIGURATION, [fit])
    landed(taught, [said(fit.tenant_id, utility=0.5)] * 3)
    assert_sound(taught, fit.tenant_id)
    assert findings(taught) == []


def test_labels_that_say_nothing_give_nobody_weights_of_their_own(taught: Database) -> None:
    shuffle_labels(taught)
    made = fitted(taught)
    assert len(made) == PEOPLE
    assert sum(fit.accepted for fit in made) <= 1  # one in twenty would pass by chance


def test_a_fit_starts_from_what_is_promoted(taught: Database) -> None:
    away_from_what_people_want(taught)
    made = fitted(taught)
    with taught.as_operator() as connection:
        ((weights,),) = connection.execute("SELECT weights FROM promotions").fetchall()
    assert all((fit.prior == np.array(weights)).all() for fit in made)
    assert {fit.promotion_version for fit in made} == {1}
    assert all(fit.accepted for fit in made)


def test_a_tenant_with_too_little_feedback_is_not_looked_at(taught: Database) -> None:
    with taught.snapshot() as connection:
        assert read_due(connection, PLAN.feedback + 1) == []
        assert len(read_due(connection, PLAN.feedback)) == PEOPLE


def test_a_tenant_of_whose_feedback_too_little_still_teaches_is_refused(taught: Database) -> None:
    with taught.snapshot() as connection:
        (tenant_id, *_) = read_due(connection, EVENTS)
    with taught.as_operator() as connection:
        connection.execute(
            """
            DELETE FROM memories m USING recalls r, feedback_events e
            WHERE r.tenant_id = m.tenant_id AND m.memory_id = r.candidate_ids[1]
                AND e.tenant_id = r.tenant_id AND e.recall_id = r.recall_id AND e.seq > %s
                AND m.tenant_id = %s
            """,
            (LEAST_CHOICES - 5, tenant_id),
        )
    fit = fit_tenant(taught, tenant_id, CONFIGURATION, MOST)
    assert fit is not None
    assert fit.recalls < LEAST_CHOICES
    assert not fit.accepted
    assert fit.refusals[0].startswith(f"recalls ≥ {LEAST_CHOICES}: {fit.recalls}, failed by")
    assert fit.refusals[-1] == "gain_lower_bound > 0: not measured"


def test_only_new_feedback_makes_another_fit_due(taught: Database) -> None:
    (one, *_) = fitted(taught)
    landed(taught, [said(one.tenant_id)] * EVENTS)  # it names no memory: it teaches no fit
    assert fitted(taught) == []
    with taught.snapshot() as connection:
        ((recall_id, memory),) = connection.execute(
            "SELECT recall_id, (helpful -> 0 ->> 'memory')::bigint FROM feedback_events "
            "WHERE tenant_id = %s AND seq = 1",
            (one.tenant_id,),
        ).fetchall()
    words = said(one.tenant_id, recall_id=recall_id, label="full", helpful=[{"memory": memory}])
    landed(taught, [words] * (EVENTS - 1))
    assert fitted(taught) == []
    landed(taught, [words])
    (again,) = fitted(taught)
    assert (again.tenant_id, again.last_seq) == (one.tenant_id, PLAN.feedback + 2 * EVENTS)


def test_a_fit_to_other_promoted_weights_is_not_carried_out_any_more(taught: Database) -> None:
    made = fitted(taught)
    away_from_what_people_want(taught)
    assert apply_fits(taught, CONFIGURATION, made) == []


@pytest.mark.parametrize("undo", ["rollback", "reset"])
def test_a_fit_never_undoes_what_an_operator_did_after_it(taught: Database, undo: str) -> None:
    (fit, *_) = [one for one in fitted(taught) if one.accepted]
    with taught.as_operator() as connection:
        if undo == "reset":
            reset(connection, fit.tenant_id, CONFIGURATION, "a test")
        else:
            roll_back(connection, fit.tenant_id, 0, CONFIGURATION, "a test")
    was = state_of(taught, fit.tenant_id)
    assert apply_fits(taught, CONFIGURATION, [fit]) == []
    assert state_of(taught, fit.tenant_id).weights.tolist() == was.weights.tolist()


def test_a_tenants_own_bounds_hold(taught: Database) -> None:
    """Overrides narrow the box of the fit, and the change clips to them."""
    away_from_what_people_want(taught)
    with taught.snapshot() as connection:
        (tenant_id, *_) = read_due(connection, EVENTS)
    with taught.as_operator() as connection:
        connection.execute(
            """UPDATE tenants SET overrides = '{"high": {"zeta": 0.125}}' WHERE tenant_id = %s""",
            (tenant_id,),
        )
    fit = fit_tenant(taught, tenant_id, CONFIGURATION, MOST)
    assert fit is not None
    assert fit.accepted
    assert fit.weights[POSITION["zeta"]] <= to_nanos(0.125)
    apply_fits(taught, CONFIGURATION, [fit])
    assert state_of(taught, tenant_id).weights[RETRIEVAL].tolist() == fit.weights[RETRIEVAL].tolist()
    assert findings(taught) == []


# ------------------------------------------------------------------------------------------------ the proofs


@pytest.fixture(scope="module")
def carried_out(postgres: PostgresServer, reenactment: Reenactment) -> Iterator[tuple[Database, TenantFit]]:
    """A brain in which all accepted fits are carried out, and one of them; forgeries in it are taken back."""
    with new_database(postgres, reenactment.template) as name, Database(postgres.url(name)) as database:
        made = fitted(database)
        apply_fits(database, CONFIGURATION, made)
        yield database, next(fit for fit in newest(database).values() if fit.accepted)


def found_after(database: Database, tables: Sequence[str], forgery: str, *arguments: object) -> list[str]:
    """What the proofs find once the owner has forged, and which is then taken back."""
    with database.as_owner() as connection, connection.transaction(force_rollback=True):
        as_forger(connection, *tables)
        connection.execute(forgery.encode(), arguments)
        connection.execute("SET LOCAL ROLE somabrain_operator")
        return [str(finding) for finding in verify(connection).of(REDERIVATION)]


def test_a_change_that_is_not_what_its_fit_came_to_is_found(carried_out: tuple[Database, TenantFit]) -> None:
    database, fit = carried_out
    low = shift_of(fit.weights, CONFIGURATION).low.copy()
    low[0] -= 1000
    forgery = "UPDATE weight_changes SET low = %s WHERE tenant_id = %s AND version = %s"
    where = f"{fit.tenant_id}, version {fit.applied_version}"
    assert found_after(
        database, ["weight_changes"], forgery, low.tolist(), fit.tenant_id, fit.applied_version
    ) == [f"{where}: it is not what the fit up to event {PLAN.feedback} came to"]


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        ("weights[1] = weights[1] + 1", "it is not what the fit up to event 100 came to"),
        ("gates = jsonb_set(gates, '{2,value}', '-0.5')", "the fit up to event 100 was refused"),
        ("accepted = false", "the fit up to event 100 was refused"),
        ("applied_version = NULL", "no fit of the tenant names it"),
        ("applied_version = 1", "the fit up to event 100 names a change that is none"),
    ],
)
def test_a_forged_fit_is_found(carried_out: tuple[Database, TenantFit], forgery: str, message: str) -> None:
    database, fit = carried_out
    statement = f"UPDATE tenant_fits SET {forgery} WHERE tenant_id = %s"  # noqa: S608 — of constants
    found = found_after(database, ["tenant_fits"], statement, fit.tenant_id)
    assert any(finding.startswith(fit.tenant_id) and message in finding for finding in found)


def test_a_forged_change_is_found_though_everything_after_it_fits(taught: Database) -> None:
    (fit, *_) = [one for one in fitted(taught) if one.accepted]
    (state,) = apply_fits(taught, CONFIGURATION, [fit])
    forge_change(taught, fit.tenant_id, state.version, 1)
    with taught.snapshot() as connection:
        found = verify(connection).of(REDERIVATION)
    assert [(one.tenant_id, one.version) for one in found] == [(fit.tenant_id, state.version)]


def test_shares_fit_each_tenant_once_and_as_all_at_once_does(
    taught: Database, postgres: PostgresServer, reenactment: Reenactment
) -> None:
    def result(fit: TenantFit) -> tuple[object, ...]:
        return fit.last_seq, fit.accepted, fit.weights.tolist(), [gate.to_json() for gate in fit.gates]

    together = {fit.tenant_id: result(fit) for fit in fitted(taught)}
    with new_database(postgres, reenactment.template) as name, Database(postgres.url(name)) as other:
        shared = [
            {
                one.tenant_id: result(one)
                for one in fit_tenants(other, CONFIGURATION, events=EVENTS, most=MOST, share=Share(number, 3))
                if isinstance(one, TenantFit)
            }
            for number in range(3)
        ]
    assert sum(map(len, shared)) == len(together)
    assert shared[0] | shared[1] | shared[2] == together


def test_every_tenant_is_in_one_share_and_shares_are_about_equal() -> None:
    tenants = [f"tenant-{number}" for number in range(4000)]
    shares = [Share(number, 16) for number in range(16)]
    sizes = [sum(tenant in share for tenant in tenants) for share in shares]
    assert sum(sizes) == len(tenants)
    assert min(sizes) > 180  # 250 are expected: 4.6 standard deviations
    assert all(tenant in Share() for tenant in tenants)
    with pytest.raises(ValueError, match="no share 16 of 16"):
        Share(16, 16)


# ------------------------------------------------------------------------------------------------ the asset


@pytest.fixture
def snapshots(valkey: ValkeyServer) -> SnapshotCache:
    return SnapshotCache(valkey.url)


def materialized(database: Database, snapshots: SnapshotCache, **config: bool) -> Mapping[str, Any]:
    result = dg.materialize(
        [tenant_weights],
        resources={"brain": Brain(SETTINGS, database, snapshots)},
        run_config={**QUIETLY, "ops": {"tenant_weights": {"config": config}}},
    )
    (event,) = result.asset_materializations_for_node("tenant_weights")
    return event.metadata


def test_without_leave_to_change_fits_are_kept_and_carried_out_once_there_is(
    taught: Database, snapshots: SnapshotCache
) -> None:
    kept = materialized(taught, snapshots, change=False)
    accepted = [fit for fit in newest(taught).values() if fit.accepted]
    assert accepted
    assert kept["fitted in this run"].value == kept["dagster/row_count"].value == PEOPLE
    assert kept["carried out in this run"].value == 0
    assert kept["accepted and not carried out"].value == len(accepted)
    assert kept["gain by tenant"].value.startswith("![gain by tenant](data:image/png")
    causes = {change["cause"] for fit in accepted for change in changes_of(taught, fit.tenant_id)}
    assert TENANT_FIT not in causes

    done = materialized(taught, snapshots)
    assert done["fitted in this run"].value == 0
    assert done["carried out in this run"].value == len(accepted)
    assert done["accepted and not carried out"].value == 0
    for fit in accepted:
        published = snapshots.read(fit.tenant_id)
        with taught.as_tenants([fit.tenant_id]) as connection:
            state = read_state(connection, fit.tenant_id)
        assert published is not None
        assert (published["version"], published["nanos"]) == (state.version, state.weights.tolist())

    again = materialized(taught, snapshots)
    assert again["fitted in this run"].value == again["carried out in this run"].value == 0
    assert findings(taught) == []
