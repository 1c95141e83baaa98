"""Memory in use, beside mem0 and bare pgvector: `python -m benchmarks.conversing`.

Recorded conversations (BYU Chit-Chat) arrive message by message. Whoever takes a turn asks memory first,
which earlier message this one answers; then the message is kept. So each memory is asked as it grows, and
the right answer is known. All have the same vectors of the same embedder, looked up and not computed, and
keep them in the same Postgres. mem0 keeps messages as they are (`infer=False`): no language model is asked.

*Learning* is the same recall with a feedback after each question that names what was right. Right means that
the first hit has the text of the right answer. Writes reports/conversing.json.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers import PeerMissing, installed, versions
from benchmarks.report import Figures, Spread, write_report
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.memory.vectors import as_text
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import EmbeddedOnce, Story, judged, question, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.landing import land

REPORT = Path("reports/conversing.json")
PROGRAM = Path(__file__).with_name("memory_mem0.py")
PACKAGES = ["mem0ai", "psycopg[binary,pool]", "numpy"]
PEOPLE = 6
MESSAGES = 400
REPEATS = 3
"""Groups of people, each a round in which all contenders take their turn."""
SECONDS = 600
HERE, LEARNING, BARE = "here", "here, learning", "bare pgvector"
MEM0, EXACT = "mem0", "mem0, exact search"


@dataclass
class Enacted:
    """Seconds of each search and of each message that was kept, and which first hits were right."""

    searched: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


def texts_of(told: Sequence[Story]) -> list[str]:
    """All that is embedded: what is kept, and what is asked."""
    kept = {embedded_text(memory.speaker, memory.text) for one in told for memory in one.memories}
    return sorted(kept | {one.memories[turn.question].text for one in told for turn in one.turns})


def answers_of(told: Story) -> dict[int, int]:
    """Which message each question answers, by their positions."""
    return {turn.question: turn.answer for turn in told.turns}


def here(
    database: Database, embedder: EmbeddedOnce, settings: Settings, told: Story, learns: bool
) -> Enacted:
    """The library; with `learns`, a feedback lands after each question."""
    room = Memories(database, embedder, settings)
    with database.as_operator() as connection:
        create_tenants(connection, [told.tenant_id], settings.learning_configuration)
    enacted, answers = Enacted(), answers_of(told)
    ids: list[int] = []
    for place, memory in enumerate(told.memories):
        if place in answers:
            right = told.memories[answers[place]]
            began = time.perf_counter()
            recall = room.recall(question(memory))
            enacted.searched.append(time.perf_counter() - began)
            first = bool(recall.hits) and (recall.hits[0].speaker, recall.hits[0].text) == (
                right.speaker,
                right.text,
            )
            enacted.right.append(first)
            if learns:
                # Refused, and nothing learned, where the recall did not weigh it.
                named = judged(memory, recall.recall_id, ids[answers[place]], first)
                land(database, [named], settings.learning_configuration)
        began = time.perf_counter()
        ids.append(room.remember(memory).memory_id)
        enacted.added.append(time.perf_counter() - began)
    return enacted


def bare(database: Database, embedder: EmbeddedOnce, told: Story) -> Enacted:
    """A table with a vector, and the ten nearest by cosine."""
    enacted, answers = Enacted(), answers_of(told)
    with database.as_owner() as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, tenant_id text, kept text, "
            "embedding vector); CREATE INDEX IF NOT EXISTS bare_tenant ON bare (tenant_id)"
        )
    for place, memory in enumerate(told.memories):
        if place in answers:
            right = told.memories[answers[place]]
            vector = as_text(embedder.embed([memory.text])[0])
            began = time.perf_counter()
            with database.as_owner() as connection:
                found = connection.execute(
                    "SELECT kept FROM bare WHERE tenant_id = %s ORDER BY embedding <=> %s::vector LIMIT 10",
                    (told.tenant_id, vector),
                ).fetchall()
            enacted.searched.append(time.perf_counter() - began)
            enacted.right.append(bool(found) and found[0][0] == embedded_text(right.speaker, right.text))
        kept = embedded_text(memory.speaker, memory.text)
        vector = as_text(embedder.embed([kept])[0])
        began = time.perf_counter()
        with database.as_owner() as connection:
            connection.execute(
                "INSERT INTO bare (tenant_id, kept, embedding) VALUES (%s, %s, %s)",
                (told.tenant_id, kept, vector),
            )
        enacted.added.append(time.perf_counter() - began)
    return enacted


def mem0(url: str, told: Sequence[Story], vectors: Path, collection: str, *, hnsw: bool) -> Enacted:
    """mem0, in a process and an environment of its own.

    Raises:
        PeerMissing: it cannot be installed or run here.
    """
    python = installed("mem0", PACKAGES) / "python"
    given = {
        "url": url,
        "collection": collection,
        "hnsw": hnsw,
        "dimension": MiniLM.dimension,
        "stories": {
            one.tenant_id: [
                {
                    "kept": embedded_text(memory.speaker, memory.text),
                    "query": memory.text,
                    "answer": _kept(one, answers_of(one).get(place)),
                }
                for place, memory in enumerate(one.memories)
            ]
            for one in told
        },
    }
    path = vectors.with_name(f"{collection}.json")
    path.write_text(json.dumps(given))
    command = [str(python), str(PROGRAM), str(path), str(vectors)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise PeerMissing(f"mem0 failed: {done.stderr.strip().splitlines()[-1:]}")
    return Enacted(**json.loads(done.stdout.splitlines()[-1]))


def _kept(told: Story, place: int | None) -> str | None:
    return None if place is None else embedded_text(told.memories[place].speaker, told.memories[place].text)


def run(people: int = PEOPLE, messages: int = MESSAGES) -> tuple[dict[str, list[Enacted]], dict[str, str]]:
    """What each contender did in each round, and who was left out and why."""
    settings = Settings()
    told = stories(read_chitchat(people), messages)
    embedder = EmbeddedOnce(MiniLM(threads=2))
    texts = texts_of(told)
    embedder.prepare(texts, 2)
    rounds: dict[str, list[Enacted]] = {}
    left_out: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="somabrain-bench-") as directory,
        scratch_database(settings, "bench") as database,
        scratch_database(settings, "bench") as learning,
        scratch_database(settings, "bench") as others,
    ):
        vectors = Path(directory) / "vectors.npz"
        np.savez(vectors, texts=np.array(texts), vectors=embedder.embed(texts))

        def each(work: Callable[[Story], Enacted], group: Sequence[Story], number: int) -> Enacted:
            return _joined([work(one) for one in group])

        def by_mem0(hnsw: bool, group: Sequence[Story], number: int) -> Enacted:
            return mem0(others.url, group, vectors, f"mem0_{number}_{hnsw}", hnsw=hnsw)

        contenders: dict[str, Callable[[Sequence[Story], int], Enacted]] = {
            HERE: partial(each, partial(here, database, embedder, settings, learns=False)),
            LEARNING: partial(each, partial(here, learning, embedder, settings, learns=True)),
            BARE: partial(each, partial(bare, others, embedder)),
            MEM0: partial(by_mem0, True),
            EXACT: partial(by_mem0, False),
        }
        for number in range(REPEATS):
            group = told[number::REPEATS]
            for name, work in contenders.items():
                if name in left_out:
                    continue
                try:
                    enacted = work(group, number)
                except PeerMissing as error:
                    left_out[name] = str(error)
                    rounds.pop(name, None)
                    print(f"{name} left out: {error}", flush=True)
                    continue
                rounds.setdefault(name, []).append(enacted)
                print(
                    f"{name}: search {1000 * np.median(enacted.searched):.1f} ms, right "
                    f"{np.mean(enacted.right):.1%} of {len(enacted.right)}",
                    flush=True,
                )
    return rounds, left_out


def _joined(parts: Sequence[Enacted]) -> Enacted:
    return Enacted(
        [value for part in parts for value in part.searched],
        [value for part in parts for value in part.added],
        [value for part in parts for value in part.right],
    )


def figures(rounds: Mapping[str, Sequence[Enacted]]) -> Figures:
    """Speed and quality of each, side by side."""
    questions = sum(len(one.right) for one in rounds[HERE])
    return Figures(
        f"Memory that grows message by message, asked {questions:,} times which message this one answers",
        ("", "search, ms", "keep one, ms", "right at first"),
        [
            (
                name,
                str(Spread.of([1000 * float(np.median(one.searched)) for one in held])),
                str(Spread.of([1000 * float(np.median(one.added)) for one in held])),
                f"{right_of(held):.1%}",
            )
            for name, held in rounds.items()
        ],
    )


def right_of(rounds: Sequence[Enacted]) -> float:
    """The share of questions whose first hit was right."""
    return float(np.mean([one for held in rounds for one in held.right]))


def claims(rounds: Mapping[str, Sequence[Enacted]]) -> dict[str, bool]:
    """What is asked of it."""
    theirs = [name for name in (MEM0, EXACT) if name in rounds]
    best = max((right_of(rounds[name]) for name in theirs), default=0.0)
    ours = {name: right_of(rounds[name]) for name in (HERE, LEARNING)}
    return (
        {
            f"recall that learns from each answer finds the right message first {ours[LEARNING]:.1%} of the "
            f"time, at the starting weights {ours[HERE]:.1%}, mem0 {best:.1%}": ours[LEARNING] > ours[HERE]
            and ours[LEARNING] > best
        }
        if theirs
        else {}
    )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    given = parser.parse_args()
    rounds, left_out = run(given.people, given.messages)
    raw = {name: [asdict(one) for one in held] for name, held in rounds.items()}
    write_report(
        REPORT, [figures(rounds)], claims(rounds), versions=versions(), left_out=left_out, rounds=raw
    )


if __name__ == "__main__":
    main()
