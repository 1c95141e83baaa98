"""A gate passes only on a number that meets its limit, and says by how much it failed."""

import json
from math import inf, isnan, nan

import pytest

from somabrain_dagster.learning.gates import Gate, Relation, failed

pytestmark = pytest.mark.learning


@pytest.mark.parametrize(
    ("relation", "below", "at", "above"),
    [
        ("<", True, False, False),
        ("≤", True, True, False),
        (">", False, False, True),
        ("≥", False, True, True),
    ],
)
def test_a_relation_means_what_it_says(relation: Relation, below: bool, at: bool, above: bool) -> None:
    assert [Gate("x", value, relation, 2.0).passed for value in (1.0, 2.0, 3.0)] == [below, at, above]


@pytest.mark.parametrize("relation", ["<", "≤", ">", "≥"])
def test_what_was_not_measured_never_passes(relation: Relation) -> None:
    gate = Gate("sessions", nan, relation, 5.0)
    assert not gate.passed
    assert gate.missing
    assert isnan(gate.shortfall)
    assert str(gate) == f"sessions {relation} 5: not measured"


def test_a_refusal_says_by_how_much() -> None:
    ess = Gate("effective_sample_size", 2.0, "≥", 2000.0)
    fine = Gate("divergence", 0.01, "≤", 0.05)
    assert failed((fine, ess)) == (ess,)
    assert ess.shortfall == 1998
    assert str(ess) == "effective_sample_size ≥ 2000: 2, failed by 1998"
    assert fine.shortfall == 0
    assert str(fine) == "divergence ≤ 0.05: 0.01, passed"


@pytest.mark.parametrize("value", [0.1, -1e-300, 3.0, inf, -inf])
def test_a_gate_survives_json(value: float) -> None:
    gate = Gate("effect", value, "≥", 0.3)
    assert Gate.from_json(json.loads(json.dumps(gate.to_json(), allow_nan=False))) == gate


def test_what_was_not_measured_is_null_in_json() -> None:
    body = json.loads(json.dumps(Gate("p", nan, "<", nan).to_json(), allow_nan=False))
    assert body == {"name": "p", "value": None, "relation": "<", "limit": None, "passed": False}
    assert Gate.from_json(body).missing
