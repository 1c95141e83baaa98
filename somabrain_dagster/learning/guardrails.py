"""Guardrails: how requests went for the tenants of a canary, held against the others'.

A request is answered or fails by no fault of the client, and takes its time, which is counted in a histogram
with the same edges everywhere: counts of several processes, minutes and tenants add up.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from somabrain_dagster.learning.gates import Gate

LATENCY_EDGES = tuple(0.001 * 2 ** (k / 2) for k in range(31))
"""Seconds, the upper edge of each bin, 1 ms to 33 s; what takes longer is in one bin more. Each is √2 of the
one before, finer than metrics for the eye need: a limit of half as much again must not fall inside one bin.
Counts are stored by these edges and say nothing under others."""

ERROR_RATE, LATENCY_P95 = "error_rate", "latency_p95"


def latency_bin(seconds: float) -> int:
    """The place of the bin in which a request of this length is counted: seconds ≤ its edge."""
    return bisect_left(LATENCY_EDGES, seconds)


@dataclass(frozen=True)
class GuardrailRule:
    """What a canary's tenants may suffer.

    Attributes:
        error_margin: by how much their share of failed requests may exceed the others'.
        latency_factor: how many times as long as the others' their 95th percentile may be.
        requests: how many each group must have made for either to count as measured.
    """

    error_margin: float = 0.01
    latency_factor: float = 1.5
    requests: int = 200


@dataclass(frozen=True)
class RequestCounts:
    """How the requests of a group of tenants went.

    Attributes:
        requests: how many there were.
        errors: how many of them failed.
        latencies: how many fell into each bin, one more than there are edges.
    """

    requests: int
    errors: int
    latencies: tuple[int, ...]

    @property
    def error_rate(self) -> float:
        """The share that failed; NaN without any request."""
        return self.errors / self.requests if self.requests else nan

    def latency(self, share: float) -> float:
        """The quantile of the latencies, in seconds; NaN without any request. See `quantile`."""
        return quantile(self.latencies, share)


def quantile(counts: Sequence[int], share: float) -> float:
    """A quantile from a histogram, interpolated within its bin, as if values were spread evenly over it.

    The first bin begins at 0. What lies beyond the last edge counts as that edge, so it is at least as much.

    Args:
        counts: of each bin, one more than there are edges.
        share: in (0, 1].
    """
    wanted = share * sum(counts)
    if not wanted:
        return nan
    below = 0
    for place, edge in enumerate(LATENCY_EDGES):
        if below + counts[place] >= wanted:
            bottom = LATENCY_EDGES[place - 1] if place else 0.0
            return bottom + (edge - bottom) * (wanted - below) / counts[place]
        below += counts[place]
    return LATENCY_EDGES[-1]


def gates(canary: RequestCounts, control: RequestCounts, rule: GuardrailRule) -> dict[str, Gate]:
    """The gates of the error rate and of the 95th percentile, in seconds, by name.

    Where either group has made too few requests the gates have no measurement: they are missing, and what is
    missing never passes.
    """
    measured = min(canary.requests, control.requests) >= rule.requests
    found = {
        ERROR_RATE: (canary.error_rate, control.error_rate + rule.error_margin),
        LATENCY_P95: (canary.latency(0.95), control.latency(0.95) * rule.latency_factor),
    }
    return {
        name: Gate(name, value, "≤", limit) if measured else Gate(name, nan, "≤", nan)
        for name, (value, limit) in found.items()
    }
