"""Count the alarms that the whole history of real ratings would have raised.

All ratings of the Chit-Chat data, of everybody, land in the order of their time in a brain of their own. What
Prometheus would have seen of it is written at event time, every five minutes; a real Prometheus reads it by
`promtool tsdb create-blocks-from openmetrics`. It is asked for the expressions of the alerts of learning, as
they are in deploy/prometheus/rules, over the whole time. What an alert waits for (`for`) is not waited for:
every time at which its expression holds counts.

Then the same with the last ratings of those who gave most turned over: what was praised is blamed. That is no
history, but it shows what the alerts find.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import yaml  # type: ignore[import-untyped]

from somabrain_dagster.embedded import discard_servers
from somabrain_dagster.embedded.prometheus import PrometheusTools, prometheus_beside, prometheus_tools
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.weights import NAMES
from somabrain_dagster.operations import provenance, servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import land

REPORT = Path("reports/false_alarms.json")
RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules" / "learning.yml"
ALERTS = ("WeightsPinnedWhileRewardFalls", "RollbackRepeats")
CONFIGURATION = LearningConfiguration()

PEOPLE = 1_315
"""All that the data have."""

STEP = 300
"""Seconds between two samples. What begins and ends between two of them is not seen."""

DAY = 86_400
BLOCK = 7_200 * 81
"""Seconds: Prometheus' blocks are of two hours, times a power of three."""


TURNED = 30
"""Of the last ratings of a tenant."""

LEAST = 40
"""Changes of a tenant before the alert says anything of it: of those who have fewer there are no samples."""

BATCH = 500
MOST_POINTS = 10_000
"""Of a series that Prometheus answers with."""


@dataclass(frozen=True)
class Moment:
    """What is so of a tenant from a time on.

    Attributes:
        at: seconds since 1970.
        version: of the weights.
        mean, variance: V and v.
        bounds: of each weight, in order: −1, 0 or 1.
        rollbacks: that the guard made so far.
    """

    at: float
    version: int
    mean: float
    variance: float
    bounds: Sequence[int]
    rollbacks: int


def in_order(said: Sequence[Feedback]) -> list[Feedback]:
    """By the time of what was said."""

    def when(event: Feedback) -> tuple[datetime, str]:
        assert event.occurred_at is not None, "a rating has its time"
        return event.occurred_at, event.tenant_id

    return sorted(said, key=when)


def landed(said: Sequence[Feedback], url: str) -> None:
    """Let feedback land in the order of its time, in a brain without tenants."""
    ordered = in_order(said)
    with Database(url) as database:
        with database.as_operator() as connection:
            create_tenants(connection, sorted({event.tenant_id for event in said}), CONFIGURATION)
        for start in range(0, len(ordered), BATCH):
            land(database, ordered[start : start + BATCH], CONFIGURATION)


def moments(url: str) -> dict[str, list[Moment]]:
    """What each tenant's log came to, change by change.

    A change that answers no event is of the time of the one before.
    """
    query = """
        SELECT c.tenant_id, c.version, c.cause, c.after, extract(epoch FROM e.occurred_at)::float8,
            e.reward_mean, e.reward_variance
        FROM weight_changes c LEFT JOIN feedback_events e
            ON e.tenant_id = c.tenant_id AND e.seq = c.event_seq AND c.cause = 'feedback'
        WHERE c.version > 0 ORDER BY c.tenant_id, c.version
        """
    found: dict[str, list[Moment]] = defaultdict(list)
    with Database(url) as database, database.as_operator() as connection:
        for tenant, version, cause, after, at, mean, variance in connection.execute(query):
            known = found[tenant]
            rolled_back = cause == "auto_rollback"
            known.append(
                Moment(
                    known[-1].at if at is None else at,
                    version,
                    known[-1].mean if mean is None else mean,
                    known[-1].variance if variance is None else variance,
                    CONFIGURATION.at_bounds(after).tolist(),
                    (known[-1].rollbacks if known else 0) + rolled_back,
                )
            )
    return {tenant: known for tenant, known in found.items() if len(known) >= LEAST}


def samples(tenant: str, known: Sequence[Moment]) -> Iterator[tuple[int, str, float]]:
    """Time, series and value of all that Prometheus would have seen of a tenant, until a day later."""
    times = np.array([moment.at for moment in known])
    first = int(np.ceil(times[0] / STEP)) * STEP
    grid = np.arange(first, times[-1] + DAY, STEP)
    latest = np.searchsorted(times, grid, side="right") - 1
    ever = [name for place, name in enumerate(NAMES) if any(moment.bounds[place] for moment in known)]
    for at, place in zip(grid.tolist(), latest.tolist(), strict=True):
        moment = known[place]
        label = f'tenant_id="{tenant}"'
        yield at, f"somabrain_reward_mean{{{label}}}", moment.mean
        yield at, f"somabrain_reward_variance{{{label}}}", moment.variance
        yield at, f"somabrain_weights_version{{{label}}}", moment.version
        yield at, "somabrain_tenants", 1
        for name in ever:
            value = moment.bounds[NAMES.index(name)]
            yield at, f'somabrain_weight_at_bound{{{label},weight="{name}"}}', value
        if known[-1].rollbacks:
            adjusted = f'somabrain_supervisor_adjustments_total{{{label},cause="auto_rollback"}}'
            yield at, adjusted, moment.rollbacks


def read_in(told: Mapping[str, Sequence[Moment]], tools: PrometheusTools, data: Path) -> int:
    """Write the samples of all tenants into a Prometheus' data; how many they were.

    A file a block: promtool reads a file again for each block that it spans.
    """
    blocks: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for tenant, known in told.items():
        for at, series, value in samples(tenant, known):
            blocks[at // BLOCK][series][at] = value
    for _, every in sorted(blocks.items()):
        lines = [
            f"{series} {value} {at}"
            for series, values in sorted(every.items())
            for at, value in sorted(values.items())
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".om") as file:
            file.write("\n".join([*lines, "# EOF", ""]))
            file.flush()
            into = ["tsdb", "create-blocks-from", "openmetrics", f"--max-block-duration={BLOCK}s"]
            into += [file.name, str(data)]
            subprocess.run([str(tools.promtool), *into], check=True, capture_output=True)
    return sum(len(values) for block in blocks.values() for values in block.values())


def expressions() -> dict[str, str]:
    """Of each alert; what it takes from recorded series is put in their place."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    found = {rule["alert"]: rule["expr"] for rule in rules if rule.get("alert") in ALERTS}
    for name, text in reversed(recorded.items()):  # the later are made of the earlier
        found = {alert: expression.replace(name, f"({text})") for alert, expression in found.items()}
    return found


@dataclass(frozen=True)
class Replayed:
    """What came of a history.

    Attributes:
        feedback, people: that it has.
        observed: of whom there are samples.
        days: from the first to the last of them.
        samples: how many.
        came_to_bounds: who had a weight at a bound where it was not 30 changes before.
        rolled_back: by the guard.
        called: of each alert, of whom it would have called, and the first time.
    """

    feedback: int
    people: int
    observed: list[str]
    days: float
    samples: int
    came_to_bounds: list[str]
    rolled_back: list[str]
    called: dict[str, dict[str, float]]


def replayed(said: Sequence[Feedback], base: Path, tools: PrometheusTools) -> Replayed:
    """Let feedback land in a new brain, and ask what would have been called."""
    settings = Settings(home=base / "home", database_url=None, redis_url=None, dagster_database_url=None)
    try:
        url = servers.start(settings).database_url
        landed(said, url)
        told = moments(url)
    finally:
        discard_servers(settings.home)
    read = read_in(told, tools, base / "data")
    times = [moment.at for known in told.values() for moment in known]
    start, end = min(times) // STEP * STEP, max(times) + DAY
    called: dict[str, dict[str, float]] = {alert: {} for alert in ALERTS}
    with prometheus_beside(base, tools) as prometheus:
        for alert, expression in expressions().items():
            for begin in np.arange(start, end, STEP * MOST_POINTS):
                until = min(begin + STEP * (MOST_POINTS - 1), end)
                for labels, values in prometheus.query_range(expression, begin, until, STEP):
                    called[alert].setdefault(labels["tenant_id"], values[0][0])
    return Replayed(
        feedback=len(said),
        people=len({event.tenant_id for event in said}),
        observed=sorted(told),
        days=round((end - start) / DAY, 1),
        samples=read,
        came_to_bounds=sorted(tenant for tenant, known in told.items() if _came_to_a_bound(known)),
        rolled_back=sorted(tenant for tenant, known in told.items() if known[-1].rollbacks),
        called=called,
    )


def _came_to_a_bound(known: Sequence[Moment]) -> bool:
    before = known[-TURNED - 1].bounds
    return any(
        now and not then
        for moment in known[-TURNED:]
        for now, then in zip(moment.bounds, before, strict=True)
    )


def turned_over(said: Sequence[Feedback], tenants: Sequence[str]) -> list[Feedback]:
    """The same, but for the last ratings of these tenants, which are their opposite where they were good."""
    by_tenant: dict[str, list[Feedback]] = defaultdict(list)
    for event in in_order(said):
        by_tenant[event.tenant_id].append(event)
    return [
        msgspec.structs.replace(event, utility=-abs(event.utility))
        if tenant in tenants and place >= len(events) - TURNED
        else event
        for tenant, events in by_tenant.items()
        for place, event in enumerate(events)
    ]


def main() -> None:
    """Count, print, write the report; exit 1 if anybody would have been called."""
    base = Path(tempfile.mkdtemp(prefix="somabrain-alarms-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        tools = prometheus_tools(base)
        said = read_chitchat(PEOPLE).feedback
        counts: dict[str, int] = defaultdict(int)
        for event in said:
            counts[event.tenant_id] += 1
        victims = [tenant for tenant, count in counts.items() if count >= LEAST + TURNED]
        history = replayed(said, base / "history", tools)
        turned = replayed(turned_over(said, victims), base / "turned", tools)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(
        f"{history.feedback:,} ratings of {history.people:,} people over {history.days:g} days; "
        f"{history.samples:,} samples of the {len(history.observed)} who came to {LEAST} changes"
    )
    for alert, who in history.called.items():
        print(f"{'✗' if who else '✓'} {alert} would have called {len(who)} times {', '.join(who)}".rstrip())
    bound, undone = (set(who) & set(victims) for who in (turned.came_to_bounds, turned.rolled_back))
    print(
        f"the last {TURNED} ratings of {len(victims)} people turned to their opposite: a weight of "
        f"{len(bound)} comes to a bound, and the guard rolls {len(undone)} back"
    )
    for alert, who in turned.called.items():
        found = who.keys() & victims
        others = len(who) - len(found)
        print(f"  {alert} finds {len(found)}, {len(found & bound)} of them at a bound; and {others} others")
    false = any(history.called.values())
    report = {
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "history": asdict(history),
        "turned_over": {"ratings": TURNED, "of": victims, **asdict(turned)},
        "holds": not false,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {REPORT}")
    if false:
        sys.exit(1)


if __name__ == "__main__":
    main()
