"""Make a training corpus of a file of records.

    python scripts/export_learning_corpus.py input.jsonl output.jsonl --metadata-out run-metadata.json

Records are memories as the service exports them, or conversations by themselves; docs/CORPORA.md says what a
line may hold. The account of the run is printed, and written with --metadata-out. Exit 1 if a line could not
be read, or nothing was made; the other lines are kept either way.
"""

import os
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

from somabrain_dagster.cli.corpus import told
from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.exporting import pseudonyms_of, require_learning_loop
from somabrain_dagster.corpus.files import SINGLE, export_file
from somabrain_dagster.corpus.manifest import encode
from somabrain_dagster.corpus.stages import READ, Refusal
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.corpora import consenting
from somabrain_dagster.store.database import Database

SHOWN = 20
"""Lines that could not be read, that are named."""

PATH = click.Path(path_type=Path)
console = Console(stderr=True)


@click.command()
@click.argument("source", metavar="INPUT", type=PATH)
@click.argument("output", metavar="OUTPUT", type=PATH)
@click.option("--metadata-out", type=PATH, help="The account.  [default: OUTPUT.run-metadata.json]")
@click.option("--rejects", type=PATH, help="Where what is left out goes.  [default: OUTPUT.rejects.jsonl]")
@click.option("--format", "name", type=click.Choice(SINGLE), default="prompt-response", show_default=True)
@click.option("--tokenizer", default="gpt2", show_default=True, help="Or a tokenizer.json, or none.")
@click.option("--window", default=Plan().window, show_default=True, help="Tokens a trainer reads at once.")
@click.option("--least-reward", type=click.FloatRange(-1, 1), help="What a judged session must be worth.")
@click.option("--near-duplicate", default=Plan().near_duplicate, show_default=True, help="Jaccard, 0 to 1.")
@click.option("--names", is_flag=True, help="Redact names too; needs the extra `names`.")
@click.option("--evaluation", type=PATH, help="Queries that must not be in it, a line each.")
@click.option("--sign", "key", type=PATH, help="An Ed25519 private key as PEM.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@told
def main(
    source: Path,
    output: Path,
    metadata_out: Path | None,
    rejects: Path | None,
    name: str,
    tokenizer: str,
    window: int,
    least_reward: float | None,
    near_duplicate: float,
    names: bool,
    evaluation: Path | None,
    key: Path | None,
    workers: int,
) -> None:
    """Make OUTPUT of INPUT."""
    settings = Settings()
    require_learning_loop(settings)
    tenants, consent = agreed(settings)
    left_out = rejects or output.with_name(f"{output.name}.rejects.jsonl")
    manifest = export_file(
        source,
        output,
        metadata_out or output.with_name(f"{output.name}.run-metadata.json"),
        Plan(
            near_duplicate=near_duplicate,
            validation=0.0,
            least_reward=least_reward,
            tokenizer=None if tokenizer == "none" else tokenizer,
            window=window,
            names=names,
            formats=(name,),
        ),
        pseudonyms_of(settings),
        settings_digest=settings.digest,
        consent=consent,
        rejects=left_out,
        tenants=tenants,
        evaluation=() if evaluation is None else evaluation.read_text().splitlines(),
        key=key,
        workers=workers,
    )
    click.echo(encode(manifest), nl=False)
    unread = next(stage.rejected for stage in manifest.stages if stage.stage == READ)
    if unread:
        console.print(f"{unread:,} lines could not be read:", highlight=False)
        show_unread(left_out)
        sys.exit(1)


def agreed(settings: Settings) -> tuple[frozenset[str] | None, str]:
    """The tenants that agreed, and on what grounds it is built: without a database nobody is asked."""
    if settings.database_url is None:
        return None, "SOMABRAIN_LEARNING_LOOP_ENABLED; no database says which tenants agreed"
    with Database(settings.database_url.get_secret_value()) as database, database.as_operator() as connection:
        tenants = frozenset(consenting(connection))
    return tenants, "SOMABRAIN_LEARNING_LOOP_ENABLED, and each tenant's learning_loop_enabled"


def show_unread(rejects: Path) -> None:
    """Name the first lines that could not be read."""
    shown = 0
    with rejects.open("rb") as file:
        for line in file:
            refusal = msgspec.json.decode(line, type=Refusal)
            if refusal.stage == READ:
                console.print(f"    line {refusal.line:,}: {refusal.reason}", highlight=False, soft_wrap=True)
                shown += 1
            if shown == SHOWN:
                console.print(f"    … {rejects} has the others", highlight=False, soft_wrap=True)
                return


if __name__ == "__main__":
    main()
