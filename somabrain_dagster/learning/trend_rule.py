"""When a trend is acted upon; apart from the statistics, which take long to import, for who configures it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrendRule:
    """When a trend is acted upon.

    Attributes:
        false_discovery_rate: q must be below it, over all tenants that are judged together.
        effect: the least size of the effect.
    """

    false_discovery_rate: float = 0.05
    effect: float = 0.5
