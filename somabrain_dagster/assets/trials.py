"""What is on trial: experiments, and the canaries of what they found."""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
from matplotlib.figure import Figure

from somabrain_dagster.assets.changing import Change
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, column_schema, plot
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.operations.trials import (
    ExperimentStep,
    advance_canary,
    advance_experiment,
    read_analyses,
    read_looks,
)
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.canaries import Canary, Looked, list_canaries
from somabrain_dagster.store.experiments import Analysed, Experiment, list_experiments
from somabrain_dagster.store.landed import read_columns_of

ANALYSES_HOLD = "every_analysis_is_that_of_its_sessions"
LOOKS_HOLD = "every_look_decides_what_its_numbers_say"
LISTED = 20


@dg.asset(
    description="Experiments, and what they showed. The unit is the session, one number each, the mean "
    "reward of its feedback. An experiment is analysed once, when each arm has the sessions that were "
    "fixed before its start; before that only harm ends it. With nothing on trial, the newest accepted "
    "proposal gets its experiment.",
    deps=["parameter_proposals", "recalls", "feedback_events"],
    group_name=LEARNING,
    kinds={"postgres", "scipy"},
    owners=OWNERS,
    tags={"somabrain/layer": "trial"},
    metadata={"dagster/table_name": "experiment_analyses"},
    pool="experiment_results",
    check_specs=[
        dg.AssetCheckSpec(
            ANALYSES_HOLD,
            asset="experiment_results",
            description="Each stored analysis is what the stored numbers of its sessions give when they are "
            "analysed again.",
            blocking=True,
        )
    ],
)
def experiment_results(
    context: dg.AssetExecutionContext, config: Change, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Advance the experiment by one step, and show all of them."""
    step = advance_experiment(
        brain.database, brain.settings, f"dagster run {context.run.run_id}", change=config.change
    )
    context.log.info("%s", step.said)
    with brain.database.snapshot() as connection:
        experiments = list_experiments(connection)
        analysed, broken = read_analyses(connection, experiments)
        columns = read_columns_of(connection, "experiment_analyses")
    latest = step.analysed or (analysed[-1] if analysed else None)
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(one.status == "completed" for one in experiments),
            "dagster/column_schema": column_schema(columns),
            "what happened": step.said,
            "experiments": experiments_table(experiments[-LISTED:], step),
            **(
                {
                    f"findings of {latest.experiment_id}": findings_table(latest),
                    "arms": plot(draw_arms(latest.experiment_id, latest.outcomes), "means by arm"),
                }
                if latest
                else {}
            ),
        },
        check_results=[_claim(ANALYSES_HOLD, broken)],
    )


def _claim(check: str, broken: dict[str, str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=check,
        passed=not broken,
        description="; ".join(broken.values()) or None,
        metadata={"broken": len(broken)},
    )


def experiments_table(experiments: Sequence[Experiment], step: ExperimentStep) -> dg.TableMetadataValue:
    """Each experiment, the newest first; of the one that runs, how far it is."""
    sessions = {} if step.progress is None else {arm: one.n for arm, one in step.progress.outcomes.items()}
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "experiment": one.experiment_id,
                    "status": one.status,
                    "arms": ", ".join(arm.name for arm in one.plan.arms),
                    "size": one.plan.size,
                    "sessions": ", ".join(f"{arm} {n}" for arm, n in sessions.items())
                    if one.status == "running"
                    else "",
                    "started": "" if one.started_at is None else one.started_at.isoformat(timespec="seconds"),
                    "ended": one.end_reason or "",
                }
            )
            for one in reversed(experiments)
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("experiment", "string"),
                dg.TableColumn("status", "string"),
                dg.TableColumn("arms", "string", description="the control first"),
                dg.TableColumn("size", "int", description="sessions that each arm needs"),
                dg.TableColumn("sessions", "string", description="so far, where it runs"),
                dg.TableColumn("started", "string"),
                dg.TableColumn("ended", "string", description="why it ended"),
            ]
        ),
    )


def findings_table(analysed: Analysed) -> dg.TableMetadataValue:
    """Each treatment of an experiment against its control."""
    records = []
    for finding in analysed.analysis.findings:
        found = finding.comparison
        records.append(
            dg.TableRecord(
                {
                    "arm": finding.arm,
                    "sessions": analysed.outcomes[finding.arm].n,
                    "difference": "not comparable"
                    if found is None
                    else f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]",
                    "p (Holm)": round(finding.p, 6),
                    "d": "" if found is None else f"{found.d:.3f} [{found.d_low:.3f}, {found.d_high:.3f}]",
                    "g": "" if found is None else f"{found.g:.3f}",
                    "promotable": finding.promotable,
                    "gates": gates_text(finding.gates),
                }
            )
        )
    return dg.MetadataValue.table(
        records,
        schema=dg.TableSchema(
            [
                dg.TableColumn("arm", "string"),
                dg.TableColumn("sessions", "int"),
                dg.TableColumn("difference", "string", description="treatment − control, 95% interval"),
                dg.TableColumn("p (Holm)", "float", description="Welch's, adjusted for the treatments"),
                dg.TableColumn("d", "string", description="Cohen's, 95% interval"),
                dg.TableColumn("g", "string", description="Hedges'"),
                dg.TableColumn("promotable", "bool"),
                dg.TableColumn("gates", "string"),
            ]
        ),
    )


def draw_arms(title: str, outcomes: Mapping[str, Moments]) -> Figure:
    """The mean of each arm's sessions with twice its standard error."""
    figure = Figure(figsize=(7, 0.9 + 0.55 * len(outcomes)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, moments in enumerate(reversed(list(outcomes.values()))):
        error = 2 * moments.deviation / max(moments.n, 1) ** 0.5
        axes.errorbar(moments.mean, place, xerr=error, fmt="o", color="#4477aa", capsize=4)
        said = f"{moments.n} sessions"
        axes.annotate(
            said, (moments.mean, place), (0, 8), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(outcomes)), list(reversed(list(outcomes))))
    axes.set_ylim(-0.5, len(outcomes) - 0.3)
    axes.set_xlabel("mean reward of a session, ± 2 standard errors")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    return figure


@dg.asset(
    description="New weights with a tenth of the tenants first, as a shift when their weights are read. "
    "Looks at 6, 12, 24 and 48 hours compare them with the others, tenant by tenant, less what they "
    "differed in before. Harm rolls back at any look; only the last one promotes, if harm is excluded and "
    "everything was measured. Missing data never promotes.",
    deps=["experiment_results"],
    group_name=LEARNING,
    kinds={"postgres", "scipy"},
    owners=OWNERS,
    tags={"somabrain/layer": "trial"},
    metadata={"dagster/table_name": "canary_looks"},
    pool="canary_rollout",
    check_specs=[
        dg.AssetCheckSpec(
            LOOKS_HOLD,
            asset="canary_rollout",
            description="Each stored look decides what the rule makes of its stored numbers, and a canary "
            "that may be promoted passes every gate of the promotion.",
            blocking=True,
        )
    ],
)
def canary_rollout(
    context: dg.AssetExecutionContext, config: Change, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Take the look that is due, or begin the canary that waits, and show all of them."""
    step = advance_canary(
        brain.database, brain.settings, f"dagster run {context.run.run_id}", change=config.change
    )
    context.log.info("%s", step.said)
    with brain.database.snapshot() as connection:
        known = list_canaries(connection)
        looks, broken = read_looks(connection, known, brain.settings.learning_configuration)
        columns = read_columns_of(connection, "canary_looks")
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(len(canary.looks) for canary in known),
            "dagster/column_schema": column_schema(columns),
            "what happened": step.said,
            "canaries": canaries_table(known[-LISTED:]),
            "looks": looks_table(looks[-LISTED:]),
            **({"harm": plot(draw_looks(looks), "difference at each look")} if looks else {}),
        },
        check_results=[_claim(LOOKS_HOLD, broken)],
    )


def canaries_table(known: Sequence[Canary]) -> dg.TableMetadataValue:
    """Each canary, the newest first."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "canary": one.canary_id,
                    "experiment": one.experiment_id,
                    "arm": one.arm,
                    "status": one.status,
                    "started": one.started_at.isoformat(timespec="seconds"),
                    "looks": f"{len(one.looks)} of {len(one.rule.hours)}",
                    "ended": one.end_reason or "",
                }
            )
            for one in reversed(known)
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("canary", "int"),
                dg.TableColumn("experiment", "string"),
                dg.TableColumn("arm", "string"),
                dg.TableColumn("status", "string"),
                dg.TableColumn("started", "string"),
                dg.TableColumn("looks", "string"),
                dg.TableColumn("ended", "string", description="why it ended"),
            ]
        ),
    )


def looks_table(looks: Sequence[tuple[Canary, Looked]]) -> dg.TableMetadataValue:
    """Each look at the canaries, the newest first."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "canary": canary.canary_id,
                    "hours": canary.rule.hours[looked.look],
                    "action": looked.action,
                    "difference": _difference(looked),
                    "sessions": f"{sum(one.since.n for one in looked.canary)} against "
                    f"{sum(one.since.n for one in looked.control)}",
                    "gates": gates_text(looked.decision.gates),
                }
            )
            for canary, looked in reversed(looks)
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("canary", "int"),
                dg.TableColumn("hours", "float", description="since the start"),
                dg.TableColumn("action", "string"),
                dg.TableColumn("difference", "string", description="canary − others, less the period before"),
                dg.TableColumn("sessions", "string"),
                dg.TableColumn("gates", "string", description="what a promotion needs"),
            ]
        ),
    )


def gates_text(gates: Sequence[Gate]) -> str:
    """Gates in words."""
    return "; ".join(map(str, gates))


def _difference(looked: Looked) -> str:
    found = looked.decision.comparison
    return "too little" if found is None else f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def draw_looks(looks: Sequence[tuple[Canary, Looked]]) -> Figure:
    """The difference at each look at the newest canary, with its interval."""
    newest = looks[-1][0]
    figure = Figure(figsize=(7, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    for canary, looked in looks:
        found = looked.decision.comparison
        if canary.canary_id == newest.canary_id and found is not None:
            axes.errorbar(
                canary.rule.hours[looked.look],
                found.difference,
                yerr=[[found.difference - found.low], [found.high - found.difference]],
                fmt="o",
                color="#4477aa",
                capsize=4,
            )
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel("hours since the start")
    axes.set_ylabel("canary − others")
    axes.set_title(f"canary {newest.canary_id}: {newest.experiment_id}/{newest.arm}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
