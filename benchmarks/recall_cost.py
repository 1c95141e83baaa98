"""Where the time of a recall goes: `python -m benchmarks.recall_cost`.

A person's real messages (BYU Chit-Chat) are kept and asked about as in `benchmarks.conversing`; then all
questions are asked again of the whole memory, with vectors that are looked up. The parts are the profiler's
shares of the wall, so waiting for the server counts where it is waited for.
"""

import cProfile
import pstats
import time
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.conversing import MESSAGES, answers_of, here, texts_of
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import EmbeddedOnce, question, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings

ROUNDS = 5
PARTS = {
    "the tenant: weights, model, scales, index": ("ask",),
    "what is on trial": ("read_trials",),
    "candidates: by meaning, words, time, links": ("find_candidates",),
    "features, weights, order": ("consider",),
    "τ: lock, the window's vectors": ("recollect",),
    "τ: diversity, step, hash": ("steer",),
    "log, state and texts, in one pipeline": ("log_recall", "write_steering", "read_bodies"),
    "hits put together": ("hit",),
}


def parts_of(profile: cProfile.Profile, recalls: int) -> Mapping[str, float]:
    """Milliseconds a recall of each part; the rest is connection, transaction and commit."""
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    shares = {part: sum(found[name].cumtime for name in names) for part, names in PARTS.items()}
    shares["connection, transaction, commit, and the pipeline's end"] = found["recall"].cumtime - sum(
        shares.values()
    )
    return {part: 1000 * seconds / recalls for part, seconds in shares.items()}


def main() -> None:
    """Measure and print the table."""
    settings = Settings()
    (told, *_) = stories(read_chitchat(1), MESSAGES)
    embedder = EmbeddedOnce(MiniLM(threads=2))
    embedder.prepare(texts_of([told]), 2)
    with scratch_database(settings, "bench") as database:
        here(database, embedder, settings, told, learns=False)
        room = Memories(database, embedder, settings)
        questions = [question(told.memories[place]) for place in sorted(answers_of(told))]
        walls = []
        for _ in range(ROUNDS):
            for query in questions:
                began = time.perf_counter()
                room.recall(query)
                walls.append(time.perf_counter() - began)
        with cProfile.Profile() as profile:
            for query in questions:
                room.recall(query)
    table = Table("ms of a recall", "", box=None)
    for part, milliseconds in parts_of(profile, len(questions)).items():
        table.add_row(part, f"{milliseconds:.2f}")
    Console().print(table)
    median = 1000 * float(np.median(walls))
    print(f"{len(told.memories)} memories; {median:.1f} ms at the median where nobody profiles")


if __name__ == "__main__":
    main()
