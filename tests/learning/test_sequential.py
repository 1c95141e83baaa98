"""Evidence of harm stays valid at every look: its mean without an effect is 1, and it follows its formula."""

from math import exp, inf, log, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from somabrain_dagster.learning.comparison import compare
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.sequential import LEAST_UNITS, harm, log_evidence

pytestmark = pytest.mark.learning

looks = st.integers(2 * LEAST_UNITS, 2000)


@pytest.mark.parametrize("units", [1, 20, 352, 10_000])
def test_without_an_effect_the_mean_evidence_is_one(units: int) -> None:
    def weighted(t: float) -> float:
        return exp(float(log_evidence(t, units, 352, 0.05)) - t * t / 2) / sqrt(2 * pi)

    assert quad(weighted, -inf, inf)[0] == pytest.approx(1.0, rel=1e-8)


@given(st.floats(-20, 20), looks, st.floats(0.001, 0.2))
def test_it_crosses_one_over_alpha_at_the_edge_of_the_confidence_sequence(
    t: float, units: int, alpha: float
) -> None:
    """Waudby-Smith et al.: a half-width of √( 2(Nρ²+1)/(N²ρ²) · ln(√(Nρ²+1)/α) ) standard deviations."""
    planned = 352
    rho = (-2 * log(alpha) + log(1 - 2 * log(alpha))) / planned
    half = sqrt(2 * (units * rho + 1) / (units**2 * rho) * log(sqrt(units * rho + 1) / alpha))
    if abs(abs(t) / sqrt(units) - half) > 1e-9:
        outside = abs(t) / sqrt(units) > half
        assert (log_evidence(t, units, planned, alpha) > -log(alpha)) == outside


@given(looks, st.floats(0, 30), st.floats(0, 30))
def test_a_larger_difference_is_more_evidence(units: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert log_evidence(low, units, 352, 0.05) <= log_evidence(high, units, 352, 0.05)
    assert log_evidence(-high, units, 352, 0.05) == log_evidence(high, units, 352, 0.05)


def test_harm_is_the_evidence_at_welchs_t() -> None:
    control, treatment = Moments(80, 0.5, 1.0), Moments(70, -0.2, 1.3)
    found = harm(control, treatment, size=176)
    assert found.log_e == log_evidence(compare(control, treatment).t, 150, 352, 0.05)
    assert found.p == pytest.approx(exp(-found.log_e))
    assert found.difference == pytest.approx(-0.7)
    assert found.stop
    assert found.gate.name == "harm"
    assert not found.gate.passed


def test_a_benefit_of_the_same_size_goes_on() -> None:
    found = harm(Moments(70, -0.2, 1.3), Moments(80, 0.5, 1.0), size=176)
    assert found.p < 0.05
    assert not found.stop


def test_the_first_sessions_stop_nothing() -> None:
    few = LEAST_UNITS - 1
    assert not harm(Moments(few, 1.0, 1e-4), Moments(500, -1.0, 1e-4), size=176).stop
    assert not harm(Moments(500, 1.0, 1e-4), Moments(few, -1.0, 1e-4), size=176).stop
    assert harm(Moments(LEAST_UNITS, 1.0, 1e-4), Moments(LEAST_UNITS, -1.0, 1e-4), size=176).stop
    assert not harm(Moments(), Moments(), size=176).stop


def test_overwhelming_evidence_does_not_overflow() -> None:
    found = harm(Moments(10_000, 1.0, 1e-6), Moments(10_000, -1.0, 1e-6), size=10_000)
    assert found.stop
    assert found.log_e > 1e6
    assert found.p == 0


def test_looking_after_every_session_seldom_stops_what_does_no_harm() -> None:
    """Generated without any effect; two-sided evidence at α = .05 allows harm at most half of that."""
    generator = np.random.default_rng(0)
    runs, size = 300, 60
    stopped = 0
    for values in generator.normal(size=(runs, 2, size)):
        control, treatment = Moments(), Moments()
        for a, b in values.T:
            control, treatment = control.merge(Moments.of([a])), treatment.merge(Moments.of([b]))
            if harm(control, treatment, size=size).stop:
                stopped += 1
                break
    assert stopped <= 0.05 * runs
