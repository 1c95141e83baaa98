"""What a hundred events teach on real conversations, with nothing but recall, feedback and the log."""

from collections import Counter
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pytest

from somabrain_dagster.learning.gated_fit import gated_fit
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.memory.query import Query
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.enhancement import FAST_RULE, FIT, RECENCY, STARTING
from somabrain_dagster.operations.enhancement_report import TARGET, EnhancementReport
from somabrain_dagster.operations.evidence import judge
from somabrain_dagster.operations.reenactment import Reenacted, TooShort, reenact, stories
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import read_state
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.trials import Overlay
from somabrain_dagster.store.verification import verify
from tests.brain import changes_of, events_of
from tests.evidence.stage import CONFIGURATION, PRIOR, Stage, blinded, folded
from tests.reenacted import PLAN

pytestmark = pytest.mark.learning


def test_a_hundred_events_raise_top_1_by_five_points_over_the_starting_weights(stage: Stage) -> None:
    for candidate in (FAST_RULE, FIT):
        found = stage.report.difference(candidate, STARTING)
        assert found.delta >= TARGET
        assert found.low > 0
        assert stage.report.on_target(candidate)


def test_the_headline_names_recency_first(stage: Stage) -> None:
    assert stage.report.headline.startswith(
        f"Recency alone puts the right memory first in {stage.report.policies[RECENCY].top1:.1%}"
    )
    assert next(iter(stage.report.policies)) == RECENCY


def test_what_was_learned_is_in_the_log_and_is_derived_again(stage: Stage) -> None:
    with stage.database.snapshot() as connection:
        verification = verify(connection)
    assert verification.findings == []
    for one in stage.reenacted:
        events = events_of(stage.database, one.tenant_id)
        assert len(events) == PLAN.feedback == len(one.taught.sessions)
        assert {event["label"] for event in events} == {"full"}
        changes = {change["version"]: change for change in changes_of(stage.database, one.tenant_id)}
        assert changes[one.version]["after"] == one.learned.tolist()
        assert sum(change["cause"] == "feedback" for change in changes.values()) == PLAN.feedback


def test_questions_come_in_the_order_of_time_and_see_only_what_is_earlier(stage: Stage) -> None:
    for one in stage.reenacted:
        with stage.database.as_tenants([one.tenant_id]) as connection:
            times = [
                moment
                for (moment,) in connection.execute("SELECT occurred_at FROM recalls ORDER BY recall_id")
            ]
        assert times[: PLAN.feedback + one.untaught + PLAN.held_out] == sorted(times)
        assert (one.taught.ages > 0).all()
        assert (one.held_out.ages > 0).all()


def test_learned_weights_change_what_is_recalled(stage: Stage) -> None:
    """The same questions, with what was learned and with an overlay that takes it back."""
    changed = asked = 0
    for one, told in zip(stage.reenacted, stage.stories, strict=True):
        for turn in islice(reversed(told.turns), 5):
            with stage.database.as_tenants([one.tenant_id]) as connection:
                learned = read_state(connection, one.tenant_id).weights
            taken_back = Overlay("start", CONFIGURATION.start_nanos - learned)
            memory = told.memories[turn.question]
            query = Query(
                tenant_id=one.tenant_id,
                text=memory.text,
                asker=memory.speaker,
                as_of=memory.occurred_at,
                # What links alone bring in is drawn, and would differ by itself.
                graph_augment_max_additions=0,
            )
            before, again, now = (
                stage.room.recall(query, taken_back),
                stage.room.recall(query, taken_back),
                stage.room.recall(query),
            )
            assert [hit.memory_id for hit in before.hits] == [hit.memory_id for hit in again.hits]
            asked += 1
            changed += now.hits[0].memory_id != before.hits[0].memory_id
    assert changed > asked / 2


def test_labels_that_say_nothing_teach_nothing(stage: Stage, blind_report: EnhancementReport) -> None:
    """The right answers exchanged for candidates drawn blindly: gates stay shut, and little is gained."""
    for candidate in (FAST_RULE, FIT):
        assert not blind_report.on_target(candidate)
        gained = blind_report.difference(candidate, STARTING).delta
        assert gained < stage.report.difference(candidate, STARTING).delta / 2
    assert blind_report.winner() is None

    assert all(own_fit(one) for one in stage.reenacted)
    blind = [own_fit(one) for seed in range(5) for one in blinded(stage.reenacted, seed)]
    assert sum(blind) <= 0.15 * len(blind)  # a gate at 95% lets one of twenty through


def own_fit(one: Reenacted) -> bool:
    """Whether a fit to the tenant's own feedback passes its gate, from the starting weights."""
    choices = one.taught.questions.choices()
    return gated_fit(choices, PRIOR.start, PRIOR.tau, PRIOR.low, PRIOR.high).own


def test_the_fold_by_hand_learns_what_the_log_learned(stage: Stage) -> None:
    """The blind fold above is the real rule: on the real answers it recalls about as well as the log."""
    report = judge(
        [replace(one, learned=folded(one.taught.questions)) for one in stage.reenacted],
        PRIOR,
        stage.report.origin,
    )
    by_hand, logged = (one.policies[FAST_RULE].top1 for one in (report, stage.report))
    assert by_hand == pytest.approx(logged, abs=0.1)


def test_what_others_taught_leaves_out_the_conversations_that_are_named(stage: Stage) -> None:
    for one in stage.reenacted:
        taught, questions = one.taught, one.taught.questions
        named = frozenset(taught.sessions[:50])
        outside = taught.outside(named)
        kept = [place for place, session in enumerate(taught.sessions) if session not in named]
        assert outside.sessions == tuple(taught.sessions[place] for place in kept)
        rows = np.concatenate(
            [questions.starts[place] + np.arange(questions.lengths[place]) for place in kept]
        )
        assert outside.ages.tolist() == taught.ages[rows].tolist()
        assert outside.questions.features.tolist() == questions.features[rows].tolist()


def test_two_people_of_one_conversation_remember_the_same() -> None:
    """Why conversations are left out: among the people of the evidence many are shared."""
    heard = Counter(
        chain.from_iterable(
            {memory.conversation_id for memory in one.memories} for one in stories(read_chitchat(24), 2000)
        )
    )
    assert sum(people > 1 for people in heard.values()) > 50


def test_a_plan_that_nobody_can_fill_is_refused_before_anything_is_made(
    database: Database, stage: Stage
) -> None:
    with pytest.raises(TooShort, match=r"450 memories.*re-enact more memories"):
        reenact(database, MiniLM(threads=1), Settings(), stage.stories, replace(PLAN, held_out=5000))
    with database.as_operator() as connection:
        assert connection.execute("SELECT count(*) FROM tenants").fetchone() == (0,)
