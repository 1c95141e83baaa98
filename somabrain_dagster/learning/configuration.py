"""How a tenant learns: every number of the rules of adaptation, named, checked and digested."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.learning.weights import NAMES, WEIGHTS, Nanos, from_names

Number = TypeVar("Number", np.int64, np.float64)

LARGEST = 1e9
"""No number of a configuration may be larger: 10⁹ units are 10¹⁸ nano-units, still inside int64."""

LONGEST_WINDOW = 3000
"""Sums of squares over a longer window would leave int64."""


class InvalidConfiguration(ValueError):
    """A configuration that cannot be: the message names the entry and what it must be."""


@dataclass(frozen=True)
class GuardConfiguration:
    """When falling rewards roll a tenant back.

    Attributes:
        enabled: whether the guard acts at all.
        recent: how many of the last rewards are judged.
        before: how many rewards before those they are judged against.
        standard_errors: how far the mean must fall.
    """

    enabled: bool = True
    recent: int = 20
    before: int = 100
    standard_errors: float = 4.0

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InvalidConfiguration: a window is too short for a variance or too long, or a number is negative.
        """
        _check_flag("guard.enabled", self.enabled)
        _check_count("guard.recent", self.recent, least=2)
        _check_count("guard.before", self.before, least=2)
        if self.window > LONGEST_WINDOW:
            raise InvalidConfiguration(f"guard.recent + guard.before must be at most {LONGEST_WINDOW}")
        _normalise(self, "standard_errors", "guard.standard_errors", least=0.0)

    @property
    def window(self) -> int:
        """How many rewards a decision looks at."""
        return self.recent + self.before


@dataclass(frozen=True)
class DiversityConfiguration:
    """How τ follows the diversity of what is recalled.

    Attributes:
        window: how many recalled coordinates are looked at.
        similarity: the cosine from which two coordinates count as the same.
        target: the diversity that τ steers to.
        rise: what τ rises by for each unit that diversity is below the target.
        fall: what τ falls by for each unit that diversity is above the target.
    """

    window: int = 50
    similarity: float = 0.95
    target: float = 0.5
    rise: float = 0.1
    fall: float = 0.05

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InvalidConfiguration: a number is outside what it can mean.
        """
        _check_count("diversity.window", self.window, least=1)
        _normalise(self, "similarity", "diversity.similarity", least=-1.0, most=1.0)
        _normalise(self, "target", "diversity.target", least=0.0, most=1.0)
        _normalise(self, "rise", "diversity.rise", least=0.0)
        _normalise(self, "fall", "diversity.fall", least=0.0)


@dataclass(frozen=True)
class LearningConfiguration:
    """Every number of the rules by which feedback changes weights.

    Attributes:
        base_learning_rate: lr, ≥ 0.
        dynamic_learning_rate: whether dopamine scales the learning rate.
        reward_rate: η of the reward's running mean and variance, in [0, 1].
        start, low, high: of each weight, in units, by name; low ≤ start ≤ high.
        scalar_gain: what feedback that names no memory moves each weight by, for each unit of its signal.
        credit_gain: the same for feedback that names memories.
        guard: when falling rewards roll a tenant back.
        diversity: how τ follows the diversity of what is recalled.
        neuromodulators: levels that an operator holds, by name; those that are not named follow the rewards.
    """

    base_learning_rate: float = 0.05
    dynamic_learning_rate: bool = False
    reward_rate: float = 0.1
    start: Mapping[str, float] = field(default_factory=lambda: {w.name: w.start for w in WEIGHTS})
    low: Mapping[str, float] = field(default_factory=lambda: {w.name: w.low for w in WEIGHTS})
    high: Mapping[str, float] = field(default_factory=lambda: {w.name: w.high for w in WEIGHTS})
    scalar_gain: Mapping[str, float] = field(default_factory=lambda: {w.name: w.scalar_gain for w in WEIGHTS})
    credit_gain: Mapping[str, float] = field(default_factory=lambda: {w.name: w.credit_gain for w in WEIGHTS})
    guard: GuardConfiguration = field(default_factory=GuardConfiguration)
    diversity: DiversityConfiguration = field(default_factory=DiversityConfiguration)
    neuromodulators: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every number and copy the mappings, in the registry's order.

        Raises:
            InvalidConfiguration: a weight is unknown or missing, a number is not finite or too large, a rate
                is negative, or not low ≤ start ≤ high.
        """
        _normalise(self, "base_learning_rate", "base_learning_rate", least=0.0)
        _check_flag("dynamic_learning_rate", self.dynamic_learning_rate)
        _normalise(self, "reward_rate", "reward_rate", least=0.0, most=1.0)
        for entry in ("start", "low", "high", "scalar_gain", "credit_gain"):
            object.__setattr__(self, entry, _by_weight(entry, getattr(self, entry)))
        object.__setattr__(self, "neuromodulators", _held(self.neuromodulators))
        for name in NAMES:
            if not self.low[name] <= self.start[name] <= self.high[name]:
                raise InvalidConfiguration(
                    f"{name} must have low ≤ start ≤ high, "
                    f"not {self.low[name]} ≤ {self.start[name]} ≤ {self.high[name]}"
                )

    def __hash__(self) -> int:
        """Equal configurations have one digest."""
        return hash(self.digest)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InvalidConfiguration: an entry is unknown, missing or wrong.
        """
        data = {"neuromodulators": {}} | dict(data)
        _check_names("the configuration", data, [f.name for f in fields(cls)], complete=True)
        for entry, of in (("guard", GuardConfiguration), ("diversity", DiversityConfiguration)):
            _check_names(entry, data[entry], [f.name for f in fields(of)], complete=True)
        return cls(
            **{
                **data,
                "guard": GuardConfiguration(**data["guard"]),
                "diversity": DiversityConfiguration(**data["diversity"]),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Every entry as JSON: numbers, booleans, and objects by name; without levels held if none are."""
        entries: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if is_dataclass(value):
                value = {f.name: getattr(value, f.name) for f in fields(value)}
            entries[entry.name] = dict(value) if isinstance(value, Mapping) else value
        if not self.neuromodulators:
            del entries["neuromodulators"]
        return entries

    def overridden(self, overrides: Mapping[str, Any]) -> Self:
        """A tenant's configuration: this one with the tenant's own entries, shaped as `to_json` has them.

        Example: `{"base_learning_rate": 0.02, "high": {"alpha": 2.0}, "guard": {"enabled": False}}`.

        Raises:
            InvalidConfiguration: an entry is unknown, or the result cannot be.
        """
        if not overrides:
            return self
        _check_names("the configuration", overrides, [f.name for f in fields(self)])
        changes: dict[str, Any] = {}
        for entry, value in overrides.items():
            current = getattr(self, entry)
            if is_dataclass(current) and not isinstance(current, type):
                _check_names(entry, value, [f.name for f in fields(current)])
                changes[entry] = replace(current, **value)
            elif isinstance(current, Mapping):
                _check_names(entry, value, tuple(LEVELS) if entry == "neuromodulators" else NAMES)
                changes[entry] = {**current, **value}
            else:
                changes[entry] = value
        return replace(self, **changes)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON: keys sorted, no spaces."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def start_nanos(self) -> Nanos:
        """Where the weights start, (K,), nano-units, read-only."""
        return _frozen(from_names(self.start))

    @cached_property
    def low_nanos(self) -> Nanos:
        """The weights' lower bounds, (K,), nano-units, read-only."""
        return _frozen(from_names(self.low))

    @cached_property
    def high_nanos(self) -> Nanos:
        """The weights' upper bounds, (K,), nano-units, read-only."""
        return _frozen(from_names(self.high))

    def at_bounds(self, weights: ArrayLike) -> NDArray[np.int64]:
        """Which weights, (K,) nano-units, are at a bound: −1 at the lower, 1 at the upper, 0 between.

        A weight whose bounds are one is fixed, and at neither.
        """
        nanos = np.asarray(weights, dtype=np.int64)
        return (nanos >= self.high_nanos).astype(np.int64) - (nanos <= self.low_nanos)

    @cached_property
    def scalar_gains(self) -> Floats:
        """The gains of feedback that names no memory, (K,), read-only."""
        return _frozen(np.array([self.scalar_gain[name] for name in NAMES]))

    @cached_property
    def credit_gains(self) -> Floats:
        """The gains of feedback that names memories, (K,), read-only."""
        return _frozen(np.array([self.credit_gain[name] for name in NAMES]))


def _frozen(array: NDArray[Number]) -> NDArray[Number]:
    array.setflags(write=False)
    return array


def _check_names(
    where: str, given: object, known: list[str] | tuple[str, ...], *, complete: bool = False
) -> None:
    if not isinstance(given, Mapping):
        raise InvalidConfiguration(f"{where} must be an object by name, not {given!r}")
    if unknown := sorted(str(name) for name in given if name not in known):
        raise InvalidConfiguration(f"{where} has no {', '.join(unknown)}; there are {', '.join(known)}")
    if complete and (missing := [name for name in known if name not in given]):
        raise InvalidConfiguration(f"{where} lacks {', '.join(missing)}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidConfiguration(f"{name} must be true or false, not {value!r}")


def _check_count(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LONGEST_WINDOW:
        raise InvalidConfiguration(
            f"{name} must be a whole number from {least} to {LONGEST_WINDOW}, not {value!r}"
        )


def _number(name: str, value: object, *, least: float = -LARGEST, most: float = LARGEST) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidConfiguration(f"{name} must be a finite number, not {value!r}")
    if not least <= value <= most:
        raise InvalidConfiguration(f"{name} must be from {least} to {most}, not {value!r}")
    return float(value) + 0.0  # 1 and 1.0, 0.0 and −0.0 are equal, so their digests must be


def _normalise(
    owner: object, attribute: str, name: str, *, least: float = -LARGEST, most: float = LARGEST
) -> None:
    number = _number(name, getattr(owner, attribute), least=least, most=most)
    object.__setattr__(owner, attribute, number)


def _by_weight(entry: str, values: object) -> dict[str, float]:
    _check_names(entry, values, NAMES, complete=True)
    assert isinstance(values, Mapping)
    return {name: _number(f"{entry}.{name}", values[name]) for name in NAMES}


def _held(levels: object) -> dict[str, float]:
    _check_names("neuromodulators", levels, tuple(LEVELS))
    assert isinstance(levels, Mapping)
    return {
        name: _number(f"neuromodulators.{name}", levels[name], least=least, most=most)
        for name, (least, most) in LEVELS.items()
        if name in levels
    }
