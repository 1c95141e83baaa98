"""How fast memories are recalled, beside the bare pgvector query: `python -m benchmarks.recall`.

The memories are messages of the BYU Chit-Chat data with their real embeddings, cut into 100 tenants of equal
size. There are 20,000 different ones: a greater number of memories repeats them, each time as other memories
of another tenant; no tenant has one twice. The questions are later messages, embedded beforehand: what it
takes to embed one is told apart. Embeddings are kept under SOMABRAIN_HOME.

The floor is the ten nearest memories of a tenant by pgvector alone, nothing weighed and nothing logged, in a
transaction of the tables' owner. Writes reports/bench-recall.json.

`--threshold` finds from how many memories on an index is worth its place: one tenant of each size, searched
exactly and then by an index.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.embedding import Rate, embedding_rates
from benchmarks.report import Figures, write_report
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.memory.embedding import MiniLM, Vectors, spoken
from somabrain_dagster.memory.indexes import promote
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.vectors import as_text
from somabrain_dagster.operations.chitchat import Message, read_chitchat
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.embedding_models import EmbeddingModel, adopt_model
from somabrain_dagster.store.recalls import EF_SEARCH, SIMILAR, Backend, distance_by

REPORT = Path("reports/bench-recall.json")
SIZES = (1000, 100_000, 1_000_000)
TENANTS = 100
DIFFERENT = 20_000
QUESTIONS = 200
CHUNK = 2000
"""Texts that are embedded, and memories that are written, together."""

CLIENTS = 4
SCAN = f"-c hnsw.iterative_scan=strict_order -c hnsw.ef_search={EF_SEARCH} -c enable_sort=off"
"""The bare query by an index is planned as the library's is; an exact one sorts whatever it is told."""
THRESHOLD_SIZES = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


@dataclass(frozen=True)
class Corpus:
    """Messages with their vectors, shape (n, 384), and questions with theirs."""

    messages: Sequence[Message]
    vectors: Vectors
    questions: Sequence[str]
    question_vectors: Vectors


def read_corpus(home: Path, different: int) -> Corpus:
    """The first messages of the data, each text of a speaker once, and as questions those that follow."""
    distinct: dict[str, Message] = {}
    for conversation in read_chitchat(1).conversations:
        for message in conversation.messages:
            distinct.setdefault(spoken(message.speaker, message.text), message)
    spoken_texts, messages = list(distinct), list(distinct.values())
    later = slice(different, different + QUESTIONS)
    minilm = MiniLM()
    path = home / "benchmarks" / f"chitchat-{minilm.digest[:12]}-{different}.npy"
    if path.exists():
        vectors = np.load(path)
    else:
        vectors = embed(minilm, spoken_texts[:different])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    questions = [message.text for message in messages[later]]
    return Corpus(messages[:different], vectors, questions, minilm.embed(questions))


def embed(minilm: MiniLM, texts: Sequence[str]) -> Vectors:
    vectors = np.empty((len(texts), minilm.dimension), dtype=np.float32)
    for start in range(0, len(texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        vectors[chunk] = minilm.embed(texts[chunk])
        print(f"\rembedded {start} of {len(texts)}", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    return vectors


def load(database: Database, corpus: Corpus, sizes: Sequence[int]) -> list[str]:
    """One tenant for each size; the messages are dealt out in order and, when used up, from the start."""
    tenants = [f"tenant-{place:03}" for place in range(len(sizes))]
    with database.as_operator() as connection:
        create_tenants(connection, tenants, LearningConfiguration())
    with database.as_owner() as connection:
        connection.execute(
            "CREATE UNLOGGED TABLE dealt (n int PRIMARY KEY, at timestamptz, speaker text, text text, "
            "embedding vector)"
        )
        with connection.cursor().copy("COPY dealt FROM STDIN") as copy:
            for n, (message, vector) in enumerate(zip(corpus.messages, corpus.vectors, strict=True)):
                copy.write_row((n, message.occurred_at, message.speaker, message.text, as_text(vector)))
        connection.execute("GRANT SELECT ON dealt TO somabrain_tenant")
    start = 0
    for tenant_id, size in zip(tenants, sizes, strict=True):
        with database.as_tenants([tenant_id]) as connection:
            model_id = adopt_model(
                connection, [tenant_id], EmbeddingModel(MiniLM.name, MiniLM.dimension, MiniLM.digest)
            )
            connection.execute(
                """
                INSERT INTO memories (
                    tenant_id, occurred_at, speaker, text, content_digest, embedding, model_id
                )
                SELECT %s, at, speaker, text, sha256(int4send(g)), embedding, %s
                FROM generate_series(%s::int, %s::int) AS g JOIN dealt ON n = g %% %s ORDER BY g
                """,
                (tenant_id, model_id, start, start + size - 1, len(corpus.messages)),
            )
        start += size
    with database.as_owner() as connection:
        connection.execute("ANALYZE memories")
    return tenants


def timed(calls: Sequence[Callable[[], object]]) -> NDArray[np.float64]:
    """Milliseconds of each call, one after the other."""
    taken = []
    for call in calls:
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return np.array(taken)


@dataclass(frozen=True)
class Measured:
    """p50 and p95 of one client, ms, and the calls that several make in a second."""

    p50: float
    p95: float
    per_second: float

    def __str__(self) -> str:
        return f"{self.p50:8.1f} {self.p95:8.1f} {self.per_second:8.0f}"

    @property
    def cells(self) -> tuple[str, str]:
        """As a report has it."""
        return f"{self.p50:.1f} / {self.p95:.1f}", f"{self.per_second:,.0f}"


def measure(calls: Sequence[Callable[[], object]]) -> Measured:
    timed(calls[: len(calls) // 4])
    p50, p95 = np.quantile(timed(calls), [0.5, 0.95])
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [clients.submit(call) for call in calls]:
            done.result()
    return Measured(float(p50), float(p95), len(calls) / (time.perf_counter() - start))


class Bench:
    """The library's recall and the bare query, over the same database."""

    def __init__(
        self, database: Database, bare_database: Database, corpus: Corpus, settings: Settings
    ) -> None:
        self.bare_database = bare_database
        self.corpus = corpus
        self.memories = Memories(database, MiniLM(threads=1), settings)

    def recalls(self, tenants: Sequence[str], backend: Backend) -> list[Callable[[], object]]:
        """Recalls by the library, each of which must be served by this backend."""

        def recall(tenant_id: str, place: int) -> None:
            vector = tuple(self.corpus.question_vectors[place].tolist())
            text = self.corpus.questions[place]
            made = self.memories.recall(Query(tenant_id=tenant_id, text=text, embedding=vector))
            assert made.cleanup_backend == backend, made.cleanup_backend

        return self._dealt(recall, tenants)

    def bare(self, tenants: Sequence[str], backend: Backend) -> list[Callable[[], object]]:
        """Pgvector alone: the ten nearest memories of a tenant, nothing weighed, nothing logged."""
        distance = distance_by(backend, MiniLM.dimension)
        query = f"""
            SELECT memory_id FROM memories m WHERE tenant_id = %(tenant_id)s ORDER BY {distance} LIMIT 10
        """  # noqa: S608 — the distance is made of constants

        def search(tenant_id: str, place: int) -> None:
            question = as_text(self.corpus.question_vectors[place])
            with self.bare_database.as_owner() as connection:
                found = connection.execute(query.encode(), {"tenant_id": tenant_id, "embedding": question})
                assert found.rowcount == 10

        return self._dealt(search, tenants)

    def _dealt(self, call: Callable[[str, int], None], tenants: Sequence[str]) -> list[Callable[[], object]]:
        """One call a question, the tenants taking turns."""
        turns = islice(cycle(tenants), len(self.corpus.questions))
        return [partial(call, tenant_id, place) for place, tenant_id in enumerate(turns)]


@dataclass(frozen=True)
class Row:
    """What was measured of one size and one index; `recall` beside its floor."""

    memories: int
    a_tenant: int
    backend: Backend
    bare: Measured
    recall: Measured


def by_size(settings: Settings, corpus: Corpus, size: int, promoted: int) -> list[Row]:
    with scratch_database(settings, "bench") as database, Database(database.url, options=SCAN) as bare:
        start = time.perf_counter()
        tenants = load(database, corpus, [size // TENANTS] * TENANTS)
        print(f"{size:9,} memories, loaded in {time.perf_counter() - start:.0f} s", flush=True)
        bench = Bench(database, bare, corpus, settings)
        rows = [compared(size, bench, tenants, "exact")]
        # With fewer memories a search by an index is always followed by an exact one.
        if promoted and size // TENANTS > SIMILAR:
            large = tenants[:promoted]
            start = time.perf_counter()
            for tenant_id in large:
                promote(database, tenant_id, actor="benchmark")
            print(f"    {promoted} tenants promoted in {time.perf_counter() - start:.1f} s")
            rows.append(compared(size, bench, large, "hnsw"))
    return rows


def compared(size: int, bench: Bench, tenants: Sequence[str], backend: Backend) -> Row:
    measured = {}
    for what, calls in (("bare", bench.bare(tenants, backend)), ("recall", bench.recalls(tenants, backend))):
        measured[what] = measure(calls)
        print(f"    {backend:6} {what:7} {measured[what]}", flush=True)
    return Row(size, size // TENANTS, backend, **measured)


def threshold(settings: Settings, sizes: Sequence[int]) -> None:
    corpus = read_corpus(settings.home, sum(sizes))
    with scratch_database(settings, "bench") as database, Database(database.url, options=SCAN) as bare:
        tenants = load(database, corpus, sizes)
        bench = Bench(database, bare, corpus, settings)
        print("                        exact                        hnsw")
        print("memories  bare p50, p95  recall p50, p95   bare p50, p95  recall p50, p95   moved in, locked")
        for tenant_id, size in zip(tenants, sizes, strict=True):
            exact = [measure(bench.bare([tenant_id], "exact")), measure(bench.recalls([tenant_id], "exact"))]
            made = promote(database, tenant_id, actor="benchmark")
            hnsw = [measure(bench.bare([tenant_id], "hnsw")), measure(bench.recalls([tenant_id], "hnsw"))]
            figures = "   ".join(f"{each.p50:6.1f} {each.p95:6.1f}" for each in (*exact, *hnsw))
            print(
                f"{size:8,}  {figures}   {made.seconds:6.1f} {made.locked_seconds:6.2f} s"
                f"   recall@10 {made.proof.recall_at_10:.4f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES, help="memories over 100 tenants")
    parser.add_argument("--promoted", type=int, default=5, help="tenants to measure by an index as well")
    parser.add_argument(
        "--threshold", type=int, nargs="*", help="measure the threshold alone, at these sizes"
    )
    arguments = parser.parse_args()
    settings = Settings()
    if arguments.threshold is not None:
        threshold(settings, arguments.threshold or THRESHOLD_SIZES)
        return
    load_before = os.getloadavg()[0]
    embedding = embedding_rates()
    corpus = read_corpus(settings.home, DIFFERENT)
    print(f"                       p50 ms   p95 ms     QPS of {CLIENTS} clients")
    rows = [row for size in arguments.sizes for row in by_size(settings, corpus, size, arguments.promoted)]
    tell(settings, load_before, embedding, rows)


def tell(settings: Settings, load_before: float, embedding: Sequence[Rate], rows: Sequence[Row]) -> None:
    """Write the report and print it."""
    with scratch_database(settings, "bench") as database, database.as_owner() as connection:
        ((postgres, pgvector),) = connection.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchall()
    write_report(
        REPORT,
        [
            Figures(
                f"Recall beside the bare query, {TENANTS} tenants of equal size; QPS of {CLIENTS} clients",
                (
                    "memories",
                    "a tenant",
                    "index",
                    "bare p50 / p95 ms",
                    "QPS",
                    "recall p50 / p95 ms",
                    "QPS",
                ),
                [
                    (
                        f"{row.memories:,}",
                        f"{row.a_tenant:,}",
                        row.backend,
                        *row.bare.cells,
                        *row.recall.cells,
                    )
                    for row in rows
                ],
            ),
            Figures(
                "Embedding, 1,000 messages of the same data",
                ("threads", "texts a second", "one text alone p50 / p95 ms"),
                [
                    (str(rate.threads), f"{rate.texts_per_second:,.0f}", f"{rate.p50:.1f} / {rate.p95:.1f}")
                    for rate in embedding
                ],
            ),
        ],
        {},
        packages=("numpy", "onnxruntime", "psycopg"),
        versions={"PostgreSQL": postgres, "pgvector": pgvector, "model": MiniLM.name},
        load={"before": load_before, "after": os.getloadavg()[0]},
        different_texts=DIFFERENT,
        questions=QUESTIONS,
        embedding=[asdict(rate) for rate in embedding],
        recall=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
