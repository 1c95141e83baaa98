"""What lands: real ratings of a hundred people, over again until there are enough, each an event of its own.

Every event is known beforehand by its tenant and a number, so that whoever was interrupted knows what is
missing. The number is in the event's metadata and in its idempotency key: it lands once, however often it is
sent, and is found again wherever a copy of it came to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from benchmarks.analysis import rated_people, rating_of
from somabrain_dagster.store.feedback_contract import Feedback

FEWEST = 2_000
BLOCK = 5_000
"""Events that land in one stream or file, at most."""
LEAST_BLOCKS = 20
SINGLY = 0.02
"""The share that lands one by one."""
NUMBER = "number"


@dataclass(frozen=True)
class Plan:
    """So many events.

    Attributes:
        events: how many in all, a multiple of the number of tenants.
        people: what each tenant's person really said, in order.
    """

    events: int
    people: Mapping[str, Sequence[Feedback]]

    @cached_property
    def tenants(self) -> tuple[str, ...]:
        """Whose events."""
        return tuple(self.people)

    @property
    def each(self) -> int:
        """How many events a tenant has."""
        return self.events // len(self.people)

    @property
    def bulk(self) -> int:
        """How many of a tenant's land in blocks: those of the first numbers; the others land one by one."""
        return self.each - max(1, round(self.each * SINGLY))

    @property
    def together(self) -> int:
        """How many of each tenant are in a block."""
        return max(1, min(BLOCK // len(self.people), self.bulk // LEAST_BLOCKS))

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.bulk // self.together)

    def numbers(self, block: int) -> range:
        """The numbers that a block has of every tenant."""
        return range(block * self.together, min((block + 1) * self.together, self.bulk))

    def block(self, block: int) -> list[Feedback]:
        """The events of a block: the tenants in turn, as if all of them spoke at once."""
        return [self.event(tenant, number) for number in self.numbers(block) for tenant in self.people]

    def singles(self) -> Iterator[Feedback]:
        """The events that land one by one, the tenants in turn."""
        for number in range(self.bulk, self.each):
            for tenant in self.people:
                yield self.event(tenant, number)

    def event(self, tenant_id: str, number: int) -> Feedback:
        """A tenant's event of that number."""
        rating = rating_of(self.people[tenant_id], number, apart=False)
        return msgspec.structs.replace(
            rating, metadata={NUMBER: number}, idempotency_key=f"validate:{number}"
        )


def plan_of(events: int) -> Plan:
    """The plan of so many events, or a few less, so that every tenant has as many.

    Raises:
        ValueError: there are too few for the shares that land in each way.
    """
    if events < FEWEST:
        raise ValueError(f"{events:,} events are too few for every path: name {FEWEST:,} at least")
    people = rated_people()
    return Plan(events - events % len(people), people)
