"""From an experiment to a promotion: what arms see, when one look is taken, what no gate lets through.

The worth of sessions is generated here, with a known effect; tenants, memories, recalls and logs are real.
"""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from somabrain_dagster.learning.experiments import Plan, PromotionRule, assign, shared_equally
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.weights import from_names, to_units
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.store.canaries import (
    ForgedLook,
    NothingToPromote,
    members_of,
    read_canary,
    read_look,
    running_canary,
    start_canary,
    stop_canary,
)
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import (
    Forged,
    InvalidExperiment,
    NotAnalysed,
    UnknownExperiment,
    WrongStatus,
    complete_experiment,
    create_experiment,
    progress_of,
    read_analysis,
    read_live_sessions,
    read_sessions,
    running_experiment,
    start_experiment,
    stop_experiment,
)
from somabrain_dagster.store.overviews import read_overviews
from somabrain_dagster.store.promoting import PromotionRefused, promote_canary, read_candidate
from somabrain_dagster.store.promotions import NothingPromoted, promote, promoted, undo_promotion
from somabrain_dagster.store.scales import SHIPPED_SCALES, add_scales, read_scales
from somabrain_dagster.store.trials import TrialRunning, read_trials
from tests.brain import CONFIGURATION, changes_of, events_of, landed, new_tenant, said, state_of
from tests.remembering import logged
from tests.trials import ACTOR, CLEAN, LENIENT, SOON, Life, new_life, shift

pytestmark = pytest.mark.learning


@pytest.fixture
def life(database: Database, minilm: Embedder) -> Life:
    return new_life(database, minilm)


def vectors(life: Life) -> dict[str, list[int]]:
    return {tenant: state_of(life.database, tenant).weights.tolist() for tenant in life.tenants}


def audited(life: Life, action: str) -> list[dict[str, object]]:
    with life.database.snapshot() as connection:
        rows = connection.execute(
            "SELECT body FROM audit_events WHERE tenant_id = '_system' AND action = %s ORDER BY version",
            (action,),
        )
        return [body for (body,) in rows]


# What an arm sees


def test_a_session_sees_its_arm_and_the_log_says_so(life: Life) -> None:
    experiment = life.experiment(alpha=0.5)
    tenant = life.tenants[0]
    seen = {}
    for number in range(12):
        recall = life.recall(tenant, f"s-{number}")
        arm = assign(experiment.salt, f"{tenant}/s-{number}", experiment.plan.arms)
        row = logged(life.database, tenant, recall.recall_id)
        assert recall.arm == row["arm"] == f"warmer/{arm}"
        expected = CONFIGURATION.start_nanos + (shift(alpha=0.5) if arm == "warm" else 0)
        assert row["weights"] == expected.tolist()
        seen[arm] = recall
    assert set(seen) == {"control", "warm"}
    assert seen["warm"].weights["alpha"] == pytest.approx(seen["control"].weights["alpha"] + 0.5)
    assert state_of(life.database, tenant).version == 0, "an arm is no entry of the log"


def test_feedback_has_the_arm_of_its_session_and_a_repeat_gets_the_first_answer(life: Life) -> None:
    experiment = life.experiment()
    tenant = life.tenants[0]
    for number in range(6):
        landed(life.database, [said(tenant, 0.5, session_id=f"s-{number}", idempotency_key=f"k-{number}")])
    for event in events_of(life.database, tenant):
        arm = assign(experiment.salt, f"{tenant}/{event['session_id']}", experiment.plan.arms)
        assert event["arm"] == f"warmer/{arm}"
    with life.database.as_operator() as connection:
        stop_experiment(connection, "warmer", ACTOR, "over")
    (again,) = landed(life.database, [said(tenant, 0.5, session_id="s-0", idempotency_key="k-0")])
    assert (again.repeated, again.seq) == (True, 1)
    landed(life.database, [said(tenant, 0.5, session_id="s-9")])
    assert events_of(life.database, tenant)[-1]["arm"] is None


def test_a_recall_outside_of_sessions_is_no_unit(life: Life) -> None:
    life.experiment()
    recall = life.recall(life.tenants[0], None)
    assert recall.arm is None
    assert recall.weights["alpha"] == CONFIGURATION.start["alpha"]


def test_an_arm_stays_within_the_bounds(life: Life) -> None:
    life.experiment(alpha=50.0, gamma=-50.0)
    warm = next(
        recall
        for recall in (life.recall(life.tenants[0], f"s-{number}") for number in range(40))
        if recall.arm == "warmer/warm"
    )
    assert (warm.weights["alpha"], warm.weights["gamma"]) == (
        CONFIGURATION.high["alpha"],
        CONFIGURATION.low["gamma"],
    )


def test_an_arm_may_see_other_scales(life: Life) -> None:
    with life.database.as_operator() as connection:
        shipped = read_scales(connection, SHIPPED_SCALES)
        doubled = Scales(9, tuple(2 * value for value in shipped.values), shipped.half_life_seconds)
        add_scales(connection, doubled, "twice the shipped ones, for this test")
    life.experiment(scale_version=9, alpha=0.1)
    tenant = life.tenants[0]
    arms = {}
    for number in range(12):
        recall = life.recall(tenant, f"s-{number}")
        arms[recall.arm] = logged(life.database, tenant, recall.recall_id)
    control, warm = arms["warmer/control"], arms["warmer/warm"]
    assert (control["scale_version"], warm["scale_version"]) == (SHIPPED_SCALES, 9)
    np.testing.assert_allclose(warm["features"] * 2, control["features"])
    converted = np.clip(
        rescaled(CONFIGURATION.start_nanos, shipped, doubled),
        CONFIGURATION.low_nanos,
        CONFIGURATION.high_nanos,
    )
    assert warm["weights"] == (converted + shift(alpha=0.1)).tolist()


# Drawing up, starting, stopping


def test_what_cannot_be_an_experiment_is_refused(life: Life) -> None:
    plan = Plan(shared_equally(["control", "warm"]), 8, LENIENT)
    cases = [
        ("Warm!", np.array([shift(), shift(alpha=1)]), "cannot be an experiment's name"),
        ("warm", np.array([shift(alpha=1), shift(alpha=1)]), "must shift nothing"),
        ("warm", np.array([shift(), shift()]), "must shift something"),
        ("warm", np.array([shift()]), "2 arms need as many shifts"),
    ]
    for name, shifts, why in cases:
        with life.database.as_operator() as connection, pytest.raises(InvalidExperiment, match=why):
            create_experiment(connection, name, plan, shifts, CONFIGURATION, ACTOR)


def test_one_thing_is_on_trial_at_a_time(life: Life) -> None:
    life.experiment(name="first")
    with pytest.raises(TrialRunning, match="'first' runs"):
        life.experiment(name="second")


def test_a_list_tells_of_an_experiment_what_its_analysis_found(life: Life) -> None:
    analysed = life.won(size=8)
    life.canary()
    with life.database.as_operator() as connection:
        (told,) = read_overviews(connection)
    (finding,) = analysed.analysis.findings
    assert finding.comparison is not None
    assert (told.promoted_arm, told.canary) == ("warm", "running")
    control, warm = told.arms
    assert (control.name, control.sessions, control.p, control.d) == ("control", 8, None, None)
    assert (warm.name, warm.sessions, warm.p) == ("warm", 8, finding.p)
    assert warm.d == pytest.approx(finding.comparison.d)
    assert control.mean == pytest.approx(-0.3)
    assert warm.mean == pytest.approx(0.3)


def test_a_list_counts_the_sessions_of_an_experiment_while_it_runs(life: Life) -> None:
    life.fill(life.experiment(size=8), {"control": [0.5, 0.1], "warm": [0.2]})
    with life.database.as_operator() as connection:
        (told,) = read_overviews(connection)
    assert [(arm.sessions, arm.p) for arm in told.arms] == [(2, None), (1, None)]
    assert [arm.mean for arm in told.arms] == pytest.approx([0.3, 0.2])
    assert (told.promoted_arm, told.canary) == (None, None)


def test_an_experiment_runs_once(life: Life) -> None:
    life.experiment()
    with life.database.as_operator() as connection:
        ended = stop_experiment(connection, "warmer", ACTOR, "a person thought better of it")
    assert (ended.status, ended.end_reason) == ("stopped", "a person thought better of it")
    assert life.recall(life.tenants[0], "after").arm is None
    with life.database.as_operator() as connection:
        with pytest.raises(WrongStatus, match="runs once"):
            start_experiment(connection, "warmer", CONFIGURATION, ACTOR)
        with pytest.raises(WrongStatus, match="does not run"):
            stop_experiment(connection, "warmer", ACTOR, "again")
        with pytest.raises(NotAnalysed, match="it is stopped"):
            read_analysis(connection, "warmer")
        with pytest.raises(UnknownExperiment, match="'colder'"):
            stop_experiment(connection, "colder", ACTOR, "")


def test_an_experiment_that_compares_with_old_weights_does_not_start(life: Life) -> None:
    plan = Plan(shared_equally(["control", "warm"]), 8, LENIENT)
    shifts = np.array([shift(), shift(alpha=0.5)])
    with life.database.as_operator() as connection:
        create_experiment(connection, "late", plan, shifts, CONFIGURATION, ACTOR)
        promote(connection, {"alpha": 1.2}, CONFIGURATION, ACTOR)
    with life.database.as_operator() as connection, pytest.raises(WrongStatus, match="draw it up anew"):
        start_experiment(connection, "late", CONFIGURATION, ACTOR)


# The one look


def test_there_is_no_look_before_each_arm_has_its_sessions(life: Life) -> None:
    experiment = life.experiment(size=4)
    life.fill(experiment, {"control": [0.1, 0.2, 0.3, 0.4], "warm": [0.5, 0.6]})
    too_few = pytest.raises(WrongStatus, match="needs 4 sessions an arm, and has 2 in 'warm'")
    with life.database.as_operator() as connection, too_few:
        complete_experiment(connection, "warmer", ACTOR, online_bound=False)
    with life.database.snapshot() as connection:
        assert running_experiment(connection) is not None
        assert read_sessions(connection, "warmer") == []


def test_a_better_arm_is_found_and_everything_is_kept(life: Life) -> None:
    analysed = life.won(size=8)
    (finding,) = analysed.analysis.findings
    assert analysed.analysis.promoted == "warm"
    assert finding.comparison is not None
    assert finding.comparison.difference == pytest.approx(0.6)
    assert {gate.name for gate in finding.gates} >= {"sample_ratio", "sessions", "p", "d", "difference"}
    with life.database.snapshot() as connection:
        sessions = read_sessions(connection, "warmer")
        again = read_analysis(connection, "warmer")
    assert len(sessions) == 16
    assert {(one.arm, one.events) for one in sessions} == {("control", 1), ("warm", 1)}
    assert again.outcomes == analysed.outcomes
    (body,) = audited(life, "experiment.completed")
    assert body["promoted_arm"] == "warm"
    assert body["rule"] == {"alpha": 0.05, "effect": 0.3, "sample_ratio": 0.001}


def test_a_session_is_one_number_however_much_is_said_in_it(life: Life) -> None:
    experiment = life.experiment(size=2)
    tenant = life.tenants[0]
    recall = life.recall(tenant, "talkative")
    landed(life.database, [said(tenant, worth, session_id="talkative") for worth in (0.0, 0.5, 1.0)])
    with life.database.snapshot() as connection:
        (session,) = read_live_sessions(connection, experiment)
    assert (session.value, session.events) == (0.5, 3)
    assert f"warmer/{session.arm}" == recall.arm


def test_what_was_said_before_the_first_recall_does_not_count(life: Life) -> None:
    tenant = life.tenants[0]
    landed(life.database, [said(tenant, -1.0, session_id="old")])
    experiment = life.experiment()
    landed(life.database, [said(tenant, -1.0, session_id="silent")])
    life.recall(tenant, "old")
    landed(life.database, [said(tenant, 1.0, session_id="old")])
    with life.database.snapshot() as connection:
        (session,) = read_live_sessions(connection, experiment)
    assert (session.session_id, session.value) == ("old", 1.0)


def test_equal_arms_promote_nothing_and_say_why(life: Life) -> None:
    experiment = life.experiment(size=6)
    spread = np.linspace(-0.3, 0.3, 6)
    life.fill(experiment, {"control": spread, "warm": spread})
    with life.database.as_operator() as connection:
        analysed = complete_experiment(connection, "warmer", ACTOR, online_bound=False)
    assert analysed.analysis.promoted is None
    nothing = pytest.raises(NothingToPromote, match=r"p < 0\.05: 1, failed by")
    with life.database.as_operator() as connection, nothing:
        start_canary(connection, "warmer", SOON, CONFIGURATION, ACTOR)


def test_a_harmful_arm_shows_before_its_time(life: Life) -> None:
    experiment = life.experiment(size=40)
    spread = np.linspace(-0.1, 0.1, 12)
    life.fill(experiment, {"control": spread + 0.6, "warm": spread - 0.6})
    with life.database.snapshot() as connection:
        progress = progress_of(experiment.plan, read_live_sessions(connection, experiment))
    assert progress.harmful == ("warm",)
    assert not progress.complete


def test_the_level_of_each_experiment_follows_from_those_before(life: Life) -> None:
    first = life.won(name="first", size=6)
    second = life.won(name="second", size=6)
    assert (first.test, second.test) == (1, 2)
    assert first.online_level == pytest.approx(0.0002675839, rel=1e-6)
    assert second.online_level > first.online_level, "a discovery earns the next tests more"


def test_the_level_over_all_experiments_can_be_a_gate(life: Life) -> None:
    experiment = life.experiment(size=6, rule=PromotionRule(alpha=0.05, effect=0.3))
    spread = np.linspace(-0.3, 0.3, 6)
    life.fill(experiment, {"control": spread - 0.2, "warm": spread + 0.2})
    with life.database.as_operator() as connection:
        analysed = complete_experiment(connection, "warmer", ACTOR, online_bound=True)
    (finding,) = analysed.analysis.findings
    refused = [gate.name for gate in finding.gates if not gate.passed]
    assert refused == ["online_p"], "p < .05, and yet above what LORD++ allows the first experiment"


def test_a_forged_session_or_analysis_shows(life: Life) -> None:
    life.won(size=6)
    with life.database.as_owner() as owner:
        owner.execute(
            "UPDATE experiment_sessions SET value = 1 "
            "WHERE (tenant_id, session_id) = (SELECT tenant_id, session_id FROM experiment_sessions LIMIT 1)"
        )
    with life.database.as_operator() as connection, pytest.raises(Forged, match="not that of its stored"):
        read_analysis(connection, "warmer")
    with life.database.as_operator() as connection, pytest.raises(Forged):
        start_canary(connection, "warmer", SOON, CONFIGURATION, ACTOR)


# The canary


def test_canaries_see_the_new_weights_and_nobody_else_does(life: Life) -> None:
    life.won()
    canary = life.canary()
    with life.database.snapshot() as connection:
        members, others = members_of(connection, canary.canary_id)
    assert len(members) == len(others) == 3
    assert sorted(members + others) == life.tenants
    for tenant in life.tenants:
        recall = life.recall(tenant, "any")
        expected = to_units(state_of(life.database, tenant).weights)[0] + (0.5 if tenant in members else 0.0)
        assert recall.weights["alpha"] == pytest.approx(expected)
        assert recall.arm == (canary.name if tenant in members else None)


def test_missing_data_never_promotes(life: Life) -> None:
    life.won()
    canary = life.canary()
    looked = life.look(canary, 1, guardrails={})
    assert looked.action == "HOLD"
    assert any("error_rate" in reason and "not measured" in reason for reason in looked.decision.reasons)
    assert any("canary_sessions" in reason for reason in looked.decision.reasons)
    with life.database.snapshot() as connection:
        ended = read_canary(connection, canary.canary_id)
    assert ended.status == "held", "after the last look a person decides"
    assert life.recall(life.tenants[0], "after").arm is None


def test_only_the_last_look_promotes(life: Life) -> None:
    life.won()
    canary = life.canary()
    life.everybody(lambda arm: 0.6 if arm else 0.1)
    first = life.look(canary, 0)
    assert first.action == "HOLD"
    assert first.decision.reasons == ("look ≥ 2: 1, failed by 1",)
    assert life.look(canary, 1).action == "PROMOTE"
    with pytest.raises(WrongStatus, match="look 1 is over"):
        life.look(canary, 1)


def test_harm_rolls_back_at_any_look(life: Life) -> None:
    life.won()
    canary = life.canary()
    life.everybody(lambda arm: -0.9 if arm else 0.5)
    assert life.look(canary, 0).action == "ROLLBACK"
    with life.database.snapshot() as connection:
        assert read_canary(connection, canary.canary_id).status == "rolled_back"
        assert running_canary(connection) is None
    assert life.recall(life.tenants[0], "after").arm is None


def test_a_breached_guardrail_rolls_back(life: Life) -> None:
    life.won()
    canary = life.canary()
    slow = CLEAN | {"latency_p95": Gate("latency_p95", 2.0, "≤", 0.3)}
    looked = life.look(canary, 0, guardrails=slow)
    assert looked.action == "ROLLBACK"
    assert "latency_p95 ≤ 0.3: 2, failed by 1.7" in looked.decision.reasons


def test_a_person_may_end_a_canary(life: Life) -> None:
    life.won()
    life.canary()
    with life.database.as_operator() as connection:
        assert stop_canary(connection, ACTOR, "enough").status == "held"
    assert audited(life, "canary.ended")[-1]["reason"] == "enough"


def test_a_forged_look_shows(life: Life) -> None:
    life.won()
    canary = life.canary()
    life.look(canary, 0)
    with life.database.as_owner() as owner:
        owner.execute("UPDATE canary_looks SET action = 'PROMOTE'")
    with life.database.snapshot() as connection, pytest.raises(ForgedLook):
        read_look(connection, canary, 0)


# The promotion


def test_a_promotion_shifts_every_tenant_in_its_log(life: Life) -> None:
    canary = life.promotable()
    before = vectors(life)
    with life.database.as_operator() as connection:
        promotion, states = promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
    assert [state.tenant_id for state in states] == life.tenants
    for tenant, weights in before.items():
        change = changes_of(life.database, tenant)[-1]
        assert (change["cause"], change["promotion"]) == ("promotion", promotion.version)
        assert change["shift"] == shift(alpha=0.5).tolist()
        clipped = np.clip(weights + shift(alpha=0.5), CONFIGURATION.low_nanos, CONFIGURATION.high_nanos)
        assert state_of(life.database, tenant).weights.tolist() == clipped.tolist()
    (body,) = audited(life, "promotion")
    assert body["before"]["alpha"] == 1.0  # type: ignore[index]
    assert body["after"]["alpha"] == 1.5  # type: ignore[index]
    assert {"experiment", "canary"} <= body.keys()
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).experiment_id == "warmer"
        assert read_canary(connection, canary.canary_id).status == "promoted"
        assert read_trials(connection).canary is None
    assert life.findings() == []
    with life.database.as_operator() as connection, pytest.raises(PromotionRefused, match="it is promoted"):
        promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)


@pytest.mark.parametrize(
    ("forgery", "why"),
    [
        ("UPDATE canary_looks SET action = 'PROMOTE'", "not what its stored numbers give"),
        ("UPDATE experiment_analyses SET promoted_arm = 'control'", "not that of its stored sessions"),
        ("UPDATE canaries SET shift[1] = shift[1] + 1", "did not try the arm 'warm'"),
    ],
)
def test_the_transaction_refuses_what_the_gates_refuse(life: Life, forgery: str, why: str) -> None:
    life.won()
    canary = life.canary()
    life.everybody(lambda arm: 0.6 if arm else 0.1)
    life.look(canary, 0)
    before = vectors(life)
    with life.database.as_owner() as owner:
        owner.execute(forgery.encode())
    with life.database.as_operator() as connection, pytest.raises(PromotionRefused, match=why):
        promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
    assert vectors(life) == before
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).version == 0


def test_a_promotion_in_between_makes_the_candidate_stale(life: Life) -> None:
    canary = life.promotable()
    with life.database.as_operator() as connection:
        promote(connection, {"beta": 0.3}, CONFIGURATION, ACTOR)
        refusals = read_candidate(connection, canary.canary_id, CONFIGURATION).refusals
    assert refusals == ("the experiment compared with promotion 0, and promotion 1 is in force",)


def test_scales_are_promoted_with_the_weights_and_undone_with_them(life: Life) -> None:
    with life.database.as_operator() as connection:
        shipped = read_scales(connection, SHIPPED_SCALES)
        quicker = Scales(9, tuple(1.5 * value for value in shipped.values), 60.0)
        add_scales(connection, quicker, "for this test")
    canary = life.promotable(scale_version=9, alpha=0.25)
    before = vectors(life)
    with life.database.as_operator() as connection:
        promotion, _ = promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
    assert promotion.scale_version == 9
    low, high = CONFIGURATION.low_nanos, CONFIGURATION.high_nanos
    for tenant, weights in before.items():
        converted = np.clip(rescaled(np.array(weights), shipped, quicker), low, high)
        after = np.clip(converted + shift(alpha=0.25), low, high)
        assert state_of(life.database, tenant).weights.tolist() == after.tolist()
        assert logged(life.database, tenant, life.recall(tenant, "new").recall_id)["scale_version"] == 9
    assert life.findings() == []

    with life.database.as_operator() as connection:
        undo_promotion(connection, CONFIGURATION, ACTOR)
    assert vectors(life) == before
    recall = life.recall(life.tenants[0], "undone")
    assert logged(life.database, life.tenants[0], recall.recall_id)["scale_version"] == SHIPPED_SCALES
    assert life.findings() == []


def test_undoing_restores_each_exact_vector_and_the_log_has_both(life: Life) -> None:
    canary = life.promotable()
    before = vectors(life)
    with life.database.as_operator() as connection:
        promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
    landed(life.database, [said(tenant, 1.0) for tenant in life.tenants])
    younger = new_tenant(life.database)
    learned = vectors(life)
    assert all(learned[tenant] != before[tenant] for tenant in life.tenants)

    with life.database.as_operator() as connection:
        revert, states = undo_promotion(connection, CONFIGURATION, ACTOR)
    assert vectors(life) == before
    assert len(states) == len(life.tenants) + 1
    for tenant in life.tenants:
        causes = [change["cause"] for change in changes_of(life.database, tenant)]
        assert causes[-3:] == ["promotion", "feedback", "promotion_rollback"]
    assert state_of(life.database, younger).weights.tolist() == CONFIGURATION.start_nanos.tolist()
    with life.database.snapshot() as connection:
        now = promoted(connection, CONFIGURATION)
    assert (now.version, now.reverts) == (revert.version, 1)
    assert now.weights.tolist() == CONFIGURATION.start_nanos.tolist()
    assert life.findings() == []
    with life.database.as_operator() as connection, pytest.raises(NothingPromoted):
        undo_promotion(connection, CONFIGURATION, ACTOR)


def test_promotions_are_undone_one_after_the_other(database: Database) -> None:
    tenant = new_tenant(database)
    seen = []
    for alpha in (1.2, 1.4, 1.6):
        seen.append(state_of(database, tenant).weights.tolist())
        with database.as_operator() as connection:
            promote(connection, {"alpha": alpha}, CONFIGURATION, ACTOR)
        landed(database, [said(tenant, 0.5)])
    for weights in reversed(seen):
        with database.as_operator() as connection:
            undo_promotion(connection, CONFIGURATION, ACTOR)
        assert state_of(database, tenant).weights.tolist() == weights
    with database.as_operator() as connection, pytest.raises(NothingPromoted):
        undo_promotion(connection, CONFIGURATION, ACTOR)


def test_a_new_tenant_begins_with_what_is_promoted(database: Database) -> None:
    with database.as_operator() as connection:
        promote(connection, {"alpha": 1.3, "tau": 0.6}, CONFIGURATION, ACTOR)
    tenant = new_tenant(database)
    changes = changes_of(database, tenant)
    assert [change["cause"] for change in changes] == ["start", "adoption"]
    expected = from_names({**CONFIGURATION.start, "alpha": 1.3, "tau": 0.6})
    assert changes[-1]["after"] == expected.tolist()


def test_a_forged_adoption_or_undoing_is_found(life: Life) -> None:
    with life.database.as_operator() as connection:
        promote(connection, {"alpha": 1.3}, CONFIGURATION, ACTOR)
        undo_promotion(connection, CONFIGURATION, ACTOR)
        promote(connection, {"alpha": 1.4}, CONFIGURATION, ACTOR)
    new_tenant(life.database)
    assert life.findings() == []
    with life.database.as_owner() as owner:
        owner.execute("UPDATE promotions SET weights[1] = weights[1] + 1 WHERE version = 3")
        owner.execute("UPDATE promotions SET reverts = NULL WHERE version = 2")
    found = "\n".join(life.findings())
    assert "it is not what promotion 3 promoted" in found
    assert "it names no promotion that undoes another" in found


# Killed between any two steps

WAITING = """
    SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE NOT l.granted AND c.relname = %s
"""
WORKER = """
import sys
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.overviews import read_overviews
from somabrain_dagster.store.promoting import promote_canary
with Database(sys.argv[1]) as database, database.as_operator() as connection:
    promote_canary(connection, int(sys.argv[2]), LearningConfiguration(), "worker")
"""


def test_a_worker_that_is_killed_leaves_the_state_before_and_another_finishes(life: Life) -> None:
    """Wherever it dies, at the pointer, the logs, the states, the canary or the audit trail."""
    canary = life.promotable()
    before = vectors(life)
    for table in ("promotions", "adaptation_states", "weight_changes", "audit_events", "canaries"):
        with life.database.as_owner() as gate:
            gate.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, life.database.url, str(canary.canary_id)],
                stderr=subprocess.PIPE,
            )
            try:
                wait_for(life, table, worker)
            finally:
                worker.kill()
                worker.wait()
        assert vectors(life) == before, f"killed at {table}"
        with life.database.snapshot() as connection:
            assert promoted(connection, CONFIGURATION).version == 0
            assert read_canary(connection, canary.canary_id).status == "running"
    with life.database.as_operator() as connection:
        promotion, states = promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
    assert (promotion.version, len(states)) == (1, len(life.tenants))
    assert life.findings() == []


def wait_for(life: Life, table: str, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert worker.poll() is None, worker.stderr and worker.stderr.read().decode()
        with life.database.as_owner() as connection:
            if connection.execute(WAITING, (table,)).fetchone() != (0,):
                return
        time.sleep(0.05)
    raise AssertionError(f"the worker never came to {table}")


def test_two_who_promote_at_once_promote_once(life: Life) -> None:
    canary = life.promotable()
    refused: list[PromotionRefused] = []

    def work() -> None:
        try:
            with life.database.as_operator() as connection:
                promote_canary(connection, canary.canary_id, CONFIGURATION, ACTOR)
        except PromotionRefused as refusal:
            refused.append(refusal)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(refused) == 2
    with life.database.snapshot() as connection:
        assert promoted(connection, CONFIGURATION).version == 1
