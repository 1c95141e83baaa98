"""The audit trail, sealed, verified and shown to a person at a terminal."""

import json
import sys

import click
from rich.table import Table

from somabrain_dagster.cli.console import actor, console, explained, opened
from somabrain_dagster.operations.kafka import required
from somabrain_dagster.operations.published import compare_published
from somabrain_dagster.operations.sealing import compare_seals, published_seals, seal_history
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.audit import newest_events
from somabrain_dagster.store.seals import read_seals
from somabrain_dagster.store.tampering import count_history, find_tampering


@click.group()
def audit() -> None:
    """The audit trail: who changed what, and whether the history is what was recorded."""


@audit.command()
@click.option("--kafka", is_flag=True, help="Compare each row with its published copy too, column by column.")
@click.option("--most", default=50, show_default=True, help="How many rows to name.")
@explained
def verify(kafka: bool, most: int) -> None:
    """Check every row of the history against its hash chain, and the chains against their seals.

    Exit 1 if any was changed, added or removed, naming table, tenant and version, and what differs.
    """
    settings = Settings()
    if kafka:
        required(settings.kafka)
    with opened(settings) as (database, _), database.snapshot() as connection:
        counts = count_history(connection)
        found = find_tampering(connection)
        if settings.artifacts_url is not None:
            copies = published_seals(settings.artifacts_url)
            found += compare_seals(read_seals(connection), copies, settings.artifacts_url)
        if kafka:
            found += compare_published(connection, settings.kafka)
    rows = ", ".join(f"{count:,} {table}" for table, count in counts.items())
    console.print(rows, highlight=False)
    if not found:
        console.print("[green]✓[/] every row is what was recorded", highlight=False)
        return
    console.print(f"[red]✗[/] {len(found):,} not as recorded", highlight=False)
    for each in sorted(found)[:most]:
        console.print(f"    {each}", highlight=False, markup=False, soft_wrap=True)
    if len(found) > most:
        console.print(f"    … and {len(found) - most:,} more: `--most` shows them", highlight=False)
    sys.exit(1)


@audit.command()
@click.argument("tenant", required=False)
@click.option("--action", help="Only events of this kind, such as promotion.")
@click.option("--most", default=50, show_default=True, help="How many events to show.")
@explained
def show(tenant: str | None, action: str | None, most: int) -> None:
    """Show what changed behaviour besides feedback: the newest first, of all tenants or of one.

    The tenant `_system` has what concerns all of them.
    """
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        events = newest_events(connection, most, tenant, action)
    table = Table(box=None)
    for heading in ("at", "tenant", "version", "by", "action", "particulars"):
        table.add_column(heading, overflow="fold")
    for event in events:
        particulars = json.dumps(event.body, ensure_ascii=False)
        table.add_row(
            f"{event.created_at:%Y-%m-%d %H:%M:%S}",
            event.tenant_id,
            str(event.version),
            event.actor,
            event.action,
            particulars if len(particulars) <= 200 else f"{particulars[:199]}…",
        )
    console.print(table, markup=False)


@audit.command()
@explained
def seal() -> None:
    """Seal the heads of all chains now, as Dagster does every hour."""
    settings = Settings()
    with opened(settings) as (database, _):
        made = seal_history(database, settings.artifacts_url, actor())
    if made is None:
        console.print("nothing happened since the last seal")
    else:
        console.print(f"seal {made.number} over {made.chains:,} chains: {made.root}", highlight=False)


@audit.command()
@explained
def seals() -> None:
    """Show every seal."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        known = read_seals(connection)
    table = Table(box=None)
    for heading in ("seal", "at", "chains", "root"):
        table.add_column(heading)
    for each in known:
        table.add_row(str(each.number), f"{each.sealed_at:%Y-%m-%d %H:%M:%S}", f"{each.chains:,}", each.root)
    console.print(table)
