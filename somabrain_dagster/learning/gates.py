"""Gates: conditions that a number must meet before weights may change, kept with the number and the limit."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan
from typing import Literal

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

    def __str__(self) -> str:
        condition = f"{self.name} {self.relation} {self.limit:.6g}"
        if self.missing:
            return f"{condition}: not measured"
        verdict = "passed" if self.passed else f"failed by {self.shortfall:.6g}"
        return f"{condition}: {self.value:.6g}, {verdict}"


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates that did not pass, in their order."""
    return tuple(gate for gate in gates if not gate.passed)
