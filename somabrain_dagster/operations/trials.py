"""Trials moved on by one step: whatever is due of experiments and canaries, one transaction each."""

from collections.abc import Sequence
from dataclasses import dataclass

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.canaries import (
    Canary,
    ForgedLook,
    Looked,
    due_look,
    members_of,
    read_look,
    running_canary,
    start_canary,
    take_look,
    untried_winner,
)
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.experiments import (
    Analysed,
    Experiment,
    Forged,
    Progress,
    complete_experiment,
    progress_of,
    read_analysis,
    read_live_sessions,
    running_experiment,
    stop_experiment,
    try_proposal,
    untried_proposal,
)
from somabrain_dagster.store.promoting import read_candidate
from somabrain_dagster.store.request_stats import guardrails


@dataclass(frozen=True)
class ExperimentStep:
    """What was done with the experiment.

    Attributes:
        said: in words.
        progress: of the one that runs.
        analysed: what was analysed just now.
    """

    said: str
    progress: Progress | None = None
    analysed: Analysed | None = None


def advance_experiment(database: Database, settings: Settings, actor: str, *, change: bool) -> ExperimentStep:
    """Do what is due: analyse what is complete, end what does harm, begin what waits.

    Args:
        database: the brain's.
        settings: say by which rule.
        actor: who asks, for the audit trail.
        change: whether an experiment may be begun.
    """
    with database.as_operator() as connection:
        experiment = running_experiment(connection)
        if experiment is None:
            return _begin_experiment(connection, settings, actor, change=change)
        name = experiment.experiment_id
        progress = progress_of(experiment.plan, read_live_sessions(connection, experiment))
        if progress.harmful:
            evidence = "; ".join(f"{arm}: {progress.harms[arm].gate}" for arm in progress.harmful)
            stop_experiment(connection, name, actor, f"harm: {evidence}")
            return ExperimentStep(f"{name} was ended, since it does harm: {evidence}")
        if not progress.complete:
            sessions = ", ".join(f"{arm} {one.n}" for arm, one in progress.outcomes.items())
            return ExperimentStep(f"{name} runs, {progress.size} sessions an arm: {sessions}", progress)
        analysed = complete_experiment(
            connection, name, actor, online_bound=settings.promotion_fdr == "enforce"
        )
    better = analysed.analysis.promoted
    return ExperimentStep(
        f"{name} is complete: " + (f"{better} is better" if better else "no arm passed every gate"),
        analysed=analysed,
    )


def _begin_experiment(
    connection: Connection, settings: Settings, actor: str, *, change: bool
) -> ExperimentStep:
    configuration = settings.learning_configuration
    proposal = untried_proposal(connection, configuration)
    if proposal is None:
        return ExperimentStep("no experiment runs, and no accepted proposal waits for one")
    if running_canary(connection) is not None:
        return ExperimentStep(f"proposal {proposal} waits until the canary has ended")
    if not change:
        return ExperimentStep(f"proposal {proposal} waits for a person to begin its experiment")
    begun = try_proposal(
        connection, proposal, settings.experiment.size, settings.experiment.rule, configuration, actor
    )
    return ExperimentStep(
        f"{begun.experiment_id} began: {begun.plan.size} sessions an arm",
        progress_of(begun.plan, []),
    )


@dataclass(frozen=True, eq=False)
class CanaryStep:
    """What was done with the canary.

    Attributes:
        said: in words.
        looked: the look that was taken just now.
    """

    said: str
    looked: Looked | None = None


def advance_canary(database: Database, settings: Settings, actor: str, *, change: bool) -> CanaryStep:
    """Do what is due: take a look, or begin the canary of what an experiment found.

    Args:
        database: the brain's.
        settings: say by which rule.
        actor: who asks, for the audit trail.
        change: whether a canary may be begun.
    """
    with database.as_operator() as connection:
        canary = running_canary(connection)
        if canary is None:
            return _begin_canary(connection, settings, actor, change=change)
        look = due_look(connection, canary)
        if look is None:
            return CanaryStep(f"canary {canary.canary_id} runs, and no look is due")
        members, others = members_of(connection, canary.canary_id)
        asked = guardrails(connection, members, others, canary.started_at, settings.guardrail.rule)
        # One that was not measured counts only where the canary's rule asks for it.
        measured = {
            name: gate for name, gate in asked.items() if name in canary.rule.guardrails or not gate.missing
        }
        looked = take_look(connection, canary.canary_id, look, measured, actor)
    hours = canary.rule.hours[look]
    reasons = "; ".join(looked.decision.reasons)
    return CanaryStep(
        f"look at canary {canary.canary_id} after {hours:g} h: {looked.action}"
        + (f" ({reasons})" if reasons else ""),
        looked,
    )


def _begin_canary(connection: Connection, settings: Settings, actor: str, *, change: bool) -> CanaryStep:
    configuration = settings.learning_configuration
    winner = untried_winner(connection, configuration)
    if winner is None:
        return CanaryStep("no canary runs, and no experiment found an arm to try")
    experiment = running_experiment(connection)
    if experiment is not None:
        return CanaryStep(f"{winner} waits until {experiment.experiment_id} has ended")
    if not change:
        return CanaryStep(f"{winner} waits for a person to begin its canary")
    begun = start_canary(connection, winner, settings.canary.rule, configuration, actor)
    return CanaryStep(f"canary {begun.canary_id} began: {winner}/{begun.arm}")


def read_analyses(
    connection: Connection, experiments: Sequence[Experiment]
) -> tuple[list[Analysed], dict[str, str]]:
    """Every analysis that is that of its sessions; and what is wrong with the others, by experiment."""
    analyses, broken = [], {}
    for one in experiments:
        if one.status == "completed":
            try:
                analyses.append(read_analysis(connection, one.experiment_id))
            except Forged as forged:
                broken[one.experiment_id] = str(forged)
    return analyses, broken


def read_looks(
    connection: Connection, canaries: Sequence[Canary], configuration: LearningConfiguration
) -> tuple[list[tuple[Canary, Looked]], dict[str, str]]:
    """The looks at canaries of which all holds; and what is wrong with the others, by number."""
    looks: list[tuple[Canary, Looked]] = []
    broken = {}
    for canary in canaries:
        try:
            taken = [(canary, read_look(connection, canary, look)) for look in canary.looks]
        except ForgedLook as forged:
            broken[str(canary.canary_id)] = str(forged)
            continue
        refusals = (
            read_candidate(connection, canary.canary_id, configuration).refusals if canary.allowed else ()
        )
        if refusals:
            broken[str(canary.canary_id)] = "; ".join(refusals)
        else:
            looks += taken
    return looks, broken
