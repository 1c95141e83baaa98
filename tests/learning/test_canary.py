"""A canary is chosen evenly, rolled back on harm, promoted only on complete data, and else held."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from somabrain_dagster.learning.canary import (
    Action,
    CanaryRule,
    Decision,
    TenantPeriods,
    adjusted_comparison,
    canaries,
    decide,
    due,
)
from somabrain_dagster.learning.comparison import compare
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.moments import Moments

pytestmark = pytest.mark.learning

RULE = CanaryRule()
CLEAN = {
    "error_rate": Gate("error_rate", 0.001, "≤", 0.01),
    "latency_p95": Gate("latency_p95", 90.0, "≤", 250.0),
}
LAST = len(RULE.hours) - 1

tenant_sizes = st.dictionaries(st.text(max_size=5), st.integers(0, 1000), min_size=2, max_size=120)


# Who


@given(tenant_sizes, st.sampled_from([0.01, 0.1, 0.5, 0.99]))
def test_a_share_of_the_tenants_one_at_least_and_never_all(sizes: dict[str, int], share: float) -> None:
    chosen = canaries("rollout", sizes, replace(RULE, share=share))
    assert set(chosen) <= set(sizes)
    assert len(set(chosen)) == len(chosen) == min(max(round(share * len(sizes)), 1), len(sizes) - 1)


@given(tenant_sizes, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_larger_share_keeps_the_canaries_of_a_smaller_one(
    sizes: dict[str, int], a: float, b: float
) -> None:
    small, large = (set(canaries("rollout", sizes, replace(RULE, share=share))) for share in sorted((a, b)))
    assert small <= large


@given(st.integers(0, 1000))
def test_every_stratum_of_size_gives_its_share(salt: int) -> None:
    sizes = {f"tenant-{i}": i * i for i in range(100)}
    chosen = canaries(f"rollout-{salt}", sizes, RULE)
    of_stratum = np.bincount([int(tenant.removeprefix("tenant-")) // 20 for tenant in chosen], minlength=5)
    assert of_stratum.sum() == 10
    assert of_stratum.min() >= 1
    assert of_stratum.max() <= 3


def test_each_tenant_has_the_same_chance() -> None:
    sizes = {f"tenant-{i}": i % 7 for i in range(25)}
    counts = dict.fromkeys(sizes, 0)
    for salt in range(2000):
        for tenant in canaries(str(salt), sizes, replace(RULE, share=0.2)):
            counts[tenant] += 1
    # Binomial, 2000 draws of .2: a standard deviation of 18.
    assert all(abs(count - 400) < 90 for count in counts.values())


def test_nothing_but_the_arguments_decides() -> None:
    sizes = {"a": 3, "b": 1, "c": 2, "d": 9}
    backwards = dict(reversed(list(sizes.items())))
    assert canaries("rollout", sizes, RULE) == canaries("rollout", backwards, RULE)
    assert len({canaries(str(salt), sizes, RULE) for salt in range(20)}) == 4


def test_a_single_tenant_has_nobody_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="another tenant"):
        canaries("rollout", {"only": 5}, RULE)


# When


@pytest.mark.parametrize(
    ("hours", "looked", "look"),
    [
        (5.9, -1, None),
        (6.0, -1, 0),
        (11.0, 0, None),
        (12.0, 0, 1),
        (50.0, 0, 3),
        (50.0, -1, 3),
        (99.0, 3, None),
    ],
)
def test_a_look_is_taken_once_and_looks_slept_through_are_skipped(
    hours: float, looked: int, look: int | None
) -> None:
    assert due(RULE, hours, looked) == look


# What


def generated(seed: int, tenants: int, effect: float, sessions: int = 60) -> list[TenantPeriods]:
    """Tenants that differ by a standard deviation of .5, their sessions by 1; all generated."""
    generator = np.random.default_rng(seed)
    found = []
    for level in generator.normal(0, 0.5, tenants):
        before, since = (
            generator.normal(level, 1, 3 * sessions),
            generator.normal(level + effect, 1, sessions),
        )
        found.append(TenantPeriods(Moments.of(before), Moments.of(since)))
    return found


CANARY, CONTROL = generated(0, 60, 0.05), generated(1, 400, 0.0)


def decision(
    look: int = LAST,
    canary: list[TenantPeriods] = CANARY,
    control: list[TenantPeriods] = CONTROL,
    guardrails: dict[str, Gate] = CLEAN,
) -> Decision:
    return decide(RULE, look, canary, control, guardrails)


def failures(found: Decision) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


def test_a_harmless_canary_is_promoted_at_the_last_look() -> None:
    found = decision()
    assert found.action == "PROMOTE"
    assert found.reasons == ()


@pytest.mark.parametrize("look", range(LAST))
def test_no_earlier_look_promotes(look: int) -> None:
    found = decision(look)
    assert found.action == "HOLD"
    assert found.reasons == (f"look ≥ 4: {look + 1}, failed by {3 - look}",)


@pytest.mark.parametrize("look", range(LAST + 1))
def test_harm_rolls_back_at_any_look(look: int) -> None:
    found = decision(look, canary=generated(2, 60, -0.5))
    assert found.action == "ROLLBACK"
    assert {"harm_p", "harm_bound"} <= failures(found)


@pytest.mark.parametrize("name", ["error_rate", "latency_p95", "refusals"])
def test_a_breached_guardrail_rolls_back_whatever_the_utility(name: str) -> None:
    found = decision(0, guardrails=CLEAN | {name: Gate(name, 0.5, "≤", 0.1)})
    assert found.action == "ROLLBACK"
    assert f"{name} ≤ 0.1: 0.5, failed by 0.4" in found.reasons


def test_benefit_is_no_harm() -> None:
    assert decision(canary=generated(2, 60, 1.0)).action == "PROMOTE"


NOBODY = [TenantPeriods(tenant.before, Moments()) for tenant in CANARY]


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (decision(guardrails={}), {"error_rate", "latency_p95"}),
        (
            decision(guardrails=CLEAN | {"latency_p95": Gate("latency_p95", float("nan"), "≤", 250.0)}),
            {"latency_p95"},
        ),
        (decision(canary=[]), {"canary_sessions", "harm_p", "harm_bound"}),
        (decision(canary=NOBODY), {"canary_sessions", "harm_p", "harm_bound"}),
        (decision(canary=CANARY[:1]), {"canary_sessions", "harm_p", "harm_bound"}),
        (decision(control=[]), {"control_sessions", "harm_p", "harm_bound"}),
        (decision(canary=generated(4, 40, 0.3, sessions=4)), {"canary_sessions"}),
        (decision(canary=generated(5, 4, 0.0)), {"harm_bound"}),
    ],
)
def test_missing_data_never_promotes(found: Decision, failed: set[str]) -> None:
    assert found.action == "HOLD"
    assert failures(found) == failed


def test_the_margin_is_in_standard_deviations_of_a_session() -> None:
    def times(tenants: list[TenantPeriods], by: float) -> list[TenantPeriods]:
        def scaled(some: Moments) -> Moments:
            return Moments(some.n, some.mean * by, some.variance * by * by)

        return [TenantPeriods(scaled(tenant.before), scaled(tenant.since)) for tenant in tenants]

    actions: list[tuple[Action, Action]] = []
    for seed in range(10):
        canary = generated(100 + seed, 25, 0.0)
        tenth = decision(canary=times(canary, 0.1), control=times(CONTROL, 0.1))
        actions.append((decision(canary=canary).action, tenth.action))
    assert all(plain == scaled for plain, scaled in actions)
    assert {plain for plain, _ in actions} >= {"PROMOTE", "HOLD"}


def test_there_is_no_fifth_look() -> None:
    with pytest.raises(ValueError, match="from 0 to 3, not 4"):
        decision(4)


# CUPED


def test_the_adjusted_difference_is_that_of_an_analysis_of_covariance() -> None:
    found = adjusted_comparison(CANARY, CONTROL)
    both = CANARY + CONTROL
    group = np.repeat([1.0, 0.0], [len(CANARY), len(CONTROL)])
    before = np.array([tenant.before.mean for tenant in both])
    since = np.array([tenant.since.mean for tenant in both])
    theirs = OLS(since, np.column_stack([np.ones(len(both)), group, before])).fit(cov_type="HC2")
    assert found is not None
    assert found.difference == pytest.approx(theirs.params[1], rel=1e-9)
    assert found.standard_error == pytest.approx(theirs.bse[1], rel=0.03)


def test_the_period_before_takes_out_what_tenants_differ_in_anyway() -> None:
    adjusted = adjusted_comparison(CANARY, CONTROL)
    plain = compare(*(Moments.of([tenant.since.mean for tenant in group]) for group in (CONTROL, CANARY)))
    assert adjusted is not None
    assert adjusted.standard_error < 0.4 * plain.standard_error


def test_tenants_without_a_period_before_count_with_their_own_number() -> None:
    new = [TenantPeriods(Moments(), tenant.since) for tenant in CANARY]
    others = [TenantPeriods(Moments(), tenant.since) for tenant in CONTROL]
    plain = compare(*(Moments.of([tenant.since.mean for tenant in group]) for group in (CONTROL, CANARY)))
    assert adjusted_comparison(new, others) == plain
    some = adjusted_comparison(CANARY[:40] + new[40:], CONTROL)
    all_known = adjusted_comparison(CANARY, CONTROL)
    assert some is not None
    assert all_known is not None
    assert all_known.standard_error < some.standard_error < plain.standard_error


def test_tenants_that_never_change_leave_no_error_to_judge_by() -> None:
    """Each has its own constant utility: what is left after CUPED is rounding."""
    constant = [TenantPeriods(Moments(9, 0.1 * i, 0.0), Moments(7, 0.1 * i, 0.0)) for i in range(12)]
    assert adjusted_comparison(constant[:5], constant[5:]) is None
    assert decision(canary=constant[:5], control=constant[5:]).action == "HOLD"
