"""Importing a person's own memories and feedback from files of JSON lines.

A bad line is refused alone, with its number and the reason, and the rest is kept. A batch is committed as a
whole and importing the same file again adds nothing, so an import that was interrupted is finished by
starting it again. Memory stays bounded however long the file or a line of it is.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import msgspec

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations.lines import LONGEST_LINE, Line, Rejects, opened, read_lines
from somabrain_dagster.operations.summary import (
    FEEDBACK,
    LINKS,
    MEMORIES,
    ImportSummary,
    Progress,
    Tally,
    unwatched,
)
from somabrain_dagster.store import adaptation
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback, parse_feedback
from somabrain_dagster.store.landing import Refused, land
from somabrain_dagster.store.memories import (
    REPLY,
    Link,
    Memory,
    Word,
    content_digest,
    link_all,
    parse_memory_as,
    remember_all,
)
from somabrain_dagster.store.spool import Reference, Resolved, Spool

BATCH_LINES = 500
BATCH_BYTES = 8 * 1024 * 1024
"""A batch ends at whichever comes first. While feedback lands, its tenants wait: more would be no faster."""


class NamedLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A link to another memory of the same file.

    Attributes:
        to: its `id`.
        kind: what joins the two.
        weight: how strongly, > 0.
    """

    to: Word
    kind: Word = "related"
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class MemoryLine(Memory, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A memory as a line of a file gives it.

    Attributes:
        id: what the file calls it, for links; it is not kept.
        reply_to: the `id` of the memory that it answers: a link of kind "reply" with weight 1.
        links: to memories that it should bring to mind.
    """

    id: Word | None = None
    reply_to: Word | None = None
    links: tuple[NamedLink, ...] = ()


class _Refusal(Exception):
    """Why a line, or a link of it, is left out."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def import_memories(
    database: Database,
    configuration: LearningConfiguration,
    lines: Path,
    rejects: Path,
    progress: Progress = unwatched,
    *,
    create_tenants: bool = False,
) -> ImportSummary:
    """Import memories, and the links between them, from a file of JSON lines.

    The links go in after all memories, so a line may name one that comes later. A link exists from the time
    of its later memory.

    Args:
        database: the brain's.
        configuration: the global learning configuration, for tenants that are created.
        lines: each line a `MemoryLine`.
        rejects: where refused lines and links go, as JSON lines; a file that is there is replaced.
        progress: told how many bytes of the file are done, then how many links.
        create_tenants: create a tenant that is not there, instead of refusing its lines.

    Raises:
        CannotImport: the file cannot be read or the rejects cannot be written.
    """
    started = time.monotonic()
    memories, links = Tally(), Tally()
    summary = ImportSummary(str(lines), {MEMORIES: memories, LINKS: links})
    tenants = _Tenants(database, configuration, create_tenants)

    with opened(lines, rejects) as (file, refused), Spool() as spool:
        for batch in _batches(file, MEMORIES, progress):
            rows = _accept(batch, _parse_memory, tenants, memories, refused)
            rows = [row for row in rows if _name_is_free(*row, spool, memories, refused)]
            with database.as_tenants(sorted({memory.tenant_id for _, memory in rows})) as connection:
                remembered = remember_all(connection, [memory for _, memory in rows])
            for (line, memory), kept in zip(rows, remembered, strict=True):
                memories.count(repeated=kept.repeated)
                summary.span(memory.occurred_at)
                if memory.id is not None:
                    spool.place(memory.tenant_id, memory.id, kept.memory_id, memory.occurred_at)
                spool.refer(_references(line, memory, kept.memory_id), line.text)

        total, done = spool.references, 0
        for resolved in _chunks(spool.resolved(), BATCH_LINES):
            wanted = _links(resolved, links, refused)
            with database.as_tenants(sorted({link.tenant_id for link in wanted})) as connection:
                new = link_all(connection, wanted)
            links.count_all(len(wanted), new=new)
            done += len(resolved)
            progress(LINKS, done, total)
        summary.rejects = refused.written
    summary.tenants_created = tenants.created
    summary.seconds = time.monotonic() - started
    return summary


def import_feedback(
    database: Database,
    configuration: LearningConfiguration,
    lines: Path,
    rejects: Path,
    progress: Progress = unwatched,
    *,
    create_tenants: bool = False,
    snapshots: SnapshotCache | None = None,
) -> ImportSummary:
    """Import feedback from a file of JSON lines, in their order, by the same way as any other feedback.

    A feedback without an idempotency key gets one from what it says and how often the file said it before:
    `import:<SHA-256 of the feedback>:<1 for the first such line, 2 for the second, …>`.

    Args:
        database: the brain's.
        configuration: the global learning configuration.
        lines: each line a `Feedback`.
        rejects: where refused lines go, as JSON lines; a file that is there is replaced.
        progress: told how many bytes of the file are done.
        create_tenants: create a tenant that is not there, instead of refusing its lines.
        snapshots: where the new states are published after each commit.

    Raises:
        CannotImport: the file cannot be read or the rejects cannot be written.
    """
    started = time.monotonic()
    tally = Tally()
    summary = ImportSummary(str(lines), {FEEDBACK: tally})
    tenants = _Tenants(database, configuration, create_tenants)

    with opened(lines, rejects) as (file, refused), Spool() as spool:
        for batch in _batches(file, FEEDBACK, progress):
            rows = _accept(batch, lambda text: _keyed(parse_feedback(text), spool), tenants, tally, refused)
            outcomes = land(database, [feedback for _, feedback in rows], configuration, snapshots)
            for (line, feedback), outcome in zip(rows, outcomes, strict=True):
                if isinstance(outcome, Refused):
                    _refuse(line, _Refusal(outcome.code, outcome.reason), tally, refused)
                    continue
                tally.count(repeated=outcome.repeated)
                if feedback.occurred_at is not None:
                    summary.span(feedback.occurred_at)
        summary.rejects = refused.written
    summary.tenants_created = tenants.created
    summary.seconds = time.monotonic() - started
    return summary


Said = TypeVar("Said", Feedback, MemoryLine)


def _accept(
    batch: Iterable[Line],
    parse: Callable[[str], Said],
    tenants: "_Tenants",
    tally: Tally,
    rejects: Rejects,
) -> list[tuple[Line, Said]]:
    """The lines that can be read and whose tenants exist, beside what they say; the others are refused."""
    readable = []
    for line in batch:
        try:
            readable.append((line, _read(line, parse)))
        except _Refusal as refusal:
            _refuse(line, refusal, tally, rejects)
    unknown = tenants.unknown({said.tenant_id for _, said in readable})
    for line, said in readable:
        if said.tenant_id in unknown:
            reason = str(adaptation.UnknownTenant(said.tenant_id))
            _refuse(line, _Refusal("unknown_tenant", reason), tally, rejects)
    return [(line, said) for line, said in readable if said.tenant_id not in unknown]


def _read(line: Line, parse: Callable[[str], Said]) -> Said:
    if line.too_long:
        raise _Refusal(
            "too_long", f"the line has {line.length:,} bytes; at most {LONGEST_LINE:,} are read of a line"
        )
    try:
        return parse(line.content.decode())
    except UnicodeDecodeError as error:
        raise _Refusal(
            "not_utf8", f"byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8"
        ) from error
    # RecursionError: JSON that is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise _Refusal("invalid", str(error)) from error


def _refuse(line: Line, refusal: _Refusal, tally: Tally, rejects: Rejects) -> None:
    tally.refused[refusal.code] += 1
    rejects.write(line.number, refusal.code, str(refusal), line.text)


def _parse_memory(text: str) -> MemoryLine:
    return parse_memory_as(MemoryLine, text)


def _keyed(feedback: Feedback, spool: Spool) -> Feedback:
    # Also where there is a key, so that what has no digest is refused alone and not in its batch.
    digest = feedback.digest()
    if feedback.idempotency_key is not None:
        return feedback
    key = f"import:{digest.hex()}:{spool.occurrence(digest)}"
    return msgspec.structs.replace(feedback, idempotency_key=key)


def _name_is_free(line: Line, memory: MemoryLine, spool: Spool, tally: Tally, rejects: Rejects) -> bool:
    if memory.id is None:
        return True
    earlier = spool.claim(line.number, memory.tenant_id, memory.id, content_digest(memory))
    if earlier is not None:
        reason = f"the `id` {memory.id!r} is that of another memory, of line {earlier}: give each its own"
        _refuse(line, _Refusal("id_taken", reason), tally, rejects)
    return earlier is None


def _references(line: Line, memory: MemoryLine, memory_id: int) -> list[Reference]:
    named = [(link.to, link.kind, link.weight) for link in memory.links]
    if memory.reply_to is not None:
        named.insert(0, (memory.reply_to, REPLY, 1.0))
    return [
        Reference(line.number, memory.tenant_id, memory_id, memory.occurred_at, *target) for target in named
    ]


def _links(resolved: Iterable[Resolved], tally: Tally, rejects: Rejects) -> list[Link]:
    """The links that references lead to; a reference that leads nowhere is refused."""
    links = []
    for found in resolved:
        reference = found.reference
        if found.target_id is None or found.target_time is None:
            reason = f"no memory of the tenant was kept from this file with the `id` {reference.target!r}"
            code = "unknown_id"
        elif found.target_id == reference.source_id:
            reason = f"the `id` {reference.target!r} is the memory's own: a link joins two memories"
            code = "self_link"
        else:
            links.append(
                Link(
                    tenant_id=reference.tenant_id,
                    source_id=reference.source_id,
                    target_id=found.target_id,
                    kind=reference.kind,
                    weight=reference.weight,
                    occurred_at=max(reference.source_time, found.target_time),
                )
            )
            continue
        tally.refused[code] += 1
        rejects.write(
            reference.line, code, f"the memory was kept, a link of it was not: {reason}", found.text
        )
    return links


class _Tenants:
    """Which tenants exist, asked once for each."""

    def __init__(self, database: Database, configuration: LearningConfiguration, create: bool) -> None:
        self._database = database
        self._configuration = configuration
        self._create = create
        self._known: set[str] = set()
        self.created = 0

    def unknown(self, names: set[str]) -> set[str]:
        """Those that do not exist, after creating what may be created."""
        new = sorted(names - self._known)
        if new and self._create:
            with self._database.as_operator() as connection:
                self.created += len(adaptation.create_tenants(connection, new, self._configuration))
            self._known.update(new)
        elif new:
            with self._database.as_tenants(new) as connection:
                self._known.update(state.tenant_id for state in adaptation.read_states(connection, new))
        return names - self._known


def _batches(file: BinaryIO, what: str, progress: Progress) -> Iterator[Sequence[Line]]:
    """Lines in batches; progress is told of a batch when the next one is asked for."""
    status = os.fstat(file.fileno())
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    batch: list[Line] = []
    size = 0
    for line in read_lines(file):
        batch.append(line)
        size += len(line.content)
        if len(batch) == BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            progress(what, line.end, total)
            batch, size = [], 0
    if batch:
        yield batch
        progress(what, batch[-1].end, total)


Item = TypeVar("Item")


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
