"""From records to a corpus: every example through every stage, in bounded memory, the same bytes each time.

The input is cut into pieces of a few megabytes. Four passes follow, each of many small tasks:

1. each piece: records are read, made examples, normalised and redacted; turns of conversations wait;
2. each bucket of conversations: put together, then as above;
3. each bucket of examples: sorted by digest, exact duplicates left out; then near duplicates, among all;
4. each bucket again: decontaminated, judged by reward and length, tokens counted.

Then the formats are written from one sorted stream. A task's result depends on its part alone and results are
put together in the order of the parts, so the number of workers changes nothing but the time.
"""

import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import msgspec
import numpy as np
import zstandard

from somabrain_dagster.corpus.contamination import Decontaminate, held_out_hashes, load, texts_of
from somabrain_dagster.corpus.duplicates import (
    BANDS,
    NUMBERS,
    NearDuplicates,
    again,
    bands,
    near_duplicates,
    signatures,
)
from somabrain_dagster.corpus.examples import (
    Example,
    NoExample,
    Split,
    Spoken,
    Turn,
    assemble,
    read_record,
)
from somabrain_dagster.corpus.formats import FileEntry, Target, write_all
from somabrain_dagster.corpus.names import namer
from somabrain_dagster.corpus.pseudonyms import Pseudonyms
from somabrain_dagster.corpus.redaction import placeholders
from somabrain_dagster.corpus.spool import Frame, Spool, read_frames, write_frames
from somabrain_dagster.corpus.stages import EXACT, READ, Ledger, Normalise, Redact, Rewarded, Stage, sieve
from somabrain_dagster.corpus.tokens import GPT2, Length, TokenizerEntry, Tokens, tokens_of
from somabrain_dagster.operations.lines import LONGEST_LINE, read_lines
from somabrain_dagster.operations.summary import Progress, unwatched

PIECE = 4 << 20
"""Bytes of input that are read at once; a line is shorter."""

BUCKET = 4 << 20
"""Bytes of input whose examples are sorted at once."""

BATCH = 256
REMEMBERED = 1 << 14
"""Lines whose outcome a worker remembers, the last met, so that the same line is not judged again."""

HISTOGRAM = tuple(1 << power for power in range(4, 17))
"""Upper edges of the lengths that are counted, in tokens, or in characters where no tokens are."""

Result = TypeVar("Result")


class CannotBuild(Exception):
    """A corpus cannot be built; the message says why, and what to do."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, and how it is written.

    Attributes:
        near_duplicate: Jaccard similarity over runs of three words from which on examples are the same; None
            leaves out exact duplicates only.
        validation: share of the sessions that are held out.
        least_reward: what a judged session must be worth; None for anything.
        most_characters: of an example.
        tokenizer: `gpt2`, a tokenizer.json, or None to count no tokens.
        window: tokens that the trainer reads at once.
        names: whether names of people are redacted too, by the extra `names`.
        formats: which to write.
        zstd: whether lines of JSON are compressed.
        shard_rows: rows in a file at most; 0 for any number.
    """

    near_duplicate: float | None = 0.8
    validation: float = 0.02
    least_reward: float | None = None
    most_characters: int = 200_000
    tokenizer: str | None = GPT2
    window: int = 1024
    names: bool = False
    formats: tuple[str, ...] = ("prompt-response",)
    zstd: bool = False
    shard_rows: int = 0


@dataclass(frozen=True)
class HeldOut:
    """What examples must not hold, besides the validation split.

    Attributes:
        texts: queries of experiments and evaluations.
        sessions: of experiments; pseudonyms.
    """

    texts: tuple[str, ...] = ()
    sessions: frozenset[str] = frozenset()


NOTHING_HELD_OUT = HeldOut()


@dataclass
class Built:
    """What came of it.

    Attributes:
        ledger: who was left out, where and why, in numbers.
        files: that were written.
        kept: examples and tokens, by tenant.
        splits: examples and tokens, by split; tokens None where they were not counted.
        lengths: examples by the upper edge of `HISTOGRAM` that they stay below; the last holds the rest.
        over_window: examples of more tokens than the window.
        redacted: what was replaced in the examples that were kept, by kind.
        rejects: where every refusal is, a line of JSON each, compressed.
        tokenizer: whose tokens were counted.
    """

    ledger: Ledger
    files: list[FileEntry]
    kept: dict[str, tuple[int, int]]
    splits: dict[Split, tuple[int, int | None]]
    lengths: list[int]
    over_window: int
    redacted: Counter[str]
    rejects: Path
    tokenizer: TokenizerEntry | None


def split_of(session: str, validation: float) -> Split:
    """Where a session belongs, whoever builds: its SHA-256 as a number in [0, 1) against the share."""
    number = int.from_bytes(hashlib.sha256(f"split\0{session}".encode()).digest()[:8], "big")
    return "validation" if number < validation * 2.0**64 else "train"


@dataclass(frozen=True)
class _Work:
    """What every task knows."""

    scratch: Path
    source: Path
    plan: Plan
    key: bytes
    buckets: int
    sessions: frozenset[str]
    tenants: frozenset[str] | None

    def spool(self, name: str) -> Spool:
        return Spool(self.scratch / name, self.buckets)

    def refusals(self, part: str) -> Path:
        return self.scratch / "refusals" / part

    @contextmanager
    def ledger(self, part: str) -> Iterator[Ledger]:
        with self.refusals(part).open("wb", buffering=1 << 20) as file:
            ledger = Ledger(refusals=file)
            yield ledger
            ledger.refusals = None


_ANY = bytes(32)
"""The key of frames that are in order already."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Example).decode
_unpack_spoken = msgspec.msgpack.Decoder(Spoken).decode
_unpack_again = msgspec.msgpack.Decoder(tuple[bytes, int, str, str]).decode


def build(
    source: Path,
    into: Path,
    plan: Plan,
    pseudonyms: Pseudonyms,
    held_out: HeldOut = NOTHING_HELD_OUT,
    *,
    tenants: frozenset[str] | None = None,
    workers: int = 1,
    piece: int = PIECE,
    bucket: int = BUCKET,
    progress: Progress = unwatched,
) -> Built:
    """Build a corpus from records.

    Args:
        source: a file of records, a line of JSON each; see `examples`.
        into: an empty folder, on whose disk there is room for about three times the source.
        plan: what is kept and how it is written.
        pseudonyms: of tenants, sessions and memories.
        held_out: what examples must not hold.
        tenants: those that agreed; records of others are left out. None takes all.
        workers: processes; they change nothing but the time.
        piece: bytes of input that are read at once; a line is shorter. It changes nothing but the memory.
        bucket: bytes of input whose examples are sorted at once; likewise.
        progress: told how many parts of each pass are done.

    Raises:
        CannotBuild: the source cannot be read or holds nothing, or there is no room; `into` is as it was.
        TokenizerError: the tokenizer cannot be used, or not for one of the formats.
    """
    try:
        size = source.stat().st_size
    except OSError as error:
        raise CannotBuild(f"cannot read {source} ({error.strerror}): name a file of JSON lines") from error
    if not size:
        raise CannotBuild(f"{source} is empty: it must have a record of JSON a line")
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".building-") as scratch:
        work = _Work(
            Path(scratch), source, plan, pseudonyms.key, -(-size // bucket), held_out.sessions, tenants
        )
        for name in ("refusals", "spoken", "examples", "repeats", "sorted", "final", "out"):
            (work.scratch / name).mkdir()
        try:
            with _pool(workers) as pool:
                built = _built(work, held_out, pool, piece, progress)
            for path in (work.scratch / "out").iterdir():
                path.rename(into / path.name)
        except OSError as error:
            raise CannotBuild(
                f"cannot write beside {into} ({error.strerror}): nothing was kept; make room there, or name "
                "another place"
            ) from error
        built.rejects = into / built.rejects.name
        return built


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    # A fork of a process with threads may hang; a new process has none.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_alone) as pool:
        try:
            with _no_program():
                for ready in [pool.submit(os.getpid) for _ in range(workers)]:
                    ready.result()
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _no_program() -> Iterator[None]:
    """For so long, new processes do not import the program that runs: it may be larger than a worker is."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _alone() -> None:
    """One thread a worker: there are as many workers as there should be threads."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _tokenizer(pool: Executor | None, name: str | None) -> TokenizerEntry | None:
    """What is known of a tokenizer, without holding one where workers do."""
    if name is None:
        return None
    return _entry(name) if pool is None else pool.submit(_entry, name).result()


def _entry(name: str) -> TokenizerEntry:
    return _tokens(name).entry


def _each(
    pool: Executor | None, task: Callable[[Any], Result], parts: Iterable[Any], told: Callable[[int], None]
) -> Iterator[Result]:
    """The results of a task for each part, in order; parts are handed out in order too, a few ahead."""
    if pool is None:
        for done, part in enumerate(parts):
            yield task(part)
            told(done + 1)
        return
    waiting: list[Future[Result]] = []
    done = 0
    for part in parts:
        waiting.append(pool.submit(task, part))
        if len(waiting) > 16:
            yield waiting.pop(0).result()
            told(done := done + 1)
    for future in waiting:
        yield future.result()
        told(done := done + 1)


def _built(
    work: _Work,
    held_out: HeldOut,
    pool: Executor | None,
    piece: int,
    progress: Progress,
) -> Built:
    ledger = Ledger()
    plan = work.plan
    tokenizer = _tokenizer(pool, plan.tokenizer)
    buckets = range(work.buckets)

    def told(what: str, total: int | None = None) -> Callable[[int], None]:
        return lambda done: progress(what, done, total)

    pieces = 0
    with work.ledger("0-long") as long:
        for counted in _each(pool, partial(_read, work), _pieces(work.source, piece, long), told("reading")):
            ledger.add(counted)
            pieces += 1
    ledger.add(long)
    for counted in _each(pool, partial(_converse, work), buckets, told("conversations", work.buckets)):
        ledger.add(counted)
    if not ledger.came and not ledger.refused:
        raise CannotBuild(f"{work.source} has only blank lines: it must have a record of JSON a line")

    counts = list(_each(pool, partial(_sort, work), buckets, told("sorting", work.buckets)))
    for counted in _each(pool, partial(_repeats, work), buckets, told("repeats", work.buckets)):
        ledger.add(counted)
    firsts = np.concatenate(([0], np.cumsum(counts))).astype(int).tolist()
    _find_near(work, counts)

    path = work.scratch / "held-out"
    with path.open("wb") as file:
        held_out_hashes(held_out.texts).tofile(file)
        if plan.validation:
            parts = ((bucket, firsts[bucket]) for bucket in buckets)
            for hashes in _each(pool, partial(_hold_out, work), parts, told("holding out", work.buckets)):
                hashes.tofile(file)
    if path.stat().st_size:
        np.memmap(path, np.uint64, "r+").sort()

    built = Built(
        ledger, [], {}, {}, [0] * (len(HISTOGRAM) + 1), 0, Counter(), work.scratch / "out", tokenizer
    )
    parts = ((bucket, firsts[bucket]) for bucket in buckets)
    for finished in _each(pool, partial(_finish, work), parts, told("judging", work.buckets)):
        finished.into(built)
    formats = list(_each(pool, partial(_format, work), plan.formats, told("writing", len(plan.formats))))
    built.files = [entry for entries in formats for entry in entries]
    built.rejects = _rejects(work, pieces)
    return built


@dataclass(frozen=True)
class _Piece:
    number: int
    begin: int
    end: int
    first_line: int


def _pieces(source: Path, size: int, long: Ledger) -> Iterator[_Piece]:
    """Cut a file at ends of lines. A line that fills a piece and more is refused here, and never held."""
    with source.open("rb", buffering=0) as file:
        begin, line, number = 0, 1, 0
        while block := os.pread(file.fileno(), size, begin):
            length = block.rfind(b"\n") + 1
            if not length and len(block) < size:
                length = len(block)
            if length:
                yield _Piece(number, begin, begin + length, line)
                line += block.count(b"\n", 0, length)
                begin += length
                number += 1
                continue
            start = begin
            while block and not length:
                begin += len(block)
                block = os.pread(file.fileno(), size, begin)
                length = block.find(b"\n") + 1
            begin += length
            long.came[""] += 1
            long.refuse(line, READ, _too_long(begin - start))
            line += 1


def _too_long(length: int) -> str:
    return f"{length:,} bytes, a line has at most {LONGEST_LINE:,}"


def _first_stages(plan: Plan) -> tuple[Normalise, Redact]:
    return Normalise(), Redact(namer() if plan.names else None)


class _Source:
    """What makes examples of what records give, and keeps those that pass the first stages."""

    def __init__(self, work: _Work, ledger: Ledger) -> None:
        self._work = work
        self._ledger = ledger
        self.pseudonyms = _pseudonyms(work.key)
        self._normalise, self._redact = _first_stages(work.plan)
        self._spool = work.spool("examples")
        self._repeats = work.spool("repeats")

    def example(
        self,
        turns: tuple[Turn, ...],
        tenant: str,
        session: str,
        line: int,
        ids: Iterable[int],
        reward: float | None,
    ) -> Example:
        of = self.pseudonyms
        return Example(
            turns=turns,
            tenant=of.tenant(tenant),
            session=of.session(tenant, session),
            split=split_of(session, self._work.plan.validation),
            line=line,
            memories=tuple([of.memory(tenant, memory_id) for memory_id in ids if memory_id]),
            reward=reward,
        )

    def keep(self, examples: Sequence[Example]) -> list[bytes | tuple[str, str]]:
        """Keep those that pass: the digest of each, or the stage that left it out and why."""
        ledger = self._ledger
        for example in examples:
            ledger.came[example.tenant] += 1
        outcomes = sieve((self._normalise, self._redact), examples, ledger)
        results: list[bytes | tuple[str, str]] = []
        for outcome in outcomes:
            if isinstance(outcome, Example):
                digest = outcome.digest
                self._spool.add(digest, _pack(outcome))
                results.append(digest)
            else:
                results.append(outcome)
        return results

    def keep_again(self, digest: bytes, line: int, tenant: str, session: str) -> None:
        """Keep that a line says word for word what an earlier one said."""
        self._ledger.came[tenant] += 1
        _repeat(self._repeats, digest, line, tenant, session)

    def end(self) -> None:
        self._spool.flush()
        self._repeats.flush()


def _repeat(spool: Spool, digest: bytes, line: int, tenant: str, session: str) -> None:
    # Spread by line: one content may be repeated any number of times.
    spread = hashlib.sha256(line.to_bytes(8, "big")).digest()
    spool.add(spread, _pack((digest, line, tenant, session)))


@lru_cache(2)
def _pseudonyms(key: bytes) -> Pseudonyms:
    return Pseudonyms(key)


@lru_cache(2)
def _tokens(name: str) -> Tokens:
    return tokens_of(name)


_Outcome = tuple[bytes, str, str] | tuple[str, str, str, str]
"""Of a line: the digest of what was kept, or stage and reason; and the tenant and session."""


@lru_cache(1)
def _remembered(scratch: Path) -> OrderedDict[bytes, _Outcome]:
    """What this process remembers of lines, for one build."""
    return OrderedDict()


def _read(work: _Work, piece: _Piece) -> Ledger:
    """Pass 1: the records of a piece."""
    remembered = _remembered(work.scratch)
    spoken = work.spool("spoken")
    with work.source.open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), piece.end - piece.begin, piece.begin)
    with work.ledger(f"1-{piece.number:08}") as ledger:
        source = _Source(work, ledger)
        fresh: list[Example] = []
        digests: list[bytes] = []
        waiting: dict[bytes, list[int]] = {}

        def judge() -> None:
            for digest, example, outcome in zip(digests, fresh, source.keep(fresh), strict=True):
                whose = (example.tenant, example.session)
                result: _Outcome = (outcome, *whose) if isinstance(outcome, bytes) else (*outcome, *whose)
                remembered[digest] = result
                if len(remembered) > REMEMBERED:
                    remembered.popitem(last=False)
                for line in waiting.pop(digest, ()):
                    once_more(result, line)
            fresh.clear()
            digests.clear()
            waiting.clear()

        def once_more(outcome: _Outcome, line: int) -> None:
            if len(outcome) == 3:
                source.keep_again(outcome[0], line, outcome[1], outcome[2])
            else:
                stage, reason, tenant, session = outcome
                ledger.came[tenant] += 1
                ledger.refuse(line, stage, reason, tenant, session)

        for one in read_lines(io.BytesIO(content)):
            number = piece.first_line - 1 + one.number
            if one.too_long:
                ledger.came[""] += 1
                ledger.refuse(number, READ, _too_long(one.length))
                continue
            digest = hashlib.blake2b(one.content, digest_size=16).digest()
            if (known := remembered.get(digest)) is not None:
                remembered.move_to_end(digest)
                once_more(known, number)
                continue
            if digest in waiting:
                waiting[digest].append(number)
                continue
            try:
                record = read_record(one.content, number)
            except NoExample as error:
                ledger.came[""] += 1
                ledger.refuse(number, READ, str(error))
                continue
            if work.tenants is not None and record.tenant not in work.tenants:
                ledger.came[""] += 1
                ledger.refuse(number, READ, "its tenant does not let its data be learned from")
                continue
            if isinstance(record, Spoken):
                body = _pack(record)
                for key in waits_for(record):
                    spoken.add(key, body)
                continue
            fresh.append(
                source.example(
                    record.turns,
                    record.tenant,
                    # Equal lines are of one session, whichever line is met first.
                    record.session or f"record {digest.hex()}",
                    number,
                    record.memory_ids,
                    record.reward,
                )
            )
            digests.append(digest)
            waiting[digest] = []
            if len(fresh) == BATCH:
                judge()
        judge()
        source.end()
        spoken.flush()
    return ledger


def waits_for(spoken: Spoken) -> list[bytes]:
    """Keys under which a turn waits: its conversation's; of none, its own, and that of what it answers."""
    if spoken.conversation or not spoken.answers:
        return [_own_key(spoken)]
    return [_own_key(spoken), _key(spoken.tenant, "memory", spoken.answers)]


def _own_key(spoken: Spoken) -> bytes:
    if spoken.conversation:
        return _key(spoken.tenant, "conversation", spoken.conversation)
    if spoken.memory_id:
        return _key(spoken.tenant, "memory", spoken.memory_id)
    return _key(spoken.tenant, "line", spoken.line)


def _key(tenant: str, kind: str, name: str | int) -> bytes:
    return hashlib.sha256(f"{tenant}\0{kind}\0{name}".encode()).digest()


def _converse(work: _Work, bucket: int) -> Ledger:
    """Pass 2: the conversations of a bucket."""
    with work.ledger(f"2-{bucket:08}") as ledger:
        frames = [(key, _unpack_spoken(body)) for key, body in work.spool("spoken").read(bucket)]
        frames.sort(key=lambda frame: (frame[0], frame[1].occurred_at, frame[1].memory_id, frame[1].line))
        source = _Source(work, ledger)
        start = 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or frames[end][0] != frames[start][0]:
                _converse_one(source, ledger, frames[start][0], [spoken for _, spoken in frames[start:end]])
                start = end
        source.end()
    return ledger


def _converse_one(source: _Source, ledger: Ledger, key: bytes, spoken: list[Spoken]) -> None:
    tenant, conversation = spoken[0].tenant, spoken[0].conversation
    whose = source.pseudonyms.tenant(tenant), source.pseudonyms.session(tenant, conversation)
    once: list[Spoken] = []
    for one in spoken:
        if not (once and _same(once[-1], one)):
            once.append(one)
        elif _own_key(one) == key:
            ledger.came[whose[0]] += 1
            ledger.refuse(one.line, READ, f"the memory of line {once[-1].line} again", *whose)
    if not conversation and len(once) == 1 and once[0].answers and _own_key(once[0]) == key:
        return  # it waits with what it answers too
    try:
        assembled = assemble(once)
    except NoExample as error:
        ledger.came[whose[0]] += 1
        ledger.refuse(min(one.line for one in once), READ, str(error), *whose)
        return
    source.keep(
        [
            source.example(
                turns,
                tenant,
                conversation or f"memory {said[-1].memory_id}",
                min(one.line for one in said),
                [one.memory_id for one in said],
                next((one.reward for one in said if one.reward is not None), None),
            )
            for turns, said in assembled
        ]
    )


def _same(one: Spoken, other: Spoken) -> bool:
    return (one.occurred_at, one.memory_id, one.speaker, one.text) == (
        other.occurred_at,
        other.memory_id,
        other.speaker,
        other.text,
    )


def _sort(work: _Work, bucket: int) -> int:
    """Pass 3: the examples of a bucket in order, each content once, with their signatures; how many."""
    full: list[tuple[bytes, float, str, str, int, str, bytes]] = []
    for digest, body in work.spool("examples").read(bucket):
        one = _unpack(body)
        full.append((digest, -(one.reward or 0.0), one.session, one.tenant, one.line, one.text, body))
    full.sort(key=lambda entry: entry[:5])
    kept: list[Frame] = []
    texts: list[str] = []
    rewards: list[float] = []
    repeats = work.spool("repeats")
    for digest, cost, session, tenant, line, text, body in full:
        if kept and kept[-1][0] == digest:
            _repeat(repeats, digest, line, tenant, session)
        else:
            kept.append((digest, body))
            texts.append(text)
            rewards.append(-cost)
    del full
    repeats.flush()
    write_frames(work.scratch / "sorted" / f"{bucket:05}", kept)
    computed = [signatures(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    matrix = np.concatenate([np.empty((0, NUMBERS), np.uint32), *computed])
    known = {
        "s": matrix,
        "k": bands(matrix),
        "r": np.array(rewards, np.float64),
        "d": np.frombuffer(b"".join([digest[:8] for digest, _ in kept]), ">u8"),
    }
    for what, array in known.items():
        array.tofile(work.scratch / "sorted" / f"{bucket:05}.{what}")
    return len(kept)


def _repeats(work: _Work, bucket: int) -> Ledger:
    """Still pass 3: a share of the exact duplicates, whatever they repeat."""
    with work.ledger(f"3-{bucket:08}") as ledger:
        for _, body in sorted(work.spool("repeats").read(bucket)):
            digest, line, tenant, session = _unpack_again(body)
            ledger.refuse(line, EXACT, again(digest), tenant, session)
    return ledger


def _find_near(work: _Work, counts: Sequence[int]) -> None:
    """Between passes: near duplicates among all examples, a band at a time.

    `near` holds the place of each one to leave out, in order, and the beginning of the digest of the one that
    stays instead.
    """
    folder, total = work.scratch / "sorted", sum(counts)
    near, threshold = work.scratch / "near", work.plan.near_duplicate
    if not total or threshold is None:
        near.touch()
        return
    with (folder / "signatures").open("wb") as joined:
        for bucket in range(len(counts)):
            part = folder / f"{bucket:05}.s"
            joined.write(part.read_bytes())
            part.unlink()
    paths = [folder / f"band-{band:02}" for band in range(BANDS)]
    for band, path in enumerate(paths):
        with path.open("wb") as joined:
            for bucket, count in enumerate(counts):
                part = folder / f"{bucket:05}.k"
                joined.write(np.fromfile(part, np.uint64, count, offset=8 * count * band).tobytes())
    rewards, digests = (
        np.concatenate([np.fromfile(folder / f"{bucket:05}.{what}", of) for bucket in range(len(counts))])
        for what, of in (("r", np.float64), ("d", ">u8"))
    )
    left_out, stays = near_duplicates(folder / "signatures", paths, rewards, threshold)
    np.stack((left_out.astype(np.uint64), digests[stays]), axis=1).tofile(near)


def _unlike(work: _Work, bucket: int, first: int) -> tuple[NearDuplicates, list[Example]]:
    """The examples of a bucket in order, and the stage that leaves out near duplicates."""
    examples = [_unpack(body) for _, body in read_frames(work.scratch / "sorted" / f"{bucket:05}")]
    near = load(work.scratch / "near").reshape(-1, 2)
    begin, end = np.searchsorted(near[:, 0], np.array([first, first + len(examples)], np.uint64))
    left_out, stays = near[begin:end].T
    return NearDuplicates(first, left_out, [f"{digest:016x}" for digest in stays.tolist()]), examples


def _hold_out(work: _Work, part: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """What the validation split of a bucket holds."""
    near, examples = _unlike(work, *part)
    kept = (example for example in near.judge(examples) if isinstance(example, Example))
    return held_out_hashes(texts_of(kept))


@dataclass
class _Finished:
    """What pass 4 counted in one bucket."""

    ledger: Ledger
    kept: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    splits: Counter[Split] = field(default_factory=Counter)
    split_tokens: Counter[Split] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=lambda: [0] * (len(HISTOGRAM) + 1))
    over_window: int = 0
    redacted: Counter[str] = field(default_factory=Counter)

    def into(self, built: Built) -> None:
        built.ledger.add(self.ledger)
        built.redacted += self.redacted
        for tenant, count in self.kept.items():
            examples, tokens = built.kept.get(tenant, (0, 0))
            built.kept[tenant] = (examples + count, tokens + self.tokens[tenant])
        for split, count in self.splits.items():
            rows, numbered = built.splits.get(split, (0, 0))
            more = None if built.tokenizer is None else (numbered or 0) + self.split_tokens[split]
            built.splits[split] = (rows + count, more)
        built.lengths = [one + other for one, other in zip(built.lengths, self.lengths, strict=True)]
        built.over_window += self.over_window


def _finish(work: _Work, part: tuple[int, int]) -> _Finished:
    """Pass 4: the last stages."""
    plan, (bucket, first) = work.plan, part
    tokens = None if plan.tokenizer is None else _tokens(plan.tokenizer)
    near, examples = _unlike(work, bucket, first)
    stages: tuple[Stage, ...] = (
        near,
        Decontaminate(load(work.scratch / "held-out"), work.sessions),
        Rewarded(plan.least_reward),
        Length(tokens, plan.window, plan.most_characters),
    )
    kept: list[Frame] = []
    with work.ledger(f"4-{bucket:08}") as ledger:
        finished = _Finished(ledger)
        for start in range(0, len(examples), BATCH):
            for outcome in sieve(stages, examples[start : start + BATCH], ledger):
                if isinstance(outcome, Example):
                    kept.append((_ANY, _pack(outcome)))
                    count = len(outcome.tokens) // tokens.dtype.itemsize if tokens else 0
                    length = count if tokens else sum([len(turn.content) for turn in outcome.turns])
                    finished.redacted += placeholders(outcome.text)
                    finished.kept[outcome.tenant] += 1
                    finished.tokens[outcome.tenant] += count
                    finished.splits[outcome.split] += 1
                    finished.split_tokens[outcome.split] += count
                    finished.lengths[int(np.searchsorted(HISTOGRAM, length))] += 1
                    finished.over_window += count > plan.window
    write_frames(work.scratch / "final" / f"{bucket:05}", kept)
    return finished


def _final(work: _Work) -> Iterator[Example]:
    for bucket in range(work.buckets):
        for _, body in read_frames(work.scratch / "final" / f"{bucket:05}"):
            yield _unpack(body)


def _format(work: _Work, name: str) -> list[FileEntry]:
    """Write one format."""
    plan = work.plan
    tokens = None if plan.tokenizer is None else _tokens(plan.tokenizer)
    return write_all([name], Target(work.scratch / "out", tokens, plan.zstd, plan.shard_rows), _final(work))


def _rejects(work: _Work, pieces: int) -> Path:
    """All refusals in one file, in the order of the parts."""
    path = work.scratch / "out" / "rejects.jsonl.zst"
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed,
    ):
        for part in sorted(work.refusals("").iterdir()):
            packed.write(part.read_bytes())
    return path
