"""The Dagster project as a specification: assets, checks, jobs, sensors; importing it does nothing."""

import importlib
import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import SecretStr

from somabrain_dagster.assets.metadata import made_every
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.operations.dagster_home import (
    INSTANCE,
    WORKSPACE,
    dagster_home,
    prepare,
    storage_url,
    workspace,
)
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.settings import CelerySettings, Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.workers.launcher import OPTIONS, Launcher
from tests.chain import Chain, settings_for

ROOT = Path(__file__).parent.parent

ASSETS = {
    # asset: (group, kinds, what it is made of)
    "feedback_events": ("landed", {"postgres"}, set()),
    "memories": ("landed", {"postgres"}, set()),
    "recalls": ("landed", {"postgres"}, set()),
    "token_usage": ("landed", {"postgres"}, set()),
    "feedback_daily": ("learning", {"postgres"}, {"feedback_events"}),
    "adaptation_state": ("learning", {"postgres", "numpy"}, {"feedback_events", "recalls"}),
    "performance_trends": ("learning", {"postgres", "scipy"}, {"feedback_events", "adaptation_state"}),
    "ann_index": ("operations", {"postgres"}, {"memories"}),
    "audit_seal": ("operations", {"postgres"}, {"feedback_events"}),
    "feedback_retention": (
        "operations",
        {"postgres"},
        {"feedback_events", "recalls", "token_usage", "feedback_daily"},
    ),
    "state_backup": ("operations", {"postgres", "redis"}, {"feedback_events", "memories", "recalls"}),
    "restore_drill": ("operations", {"postgres", "redis"}, {"state_backup"}),
    "enhancement_report": ("evaluation", {"postgres", "numpy"}, set()),
    "parameter_proposals": (
        "learning",
        {"postgres", "numpy"},
        {"performance_trends", "recalls", "feedback_events"},
    ),
    "tenant_weights": (
        "learning",
        {"postgres", "numpy"},
        {"adaptation_state", "recalls", "parameter_proposals"},
    ),
    "experiment_results": (
        "learning",
        {"postgres", "scipy"},
        {"parameter_proposals", "recalls", "feedback_events"},
    ),
    "canary_rollout": ("learning", {"postgres", "scipy"}, {"experiment_results"}),
    "promoted_weights": ("learning", {"postgres"}, {"canary_rollout"}),
    "served_weights": ("learning", {"redis"}, {"promoted_weights", "tenant_weights", "adaptation_state"}),
    "training_examples": ("corpora", {"json"}, {"memories", "feedback_events"}),
    "training_corpus": ("corpora", {"json"}, {"training_examples"}),
    "tokenized_corpus": ("corpora", {"parquet"}, {"training_examples"}),
    "preference_pairs": ("corpora", {"json"}, {"memories", "feedback_events", "recalls"}),
    "pooled/training_examples": ("corpora", {"json"}, {"memories", "feedback_events"}),
    "pooled/training_corpus": ("corpora", {"json"}, {"pooled/training_examples"}),
    "pooled/tokenized_corpus": ("corpora", {"parquet"}, {"pooled/training_examples"}),
    "pooled/preference_pairs": ("corpora", {"json"}, {"memories", "feedback_events", "recalls"}),
}
CORPORA = {asset for asset, (group, _, _) in ASSETS.items() if group == "corpora"}
POOLED = {asset for asset in CORPORA if asset.startswith("pooled/")}
OBSERVED = {"feedback_events", "memories", "recalls", "token_usage"}
CHECKS = {
    # (asset, check): whether it blocks
    ("adaptation_state", "replay_equals_live"): True,
    ("adaptation_state", "every_shift_is_rederived"): True,
    ("adaptation_state", "versions_have_no_gap"): True,
    ("adaptation_state", "the_hash_chain_is_intact"): True,
    ("adaptation_state", "bounds_hold"): False,
    ("adaptation_state", "pruned_events_are_sealed"): True,
    ("adaptation_state", "state_follows_what_landed"): False,
    ("performance_trends", "no_trend_is_surer_than_its_series_allows"): True,
    ("ann_index", "every_index_finds_what_an_exact_search_finds"): True,
    ("feedback_retention", "nothing_is_overdue"): False,
    ("state_backup", "every_file_reads_back"): True,
    ("state_backup", "a_backup_was_proven_lately"): False,
    ("restore_drill", "the_restored_brain_is_the_one_backed_up"): True,
    ("parameter_proposals", "accepted_proposals_pass_their_gates"): True,
    ("experiment_results", "every_analysis_is_that_of_its_sessions"): True,
    ("canary_rollout", "every_look_decides_what_its_numbers_say"): True,
    ("served_weights", "served_states_are_the_live_ones"): False,
    **{
        (corpus, check): True
        for corpus in CORPORA
        for check in (
            "digests_match",
            "trainers_can_read_it",
            "nothing_leaks_across_the_split",
            "no_personal_data_is_left",
            "no_row_is_tombstoned",
        )
    },
}
BY_HAND = {"enhancement_report"} | CORPORA
BY_CALENDAR = {"ann_index", "audit_seal", "feedback_retention", "state_backup", "restore_drill"}
ON_TRIAL = {"experiment_results", "canary_rollout", "promoted_weights", "served_weights"}
JOBS = {
    "learning_chain": set(ASSETS) - BY_HAND - BY_CALENDAR - ON_TRIAL,
    "experiment_analysis": {"experiment_results", "canary_rollout"},
    "canary_look": {"canary_rollout", "promoted_weights", "served_weights"},
    "index_rebuild": {"ann_index"},
    "history_seal": {"audit_seal"},
    "retention": {"feedback_retention"},
    "backup": {"state_backup"},
    "backup_drill": {"restore_drill"},
    "tenant_corpora": CORPORA - POOLED,
    "tenant_fits": {"tenant_weights"},
    "pooled_corpora": POOLED,
}
SCHEDULES = {
    "weekly_index_rebuild": ("index_rebuild", "0 3 * * 0", "UTC"),
    "hourly_history_seal": ("history_seal", "7 * * * *", "UTC"),
    "daily_retention": ("retention", "30 2 * * *", "UTC"),
    "daily_backup": ("backup", "0 1 * * *", "UTC"),
    "weekly_restore_drill": ("backup_drill", "0 5 * * 0", "UTC"),
}
EVERY = {
    "ann_index": timedelta(weeks=1),
    "audit_seal": timedelta(hours=1),
    "feedback_retention": timedelta(days=1),
    "state_backup": timedelta(days=1),
    "restore_drill": timedelta(weeks=1),
}
"""How often the calendar makes each of `BY_CALENDAR`."""

VERBS = {
    *("allows", "are", "can", "decides", "equals", "finds", "follows", "has", "have", "hold", "is"),
    *("leaks", "match", "pass", "reads", "was"),
}
"""What the sentences of the checks say of things."""

SENSORS = {
    "feedback_landed": {"learning_chain"},
    "experiment_complete": {"experiment_analysis"},
    "canary_clock": {"canary_look"},
    "tenants": set(),
    "run_failure": set(),
}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions(Settings(sensor_interval_seconds=7))


def name(key: dg.AssetKey) -> str:
    return key.to_user_string()


def test_the_assets_are_these(definitions: dg.Definitions) -> None:
    specs = {name(spec.key): spec for spec in definitions.resolve_all_asset_specs()}

    assert {
        asset: (spec.group_name, spec.kinds, {name(dep.asset_key) for dep in spec.deps})
        for asset, spec in specs.items()
    } == ASSETS
    for asset, spec in specs.items():
        assert spec.description, asset
        assert spec.owners, asset
        assert spec.tags, asset


def test_what_landed_is_observed_and_the_rest_is_made(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()

    assert {name(key) for key in graph.observable_asset_keys} == OBSERVED
    assert {name(key) for key in graph.materializable_asset_keys} == set(ASSETS) - OBSERVED


def test_days_are_of_utc_and_include_today_and_one_run_takes_many() -> None:
    definitions = build_definitions(Settings.model_validate({"first_day": "2026-03-01"}))
    daily = definitions.resolve_assets_def("feedback_daily")

    assert isinstance(daily.partitions_def, dg.DailyPartitionsDefinition)
    assert daily.partitions_def.timezone == "UTC"
    assert daily.partitions_def.get_first_partition_key() == "2026-03-01"
    assert daily.partitions_def.end_offset == 1
    assert daily.backfill_policy == dg.BackfillPolicy.single_run()


def test_the_checks_are_these(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    specs = [graph.get_check_spec(key) for key in graph.asset_check_keys]

    assert {(name(spec.asset_key), spec.name): spec.blocking for spec in specs} == CHECKS
    assert all(spec.description for spec in specs)


@pytest.mark.parametrize("check", sorted({check for _, check in CHECKS}))
def test_a_check_is_named_by_the_sentence_that_holds(check: str) -> None:
    words = check.split("_")
    assert VERBS & set(words[1:]), "something is said"
    assert words[0] not in VERBS, "of something"


def test_only_what_the_calendar_makes_goes_stale_by_the_clock(definitions: dg.Definitions) -> None:
    policies = {
        name(spec.key): spec.freshness_policy
        for spec in definitions.resolve_all_asset_specs()
        if spec.freshness_policy is not None
    }

    assert policies == {asset: made_every(period) for asset, period in EVERY.items()}
    assert set(EVERY) == {asset for job, *_ in SCHEDULES.values() for asset in JOBS[job]} == BY_CALENDAR
    assert made_every(timedelta(days=1)) == dg.FreshnessPolicy.time_window(
        warn_window=timedelta(hours=26), fail_window=timedelta(hours=50)
    )


def schemas_told(run: dg.ExecuteInProcessResult) -> dict[str, dg.TableSchema]:
    """The column schemas that a run attached to what it made or observed."""
    entries: list[dg.AssetMaterialization | dg.AssetObservation] = [
        event.step_materialization_data.materialization for event in run.get_asset_materialization_events()
    ]
    entries += [
        event.asset_observation_data.asset_observation for event in run.get_asset_observation_events()
    ]
    return {
        name(entry.asset_key): schema.schema
        for entry in entries
        if isinstance(schema := entry.metadata.get("dagster/column_schema"), dg.TableSchemaMetadataValue)
    }


def test_every_table_is_described_column_by_column(
    instance: dg.DagsterInstance, database: Database, valkey: ValkeyServer
) -> None:
    """Of a brain without rows, as the database itself describes them."""
    chain = Chain(instance, settings_for(database.url, valkey), database)
    told: dict[str, dg.TableSchema] = {}
    for run in (
        chain.run_days("2018-04-01", "2018-04-02"),
        *(
            chain.run({}, job=job)
            for job in ("experiment_analysis", "canary_look", "history_seal", "retention")
        ),
    ):
        assert run.success
        told |= schemas_told(run)

    tables = {
        name(spec.key): spec.metadata["dagster/table_name"]
        for spec in chain.definitions.resolve_all_asset_specs()
        if "dagster/table_name" in spec.metadata
    }
    assert set(tables) - set(told) == {"restore_drill"}, "which needs a backup: tests/test_backup.py has it"
    with database.as_owner() as connection:
        for asset, schema in told.items():
            columns = [(column.name, column.type) for column in read_columns_of(connection, tables[asset])]
            assert [(column.name, column.type) for column in schema.columns] == columns


def test_the_jobs_are_these_and_run_in_one_process(definitions: dg.Definitions) -> None:
    jobs = {job.name: job for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")}

    assert {
        job: {name(key) for key in definition.asset_layer.selected_asset_keys}
        for job, definition in jobs.items()
    } == JOBS
    assert {definition.executor_def.name for definition in jobs.values()} == {"in_process"}
    assert all(definition.description for definition in jobs.values())


def test_the_sensors_are_these_and_look_from_the_start(definitions: dg.Definitions) -> None:
    sensors = {sensor.name: sensor for sensor in definitions.get_repository_def().sensor_defs}

    assert {
        sensor: {target.job_name for target in each.targets} for sensor, each in sensors.items()
    } == SENSORS
    for sensor in sensors.values():
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds == 7
        assert sensor.description


def test_the_schedules_are_these_and_run_from_the_start(definitions: dg.Definitions) -> None:
    schedules = definitions.get_repository_def().schedule_defs

    assert {
        schedule.name: (schedule.job_name, schedule.cron_schedule, schedule.execution_timezone)
        for schedule in schedules
    } == SCHEDULES
    for schedule in schedules:
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
        assert schedule.description


def test_a_resource_of_ones_own_takes_the_place_of_the_settings(definitions: dg.Definitions) -> None:
    own = dg.ResourceDefinition.hardcoded_resource("another brain")
    replaced = build_definitions(Settings(), resources={"brain": own})

    assert definitions.resources.keys() == replaced.resources.keys() == {"brain", "artifacts"}  # type: ignore[union-attr]
    assert replaced.resources["brain"] is own  # type: ignore[index]


def test_importing_the_definitions_connects_to_nothing_and_starts_nothing(tmp_path: Path) -> None:
    """In a process of its own, with servers named that would notice, and then with none named."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    home = tmp_path / "home"
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("SOMABRAIN_", "DAGSTER_"))}
    bare["SOMABRAIN_HOME"] = str(home)
    named = {
        "SOMABRAIN_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{port}/brain",
        "SOMABRAIN_DAGSTER_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{port}/dagster",
        "SOMABRAIN_REDIS_URL": f"redis://127.0.0.1:{port}",
    }
    code = "from somabrain_dagster.definitions import defs; defs.get_repository_def().load_all_definitions()"

    for environment in (bare | named, bare):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    listening.settimeout(0)
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()
    assert not home.exists()


def test_the_files_at_the_root_are_those_that_the_project_uses() -> None:
    for file in (INSTANCE, WORKSPACE):
        assert (ROOT / file.name).samefile(file)


def test_the_home_of_dagster_has_all_that_its_programs_need(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    servers = Servers(
        "postgresql://a:b@127.0.0.1:1/brain", "postgresql://a:b@127.0.0.1:1/dagster", "redis://127.0.0.1:2"
    )

    environment = prepare(settings, servers)

    assert environment.items() >= servers.environment().items()
    assert environment["DAGSTER_HOME"] == str(dagster_home(settings))
    assert environment["SOMABRAIN_HOME"] == str(tmp_path)
    described = (dagster_home(settings) / "dagster.yaml").read_text()
    assert described == INSTANCE.read_text()
    assert set(re.findall(r"env: (\w+)", described)) <= environment.keys()
    assert workspace(settings).read_text() == WORKSPACE.read_text()


def test_with_a_broker_runs_go_to_celerys_workers_and_all_else_stays(tmp_path: Path) -> None:
    broker = SecretStr("redis://:secret@127.0.0.1:2/1")
    settings = Settings(home=tmp_path, celery=CelerySettings(broker_url=broker, slots=12))
    servers = Servers(
        "postgresql://a:b@127.0.0.1:1/brain", "postgresql://a:b@127.0.0.1:1/dagster", "redis://127.0.0.1:2"
    )

    environment = prepare(settings, servers)

    described = (dagster_home(settings) / "dagster.yaml").read_text()
    assert "secret" not in described
    assert set(re.findall(r"env: (\w+)", described)) <= environment.keys()
    configured, alone = yaml.safe_load(described), yaml.safe_load(INSTANCE.read_text())
    launcher = configured.pop("run_launcher")
    assert getattr(importlib.import_module(launcher["module"]), launcher["class"]) is Launcher
    alone["concurrency"]["runs"]["max_concurrent_runs"] = 12
    assert configured == alone
    # What a broker gives out again would begin twice: it must wait longer than any run may take.
    visible = OPTIONS["broker_transport_options"]["visibility_timeout"]
    assert visible > configured["run_monitoring"]["max_runtime_seconds"]


def test_storage_names_the_driver_that_dagster_needs() -> None:
    assert storage_url("postgresql://a:b%40c@h:5/d?sslmode=require") == (
        "postgresql+psycopg2://a:b%40c@h:5/d?sslmode=require"
    )
