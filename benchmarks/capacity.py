"""How many machines so many events a day need, by what one costs: `python -m benchmarks.capacity [--write]`.

Pure functions of measured unit costs (docs/figures/unit-costs.json, by benchmarks/unit_costs.py) and of
assumptions that stand beside them. They multiply: that costs stay as they are when there is more of
everything is an assumption too, and docs/SCALING.md says where it is known not to hold. `--write` puts the
tables into that page.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path

from scripts.documents import with_measured

FIGURES = Path("docs/figures/unit-costs.json")
PAGE = Path("docs/SCALING.md")
EVENTS_A_DAY = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
DAY = 86_400.0


@dataclass(frozen=True)
class UnitCosts:
    """What one of each costs. Microseconds and milliseconds are the processor's, of one core.

    Attributes:
        service_us: of the service's processes, an event of feedback.
        landing_us: of Postgres, the same event.
        bulk_us: of an import's process and Postgres together, an event.
        recall_ms: of the asking process and Postgres together, a recall with its feedback.
        verify_us: of replaying and deriving again one change of weights, process and Postgres together.
        daily_us: of aggregating an event by its day.
        relay_us: of the relay, a record; None where there was no Kafka to measure it by.
        fit_ms: of a tenant's own fit.
        corpus_us: of a memory in a corpus.
        event_bytes, key_bytes, change_bytes, recall_bytes, memory_bytes: a row with its indexes.
        record_bytes: a record in Kafka.
    """

    service_us: float
    landing_us: float
    bulk_us: float
    recall_ms: float
    verify_us: float
    daily_us: float
    relay_us: float | None
    fit_ms: float
    corpus_us: float
    event_bytes: float
    key_bytes: float
    change_bytes: float
    recall_bytes: float
    memory_bytes: float
    record_bytes: float


@dataclass(frozen=True)
class Assumptions:
    """What nobody has measured, and everybody may put otherwise.

    Attributes:
        peak: the busiest second, over the mean of the day.
        use: how much of a core is used at the peak.
        cores: of a machine.
        recalls: an event of feedback.
        memories: new ones, an event of feedback.
        retention_days: of events, recalls and idempotency keys.
        copies: of Postgres, a standby among them.
        kafka_copies: of a record.
        kafka_days: that Kafka keeps one.
        partition_bytes_s: that a partition of Kafka is given at the peak.
        fits: of a tenant, a day.
        events_a_tenant: a day.
    """

    peak: float = 3.0
    use: float = 0.5
    cores: int = 16
    recalls: float = 1.0
    memories: float = 0.2
    retention_days: int = 90
    copies: int = 2
    kafka_copies: int = 3
    kafka_days: int = 7
    partition_bytes_s: float = 1e6
    fits: float = 1.0
    events_a_tenant: float = 500.0


ASSUMED: Mapping[str, str] = {
    "peak": "the busiest second over the day's mean",
    "use": "the share of a core that is used at the peak",
    "cores": "cores of a machine",
    "recalls": "recalls an event of feedback",
    "memories": "new memories an event of feedback",
    "retention_days": "days that events, recalls and idempotency keys are kept",
    "copies": "copies of Postgres, the standby among them",
    "kafka_copies": "copies of a record in Kafka",
    "kafka_days": "days that Kafka keeps a record",
    "partition_bytes_s": "bytes a second that a partition of Kafka is given at the peak",
    "fits": "fits of a tenant's own weights, a day",
    "events_a_tenant": "events of a tenant, a day",
}

RECORDS = 2
"""That an event is in Kafka: itself, and its change of weights."""


@dataclass(frozen=True)
class Needed:
    """What so many events a day need. Cores are those at the peak, at the assumed use.

    Attributes:
        events_s: at the peak.
        service_cores: for feedback alone.
        recall_cores: for recalls, Postgres' part included.
        postgres_cores: for landing, aggregating and recalls' feedback.
        machines: for all of these.
        dagster_cores: over the whole day, for aggregates, fits and the proof of the day's changes.
        relay_cores: of relays; more than one needs the log divided.
        disk_tb: of Postgres, all copies, once retention has begun to prune.
        log_tb_a_year: by which the log of changes grows, all copies: it is never pruned.
        kafka_tb: on all brokers.
        partitions: of each topic.
        whole_proof_hours: of one core, to replay the log of a year from its beginning.
    """

    events_s: float
    service_cores: float
    recall_cores: float
    postgres_cores: float
    machines: int
    dagster_cores: float
    relay_cores: float | None
    disk_tb: float
    log_tb_a_year: float
    kafka_tb: float
    partitions: int
    whole_proof_hours: float


def needed(events_a_day: float, costs: UnitCosts, assumed: Assumptions) -> Needed:
    """What so many events a day need."""
    peak = events_a_day / DAY * assumed.peak
    at_peak = peak / assumed.use / 1e6
    service = at_peak * costs.service_us
    postgres = at_peak * costs.landing_us
    recall = at_peak * assumed.recalls * costs.recall_ms * 1e3
    fits = events_a_day / assumed.events_a_tenant * assumed.fits * costs.fit_ms * 1e3
    background = events_a_day * (costs.daily_us + costs.verify_us) + fits
    kept = (
        costs.event_bytes
        + costs.key_bytes
        + assumed.recalls * costs.recall_bytes
        + assumed.memories * costs.memory_bytes * 365 / assumed.retention_days
    )
    records = events_a_day * RECORDS * costs.record_bytes
    return Needed(
        events_s=peak,
        service_cores=service,
        recall_cores=recall,
        postgres_cores=postgres,
        machines=ceil((service + recall + postgres * assumed.copies) / assumed.cores),
        dagster_cores=background / DAY / assumed.use / 1e6,
        relay_cores=None if costs.relay_us is None else at_peak * RECORDS * costs.relay_us,
        disk_tb=events_a_day * assumed.retention_days * kept * assumed.copies / 1e12,
        log_tb_a_year=events_a_day * 365 * costs.change_bytes * assumed.copies / 1e12,
        kafka_tb=records * assumed.kafka_days * assumed.kafka_copies / 1e12,
        partitions=max(6, ceil(records / DAY * assumed.peak / RECORDS / assumed.partition_bytes_s)),
        whole_proof_hours=events_a_day * 365 * costs.verify_us / 1e6 / 3600,
    )


def figure(value: float | int | None) -> str:
    """A number in two or three digits, as far as it is known."""
    if value is None:
        return "not measured"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


ROWS: Sequence[tuple[str, Callable[[Needed], float | int | None]]] = (
    ("events a second at the peak", lambda one: one.events_s),
    ("cores of the service, for feedback", lambda one: one.service_cores),
    ("cores of Postgres, for landing it", lambda one: one.postgres_cores),
    ("cores for recalls, Postgres' part included", lambda one: one.recall_cores),
    ("machines for these, the standby's included", lambda one: one.machines),
    ("cores of Dagster's workers, all day", lambda one: one.dagster_cores),
    ("cores of the relay", lambda one: one.relay_cores),
    ("TB of Postgres, a year's memories included", lambda one: one.disk_tb),
    ("TB a year by which the log grows", lambda one: one.log_tb_a_year),
    ("TB of Kafka", lambda one: one.kafka_tb),
    ("partitions of a topic of Kafka", lambda one: one.partitions),
    ("core hours to prove a year's log from its beginning", lambda one: one.whole_proof_hours),
)


def capacity_table(costs: UnitCosts, assumed: Assumptions) -> str:
    """What each number of events a day needs, in Markdown."""
    columns = [needed(events, costs, assumed) for events in EVENTS_A_DAY]
    lines = ["| events a day | " + " | ".join(f"{events:,}" for events in EVENTS_A_DAY) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    lines += [f"| {name} | {' | '.join(figure(of(one)) for one in columns)} |" for name, of in ROWS]
    return "\n".join(lines)


def assumptions_table(assumed: Assumptions) -> str:
    """The assumptions, in Markdown."""
    lines = ["| assumed | |", "|---|---|"]
    lines += [f"| {ASSUMED[name]} | {figure(value)} |" for name, value in asdict(assumed).items()]
    return "\n".join(lines)


COSTS: Mapping[str, tuple[str, str]] = {
    "service_us": ("feedback through the service: its processes", "µs"),
    "landing_us": ("the same: Postgres", "µs"),
    "bulk_us": ("feedback in bulk, 2,000 together: both", "µs"),
    "recall_ms": ("a recall of 450 memories with its feedback, the question embedded: both", "ms"),
    "daily_us": ("an event aggregated by its day: both", "µs"),
    "verify_us": ("a change of weights replayed and derived again: both", "µs"),
    "relay_us": ("a record given to Kafka: the relay", "µs"),
    "fit_ms": ("a tenant's own fit, of a hundred recalls", "ms"),
    "corpus_us": ("a memory in a corpus, tokens counted", "µs"),
    "event_bytes": ("`feedback_events`", "bytes"),
    "key_bytes": ("`idempotency_keys`", "bytes"),
    "change_bytes": ("`weight_changes`", "bytes"),
    "recall_bytes": ("`recalls`, 70 candidates", "bytes"),
    "memory_bytes": ("`memories`, with vector and words", "bytes"),
    "record_bytes": ("a record in Kafka", "bytes"),
}
"""Of each cost, what it is of, and its unit."""


def costs_table(costs: UnitCosts) -> str:
    """The unit costs, in Markdown."""
    lines = ["| one of | processor, or a row with its indexes |", "|---|---|"]
    for one in fields(costs):
        lines.append(f"| {COSTS[one.name][0]} | {with_unit(costs, one.name)} |")
    return "\n".join(lines)


def with_unit(costs: UnitCosts, name: str) -> str:
    """One of the costs, in words."""
    value = getattr(costs, name)
    return figure(value) if value is None else f"{figure(value)} {COSTS[name][1]}"


def tables(costs: UnitCosts, assumed: Assumptions | None = None) -> dict[str, str]:
    """The tables of the page, by their marks."""
    assumed = Assumptions() if assumed is None else assumed
    return {
        "costs": costs_table(costs),
        "assumptions": assumptions_table(assumed),
        "capacity": capacity_table(costs, assumed),
    }


def measured(path: Path = FIGURES) -> UnitCosts:
    """The unit costs of a report."""
    return UnitCosts(**json.loads(path.read_text())["costs"])


def main() -> None:
    """Print the tables, and put them into the page if that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    made = tables(measured())
    for table in made.values():
        print(f"{table}\n")
    if parser.parse_args().write:
        PAGE.write_text(with_measured(PAGE, made))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
