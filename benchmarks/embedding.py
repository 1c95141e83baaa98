"""How many texts a second the bundled embedder reads: `python -m benchmarks.embedding`.

The texts are messages of the BYU Chit-Chat data (package `chitchat-dataset`), drawn with a fixed seed.
"""

import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from somabrain_dagster.memory.embedding import MiniLM


def messages() -> list[str]:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install the real messages first: pip install 'somabrain-dagster[demo]'")
    conversations = json.loads((Path(spec.submodule_search_locations[0]) / "dataset.json").read_text())
    return [
        message["text"]
        for conversation in conversations.values()
        for turn in conversation["messages"]
        for message in turn
    ]


@dataclass(frozen=True)
class Rate:
    """Texts a second in bulk, and p50 and p95 of one text alone, ms, on so many threads."""

    threads: int
    texts_per_second: float
    p50: float
    p95: float


def embedding_rates(count: int = 1000, queries: int = 200) -> list[Rate]:
    texts = np.random.default_rng(0).choice(messages(), count, replace=False).tolist()
    rates = []
    for threads in (1, 2):
        minilm = MiniLM(threads=threads)
        minilm.embed(texts[:50])
        start = time.perf_counter()
        minilm.embed(texts)
        per_second = count / (time.perf_counter() - start)
        latencies = []
        for text in texts[:queries]:
            start = time.perf_counter()
            minilm.embed([text])
            latencies.append(time.perf_counter() - start)
        p50, p95 = 1000 * np.quantile(latencies, [0.5, 0.95])
        rates.append(Rate(threads, per_second, float(p50), float(p95)))
        print(
            f"{threads} threads: {per_second:6.0f} texts/s of {count}; "
            f"one text p50 {p50:.1f} ms, p95 {p95:.1f} ms",
            flush=True,
        )
    return rates


if __name__ == "__main__":
    embedding_rates()
