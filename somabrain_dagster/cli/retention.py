"""Retention at a terminal: what is kept, what went, and whose rows are held back."""

import sys

import click
from rich.table import Table

from somabrain_dagster.cli.console import actor, console, explained, opened, watched
from somabrain_dagster.operations.retention import Outcome, run
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.retention import (
    RELATIONS,
    Pruning,
    place_hold,
    read_holds,
    read_partitions,
    read_prunings,
    release_hold,
)


@click.group()
def retention() -> None:
    """How long what landed is kept; legal holds."""


@retention.command("show")
@explained
def retention_show() -> None:
    """Show what is there, what was pruned, and which tenants are under a legal hold."""
    settings = Settings()
    with opened(settings) as (database, _), database.snapshot() as connection:
        partitions = read_partitions(connection)
        prunings = read_prunings(connection)
        holds = read_holds(connection)
    console.print(
        f"kept for {settings.retention.days:g} days after landing, by whole weeks; "
        "weight changes, daily aggregates, seals and the audit trail for good",
        highlight=False,
    )
    table = Table(box=None)
    for heading in ("table", "kept from", "weeks", "bytes", "pruned up to", "rows pruned"):
        table.add_column(heading, justify="right" if heading in ("weeks", "bytes", "rows pruned") else "left")
    for relation in RELATIONS:
        weeks = [partition for partition in partitions if partition.relation == relation]
        gone = [one for one in prunings if one.relation == relation and one.dropped_at is not None]
        table.add_row(
            relation,
            f"{min(week.begins for week in weeks):%Y-%m-%d}" if weeks else "",
            str(len(weeks)),
            f"{sum(week.bytes for week in weeks):,}",
            f"{max(one.ends for one in gone):%Y-%m-%d}" if gone else "",
            f"{sum(one.rows for one in gone):,}",
        )
    console.print(table)
    show_prunings([one for one in prunings if one.dropped_at is not None])
    for one in prunings:
        if one.dropped_at is None:
            console.print(
                f"[yellow]{one.partition} is sealed and not dropped yet: the next run goes on with it[/]",
                highlight=False,
            )
    for hold in holds:
        console.print(
            f"held: {hold.tenant_id}, since {hold.placed_at:%Y-%m-%d} by {hold.actor}: {hold.reason}",
            highlight=False,
            markup=False,
        )


def show_prunings(prunings: list[Pruning], most: int = 12) -> None:
    """Print what the last prunings took away."""
    if not prunings:
        return
    table = Table(box=None)
    for heading in ("dropped", "table", "landed from", "to", "tenants", "rows", "kept", "by"):
        table.add_column(heading, justify="right" if heading in ("tenants", "rows", "kept") else "left")
    for one in prunings[-most:]:
        table.add_row(
            f"{one.dropped_at:%Y-%m-%d %H:%M}",
            one.relation,
            f"{one.begins:%Y-%m-%d}",
            f"{one.ends:%Y-%m-%d}",
            f"{one.tenants:,}",
            f"{one.rows:,}",
            f"{one.kept_rows or 0:,}",
            one.actor,
        )
    console.print(table)
    if len(prunings) > most:
        console.print(f"and {len(prunings) - most:,} before these", highlight=False)


@retention.command("run")
@explained
def retention_run() -> None:
    """Prune what is too old, as the schedule does daily; exit 1 if something stays that should go."""
    settings = Settings()
    with opened(settings) as (database, _), watched() as progress:
        outcome = run(
            database,
            settings.retention.kept,
            settings.first_day,
            actor(),
            progress,
            relayed=settings.kafka.bootstrap is not None,
        )
    show_outcome(outcome)
    if outcome.refused:
        sys.exit(1)


def show_outcome(outcome: Outcome) -> None:
    """Print what went, and what stayed that should have gone."""
    console.print(
        f"{len(outcome.dropped)} partitions from before {outcome.before:%Y-%m-%d} are dropped, "
        f"{sum(one.rows for one in outcome.dropped):,} rows, in {outcome.seconds:.1f} s",
        highlight=False,
    )
    show_prunings(outcome.dropped)
    for name, rows in outcome.deleted.items():
        if rows:
            console.print(f"{name}: {rows:,} old rows deleted", highlight=False)
    if outcome.held:
        console.print(f"{outcome.held} partitions stay under a legal hold", highlight=False)
    for refusal in outcome.refused:
        console.print(f"[red]✗[/] {refusal.partition}: {refusal.reason}", highlight=False)


@retention.command("hold")
@click.argument("tenant_id")
@click.option("--reason", required=True, help="For the audit trail.")
@explained
def retention_hold(tenant_id: str, reason: str) -> None:
    """Keep what a tenant has now, and what will land, whatever its age, until it is released."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        place_hold(connection, tenant_id, actor(), reason)
    console.print(f"{tenant_id}: nothing that is there now will be pruned", highlight=False)


@retention.command("release")
@click.argument("tenant_id")
@explained
def retention_release(tenant_id: str) -> None:
    """End a legal hold: what is too old goes with the next run."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        hold = release_hold(connection, tenant_id, actor())
    console.print(f"{tenant_id}: released; it was held since {hold.placed_at:%Y-%m-%d}", highlight=False)
