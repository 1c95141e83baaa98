"""Trends: whether a tenant's utility rises or falls, judged so that autocorrelation does not pass for one.

A series is one number a session, at the session's own time. Kendall's τ_b gives the p-value p₀ of no trend
between exchangeable numbers, and the Theil–Sen line its slope. With r the lag-1 autocorrelation of the
residuals of that line,

    ρ = clip((n·r + 2) / (n − 4), 0, 0.95)        ν = n·(1 − ρ)/(1 + ρ) − 2, at least 1
    p = 2·T̄_ν( Φ̄⁻¹(p₀/2) / √((1 + ρ)/(1 − ρ)) )

Autocorrelated noise has (1 + ρ)/(1 − ρ) times the variance of independent noise in such statistics (Bayley &
Hammersley 1946), and r is biased downward by about (1 + 4ρ)/n (Kendall 1954): hence ρ. It is an estimate from
what counts as so many fewer independent numbers, so the tail is Student's with as many degrees of freedom
less two (Santer et al. 2000), T̄_ν: by the normal tail a small p is far too small, and small ones are what
the tenants that are judged together come down to. The interval of the slope is widened in the same way, so
that interval and p-value agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.trend_rule import TrendRule

LEAST_BINS = 30
"""A shorter series says too little of its own autocorrelation."""
MOST_BINS = 300
"""The slopes of all pairs are sorted: ten times the bins take a hundred times the room and time."""
LARGEST_AUTOCORRELATION = 0.95
PLACES = 9
"""Means are rounded to these decimal places, so that sums in another order do not break ties."""
LEAST_P = float(np.finfo(np.float64).tiny)
"""What underflows counts as this: a correction by autocorrelation must not start from certainty."""


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers at their times, in the order of time.

    Attributes:
        times: (n,), in any one unit.
        values: (n,).
    """

    times: Floats
    values: Floats


@dataclass(frozen=True)
class Trend:
    """What a series shows.

    Attributes:
        n: how many bins.
        tau: Kendall's τ_b, 0 for a constant series.
        p: of no trend, corrected for autocorrelation.
        uncorrected_p: p₀.
        autocorrelation: ρ.
        slope: Theil–Sen, per unit of time.
        low, high: its 95% interval, corrected for autocorrelation.
        effect: slope · span / standard deviation of the residuals; ±∞ for an exact line.
    """

    n: int
    tau: float
    p: float
    uncorrected_p: float
    autocorrelation: float
    slope: float
    low: float
    high: float
    effect: float


@dataclass(frozen=True)
class JudgedTrend:
    """A trend among those of other tenants.

    Attributes:
        trend: what was found.
        q: its p-value by Benjamini & Hochberg (1995).
        gates: `q` and `effect`.
    """

    trend: Trend
    q: float
    gates: tuple[Gate, ...]

    @property
    def direction(self) -> int:
        """1 or −1 where the trend is to be acted upon, rising or falling; else 0."""
        return int(np.sign(self.trend.slope)) if all(gate.passed for gate in self.gates) else 0


def session_means(sessions: NDArray[np.generic], times: Floats, values: Floats) -> Series:
    """One bin a session: the mean value at the mean time, in the order of time.

    Args:
        sessions: whose event it is, (N,).
        times: of the events, (N,).
        values: utility, (N,).
    """
    _, labels = np.unique(sessions, return_inverse=True)
    return _means(labels, times, values)


def ordered(times: Floats, means: Floats) -> Series:
    """Means that were taken elsewhere, in any order, as a series: one bin each, rounded as ours are.

    Args:
        times: (n,), in any one unit.
        means: (n,).
    """
    return _means(np.arange(len(times)), times, means)


def time_bins(series: Series, width: float) -> Series:
    """The means of bins of equal width from the first time on; empty bins are dropped, true times kept."""
    if len(series.times) == 0:
        return series
    _, labels = np.unique(np.floor((series.times - series.times[0]) / width), return_inverse=True)
    return _means(labels, series.times, series.values)


def coarsened(series: Series, most: int = MOST_BINS) -> Series:
    """The means of at most `most` runs of neighbours, as equal in length as can be; shorter series stay."""
    n = len(series.times)
    return series if n <= most else _means(np.arange(n) * most // n, series.times, series.values)


def shows_trends(series: Series) -> bool:
    """Whether a trend could be told from a series: it has bins enough, and not all of them at one time."""
    return len(series.times) >= LEAST_BINS and bool(np.ptp(series.times) > 0)


def trend(series: Series) -> Trend:
    """The trend of one series.

    Raises:
        ValueError: it has fewer than `LEAST_BINS` or more than `MOST_BINS` bins, all at one time, or values
            that are not finite.
    """
    n = len(series.values)
    if not LEAST_BINS <= n <= MOST_BINS:
        raise ValueError(
            f"a trend needs {LEAST_BINS} to {MOST_BINS} bins, not {n}: bin more coarsely or wait"
        )
    if not (np.isfinite(series.times).all() and np.isfinite(series.values).all()):
        raise ValueError("times and values must be finite")
    span = float(series.times.max() - series.times.min())
    if span == 0:
        raise ValueError("all bins are at the same time")
    if (series.values == series.values[0]).all():
        return Trend(n, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    tau, uncorrected_p = scipy.stats.kendalltau(series.times, series.values)
    slope, intercept, _, _ = scipy.stats.theilslopes(series.values, series.times)
    residuals = series.values - (intercept + slope * series.times)
    rho = autocorrelation(residuals)
    inflation = np.sqrt((1 + rho) / (1 - rho))
    degrees = max(n / inflation**2 - 2, 1.0)
    # Given as a tail, not as a confidence: that would round to 1. One that underflows is no tail at all.
    tails = max(2 * float(scipy.special.ndtr(scipy.special.stdtrit(degrees, 0.025) * inflation)), LEAST_P)
    _, _, low, high = scipy.stats.theilslopes(series.values, series.times, alpha=tails)
    deviate = scipy.special.ndtri(max(uncorrected_p, LEAST_P) / 2)
    return Trend(
        n=n,
        tau=float(tau),
        p=2 * float(scipy.special.stdtr(degrees, deviate / inflation)),
        uncorrected_p=float(uncorrected_p),
        autocorrelation=rho,
        slope=float(slope),
        low=float(low),
        high=float(high),
        effect=_ratio(slope * span, residuals.std(ddof=2)),
    )


def trend_line(series: Series, slope: float, times: Floats) -> Floats:
    """The Theil–Sen line of a slope at these times (m,): it goes through the medians of times and values."""
    return np.asarray(np.median(series.values) + slope * (times - np.median(series.times)))


def autocorrelation(residuals: Floats) -> float:
    """ρ of residuals (n,): their lag-1 autocorrelation, without its bias, in [0, 0.95]."""
    n = len(residuals)
    deviations = residuals - residuals.mean()
    squares = float(deviations @ deviations)
    lagged = float(deviations[1:] @ deviations[:-1]) / squares if squares > 0 else 0.0
    return float(np.clip((n * lagged + 2) / (n - 4), 0.0, LARGEST_AUTOCORRELATION))


def judge(trends: Sequence[Trend], rule: TrendRule) -> tuple[JudgedTrend, ...]:
    """The trends of several tenants, one each, judged together."""
    if not trends:
        return ()
    q = scipy.stats.false_discovery_control([found.p for found in trends])
    return tuple(
        JudgedTrend(
            found,
            float(adjusted),
            (
                Gate("q", float(adjusted), "<", rule.false_discovery_rate),
                Gate("effect", abs(found.effect), "≥", rule.effect),
            ),
        )
        for found, adjusted in zip(trends, q, strict=True)
    )


def _means(labels: NDArray[np.intp], times: Floats, values: Floats) -> Series:
    counts = np.bincount(labels)
    # From the first time on: sums of epoch seconds would lose what lies between them.
    origin = times[0] if len(times) else 0.0
    means = origin + np.bincount(labels, times - origin) / counts
    order = np.argsort(means, kind="stable")
    return Series(means[order], np.round(np.bincount(labels, values) / counts, PLACES)[order])


def _ratio(change: float, deviation: float) -> float:
    if change == 0:
        return 0.0
    return float(change / deviation) if deviation > 0 else float(np.copysign(np.inf, change))
