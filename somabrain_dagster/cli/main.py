"""`somabrain`: what a person runs."""

import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import get_args

import click
from rich.table import Table

from somabrain_dagster import __version__
from somabrain_dagster.cli.audit import audit
from somabrain_dagster.cli.backup import backup, redis_group, restore
from somabrain_dagster.cli.console import actor, console, explained, fail, opened, watched
from somabrain_dagster.cli.corpus import corpus, tenant_delete, tenant_learning_loop
from somabrain_dagster.cli.kafka import kafka
from somabrain_dagster.cli.retention import retention
from somabrain_dagster.cli.trials import canary, experiment, weights
from somabrain_dagster.embedded import binaries_path
from somabrain_dagster.embedded.state import alone, make_home
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.weights import WEIGHTS, to_units
from somabrain_dagster.memory import indexes
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.exporting import exported_lines
from somabrain_dagster.operations import (
    chitchat,
    dagster_home,
    importing,
    postgres_copy,
    processes,
    servers,
)
from somabrain_dagster.operations.kafka import required
from somabrain_dagster.operations.summary import ImportSummary
from somabrain_dagster.serving.run import serve as serve_http
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import changes, keys, schema
from somabrain_dagster.store.adaptation import create_tenants, read_states
from somabrain_dagster.store.audit import SYSTEM
from somabrain_dagster.store.database import OPERATOR_ROLE
from somabrain_dagster.store.proofs import record_proof
from somabrain_dagster.store.scales import list_scales
from somabrain_dagster.store.verification import (
    GAPS,
    REPLAY,
    Finding,
    Verification,
    folded_findings,
    verify,
)


@click.group()
@click.version_option(__version__)
def main() -> None:
    """SomaBrain's learning operations."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


main.add_command(experiment)
main.add_command(canary)
main.add_command(weights)
main.add_command(corpus)
main.add_command(kafka)
main.add_command(audit)
main.add_command(retention)
main.add_command(backup)
main.add_command(restore)
main.add_command(redis_group)


@main.command()
@explained
def up() -> None:
    """Start the servers that no URL names, and bring the schema up to date."""
    servers.start(Settings())
    show_status()


@main.command()
@explained
def migrate() -> None:
    """Bring the database of SOMABRAIN_DATABASE_URL to this version's schema, and start nothing.

    In production: once, before anything else of a new version is started. Forward only.
    """
    given = Settings().database_url
    url = "" if given is None else given.get_secret_value()
    if not url:
        fail("SOMABRAIN_DATABASE_URL is not set; `somabrain up` migrates the embedded database")
    before = schema.migrate(url)
    now = schema.newest_revision()
    console.print(
        f"the schema is at {now}" + ("" if before == now else f"; it was {before or 'empty'}"),
        highlight=False,
    )


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
@click.option(
    "--fold",
    is_flag=True,
    help="Only fold: in seconds a million changes, in a fixed amount of memory; derives and hashes nothing.",
)
@explained
def replay(fold: bool) -> None:
    """Fold the whole log again and compare it with the live weights; derive every shift from its event.

    Exit 1 if anything differs, naming the tenant and the weight or the change.
    """
    if fold:
        with opened(Settings()) as (database, _), database.snapshot() as connection:
            findings = list(folded_findings(connection))
        show_claims({claim: [one for one in findings if one.claim == claim] for claim in (REPLAY, GAPS)})
        sys.exit(bool(findings))
    with opened(Settings()) as (database, _):
        with database.snapshot() as connection:
            verification = verify(connection)
        with database.as_operator() as connection:
            record_proof(connection, verification)
    show_verification(verification)
    if verification.findings:
        sys.exit(1)


def show_verification(verification: Verification) -> None:
    """Print the claims that hold, and the findings against those that do not."""
    log = verification.log
    console.print(f"{len(log.tenants):,} tenants, {len(log.causes):,} changes of weights")
    show_claims(verification.by_claim())
    if verification.derived_since is not None:
        console.print(
            f"{verification.sealed_events:,} events that landed before {verification.derived_since:%Y-%m-%d} "
            "are sealed: which they were is proven by the log, what they said is derived again only where it "
            "is kept",
            highlight=False,
        )


def show_claims(claims: Mapping[str, Sequence[Finding]], most: int = 20) -> None:
    """Print each claim, and the findings against it."""
    for claim, findings in claims.items():
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
@click.option("--people", type=click.IntRange(min=2), help="Tenants, the heaviest first.  [default: 100]")
@click.option("--conversations", type=click.IntRange(min=1), help="Of each, at most.  [default: 120]")
@click.option("--canary-minutes", type=click.FloatRange(min=0, min_open=True), help="In place of 48 hours.")
@explained
def learn(people: int | None, conversations: int | None, canary_minutes: float | None) -> None:
    """Run the learning chain on real conversations, from an empty brain to a promotion or an honest no.

    It has a home of its own, `learn` in the home, made anew each time.
    """
    # Dagster takes a second to import: only what needs it waits for it.
    from somabrain_dagster import learn as show
    from somabrain_dagster.traffic import Cast

    settings = Settings()
    cast = Cast(people or Cast.people, conversations or Cast.conversations)
    with watched() as progress:
        verification = show.run(
            settings, show.Performance(cast, canary_minutes=canary_minutes), console, progress
        )
    console.print("\n[bold]What is proven of it[/]")
    show_verification(verification)
    home = settings.home / "learn"
    console.print(
        f"\n`SOMABRAIN_HOME={home} make up` opens it in Dagster's UI", highlight=False, soft_wrap=True
    )
    if verification.findings:
        sys.exit(1)


@main.command()
@click.option("--port", default=3000, show_default=True, help="Of the UI; the next free one if it is taken.")
@click.option("--service-port", default=8400, show_default=True, help="Of the HTTP service; likewise.")
@explained
def ui(port: int, service_port: int) -> None:
    """Open Dagster's UI with its daemon and sensors, and the HTTP service, on loopback, until Ctrl-C.

    Where SOMABRAIN_KAFKA_BOOTSTRAP is set, the relay runs beside them. Then everything is stopped, except
    servers that ran before. Of one home it is open once at a time: a second daemon would do everything twice.
    """
    settings = Settings()
    relaying = settings.kafka.bootstrap is not None
    if relaying:
        required(settings.kafka)
    ran_before = {server.name for server in servers.status(settings) if server.running}
    running = servers.start(settings)
    port, service_port = processes.free_port(port), processes.free_port(service_port)
    said = (
        f"It is open already: Dagster's UI at http://127.0.0.1:{port}, the service at port {service_port}. "
        f"Ctrl-C where it was started, or `kill {os.getpid()}`, ends it; SOMABRAIN_HOME names another home."
    )
    with alone(make_home(settings.home), "ui", said):
        _open(settings, running, ran_before, port, service_port, relaying)


def _open(
    settings: Settings,
    running: servers.Servers,
    ran_before: Collection[str],
    port: int,
    service_port: int,
    relaying: bool,
) -> None:
    """Run Dagster, the service and perhaps the relay, until Ctrl-C."""
    programs = Path(sys.executable).parent
    workspace = str(dagster_home.workspace(settings))
    url, service_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{service_port}"
    logs = settings.home / "logs"
    console.print("starting Dagster and the service …")

    def announce(stopping: threading.Event) -> None:
        if dagster_home.wait_until_healthy(url, stopping):
            console.print(f"[bold]Dagster's UI: {url}/asset-groups[/]", highlight=False)
            console.print(f"[bold]the service:  {service_url}/[/]", highlight=False)
            console.print(
                "a key to all of it: .venv/bin/somabrain key create --scope operator; Ctrl-C stops it"
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
                **({"relay": [str(programs / "somabrain"), "kafka", "relay"]} if relaying else {}),
            },
            {**os.environ, **dagster_home.prepare(settings, running)},
            logs,
            announce,
            giving_way=["webserver", "daemon", "relay"],
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


@main.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@explained
def exec_(program: str, arguments: tuple[str, ...]) -> None:
    """Become PROGRAM, such as dagster-daemon, in the environment that `somabrain env` prints.

    What is installed beside this command is found before what is on the path.
    """
    settings = Settings()
    beside_this = Path(sys.executable).parent
    path = os.pathsep.join([str(beside_this), os.environ.get("PATH", os.defpath)])
    found = shutil.which(program, path=path)
    if found is None:
        fail(f"no program {program!r} beside {beside_this} or on the path")
    environment = {**os.environ, **dagster_home.prepare(settings, servers.start(settings))}
    os.execve(found, [program, *arguments], environment)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@explained
def psql(arguments: tuple[str, ...]) -> None:
    """Become psql on the brain, as an operator: all tenants are seen, and transactions only read.

    ARGUMENTS are psql's own, such as -c "SELECT count(*) FROM tenants" or -f FILE. The first error ends it.
    """
    settings = Settings()
    place, access = postgres_copy.access(servers.start(settings).database_url)
    role = f"-c role={OPERATOR_ROLE} -c default_transaction_read_only=on"
    environment = {**os.environ, **access, "PGOPTIONS": role}
    options = ["--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-P", "pager=off"]
    program = binaries_path(settings.postgres_binaries) / "psql"
    os.execve(program, ["psql", *options, "-d", place, *arguments], environment)


@main.group()
def tenant() -> None:
    """Tenants and their weights."""


tenant.add_command(tenant_delete)
tenant.add_command(tenant_learning_loop)


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


@main.group()
def scales() -> None:
    """The scales that features are divided by."""


@scales.command("list")
@explained
def scales_list() -> None:
    """Show every version of the scales, what it was measured from, and how many tenants use it."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        known = list_scales(connection)
    table = Table(box=None)
    table.add_column("version", justify="right")
    for heading in ("half-life", *(feature.name for feature in FEATURES), "tenants"):
        table.add_column(heading, justify="right")
    for entry in known:
        values = [f"{value:.4f}" for value in entry.scales.values]
        half_life = f"{entry.scales.half_life_seconds:g} s"
        table.add_row(str(entry.scales.version), half_life, *values, f"{entry.tenants:,}")
    console.print(table)
    for entry in known:
        console.print(f"{entry.scales.version}: {entry.measured_from}", highlight=False, soft_wrap=True)


@scales.command("use")
@click.argument("version", type=int)
@click.argument("tenants", nargs=-1)
@click.option("--all", "everybody", is_flag=True, help="Every tenant that there is.")
@explained
def scales_use(version: int, tenants: tuple[str, ...], everybody: bool) -> None:
    """Let tenants' recalls use another version of the scales; their weights go on meaning the same.

    Each weight is multiplied by new/old, within its bounds: a change of weights like any other.
    """
    if everybody == bool(tenants):
        fail("name the tenants, or say --all")
    settings = Settings()
    with opened(settings) as (database, snapshots):
        with database.as_operator() as connection:
            changed = changes.change_scales(
                connection, tenants or None, version, settings.learning_configuration, actor()
            )
        snapshots.publish(changed)
    console.print(f"tenants changed to scales {version}: {len(changed):,}")


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
        created = keys.create_key(connection, tenant or SYSTEM, scope, actor())
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


@main.group()
def export() -> None:
    """Take data out, as lines of JSON."""


@export.command("memories")
@click.argument("tenant")
@click.option(
    "--to",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file, complete or not there.  [default: standard output]",
)
@explained
def export_memories(tenant: str, file: Path | None) -> None:
    """All memories of TENANT with their links, a line each: what GET /memory/export answers."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        lines = exported_lines(connection, tenant)
        if file is None:
            sys.stdout.buffer.writelines(lines)
            return
        partial = file.with_name(f"{file.name}.partial")
        with partial.open("wb") as output:
            output.writelines(lines)
        partial.replace(file)


def beside(file: Path, what: str) -> Path:
    """Where the rejects of a file go if nobody says."""
    return file.with_name(f"{file.name}.{what}-rejects.jsonl")


def finish(summary: ImportSummary) -> None:
    """Print what an import did; exit 1 if it left anything out."""
    console.print(str(summary), highlight=False)
    if summary.refused:
        sys.exit(1)


if __name__ == "__main__":
    main()
