"""The scales that ship, measured: `python -m benchmarks.scales`.

Each feature is divided by its pooled standard deviation within a recall. Measured are recalls by people of
the BYU Chit-Chat data on their own conversations, each as of the question's own time. The 24 people with the
most conversations are left out: theirs are the questions on which `make evidence` judges what was learned.
"""

import argparse
import sys

import numpy as np

from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.half_life import measured_scales
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.evidence import PEOPLE
from somabrain_dagster.operations.reenactment import Plan, Reenacted, reenact, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.settings import Settings

LAST = 100
"""The last of the people, by how many conversations they have."""

PLAN = Plan(memories=600, feedback=1, held_out=20)
"""Weights decide nothing here: what is a candidate, and its features, is the same under any."""

HALF_LIFE = 3600.0


def scales_of(reenacted: list[Reenacted], half_life_seconds: float) -> list[float]:
    """The scales over all recalls, whatever scales they were logged with."""
    asked = [one.held_out for one in reenacted]
    scales: list[float] = measured_scales(
        np.concatenate([one.held_out.questions.features * np.array(one.scales.values) for one in reenacted]),
        np.concatenate([one.ages for one in asked]),
        np.concatenate([one.questions.lengths for one in asked]),
        half_life_seconds,
    ).tolist()
    return scales


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", type=int, default=LAST - PEOPLE, help="how many, behind the first 24")
    parser.add_argument("--half-life", type=float, default=HALF_LIFE, help="of recency, in seconds")
    arguments = parser.parse_args()
    settings = Settings()
    told = stories(read_chitchat(PEOPLE + arguments.people), PLAN.memories)[PEOPLE:]

    def progress(what: str, done: int, total: int | None) -> None:
        print(f"\r{what} {done:,} of {total or done:,}    ", end="", file=sys.stderr, flush=True)

    with scratch_database(settings, "scales") as database:
        reenacted = reenact(database, MiniLM(threads=1), settings, told, PLAN, progress=progress)
    lengths = np.concatenate([one.held_out.questions.lengths for one in reenacted])
    print(
        f"\n{len(lengths):,} recalls of {len(reenacted)} people, {lengths.mean():.0f} candidates each, "
        f"half-life {arguments.half_life:g} s"
    )
    halves = reenacted[::2], reenacted[1::2]
    whole, *parts = (scales_of(list(some), arguments.half_life) for some in (reenacted, *halves))
    print("feature       scale   of every other person, of the others")
    for feature, scale, *apart in zip(FEATURES, whole, *parts, strict=True):
        print(f"{feature.name:9} {scale:9.6f}   " + "  ".join(f"{each:9.6f}" for each in apart))


if __name__ == "__main__":
    main()
