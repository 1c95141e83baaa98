"""The learning chain on real Postgres: what it counts, what it proves, what it marks, and what it refuses."""

import base64
import re
from datetime import UTC, date, datetime, time
from io import BytesIO
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.learning.weights import NAMES
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.positions import ADAPTATION_STATE, FEEDBACK_DAILY
from tests.brain import CONFIGURATION, landed, new_tenant, new_tenants, said
from tests.chain import Chain, checks_of, failed_checks, settings_for
from tests.forgery import forge_change

PROOFS = {
    "replay_equals_live",
    "every_shift_is_rederived",
    "versions_have_no_gap",
    "the_hash_chain_is_intact",
    "bounds_hold",
    "pruned_events_are_sealed",
}


@pytest.fixture
def chain(instance: dg.DagsterInstance, database: Database, valkey: ValkeyServer) -> Chain:
    return Chain(instance, settings_for(database.url, valkey), database)


def noon(day: str) -> str:
    return datetime.combine(date.fromisoformat(day), time(12), UTC).isoformat()


def materialised(result: dg.ExecuteInProcessResult, asset: str) -> list[dg.AssetMaterialization]:
    return [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    ]


def picture(markdown: object) -> Image.Image:
    assert isinstance(markdown, str)
    found = re.fullmatch(r"!\[.+\]\(data:image/png;base64,(.+)\)", markdown)
    assert found
    return Image.open(BytesIO(base64.b64decode(found[1])))


def test_real_ratings_are_observed_counted_and_proven(chain: Chain, instance: dg.DagsterInstance) -> None:
    data = read_chitchat(3)
    with chain.database.as_operator() as connection:
        create_tenants(connection, data.tenants, CONFIGURATION)
    landed(chain.database, data.feedback)
    days = [feedback.occurred_at.date() for feedback in data.feedback if feedback.occurred_at]
    first, last = min(days), max(days)

    result = chain.run_days(first.isoformat(), last.isoformat())

    assert result.success
    assert set(checks_of(result)) == {
        *PROOFS,
        "state_follows_what_landed",
        "no_trend_is_surer_than_its_series_allows",
        "accepted_proposals_pass_their_gates",
    }
    assert failed_checks(result) == set()

    # Counted: what the data themselves say, day by day.
    expected: dict[tuple[str, date], list[Any]] = {}
    for feedback, day in zip(data.feedback, days, strict=True):
        row = expected.setdefault((feedback.tenant_id, day), [0, set(), 0.0, 0.0])
        row[0] += 1
        row[1].add(feedback.session_id)
        row[2] += feedback.utility
        row[3] += feedback.utility**2
    counted = chain.rows(
        "SELECT tenant_id, day, events, sessions, "
        "utility_sum, utility_square_sum, reward_sum, reward_square_sum FROM feedback_daily"
    )
    assert {(tenant, day): (events, sessions) for tenant, day, events, sessions, *_ in counted} == {
        key: (row[0], len(row[1])) for key, row in expected.items()
    }
    for tenant, day, _, _, *sums in counted:
        utility, squares = expected[tenant, day][2:]
        assert sums == pytest.approx([utility, squares, utility, squares])

    # Told: of each day its rows, of the run its plot, of the state the weights.
    partitions = materialised(result, "feedback_daily")
    assert len(partitions) == (last - first).days + 1
    told = {entry.partition: entry.metadata["dagster/partition_row_count"].value for entry in partitions}
    assert {day: rows for day, rows in told.items() if rows} == {
        day.isoformat(): sum(key[1] == day for key in expected) for day in set(days)
    }
    assert partitions[-1].metadata["rows"].value == len(expected)
    assert picture(partitions[-1].metadata["feedback by day"].value).size == (800, 400)
    (state,) = materialised(result, "adaptation_state")
    assert state.metadata["dagster/row_count"].value == 3
    assert state.metadata["events"].value == len(data.feedback)
    assert [(state.metadata["changes"].value,)] == chain.rows("SELECT count(*) FROM weight_changes")
    assert picture(state.metadata["paths of the weights"].value).width == 900
    table = state.metadata["weights"].value
    assert isinstance(table, dg.TableMetadataValue)
    assert [column.name for column in table.schema.columns] == ["tenant", "version", *NAMES]
    shown = {str(record.data["tenant"]): list(record.data.values())[1:] for record in table.records}
    assert shown == {
        tenant: [version, *map(float, weights)]
        for tenant, version, _, *weights in chain.rows("SELECT * FROM weights")
    }

    # One position everywhere: what was observed is what was counted and proven.
    observed = {
        event.asset_key: event.asset_observation_data.asset_observation
        for event in result.get_asset_observation_events()
    }
    assert observed[dg.AssetKey("feedback_events")].metadata["dagster/row_count"].value == len(data.feedback)
    told_by: list[Any] = [state, *partitions, observed[dg.AssetKey("feedback_events")]]
    assert {entry.tags["dagster/data_version"] for entry in told_by} == {chain.position}


def test_a_live_weight_moved_by_one_nano_unit_is_named(chain: Chain) -> None:
    tenants = new_tenants(chain.database, 25)
    landed(chain.database, [said(tenant) for tenant in tenants])
    chain.rows("UPDATE adaptation_states SET weights[1] = weights[1] + 1 WHERE tenant_id <> %s", tenants[3])

    result = chain.run_days("2026-01-01", "2026-01-02")

    assert not result.success
    assert failed_checks(result) == {"replay_equals_live"}
    failed = checks_of(result)["replay_equals_live"]
    assert failed.metadata["findings"].value == 24
    findings = failed.metadata["first 20"].value.records  # type: ignore[union-attr]
    assert [finding.data["tenant"] for finding in findings] == [*tenants[:3], *tenants[4:21]]
    for finding in findings:
        assert finding.data["version"] == "live"
        assert re.fullmatch(r"alpha is (\d+) nano-units, .* \(\+1\)", str(finding.data["finding"]))


def test_a_log_forged_from_end_to_end_replays_and_is_not_rederived(chain: Chain) -> None:
    tenant, other = new_tenants(chain.database, 2)
    landed(chain.database, [said(name, utility) for utility in (0.5, 0.2, -0.3) for name in (tenant, other)])
    forge_change(chain.database, tenant, version=2, nanos=5_000_000)

    result = chain.run_days("2026-01-01", "2026-01-02")

    assert not result.success
    assert failed_checks(result) == {"every_shift_is_rederived"}
    (finding,) = checks_of(result)["every_shift_is_rederived"].metadata["first 1"].value.records  # type: ignore[union-attr]
    assert (finding.data["tenant"], finding.data["version"]) == (tenant, "2")
    assert str(finding.data["finding"]).startswith("the shift of alpha is ")


def test_marks_follow_what_was_counted_and_proven(chain: Chain) -> None:
    tenant = new_tenant(chain.database)
    landed(chain.database, [said(tenant, occurred_at=noon("2026-03-01"))])
    assert chain.lag(ADAPTATION_STATE).tenants == chain.lag(FEEDBACK_DAILY).tenants == [tenant]

    assert chain.run_days("2026-03-01", "2026-03-01").success
    assert chain.lag(ADAPTATION_STATE).tenants == chain.lag(FEEDBACK_DAILY).tenants == []

    landed(chain.database, [said(tenant, occurred_at=noon("2026-03-02"))])
    chain.rows("UPDATE adaptation_states SET weights[1] = weights[1] + 1")
    assert not chain.run_days("2026-03-02", "2026-03-02").success
    assert chain.lag(FEEDBACK_DAILY).tenants == []
    assert chain.lag(ADAPTATION_STATE).tenants == [tenant], "what is not proven is not marked"
    assert chain.lag(ADAPTATION_STATE).events == 1


def test_a_day_materialised_by_hand_hides_no_other_day(chain: Chain) -> None:
    here, elsewhere = new_tenants(chain.database, 2)
    landed(
        chain.database,
        [
            said(here, occurred_at=noon("2026-03-01")),
            said(here, occurred_at=noon("2026-03-05")),
            said(elsewhere, occurred_at=noon("2026-03-05")),
        ],
    )
    assert chain.run_days("2026-03-05", "2026-03-05").success

    assert chain.lag(FEEDBACK_DAILY).tenants == [here], "one of its days has not been counted"
    assert chain.unseen_days() == (date(2026, 3, 1), date(2026, 3, 5))

    assert chain.run_days("2026-03-01", "2026-03-05").success
    assert chain.lag(FEEDBACK_DAILY).tenants == []
    assert chain.rows("SELECT day, events FROM feedback_daily WHERE tenant_id = %s ORDER BY day", here) == [
        (date(2026, 3, 1), 1),
        (date(2026, 3, 5), 1),
    ]


def test_the_state_is_late_only_when_something_waits(
    chain: Chain, instance: dg.DagsterInstance, valkey: ValkeyServer
) -> None:
    eager = Chain(
        instance,
        settings_for(chain.database.url, valkey, sensor_interval_seconds=1),
        chain.database,
    )
    tenant = new_tenant(chain.database)
    landed(chain.database, [said(tenant)])

    def late(chain: Chain) -> bool:
        job = chain.definitions.resolve_implicit_global_asset_job_def()
        key = dg.AssetCheckKey(dg.AssetKey("adaptation_state"), "state_follows_what_landed")
        result = job.get_subset(asset_selection=set(), asset_check_selection={key}).execute_in_process(
            instance=instance
        )
        return not checks_of(result)["state_follows_what_landed"].passed

    assert not late(eager), "it landed a moment ago"
    chain.rows("UPDATE weight_changes SET created_at = created_at - interval '10 minutes'")
    assert late(eager), "three ticks of a second and two minutes for a run have passed"
    assert not late(chain), "with ticks every five minutes they have not"
