"""The demo: real conversations in, feedback landed, everything materialised by Dagster, and a report."""

import logging
from contextlib import closing

import numpy as np
from rich.console import Console
from rich.table import Table

from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.learning.weights import NAMES, WEIGHTS, to_units
from somabrain_dagster.operations import chitchat, dagster_home, servers
from somabrain_dagster.operations.summary import ImportSummary, Progress
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.verification import Verification, WeightLog, verify
from somabrain_dagster.ticks import Ticks, instance_in

logging.getLogger("dagster").setLevel(logging.WARNING)  # its story is in the UI, the report is here

PEOPLE = 100
SHOWN_TENANTS = 6


def import_people(settings: Settings, running: servers.Servers, progress: Progress) -> ImportSummary:
    """Land what the heaviest people said, heard and rated; what is there already stays as it is."""
    database, snapshots = servers.open_store(running)
    try:
        summary = chitchat.import_chitchat(
            database, settings.learning_configuration, PEOPLE, progress, snapshots=snapshots
        )
        if not summary.landed:
            with database.as_operator() as connection:
                snapshots.publish(read_states(connection))
        return summary
    finally:
        snapshots.close()
        database.close()


def materialise(settings: Settings, running: servers.Servers) -> str:
    """Let the sensor look once and, if it asks for a run, run it here.

    Returns:
        What happened, for a person.

    Raises:
        dagster.DagsterExecutionStepExecutionError: a step failed.
    """
    database, snapshots = servers.open_store(running)
    with (
        database,
        closing(snapshots),
        instance_in(dagster_home.prepare(settings, running)) as instance,
    ):
        ticks = Ticks(build_definitions(settings), instance, Brain(settings, database, snapshots))
        look = ticks.look("feedback_landed")
    for ran in look.runs:
        return (
            f"run {ran.run_id} of {ran.job}\n"
            f"  observed: {', '.join(ran.observed)}\n"
            f"  materialised: {', '.join(ran.materialised)}\n"
            f"  checks: {sum(check.passed for check in ran.checks)} of {len(ran.checks)} passed"
        )
    return f"nothing to materialise: {look.skipped}"


def verify_all(running: servers.Servers) -> Verification:
    """Prove the weights of everyone, as they are now."""
    database, snapshots = servers.open_store(running)
    try:
        with database.snapshot() as connection:
            return verify(connection)
    finally:
        snapshots.close()
        database.close()


def weights_before_and_after(log: WeightLog) -> Table:
    """The first and the last weights of those who changed most; weights that nobody moved are left out."""
    most = np.argsort(-log.log.lengths, kind="stable")[:SHOWN_TENANTS].tolist()
    firsts = log.first_rows
    before = to_units(log.log.after[[firsts[place] for place in most]])
    after = to_units(log.log.after[[firsts[place] + log.log.lengths[place] - 1 for place in most]])
    moved = np.flatnonzero((before != after).any(axis=0)).tolist()

    table = Table(box=None, pad_edge=False)
    table.add_column("tenant", no_wrap=True)
    table.add_column("changes", justify="right")
    for position in moved:
        table.add_column(f"{WEIGHTS[position].symbol} {NAMES[position]}", justify="right", no_wrap=True)
    for row, place in enumerate(most):
        cells = [f"{before[row, position]:.2f} → {after[row, position]:.2f}" for position in moved]
        table.add_row(log.tenants[place], f"{log.log.lengths[place] - 1:,}", *cells)
    return table


def run(settings: Settings, console: Console, progress: Progress) -> Verification:
    """The whole demo, and its report on the console."""
    running = servers.start(settings)
    summary = import_people(settings, running, progress)
    console.print("[bold]What landed[/]")
    console.print(str(summary), highlight=False)

    console.print("\n[bold]What Dagster made of it[/]")
    console.print(materialise(settings, running), highlight=False)

    verification = verify_all(running)
    console.print("\n[bold]Weights before and after, of those who changed most[/]")
    console.print(weights_before_and_after(verification.log))
    return verification
