"""A proposal: weights for everybody, made from what many tenants' feedback taught, with every gate it met.

Choices identify the ratio w/τ only. So the weights are fitted in their box at the present τ, and τ follows on
a grid with the weights held fixed, on choices that the fit did not see. Two kinds of label, never confused:

- `full`: the right memory is known whatever was shown. The gain is measured on later recalls.
- `bandit`: only what was shown could be rewarded. The gain is estimated from the logged propensities, and the
  step shortened until the log can speak of it at all. τ stays: its likelihood would return the policy that
  did the showing, and to choose it by value on the log that judges it would make evidence of many tries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices, likelihood
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.half_life import HALF_LIVES, at_half_life
from somabrain_dagster.learning.offpolicy import GateRule, Log, bandit_verdict, estimate, rewarded
from somabrain_dagster.learning.optimizer import fit
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.pooled_fit import POOLED_KAPPA, PooledFit, first_of_each, pooled_fit
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, TAU, Nanos, to_nanos, to_units

Label = Literal["full", "bandit"]

LEAST_RECALLS = 50
"""With fewer, of all tenants together, nothing is fitted."""

LEAST_TENANTS = 2
"""One tenant says nothing of others."""

LEAST_FOR_SCALES = 1000
"""Scales are measured anew, and with them a half-life is chosen, over at least so many recalls."""

TEMPERATURES = tuple(np.linspace(0.4, 1.2, 17).round(2).tolist())
"""The grid of τ."""

NOT_STORED = 0
"""The version of scales that are not stored yet."""


@dataclass(frozen=True)
class Diagnostics:
    """What a fit was like.

    Attributes:
        tenants: how many taught.
        log_likelihood: of all choices at the weights before and at the proposed ones.
        standard_errors: of the fitted weights, by name, by tenants; 0 for a weight on its bound.
        converged: whether the fit is a maximum.
        held_out: how many later recalls judged the fit.
        gain, gain_error: what it gained on them, in 1 / rank (full) or in reward (bandit).
        measures: of the later recalls before and after, by name: `mrr`, `top1` or `reward`.
        half_lives: log-likelihood of the earlier choices by half-life in seconds.
        temperatures: log-likelihood of the later choices by τ.
        step: how much of the way to the fit is proposed.
    """

    tenants: int
    log_likelihood: tuple[float, float] | None = None
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    converged: bool | None = None
    held_out: int = 0
    gain: float | None = None
    gain_error: float | None = None
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    half_lives: Mapping[float, float] = field(default_factory=dict)
    temperatures: Mapping[float, float] = field(default_factory=dict)
    step: float = 1.0


@dataclass(frozen=True, eq=False)
class Proposal:
    """Weights for everybody, proposed or refused.

    Attributes:
        before: what is promoted, meant in `scales`, within the bounds, (K,) nano-units.
        weights: what the fit came to, refused or not, (K,) nano-units.
        scales: in which both are meant; of version `NOT_STORED` where they were measured anew.
        recalls: that it rests on.
        gates: each with its number and its limit.
        diagnostics: of the fit.
    """

    label: Label
    before: Nanos
    weights: Nanos
    scales: Scales
    recalls: int
    gates: tuple[Gate, ...]
    diagnostics: Diagnostics

    @property
    def accepted(self) -> bool:
        """Every gate passed."""
        return not failed(self.gates)


def refused(
    label: Label,
    choices: Choices | None,
    promoted: Nanos,
    scales: Scales,
    configuration: LearningConfiguration,
    gates: tuple[Gate, ...] = (),
) -> Proposal:
    """A proposal of nothing, for want of something to learn from.

    Args:
        label: of what there is.
        choices: what there is; None where there is nothing.
        promoted: the weights in force for everybody, meant in `scales`, (K,) nano-units.
        scales: in force.
        configuration: gives the bounds.
        gates: that were met besides those that come before any fit.
    """
    before = _within(promoted, configuration)
    recalls = 0 if choices is None else len(choices.lengths)
    tenants = 0 if choices is None else len(np.unique(choices.tenant))
    return Proposal(
        label,
        before,
        before,
        scales,
        recalls,
        (*_enough(choices), *gates),
        Diagnostics(tenants=tenants),
    )


def from_answers(
    choices: Choices,
    ages: Floats,
    promoted: Nanos,
    scales: Scales,
    configuration: LearningConfiguration,
    half_lives: Sequence[float] | None = None,
) -> Proposal:
    """Propose from recalls whose right memory is known (label = full).

    Args:
        choices: recalls of many tenants, each tenant's in the order of time; features over `scales`.
        ages: of the candidates, in seconds, shape (M,).
        promoted: the weights in force for everybody, meant in `scales`, (K,) nano-units.
        scales: in force.
        configuration: gives the bounds.
        half_lives: of recency, in seconds, to choose from; an empty one leaves it as it is. None stands for
            `HALF_LIVES` where there are recalls enough to measure scales, and for an empty one elsewhere.
    """
    tenants, recalls = len(np.unique(choices.tenant)), len(choices.lengths)
    gates = _enough(choices)
    if failed(gates):
        return refused("full", choices, promoted, scales, configuration)
    if half_lives is None:
        half_lives = HALF_LIVES if recalls >= LEAST_FOR_SCALES else ()
    low, high = _box(configuration)
    before = _within(promoted, configuration)
    units = to_units(before)
    logged_over = np.array(scales.values)

    def fitted(among: Sequence[float]) -> PooledFit:
        return pooled_fit(
            choices,
            ages,
            float(units[TAU]),
            units[RETRIEVAL],
            low,
            high,
            among,
            temperatures=_temperatures(configuration, float(units[TAU])),
            logged_over=logged_over,
        )

    found = fitted(half_lives)
    if found.profiled is not None and found.profiled.seconds == scales.half_life_seconds:
        # The best is the one in force: its scales stay, so that weights keep their meaning.
        found = replace(fitted(()), likelihoods=found.likelihoods)
    weights = before.copy()
    meant_in, seen = scales, choices
    if found.profiled is not None:
        meant_in = Scales(
            NOT_STORED, tuple(found.profiled.over(logged_over).tolist()), found.profiled.seconds
        )
        seen = at_half_life(choices, ages, found.profiled)
        before = _within(rescaled(before, scales, meant_in), configuration)
        weights = before.copy()
    weights[RETRIEVAL] = to_nanos(found.fitted.weights)
    weights[TAU] = to_nanos(found.tau)
    held_out = found.held_out
    return Proposal(
        label="full",
        before=before,
        weights=_within(weights, configuration),
        scales=meant_in,
        recalls=recalls,
        gates=(*gates, found.gate, _maximum(found.fitted.converged)),
        diagnostics=Diagnostics(
            tenants=tenants,
            log_likelihood=(
                likelihood(choices, units[RETRIEVAL], float(units[TAU])),
                likelihood(seen, found.fitted.weights, found.tau),
            ),
            standard_errors=_standard_errors(found.fitted.covariance),
            converged=found.fitted.converged,
            held_out=held_out.recalls,
            gain=held_out.gain.mean,
            gain_error=held_out.gain.standard_error,
            measures={"mrr": held_out.mrr, "top1": held_out.top1},
            half_lives=found.likelihoods,
            temperatures=found.temperatures,
        ),
    )


def from_rewards(
    log: Log,
    promoted: Nanos,
    scales: Scales,
    configuration: LearningConfiguration,
    rule: GateRule | None = None,
) -> Proposal:
    """Propose from sampled recalls of which only what was shown first was rewarded (label = bandit).

    Args:
        log: recalls of many tenants, each tenant's in the order of time; features over `scales`.
        promoted: the weights in force for everybody, meant in `scales`, (K,) nano-units.
        scales: in force.
        configuration: gives the bounds.
        rule: the limits of the gates; None for those of `GateRule`.
    """
    gates = _enough(log.choices)
    if failed(gates):
        return refused("bandit", log.choices, promoted, scales, configuration)
    earlier = first_of_each(log.choices)
    to_fit, to_judge = _part(log, earlier), _part(log, ~earlier)
    praised = Gate("rewarded_recalls", float((to_fit.reward > 0).sum()), "≥", 1.0)
    if not praised.passed:
        return refused("bandit", log.choices, promoted, scales, configuration, (praised,))
    before = _within(promoted, configuration)
    units = to_units(before)
    tau, start = float(units[TAU]), units[RETRIEVAL]
    fitted = fit(rewarded(to_fit), tau, start, *_box(configuration), POOLED_KAPPA)
    verdict = bandit_verdict(to_judge, start, fitted.weights, tau, rule or GateRule())
    found = estimate(to_judge, verdict.weights, tau)
    weights = before.copy()
    weights[RETRIEVAL] = to_nanos(verdict.weights)
    told = rewarded(log)
    return Proposal(
        label="bandit",
        before=before,
        weights=_within(weights, configuration),
        scales=scales,
        recalls=len(log.reward),
        gates=(*gates, praised, *verdict.gates, _maximum(fitted.converged)),
        diagnostics=Diagnostics(
            tenants=len(np.unique(log.choices.tenant)),
            log_likelihood=(likelihood(told, start, tau), likelihood(told, verdict.weights, tau)),
            standard_errors=_standard_errors(fitted.covariance),
            converged=fitted.converged,
            held_out=len(to_judge.reward),
            gain=found.gain.mean,
            gain_error=found.gain.standard_error,
            measures={"reward": (float(to_judge.reward.mean()), found.value)},
            step=verdict.step,
        ),
    )


def _enough(choices: Choices | None) -> tuple[Gate, ...]:
    """The gates that come before any fit."""
    recalls, tenants, later = 0, 0, 0
    if choices is not None:
        recalls, tenants = len(choices.lengths), len(np.unique(choices.tenant))
        later = int((~first_of_each(choices)).sum())
    return (
        Gate("recalls", float(recalls), "≥", float(LEAST_RECALLS)),
        Gate("later_recalls", float(later), "≥", 1.0),
        Gate("tenants", float(tenants), "≥", float(LEAST_TENANTS)),
    )


def _part(log: Log, kept: NDArray[np.bool_]) -> Log:
    return Log(
        log.choices.take(np.flatnonzero(kept)),
        log.policy[np.repeat(kept, log.choices.lengths)],
        log.reward[kept],
    )


def _box(configuration: LearningConfiguration) -> tuple[Floats, Floats]:
    return to_units(configuration.low_nanos)[RETRIEVAL], to_units(configuration.high_nanos)[RETRIEVAL]


def _within(weights: Nanos, configuration: LearningConfiguration) -> Nanos:
    return np.clip(weights, configuration.low_nanos, configuration.high_nanos)


def _temperatures(configuration: LearningConfiguration, tau: float) -> list[float]:
    """The present τ first, so that it stays where others are no better, and the grid within the bounds."""
    low, high = configuration.low["tau"], configuration.high["tau"]
    return [tau, *(one for one in TEMPERATURES if low <= one <= high and one != tau)]


def _standard_errors(covariance: Floats) -> dict[str, float]:
    return dict(zip(NAMES[RETRIEVAL], np.sqrt(np.diag(covariance)).tolist(), strict=True))


def _maximum(converged: bool) -> Gate:
    return Gate("converged", float(converged), "≥", 1.0)
