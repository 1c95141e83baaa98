"""`somabrain`: what a person runs."""

import getpass
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar, get_args

import click
import pydantic
from pydantic_settings import SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from somabrain_dagster import __version__
from somabrain_dagster.embedded import EmbeddedServerError
from somabrain_dagster.learning.configuration import InvalidConfiguration
from somabrain_dagster.learning.weights import WEIGHTS, to_units
from somabrain_dagster.memory import indexes
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.embedding import EmbeddingError
from somabrain_dagster.operations import chitchat, dagster_home, importing, processes, servers
from somabrain_dagster.operations.lines import CannotImport
from somabrain_dagster.operations.summary import ImportSummary, Progress
from somabrain_dagster.serving.run import serve as serve_http
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit, keys
from somabrain_dagster.store.adaptation import InvalidTenant, UnknownTenant, create_tenants, read_states
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database, DatabaseUnreachable
from somabrain_dagster.store.verification import Verification, verify

console = Console()
if console.width < 110:
    console.width = 110  # a row of ten weights, which a narrower terminal wraps and does not cut
P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str) -> NoReturn:
    """End with an error that says what to do."""
    raise click.ClickException(message)


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a person can act on into their message, without a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (
            CannotImport,
            chitchat.ChitChatMissing,
            EmbeddedServerError,
            EmbeddingError,
            InvalidConfiguration,
            InvalidTenant,
            indexes.LowRecall,
            indexes.NoIndex,
            UnknownTenant,
            keys.TooManyKeys,
            keys.UnknownKey,
        ) as error:
            fail(str(error))
        except DatabaseUnreachable as error:
            fail(f"Postgres cannot be reached: {error}\n`somabrain status` says which servers run.")
        except (pydantic.ValidationError, SettingsError) as error:
            fail(wrong_settings(error))

    return run


def wrong_settings(error: pydantic.ValidationError | SettingsError) -> str:
    """Which variables are wrong, and why."""
    if isinstance(error, SettingsError):
        field = str(error).split('"')[1]
        return f"SOMABRAIN_{field.upper()} must be JSON"
    return "\n".join(
        f"SOMABRAIN_{'_'.join(map(str, detail['loc'])).upper()}: {detail['msg']}" for detail in error.errors()
    )


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Database, SnapshotCache]]:
    """The store, its servers started if need be."""
    database, snapshots = servers.open_store(servers.start(settings))
    try:
        yield database, snapshots
    finally:
        snapshots.close()
        database.close()


@click.group()
@click.version_option(__version__)
def main() -> None:
    """SomaBrain's learning operations."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@explained
def up() -> None:
    """Start the servers that no URL names, and bring the schema up to date."""
    servers.start(Settings())
    show_status()


@main.command()
@explained
def down() -> None:
    """Stop the embedded servers; their data stay."""
    stopped = servers.stop(Settings())
    console.print(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")


@main.command()
@explained
def status() -> None:
    """Say which servers run; exit 1 unless all do."""
    if not show_status():
        sys.exit(1)


def show_status() -> bool:
    """Print a row a server and return whether all run."""
    table = Table(box=None)
    for heading in ("server", "kind", "", "where"):
        table.add_column(heading)
    statuses = servers.status(Settings())
    for server in statuses:
        mark = "[green]running[/]" if server.running else "[red]not running[/]"
        table.add_row(server.name, server.kind, mark, server.where)
    console.print(table)
    return all(server.running for server in statuses)


@main.command()
@explained
def replay() -> None:
    """Fold the whole log again and compare it with the live weights; derive every shift from its event.

    Exit 1 if anything differs, naming the tenant and the weight or the change.
    """
    with opened(Settings()) as (database, _), database.snapshot() as connection:
        verification = verify(connection)
    show_verification(verification)
    if verification.findings:
        sys.exit(1)


def show_verification(verification: Verification, most: int = 20) -> None:
    """Print the claims that hold, and the findings against those that do not."""
    log = verification.log
    console.print(f"{len(log.tenants):,} tenants, {len(log.causes):,} changes of weights")
    for claim, findings in verification.by_claim().items():
        if not findings:
            console.print(f"[green]✓[/] {claim}", highlight=False)
            continue
        console.print(f"[red]✗[/] not so: {claim}", highlight=False)
        for finding in findings[:most]:
            console.print(f"    {finding}", highlight=False)
        if len(findings) > most:
            console.print(f"    … and {len(findings) - most:,} more", highlight=False)


@main.command()
@explained
def demo() -> None:
    """Import 100 people's real conversations, materialise everything, and report.

    Run again, it says what is there and changes nothing.
    """
    # Dagster takes a second to import: only what needs it waits for it.
    from somabrain_dagster import demo as demonstration

    settings = Settings()
    with watched() as progress:
        verification = demonstration.run(settings, console, progress)
    console.print("\n[bold]What is proven of it[/]")
    show_verification(verification)
    console.print("\n[bold]Where things are[/]")
    console.print("the UI      `make up` opens it at http://127.0.0.1:3000", highlight=False)
    console.print("the servers go on running: `make status`, and `make down` stops them", highlight=False)
    console.print(f"the files   {settings.home}", highlight=False, soft_wrap=True)
    if verification.findings:
        sys.exit(1)


@main.command()
@click.option("--port", default=3000, show_default=True, help="Of the UI; the next free one if it is taken.")
@click.option("--service-port", default=8400, show_default=True, help="Of the HTTP service; likewise.")
@explained
def ui(port: int, service_port: int) -> None:
    """Open Dagster's UI with its daemon and sensors, and the HTTP service, on loopback, until Ctrl-C.

    Then everything is stopped, except servers that ran before.
    """
    settings = Settings()
    ran_before = {server.name for server in servers.status(settings) if server.running}
    running = servers.start(settings)
    programs = Path(sys.executable).parent
    workspace = str(dagster_home.workspace(settings))
    port, service_port = processes.free_port(port), processes.free_port(service_port)
    url, service_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{service_port}"
    logs = settings.home / "logs"
    console.print("starting Dagster and the service …")

    def announce(stopping: threading.Event) -> None:
        if dagster_home.wait_until_healthy(url, stopping):
            console.print(f"[bold]Dagster's UI: {url}/asset-groups[/]", highlight=False)
            console.print(f"[bold]the service:  {service_url}/docs[/]", highlight=False)
            console.print(
                "a key for it: .venv/bin/somabrain key create TENANT; Ctrl-C stops what this started"
            )

    try:
        ended = processes.run_together(
            {
                "webserver": [
                    str(programs / "dagster-webserver"),
                    *("-h", "127.0.0.1", "-p", str(port), "-w", workspace),
                ],
                "daemon": [str(programs / "dagster-daemon"), "run", "-w", workspace],
                "service": [sys.executable, "-m", "somabrain_dagster.serving", "--port", str(service_port)],
            },
            {**os.environ, **dagster_home.prepare(settings, running)},
            logs,
            announce,
        )
    finally:
        console.print("stopping …")
        servers.stop(settings, leaving=ran_before)
    if ended is not None:
        fail(f"the {ended} ended by itself; {logs / ended}.log says why")


@main.command()
@explained
def env() -> None:
    """Start the servers and print what Dagster's own programs need: eval "$(somabrain env)"."""
    settings = Settings()
    for name, value in dagster_home.prepare(settings, servers.start(settings)).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.group()
def tenant() -> None:
    """Tenants and their weights."""


@tenant.command("create")
@click.argument("tenants", nargs=-1, required=True)
@explained
def tenant_create(tenants: tuple[str, ...]) -> None:
    """Create tenants, each at the configured starting weights."""
    settings = Settings()
    with opened(settings) as (database, snapshots), database.as_operator() as connection:
        created = create_tenants(connection, tenants, settings.learning_configuration)
        snapshots.publish(read_states(connection, created))
    for name in tenants:
        console.print(f"{name}: {'created' if name in created else 'exists already'}")


@tenant.command("list")
@click.argument("tenants", nargs=-1)
@click.option("--most", default=50, show_default=True, help="How many tenants to show.")
@explained
def tenant_list(tenants: tuple[str, ...], most: int) -> None:
    """Show tenants with their weights, the most changed first; all of them if none is named."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        states = read_states(connection, tenants or None)
    table = Table(box=None)
    table.add_column("tenant")
    table.add_column("version", justify="right")
    for weight in WEIGHTS:
        table.add_column(weight.symbol, justify="right")
    for state in sorted(states, key=lambda state: -state.version)[:most]:
        units = [f"{unit:.4f}" for unit in to_units(state.weights)]
        table.add_row(state.tenant_id, f"{state.version:,}", *units)
    console.print(table)
    if len(states) > most:
        console.print(f"… and {len(states) - most:,} more: `--most` shows them")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8400, show_default=True, help="Where to listen.")
@click.option("--workers", default=1, show_default=True, help="Processes that share the port.")
@explained
def serve(host: str, port: int, workers: int) -> None:
    """Serve over HTTP: land feedback, give weights, remember and recall; until SIGTERM or Ctrl-C."""
    serve_http(Settings(), host, port, workers)


@main.group()
def key() -> None:
    """Keys of the HTTP service."""


@key.command("create")
@click.argument("tenant", required=False)
@click.option(
    "--scope",
    type=click.Choice(get_args(keys.Scope)),
    default="tenant",
    show_default=True,
    help="What the key may do; an operator's names no tenant.",
)
@explained
def key_create(tenant: str | None, scope: keys.Scope) -> None:
    """Create a key for a tenant, and show it: now, and never again."""
    if (tenant is None) != (scope == "operator"):
        fail(
            "name the tenant whose key it is" if tenant is None else "an operator's key belongs to no tenant"
        )
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        created = keys.create_key(connection, tenant or audit.SYSTEM, scope, actor())
    click.echo(created)


@key.command("list")
@click.argument("tenant", required=False)
@explained
def key_list(tenant: str | None) -> None:
    """Show keys by their ids: whose they are, what they may do, and when they were used."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        known = keys.list_keys(connection, tenant)
    table = Table(box=None)
    for heading in ("id", "tenant", "scope", "created", "used", "revoked"):
        table.add_column(heading)
    for entry in known:
        times = [entry.created_at, entry.used_at, entry.revoked_at]
        shown = ["never" if moment is None else f"{moment:%Y-%m-%d %H:%M}" for moment in times]
        table.add_row(entry.key_id, entry.tenant_id, entry.scope, *shown)
    console.print(table)


@key.command("revoke")
@click.argument("key_id")
@explained
def key_revoke(key_id: str) -> None:
    """Make a key invalid at once."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        keys.revoke_key(connection, key_id, actor())
    console.print(f"{key_id}: revoked")


def actor() -> str:
    """Who runs this, for the audit trail."""
    return f"cli:{getpass.getuser()}"


@main.group()
def index() -> None:
    """The vector indexes of large tenants."""


@index.command("status")
@explained
def index_status() -> None:
    """Show who has embedded memories, which index serves them, and how well it was proven to."""
    with opened(Settings()) as (database, _):
        statuses = indexes.status(database)
    table = Table(box=None)
    for heading in ("tenant", "embedded", "served by", "recall@10", "measured"):
        table.add_column(heading)
    for entry in statuses:
        recall = "" if entry.recall_at_10 is None else f"{entry.recall_at_10:.3f}"
        measured = "" if entry.measured_at is None else f"{entry.measured_at:%Y-%m-%d %H:%M}"
        table.add_row(entry.tenant_id, f"{entry.embedded:,}", entry.backend, recall, measured)
    console.print(table)


@index.command("rebuild")
@click.argument("tenant", required=False)
@explained
def index_rebuild(tenant: str | None) -> None:
    """Rebuild one tenant's index, or all, and prove it against exact search; give large tenants one.

    Exit 1 if an index finds less than 0.95 of the ten nearest: its tenant is served exactly then.
    """
    settings = Settings()
    embedder = embedder_of(settings)
    with opened(settings) as (database, _):
        rebuilt = (
            indexes.rebuild_all(database, settings.hnsw_threshold, actor=actor(), embedder=embedder)
            if tenant is None
            else [indexes.rebuild(database, tenant, actor=actor(), embedder=embedder)]
        )
    for each in rebuilt:
        console.print(f"{each.tenant_id}: recall@10 {each.proof.recall_at_10:.3f}", highlight=False)
    if not rebuilt:
        console.print(
            f"no tenant has {settings.hnsw_threshold:,} embedded memories: all are searched exactly"
        )
    if not all(each.proof.sufficient for each in rebuilt):
        sys.exit(1)


@main.group("import")
def import_() -> None:
    """Bring real data in. Importing the same thing again adds nothing."""


@import_.command("chitchat")
@click.option(
    "--tenants", default=100, show_default=True, help="How many people, those with the most to say."
)
@explained
def import_chitchat(tenants: int) -> None:
    """The Chit-Chat conversations of 2018: people, their messages, replies and ratings."""
    settings = Settings()
    with opened(settings) as (database, snapshots), watched() as progress:
        summary = chitchat.import_chitchat(
            database, settings.learning_configuration, tenants, progress, snapshots=snapshots
        )
    console.print(str(summary), highlight=False)


REJECTS = click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where refused lines go, with number and reason.  [default: beside FILE]",
)
CREATE_TENANTS = click.option("--create-tenants", is_flag=True, help="Create tenants that do not exist yet.")
FILE = click.argument("file", type=click.Path(path_type=Path))


@import_.command("memories")
@FILE
@REJECTS
@CREATE_TENANTS
@explained
def import_memories(file: Path, rejects: Path | None, create_tenants: bool) -> None:
    """Memories from a file of JSON lines; docs/IMPORT.md says what a line holds."""
    settings = Settings()
    with opened(settings) as (database, _), watched() as progress:
        summary = importing.import_memories(
            database,
            settings.learning_configuration,
            file,
            rejects or beside(file, "memories"),
            progress,
            create_tenants=create_tenants,
        )
    finish(summary)


@import_.command("feedback")
@FILE
@REJECTS
@CREATE_TENANTS
@explained
def import_feedback(file: Path, rejects: Path | None, create_tenants: bool) -> None:
    """Feedback from a file of JSON lines; docs/IMPORT.md says what a line holds."""
    settings = Settings()
    with opened(settings) as (database, snapshots), watched() as progress:
        summary = importing.import_feedback(
            database,
            settings.learning_configuration,
            file,
            rejects or beside(file, "feedback"),
            progress,
            create_tenants=create_tenants,
            snapshots=snapshots,
        )
    finish(summary)


def beside(file: Path, what: str) -> Path:
    """Where the rejects of a file go if nobody says."""
    return file.with_name(f"{file.name}.{what}-rejects.jsonl")


def finish(summary: ImportSummary) -> None:
    """Print what an import did; exit 1 if it left anything out."""
    console.print(str(summary), highlight=False)
    if summary.refused:
        sys.exit(1)


@contextmanager
def watched() -> Iterator[Progress]:
    """A progress bar for each thing that is done, on a terminal; nothing elsewhere."""
    with Bars(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield progress


import somabrain_dagster.cli_corpus  # noqa: E402, F401 — it adds its commands to `main`

if __name__ == "__main__":
    main()
