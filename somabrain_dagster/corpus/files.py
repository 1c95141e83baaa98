"""A corpus of one file, from a file: without a server, a store or anything kept."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zstandard

from somabrain_dagster.corpus.build import CannotBuild, HeldOut, Plan, build
from somabrain_dagster.corpus.consumers import LINES
from somabrain_dagster.corpus.formats import entry_of
from somabrain_dagster.corpus.manifest import Manifest, encode, manifest_of, sign, write_last
from somabrain_dagster.corpus.pseudonyms import Pseudonyms
from somabrain_dagster.operations.summary import Progress, unwatched

SINGLE = tuple(LINES)
"""The formats that are one file of lines."""


def export_file(
    source: Path,
    output: Path,
    metadata: Path,
    plan: Plan,
    pseudonyms: Pseudonyms,
    *,
    settings_digest: str,
    consent: str,
    rejects: Path,
    tenants: frozenset[str] | None = None,
    evaluation: Sequence[str] = (),
    key: Path | None = None,
    workers: int = 1,
    progress: Progress = unwatched,
) -> Manifest:
    """Build one file of lines, and its account; all of it is there, or nothing.

    Args:
        source: records, a line of JSON each.
        output: where the examples go.
        metadata: where the account goes; written last.
        plan: of one format, with nothing held out for validation.
        pseudonyms: of tenants and sessions in the account and the rejects.
        settings_digest: of the settings.
        consent: on what grounds.
        rejects: where what is left out goes, with stage and reason; not written where nothing is.
        tenants: those that agreed; None where nobody can be asked.
        evaluation: queries that must not be in it.
        key: signs the account, into a file beside it.
        workers: processes.
        progress: told what is done.

    Raises:
        CannotBuild: the source cannot be read, nothing in it can be learned from, or there is no room.
        TokenizerError: the tokenizer cannot be used.
    """
    (name,) = plan.formats
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".corpus-") as scratch:
            into = Path(scratch) / "corpus"
            into.mkdir()
            built = build(
                source,
                into,
                plan,
                pseudonyms,
                HeldOut(tuple(evaluation)),
                tenants=tenants,
                workers=workers,
                progress=progress,
            )
            refused = sum(built.ledger.refused.values())
            if refused:
                _unpack(built.rejects, into / "rejects.jsonl")
                shutil.move(into / "rejects.jsonl", rejects)
            if not built.files:
                raise CannotBuild(f"no example of {source} was kept: {rejects} says why, line by line")
            written = into / f"{name}/train.jsonl"
            built.files = [msgspec.structs.replace(built.files[0], path=output.name)]
            manifest = manifest_of(
                built,
                kind="corpus",
                scope="file",
                plan=plan,
                settings_digest=settings_digest,
                position=f"sha256 {_digest(source)} of {source.name}",
                consent=consent,
                extra=[entry_of(rejects.parent, rejects, refused)] if refused else (),
            )
            content = encode(manifest)
            signature = None if key is None else sign(content, key)
            written.replace(output)
            if signature is not None:
                write_last(metadata.with_name(f"{metadata.name}.sig"), signature)
            write_last(metadata, content)
            return manifest
    except OSError as error:
        raise CannotBuild(
            f"cannot write {output} ({error.strerror}): nothing was kept; make room there, or write elsewhere"
        ) from error


def _unpack(packed: Path, plain: Path) -> None:
    with packed.open("rb") as read, plain.open("wb") as written:
        zstandard.ZstdDecompressor().copy_stream(read, written)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
