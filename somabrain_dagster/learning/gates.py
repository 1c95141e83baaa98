"""Gates: conditions that a number must meet before weights may change, kept with the number and the limit."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, Literal, Self

Relation = Literal["<", "≤", ">", "≥"]

_HOLDS = {"<": operator.lt, "≤": operator.le, ">": operator.gt, "≥": operator.ge}


@dataclass(frozen=True)
class Gate:
    """A condition, what was found, and whether it passed: `value relation limit`.

    Attributes:
        name: what is measured.
        value: the measurement; NaN where there is none.
        relation: how it must stand to the limit.
        limit: the limit.
    """

    name: str
    value: float
    relation: Relation
    limit: float

    @property
    def missing(self) -> bool:
        """There is no measurement."""
        return isnan(self.value)

    @property
    def passed(self) -> bool:
        """The condition holds. What was not measured never passes."""
        return bool(_HOLDS[self.relation](self.value, self.limit))

    @property
    def shortfall(self) -> float:
        """By how much it failed: 0 where it passed, NaN where nothing was measured."""
        return 0.0 if self.passed else abs(self.value - self.limit)

    def to_json(self) -> dict[str, Any]:
        """The gate as JSON keeps it: what was not measured is null, and what is infinite is a word."""
        return {
            "name": self.name,
            "value": number_to_json(self.value),
            "relation": self.relation,
            "limit": number_to_json(self.limit),
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """The gate that `to_json` gave."""
        return cls(
            body["name"],
            number_from_json(body["value"]),
            body["relation"],
            number_from_json(body["limit"]),
        )

    def __str__(self) -> str:
        condition = f"{self.name} {self.relation} {self.limit:.6g}"
        if self.missing:
            return f"{condition}: not measured"
        verdict = "passed" if self.passed else f"failed by {self.shortfall:.6g}"
        return f"{condition}: {self.value:.6g}, {verdict}"


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates that did not pass, in their order."""
    return tuple(gate for gate in gates if not gate.passed)


def number_to_json(number: float) -> float | str | None:
    """A number as JSON keeps it: null for NaN, a word for an infinite one."""
    if isnan(number):
        return None
    return number if abs(number) < inf else str(number)


def number_from_json(number: float | str | None) -> float:
    """The number that `number_to_json` gave."""
    return nan if number is None else float(number)
