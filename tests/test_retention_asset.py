"""The asset `feedback_retention` and the commands of retention, on a brain that people have taught."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from click.testing import CliRunner

from somabrain_dagster.cli import main
from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.settings import RetentionSettings
from somabrain_dagster.store.database import Database
from tests.ageing import cut_weeks
from tests.brain import landed, said
from tests.chain import Chain, checks_of, failed_checks, settings_for
from tests.test_retention import counts, people
from tests.test_trials_cli import Terminal

pytestmark = pytest.mark.learning

MOMENT = "0.000000001"
"""Days: a tenth of a millisecond."""


@pytest.fixture
def chain(taught: Database, valkey: ValkeyServer, instance: dg.DagsterInstance) -> Chain:
    knobs = {"retention": RetentionSettings(days=float(MOMENT))}
    return Chain(instance, settings_for(taught.url, valkey, **knobs), taught)


@pytest.fixture
def terminal(taught: Database, valkey: ValkeyServer) -> Terminal:
    return Terminal(
        {
            "SOMABRAIN_DATABASE_URL": taught.url,
            "SOMABRAIN_DAGSTER_DATABASE_URL": taught.url,
            "SOMABRAIN_REDIS_URL": valkey.url,
            "SOMABRAIN_RETENTION_DAYS": MOMENT,
        }
    )


def test_a_run_says_what_it_dropped_and_the_proofs_hold_after_it(chain: Chain) -> None:
    before = counts(chain.database)
    cut_weeks(chain.database)

    result = chain.run({}, job="retention")

    assert result.success
    metadata = result.asset_materializations_for_node("feedback_retention")[0].metadata
    assert metadata["rows dropped"].value == sum(before.values())
    assert metadata["partitions dropped"].value == len(before)
    dropped = metadata["dropped now"]
    assert isinstance(dropped, dg.TableMetadataValue)
    assert {record.data["table"]: record.data["rows"] for record in dropped.records} == before
    assert "data:image/png" in str(metadata["pruned so far"].value)
    assert checks_of(result)["nothing_is_overdue"].passed

    proof = chain.materialise("adaptation_state")
    assert failed_checks(proof) == set()
    proven = proof.asset_materializations_for_node("adaptation_state")[0].metadata
    assert proven["events that are sealed"].value == before["feedback_events"]

    observed = chain.definitions.resolve_job_def("learning_chain").execute_in_process(
        instance=chain.instance, asset_selection=[dg.AssetKey("feedback_events")]
    )
    (observation,) = observed.get_asset_observation_events()
    seen = observation.asset_observation_data.asset_observation.metadata
    assert (seen["dagster/row_count"].value, seen["events that are pruned"].value) == (
        0,
        before["feedback_events"],
    )


def test_a_day_whose_raw_events_are_gone_is_refused_and_never_zeroed(chain: Chain) -> None:
    cut_weeks(chain.database)
    assert chain.run({}, job="retention").success
    counted = chain.rows("SELECT * FROM feedback_daily ORDER BY tenant_id, day")
    ((first, last),) = chain.rows("SELECT min(day)::text, max(day)::text FROM feedback_daily")

    result = chain.run_days(first, last)

    assert not result.success
    assert "nothing is left to count" in str(result.failure_data_for_node("feedback_daily"))
    assert chain.rows("SELECT * FROM feedback_daily ORDER BY tenant_id, day") == counted


def test_what_should_have_gone_and_stays_is_told(chain: Chain) -> None:
    tenant = people(chain.database)[0]
    later = datetime.now(UTC) + timedelta(days=2)
    landed(chain.database, [said(tenant, occurred_at=later.isoformat())])
    cut_weeks(chain.database)

    result = chain.run({}, job="retention")

    assert result.success
    overdue = checks_of(result)["nothing_is_overdue"]
    assert not overdue.passed
    assert f"of {tenant} beyond the mark of feedback_daily" in (overdue.description or "")


def test_the_commands_show_run_hold_and_release(terminal: Terminal, taught: Database) -> None:
    held, other = people(taught)[:2]
    before = counts(taught)
    assert "nothing that is there now will be pruned" in terminal.says(
        "retention", "hold", held, "--reason", "a case"
    )
    assert "under a legal hold already" in terminal.refuses("retention", "hold", held, "--reason", "again")
    assert "no legal hold" in terminal.refuses("retention", "release", other)
    assert "there is no tenant" in terminal.refuses("retention", "hold", "nobody", "--reason", "x")
    cut_weeks(taught)

    assert "partitions from before" in terminal.says("retention", "run")
    shown = terminal.says("retention", "show")
    assert "a case" in shown
    assert "feedback_events" in shown
    assert counts(taught)["feedback_events"] < before["feedback_events"]
    assert "✓ what was pruned is what its seals say" in terminal.says("replay")
    assert "are sealed" in " ".join(terminal.says("replay").split())

    assert "released" in terminal.says("retention", "release", held)
    terminal.says("retention", "run")
    assert counts(taught)["feedback_events"] == 0


def test_for_how_long_rows_are_kept_must_be_a_time() -> None:
    result = CliRunner().invoke(main, ["retention", "show"], env={"SOMABRAIN_RETENTION_DAYS": "-1"})
    assert result.exit_code == 1
    assert "SOMABRAIN_RETENTION_DAYS: Input should be greater than 0" in result.output
