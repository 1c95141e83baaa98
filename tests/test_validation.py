"""The final validation: what it plans, that its account can fail, and that it goes on after it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from benchmarks.validation.account import Account, account
from benchmarks.validation.landing import digest_of
from benchmarks.validation.objectives import ELSEWHERE
from benchmarks.validation.plan import FEWEST, NUMBER, Plan, plan_of
from benchmarks.validation.progress import OtherPlan, Progress
from benchmarks.validation.proofs import differing_tenants, prove
from benchmarks.validation.stage import discard
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landing import Landed, land

ROOT = Path(__file__).parent.parent
CONFIGURATION = LearningConfiguration()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(FEWEST)


def test_every_event_lands_by_one_path_and_has_an_id_of_its_own(plan: Plan) -> None:
    planned = [event for block in range(plan.blocks) for event in plan.block(block)] + list(plan.singles())
    ids = {(event.tenant_id, event.idempotency_key) for event in planned}
    assert len(planned) == len(ids) == plan.events == FEWEST
    assert {event.tenant_id for event in planned} == set(plan.tenants)


def test_what_is_said_was_really_rated(plan: Plan) -> None:
    for tenant in plan.tenants[:3]:
        said = [plan.event(tenant, number) for number in range(plan.each)]
        real = {rating.session_id: rating for rating in plan.people[tenant]}
        for event in said:
            rating = real[event.session_id.partition("/")[0]]
            assert event.occurred_at == rating.occurred_at
            assert -1 <= event.utility <= 1


def test_a_handful_of_events_is_refused() -> None:
    with pytest.raises(ValueError, match="name 2,000 at least"):
        plan_of(FEWEST - 1)


def test_progress_is_what_was_written_last_and_of_one_plan(tmp_path: Path, plan: Plan) -> None:
    progress = Progress(tmp_path / "progress.json", plan)
    progress.acknowledged(3, "ab")
    assert progress.once("pruned", lambda: 7) == 7
    again = Progress(tmp_path / "progress.json", plan)
    assert (again.blocks, again.once("pruned", lambda: 8)) == ({3: "ab"}, 7)
    with pytest.raises(OtherPlan, match="unfinished validation of 2,000 events"):
        Progress(tmp_path / "progress.json", plan_of(FEWEST + 1000))


@pytest.mark.parametrize("elsewhere", ELSEWHERE, ids=lambda one: one.asked)
def test_what_is_measured_elsewhere_is_said_there(elsewhere: object) -> None:
    assert isinstance(elsewhere, type(ELSEWHERE[0]))
    page = (ROOT / "docs" / elsewhere.document).read_text()
    assert " ".join(elsewhere.figure.split()) in " ".join(page.split())
    assert f"\n{elsewhere.command.removeprefix('make ')}: " in (ROOT / "Makefile").read_text()


def landed_in(database: Database, plan: Plan, leaving_out: int = -1) -> dict[int, str]:
    """Land every block, all of it but one event where that is asked, and say that all of it was."""
    with database.as_operator() as connection:
        create_tenants(connection, plan.tenants, CONFIGURATION)
    blocks = {}
    for block in range(plan.blocks):
        events = plan.block(block)
        kept = [event for event in events if event.metadata[NUMBER] != leaving_out or event != events[0]]
        assert all(isinstance(outcome, Landed) for outcome in land(database, kept, CONFIGURATION))
        blocks[block] = digest_of(events)
    return blocks


def accounted(database: Database, plan: Plan, blocks: dict[int, str]) -> Account:
    with database.snapshot() as connection:
        return account(connection, None, plan, blocks, {})[0]


def test_the_account_finds_everything_where_nothing_is_lost(database: Database, plan: Plan) -> None:
    blocks = landed_in(database, plan)
    told = accounted(database, plan, blocks)
    assert told.acknowledged == told.kept == plan.bulk * len(plan.tenants)
    assert (told.lost, told.twice, told.different) == (0, 0, 0)
    assert told.changes == told.kept + len(plan.tenants)


def test_the_account_misses_an_event_that_was_acknowledged(database: Database, plan: Plan) -> None:
    assert accounted(database, plan, landed_in(database, plan, leaving_out=5)).lost == 1


def test_the_account_notices_an_event_that_landed_twice(database: Database, plan: Plan) -> None:
    blocks = landed_in(database, plan)
    land(database, [msgspec.structs.replace(plan.block(0)[0], idempotency_key="another")], CONFIGURATION)
    assert accounted(database, plan, blocks).twice > 0


def test_the_account_notices_what_was_altered(database: Database, plan: Plan) -> None:
    blocks = landed_in(database, plan)
    with database.as_owner() as connection:
        connection.execute(
            "UPDATE feedback_events SET session_id = 'another' WHERE tenant_id = %s AND seq = 1",
            (plan.tenants[0],),
        )
    assert accounted(database, plan, blocks).different > 0


def test_each_log_is_the_fold_of_its_own_feedback_and_another_order_is_not(
    database: Database, plan: Plan
) -> None:
    blocks = landed_in(database, plan)
    with database.snapshot() as connection:
        proof = prove(connection)
        _, copies = account(connection, None, plan, blocks, {})
    whole = Plan(plan.bulk * len(plan.tenants), plan.people)
    copies.seqs = copies.seqs[:, : plan.bulk]
    assert (proof.verification.findings, proof.unexplained, proof.broken) == ([], [], [])
    assert differing_tenants(proof.verification, copies, whole, CONFIGURATION) == []
    copies.seqs[4] = copies.seqs[4, ::-1]
    assert differing_tenants(proof.verification, copies, whole, CONFIGURATION) == [plan.tenants[4]]


def started(home: Path, events: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.validate", "--events", str(events), "--home", str(home)]
    return subprocess.Popen(
        command,
        cwd=home.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_validation_that_is_killed_goes_on_and_nothing_is_lost_or_lands_twice(reachable_path: Path) -> None:
    base = reachable_path / "validation"
    base.mkdir(mode=0o711)
    home, events = base / "home", 5_000
    try:
        for blocks in (2, 12):
            process = started(home, events)
            deadline = time.monotonic() + 200
            while blocks_in(home) < blocks:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        process = started(home, events)
        told, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
        left = home.exists()
        discard(home)
    assert process.returncode == 0, told
    assert "going on: " in told
    report = json.loads((base / "reports" / "validate.json").read_text())
    assert report["account"]["acknowledged"] == events
    assert [name for name, held in report["holds"].items() if not held] == []
    assert not left


def blocks_in(home: Path) -> int:
    try:
        return len(json.loads((home / "progress.json").read_text())["blocks"])
    except FileNotFoundError:
        return 0
