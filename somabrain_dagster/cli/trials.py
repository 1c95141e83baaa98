"""Experiments, canaries and promoted weights, for a person at a terminal."""

from collections.abc import Mapping, Sequence

import click
import numpy as np
from rich.table import Table

from somabrain_dagster.cli.console import actor, console, explained, fail, opened
from somabrain_dagster.learning.experiments import BUILT_IN, Finding, Plan, Treatment, shared_equally
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.weights import NAMES, POSITION, WEIGHTS, Nanos, to_nanos, to_units
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.canaries import (
    list_canaries,
    read_look,
    running_canary,
    start_canary,
    stop_canary,
    untried_winner,
)
from somabrain_dagster.store.experiments import (
    create_experiment,
    list_experiments,
    progress_of,
    read_analysis,
    read_experiment,
    read_live_sessions,
    start_experiment,
    stop_experiment,
)
from somabrain_dagster.store.promoting import promote_canary
from somabrain_dagster.store.promotions import promote, promoted, read_promotions, undo_promotion

CONTROL = "control"


@click.group()
def experiment() -> None:
    """Experiments: arms of weights compared session by session."""


@experiment.command("create")
@click.argument("name")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="NAME:WEIGHT=SHIFT,…",
    help="An arm beside the control, and by how much it shifts which weights: `warm:alpha=+0.5,tau=-0.1`. "
    f"Not needed for {', '.join(BUILT_IN)}.",
)
@click.option("--size", type=click.IntRange(min=2), help="Sessions that each arm needs.  [default: planned]")
@explained
def experiment_create(name: str, arms: tuple[str, ...], size: int | None) -> None:
    """Draw up an experiment; nobody sees its arms before `experiment start`."""
    settings = Settings()
    treatments = [treatment_of(arm) for arm in arms] or list(BUILT_IN.get(name, ()))
    if not treatments:
        fail(f"name the arms of {name!r} with --arm; built in are {', '.join(BUILT_IN)}")
    plan = Plan(
        shared_equally([CONTROL, *(treatment.name for treatment in treatments)]),
        size or settings.experiment.size,
        settings.experiment.rule,
    )
    shifts = np.array([np.zeros(len(NAMES), dtype=np.int64), *(shift_of(one.shifts) for one in treatments)])
    with opened(settings) as (database, _), database.as_operator() as connection:
        made = create_experiment(connection, name, plan, shifts, settings.learning_configuration, actor())
    console.print(
        f"{made.experiment_id}: {len(plan.arms)} arms of {plan.size} sessions each; "
        f"`somabrain experiment start {made.experiment_id}` begins it",
        highlight=False,
    )


def treatment_of(said: str) -> Treatment:
    """An arm as a person writes it."""
    name, _, shifts = said.partition(":")
    parts = [part.partition("=") for part in shifts.split(",")]
    try:
        named = {weight.strip(): float(shift) for weight, _, shift in parts}
    except ValueError:
        fail(f"{said!r} is no arm: write NAME:WEIGHT=SHIFT,…, such as warm:alpha=+0.5,tau=-0.1")
    if not name or name == CONTROL:
        fail(f"{said!r} needs a name before the colon, other than {CONTROL!r}")
    return Treatment(name, named)


def shift_of(shifts: Mapping[str, float]) -> Nanos:
    """Shifts by name as a vector of nano-units."""
    shift = np.zeros(len(NAMES), dtype=np.int64)
    for name, value in shifts.items():
        if name not in POSITION:
            fail(f"there is no weight {name!r}; there are {', '.join(NAMES)}")
        shift[POSITION[name]] = to_nanos(value)
    return shift


@experiment.command("start")
@click.argument("name")
@explained
def experiment_start(name: str) -> None:
    """Let sessions see their arms from now on."""
    settings = Settings()
    with opened(settings) as (database, _), database.as_operator() as connection:
        started = start_experiment(connection, name, settings.learning_configuration, actor())
    console.print(
        f"{name} runs until each of {len(started.plan.arms)} arms has {started.plan.size} sessions",
        highlight=False,
    )


@experiment.command("stop")
@click.argument("name")
@click.option("--reason", default="stopped by a person", show_default=True, help="For the audit trail.")
@explained
def experiment_stop(name: str, reason: str) -> None:
    """End an experiment before its time; it is not analysed, and nothing of it is promoted."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        stop_experiment(connection, name, actor(), reason)
    console.print(f"{name}: stopped", highlight=False)


@experiment.command("status")
@click.argument("name", required=False)
@explained
def experiment_status(name: str | None) -> None:
    """Show an experiment and what it found, or all of them."""
    with opened(Settings()) as (database, _), database.snapshot() as connection:
        known = list_experiments(connection) if name is None else [read_experiment(connection, name)]
        if not known:
            console.print("there is no experiment yet: `somabrain experiment create` draws one up")
            return
        table = Table(box=None)
        for heading in ("experiment", "status", "arms", "sessions", "outcome"):
            table.add_column(heading)
        for one in known:
            outcomes: Mapping[str, Moments] = {}
            outcome = one.end_reason or ""
            if one.status in ("running", "stopped"):
                outcomes = progress_of(one.plan, read_live_sessions(connection, one)).outcomes
            if one.status == "completed":
                analysed = read_analysis(connection, one.experiment_id)
                outcomes = analysed.outcomes
                better = analysed.analysis.promoted
                outcome = f"{better} is better" if better else "no arm passed every gate"
            sessions = ", ".join(f"{arm} {moments.n}" for arm, moments in outcomes.items())
            arms = ", ".join(arm.name for arm in one.plan.arms)
            table.add_row(one.experiment_id, one.status, arms, f"{sessions} of {one.plan.size}", outcome)
        console.print(table)
        if name is not None and known[0].status == "completed":
            show_findings(read_analysis(connection, name).analysis.findings)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print what each treatment showed, gate by gate."""
    for finding in findings:
        found = finding.comparison
        console.print(f"[bold]{finding.arm}[/]", highlight=False)
        if found is not None:
            console.print(
                f"  difference {found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}], "
                f"t {found.t:.3f}, df {found.df:.1f}, p {found.p:.3g}\n"
                f"  d {found.d:.3f} [{found.d_low:.3f}, {found.d_high:.3f}], g {found.g:.3f}",
                highlight=False,
                markup=False,
            )
        for gate in finding.gates:
            console.print(f"  {'[green]✓[/]' if gate.passed else '[red]✗[/]'} {gate}", highlight=False)


@click.group()
def canary() -> None:
    """Canaries: new weights with a few tenants first."""


@canary.command("start")
@click.argument("name", required=False)
@explained
def canary_start(name: str | None) -> None:
    """Try what an experiment found better with a few tenants; the newest untried one if none is named."""
    settings = Settings()
    configuration = settings.learning_configuration
    with opened(settings) as (database, _), database.as_operator() as connection:
        chosen = name or untried_winner(connection, configuration)
        if chosen is None:
            fail("no completed experiment found an arm that was not tried yet")
        begun = start_canary(connection, chosen, settings.canary.rule, configuration, actor())
    hours = ", ".join(f"{hour:g}" for hour in begun.rule.hours)
    console.print(f"canary {begun.canary_id} runs, with looks after {hours} hours", highlight=False)


@canary.command("status")
@explained
def canary_status() -> None:
    """Show canaries, and what each look decided."""
    with opened(Settings()) as (database, _), database.snapshot() as connection:
        known = list_canaries(connection)
        if not known:
            console.print("there is no canary yet: `somabrain canary start` tries what an experiment found")
            return
        table = Table(box=None)
        for heading in ("canary", "tries", "status", "look", "action", "why"):
            table.add_column(heading)
        for one in known:
            rows = [read_look(connection, one, look) for look in one.looks]
            tries = f"{one.experiment_id}/{one.arm}"
            if not rows:
                table.add_row(str(one.canary_id), tries, one.status, "", "", one.end_reason or "")
            for looked in rows:
                hours = f"{one.rule.hours[looked.look]:g} h"
                reasons = "; ".join(looked.decision.reasons)
                table.add_row(str(one.canary_id), tries, one.status, hours, looked.action, reasons)
    console.print(table)


@canary.command("stop")
@click.option("--reason", default="stopped by a person", show_default=True, help="For the audit trail.")
@explained
def canary_stop(reason: str) -> None:
    """End the canary: its tenants see their own weights again, and nothing is promoted."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        ended = stop_canary(connection, actor(), reason)
    console.print(f"canary {ended.canary_id}: held", highlight=False)


@click.group()
def weights() -> None:
    """The weights that are promoted to all tenants."""


@weights.command("promote")
@click.argument("named", nargs=-1, metavar="[WEIGHT=VALUE]…")
@explained
def weights_promote(named: tuple[str, ...]) -> None:
    """Promote what the canary allows; or, past every gate, weights that you name: alpha=1.2 tau=0.6."""
    settings = Settings()
    configuration = settings.learning_configuration
    values = {}
    for said in named:
        name, _, value = said.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            fail(f"{said!r} is no weight with a value: write alpha=1.2")
    with opened(settings) as (database, snapshots):
        with database.as_operator() as connection:
            if values:
                promotion, states = promote(connection, values, configuration, actor())
            else:
                running = running_canary(connection)
                if running is None:
                    fail("no canary runs; name weights to promote them past every gate: alpha=1.2")
                promotion, states = promote_canary(connection, running.canary_id, configuration, actor())
        snapshots.publish(states)
    console.print(f"promotion {promotion.version} shifted {len(states):,} tenants", highlight=False)


@weights.command("rollback")
@explained
def weights_rollback() -> None:
    """Give every tenant the exact weights that it had before the promotion in force.

    What was learned since is discarded. The log keeps both.
    """
    settings = Settings()
    with opened(settings) as (database, snapshots):
        with database.as_operator() as connection:
            revert, states = undo_promotion(connection, settings.learning_configuration, actor())
        snapshots.publish(states)
    console.print(
        f"promotion {revert.reverts} is undone, as promotion {revert.version}: {len(states):,} tenants have "
        "the weights again that they had before it",
        highlight=False,
    )


@weights.command("history")
@explained
def weights_history() -> None:
    """Show each promotion: who, from what, and the weights before and after."""
    settings = Settings()
    with opened(settings) as (database, _), database.snapshot() as connection:
        promotions = read_promotions(connection)
        now = promoted(connection, settings.learning_configuration)
    table = Table(box=None)
    for heading in ("version", "at", "by", "from", "changed"):
        table.add_column(heading)
    for one in promotions:
        table.add_row(
            str(one.version), f"{one.created_at:%Y-%m-%d %H:%M}", one.actor, one.origin, one.changed
        )
    if promotions:
        console.print(table)
    else:
        console.print("nothing was promoted yet: every tenant began with the start")
    in_force = ", ".join(
        f"{weight.symbol} {value:.4f}" for weight, value in zip(WEIGHTS, to_units(now.weights), strict=True)
    )
    console.print(f"in force, version {now.version}: {in_force}", highlight=False)
