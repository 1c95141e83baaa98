"""Corpora of the brain: with the tenants' consent, from one position of the log, to the artifacts."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec

from somabrain_dagster.corpus.artifacts import Artifacts, read_manifest
from somabrain_dagster.corpus.build import CannotBuild, HeldOut, Plan, build
from somabrain_dagster.corpus.card import write_card
from somabrain_dagster.corpus.examples import SPLITS, Example
from somabrain_dagster.corpus.formats import (
    EXAMPLES,
    PREFERENCES,
    SOURCES,
    TEXTS,
    TOKENS,
    Target,
    entry_of,
    write_all,
)
from somabrain_dagster.corpus.manifest import Kind, Manifest, derived, manifest_of
from somabrain_dagster.corpus.pseudonyms import Pseudonyms, pseudonym_key
from somabrain_dagster.corpus.reading import Corpus
from somabrain_dagster.corpus.tokens import Tokens, tokens_of
from somabrain_dagster.corpus.verification import deleted_rows, wrong_files
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.corpora import (
    POOLED,
    Given,
    NoConsent,
    WrittenCorpus,
    consenting,
    corpus_position,
    experiment_queries,
    memory_records,
    preference_records,
    record_corpus,
    tombstones,
    written_corpora,
)
from somabrain_dagster.store.database import Database

DEFAULT_FORMATS: dict[Kind, tuple[str, ...]] = {
    "corpus": (EXAMPLES, SOURCES, *TEXTS, *TOKENS),
    "training_examples": (EXAMPLES, SOURCES),
    "training_corpus": (SOURCES, *TEXTS),
    "tokenized_corpus": (SOURCES, *TOKENS),
    "preference_pairs": (EXAMPLES, SOURCES, *PREFERENCES),
}
"""What each kind of corpus holds."""

_BATCH = 256


class StaleCorpus(Exception):
    """The examples that others are made of may not be used any more; the message says why."""


def artifacts_of(settings: Settings) -> Artifacts:
    """Where the corpora of these settings are.

    Raises:
        NoCorpus: the URL cannot be opened.
    """
    return Artifacts(settings.artifacts)


def pseudonyms_of(settings: Settings) -> Pseudonyms:
    """The pseudonyms of these settings.

    Raises:
        ValueError: the key that is given is none.
    """
    given = settings.pseudonym_key
    return Pseudonyms(pseudonym_key(None if given is None else given.get_secret_value(), settings.home))


def require_learning_loop(settings: Settings) -> None:
    """Make sure that corpora may be built at all.

    Raises:
        NoConsent: they may not.
    """
    if not settings.learning_loop_enabled:
        raise NoConsent(
            "the learning loop is off: set SOMABRAIN_LEARNING_LOOP_ENABLED=1 to let corpora be built, of "
            "tenants that agreed (`somabrain tenant learning-loop TENANT on`)"
        )


def tombstones_of(database: Database, pseudonyms: Pseudonyms) -> list[str]:
    """Pseudonyms of what was deleted, tenants and memories."""
    with database.as_operator() as connection:
        gone = tombstones(connection)
    return _buried(gone, pseudonyms)


def _buried(gone: Sequence[tuple[str, int]], pseudonyms: Pseudonyms) -> list[str]:
    return [
        pseudonyms.memory(tenant_id, memory_id) if memory_id else pseudonyms.tenant(tenant_id)
        for tenant_id, memory_id in gone
    ]


def export(
    database: Database,
    settings: Settings,
    artifacts: Artifacts,
    plan: Plan,
    *,
    actor: str,
    kind: Kind = "corpus",
    tenant: str | None = None,
    evaluation: Sequence[str] = (),
    key: Path | None = None,
    workers: int = 1,
    progress: Progress = unwatched,
) -> Manifest:
    """Build a corpus of what the brain has, publish it and keep its account.

    Args:
        database: the brain's.
        settings: of the process.
        artifacts: where it is published.
        plan: what is kept; its formats are those that are written, and `sources`, by which deletions find it.
        actor: who asks, for the audit trail.
        kind: `preference_pairs` is made of credited memories, every other one of conversations.
        tenant: whose; None for all that agreed.
        evaluation: queries that models will be judged by.
        key: signs the account.
        workers: processes.
        progress: told what is done.

    Raises:
        NoConsent: the learning loop is off, or a tenant did not agree.
        CannotBuild: there is nothing to learn from, or no room.
        TokenizerError: the tokenizer cannot be used.
    """
    require_learning_loop(settings)
    if SOURCES not in plan.formats:
        plan = msgspec.structs.replace(plan, formats=(*plan.formats, SOURCES))
    pseudonyms = pseudonyms_of(settings)
    with _scratch(settings) as scratch:
        records, folder = scratch / "records.jsonl", scratch / "corpus"
        folder.mkdir()
        with database.snapshot() as connection:
            tenants = consenting(connection, None if tenant is None else [tenant])
            position = corpus_position(connection)
            read = preference_records if kind == "preference_pairs" else memory_records
            with records.open("w") as file:
                for record in read(connection, tenants):
                    file.write(record + "\n")
            queries = experiment_queries(connection, tenants)
            buried = _buried(tombstones(connection), pseudonyms)
        if not records.stat().st_size:
            raise CannotBuild(
                f"nothing to learn from: the {len(tenants)} tenants that agreed have no "
                + ("feedback that names memories" if kind == "preference_pairs" else "memories")
            )
        held_out = HeldOut(
            tuple(dict.fromkeys([query for *_, query in queries] + list(evaluation))),
            frozenset(pseudonyms.session(whose, session) for whose, session, _ in queries if session),
        )
        built = build(records, folder, plan, pseudonyms, held_out, workers=workers, progress=progress)
        records.unlink()
        extra = [
            entry_of(folder, built.rejects, sum(built.ledger.refused.values())),
            *write_card(
                folder,
                built,
                plan,
                title=f"SomaBrain {kind.replace('_', ' ')}",
                source="Memories of people and agents, as they were said",
                tenants=len(tenants),
            ),
        ]
        manifest = manifest_of(
            built,
            kind=kind,
            scope=POOLED if tenant is None else pseudonyms.tenant(tenant),
            plan=plan,
            settings_digest=settings.digest,
            position=position,
            consent="SOMABRAIN_LEARNING_LOOP_ENABLED, and each tenant's learning_loop_enabled",
            tombstones=buried,
            extra=extra,
        )
        _publish(database, artifacts, folder, manifest, pseudonyms, tenants, actor, key)
    return manifest


def derive(
    database: Database,
    settings: Settings,
    artifacts: Artifacts,
    source: WrittenCorpus,
    kind: Kind,
    plan: Plan,
    *,
    actor: str,
    key: Path | None = None,
) -> Manifest:
    """Write other formats of examples that were built before, publish them and keep their account.

    Args:
        database: the brain's.
        settings: of the process.
        artifacts: where the source is, and what is made of it goes.
        source: of kind `training_examples`.
        kind: of what is made.
        plan: its formats, tokenizer, compression and shards; the rest is that of the source.
        actor: who asks.
        key: signs the account.

    Raises:
        NoConsent: the learning loop is off, or a tenant of the source does not agree any more.
        StaleCorpus: something in the source was deleted since, or its files are not what was written.
    """
    require_learning_loop(settings)
    pseudonyms = pseudonyms_of(settings)
    with _scratch(settings) as scratch:
        folder = scratch / "corpus"
        folder.mkdir()
        examples = artifacts.pull(source.corpus_id, scratch)
        known = read_manifest(str(examples))
        with database.as_operator() as connection:
            tenants = consenting(connection)
        agreed = {pseudonyms.tenant(tenant_id) for tenant_id in tenants}
        if any(name not in agreed for name in known.tenants if name):
            raise NoConsent(
                f"a tenant of {source.corpus_id} does not let its data be learned from any more: "
                "build the examples again"
            )
        faults = [
            *wrong_files(examples, known),
            *deleted_rows(examples, known, tombstones_of(database, pseudonyms)),
        ]
        if faults:
            raise StaleCorpus(f"{source.corpus_id}: {faults[0]}: build the examples again")
        tokens = None if plan.tokenizer is None else tokens_of(plan.tokenizer)
        target = Target(folder, tokens, plan.zstd, plan.shard_rows)
        files = write_all(plan.formats, target, _with_tokens(Corpus(str(examples), known), tokens))
        whole = msgspec.structs.replace(
            known.plan,
            formats=plan.formats,
            zstd=plan.zstd,
            shard_rows=plan.shard_rows,
        )
        manifest = derived(known, kind, whole, files, settings.digest)
        _publish(database, artifacts, folder, manifest, pseudonyms, tenants, actor, key)
    return manifest


def _with_tokens(corpus: Corpus, tokens: Tokens | None) -> Iterator[Example]:
    for split in SPLITS:
        examples = corpus.examples(split)
        while batch := list(islice(examples, _BATCH)):
            yield from batch if tokens is None else tokens.encode(batch)


def _publish(
    database: Database,
    artifacts: Artifacts,
    folder: Path,
    manifest: Manifest,
    pseudonyms: Pseudonyms,
    tenants: Sequence[str],
    actor: str,
    key: Path | None,
) -> None:
    url = artifacts.publish(folder, manifest, key)
    given = [
        Given(tenant_id, entry.examples, entry.tokens, entry.rejected)
        for tenant_id in tenants
        for entry in [manifest.tenants.get(pseudonyms.tenant(tenant_id))]
        if entry is not None
    ]
    with database.as_operator() as connection:
        record_corpus(
            connection,
            url,
            msgspec.to_builtins(manifest),
            given,
            actor,
        )


@contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A folder for what is not redacted yet: nobody else can read it, and it is gone afterwards."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.home, prefix=".corpus-") as name:
        os.chmod(name, 0o700)  # noqa: PTH101 — of what tempfile has just made
        yield Path(name)


def touched(database: Database, settings: Settings) -> dict[str, list[str]]:
    """The corpora that hold something that was deleted since, and what: by the URL of each.

    A corpus whose files cannot be read is named too: nobody can tell what is in it.
    """
    gone = tombstones_of(database, pseudonyms_of(settings))
    with database.as_operator() as connection:
        corpora = written_corpora(connection)
    found: dict[str, list[str]] = {}
    if not gone:
        return found
    with _scratch(settings) as scratch:
        for corpus in corpora:
            store = Artifacts(corpus.url.rpartition("/")[0])
            try:
                folder = store.pull(corpus.corpus_id, scratch, folders=(SOURCES,))
                rows = list(deleted_rows(folder, read_manifest(str(folder)), gone))
            except (LookupError, OSError) as error:
                rows = [f"cannot be read: {error}"]
            if rows:
                found[corpus.url] = rows
    return found
