"""The evidence as Dagster materialises it, in a database of its own that is gone afterwards."""

from contextlib import closing
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from somabrain_dagster.assets.enhancement import EVALUATION, enhancement_report, report_path
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.operations.enhancement import RECENCY
from somabrain_dagster.operations.enhancement_report import read_report
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database

pytestmark = pytest.mark.learning

SMALL = {"people": 3, "memories": 150, "feedback": 30, "held_out": 15}


def databases(postgres: PostgresServer) -> set[str]:
    with psycopg.connect(postgres.url("postgres")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_it_measures_shows_and_leaves_nothing_behind(
    postgres: PostgresServer, valkey: ValkeyServer, database: Database, server_home: Path
) -> None:
    settings = Settings(home=server_home)
    before = databases(postgres)
    with closing(SnapshotCache(valkey.url)) as snapshots, dg.DagsterInstance.ephemeral() as instance:
        brain = dg.ResourceDefinition.hardcoded_resource(Brain(settings, database, snapshots))
        run = dg.materialize(
            [enhancement_report],
            resources={"brain": brain},
            instance=instance,
            run_config={"ops": {"enhancement_report": {"config": SMALL}}},
        )
    (event,) = run.asset_materializations_for_node("enhancement_report")
    report = read_report(report_path(settings))
    assert event.metadata["headline"].value == report.headline
    shown = event.metadata["policies"]
    assert isinstance(shown, dg.TableMetadataValue)
    assert [record.data["policy"] for record in shown.records] == list(report.policies)
    assert report.policies[RECENCY].queries == SMALL["people"] * SMALL["held_out"]
    assert report.origin.findings == 0
    assert "data:image/png" in str(event.metadata["top-1"].value)
    assert databases(postgres) == before


def test_it_is_in_the_project_and_runs_only_by_hand() -> None:
    definitions = build_definitions(Settings())
    (spec,) = [spec for spec in definitions.resolve_all_asset_specs() if spec.key == enhancement_report.key]
    assert spec.group_name == EVALUATION
    assert spec.automation_condition is None
    for job in definitions.jobs or []:
        assert (
            enhancement_report.key
            not in definitions.resolve_job_def(job.name).asset_layer.selected_asset_keys
        )


def test_a_scratch_database_is_dropped_when_the_measurement_fails(
    postgres: PostgresServer, server_home: Path
) -> None:
    before = databases(postgres)

    def fail() -> None:
        with scratch_database(Settings(home=server_home), "evidence") as scratch:
            with scratch.as_operator() as connection:
                assert connection.execute("SELECT count(*) FROM tenants").fetchone() == (0,)
            assert len(databases(postgres) - before) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert databases(postgres) == before
