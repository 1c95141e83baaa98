"""The Dagster project: read this first.

What landed (`assets/landed.py`) is observed, aggregated by day (`assets/feedback.py`) and proven
(`assets/adaptation.py`) by one job (`jobs.py`), which a sensor (`sensors/feedback.py`) runs when it sees that
something new has landed. The same job fits weights to what feedback taught (`assets/proposals.py`). What is
on trial (`assets/trials.py`) and what is promoted (`assets/promotion.py`) move on by sensors of their own
(`sensors/trials.py`). By the calendar (`schedules.py`) indexes are rebuilt (`assets/ann_index.py`), the
history is sealed (`assets/audit_seal.py`), what is too old is pruned (`assets/retention.py`), and backups are
made and proven (`assets/backups.py`). Corpora to train on (`assets/corpus.py`) are made when somebody asks
for them, of tenants that agreed.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from somabrain_dagster.assets.adaptation import adaptation_state
from somabrain_dagster.assets.ann_index import ann_index
from somabrain_dagster.assets.audit_seal import audit_seal
from somabrain_dagster.assets.backups import restore_drill, state_backup
from somabrain_dagster.assets.corpus import corpus_assets
from somabrain_dagster.assets.enhancement import enhancement_report
from somabrain_dagster.assets.feedback import feedback_daily_asset
from somabrain_dagster.assets.landed import landed_assets
from somabrain_dagster.assets.promotion import promoted_weights, served_weights
from somabrain_dagster.assets.proposals import parameter_proposals, tenant_weights
from somabrain_dagster.assets.retention import feedback_retention
from somabrain_dagster.assets.trends import performance_trends
from somabrain_dagster.assets.trials import canary_rollout, experiment_results
from somabrain_dagster.checks.following import state_follows_what_landed
from somabrain_dagster.jobs import (
    backup,
    backup_drill,
    canary_look,
    experiment_analysis,
    history_seal,
    index_rebuild,
    learning_chain,
    pooled_corpora,
    retention,
    tenant_corpora,
    tenant_fits,
)
from somabrain_dagster.partitions import feedback_days
from somabrain_dagster.resources.artifacts import artifacts_resource
from somabrain_dagster.resources.brain import brain_resource
from somabrain_dagster.schedules import (
    daily_backup,
    daily_retention,
    hourly_history_seal,
    weekly_index_rebuild,
    weekly_restore_drill,
)
from somabrain_dagster.sensors.failure import run_failure_sensor
from somabrain_dagster.sensors.feedback import feedback_landed_sensor
from somabrain_dagster.sensors.tenants import tenants_sensor
from somabrain_dagster.sensors.trials import canary_clock_sensor, experiment_complete_sensor
from somabrain_dagster.settings import Settings


def build_definitions(
    settings: Settings | None = None, resources: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Everything that Dagster knows of this project; connects to nothing and starts nothing.

    Args:
        settings: of the project; from the environment where None.
        resources: by key, in place of those that the settings give: `brain` and `artifacts`.
    """
    settings = Settings() if settings is None else settings
    days = feedback_days(settings)
    return dg.Definitions(
        assets=[
            landed_assets(),
            feedback_daily_asset(days, settings.first_day),
            feedback_retention,
            adaptation_state,
            ann_index,
            audit_seal,
            enhancement_report,
            experiment_results,
            canary_rollout,
            promoted_weights,
            served_weights,
            performance_trends,
            parameter_proposals,
            tenant_weights,
            state_backup,
            restore_drill,
            *corpus_assets(),
        ],
        asset_checks=[state_follows_what_landed(settings)],
        jobs=[
            learning_chain,
            experiment_analysis,
            canary_look,
            index_rebuild,
            history_seal,
            retention,
            backup,
            backup_drill,
            tenant_corpora,
            tenant_fits,
            pooled_corpora,
        ],
        schedules=[
            weekly_index_rebuild,
            daily_retention,
            hourly_history_seal,
            daily_backup,
            weekly_restore_drill,
        ],
        sensors=[
            feedback_landed_sensor(settings, days),
            experiment_complete_sensor(settings),
            canary_clock_sensor(settings),
            tenants_sensor(settings),
            run_failure_sensor(settings),
        ],
        resources={
            "brain": brain_resource(settings),
            "artifacts": artifacts_resource(settings),
            **(resources or {}),
        },
    )


defs = build_definitions()
