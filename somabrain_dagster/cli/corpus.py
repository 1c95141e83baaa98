"""Corpora, and the consent that they need, for a person at a terminal."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import msgspec
from rich.table import Table

from somabrain_dagster.cli.console import actor, console, explained, fail, opened, watched
from somabrain_dagster.corpus.artifacts import Artifacts, NoCorpus, read_file, read_manifest
from somabrain_dagster.corpus.build import CannotBuild, Plan
from somabrain_dagster.corpus.exporting import (
    DEFAULT_FORMATS,
    artifacts_of,
    export,
    pseudonyms_of,
    require_learning_loop,
    tombstones_of,
    touched,
)
from somabrain_dagster.corpus.formats import FORMATS
from somabrain_dagster.corpus.manifest import (
    METADATA,
    SIGNATURE,
    InvalidManifest,
    Kind,
    Manifest,
    as_lines,
    check_signature,
)
from somabrain_dagster.corpus.names import NamesMissing
from somabrain_dagster.corpus.tokens import TokenizerError
from somabrain_dagster.corpus.verification import CLAIMS, TOMBSTONES, verify
from somabrain_dagster.operations import servers
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.corpora import (
    NoConsent,
    delete_tenant,
    set_learning_loop,
    written_corpora,
)

P = ParamSpec("P")
R = TypeVar("R")
MOST = 20
"""Findings against one claim that are shown."""


def told(command: Callable[P, R]) -> Callable[P, R]:
    """`explained`, with the errors of corpora."""

    @explained
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (
            CannotBuild,
            FileExistsError,
            InvalidManifest,
            NamesMissing,
            NoConsent,
            NoCorpus,
            TokenizerError,
        ) as error:
            fail(str(error))

    return run


@click.command("learning-loop")
@click.argument("name")
@click.argument("switch", type=click.Choice(["on", "off"]))
@told
def tenant_learning_loop(name: str, switch: str) -> None:
    """Let a tenant's data be learned from, or not any more."""
    with opened(Settings()) as (database, _), database.as_operator() as connection:
        changed = set_learning_loop(connection, name, switch == "on", actor())
    console.print(f"{name}: learning loop {switch}{'' if changed else ' already'}", highlight=False)


@click.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@told
def tenant_delete(name: str, yes: bool) -> None:
    """Erase a tenant's memories and questions, revoke its keys, and say which corpora hold it.

    Its name is never given again.
    """
    if not yes:
        click.confirm(f"Erase all that {name} remembers, for good?", abort=True)
    settings = Settings()
    with opened(settings) as (database, _):
        with database.as_operator() as connection:
            erased = delete_tenant(connection, name, actor())
        console.print(f"{name}: {erased:,} memories erased", highlight=False)
        show_touched(touched(database, settings))


def show_touched(found: dict[str, list[str]]) -> None:
    """Say which corpora hold something that was deleted."""
    for url, rows in found.items():
        console.print(f"[red]✗[/] {url}: {len(rows):,} examples", highlight=False, soft_wrap=True)
    if found:
        console.print(
            "Delete these corpora, here and wherever they were pulled to; the next build is without the rows."
        )


@click.group()
def corpus() -> None:
    """Training corpora: build, list, show, pull, verify."""


@corpus.command("build")
@click.option("--tenant", "tenant_id", help="Of one tenant.  [default: of all that agreed]")
@click.option("--preferences", is_flag=True, help="Of what feedback preferred, for DPO and KTO.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(list(FORMATS)), help="Which.  [default: all]"
)
@click.option(
    "--tokenizer", default=Plan().tokenizer, show_default=True, help="Or a tokenizer.json, or none."
)
@click.option("--window", default=Plan().window, show_default=True, help="Tokens a trainer reads at once.")
@click.option(
    "--validation", default=Plan().validation, show_default=True, help="Share of sessions held out."
)
@click.option("--least-reward", type=click.FloatRange(-1, 1), help="What a judged session must be worth.")
@click.option(
    "--near-duplicate", default=Plan().near_duplicate, show_default=True, help="Similarity, 0 to 1."
)
@click.option("--names", is_flag=True, help="Redact names too; needs the extra `names`.")
@click.option("--zstd", is_flag=True, help="Compress lines of JSON.")
@click.option("--shard-rows", default=0, show_default=True, help="Rows in a file at most; 0 for any number.")
@click.option(
    "--evaluation", type=click.Path(path_type=Path), help="Queries that must not be in it, a line each."
)
@click.option("--sign", "key", type=click.Path(path_type=Path), help="An Ed25519 private key as PEM.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@told
def corpus_build(
    tenant_id: str | None,
    preferences: bool,
    formats: tuple[str, ...],
    tokenizer: str,
    window: int,
    validation: float,
    least_reward: float | None,
    near_duplicate: float,
    names: bool,
    zstd: bool,
    shard_rows: int,
    evaluation: Path | None,
    key: Path | None,
    workers: int,
) -> None:
    """Build a corpus of the tenants that agreed, and put it where artifacts are kept."""
    settings = Settings()
    require_learning_loop(settings)
    kind: Kind = "preference_pairs" if preferences else "corpus"
    plan = Plan(
        near_duplicate=None if preferences else near_duplicate,
        validation=validation,
        least_reward=least_reward,
        tokenizer=None if tokenizer == "none" else tokenizer,
        window=window,
        names=names,
        formats=formats or DEFAULT_FORMATS[kind],
        zstd=zstd,
        shard_rows=shard_rows,
    )
    queries = [] if evaluation is None else evaluation.read_text().splitlines()
    with opened(settings) as (database, _), watched() as progress:
        manifest = export(
            database,
            settings,
            artifacts_of(settings),
            plan,
            actor=actor(),
            kind=kind,
            tenant=tenant_id,
            evaluation=queries,
            key=key,
            workers=workers,
            progress=progress,
        )
    show(manifest)
    console.print(artifacts_of(settings).url_of(manifest.corpus_id), highlight=False, soft_wrap=True)


def show(manifest: Manifest) -> None:
    """Print what a corpus is."""
    for name, value in as_lines(manifest).items():
        console.print(f"{name:>9}  {value}", highlight=False, soft_wrap=True)
    table = Table("stage", box=None)
    for heading in ("kept", "left out"):
        table.add_column(heading, justify="right")
    for stage in manifest.stages:
        table.add_row(stage.stage, f"{stage.kept:,}", f"{stage.rejected:,}")
    console.print(table)
    table = Table("file", box=None)
    for heading in ("rows", "tokens", "bytes"):
        table.add_column(heading, justify="right")
    for entry in manifest.files:
        tokens = "" if entry.tokens is None else f"{entry.tokens:,}"
        table.add_row(entry.path, f"{entry.rows:,}", tokens, f"{entry.bytes:,}")
    console.print(table)


@corpus.command("list")
@told
def corpus_list() -> None:
    """Show the corpora that were written, the newest last, and whether they hold what was deleted since."""
    settings = Settings()
    with opened(settings) as (database, _):
        with database.as_operator() as connection:
            corpora = written_corpora(connection)
        gone = touched(database, settings)
    table = Table("corpus", box=None)
    for heading in ("created", "examples", "tokens", "deleted since"):
        table.add_column(heading, justify="right")
    for written in corpora:
        manifest = msgspec.convert(written.manifest, Manifest)
        tokens = "" if manifest.tokens is None else f"{manifest.tokens:,}"
        rows = len(gone.get(written.url, ()))
        table.add_row(
            written.corpus_id,
            f"{written.created_at:%Y-%m-%d %H:%M}",
            f"{manifest.examples:,}",
            tokens,
            f"[red]{rows:,}[/]" if rows else "",
        )
    console.print(table)


CORPUS = click.argument("name", metavar="CORPUS")


def url_of(name: str) -> str:
    """Where a corpus is that is named by its id, its URL or a path: no id has a slash."""
    if "/" in name or Path(name).exists():
        return name
    return artifacts_of(Settings()).url_of(name)


@corpus.command("show")
@CORPUS
@told
def corpus_show(name: str) -> None:
    """Show the account of a corpus, by its name, URL or path."""
    show(read_manifest(url_of(name)))


@corpus.command("pull")
@CORPUS
@click.argument("into", type=click.Path(path_type=Path), default=Path())
@told
def corpus_pull(name: str, into: Path) -> None:
    """Copy a corpus into a folder of its name, here by default, and make sure that it came whole.

    Where the brain runs, a corpus by its name that holds what was deleted since is not handed out.
    """
    url, settings = url_of(name), Settings()
    gone: Sequence[str] = ()
    if url != name and servers.status(settings)[0].running:
        with opened(settings) as (database, _):
            gone = tombstones_of(database, pseudonyms_of(settings))
    place, _, corpus_id = url.rstrip("/").rpartition("/")
    into.mkdir(parents=True, exist_ok=True)
    folder = Artifacts(place).pull(corpus_id, into)
    if findings := verify(folder, gone):
        shutil.rmtree(folder)
        advice = ": build a new corpus" if findings[0].claim == TOMBSTONES else ""
        fail(f"{corpus_id} was not pulled, {findings[0]}{advice}")
    console.print(str(folder), highlight=False, soft_wrap=True)


@corpus.command("tombstones")
@told
def corpus_tombstones() -> None:
    """Print the pseudonyms of what was deleted, for whoever verifies a corpus without the brain."""
    settings = Settings()
    with opened(settings) as (database, _):
        for name in tombstones_of(database, pseudonyms_of(settings)):
            click.echo(name)


@corpus.command("verify")
@CORPUS
@click.option("--public-key", type=click.Path(path_type=Path), help="Of who should have signed it, as PEM.")
@click.option(
    "--tombstones",
    type=click.Path(path_type=Path),
    help="What `somabrain corpus tombstones` printed.  [default: asks the brain about a corpus by name]",
)
@told
def corpus_verify(name: str, public_key: Path | None, tombstones: Path | None) -> None:
    """Check a corpus by its name, URL or path; exit 1 if it is not what its account says.

    A corpus by its path or URL needs no brain: what was deleted since is checked against a list then.
    """
    url = url_of(name)
    gone: list[str] | None = None
    if tombstones is not None:
        gone = tombstones.read_text().split()
    elif url != name:
        settings = Settings()
        with opened(settings) as (database, _):
            gone = tombstones_of(database, pseudonyms_of(settings))
    with closing(Pulled(url)) as pulled:
        if public_key is not None:
            check_signature(read_file(url, METADATA), read_file(url, SIGNATURE), public_key)
            console.print("[green]✓[/] it was signed with the key", highlight=False)
        findings = verify(pulled.folder, gone or ())
    for claim in CLAIMS:
        against = [finding for finding in findings if finding.claim == claim]
        if claim == TOMBSTONES and gone is None:
            console.print(
                "[yellow]?[/] what was deleted since is not known here: --tombstones", highlight=False
            )
        elif against:
            console.print(f"[red]✗[/] not so: {claim}", highlight=False)
        elif findings and claim != findings[0].claim and findings[0].claim == CLAIMS[0]:
            console.print(f"[yellow]?[/] not looked at: {claim}", highlight=False)
        else:
            console.print(f"[green]✓[/] {claim}", highlight=False)
        for finding in against[:MOST]:
            console.print(f"    {finding}", highlight=False, soft_wrap=True)
        if len(against) > MOST:
            console.print(f"    … and {len(against) - MOST:,} more", highlight=False)
    if findings:
        sys.exit(1)


class Pulled:
    """A corpus on this disk: where it is, or a copy that is gone after use."""

    def __init__(self, url: str) -> None:
        """Copy it if it is elsewhere."""
        self._copy = None
        if "://" not in url:
            self.folder = Path(url)
        elif url.startswith("file://"):
            self.folder = Path(url.removeprefix("file://"))
        else:
            self._copy = tempfile.TemporaryDirectory()
            place, _, corpus_id = url.rstrip("/").rpartition("/")
            self.folder = Artifacts(place).pull(corpus_id, Path(self._copy.name))

    def close(self) -> None:
        """Remove the copy."""
        if self._copy is not None:
            self._copy.cleanup()
