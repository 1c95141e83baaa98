"""Proposals of weights for everybody, made of real conversations: when, from what, and what is refused."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pytest

from somabrain_dagster.assets.proposals import parameter_proposals
from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.learning.half_life import RECENCY
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.weights import TAU, UTILITY, to_units
from somabrain_dagster.memory.query import Query
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.labelled_recalls import read_labelled, read_teachers
from somabrain_dagster.store.promotions import promote
from somabrain_dagster.store.proposals import (
    Due,
    NotDue,
    StoredProposal,
    due,
    proposal_problems,
    propose,
    read_proposal,
    read_proposals,
)
from somabrain_dagster.store.scales import SHIPPED_SCALES, add_scales, list_scales, read_scales
from tests.brain import CONFIGURATION, landed, new_tenant, said
from tests.chain import QUIETLY
from tests.conftest import new_database
from tests.forgery import as_forger, shuffle_labels
from tests.reenacted import PEOPLE, PLAN, SETTINGS, Reenactment
from tests.remembering import EmbeddedOnce, messages, remember, room

EVENTS, MOST = 100, 500


def proposed(database: Database, **how: object) -> StoredProposal:
    made = propose(database, CONFIGURATION, events=EVENTS, most=MOST, **how)  # type: ignore[arg-type]
    assert isinstance(made, StoredProposal), made
    return made


def not_due(database: Database, events: int = EVENTS) -> str:
    made = propose(database, CONFIGURATION, events=events, most=MOST)
    assert isinstance(made, NotDue), made
    return made.reason


def said_is_due(database: Database, events: int = EVENTS) -> Due | NotDue:
    with database.snapshot() as connection:
        return due(connection, events)


def falls(database: Database, tenant_id: str, feedback_seq: int) -> None:
    """What is kept of a trend that falls."""
    with database.as_operator() as connection:
        connection.execute(
            """
            INSERT INTO performance_trends (
                tenant_id, feedback_seq, bins, tau, p, uncorrected_p, autocorrelation, slope, low, high,
                effect, q, direction
            ) VALUES (%s, %s, 40, -.5, .001, .001, 0, -1, -2, -.5, -1, .002, -1)
            """,
            (tenant_id, feedback_seq),
        )


@pytest.fixture(scope="module")
def module_taught(postgres: PostgresServer, reenactment: Reenactment) -> Iterator[Database]:
    """A copy for tests that only read, or add tenants of their own."""
    with new_database(postgres, reenactment.template) as name, Database(postgres.url(name)) as database:
        yield database


# ------------------------------------------------------------------------------------ what is learned from


def test_labelled_recalls_are_those_that_were_taught_in_the_order_of_time(
    module_taught: Database, reenactment: Reenactment
) -> None:
    with module_taught.snapshot() as connection:
        scales = read_scales(connection, SHIPPED_SCALES)
        teachers = read_teachers(connection, "full")
        found = read_labelled(connection, teachers, "full", scales, MOST)
    assert found.choices is not None
    by_name = {one.tenant_id: one for one in reenactment.reenacted}
    assert found.tenants == teachers == sorted(by_name)
    assert found.counts == [PLAN.feedback] * PEOPLE
    assert (found.forgotten, found.untold, found.first_seqs) == (0, 0, [1] * PEOPLE)
    expected = [by_name[tenant_id].taught for tenant_id in found.tenants]
    assert (found.choices.features == np.concatenate([one.questions.features for one in expected])).all()
    assert (found.choices.chosen == np.concatenate([one.questions.answer for one in expected])).all()
    assert found.ages == pytest.approx(np.concatenate([one.ages for one in expected]), abs=1e-6)
    assert (found.choices.omega == 1).all()


def test_the_newest_recalls_count_where_there_are_more_than_are_asked_for(module_taught: Database) -> None:
    with module_taught.snapshot() as connection:
        (tenant_id, *_) = read_teachers(connection, "full")
        scales = read_scales(connection, SHIPPED_SCALES)
        everything = read_labelled(connection, [tenant_id], "full", scales, MOST)
        newest = read_labelled(connection, [tenant_id], "full", scales, 30)
    assert newest.recall_ids.tolist() == everything.recall_ids[-30:].tolist()
    assert newest.first_seqs == [PLAN.feedback - 30 + 1]


def test_recalls_that_were_logged_over_other_scales_are_brought_to_common_ones(taught: Database) -> None:
    """What was logged over the shipped scales is read over others, and one recall the other way round."""
    two = Scales(SHIPPED_SCALES + 1, (0.1, 0.2, 0.5, 0.25, 1.0, 2.0), half_life_seconds=60.0)
    with taught.as_operator() as connection:
        add_scales(connection, two, "a test")
        (tenant_id, *_) = read_teachers(connection, "full")
        one = read_scales(connection, SHIPPED_SCALES)
        logged = read_labelled(connection, [tenant_id], "full", one, MOST)
        read = read_labelled(connection, [tenant_id], "full", two, MOST)
    assert logged.choices is not None
    assert read.choices is not None
    others = [place for place in range(len(two.values)) if place != RECENCY]
    expected = logged.choices.features * np.array(one.values) / np.array(two.values)
    assert read.choices.features[:, others] == pytest.approx(expected[:, others])
    assert read.choices.features[:, RECENCY] == pytest.approx(np.exp2(-read.ages / 60.0) / 0.5)

    with taught.as_owner() as connection:
        as_forger(connection, "recalls")
        connection.execute(
            "UPDATE recalls SET scale_version = %s, features = %s WHERE recall_id = %s",
            (
                two.version,
                read.choices.take(np.array([0])).features.ravel().tolist(),
                int(read.recall_ids[0]),
            ),
        )
    with taught.snapshot() as connection:
        mixed = read_labelled(connection, [tenant_id], "full", one, MOST)
    assert mixed.choices is not None
    assert mixed.choices.features == pytest.approx(logged.choices.features, abs=1e-6)


def test_a_recall_that_weighed_a_forgotten_memory_teaches_nothing_any_more(taught: Database) -> None:
    with taught.as_operator() as connection:
        (tenant_id, *_) = read_teachers(connection, "full")
        scales = read_scales(connection, SHIPPED_SCALES)
        before = read_labelled(connection, [tenant_id], "full", scales, MOST)
        ((candidates,),) = connection.execute(
            "SELECT candidate_ids FROM recalls WHERE recall_id = %s", (int(before.recall_ids[-1]),)
        ).fetchall()
        ((touched,),) = connection.execute(
            """
            SELECT count(DISTINCT r.recall_id)
            FROM recalls r JOIN feedback_events e USING (tenant_id, recall_id)
            WHERE r.tenant_id = %s AND %s = ANY (r.candidate_ids)
            """,
            (tenant_id, candidates[0]),
        ).fetchall()
        connection.execute("DELETE FROM memories WHERE memory_id = %s", (candidates[0],))
        after = read_labelled(connection, [tenant_id], "full", scales, MOST)
    assert touched > 0
    assert after.forgotten == touched
    assert after.counts == [PLAN.feedback - touched]
    assert before.recall_ids[-1] not in after.recall_ids


def test_the_last_word_on_a_recall_counts_and_a_word_without_praise_says_nothing(
    module_taught: Database, minilm: EmbeddedOnce
) -> None:
    tenant_id = new_tenant(module_taught)
    memories = room(module_taught, minilm)
    ids = remember(memories, tenant_id, messages(6))
    recalls = [memories.recall(Query(tenant_id=tenant_id, text=messages(6)[0].text)) for _ in range(2)]

    def helped(recall: int, memory: int, credit: float) -> None:
        words = said(
            tenant_id,
            recall_id=recalls[recall].recall_id,
            label="full",
            helpful=[{"memory": memory, "credit": credit}],
        )
        landed(module_taught, [words])

    helped(0, ids[1], 1.0)
    helped(0, ids[2], 1.0)
    helped(1, ids[1], -1.0)
    with module_taught.snapshot() as connection:
        found = read_labelled(connection, [tenant_id], "full", read_scales(connection, SHIPPED_SCALES), MOST)
    assert found.choices is not None
    assert found.recall_ids.tolist() == [recalls[0].recall_id]
    assert found.choices.chosen.tolist() == [sorted(ids).index(ids[2])]
    assert found.untold == 1


def test_bandit_feedback_counts_on_sampled_recalls_only_and_speaks_of_what_was_shown_first(
    module_taught: Database, minilm: EmbeddedOnce
) -> None:
    tenant_id = new_tenant(module_taught)
    memories = room(module_taught, minilm, seed=3)
    ids = sorted(remember(memories, tenant_id, messages(6)))
    asked = messages(6)[0].text
    sampled = [memories.recall(Query(tenant_id=tenant_id, text=asked, mode="sample")) for _ in range(4)]
    ranked = memories.recall(Query(tenant_id=tenant_id, text=asked))
    landed(
        module_taught,
        [
            said(tenant_id, utility=0.25 * place, recall_id=recall.recall_id, label="bandit")
            for place, recall in enumerate([*sampled, ranked])
        ],
    )
    with module_taught.snapshot() as connection:
        found = read_labelled(
            connection, [tenant_id], "bandit", read_scales(connection, SHIPPED_SCALES), MOST
        )
    log = found.log()
    order = np.argsort(found.recall_ids)
    assert found.recall_ids[order].tolist() == [recall.recall_id for recall in sampled]
    assert log.choices.chosen[order].tolist() == [ids.index(one.hits[0].memory_id) for one in sampled]
    assert log.shown[order] == pytest.approx([recall.hits[0].probability for recall in sampled])
    assert log.reward[order].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert found.untold == 1


# --------------------------------------------------------------------------------- what is proposed, and when


def test_real_feedback_makes_a_proposal_that_says_from_what_and_through_which_gates(
    taught: Database, reenactment: Reenactment
) -> None:
    made = proposed(taught)
    assert made.accepted
    assert made.label == "full"
    assert made.reason == "600 new feedback events with label full"
    assert (made.promotion_version, made.from_scales, made.to_scales) == (0, SHIPPED_SCALES, SHIPPED_SCALES)
    assert made.before.tolist() == CONFIGURATION.start_nanos.tolist()
    assert made.weights[UTILITY].tolist() == made.before[UTILITY].tolist()
    assert (made.weights >= CONFIGURATION.low_nanos).all()
    assert (made.weights <= CONFIGURATION.high_nanos).all()
    gates = {gate.name: gate for gate in made.gates}
    assert set(gates) == {"recalls", "later_recalls", "tenants", "gain_lower_bound", "converged"}
    assert gates["recalls"].value == made.recalls == PEOPLE * PLAN.feedback
    assert gates["later_recalls"].value == made.fit["held_out"] == PEOPLE * round(0.3 * PLAN.feedback)
    assert gates["gain_lower_bound"].value > 0
    assert made.fit["gain"] == pytest.approx(made.fit["measures"]["mrr"][1] - made.fit["measures"]["mrr"][0])
    assert made.fit["log_likelihood"][1] > made.fit["log_likelihood"][0]
    assert all(error >= 0 for error in made.fit["standard_errors"].values())
    temperatures = {float(tau): found for tau, found in made.fit["temperatures"].items()}
    assert to_units(made.weights)[TAU] == max(temperatures, key=lambda tau: temperatures[tau])
    with taught.snapshot() as connection:
        assert read_proposal(connection, made.proposal_id).weights.tolist() == made.weights.tolist()
        assert proposal_problems(connection) == []
        looked = connection.execute(
            "SELECT tenant_id, first_seq, last_seq, recalls FROM proposal_tenants ORDER BY tenant_id"
        ).fetchall()
        ((low, high),) = connection.execute(
            "SELECT min(recall_id), max(recall_id) FROM feedback_events WHERE label = 'full'"
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM promotions").fetchone() == (0,)
    names = sorted(one.tenant_id for one in reenactment.reenacted)
    assert looked == [(name, 1, PLAN.feedback, PLAN.feedback) for name in names]
    assert (made.first_recall_id, made.last_recall_id) == (low, high)


def test_the_same_position_proposes_nothing_twice_and_new_feedback_does(taught: Database) -> None:
    first = proposed(taught)
    assert "0 with label full" in not_due(taught)
    with taught.snapshot() as connection:
        (tenant_id, *_) = read_teachers(connection, "full")
        found = read_labelled(connection, [tenant_id], "full", read_scales(connection, SHIPPED_SCALES), MOST)
        ((recall_id, memory),) = connection.execute(
            "SELECT recall_id, (helpful -> 0 ->> 'memory')::bigint FROM feedback_events "
            "WHERE tenant_id = %s AND recall_id = %s",
            (tenant_id, int(found.recall_ids[0])),
        ).fetchall()
    landed(taught, [said(tenant_id, recall_id=recall_id, label="full", helpful=[{"memory": memory}])] * 3)
    assert "3 with label full" in not_due(taught, events=4)
    second = propose(taught, CONFIGURATION, events=3, most=MOST)
    assert isinstance(second, StoredProposal)
    assert second.proposal_id > first.proposal_id
    assert second.recalls == first.recalls


def test_shuffled_labels_on_the_same_recalls_are_refused_and_kept_with_the_reason(taught: Database) -> None:
    shuffle_labels(taught)
    made = proposed(taught)
    assert not made.accepted
    (reason,) = made.refusals
    assert reason.startswith("gain_lower_bound > 0: ")
    assert "failed by" in reason
    assert isinstance(said_is_due(taught), NotDue)
    with taught.snapshot() as connection:
        assert [one.accepted for one in read_proposals(connection)] == [False]
        assert proposal_problems(connection) == []


def test_what_is_on_trial_must_end_first(taught: Database) -> None:
    with taught.as_operator() as connection:
        connection.execute(
            """
            INSERT INTO experiments (
                experiment_id, salt, arms, shares, status, shifts, size, rule, started_at
            ) VALUES ('exp-1', 'salt', '{control,treatment}', '{.5,.5}', 'running', %s, 176, '{}', now())
            """,
            ([[0] * 10, [0] * 10],),
        )
    assert "'exp-1' runs" in not_due(taught)
    with taught.as_operator() as connection:
        connection.execute(
            "UPDATE experiments SET status = 'stopped', ended_at = now(), end_reason = 'a test'"
        )
    assert proposed(taught).accepted


def test_a_falling_trend_asks_for_a_proposal_once(taught: Database) -> None:
    proposed(taught)
    with taught.snapshot() as connection:
        (tenant_id, *_) = read_teachers(connection, "full")
    landed(taught, [said(tenant_id, utility=-1.0)] * 2)
    assert isinstance(said_is_due(taught), NotDue)
    falls(taught, tenant_id, PLAN.feedback + 2)
    made = proposed(taught)
    assert made.reason == f"the utility of 1 tenants falls, {tenant_id} among them"
    assert isinstance(said_is_due(taught), NotDue)


def test_a_falling_trend_where_nobody_ever_labelled_anything_is_refused_once(database: Database) -> None:
    tenant_id = new_tenant(database)
    landed(database, [said(tenant_id, utility=-1.0)] * 2)
    falls(database, tenant_id, 2)
    made = proposed(database)
    assert [gate.name for gate in made.gates if not gate.passed] == ["recalls", "later_recalls", "tenants"]
    assert made.weights.tolist() == made.before.tolist()
    assert isinstance(said_is_due(database), NotDue)


def test_another_half_life_brings_scales_of_its_own_and_the_promoted_weights_in_them(
    taught: Database,
) -> None:
    made = proposed(taught, half_lives=(60.0,))
    assert made.to_scales == SHIPPED_SCALES + 1
    with taught.snapshot() as connection:
        old, new = read_scales(connection, SHIPPED_SCALES), read_scales(connection, made.to_scales)
        words = list_scales(connection)[-1].measured_from
        found = read_labelled(connection, read_teachers(connection, "full"), "full", new, MOST)
    assert new.half_life_seconds == made.fit["half_life_seconds"] == 60.0
    assert words == "600 labelled recalls by 6 tenants, with which a half-life of 60 s was proposed"
    low, high = CONFIGURATION.low_nanos, CONFIGURATION.high_nanos
    converted = np.clip(rescaled(CONFIGURATION.start_nanos, old, new), low, high)
    assert made.before.tolist() == converted.tolist()
    # Measured, so that in the new scales every feature that moves has the same spread within recalls.
    assert found.choices is not None
    recalls = np.split(found.choices.features, np.cumsum(found.choices.lengths)[:-1])
    squares = sum(((one - one.mean(axis=0)) ** 2).sum(axis=0) for one in recalls)
    spread = np.sqrt(squares / sum(len(one) - 1 for one in recalls))
    assert spread[spread > 0] == pytest.approx(1.0, abs=0.05)


def test_the_half_life_in_force_brings_no_scales(taught: Database) -> None:
    made = proposed(taught, half_lives=(3600.0,))
    assert made.to_scales == made.from_scales == SHIPPED_SCALES
    assert made.fit["half_lives"].keys() == {"3600.0"}


def test_a_proposal_starts_from_what_is_promoted(taught: Database) -> None:
    with taught.as_operator() as connection:
        promotion, _ = promote(connection, {"alpha": 1.5, "zeta": 0.25}, CONFIGURATION, "a test")
    made = proposed(taught)
    assert made.promotion_version == promotion.version
    assert made.before.tolist() == promotion.weights.tolist()


# ------------------------------------------------------------------------------------------------ the asset


def materialized(database: Database) -> dg.ExecuteInProcessResult:
    brain = Brain(SETTINGS, database, None)  # type: ignore[arg-type]
    return dg.materialize(
        [parameter_proposals], resources={"brain": brain}, raise_on_error=False, run_config=QUIETLY
    )


def metadata_of(result: dg.ExecuteInProcessResult) -> Mapping[str, Any]:
    (event,) = result.asset_materializations_for_node("parameter_proposals")
    return event.metadata


def test_the_asset_shows_the_newest_proposal_and_makes_none_where_nothing_is_new(taught: Database) -> None:
    first, second = materialized(taught), materialized(taught)
    assert first.success
    assert second.success
    shown, again = metadata_of(first), metadata_of(second)
    assert shown["made in this run"].value == 1
    assert again["made in this run"].value.startswith("none: 0 with label full")
    assert shown["dagster/row_count"].value == again["dagster/row_count"].value == 1
    gates = {record.data["gate"]: record.data for record in shown["gates"].records}
    assert list(gates) == ["recalls", "later_recalls", "tenants", "gain_lower_bound", "converged"]
    assert gates["tenants"] == {
        "gate": "tenants",
        "value": "6",
        "limit": "≥ 2",
        "passed": True,
        "by how much": "4",
    }
    assert shown["weights before and after"].value.startswith("![weights before and after](data:image/png")
    assert [record.data["proposal"] for record in again["newest proposals"].records] == [1]


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        ("SET weights[1] = 9000000000", "alpha is 9000000000 nano-units, outside"),
        (
            "SET gates = jsonb_set(gates, '{3,value}', '-0.5')",
            r"gain_lower_bound > 0: -0\.5, failed by 0\.5",
        ),
        ("SET gates = '[]'", "has no gates"),
    ],
)
def test_an_accepted_proposal_that_its_own_numbers_refute_blocks_what_comes_after(
    taught: Database, forgery: str, message: str
) -> None:
    proposed(taught)
    with taught.as_owner() as connection:
        connection.execute(f"UPDATE parameter_proposals {forgery}".encode())
    result = materialized(taught)
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.blocking
    assert check.description is not None
    assert re.search(message, check.description)


def test_an_operator_cannot_rewrite_a_proposal(taught: Database) -> None:
    proposed(taught)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), taught.as_operator() as connection:
        connection.execute("UPDATE parameter_proposals SET accepted = true")
