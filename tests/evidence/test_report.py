"""The report of the evidence: its figures agree, files of it compare, and a winner is offered, audited."""

import runpy
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.enhancement import METRICS
from somabrain_dagster.learning.weights import by_name
from somabrain_dagster.operations.enhancement import FAST_RULE, FIT, POOLED, RECENCY, STARTING
from somabrain_dagster.operations.enhancement_plot import draw
from somabrain_dagster.operations.enhancement_report import (
    EnhancementReport,
    InvalidReport,
    compare,
    encode,
    read_report,
    worse,
)
from somabrain_dagster.operations.evidence import offer
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.audit import SYSTEM, verify_chain
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.proposals import proposal_problems, read_proposals
from somabrain_dagster.store.proposed_weights import ACTION, NotWithinBounds, propose
from somabrain_dagster.store.scales import SHIPPED_SCALES, read_scales
from tests.evidence.stage import Stage
from tests.reenacted import PEOPLE, PLAN

pytestmark = pytest.mark.learning

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "prove_enhancement.py"


def test_the_file_says_for_every_policy_and_pair_what_was_measured(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(encode(stage.report))
    assert read_report(path) == stage.report

    written = msgspec.json.decode(path.read_bytes())
    assert {RECENCY, STARTING, "hybrid", FAST_RULE, POOLED, FIT} <= set(written["policies"])
    for policy in written["policies"].values():
        assert policy["queries"] == PEOPLE * PLAN.held_out
        assert policy["tenants"] == PEOPLE
        assert policy["recall_p95_ms"] > 0
        assert 0 <= policy["top1"] <= policy["r5"] <= policy["r10"] <= 1
        assert policy["top1"] <= policy["mrr"] <= policy["r10"] + (1 - policy["r10"]) / 11
        assert policy["r10"] <= 1 - policy["unanswerable"] / policy["queries"]
    pairs = {(one["candidate"], one["baseline"], one["metric"]) for one in written["differences"]}
    report = stage.report
    assert pairs == {
        (candidate, baseline, metric)
        for candidate in report.candidates()
        for baseline in report.baselines()
        for metric in METRICS
    }


def test_differences_are_those_of_the_policies_and_lie_in_their_intervals(stage: Stage) -> None:
    policies = stage.report.policies
    for one in stage.report.differences:
        apart = getattr(policies[one.candidate], one.metric) - getattr(policies[one.baseline], one.metric)
        assert one.delta == pytest.approx(apart)
        assert one.low <= one.delta <= one.high


def test_the_whole_is_the_mean_of_the_tenants(stage: Stage) -> None:
    for name, policy in stage.report.policies.items():
        for metric in METRICS:
            of_tenants = [getattr(tenant.policies[name], metric) for tenant in stage.report.tenants]
            queries = [tenant.queries for tenant in stage.report.tenants]
            assert getattr(policy, metric) == pytest.approx(np.average(of_tenants, weights=queries))


def test_the_origin_counts_what_there_is(stage: Stage) -> None:
    origin = stage.report.origin
    counts = {}
    with stage.database.as_operator() as connection:
        for table in (b"memories", b"memory_links", b"feedback_events"):
            (counts[table],) = connection.execute(b"SELECT count(*) FROM " + table).fetchone() or (0,)
    assert counts[b"memories"] == origin.memories
    assert counts[b"memory_links"] == origin.links
    assert counts[b"feedback_events"] == origin.feedback == PEOPLE * PLAN.feedback
    assert origin.findings == 0
    assert origin.changes > origin.feedback


def test_the_picture_is_drawn(stage: Stage, tmp_path: Path) -> None:
    figure = draw(stage.report)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(stage.report.policies)
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------ two reports


def test_a_report_is_no_worse_than_itself(stage: Stage) -> None:
    differences = compare(stage.report, stage.report)
    assert {one.delta for one in differences} == {0.0}
    assert worse(differences, tolerance=0.0) == []


def test_what_blind_feedback_makes_is_worse(stage: Stage, blind_report: EnhancementReport) -> None:
    falls = worse(compare(stage.report, blind_report), tolerance=0.01)
    assert {(FAST_RULE, "top1"), (FIT, "top1")} <= {(one.candidate, one.metric) for one in falls}
    assert all(one.delta < -0.01 for one in falls)
    assert all(one.metric != "margin" for one in falls)
    assert worse(compare(stage.report, blind_report), tolerance=1.0) == []


def test_reports_of_other_questions_are_not_compared(stage: Stage) -> None:
    origin = msgspec.structs.replace(stage.report.origin, plan=type(PLAN)(held_out=41))
    other = msgspec.structs.replace(stage.report, origin=origin)
    with pytest.raises(InvalidReport, match="re-enacted differently"):
        compare(stage.report, other)
    fewer = msgspec.structs.replace(stage.report, tenants=stage.report.tenants[1:])
    with pytest.raises(InvalidReport, match="different tenants"):
        compare(stage.report, fewer)


def run_script(*arguments: object) -> Result:
    command = runpy.run_path(str(SCRIPT))["main"]
    assert isinstance(command, click.Command)
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_script_compares_two_files_and_says_so_by_its_exit_code(
    stage: Stage, blind_report: EnhancementReport, tmp_path: Path
) -> None:
    good, bad, none = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "none.json"
    good.write_bytes(encode(stage.report))
    bad.write_bytes(encode(blind_report))
    none.write_text('{"policies": {}}')

    assert run_script("--baseline", good, "--candidate", good).exit_code == 0
    assert run_script("--baseline", bad, "--candidate", good).exit_code == 0
    fallen = run_script("--baseline", good, "--candidate", bad)
    assert fallen.exit_code == 1
    assert "worse by more than 0.01: fast_rule, top1" in fallen.output
    assert run_script("--baseline", good, "--candidate", bad, "--tolerance", 1).exit_code == 0

    refused = run_script("--baseline", good, "--candidate", none)
    assert refused.exit_code == 2
    assert "none.json is no report" in refused.output
    alone = run_script("--baseline", good)
    assert alone.exit_code == 2
    assert "go together" in alone.output

    as_a_process = [sys.executable, str(SCRIPT), "--baseline", str(good), "--candidate", str(bad)]
    assert subprocess.run(as_a_process, capture_output=True, check=False).returncode == 1


# -------------------------------------------------------------------------------------- the offer


def test_the_winner_is_a_proposal_in_the_audit_trail_and_changes_no_weight(
    stage: Stage, database: Database
) -> None:
    winner = stage.report.winner()
    assert winner is not None
    version = offer(database, Settings(), stage.report, actor="a test")
    with database.as_operator() as connection:
        row = connection.execute(
            "SELECT version, actor, action, body FROM audit_events WHERE tenant_id = %s", (SYSTEM,)
        ).fetchone()
        assert connection.execute("SELECT count(*) FROM promotions").fetchone() == (0,)
        assert verify_chain(connection, SYSTEM) is None
        (kept,) = read_proposals(connection)
        scales = read_scales(connection, kept.to_scales)
        assert proposal_problems(connection) == []
    assert row is not None
    *event, body = row
    assert event == [version, "a test", ACTION]
    offered = stage.report.proposals[winner]
    assert (body["proposal_id"], kept.accepted, kept.reason) == (kept.proposal_id, True, "a test offers it")
    assert by_name(kept.weights) == pytest.approx(by_name(kept.before) | offered.weights, abs=1e-9)
    assert kept.gates[0].value == stage.report.difference(winner, STARTING).low > 0
    if offered.scales is not None:
        assert scales.half_life_seconds == offered.half_life_seconds
        assert scales.values == tuple(offered.scales.values())
    assert body["weights"] == stage.report.proposals[winner].weights
    assert body["nano_units"] == {name: round(value * 1e9) for name, value in body["weights"].items()}
    assert body["evidence"]["policy"] == winner
    assert body["evidence"]["scales"] == stage.report.proposals[winner].scales
    assert {one["baseline"] for one in body["evidence"]["differences"]} == set(stage.report.baselines())


def test_what_blind_feedback_taught_is_not_offered(
    blind_report: EnhancementReport, database: Database
) -> None:
    assert offer(database, Settings(), blind_report, actor="a test") is None
    with database.as_operator() as connection:
        assert connection.execute("SELECT count(*) FROM audit_events").fetchone() == (0,)


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"alpha": 9.0}, r"alpha must be from 0\.8 to 3\.0, not 9\.0"), ({"omega": 1.0}, "no weight 'omega'")],
)
def test_weights_that_cannot_be_are_not_offered(
    database: Database, weights: dict[str, float], message: str
) -> None:
    with database.as_operator() as connection:
        with pytest.raises(NotWithinBounds, match=message):
            propose(
                connection,
                weights,
                read_scales(connection, SHIPPED_SCALES),
                LearningConfiguration(),
                "a test",
                [],
                {},
            )
        assert connection.execute("SELECT count(*) FROM audit_events").fetchone() == (0,)
        assert read_proposals(connection) == []
