"""`somabrain backup`, `somabrain restore` and `somabrain redis`: what keeps a brain from being lost."""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from rich.table import Table

from somabrain_dagster.cli import console as shared
from somabrain_dagster.cli.console import actor, console, fail, opened, watched
from somabrain_dagster.embedded import check_append_only
from somabrain_dagster.operations import backups, restoring
from somabrain_dagster.operations.backup_manifest import Backup, InvalidBackup
from somabrain_dagster.operations.backup_store import NoBackup
from somabrain_dagster.operations.places import NoPlace
from somabrain_dagster.operations.postgres_copy import CopyFailed
from somabrain_dagster.operations.redis_copy import CannotCopyRedis
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.backups import BackupRunning, PositionBusy

P = ParamSpec("P")
R = TypeVar("R")


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """As for every command; and what goes wrong with backups, as its message."""

    @shared.explained
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (
            BackupRunning,
            CannotCopyRedis,
            CopyFailed,
            InvalidBackup,
            NoBackup,
            NoPlace,
            PositionBusy,
            restoring.RestoreRefused,
        ) as error:
            fail(str(error))

    return run


@click.group()
def backup() -> None:
    """Backups of Postgres and Redis, and what is proven of them."""


@backup.command("run")
@explained
def backup_run() -> None:
    """Back up while the brain works, read the backup back, then remove those that are not kept."""
    with watched() as progress:
        made = backups.back_up(Settings(), progress)
    done = made.backup
    console.print(f"[green]✓[/] {done.backup_id}", highlight=False)
    console.print(
        f"  {_kind(done)}, {done.bytes:,} bytes in {done.seconds:.1f} s; {done.tenants:,} tenants at "
        f"position {done.position}",
        highlight=False,
    )
    console.print(f"  {made.url}", highlight=False, soft_wrap=True)
    for removed in made.removed:
        console.print(f"  removed {removed}", highlight=False)


def _kind(done: Backup) -> str:
    return {"base": "the whole cluster", "dump": "a dump of the databases"}[done.kind]


@backup.command("list")
@explained
def backup_list() -> None:
    """Show the backups that are there whole, the oldest first; exit 1 if the account of one is damaged."""
    store = backups.store_of(Settings())
    table = Table(box=None)
    for heading in ("backup", "began", "kind", "bytes", "position", "proven"):
        table.add_column(heading, overflow="fold")
    for each in store.backups():
        proven = "[green]proven[/]" if store.is_proven(each.backup_id) else ""
        began = f"{each.created_at:%Y-%m-%d %H:%M}"
        table.add_row(each.backup_id, began, each.kind, f"{each.bytes:,}", each.position, proven)
    console.print(table)
    damaged = list(store.damaged())
    for message in damaged:
        console.print(f"[red]✗[/] {message}", highlight=False, soft_wrap=True)
    if damaged:
        sys.exit(1)


BACKUP = click.argument("backup_id", metavar="[BACKUP]", required=False)


@backup.command("show")
@BACKUP
@explained
def backup_show(backup_id: str | None) -> None:
    """Show what is in a backup, the newest if none is named."""
    store = backups.store_of(Settings())
    each = store.read(backup_id)
    table = Table(box=None, show_header=False)
    for name, value in {
        "backup": each.backup_id,
        "brain": each.brain_id,
        "epoch": each.epoch,
        "began": each.created_at.isoformat(timespec="seconds"),
        "seconds": f"{each.seconds:.1f}",
        "kind": _kind(each),
        "position": each.position,
        "tenants": f"{each.tenants:,}",
        "schema": each.schema_revision,
        "PostgreSQL": f"{each.postgres_major}.{each.postgres_version % 10_000}",
        "Redis": each.redis_version or "left out",
        "proven": "yes" if store.is_proven(each.backup_id) else "not yet: `somabrain backup drill` does it",
    }.items():
        table.add_row(name, str(value))
    console.print(table, highlight=False)
    files = Table(box=None)
    for heading in ("file", "bytes", "SHA-256"):
        files.add_column(heading)
    for file in each.files:
        files.add_row(file.path, f"{file.bytes:,}", file.sha256)
    console.print(files)


@backup.command("verify")
@BACKUP
@explained
def backup_verify(backup_id: str | None) -> None:
    """Read every file of a backup and compare it with its digest; exit 1 if one differs.

    That the files are whole does not say that they restore: `somabrain backup drill` does.
    """
    store = backups.store_of(Settings())
    each = store.read(backup_id)
    with watched() as progress:
        findings = store.check(each, lambda done: progress("read", done, each.bytes))
    for finding in findings:
        console.print(f"[red]✗[/] {finding}", highlight=False, soft_wrap=True)
    if findings:
        sys.exit(1)
    console.print(f"[green]✓[/] {each.backup_id}: {len(each.files)} files as they were written")


@backup.command("drill")
@BACKUP
@explained
def backup_drill(backup_id: str | None) -> None:
    """Restore a backup into a scratch instance and prove it there; exit 1 if anything is found."""
    settings = Settings()
    with opened(settings) as (database, _), watched() as progress:
        result, seconds = restoring.drill(settings, database, backup_id, progress)
    _show_steps(seconds)
    for finding in result.findings:
        console.print(f"[red]✗[/] {finding}", highlight=False, soft_wrap=True)
    if result.findings:
        sys.exit(1)
    console.print(f"[green]✓[/] {result.backup_id} is proven, in {result.seconds:.1f} s", highlight=False)


def _show_steps(seconds: Mapping[str, float]) -> None:
    for step, took in seconds.items():
        console.print(f"  {took:7.2f} s  {step}", highlight=False)


@click.command()
@BACKUP
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="A new directory, which becomes a home of its own.",
)
@click.option("--replace", is_flag=True, help="Put it in the place of this home's servers, kept aside.")
@click.option("--database", help="The URL of an empty database of a server of one's own; for a dump.")
@click.option("--brain", help="Refuse the backup of any other brain.")
@explained
def restore(
    backup_id: str | None, into: Path | None, replace: bool, database: str | None, brain: str | None
) -> None:
    """Restore a backup, the newest if none is named, into a new place, and prove it there.

    Only then is anything switched, and nothing that is there is ever overwritten.
    """
    if (into is not None) + replace + (database is not None) != 1:
        fail("say where: --into DIR, --replace or --database URL")
    settings = Settings()
    with watched() as progress:
        if into is not None:
            done = restoring.restore_into(
                settings, backup_id, into, actor=actor(), brain_id=brain, progress=progress
            )
        elif database is not None:
            done = restoring.restore_database(settings, backup_id, database, actor=actor(), progress=progress)
        else:
            done = restoring.replace_home(
                settings, backup_id, actor=actor(), brain_id=brain, progress=progress
            )
    _show_steps(done.seconds)
    console.print(
        f"[green]✓[/] {done.backup.backup_id} is restored and proven, at position {done.backup.position}; "
        f"epoch {done.epoch} begins",
        highlight=False,
    )
    if done.rebuilt:
        console.print(f"  {done.rebuilt:,} states in Redis were rebuilt from Postgres")
    if database is None:
        console.print(f"  SOMABRAIN_HOME={done.home}", highlight=False, soft_wrap=True)
    if done.aside is not None:
        console.print(
            f"  what was there before: SOMABRAIN_HOME={done.aside}", highlight=False, soft_wrap=True
        )


@click.group("redis")
def redis_group() -> None:
    """What Redis keeps: the states that are served, and working memories."""


@redis_group.command("check")
@click.option("--fix", is_flag=True, help="Cut off what is behind the first damage; a copy is put aside.")
@explained
def redis_check(fix: bool) -> None:
    """Let Valkey's checker read the append-only file of the stopped server; exit 1 if it is damaged."""
    settings = Settings()
    whole, told = check_append_only(settings.home, fix=fix, binary=settings.valkey_binary)
    console.print(told, highlight=False, soft_wrap=True, markup=False)
    if not whole:
        sys.exit(1)


@redis_group.command("rebuild")
@explained
def redis_rebuild() -> None:
    """Write every adaptation state as Postgres has it, whatever Redis has."""
    with opened(Settings()) as (database, snapshots):
        with database.as_operator() as connection:
            states = read_states(connection)
        snapshots.rebuild(states)
    console.print(f"states written: {len(states):,}")
