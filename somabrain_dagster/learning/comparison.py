"""Comparison of two means without equal variances: Welch's test, and effect sizes that go with it.

    t = (x̄_b − x̄_a) / √(s²_a/n_a + s²_b/n_b)            df: Welch–Satterthwaite
    d = (x̄_b − x̄_a) / √((s²_a + s²_b)/2)                g = J(df_d) · d
    df_d = (n_a−1)(n_b−1)(s²_a+s²_b)² / ((n_b−1)s⁴_a + (n_a−1)s⁴_b)

The interval of d inverts the noncentral t distribution at Welch's t with df_d: Delacre, Lakens, Ley, Liu &
Leys, "Why Hedges' g*s based on the non-pooled standard deviation should be reported with Welch's t-test"
(2021). J is Hedges' exact correction for bias.
"""

from dataclasses import dataclass
from math import exp, sqrt

import scipy

from somabrain_dagster.learning.moments import Moments

LEAST_DEVIATION = 1e-9
"""A nano-unit: numbers that differ by less differ by rounding, and no error can be learned from that."""


@dataclass(frozen=True)
class Comparison:
    """How a treatment differs from its control; every difference is treatment − control.

    Attributes:
        difference: of the means.
        standard_error: of the difference.
        t, df: Welch's statistic and its degrees of freedom.
        p: two-sided.
        low, high: the interval of the difference.
        d: Cohen's d by the mean of both variances.
        d_low, d_high: its interval.
        g: Hedges' g, d without its bias.
    """

    difference: float
    standard_error: float
    t: float
    df: float
    p: float
    low: float
    high: float
    d: float
    d_low: float
    d_high: float
    g: float

    @property
    def p_less(self) -> float:
        """One-sided: how likely so low a difference is where there is none."""
        return float(scipy.special.stdtr(self.df, self.t))

    def lower_bound(self, alpha: float) -> float:
        """What the difference exceeds with one-sided confidence 1 − α."""
        return self.difference + float(scipy.special.stdtrit(self.df, alpha)) * self.standard_error


def comparable(control: Moments, treatment: Moments) -> bool:
    """Whether there is an error to judge a difference by: two numbers in each sample, and some variance."""
    varies = max(control.deviation, treatment.deviation) > LEAST_DEVIATION
    return min(control.n, treatment.n) >= 2 and varies


def compare(control: Moments, treatment: Moments, *, confidence: float = 0.95) -> Comparison:
    """Welch's test of two samples, with the intervals of the difference and of d at the same confidence.

    Raises:
        ValueError: a sample has fewer than two numbers, or neither varies.
    """
    if not comparable(control, treatment):
        raise ValueError(
            f"two numbers in each sample and some variance are needed, not {control}, {treatment}"
        )
    a, b = control.variance / control.n, treatment.variance / treatment.n
    error = sqrt(a + b)
    df = (a + b) ** 2 / (a**2 / (control.n - 1) + b**2 / (treatment.n - 1))
    difference = treatment.mean - control.mean
    t = difference / error
    spread = sqrt((control.variance + treatment.variance) / 2)
    df_d = _df_of_d(control, treatment)
    half = -float(scipy.special.stdtrit(df, (1 - confidence) / 2)) * error
    low, high = noncentrality(t, df_d, confidence)
    return Comparison(
        difference=difference,
        standard_error=error,
        t=t,
        df=df,
        p=2 * float(scipy.special.stdtr(df, -abs(t))),
        low=difference - half,
        high=difference + half,
        d=difference / spread,
        d_low=low * error / spread,
        d_high=high * error / spread,
        g=difference / spread * unbiasing(df_d),
    )


def noncentrality(t: float, df: float, confidence: float) -> tuple[float, float]:
    """The interval of the noncentrality of a t distribution in which t was found (Steiger & Fouladi 1997)."""
    tail = (1 - confidence) / 2
    return float(scipy.special.nctdtrinc(df, 1 - tail, t)), float(scipy.special.nctdtrinc(df, tail, t))


def unbiasing(df: float) -> float:
    """Hedges' J = Γ(df/2) / (√(df/2) Γ((df−1)/2)) (1981), 0 for one degree of freedom."""
    return exp(float(scipy.special.gammaln(df / 2) - scipy.special.gammaln((df - 1) / 2))) / sqrt(df / 2)


def _df_of_d(control: Moments, treatment: Moments) -> float:
    a, b = control.variance, treatment.variance
    n_a, n_b = control.n - 1, treatment.n - 1
    return n_a * n_b * (a + b) ** 2 / (n_b * a**2 + n_a * b**2)
