"""Quantiles from histograms, and the gates that hold a canary's requests against the others'."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.canary import CanaryRule
from somabrain_dagster.learning.guardrails import (
    LATENCY_EDGES,
    GuardrailRule,
    RequestCounts,
    gates,
    latency_bin,
    quantile,
)

RULE = GuardrailRule(error_margin=0.01, latency_factor=1.5, requests=100)
Seconds = st.floats(min_value=0, max_value=30)


def counted(seconds: list[float], errors: int = 0) -> RequestCounts:
    bins = np.bincount([latency_bin(one) for one in seconds], minlength=len(LATENCY_EDGES) + 1)
    return RequestCounts(len(seconds), errors, tuple(bins.tolist()))


@given(Seconds)
def test_a_request_is_counted_in_the_bin_that_it_fits(seconds: float) -> None:
    place = latency_bin(seconds)
    assert seconds <= LATENCY_EDGES[place]
    assert place == 0 or seconds > LATENCY_EDGES[place - 1]


@given(st.lists(Seconds, min_size=1), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_in_the_bin_of_the_request_that_is_it(seconds: list[float], share: float) -> None:
    exact = float(np.quantile(seconds, share, method="inverted_cdf"))
    place = latency_bin(exact)
    bottom = LATENCY_EDGES[place - 1] if place else 0.0
    assert bottom <= quantile(counted(seconds).latencies, share) <= LATENCY_EDGES[place]


def test_within_a_bin_values_count_as_evenly_spread() -> None:
    counts = [0] * (len(LATENCY_EDGES) + 1)
    counts[4] = 100
    low, high = LATENCY_EDGES[3], LATENCY_EDGES[4]
    assert quantile(counts, 0.25) == pytest.approx(low + 0.25 * (high - low))


def test_what_takes_longer_than_the_last_edge_counts_as_the_last_edge() -> None:
    assert counted([100.0]).latency(0.95) == LATENCY_EDGES[-1]


def test_without_requests_nothing_is_measured() -> None:
    nothing = RequestCounts(0, 0, ())
    assert isnan(nothing.error_rate)
    assert isnan(nothing.latency(0.95))


def test_a_canary_that_fails_no_more_and_is_no_slower_passes() -> None:
    found = gates(counted([0.02] * 100, errors=1), counted([0.02] * 900, errors=9), RULE)
    assert all(gate.passed for gate in found.values())
    assert set(found) == set(CanaryRule().guardrails)


def test_more_errors_than_the_margin_allows_fail_their_gate_alone() -> None:
    found = gates(counted([0.02] * 100, errors=3), counted([0.02] * 900, errors=9), RULE)
    assert (found["error_rate"].passed, found["latency_p95"].passed) == (False, True)
    assert found["error_rate"].shortfall == pytest.approx(0.01)


def test_a_canary_that_is_slower_than_the_factor_allows_fails_its_gate_alone() -> None:
    slow = [0.02] * 90 + [0.2] * 10
    found = gates(counted(slow), counted([0.02] * 900), RULE)
    assert (found["error_rate"].passed, found["latency_p95"].passed) == (True, False)


@pytest.mark.parametrize(("canary", "control"), [(99, 900), (100, 99), (0, 900), (100, 0)])
def test_too_few_requests_of_either_group_are_no_measurement(canary: int, control: int) -> None:
    found = gates(counted([0.02] * canary), counted([0.02] * control), RULE)
    assert all(gate.missing and not gate.passed for gate in found.values())
