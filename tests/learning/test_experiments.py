"""Assignment never changes, sizes are planned before, and an arm is promoted only if every gate passes."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from statsmodels.stats.power import TTestIndPower

from somabrain_dagster.learning.experiments import (
    Analysis,
    Arm,
    Plan,
    PromotionRule,
    analyse,
    assign,
    position,
    power,
    sample_ratio,
    sample_size,
)
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.moments import Moments

pytestmark = pytest.mark.learning

HALVES = (Arm("control", 0.5), Arm("treatment", 0.5))
UNITS = [f"tenant-{i % 50}/session-{i}" for i in range(5000)]

share_lists = st.lists(st.integers(1, 20), min_size=2, max_size=5).map(
    lambda parts: [x / sum(parts) for x in parts]
)


def arms(*shares: float) -> list[Arm]:
    return [Arm(f"arm-{i}", share) for i, share in enumerate(shares)]


# Assignment


def test_positions_are_those_written_down() -> None:
    assert position("exp-1", "session-1") == 0.6035863079359186
    assert position("exp-1", "session-2") == 0.8568540092786769


def test_an_arm_is_the_first_whose_cumulative_share_is_above_the_position() -> None:
    assert assign("exp-1", "session-1", arms(0.6, 0.4)) == "arm-1"
    assert assign("exp-1", "session-1", arms(0.61, 0.39)) == "arm-0"
    assert assign("exp-1", "session-2", arms(0.6, 0.25, 0.15)) == "arm-2"


@given(share_lists)
def test_every_unit_has_the_arm_in_which_its_position_lies(shares: list[float]) -> None:
    edges = [0.0, *accumulate(shares)]
    edges[-1] = 1.0
    for unit in UNITS[:50]:
        arm = int(assign("salt", unit, arms(*shares)).removeprefix("arm-"))
        assert edges[arm] <= position("salt", unit) <= edges[arm + 1]


@given(share_lists, st.data())
def test_a_share_that_grows_at_its_neighbours_cost_keeps_its_units(
    shares: list[float], data: st.DataObject
) -> None:
    grower = data.draw(st.integers(0, len(shares) - 1))
    giver = data.draw(st.sampled_from([i for i in (grower - 1, grower + 1) if 0 <= i < len(shares)]))
    given_up = shares[giver] * data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    grown = list(shares)
    grown[grower] += given_up
    grown[giver] -= given_up
    assume(sum(grown) == pytest.approx(1))
    for unit in UNITS[:200]:
        before, after = assign("salt", unit, arms(*shares)), assign("salt", unit, arms(*grown))
        assert after == before or (before, after) == (f"arm-{giver}", f"arm-{grower}")


def test_arms_get_their_shares_and_salts_do_not_agree() -> None:
    shares = arms(0.5, 0.3, 0.2)
    first = [assign("first", unit, shares) for unit in UNITS]
    second = [assign("second", unit, shares) for unit in UNITS]
    counts = [first.count(arm.name) for arm in shares]
    assert chisquare(counts, [2500, 1500, 1000]).pvalue > 0.001
    table = [
        [sum(a == x.name and b == y.name for a, b in zip(first, second, strict=True)) for y in shares]
        for x in shares
    ]
    assert chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([Arm("a", 0.5), Arm("a", 0.5)], "a name of its own"),
        ([Arm("a", 0.5), Arm("b", 0.4)], "add up to 1"),
        ([Arm("a", 1.0), Arm("b", 0.0)], "positive"),
        ([Arm("a", 1.5), Arm("b", -0.5)], "positive"),
        ([Arm("a", float("nan")), Arm("b", 0.5)], "positive"),
        ([], "add up to 1"),
    ],
)
def test_arms_that_share_nothing_out_are_refused(bad: list[Arm], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign("salt", "unit", bad)


def test_shares_that_fall_short_of_one_by_rounding_leave_nobody_out() -> None:
    shares = arms(0.1, 0.2, 0.7 - 1e-10)
    assert {assign("salt", unit, shares) for unit in UNITS} == {"arm-0", "arm-1", "arm-2"}


# Size


def test_the_size_of_the_built_in_experiment() -> None:
    assert sample_size(0.3) == 176


@pytest.mark.parametrize(
    ("d", "alpha", "wanted"), [(0.1, 0.05, 0.8), (0.5, 0.01, 0.9), (1.5, 0.05, 0.8), (-0.3, 0.05, 0.8)]
)
def test_sizes_and_powers_are_those_of_statsmodels(d: float, alpha: float, wanted: float) -> None:
    size = sample_size(d, alpha=alpha, power_wanted=wanted)
    theirs = TTestIndPower()
    assert size == np.ceil(theirs.solve_power(abs(d), alpha=alpha, power=wanted))
    assert power(d, size, alpha) == pytest.approx(theirs.power(abs(d), size, alpha), rel=1e-6)
    assert power(d, size - 1, alpha) < wanted <= power(d, size, alpha)


def test_a_size_needs_an_effect_to_find() -> None:
    with pytest.raises(ValueError, match="other than 0"):
        sample_size(0.0)
    with pytest.raises(ValueError, match="power < 1"):
        sample_size(0.3, power_wanted=1.0)


# Sample ratio


@given(st.lists(st.integers(0, 500), min_size=3, max_size=3))
def test_the_sample_ratio_is_scipys_chi_square(counts: list[int]) -> None:
    assume(sum(counts) > 0)
    shares = arms(0.5, 0.3, 0.2)
    theirs = chisquare(counts, [sum(counts) * arm.share for arm in shares]).pvalue
    assert sample_ratio(counts, shares) == pytest.approx(theirs, rel=1e-9, abs=1e-300)


# The decision


def plan(size: int = 176, rule: PromotionRule | None = None) -> Plan:
    return Plan(HALVES, size, rule or PromotionRule())


def outcome(control: Moments, treatment: Moments, **further: object) -> Analysis:
    return analyse(plan(), {"control": control, "treatment": treatment}, **further)  # type: ignore[arg-type]


def reasons(found: Analysis) -> list[str]:
    return [gate.name for gate in found.findings[0].gates if not gate.passed]


CONTROL, BETTER = Moments(200, 0.0, 1.0), Moments(200, 0.5, 1.0)


def test_a_better_arm_is_promoted() -> None:
    found = outcome(CONTROL, BETTER)
    assert found.promoted == "treatment"
    assert reasons(found) == []
    assert found.findings[0].comparison is not None
    assert found.p == found.findings[0].comparison.p


@pytest.mark.parametrize(
    ("control", "treatment", "names"),
    [
        (Moments(175, 0.0, 1.0), BETTER, ["control_sessions"]),
        (CONTROL, Moments(175, 0.5, 1.0), ["sessions"]),
        (CONTROL, Moments(320, 0.5, 1.0), ["sample_ratio"]),
        (CONTROL, Moments(200, -0.5, 1.0), ["difference", "d"]),
        (Moments(9000, 0.0, 1.0), Moments(9000, 0.29, 1.0), ["d"]),
        (CONTROL, Moments(200, 0.1, 1.0), ["p", "d"]),
        (CONTROL, Moments(), ["sample_ratio", "sessions", "p", "difference", "d"]),
        (Moments(200, 0.0, 0.0), Moments(200, 1.0, 0.0), ["p", "difference", "d"]),
        (Moments(), Moments(), ["sample_ratio", "control_sessions", "sessions", "p", "difference", "d"]),
    ],
)
def test_each_gate_alone_refuses(control: Moments, treatment: Moments, names: list[str]) -> None:
    found = outcome(control, treatment)
    assert found.promoted is None
    assert reasons(found) == names


def test_a_small_sample_may_be_large_in_d_and_not_sure() -> None:
    found = analyse(plan(size=20), {"control": Moments(20, 0.0, 1.0), "treatment": Moments(20, 0.5, 1.0)})
    assert reasons(found) == ["p"]


def test_the_limits_are_the_plans_own() -> None:
    strict = plan(rule=PromotionRule(alpha=1e-9, effect=0.6, sample_ratio=0.5))
    found = analyse(strict, {"control": CONTROL, "treatment": Moments(215, 0.5, 1.0)})
    assert reasons(found) == ["sample_ratio", "p", "d"]


def test_a_guardrail_or_the_level_among_experiments_refuses() -> None:
    latency = Gate("latency_p95", 310.0, "≤", 250.0)
    assert reasons(outcome(CONTROL, BETTER, guardrails={"treatment": [latency]})) == ["latency_p95"]
    assert reasons(outcome(CONTROL, BETTER, online_level=1e-12)) == ["online_p"]
    assert outcome(CONTROL, BETTER, online_level=0.01).promoted == "treatment"


THREE = Plan((Arm("control", 0.4), Arm("alpha", 0.3), Arm("tau", 0.3)), 176)


def test_of_several_better_arms_the_best_is_promoted() -> None:
    sizes = {
        "control": Moments(240, 0.0, 1.0),
        "alpha": Moments(180, 0.4, 1.0),
        "tau": Moments(180, 0.5, 1.0),
    }
    assert analyse(THREE, sizes).promoted == "tau"
    swapped = {"control": sizes["control"], "alpha": sizes["tau"], "tau": sizes["alpha"]}
    assert analyse(THREE, swapped).promoted == "alpha"


def test_several_arms_share_the_level() -> None:
    """Each alone has p = .035: too much for two of them."""
    mean = 0.211
    same = {
        "control": Moments(240, 0.0, 1.0),
        "alpha": Moments(180, mean, 1.0),
        "tau": Moments(180, mean, 1.0),
    }
    found = analyse(Plan(THREE.arms, 176, PromotionRule(effect=0.1)), same)
    for finding in found.findings:
        assert finding.comparison is not None
        assert 0.02 < finding.comparison.p < 0.05 < finding.p == pytest.approx(2 * finding.comparison.p)
    assert found.promoted is None


def test_an_empty_arm_spoils_neither_the_test_nor_the_verdict_of_another() -> None:
    found = analyse(
        THREE, {"control": Moments(240, 0.0, 1.0), "alpha": Moments(180, 0.5, 1.0), "tau": Moments()}
    )
    assert found.promoted is None
    assert [finding.comparison is None for finding in found.findings] == [False, True]
    assert reasons(found) == ["sample_ratio"]


@given(st.integers(0, 10_000))
def test_no_treatment_is_promoted_that_is_not_better(seed: int) -> None:
    generator = np.random.default_rng(seed)
    control, treatment = (Moments.of(generator.normal(size=50)) for _ in range(2))
    found = analyse(
        plan(size=50, rule=PromotionRule(alpha=1.0, effect=-9.0)),
        {"control": control, "treatment": treatment},
    )
    assert (found.promoted is not None) == (treatment.mean > control.mean)


def test_what_does_not_fit_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="outcomes must be of the arms"):
        analyse(plan(), {"control": CONTROL})
    with pytest.raises(ValueError, match="outcomes must be of the arms"):
        analyse(plan(), {"control": CONTROL, "treatment": BETTER}, guardrails={"control": []})
    with pytest.raises(ValueError, match="a control, a treatment"):
        Plan((Arm("control", 1.0),), 176)
    with pytest.raises(ValueError, match="two sessions"):
        Plan(HALVES, 1)
    with pytest.raises(ValueError, match="add up to 1"):
        Plan((Arm("control", 0.5), Arm("treatment", 0.4)), 176)
