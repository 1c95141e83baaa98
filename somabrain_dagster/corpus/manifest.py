"""The account of a corpus: `run-metadata.json`, written last, so that a corpus without one is not there."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from somabrain_dagster.corpus.build import HISTOGRAM, Built, Plan
from somabrain_dagster.corpus.formats import FileEntry
from somabrain_dagster.corpus.tokens import TokenizerEntry
from somabrain_dagster.operations.provenance import commit

METADATA = "run-metadata.json"
SIGNATURE = "run-metadata.json.sig"

Kind = Literal["corpus", "training_examples", "training_corpus", "tokenized_corpus", "preference_pairs"]


class InvalidManifest(ValueError):
    """A run-metadata.json that cannot be read, or is not signed as it should be; the message says why."""


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage did."""

    stage: str
    kept: int
    rejected: int


class SplitEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a split holds."""

    examples: int
    tokens: int | None


class TenantEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant gave, and what was left out of it by each stage."""

    examples: int = 0
    tokens: int = 0
    rejected: dict[str, int] = {}


class Tombstones(msgspec.Struct, frozen=True, kw_only=True):
    """The deletions that were known: how many, and the SHA-256 of their pseudonyms in order."""

    count: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a corpus is.

    Attributes:
        corpus_id: from its kind, its scope and the digests of its files: equal files, equal name.
        created_at: UTC.
        git_commit, git_dirty: of the code; None where it is in no repository.
        config_digest: SHA-256 of the settings and the plan.
        position: of the log that it was built from; of a file its SHA-256.
        consent: on what grounds it was built.
        lengths: examples by the greatest number of tokens, or of characters where none were counted.
        over_window: examples that are longer than the window of the plan.
    """

    corpus_id: str
    kind: Kind
    scope: str
    created_at: str
    git_commit: str | None
    git_dirty: bool | None
    config_digest: str
    plan: Plan
    position: str
    consent: str
    tokenizer: TokenizerEntry | None
    splits: dict[str, SplitEntry]
    stages: list[StageEntry]
    redacted: dict[str, int]
    tenants: dict[str, TenantEntry]
    tombstones: Tombstones
    lengths: dict[str, int]
    over_window: int
    files: list[FileEntry]

    @property
    def examples(self) -> int:
        """In all splits."""
        return sum(split.examples for split in self.splits.values())

    @property
    def tokens(self) -> int | None:
        """In all splits; None where they were not counted."""
        counted = [split.tokens for split in self.splits.values()]
        return sum(count for count in counted if count is not None) if self.tokenizer else None


def manifest_of(
    built: Built,
    *,
    kind: Kind,
    scope: str,
    plan: Plan,
    settings_digest: str,
    position: str,
    consent: str,
    tombstones: Sequence[str] = (),
    extra: Sequence[FileEntry] = (),
) -> Manifest:
    """The account of what was built.

    Args:
        built: what was built.
        kind: what it is for.
        scope: `pooled`, or the pseudonym of its tenant.
        plan: by which it was built.
        settings_digest: of the settings.
        position: of the log, or of the file.
        consent: on what grounds.
        tombstones: pseudonyms of what was deleted before.
        extra: files beside those of the formats.
    """
    files = sorted([*built.files, *extra], key=lambda entry: entry.path)
    revision, dirty = _revision()
    return Manifest(
        corpus_id=_name(kind, scope, files),
        kind=kind,
        scope=scope,
        created_at=_now(),
        git_commit=revision,
        git_dirty=dirty,
        config_digest=config_digest(settings_digest, plan),
        plan=plan,
        position=position,
        consent=consent,
        tokenizer=built.tokenizer,
        splits={
            split: SplitEntry(examples=examples, tokens=tokens)
            for split, (examples, tokens) in sorted(built.splits.items())
        },
        stages=[
            StageEntry(stage=stage, kept=kept, rejected=rejected)
            for stage, kept, rejected in built.ledger.table()
        ],
        redacted=dict(sorted(built.redacted.items())),
        tenants=_tenants(built),
        tombstones=Tombstones(
            count=len(tombstones), sha256=hashlib.sha256("\n".join(sorted(tombstones)).encode()).hexdigest()
        ),
        lengths=dict(zip([*map(str, HISTOGRAM), "more"], built.lengths, strict=True)),
        over_window=built.over_window,
        files=files,
    )


def derived(
    manifest: Manifest, kind: Kind, plan: Plan, files: Sequence[FileEntry], settings_digest: str
) -> Manifest:
    """The account of other formats of the same examples."""
    revision, dirty = _revision()
    files = sorted(files, key=lambda entry: entry.path)
    return msgspec.structs.replace(
        manifest,
        corpus_id=_name(kind, manifest.scope, files),
        kind=kind,
        created_at=_now(),
        git_commit=revision,
        git_dirty=dirty,
        config_digest=config_digest(settings_digest, plan),
        plan=plan,
        files=files,
    )


def _name(kind: Kind, scope: str, files: Sequence[FileEntry]) -> str:
    listed = "\n".join(f"{entry.sha256}  {entry.path}" for entry in files)
    return f"{kind.replace('_', '-')}-{scope[:12]}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _revision() -> tuple[str | None, bool | None]:
    revision = commit()
    if revision is None:
        return None, None
    return revision.removesuffix("+changes"), revision.endswith("+changes")


def _tenants(built: Built) -> dict[str, TenantEntry]:
    rejected: dict[str, dict[str, int]] = {}
    for (tenant, stage), count in sorted(built.ledger.refused.items()):
        rejected.setdefault(tenant, {})[stage] = count
    return {
        tenant: TenantEntry(
            examples=built.kept.get(tenant, (0, 0))[0],
            tokens=built.kept.get(tenant, (0, 0))[1],
            rejected=rejected.get(tenant, {}),
        )
        for tenant in sorted(built.ledger.came.keys() | rejected.keys())
    }


def config_digest(settings_digest: str, plan: Plan) -> str:
    """SHA-256 of the settings and the plan."""
    return hashlib.sha256(settings_digest.encode() + msgspec.json.encode(plan)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """As it is written: indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(content: bytes, where: str) -> Manifest:
    """Read what `encode` wrote.

    Raises:
        InvalidManifest: it is not that.
    """
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidManifest(f"{where} is no account of a corpus: {error}") from error


def write_last(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and after all that was written before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sign(content: bytes, key: Path) -> bytes:
    """The Ed25519 signature of an account, in base64.

    Args:
        content: of run-metadata.json.
        key: a private key as PEM, as `openssl genpkey -algorithm ed25519` makes it.

    Raises:
        InvalidManifest: the file is no such key.
    """
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidManifest(f"{key} is no private key as PEM: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidManifest(f"{key} is no Ed25519 key: `openssl genpkey -algorithm ed25519` makes one")
    return base64.b64encode(private.sign(content)) + b"\n"


def check_signature(content: bytes, signature: bytes, key: Path) -> None:
    """Make sure who wrote an account.

    Args:
        content: of run-metadata.json.
        signature: as `sign` makes it.
        key: the public key as PEM.

    Raises:
        InvalidManifest: it was not signed with the key, or the file is no public key.
    """
    try:
        public = serialization.load_pem_public_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidManifest(f"{key} is no public key as PEM: {error}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise InvalidManifest(f"{key} is no Ed25519 key")
    try:
        public.verify(base64.b64decode(signature), content)
    except (InvalidSignature, ValueError) as error:
        raise InvalidManifest(f"{METADATA} was not signed with {key}") from error


def as_lines(manifest: Manifest) -> Mapping[str, str]:
    """The few things that a person asks first."""
    dirty = " with changes" if manifest.git_dirty else ""
    return {
        "corpus": manifest.corpus_id,
        "created": manifest.created_at,
        "commit": f"{manifest.git_commit or 'unknown'}{dirty}",
        "config": manifest.config_digest,
        "position": manifest.position,
        "examples": f"{manifest.examples:,}",
        "tokens": "not counted" if manifest.tokens is None else f"{manifest.tokens:,}",
    }
