"""When experiments and canaries are to be looked at, begun and ended."""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from somabrain_dagster.jobs import CANARY_LOOK, EXPERIMENT_ANALYSIS, canary_look, experiment_analysis
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.sensors.requests import run_for, unfinished_run
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.canaries import due_look, running_canary, untried_winner
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.experiments import (
    progress_of,
    read_live_sessions,
    running_experiment,
    untried_proposal,
)

DUE_TAG = "somabrain/due"


@dataclass(frozen=True)
class Due:
    """Something that is to be done.

    Attributes:
        what: in such words that the same thing reads the same; None where nothing is due.
        why: for a person.
    """

    what: str | None
    why: str


def experiment_due(connection: Connection, settings: Settings) -> Due:
    """What an experiment is to be looked at for, begun for, or tried further for."""
    experiment = running_experiment(connection)
    if experiment is not None:
        progress = progress_of(experiment.plan, read_live_sessions(connection, experiment))
        name = experiment.experiment_id
        sessions = ", ".join(
            f"{arm} {moments.n} of {progress.size}" for arm, moments in progress.outcomes.items()
        )
        if progress.complete:
            return Due(f"{experiment.salt} complete", f"each arm of {name} has its sessions: {sessions}")
        if progress.harmful:
            return Due(
                f"{experiment.salt} harm", f"{', '.join(progress.harmful)} of {name} does harm: {sessions}"
            )
        return Due(None, f"{name} runs: {sessions}")
    if running_canary(connection) is not None:
        return Due(None, "no experiment runs, since a canary does")
    winner = untried_winner(connection, settings.learning_configuration)
    if winner is not None:
        return _unless_manual(settings, f"{winner} canary", f"{winner} found a better arm")
    proposal = untried_proposal(connection, settings.learning_configuration)
    if proposal is not None:
        return _unless_manual(
            settings, f"proposal {proposal}", f"proposal {proposal} waits for its experiment"
        )
    return Due(None, "no experiment runs, and no accepted proposal waits for one")


def canary_due(connection: Connection, settings: Settings) -> Due:
    """What the canary is to be looked at or promoted for."""
    canary = running_canary(connection)
    if canary is None:
        return Due(None, "no canary runs")
    name = f"canary {canary.canary_id}"
    tag = f"{name} of {canary.started_at.isoformat()}"
    look = due_look(connection, canary)
    if look is not None:
        return Due(f"{tag} look {look}", f"look {look} at {name} is due")
    if canary.allowed:
        return _unless_manual(settings, f"{tag} promote", f"{name} may be promoted")
    return Due(None, f"{name} runs: {len(canary.looks)} of {len(canary.rule.hours)} looks were taken")


def _unless_manual(settings: Settings, what: str, why: str) -> Due:
    if settings.autopilot:
        return Due(what, why)
    return Due(None, f"{why}; the autopilot is off (SOMABRAIN_AUTOPILOT), so a person decides")


def experiment_complete_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor `experiment_complete`.

    Args:
        settings: for the interval, and whether the autopilot is on.
    """

    @dg.sensor(
        name="experiment_complete",
        job=experiment_analysis,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs the analysis once each arm has its sessions, or at any time before if an arm "
        "does harm. With the autopilot on it also begins the experiment of an accepted proposal, and the "
        "canary of an arm that is better.",
    )
    def experiment_complete(
        context: dg.SensorEvaluationContext, brain: dg.ResourceParam[Brain]
    ) -> dg.SensorResult:
        with brain.database.snapshot() as connection:
            due = experiment_due(connection, settings)
        return _asked(context, due, EXPERIMENT_ANALYSIS, settings, ("experiment_results", "canary_rollout"))

    return experiment_complete


def canary_clock_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor `canary_clock`.

    Args:
        settings: for the interval, and whether the autopilot is on.
    """

    @dg.sensor(
        name="canary_clock",
        job=canary_look,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs each look at the canary when its hour has come, by the database's clock. Harm ends "
        "the canary whether or not the autopilot is on; a promotion follows only if it is.",
    )
    def canary_clock(context: dg.SensorEvaluationContext, brain: dg.ResourceParam[Brain]) -> dg.SensorResult:
        with brain.database.snapshot() as connection:
            due = canary_due(connection, settings)
        return _asked(context, due, CANARY_LOOK, settings, ("canary_rollout", "promoted_weights"))

    return canary_clock


def _asked(
    context: dg.SensorEvaluationContext,
    due: Due,
    job: str,
    settings: Settings,
    changing: tuple[str, ...],
) -> dg.SensorResult:
    """The run for what is due, or why there is none; `changing` are the assets that the autopilot gates."""
    if due.what is None:
        return dg.SensorResult(skip_reason=due.why)
    run = unfinished_run(context.instance, job)
    if run is not None:
        return dg.SensorResult(
            skip_reason=f"{due.why}; it waits for run {run.run_id}, which is {run.status.value.lower()}"
        )
    config: Mapping[str, object] = {
        "ops": {asset: {"config": {"change": settings.autopilot}} for asset in changing}
    }
    request = run_for(context.instance, job, {DUE_TAG: due.what}, run_config=config, undone=True)
    if isinstance(request, dg.DagsterRun):
        return dg.SensorResult(
            skip_reason=f"{due.why}, but its run {request.run_id} ended as {request.status.value.lower()}: "
            "see why, and re-execute it"
        )
    context.log.info("%s", due.why)
    return dg.SensorResult(run_requests=[request], cursor=due.what)
