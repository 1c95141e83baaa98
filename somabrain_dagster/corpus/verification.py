"""Whether a corpus is what its account says, and holds nothing that it must not hold."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from somabrain_dagster.corpus.artifacts import read_manifest
from somabrain_dagster.corpus.consumers import broken_rules
from somabrain_dagster.corpus.contamination import SHARED, Decontaminate, held_out_hashes, texts_of
from somabrain_dagster.corpus.examples import SPLITS
from somabrain_dagster.corpus.formats import EXAMPLES, SOURCES
from somabrain_dagster.corpus.manifest import METADATA, SIGNATURE, Manifest
from somabrain_dagster.corpus.reading import Corpus
from somabrain_dagster.corpus.redaction import redact, suspect

DIGESTS = "every file is what its digest says, and there is no other"
RULES = "every file keeps the rules of the trainer that reads it"
SPLIT = "nothing of the validation split is in what is trained on"
PERSONAL = "no pattern of personal data or secrets is left"
TOMBSTONES = "nothing in it was deleted since"
CLAIMS = (DIGESTS, RULES, SPLIT, PERSONAL, TOMBSTONES)

_BATCH = 256


@dataclass(frozen=True)
class Finding:
    """Something that a claim does not hold of.

    Attributes:
        claim: one of `CLAIMS`.
        message: what, and where.
    """

    claim: str
    message: str

    def __str__(self) -> str:
        return self.message


def verify(folder: Path, tombstones: Collection[str] = ()) -> list[Finding]:
    """Check a corpus on this disk.

    Args:
        folder: of the corpus.
        tombstones: pseudonyms of tenants and memories that were deleted.

    Returns:
        What does not hold; files are looked into only if they are what their digests say.

    Raises:
        NoCorpus: there is none.
        InvalidManifest: its account cannot be read.
    """
    manifest = read_manifest(str(folder))
    findings = [Finding(DIGESTS, fault) for fault in wrong_files(folder, manifest)]
    if findings:
        return findings
    findings += [Finding(RULES, fault) for fault in broken_rules(folder, manifest)]
    corpus = Corpus(str(folder), manifest)
    if any(entry.path.startswith(f"{EXAMPLES}/") for entry in manifest.files):
        findings += [Finding(SPLIT, fault) for fault in leaks(corpus)]
        findings += [Finding(PERSONAL, fault) for fault in personal(corpus)]
    findings += [Finding(TOMBSTONES, fault) for fault in deleted_rows(folder, manifest, tombstones)]
    return findings


def wrong_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files that are missing, changed or not in the account."""
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            yield f"{entry.path} is missing"
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            yield f"{entry.path} is not what was written: its SHA-256 is {digest}, not {entry.sha256}"
    known = {entry.path for entry in manifest.files} | {METADATA, SIGNATURE}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in known:
            yield f"{path.relative_to(folder)} is not in the account"


def leaks(corpus: Corpus) -> Iterator[str]:
    """Sessions, contents and runs of words that both splits have."""
    held_out = list(corpus.examples("validation"))
    sessions = {example.session for example in held_out if example.session}
    digests = {example.digest for example in held_out}
    contaminated = Decontaminate(held_out_hashes(texts_of(held_out)))
    train = corpus.examples("train")
    while batch := list(islice(train, _BATCH)):
        for example, judged in zip(batch, contaminated.judge(batch), strict=True):
            name = f"train example {example.digest.hex()[:16]}"
            if example.session in sessions:
                yield f"{name} is of a session that is held out"
            if example.digest in digests:
                yield f"{name} is in the validation split too"
            elif judged == SHARED:
                yield f"{name}: {SHARED}"


def personal(corpus: Corpus) -> Iterator[str]:
    """Examples in which there is something that should have been redacted."""
    for split in SPLITS:
        for example in corpus.examples(split):
            for place, turn in enumerate(example.turns):
                if suspect(turn.content) and redact(turn.content) != turn.content:
                    yield f"{split} example {example.digest.hex()[:16]}, turn {place}"


def deleted_rows(folder: Path, manifest: Manifest, tombstones: Collection[str]) -> Iterator[str]:
    """Examples made of something that was deleted."""
    gone = set(tombstones)
    if not gone:
        return
    for entry in manifest.files:
        if entry.path.startswith(f"{SOURCES}/"):
            for batch in pq.ParquetFile(folder / entry.path).iter_batches(4096):
                for row in batch.to_pylist():
                    if row["tenant"] in gone:
                        yield f"{entry.path}: example {row['id'][:16]} is of a tenant that was deleted"
                    elif not gone.isdisjoint(row["memories"]):
                        yield f"{entry.path}: example {row['id'][:16]} has a memory that was deleted"
