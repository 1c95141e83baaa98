"""How often each decision errs, measured: `python benchmarks/calibration.py`.

Everything here is generated from a known truth: only there can one count errors. Each rate is printed with
its Monte Carlo standard error and the bounds that it must keep, and all are written to
reports/calibration.json. It fails if a bound is broken.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from somabrain_dagster.learning.canary import CanaryRule, TenantPeriods, decide
from somabrain_dagster.learning.choices import Choices, log_probabilities
from somabrain_dagster.learning.comparison import compare
from somabrain_dagster.learning.configuration import GuardConfiguration, LearningConfiguration
from somabrain_dagster.learning.experiments import Arm, Plan, analyse, sample_ratio, sample_size
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.gated_fit import gated_fit
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.guard import first_trip, to_micros
from somabrain_dagster.learning.half_life import HALF_LIVES, RECENCY, measured_scales, with_half_life
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.multiplicity import lord_levels
from somabrain_dagster.learning.offpolicy import (
    GateRule,
    Log,
    Verdict,
    bandit_verdict,
    full_verdict,
    rewarded,
)
from somabrain_dagster.learning.optimizer import fit
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.pooled_fit import pooled_fit
from somabrain_dagster.learning.proposal import from_answers
from somabrain_dagster.learning.sequential import LEAST_UNITS, log_evidence
from somabrain_dagster.learning.trend_rule import TrendRule
from somabrain_dagster.learning.trends import Series, Trend, judge, trend
from somabrain_dagster.learning.weights import RETRIEVAL, to_units

Floats = NDArray[np.float64]

REPORT = Path(__file__).parent.parent / "reports" / "calibration.json"
ALPHA = 0.05


@dataclass(frozen=True)
class Rate:
    """How often something happened in draws from a known truth, and the bounds that it must keep."""

    decision: str
    truth: str
    happened: str
    draws: int
    rate: float
    least: float | None = None
    most: float | None = None

    @property
    def error(self) -> float:
        """The binomial one: for a mean of shares, an upper bound."""
        return float(np.sqrt(self.rate * (1 - self.rate) / self.draws))

    @property
    def kept(self) -> bool:
        return (self.least is None or self.rate >= self.least) and (
            self.most is None or self.rate <= self.most
        )

    def __str__(self) -> str:
        bounds = [f"≥ {self.least:g}"] if self.least is not None else []
        bounds += [f"≤ {self.most:g}"] if self.most is not None else []
        must = f"{'' if self.kept else 'BROKEN '}{' '.join(bounds)}"
        return (
            f"{self.decision:<19} {self.truth:<46} {self.happened:<34} "
            f"{self.rate:>8.2%} ±{self.error:<7.2%} {self.draws:>7,}  {must}"
        )


# Trends

TOGETHER = 100
"""Tenants that are judged together."""


def autoregressive(generator: np.random.Generator, draws: int, n: int, phi: float) -> Floats:
    """AR(1) noise of marginal standard deviation 1, shape (draws, n)."""
    shocks = generator.normal(size=(draws, n))
    shocks[:, 1:] *= np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], shocks, axis=1))


def trends_of(values: Floats) -> list[Trend]:
    times = np.arange(values.shape[1], dtype=np.float64)
    return [trend(Series(times, row)) for row in values]


def directions(found: list[Trend]) -> list[list[int]]:
    """What is acted upon, when so many tenants at a time are judged together."""
    return [
        [one.direction for one in judge(found[i : i + TOGETHER], TrendRule())]
        for i in range(0, len(found), TOGETHER)
    ]


def trends() -> Iterator[Rate]:
    draws = 10_000
    generator = np.random.default_rng(1)
    for n in (30, 90):
        for phi in (0.0, 0.3, 0.6):
            found = trends_of(autoregressive(generator, draws, n, phi))
            truth = f"AR(1) noise, φ = {phi}, {n} bins"
            alarms = np.mean([one.p < ALPHA for one in found])
            plain = np.mean([one.uncorrected_p < ALPHA for one in found])
            covered = np.mean([one.low <= 0 <= one.high for one in found])
            yield Rate("trend", truth, "p < .05", draws, float(alarms), most=0.085)
            yield Rate("trend", truth, "Kendall's own p < .05", draws, float(plain))
            yield Rate(
                "trend", truth, "the slope's 95% interval covers it", draws, float(covered), least=0.91
            )
            acted = np.mean([any(row) for row in directions(found)])
            truth = f"{TOGETHER} tenants of it, φ = {phi}, {n} bins"
            # Of so few and so dependent bins, ρ itself is uncertain, more than Student's tail makes good.
            most = None if (n, phi) == (30, 0.6) else 0.1
            yield Rate("trend", truth, "some acted upon", draws // TOGETHER, float(acted), most=most)
    ramp = 1.5 * np.linspace(0, 1, 90)
    rising = trends_of(autoregressive(generator, draws, 90, 0.3) + ramp)
    share = np.mean([one.p < ALPHA and one.slope > 0 for one in rising])
    truth = "a ramp of 1.5 sd over 90 bins, φ = 0.3"
    yield Rate("trend", truth, "p < .05, rising", draws, float(share), least=0.75)

    flat = trends_of(autoregressive(generator, draws, 90, 0.3))
    fifth = TOGETHER // 5
    mixed = [(rising if place % TOGETHER < fifth else flat)[place] for place in range(draws)]
    proportions, discovered = [], []
    for row in directions(mixed):
        acted_upon = np.array(row) != 0
        proportions.append(acted_upon[fifth:].sum() / max(acted_upon.sum(), 1))
        discovered.append(acted_upon[:fifth].mean())
    truth = f"that ramp for a fifth of {TOGETHER} tenants"
    groups = draws // TOGETHER
    happened = "mean share of false ones acted upon"
    yield Rate("trend", truth, happened, groups, float(np.mean(proportions)), most=0.1)
    yield Rate("trend", truth, "mean share of ramps acted upon", groups, float(np.mean(discovered)))


# Experiments


def samples(
    generator: np.random.Generator, draws: int, n: int, mean: float, deviation: float
) -> list[Moments]:
    """The moments of normal samples, drawn from their own exact distributions."""
    means = generator.normal(mean, deviation / np.sqrt(n), draws)
    variances = deviation**2 * generator.chisquare(n - 1, draws) / (n - 1)
    return [Moments(n, m, v) for m, v in zip(means.tolist(), variances.tolist(), strict=True)]


def promotions() -> Iterator[Rate]:
    draws = 20_000
    generator = np.random.default_rng(2)
    size = sample_size(0.3)
    plan = Plan((Arm("control", 0.5), Arm("treatment", 0.5)), size)
    for d, least, most in ((0.0, None, 0.005), (0.3, 0.45, 0.55), (0.39, 0.75, 0.85), (-0.3, None, 0.0)):
        pairs = zip(samples(generator, draws, size, 0, 1), samples(generator, draws, size, d, 1), strict=True)
        outcomes = [analyse(plan, {"control": a, "treatment": b}) for a, b in pairs]
        promoted = np.mean([outcome.promoted is not None for outcome in outcomes])
        truth = f"d = {d}, one look at {size} sessions an arm"
        yield Rate("promotion", truth, "promoted", draws, float(promoted), least, most)
        small = float(np.mean([outcome.p < ALPHA for outcome in outcomes]))
        if d == 0:
            yield Rate("promotion", truth, "p < .05", draws, small, least=0.045, most=0.055)
        if d == 0.3:
            yield Rate("promotion", truth, "p < .05", draws, small, least=0.79, most=0.82)

    three = Plan((Arm("control", 0.4), Arm("alpha", 0.3), Arm("tau", 0.3)), size)
    arms = [samples(generator, draws, size, 0, 1) for _ in range(3)]
    outcomes = [
        analyse(three, dict(zip(("control", "alpha", "tau"), row, strict=True)))
        for row in zip(*arms, strict=True)
    ]
    truth = "no effect, two treatments, Holm"
    rate = np.mean([outcome.p < ALPHA for outcome in outcomes])
    yield Rate("promotion", truth, "some p < .05", draws, float(rate), most=0.055)
    rate = np.mean([outcome.promoted is not None for outcome in outcomes])
    yield Rate("promotion", truth, "some promoted", draws, float(rate), most=0.01)

    for n_a, n_b, sd_b in ((176, 176, 1.0), (60, 30, 2.0)):
        d = 0.3
        spread = np.sqrt((1 + sd_b**2) / 2)
        pairs = zip(
            samples(generator, draws, n_a, 0, 1),
            samples(generator, draws, n_b, d * spread, sd_b),
            strict=True,
        )
        covered = np.mean([found.d_low <= d <= found.d_high for found in (compare(a, b) for a, b in pairs)])
        truth = f"d = {d}, {n_a} and {n_b} sessions, sd 1 and {sd_b:g}"
        yield Rate("effect size", truth, "its 95% interval covers it", draws, float(covered), 0.94, 0.96)


def sample_ratios() -> Iterator[Rate]:
    draws = 100_000
    generator = np.random.default_rng(3)
    for shares, lost in (((0.5, 0.5), 0.0), ((0.4, 0.3, 0.3), 0.0), ((0.5, 0.5), 0.3)):
        arms = [Arm(str(i), share) for i, share in enumerate(shares)]
        reported = np.array(shares)
        reported[-1] *= 1 - lost
        counts = generator.multinomial(2 * 176, reported / reported.sum(), draws).tolist()
        rate = np.mean([sample_ratio(row, arms) < 0.001 for row in counts])
        truth = f"shares {shares}" + (f", the last loses {lost:.0%}" if lost else "")
        yield Rate("sample ratio", truth, "invalid", draws, float(rate), most=None if lost else 0.0015)


def harm_stops() -> Iterator[Rate]:
    size = 176
    generator = np.random.default_rng(4)
    for effect, draws, least, most in (
        (0.0, 40_000, None, 0.025),
        (-0.3, 10_000, 0.3, None),
        (-0.5, 10_000, 0.9, None),
    ):
        values = generator.normal(size=(2, draws, size))
        values[1] += effect
        pairs = np.arange(1, size + 1)
        means = np.cumsum(values, axis=2) / pairs
        squares = np.cumsum(values**2, axis=2) - pairs * means**2
        look = slice(LEAST_UNITS - 1, None)
        difference = (means[1] - means[0])[:, look]
        error = np.sqrt(squares.sum(axis=0)[:, look] / (pairs[look] - 1) / pairs[look])
        evidence = log_evidence(difference / error, 2 * pairs[look], 2 * size, ALPHA)
        stopped = ((evidence > -np.log(ALPHA)) & (difference < 0)).any(axis=1).mean()
        truth = f"d = {effect}, a look after every pair of {size}"
        yield Rate("harm stop", truth, "stopped", draws, float(stopped), least, most)


def online_discoveries() -> Iterator[Rate]:
    sequences, tests = 2_000, 50
    generator = np.random.default_rng(5)
    proportions = []
    for _ in range(sequences):
        effective = generator.random(tests) < 0.2
        pairs = [
            (samples(generator, 1, 176, 0, 1)[0], samples(generator, 1, 176, 0.4 * e, 1)[0])
            for e in effective
        ]
        _, state = lord_levels([compare(a, b).p for a, b in pairs])
        false = sum(not effective[test - 1] for test in state.rejections)
        proportions.append(false / max(len(state.rejections), 1))
    truth = f"{tests} experiments in a row, d = 0.4 in a fifth"
    yield Rate(
        "LORD++", truth, "mean share of false discoveries", sequences, float(np.mean(proportions)), most=0.05
    )


# Canaries


def canary_of(
    generator: np.random.Generator, rule: CanaryRule, tenants: int, sessions: int, effect: float
) -> str:
    """The last decision on a generated canary.

    Tenants differ by a standard deviation of .5, their sessions by 1; they have on average `sessions`
    sessions in the 48 hours, spread like an exponential, and three times as many in the period before.
    """
    chosen = round(rule.share * tenants)
    level = generator.normal(0, 0.5, tenants)
    pace = generator.exponential(sessions, tenants) + 1
    now = level + effect * (np.arange(tenants) < chosen)
    periods = [Moments()] * tenants
    before = periods_of(generator, level, generator.poisson(3 * pace))
    clean = {name: Gate(name, 0.0, "≤", 1.0) for name in rule.guardrails}
    action = "HOLD"
    for look, (start, end) in enumerate(zip((0.0, *rule.hours), rule.hours, strict=False)):
        added = periods_of(generator, now, generator.poisson(pace * (end - start) / rule.hours[-1]))
        periods = [old.merge(new) for old, new in zip(periods, added, strict=True)]
        groups = [TenantPeriods(b, s) for b, s in zip(before, periods, strict=True)]
        action = decide(rule, look, groups[:chosen], groups[chosen:], clean).action
        if action != "HOLD":
            break
    return action


def periods_of(generator: np.random.Generator, means: Floats, counts: NDArray[np.int64]) -> list[Moments]:
    """The moments of each tenant's normal sessions of standard deviation 1."""
    some = np.maximum(counts, 1)
    found = generator.normal(means, 1 / np.sqrt(some))
    variances = np.where(
        counts > 1, generator.chisquare(np.maximum(counts - 1, 1)) / np.maximum(counts - 1, 1), 0.0
    )
    rows = zip(counts.tolist(), found.tolist(), variances.tolist(), strict=True)
    return [Moments(n, mean, variance) if n else Moments() for n, mean, variance in rows]


def canaries() -> Iterator[Rate]:
    rule = CanaryRule()
    cases: list[tuple[int, int, float, int, dict[str, tuple[float | None, float | None]]]] = [
        (100, 40, 0.0, 2_000, {"ROLLBACK": (None, 0.065), "PROMOTE": (None, None)}),
        (100, 400, 0.0, 1_000, {"ROLLBACK": (None, 0.07), "PROMOTE": (None, None)}),
        (1_000, 40, 0.0, 300, {"ROLLBACK": (None, 0.09), "PROMOTE": (None, None)}),
        (100, 40, -0.3, 1_000, {"ROLLBACK": (0.5, None), "PROMOTE": (None, 0.02)}),
        (100, 400, -0.1, 1_000, {"ROLLBACK": (None, None), "PROMOTE": (None, 0.025)}),
    ]
    for seed, (tenants, sessions, effect, draws, bounds) in enumerate(cases):
        generator = np.random.default_rng([6, seed])
        actions = [canary_of(generator, rule, tenants, sessions, effect) for _ in range(draws)]
        truth = f"effect {effect} sd, {tenants} tenants, {sessions} sessions each"
        for action, (least, most) in bounds.items():
            yield Rate("canary", truth, action, draws, actions.count(action) / draws, least, most)


# The optimiser's gates

TAU = 0.7
START = np.array([1.0, 0.2, 0.0, 0.0])
TRUTH = np.array([1.0, 0.2, 0.4, -0.2])
NOTHING = np.full(4, 1e-3)
BOX = np.full(4, 5.0)
TENANTS = 40
KAPPA = 25.0


def recalls(generator: np.random.Generator, count: int, truth: Floats) -> Choices:
    """Generated recalls: 15 candidates of normal features, the right one drawn from softmax(truthᵀz / τ)."""
    candidates = 15
    features = generator.normal(size=(count * candidates, len(truth)))
    utility = features @ truth / TAU + generator.gumbel(size=len(features))
    return Choices(
        features,
        np.full(count, candidates),
        utility.reshape(count, candidates).argmax(axis=1),
        np.ones(count),
        generator.integers(0, TENANTS, count),
    )


def shuffled(generator: np.random.Generator, choices: Choices) -> Choices:
    return replace(choices, chosen=generator.integers(0, choices.lengths))


def fully_labelled(generator: np.random.Generator, *, meaningless: bool, start: Floats) -> Verdict:
    seen, later = recalls(generator, 600, TRUTH), recalls(generator, 600, TRUTH)
    if meaningless:
        seen, later = shuffled(generator, seen), shuffled(generator, later)
    fitted = fit(seen, TAU, start, -BOX, BOX, KAPPA).weights
    return full_verdict(later, start, fitted, GateRule())


def logged(generator: np.random.Generator, count: int, start: Floats) -> Log:
    """Recalls sampled under the start: the reward is whether the right answer was shown first."""
    right = recalls(generator, count, TRUTH)
    logs = log_probabilities(right, start, TAU)
    gumbel = (logs + generator.gumbel(size=len(logs))).reshape(count, -1)
    shown = replace(right, chosen=gumbel.argmax(axis=1))
    return Log(shown, np.exp(logs), (shown.chosen == right.chosen).astype(np.float64))


def bandit_labelled(generator: np.random.Generator, *, meaningless: bool, start: Floats) -> Verdict:
    seen, later = logged(generator, 1_500, start), logged(generator, 1_500, start)
    if meaningless:
        seen, later = (replace(log, reward=generator.permutation(log.reward)) for log in (seen, later))
    fitted = fit(rewarded(seen), TAU, start, -BOX, BOX, KAPPA).weights
    return bandit_verdict(later, start, fitted, TAU, GateRule())


def full_gate() -> Iterator[Rate]:
    draws = 400
    generator = np.random.default_rng(7)
    for truth, meaningless, start, least, most in (
        ("shuffled labels", True, START, None, 0.1),
        ("shuffled labels, a start that ranks nothing", True, NOTHING, None, 0.1),
        ("nothing left to gain", False, TRUTH, None, 0.1),
        ("a true improvement", False, START, 0.8, None),
    ):
        verdicts = [fully_labelled(generator, meaningless=meaningless, start=start) for _ in range(draws)]
        accepted = float(np.mean([verdict.accepted for verdict in verdicts]))
        yield Rate("gate, label=full", truth, "accepted", draws, accepted, least, most)


def bandit_gate() -> Iterator[Rate]:
    draws = 250
    generator = np.random.default_rng(8)
    fresh = recalls(generator, 5_000, TRUTH)

    def value(weights: Floats) -> float:
        """How often the policy shows the right answer first."""
        return float(np.exp(log_probabilities(fresh, weights, TAU)[fresh.chosen_rows]).mean())

    for truth, meaningless, start, least, most in (
        ("shuffled rewards", True, START, None, 0.1),
        ("shuffled rewards, a start that ranks nothing", True, NOTHING, None, 0.1),
        ("the right ratio of the weights already", False, TRUTH, None, None),
        ("a true improvement", False, START, 0.8, None),
    ):
        verdicts = [bandit_labelled(generator, meaningless=meaningless, start=start) for _ in range(draws)]
        accepted = float(np.mean([verdict.accepted for verdict in verdicts]))
        yield Rate("gate, label=bandit", truth, "accepted", draws, accepted, least, most)
        if not meaningless:
            worse = [verdict.accepted and value(verdict.weights) <= value(start) for verdict in verdicts]
            happened = "accepted, and truly no better"
            yield Rate("gate, label=bandit", truth, happened, draws, float(np.mean(worse)), most=0.1)


def proposals() -> Iterator[Rate]:
    """The whole of a proposal, composed: the fit, its gates, τ; no half-lives, which have no ages here."""
    draws = 400
    generator = np.random.default_rng(9)
    configuration = LearningConfiguration()
    start, scales = configuration.start_nanos, Scales(1, (1.0,) * len(FEATURES), 3600.0)
    better, same = np.array([1.0, 0.2, 0.8, -0.5, 0.3, 0.6]), to_units(start)[RETRIEVAL]
    for truth, meaningless, weights, least, most in (
        ("shuffled labels", True, better, None, 0.1),
        ("nothing left to gain", False, same, None, 0.1),
        ("a true improvement", False, better, 0.8, None),
    ):
        accepted = 0
        for _ in range(draws):
            choices = recalls(generator, 600, weights)
            if meaningless:
                choices = shuffled(generator, choices)
            ages = np.zeros(len(choices.features))
            accepted += from_answers(choices, ages, start, scales, configuration, ()).accepted
        yield Rate("proposal", truth, "accepted", draws, accepted / draws, least, most)


def pooled_gate() -> Iterator[Rate]:
    """The fit that a proposal for everybody rests on, with the half-life to be chosen too, and its gate."""
    draws, count, candidates, features = 100, 600, 15, len(FEATURES)
    generator = np.random.default_rng(9)
    box, start, truth = np.full(features, 5.0), np.zeros(features), np.zeros(features)
    start[0], truth[0], truth[RECENCY] = 1.0, 1.0, 0.5
    lengths = np.full(count, candidates)
    for name, meaningless, least, most in (
        ("shuffled labels", True, None, 0.1),
        ("a true improvement, recency of 60 s", False, 0.8, None),
    ):
        accepted = found = 0
        for _ in range(draws):
            drawn = generator.normal(size=(count * candidates, features))
            ages = np.exp(generator.uniform(0, np.log(30 * 86_400), len(drawn)))
            drawn[:, RECENCY] = np.exp2(-ages / 3600)
            scales = measured_scales(drawn, ages, lengths, 60.0)
            utility = with_half_life(drawn, ages, 60.0, scales) @ truth / TAU
            chosen = (utility + generator.gumbel(size=len(drawn))).reshape(count, -1).argmax(axis=1)
            tenant = generator.integers(0, TENANTS, count)
            choices = Choices(drawn, lengths, chosen, np.ones(count), tenant)
            if meaningless:
                choices = shuffled(generator, choices)
            proposed = pooled_fit(choices, ages, TAU, start, -box, box, HALF_LIVES)
            accepted += proposed.gate.passed
            found += proposed.half_life is not None and proposed.half_life.seconds == 60.0
        yield Rate("pooled fit", name, "accepted", draws, accepted / draws, least, most)
        if not meaningless:
            yield Rate("pooled fit", name, "accepted with 60 s", draws, found / draws, least)


def tenants_gate() -> Iterator[Rate]:
    """A tenant's own fit, by its own recalls alone."""
    draws = 400
    generator = np.random.default_rng(10)
    for truth, count, meaningless, prior, least, most in (
        ("shuffled labels, 50 recalls", 50, True, START, None, 0.1),
        ("shuffled labels, 200 recalls", 200, True, START, None, 0.1),
        ("the prior is the truth, 50 recalls", 50, False, TRUTH, None, 0.1),
        ("the prior is the truth, 200 recalls", 200, False, TRUTH, None, 0.1),
        ("it differs from the prior, 50 recalls", 50, False, START, None, None),
        ("it differs from the prior, 200 recalls", 200, False, START, None, None),
        ("it is the prior's opposite, 200 recalls", 200, False, -TRUTH, 0.8, None),
    ):
        own = 0
        for _ in range(draws):
            choices = recalls(generator, count, TRUTH)
            if meaningless:
                choices = shuffled(generator, choices)
            own += gated_fit(choices, prior, TAU, -BOX, BOX).own
        yield Rate("a tenant's own fit", truth, "accepted", draws, own / draws, least, most)


# The guard


def guards() -> Iterator[Rate]:
    generator = np.random.default_rng(11)
    rule = GuardConfiguration()
    for truth, fall, events, draws in (
        ("steady rewards, 1,000 events", 0.0, 1_000, 2_000),
        ("they fall by 1 sd after 120 events, 40 more", 1.0, 160, 2_000),
        ("they fall by 2 sd after 120 events, 40 more", 2.0, 160, 2_000),
    ):
        rewards = generator.normal(0.2, 0.25, (draws, events))
        rewards[:, rule.window :] -= 0.25 * fall
        nothing = np.zeros(0, dtype=np.int64)
        tripped = [first_trip(nothing, to_micros(row), rule) is not None for row in np.clip(rewards, -1, 1)]
        yield Rate("guard", truth, "rolled back", draws, float(np.mean(tripped)))


MEASURES = (
    trends,
    promotions,
    sample_ratios,
    harm_stops,
    online_discoveries,
    canaries,
    full_gate,
    bandit_gate,
    proposals,
    pooled_gate,
    tenants_gate,
    guards,
)


def measured(measure: Callable[[], Iterator[Rate]]) -> list[Rate]:
    return list(measure())


def main() -> None:
    began = time.perf_counter()
    rates = []
    with ProcessPoolExecutor() as pool:
        for found in pool.map(measured, MEASURES):
            rates += found
            print(*found, "", sep="\n", flush=True)
    REPORT.parent.mkdir(exist_ok=True)
    report = {
        "generated": "every rate was measured on numbers generated from the truth that it names",
        "rates": [{**asdict(rate), "standard_error": rate.error, "kept": rate.kept} for rate in rates],
    }
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(rates)} rates in {time.perf_counter() - began:.0f} s, written to {REPORT}")
    broken = [rate for rate in rates if not rate.kept]
    if broken:
        raise SystemExit("out of bounds:\n" + "\n".join(map(str, broken)))


if __name__ == "__main__":
    main()
