"""Proposals on generated choices of a known truth: what is accepted, what is refused, what is left alone."""

from dataclasses import replace

import numpy as np
import pytest

from somabrain_dagster.learning.choices import Choices, log_probabilities
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.gates import failed
from somabrain_dagster.learning.half_life import RECENCY
from somabrain_dagster.learning.offpolicy import GateRule, Log
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.proposal import NOT_STORED, Proposal, from_answers, from_rewards, refused
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, TAU, UTILITY, to_nanos, to_units

CONFIGURATION = LearningConfiguration()
START = CONFIGURATION.start_nanos
SCALES = Scales(1, (1.0,) * len(FEATURES), 3600.0)
CANDIDATES = 12
F = len(FEATURES)

TRUTH = np.array([1.0, 0.2, 0.8, -0.5, 0.3, 0.6])
"""The generated truth: the bounds hold it, and it ranks otherwise than the start."""


def generated(
    generator: np.random.Generator, recalls: int, truth: Floats = TRUTH, tenants: int = 20, tau: float = 0.7
) -> tuple[Choices, Floats]:
    """Recalls whose right answer is drawn from softmax(truthᵀz / τ), and the candidates' ages in seconds."""
    features = generator.normal(size=(recalls * CANDIDATES, F))
    ages = np.exp(generator.uniform(0, np.log(30 * 86_400), size=len(features)))
    features[:, RECENCY] = np.exp2(-ages / SCALES.half_life_seconds)
    tenant = np.sort(generator.integers(0, tenants, recalls))
    shown = Choices(
        features, np.full(recalls, CANDIDATES), np.zeros(recalls, dtype=np.int64), np.ones(recalls), tenant
    )
    return replace(shown, chosen=drawn(generator, log_probabilities(shown, truth, tau))), ages


def drawn(generator: np.random.Generator, logs: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    gumbel = logs + generator.gumbel(size=len(logs))
    return np.asarray(gumbel.reshape(-1, CANDIDATES).argmax(axis=1))


def shuffled(generator: np.random.Generator, choices: Choices) -> Choices:
    return replace(choices, chosen=generator.integers(0, choices.lengths))


def logged(generator: np.random.Generator, recalls: int) -> Log:
    """What sampling under the start showed, and whether it was the right answer."""
    right, _ = generated(generator, recalls)
    units = to_units(START)
    logs = log_probabilities(right, units[RETRIEVAL], float(units[TAU]))
    shown = replace(right, chosen=drawn(generator, logs))
    return Log(shown, np.exp(logs), (shown.chosen == right.chosen).astype(np.float64))


def proposed(choices: Choices, ages: Floats) -> Proposal:
    return from_answers(choices, ages, START, SCALES, CONFIGURATION, ())


def test_a_true_improvement_is_accepted_and_found() -> None:
    made = proposed(*generated(np.random.default_rng(0), 3000))
    assert made.accepted
    assert made.recalls == 3000
    units = to_units(made.weights)
    errors = np.array([made.diagnostics.standard_errors[name] for name in NAMES[RETRIEVAL]])
    # Only the ratio w/τ is identified.
    deviation = np.abs(units[RETRIEVAL] / float(to_units(START)[TAU]) - TRUTH / 0.7) * 0.7
    assert (deviation <= 4 * errors + 0.02).all()
    assert made.weights[UTILITY].tolist() == made.before[UTILITY].tolist() == START[UTILITY].tolist()
    assert made.scales is SCALES


@pytest.mark.parametrize("tau", [0.5, 0.7, 1.0])
def test_tau_follows_the_confidence_of_the_choices_where_the_box_keeps_the_weights(tau: float) -> None:
    """Generated at a τ of its own, with a box around the true weights: then τ must meet the ratio."""
    around = {name: float(value) for name, value in zip(NAMES[RETRIEVAL], TRUTH, strict=True)}
    configuration = CONFIGURATION.overridden(
        {"start": around, "low": around, "high": {name: value + 1e-6 for name, value in around.items()}}
    )
    choices, ages = generated(np.random.default_rng(1), 4000, tau=tau)
    made = from_answers(choices, ages, configuration.start_nanos, SCALES, configuration, ())
    assert to_units(made.weights)[TAU] == pytest.approx(tau, abs=0.051)


def test_shuffled_answers_are_refused_in_nine_draws_of_ten_and_a_true_gain_is_accepted_in_eight() -> None:
    draws, accepted = 30, {"shuffled": 0, "true": 0}
    for seed in range(draws):
        generator = np.random.default_rng([2, seed])
        choices, ages = generated(generator, 300)
        accepted["true"] += proposed(choices, ages).accepted
        accepted["shuffled"] += proposed(shuffled(generator, choices), ages).accepted
    assert accepted["shuffled"] <= 0.1 * draws + 2  # one in twenty by the gate's own level
    assert accepted["true"] >= 0.8 * draws


def test_a_half_life_that_made_the_choices_is_proposed_with_scales_of_its_own() -> None:
    generator = np.random.default_rng(3)
    choices, ages = generated(generator, 1500)
    brief = choices.features.copy()
    brief[:, RECENCY] = np.exp2(-ages / 86_400.0)
    meant = replace(choices, features=brief)
    strong = np.array([0.8, 0.0, 2.0, 0.0, 0.0, 0.0])
    choices = replace(choices, chosen=drawn(generator, log_probabilities(meant, strong, 0.7)))
    made = from_answers(choices, ages, START, SCALES, CONFIGURATION)
    assert made.accepted
    assert made.scales.version == NOT_STORED
    assert made.scales.half_life_seconds == 86_400.0
    low, high = CONFIGURATION.low_nanos, CONFIGURATION.high_nanos
    assert made.before.tolist() == np.clip(rescaled(START, SCALES, made.scales), low, high).tolist()
    assert max(made.diagnostics.half_lives, key=lambda one: made.diagnostics.half_lives[one]) == 86_400.0


def test_scales_are_not_measured_on_few_recalls() -> None:
    made = from_answers(*generated(np.random.default_rng(4), 200), START, SCALES, CONFIGURATION)
    assert made.scales is SCALES
    assert made.diagnostics.half_lives == {}


def test_what_cannot_be_divided_is_refused_with_its_numbers() -> None:
    choices, ages = generated(np.random.default_rng(5), 49)
    made = proposed(choices, ages)
    assert [gate.name for gate in failed(made.gates)] == ["recalls"]
    assert made.weights.tolist() == made.before.tolist()
    alone, ages = generated(np.random.default_rng(5), 60, tenants=1)
    assert [gate.name for gate in failed(proposed(alone, ages).gates)] == ["tenants"]
    once, ages = generated(np.random.default_rng(5), 60, tenants=20)
    once = replace(once, tenant=np.arange(60))
    assert [gate.name for gate in failed(proposed(once, ages).gates)] == ["later_recalls"]
    nothing = refused("full", None, START, SCALES, CONFIGURATION)
    assert [gate.value for gate in nothing.gates] == [0.0, 0.0, 0.0]


def test_weights_outside_the_bounds_of_today_are_brought_inside_before_anything_is_fitted() -> None:
    promoted = START.copy()
    promoted[0] = to_nanos(9.0)
    made = from_answers(*generated(np.random.default_rng(6), 400), promoted, SCALES, CONFIGURATION, ())
    assert made.before[0] == CONFIGURATION.high_nanos[0]
    assert (made.weights >= CONFIGURATION.low_nanos).all()
    assert (made.weights <= CONFIGURATION.high_nanos).all()


# --------------------------------------------------------------- where only what was shown could be rewarded


def test_a_step_that_rewards_support_is_accepted_and_leaves_tau_alone() -> None:
    made = from_rewards(logged(np.random.default_rng(7), 6000), START, SCALES, CONFIGURATION)
    assert made.accepted, made.gates
    assert 0 < made.diagnostics.step < 1  # the whole way is further than the log can speak of
    assert made.weights[TAU] == START[TAU]
    assert {gate.name for gate in made.gates} >= {
        "mean_importance_weight",
        "effective_sample_size",
        "divergence",
        "gain_lower_bound",
    }


def test_shuffled_rewards_are_refused() -> None:
    accepted = 0
    for seed in range(20):
        generator = np.random.default_rng([8, seed])
        log = logged(generator, 1000)
        blind = replace(log, reward=generator.permutation(log.reward))
        accepted += from_rewards(blind, START, SCALES, CONFIGURATION).accepted
    assert accepted <= 3


def test_one_propensity_that_dominates_is_refused_by_the_effective_sample_size() -> None:
    """Of one later recall the log says that what it showed had a chance of one in a million."""
    log = logged(np.random.default_rng(9), 3000)
    policy = log.policy.reshape(-1, CANDIDATES).copy()
    last = int(log.choices.chosen[-1])
    policy[-1] = (1 - 1e-6) / (CANDIDATES - 1)
    policy[-1, last] = 1e-6
    made = from_rewards(
        replace(log, policy=policy.ravel()), START, SCALES, CONFIGURATION, GateRule(divergence=np.inf)
    )
    assert not made.accepted
    assert "effective_sample_size" in {gate.name for gate in failed(made.gates)}


def test_a_log_without_any_reward_is_refused() -> None:
    log = logged(np.random.default_rng(10), 100)
    made = from_rewards(replace(log, reward=np.zeros(100)), START, SCALES, CONFIGURATION)
    assert [gate.name for gate in failed(made.gates)] == ["rewarded_recalls"]
    assert made.weights.tolist() == made.before.tolist()
