"""Corpora through Dagster: of a tenant and pooled; refused without consent; stopped by what was deleted."""

from collections.abc import Iterator

import dagster as dg
import pytest

from somabrain_dagster.corpus.verification import CLAIMS
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.corpora import delete_tenant, written_corpora
from somabrain_dagster.store.database import Database
from tests.corpus.test_exporting import settings as settings
from tests.corpus.test_exporting import tenants as tenants

__all__ = ["settings", "tenants"]

QUICK = {"tokenizer": "gpt2", "validation": 0.3}
MADE = ("training_examples", "training_corpus", "tokenized_corpus")


@pytest.fixture
def brain(database: Database, settings: Settings, valkey: ValkeyServer) -> Iterator[Brain]:
    snapshots = SnapshotCache(valkey.url)
    yield Brain(settings, database, snapshots)
    snapshots.close()


def run(
    brain: Brain, job: str, partition: str | None = None, kinds: tuple[str, ...] = MADE
) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(
        brain.settings, resources={"brain": dg.ResourceDefinition.hardcoded_resource(brain)}
    )
    keys = [dg.AssetKey(kind if partition else ["pooled", kind]) for kind in kinds]
    steps = {("__".join(key.path)): {"config": QUICK} for key in keys}
    with dg.DagsterInstance.ephemeral() as instance:
        if partition:
            instance.add_dynamic_partitions("tenants", [partition])
        return definitions.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=keys,
            run_config={"ops": steps},
            raise_on_error=False,
        )


def test_a_tenants_corpora_are_made_and_every_check_holds(brain: Brain, tenants: list[str]) -> None:
    result = run(brain, "tenant_corpora", tenants[0])
    assert result.success
    checks = result.get_asset_check_evaluations()
    assert len(checks) == len(MADE) * len(CLAIMS)
    assert all(check.passed for check in checks)
    with brain.database.as_operator() as connection:
        assert {written.kind for written in written_corpora(connection)} == set(MADE)
    rows = {
        event.asset_key: event.step_materialization_data.materialization.metadata["dagster/row_count"].value
        for event in result.get_asset_materialization_events()
    }
    assert all(isinstance(count, int) and count > 0 for count in rows.values())


def test_without_consent_the_run_fails_and_says_how_to_agree(brain: Brain, tenants: list[str]) -> None:
    result = run(brain, "tenant_corpora", tenants[2])
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "does not let its data be learned from" in str(failed.step_failure_data.user_failure_data)
    with brain.database.as_operator() as connection:
        assert written_corpora(connection) == []


def test_pooled_preferences_are_made_where_there_is_feedback_alone(brain: Brain, tenants: list[str]) -> None:
    result = run(brain, "pooled_corpora", kinds=("preference_pairs",))
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "nothing to learn from" in str(failed.step_failure_data.user_failure_data)


def test_examples_with_a_deleted_tenant_are_made_into_nothing(brain: Brain, tenants: list[str]) -> None:
    assert run(brain, "pooled_corpora", kinds=("training_examples",)).success
    with brain.database.as_operator() as connection:
        delete_tenant(connection, tenants[0], "ada")
    result = run(brain, "pooled_corpora", kinds=("training_corpus",))
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "build the examples again" in str(failed.step_failure_data.user_failure_data)
    assert run(brain, "pooled_corpora", kinds=("training_examples", "training_corpus")).success
