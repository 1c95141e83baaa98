"""How long a million weight changes of ten weights take to fold: `python benchmarks/fold.py`.

The changes are generated: only their number and shape matter here. All three ways must agree, or it fails.
"""

import time
from collections.abc import Callable

import numpy as np

from somabrain_dagster.learning.shifts import Shifts, apply, fold, reduce_segments, scan_segments
from somabrain_dagster.learning.weights import NANO, WEIGHTS, Nanos

EVENTS = 1_000_000
K = len(WEIGHTS)
REPEATS = 3


def generated_changes() -> Shifts:
    low = np.full((EVENTS, K), -5 * NANO, dtype=np.int64)
    return Shifts(np.random.default_rng(0).integers(-NANO // 10, NANO // 10, (EVENTS, K)), low, -low)


def timed(work: Callable[[], Nanos], repeats: int) -> tuple[float, Nanos]:
    """The best of some runs, in seconds, and what the last gave."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def main() -> None:
    shifts = generated_changes()
    print(f"{EVENTS:,} changes × {K} weights, best of {REPEATS}, seconds\n")
    print(f"{'tenants':>9} {'reduce':>8} {'scan':>8}")
    for tenants in (1, 100, 10_000, EVENTS):
        lengths = np.full(tenants, EVENTS // tenants)
        start = np.zeros((tenants, K), dtype=np.int64)
        ends = np.cumsum(lengths) - 1

        def reduced(lengths: Nanos = lengths, start: Nanos = start) -> Nanos:
            return apply(reduce_segments(shifts, lengths), start)

        def scanned(lengths: Nanos = lengths, start: Nanos = start) -> Nanos:
            return scan_segments(shifts, lengths, start)

        reduce_seconds, weights = timed(reduced, REPEATS)
        scan_seconds, after = timed(scanned, REPEATS)
        if not np.array_equal(weights, after[ends]):
            raise SystemExit("reduce and scan disagree")
        print(f"{tenants:>9,} {reduce_seconds:>8.2f} {scan_seconds:>8.2f}")
        if tenants == 1:
            one_tenant = weights[0]

    seconds, weights = timed(lambda: fold(shifts, np.zeros(K, dtype=np.int64)), 1)
    if not np.array_equal(weights, one_tenant):
        raise SystemExit("the plain left fold disagrees")
    print(f"\nplain left fold, one tenant, once: {seconds:.2f}")


if __name__ == "__main__":
    main()
