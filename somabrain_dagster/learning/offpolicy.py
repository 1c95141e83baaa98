"""The gates of the optimiser: whether fitted weights may be proposed at all.

Two kinds of label, and they must not be confused. Where the right answer is known whatever was shown
(label = full), the gain of the weights is measured on later recalls, and its lower bound must be above 0.
Where only what was shown could be rewarded (label = bandit), the value of another policy π is estimated from
recalls that were sampled by the logged policy π₀, with importance weights v_i = π(c_i)/π₀(c_i):

    V = Σ v_i r_i / Σ v_i        Var V = Σ v_i² (r_i − V)² / (Σ v_i)²        ESS = (Σ v_i)² / Σ v_i²

(self-normalised: Swaminathan & Joachims 2015; ESS: Kong 1992). Both measure a gain over what the same recalls
show of the present policy, recall by recall, and let recalls of one tenant depend on each other.

Either way the recalls must be others than those that the weights were fitted to.
"""

from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np
import scipy

from somabrain_dagster.learning.choices import Choices, Integers, log_probabilities
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.ranking import rank_of_chosen

ROUNDING = 1e-9
"""A mean importance weight may differ from 1 by as much without any chance in it."""


@dataclass(frozen=True, eq=False)
class Log:
    """What N sampled recalls showed first, how likely that was, and what it earned.

    Attributes:
        choices: the candidates; `chosen` is the one that was shown first. Its ω is not read.
        policy: π₀ as it was logged, for every candidate, shape (M,).
        reward: in [−1, 1], shape (N,).

    Raises:
        ValueError: the logged policy is no distribution over each recall's candidates, or never showed what
            was shown.
    """

    choices: Choices
    policy: Floats
    reward: Floats

    def __post_init__(self) -> None:
        if len(self.policy) != len(self.choices.features) or len(self.reward) != len(self.choices.lengths):
            raise ValueError("a log needs a probability for each candidate and a reward for each recall")
        totals = np.add.reduceat(self.policy, self.choices.starts)
        if not ((self.policy >= 0).all() and (np.abs(totals - 1) < 1e-6).all()):
            raise ValueError("the logged probabilities of each recall must add up to 1")
        if not (self.shown > 0).all():
            raise ValueError(
                "what was shown must have had a probability above 0: log it from sampled recalls"
            )
        if not (np.abs(self.reward) <= 1).all():
            raise ValueError("a reward must be from -1 to 1")

    @property
    def shown(self) -> Floats:
        """π₀(c), how likely what was shown was, shape (N,)."""
        return np.asarray(self.policy[self.choices.chosen_rows])


@dataclass(frozen=True)
class GateRule:
    """What fitted weights must show.

    Attributes:
        confidence: of the one-sided lower bound of the gain.
        standard_errors: how far the mean importance weight may be from 1.
        effective_share: the least ESS, of the recalls.
        divergence: the most KL(π₀‖π), in nats a recall.
        halvings: how often a step is halved before it is refused.
    """

    confidence: float = 0.95
    standard_errors: float = 3.0
    effective_share: float = 0.2
    divergence: float = 0.05
    halvings: int = 8


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over recalls of several tenants.

    Attributes:
        mean: of all recalls.
        standard_error: by tenants; NaN for one tenant, which says nothing of others.
        tenants: how many.
    """

    mean: float
    standard_error: float
    tenants: int

    def lower_bound(self, confidence: float) -> float:
        """Student's one-sided bound with tenants − 1 degrees of freedom; NaN for one tenant."""
        if self.tenants < 2:
            return nan
        return self.mean - float(scipy.special.stdtrit(self.tenants - 1, confidence)) * self.standard_error


@dataclass(frozen=True)
class Estimate:
    """What a log says of another policy.

    Attributes:
        value: V, the reward a recall that the policy would earn.
        standard_error: √Var V.
        gain: V − the mean reward of the log, with its error by tenants.
        mean_weight: of the importance weights, 1 but for chance.
        mean_weight_error: its standard error.
        effective_size: ESS, in recalls.
        divergence: KL(π₀‖π), in nats a recall.
        recalls: N.
    """

    value: float
    standard_error: float
    gain: ClusteredMean
    mean_weight: float
    mean_weight_error: float
    effective_size: float
    divergence: float
    recalls: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """What may be proposed.

    Attributes:
        weights: in units, shape (F,): the start and `step` times the way to the fit.
        step: 1, ½, ¼, …
        gates: at these weights, passed or not.
    """

    weights: Floats
    step: float
    gates: tuple[Gate, ...]

    @property
    def accepted(self) -> bool:
        """Every gate passed."""
        return not failed(self.gates)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which gates failed, and by how much."""
        return tuple(str(gate) for gate in failed(self.gates))


def clustered_mean(values: Floats, tenant: Integers) -> ClusteredMean:
    """The mean of the values (N,) of recalls of G tenants, with the clustered variance times G / (G − 1)."""
    mean = float(values.mean())
    _, cluster = np.unique(tenant, return_inverse=True)
    sums = np.bincount(cluster, values - mean)
    tenants = len(sums)
    error = sqrt(tenants / (tenants - 1) * float(sums @ sums)) / len(values) if tenants > 1 else nan
    return ClusteredMean(mean, error, tenants)


def rewarded(log: Log) -> Choices:
    """The choices from which a policy is fitted to a log: ω = max(r, 0) / π₀(c)."""
    return replace(log.choices, omega=np.maximum(log.reward, 0.0) / log.shown)


def estimate(log: Log, weights: Floats, tau: float) -> Estimate:
    """What a log says of the policy of these weights (in units, shape (F,)) at temperature τ > 0."""
    logs = log_probabilities(log.choices, weights, tau)
    ratio = np.exp(logs[log.choices.chosen_rows]) / log.shown
    recalls, total = len(ratio), float(ratio.sum())
    value = float(ratio @ log.reward) / total
    influence = ratio * (log.reward - value) * recalls / total
    # Each recall's part in V − r̄, such that the parts have the mean V − r̄.
    parts = influence + value - log.reward
    possible = log.policy > 0
    surprise = log.policy[possible] * (np.log(log.policy[possible]) - logs[possible])
    return Estimate(
        value=value,
        standard_error=sqrt(float(influence @ influence)) / recalls,
        gain=clustered_mean(parts, log.choices.tenant),
        mean_weight=total / recalls,
        mean_weight_error=float(ratio.std(ddof=1)) / sqrt(recalls) if recalls > 1 else nan,
        effective_size=total**2 / float(ratio @ ratio),
        divergence=float(surprise.sum()) / recalls,
        recalls=recalls,
    )


def policy_gates(found: Estimate, rule: GateRule) -> tuple[Gate, ...]:
    """The gates that do not look at rewards: whether the log can speak of the policy at all."""
    return (
        Gate(
            "mean_importance_weight",
            abs(found.mean_weight - 1),
            "≤",
            rule.standard_errors * found.mean_weight_error + ROUNDING,
        ),
        Gate("effective_sample_size", found.effective_size, "≥", rule.effective_share * found.recalls),
        Gate("divergence", found.divergence, "≤", rule.divergence),
    )


def bandit_verdict(log: Log, start: Floats, fitted: Floats, tau: float, rule: GateRule) -> Verdict:
    """Whether a log that the fit did not see supports it, or a shorter step towards it (label = bandit).

    The step is halved until the gates that do not look at rewards pass; the rewards are then looked at once,
    so that many tries at one log do not count as evidence. Only w/τ is identified: for weights w′ at another
    temperature τ′, give w′·τ/τ′.

    Args:
        log: sampled recalls, others than those of the fit.
        start: the present weights in units, shape (F,).
        fitted: likewise.
        tau: the temperature of both, > 0.
        rule: the limits.
    """
    step = 1.0
    for _ in range(rule.halvings + 1):
        weights = start + step * (fitted - start)
        found = estimate(log, weights, tau)
        gates = policy_gates(found, rule)
        if not failed(gates):
            break
        step /= 2
    else:
        step *= 2
    bound = Gate("gain_lower_bound", found.gain.lower_bound(rule.confidence), ">", 0.0)
    return Verdict(weights, step, (bound, *gates))


def full_verdict(held_out: Choices, start: Floats, fitted: Floats, rule: GateRule) -> Verdict:
    """Whether the fit ranks the right answers of later recalls higher than the start does (label = full).

    The gain is the mean difference of 1 / rank, its bound clustered by tenant.

    Args:
        held_out: recalls later than those of the fit.
        start: the present weights in units, shape (F,).
        fitted: likewise.
        rule: the confidence.
    """
    gain = ranking_gain(held_out, start, fitted)
    return Verdict(fitted, 1.0, (Gate("gain_lower_bound", gain.lower_bound(rule.confidence), ">", 0.0),))


def ranking_gain(held_out: Choices, start: Floats, fitted: Floats) -> ClusteredMean:
    """The mean gain in 1 / rank of the right answer, by recalls, with its error by tenants."""
    difference = 1.0 / rank_of_chosen(held_out, fitted) - 1.0 / rank_of_chosen(held_out, start)
    return clustered_mean(difference, held_out.tenant)
