"""How long results take to analyse, beside scipy on the same numbers: `python benchmarks/analysis.py`.

The numbers are generated: only how many there are matters here. What scipy gives must agree, or it fails.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy.stats import kendalltau, theilslopes, ttest_ind

from somabrain_dagster.learning.experiments import Analysis, Arm, Plan, analyse, sample_size
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.multiplicity import lord_levels
from somabrain_dagster.learning.trends import (
    JudgedTrend,
    Series,
    TrendRule,
    coarsened,
    judge,
    session_means,
    trend,
)

EXPERIMENTS = 1_000
TENANTS = 100
EVENTS = 1_000_000
EVENTS_A_SESSION = 5
REPEATS = 3

Result = TypeVar("Result")


def timed(what: str, work: Callable[[], Result]) -> Result:
    """Print the best of some runs, and return what the last gave."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    print(f"{best:>9.3f} s  {what}")
    return result


def experiments(generator: np.random.Generator) -> None:
    size = sample_size(0.3)
    plan = Plan((Arm("control", 0.5), Arm("treatment", 0.5)), size)
    numbers = generator.normal(size=(EXPERIMENTS, 2, size))
    numbers[:, 1] += generator.choice([0.0, 0.3], EXPERIMENTS)[:, None]

    def moments() -> list[tuple[Moments, Moments]]:
        return [(Moments.of(control), Moments.of(treatment)) for control, treatment in numbers]

    samples = timed(f"moments of {EXPERIMENTS:,} experiments, 2 × {size} sessions each", moments)

    def analyses() -> list[Analysis]:
        return [analyse(plan, {"control": a, "treatment": b}) for a, b in samples]

    found = timed(f"{EXPERIMENTS:,} experiments analysed: Welch, d, g, intervals, SRM, Holm, gates", analyses)
    p = [one.p for one in found]
    timed(f"LORD++ over {EXPERIMENTS:,} experiments in a row", lambda: lord_levels(p))

    def theirs() -> list[float]:
        return [float(ttest_ind(b, a, equal_var=False).pvalue) for a, b in numbers]

    if not np.allclose(timed(f"scipy.stats.ttest_ind of the same {EXPERIMENTS:,}, p alone", theirs), p):
        raise SystemExit("scipy's p-values disagree")


def trends(generator: np.random.Generator) -> None:
    events = EVENTS // TENANTS
    times = np.sort(generator.uniform(0, 90 * 86_400, (TENANTS, events)), axis=1) + 1.5e9
    sessions = np.arange(events) // EVENTS_A_SESSION
    utility = generator.uniform(-1, 1, (TENANTS, events))

    def bins() -> list[Series]:
        return [coarsened(session_means(sessions, *one)) for one in zip(times, utility, strict=True)]

    series = timed(f"{EVENTS:,} events of {TENANTS} tenants to bins", bins)

    def judged() -> tuple[JudgedTrend, ...]:
        return judge([trend(one) for one in series], TrendRule())

    length = len(series[0].values)
    found = timed(f"trends of {TENANTS} tenants, {length} bins each, judged together", judged)

    def theirs() -> list[tuple[float, float]]:
        return [
            (kendalltau(one.times, one.values).pvalue, theilslopes(one.values, one.times).slope)
            for one in series
        ]

    pairs = timed("scipy's kendalltau and theilslopes of the same, uncorrected", theirs)
    if pairs != [(one.trend.uncorrected_p, one.trend.slope) for one in found]:
        raise SystemExit("scipy's trends disagree")


def main() -> None:
    generator = np.random.default_rng(0)
    print(f"best of {REPEATS}")
    experiments(generator)
    trends(generator)


if __name__ == "__main__":
    main()
