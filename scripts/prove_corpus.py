"""Prove that a corpus can be trusted, pulled and trained on: `python scripts/prove_corpus.py`.

In a database of its own: people's real conversations, of people who agreed; their corpora by Dagster,
verified; one flipped byte, found; the same corpus once more in another fresh directory and by four workers,
compared byte by byte; a small model trained on `train.bin` where torch is installed. Writes
reports/corpus.json; exit 1 if anything does not hold.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import dagster as dg
from pydantic import SecretStr
from rich.console import Console

from somabrain_dagster.cli.console import explained
from somabrain_dagster.corpus.artifacts import Artifacts
from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.exporting import DEFAULT_FORMATS, export
from somabrain_dagster.corpus.manifest import METADATA
from somabrain_dagster.corpus.verification import CLAIMS, verify
from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations import provenance, servers
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.reenactment import Plan as Reenactment
from somabrain_dagster.operations.reenactment import reenact, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.corpora import set_learning_loop, written_corpora
from somabrain_dagster.store.database import Database

REPORTS = Path(__file__).parent.parent / "reports"
TRAINER = Path(__file__).parent / "train_small_model.py"
KEY = SecretStr("c0" * 32)
"""One key for both builds: pseudonyms of two keys differ, and so would the bytes."""

RECALLED = Reenactment(memories=400, feedback=20, held_out=5)

console = Console(width=None if sys.stdout.isatty() else 120)


@click.command()
@click.option("--people", type=click.IntRange(min=1), default=6, show_default=True, help="Who agree.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Of training.")
@click.option("--output", type=click.Path(path_type=Path), default=REPORTS / "corpus.json")
@explained
def main(people: int, steps: int, output: Path) -> None:
    """Build, verify, rebuild, compare and train."""
    settings = Settings()
    ran_before = {server.name for server in servers.status(settings) if server.running}
    try:
        report = proved(settings, people, steps)
    finally:
        servers.stop(settings, leaving=ran_before)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written: {output}", highlight=False, soft_wrap=True)
    sys.exit(0 if all(report["holds"].values()) else 1)


def proved(settings: Settings, people: int, steps: int) -> dict[str, Any]:
    """Everything, and what came of it."""
    report: dict[str, Any] = {"commit": provenance.commit(), "machine": provenance.machine()}
    holds: dict[str, bool] = {}
    report["holds"] = holds
    with scratch_database(settings, "corpus") as database, TemporaryDirectory(dir=settings.home) as folder:
        places = [Path(folder) / name for name in ("one", "two")]
        homes = [
            settings.model_copy(
                update={
                    "home": place,
                    "learning_loop_enabled": True,
                    "pseudonym_key": KEY,
                    "artifacts_url": None,
                }
            )
            for place in places
        ]
        with timed(report, "conversations imported"):
            import_chitchat(database, settings.learning_configuration, people)
        everybody = read_chitchat(people + 1)
        with timed(report, "recalls of one more person re-enacted, for preferences"):
            asking = stories(everybody, RECALLED.memories)[-1:]
            reenact(database, embedder_of(settings), settings, asking, RECALLED)
        with database.as_operator() as connection:
            for tenant in everybody.tenants:
                set_learning_loop(connection, tenant, True, "prove_corpus")

        with timed(report, "built by Dagster"):
            corpora = materialised(database, homes[0])
        artifacts = Artifacts(f"file://{places[0] / 'artifacts'}")
        report["corpora"] = corpora
        for kind, corpus_id in corpora.items():
            findings = verify(Path(f"{places[0]}/artifacts/{corpus_id}"))
            say(holds, f"{kind}: {', '.join(CLAIMS[:4])}", not findings)
        say(
            holds,
            "a flipped byte is found, exit 1, and its file named",
            flipped(artifacts, corpora, places[0]),
        )

        plan_of = Plan(formats=DEFAULT_FORMATS["corpus"])
        made = []
        for home, workers in zip(homes, (1, 4), strict=True):
            with timed(report, f"built in a fresh directory by {workers}"):
                store = Artifacts(f"file://{home.home / 'fresh'}")
                manifest = export(database, home, store, plan_of, actor="prove_corpus", workers=workers)
            made.append(store.pull(manifest.corpus_id, home.home))
        one, two = (files_in(path) for path in made)
        differing = sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))
        report["files"] = len(one)
        report["differing"] = differing
        say(holds, f"two builds are equal, byte by byte, but for {METADATA}", differing in ([], [METADATA]))
        accounts = [json.loads(files[METADATA]) for files in (one, two)]
        for account in accounts:
            del account["created_at"]
        say(holds, "their accounts differ in the time alone", accounts[0] == accounts[1])
        report["account"] = accounts[0]
        report["training"] = trained(made[0], steps, holds)
    return report


@contextmanager
def timed(report: dict[str, Any], what: str) -> Iterator[None]:
    """Note how long something takes."""
    console.print(f"{what} …", highlight=False)
    started = time.monotonic()
    yield
    report.setdefault("seconds", {})[what] = round(time.monotonic() - started, 1)


def say(holds: dict[str, bool], claim: str, so: bool) -> None:
    """Note whether a claim holds, and print it."""
    holds[claim] = so
    console.print(f"{'[green]✓[/]' if so else '[red]✗[/] not so:'} {claim}", highlight=False, soft_wrap=True)


def materialised(database: Database, settings: Settings) -> dict[str, str]:
    """Run the job of the pooled corpora; the newest corpus of each kind."""
    own, snapshots = servers.open_store(servers.start(Settings()))
    with own, closing(snapshots):
        brain = Brain(settings, database, snapshots)
        definitions = build_definitions(
            settings, resources={"brain": dg.ResourceDefinition.hardcoded_resource(brain)}
        )
        with dg.DagsterInstance.ephemeral() as instance:
            job = definitions.resolve_job_def("pooled_corpora")
            result = job.execute_in_process(instance=instance, raise_on_error=False)
    if not result.success:
        raise click.ClickException("Dagster could not build the corpora; its log says why")
    with database.as_operator() as connection:
        return {written.kind: written.corpus_id for written in written_corpora(connection)}


def flipped(artifacts: Artifacts, corpora: Mapping[str, str], place: Path) -> bool:
    """Whether `somabrain corpus verify` names the file in which one bit is turned."""
    folder = artifacts.pull(corpora["tokenized_corpus"], place)
    path = folder / "nanogpt" / "train.bin"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    program = Path(sys.executable).parent / "somabrain"
    done = subprocess.run([program, "corpus", "verify", folder], capture_output=True, text=True, check=False)
    return done.returncode == 1 and "nanogpt/train.bin is not what was written" in done.stdout


def files_in(folder: Path) -> dict[str, bytes]:
    """Each file of a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def trained(corpus: Path, steps: int, holds: dict[str, bool]) -> dict[str, Any] | str:
    """The losses of a small model on `train.bin`, in a process of its own; or why there are none."""
    done = subprocess.run(
        [sys.executable, TRAINER, corpus / "nanogpt", "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    if done.returncode == 3:
        console.print(done.stderr.strip(), highlight=False, markup=False)
        return done.stderr.strip()
    losses: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}
    say(holds, "a small model learns from train.bin: its loss falls", bool(losses.get("fell")))
    console.print(str(losses), highlight=False)
    return losses


if __name__ == "__main__":
    main()
