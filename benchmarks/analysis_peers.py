"""gbstats and pymannkendall on numbers of ours, in an environment that has them and not this project.

`python analysis_peers.py numbers.npz repeats` prints JSON: timings, gbstats' p-values and false alarms.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pymannkendall
from gbstats.frequentist.tests import FrequentistConfig, TwoSidedTTest
from gbstats.models.statistics import SampleMeanStatistic

ALPHA = 0.05

Result = TypeVar("Result")


def timed(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def tested(test: Callable[[Any], Any], rows: Any) -> list[Any]:
    return [test(series) for series in rows]


def main() -> None:
    given, repeats = np.load(sys.argv[1]), int(sys.argv[2])
    experiments, values, noise = given["experiments"], given["values"], given["noise"]

    def statistics(sessions: Any) -> Any:
        return SampleMeanStatistic(n=len(sessions), sum=sessions.sum(), sum_squares=(sessions**2).sum())

    samples = [(statistics(control), statistics(treatment)) for control, treatment in experiments]
    config = FrequentistConfig(difference_type="absolute")
    seconds, found = timed(
        lambda: [TwoSidedTTest(a, b, config).compute_result() for a, b in samples], repeats
    )
    part = f"{len(experiments):,} experiments"
    timings = [
        {"part": part, "who": "gbstats", "what": "Welch and interval, from moments", "seconds": seconds}
    ]
    alarms = {}
    for test in (pymannkendall.original_test, pymannkendall.hamed_rao_modification_test):
        name = f"pymannkendall.{test.__name__}"
        seconds, _ = timed(partial(tested, test, values), repeats)
        part = f"{values.shape[1]} bins of {len(values)} tenants"
        timings.append({"part": part, "who": "pymannkendall", "what": test.__name__, "seconds": seconds})
        alarms[name] = float(np.mean([one.p < ALPHA for one in tested(test, noise)]))
    print(json.dumps({"timings": timings, "p": [one.p_value for one in found], "false_alarms": alarms}))


if __name__ == "__main__":
    main()
