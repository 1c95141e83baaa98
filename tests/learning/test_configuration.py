"""A configuration says every number of the rules, cannot be nonsense, and has one digest."""

import hashlib
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.configuration import (
    DiversityConfiguration,
    GuardConfiguration,
    InvalidConfiguration,
    LearningConfiguration,
)
from somabrain_dagster.learning.weights import NAMES, POSITION, WEIGHTS, from_names

pytestmark = pytest.mark.learning

DEFAULT = LearningConfiguration()

unit = st.floats(0, 1)
gains = st.fixed_dictionaries({name: st.floats(-2, 2) for name in NAMES})
configurations = st.builds(
    LearningConfiguration,
    base_learning_rate=unit,
    dynamic_learning_rate=st.booleans(),
    reward_rate=unit,
    scalar_gain=gains,
    credit_gain=gains,
    guard=st.builds(
        GuardConfiguration,
        enabled=st.booleans(),
        recent=st.integers(2, 50),
        before=st.integers(2, 200),
        standard_errors=st.floats(0, 9),
    ),
    diversity=st.builds(
        DiversityConfiguration,
        window=st.integers(1, 100),
        similarity=unit,
        target=unit,
        rise=unit,
        fall=unit,
    ),
)


def test_the_defaults_are_the_registry() -> None:
    for weight in WEIGHTS:
        position = POSITION[weight.name]
        assert DEFAULT.start_nanos[position] == round(weight.start * 10**9)
        assert DEFAULT.low_nanos[position] == round(weight.low * 10**9)
        assert DEFAULT.high_nanos[position] == round(weight.high * 10**9)
        assert DEFAULT.scalar_gains[position] == weight.scalar_gain
        assert DEFAULT.credit_gains[position] == weight.credit_gain


@given(configurations)
def test_json_gives_the_configuration_back(configuration: LearningConfiguration) -> None:
    text = json.dumps(configuration.to_json())
    again = LearningConfiguration.from_json(json.loads(text))
    assert again == configuration
    assert again.digest == configuration.digest


def test_the_digest_is_of_canonical_json() -> None:
    canonical = json.dumps(DEFAULT.to_json(), sort_keys=True, separators=(",", ":"))
    assert DEFAULT.digest == hashlib.sha256(canonical.encode()).hexdigest()


@given(configurations, configurations)
def test_digests_differ_where_configurations_do(
    one: LearningConfiguration, other: LearningConfiguration
) -> None:
    assert (one == other) == (one.digest == other.digest)
    assert one != other or hash(one) == hash(other)


def test_numbers_that_are_equal_have_one_digest() -> None:
    whole = LearningConfiguration(base_learning_rate=1, scalar_gain=dict.fromkeys(NAMES, 0))
    signed = LearningConfiguration(base_learning_rate=1.0, scalar_gain=dict.fromkeys(NAMES, -0.0))
    assert whole.digest == signed.digest


def test_the_order_of_names_does_not_matter() -> None:
    backwards = dict(reversed(list(DEFAULT.start.items())))
    assert replace(DEFAULT, start=backwards).digest == DEFAULT.digest


def test_a_mapping_that_changes_later_changes_nothing() -> None:
    start = dict(DEFAULT.start)
    configuration = LearningConfiguration(start=start)
    start["alpha"] = 2.0
    assert configuration == DEFAULT


def test_the_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        DEFAULT.start_nanos[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        DEFAULT.scalar_gains[0] = 1


def test_a_weight_is_at_its_lower_bound_at_its_upper_or_between() -> None:
    own = DEFAULT.overridden({"low": {"nu": 0.05}, "high": {"nu": 0.05}})
    weights = {**own.start, "alpha": own.low["alpha"], "gamma": own.high["gamma"]}
    places = dict(zip(NAMES, own.at_bounds(from_names(weights)).tolist(), strict=True))
    assert {name: place for name, place in places.items() if place} == {"alpha": -1, "gamma": 1}
    assert places["nu"] == 0, "what is fixed is at no bound"


def test_a_configuration_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(DEFAULT)) == DEFAULT


def test_a_tenant_overrides_only_what_it_names() -> None:
    tenant = DEFAULT.overridden(
        {"base_learning_rate": 0.02, "high": {"alpha": 2.0}, "guard": {"enabled": False}}
    )
    expected = DEFAULT.to_json()
    expected["base_learning_rate"] = 0.02
    expected["high"]["alpha"] = 2.0
    expected["guard"]["enabled"] = False
    assert tenant.to_json() == expected


def test_overriding_nothing_changes_nothing() -> None:
    assert DEFAULT.overridden({}) == DEFAULT


@given(configurations)
def test_overriding_everything_is_that_configuration(configuration: LearningConfiguration) -> None:
    assert DEFAULT.overridden(configuration.to_json()) == configuration


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 0.1}, "the configuration has no learning_rate"),
        ({"start": {"omega": 1.0}}, "start has no omega"),
        ({"guard": {"patience": 3}}, "guard has no patience"),
        ({"start": 1.0}, "start must be an object by name"),
        ({"guard": True}, "guard must be an object by name"),
        ({"low": {"alpha": 4.0}}, "alpha must have low ≤ start ≤ high"),
        ({"low": {"tau": 1.5}, "high": {"tau": 0.5}}, "tau must have low ≤ start ≤ high"),
        ({"start": {"alpha": 3.5}}, "alpha must have low ≤ start ≤ high"),
        ({"start": {"alpha": math.nan}}, r"start\.alpha must be a finite number"),
        ({"high": {"alpha": math.inf}}, r"high\.alpha must be a finite number"),
        ({"high": {"alpha": 2e9}}, r"high\.alpha must be from"),
        ({"scalar_gain": {"alpha": "1"}}, r"scalar_gain\.alpha must be a finite number"),
        ({"scalar_gain": {"alpha": True}}, r"scalar_gain\.alpha must be a finite number"),
        ({"base_learning_rate": -0.1}, "base_learning_rate must be from 0"),
        ({"base_learning_rate": None}, "base_learning_rate must be a finite number"),
        ({"reward_rate": 1.1}, "reward_rate must be from 0"),
        ({"dynamic_learning_rate": 1}, "dynamic_learning_rate must be true or false"),
        ({"guard": {"enabled": "yes"}}, r"guard\.enabled must be true or false"),
        ({"guard": {"recent": 1}}, r"guard\.recent must be a whole number from 2"),
        ({"guard": {"before": 2.5}}, r"guard\.before must be a whole number"),
        ({"guard": {"recent": 1600, "before": 1600}}, "must be at most 3000"),
        ({"guard": {"standard_errors": -1}}, r"guard\.standard_errors must be from 0"),
        ({"diversity": {"window": 0}}, r"diversity\.window must be a whole number from 1"),
        ({"diversity": {"similarity": 1.5}}, r"diversity\.similarity must be from -1"),
        ({"diversity": {"target": -0.5}}, r"diversity\.target must be from 0"),
        ({"diversity": {"rise": -0.1}}, r"diversity\.rise must be from 0"),
        ({"diversity": {"fall": math.nan}}, r"diversity\.fall must be a finite number"),
    ],
)
def test_nonsense_is_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        DEFAULT.overridden(overrides)


@pytest.mark.parametrize("entry", list(DEFAULT.to_json()))
def test_a_stored_configuration_must_be_whole(entry: str) -> None:
    stored = DEFAULT.to_json()
    del stored[entry]
    with pytest.raises(InvalidConfiguration, match=f"the configuration lacks {entry}"):
        LearningConfiguration.from_json(stored)


@pytest.mark.parametrize("entry", ["start", "low", "high", "scalar_gain", "credit_gain"])
def test_a_stored_configuration_names_every_weight(entry: str) -> None:
    stored = DEFAULT.to_json()
    del stored[entry]["tau"]
    with pytest.raises(InvalidConfiguration, match=f"{entry} lacks tau"):
        LearningConfiguration.from_json(stored)
