"""Check that what should be seen is seen: every metric, rule and panel, against a live stack.

Starts a whole SomaBrain that has something to show (`scripts/observed.py`) under a real Prometheus; checks
what is written (rules, their tests, dashboards) and what is told (metrics, recorded series, each panel's
queries, how soon a feedback is seen). Prints a line a check, writes reports/observability.json, and exits 1
if one fails.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import httpx
import promql_parser

from scripts.dashboards import BOARDS
from scripts.dashboards.__main__ import alert_expressions
from scripts.dashboards.views import View, asked
from scripts.observed import ROOT, RULES, Observed, observed
from scripts.panels import draw
from somabrain_dagster.embedded.prometheus import PrometheusTools
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations import provenance
from somabrain_dagster.store.adaptation import create_tenants
from tests.serving.test_documented_metrics import documented, families

REPORT = Path("reports/observability.json")
FRESH_SECONDS = 5.0
FRESHNESS_ROUNDS = 10
PATIENCE_SECONDS = 90.0
"""For what comes about by itself: the relay's look at Kafka, a schedule that is due, a second scrape."""

OTHERS = {"up", "scrape_duration_seconds", "ALERTS"}
"""Series that Prometheus makes itself."""


@dataclass(frozen=True)
class Check:
    """A sentence, whether it holds, and what is wrong or was measured."""

    sentence: str
    holds: bool
    detail: str = ""


def selected(expression: str) -> set[str]:
    """The names of the series that an expression of PromQL reads.

    Raises:
        ValueError: it is none.
    """
    found: set[str] = set()

    def look(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(str(node.name))
        elif isinstance(node, promql_parser.MatrixSelector):
            found.add(str(node.vector_selector.name))
        elif isinstance(node, promql_parser.BinaryExpr):
            look(node.lhs)
            look(node.rhs)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                look(argument)
        elif isinstance(
            node,
            promql_parser.AggregateExpr
            | promql_parser.ParenExpr
            | promql_parser.SubqueryExpr
            | promql_parser.UnaryExpr,
        ):
            look(node.expr)

    look(promql_parser.parse(expression))
    return found


def written(tools: PrometheusTools) -> Iterator[Check]:
    """What can be checked without anything that runs."""
    rules = sorted(RULES.glob("*.yml"))
    tests = sorted((ROOT / "tests" / "alerts").glob("*.yml"))
    configuration = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    for sentence, arguments in (
        ("promtool accepts the rules", ["check", "rules", *rules]),
        ("promtool accepts the configuration", ["check", "config", "--syntax-only", configuration]),
        ("every test of the alerts holds", ["test", "rules", *tests]),
    ):
        told = subprocess.run(
            [str(tools.promtool), *map(str, arguments)], capture_output=True, text=True, check=False
        )
        failed = told.returncode != 0
        yield Check(sentence, not failed, (told.stdout + told.stderr).strip() if failed else "")
    stale = [board.path.name for board in BOARDS if board.path.read_text() != board.json()]
    yield Check("the dashboards are as their code writes them", not stale, ", ".join(stale))


def told(stack: Observed) -> Iterator[Check]:
    """The metrics, and the rules as the server evaluates them."""
    missing = patiently(lambda: sorted(documented().keys() - families(stack.scrape()).keys()))
    yield Check(
        f"each of the {len(documented())} metrics of docs/METRICS.md is told",
        not missing,
        ", ".join(missing),
    )
    linted = subprocess.run(
        [str(stack.tools.promtool), "check", "metrics"],
        input=stack.scrape(),
        capture_output=True,
        text=True,
        check=False,
    )
    yield Check("promtool accepts the metrics", linted.returncode == 0, linted.stdout + linted.stderr)
    unwell = patiently(
        lambda: [
            f"{rule['name']}: {rule.get('lastError') or rule['health']}"
            for rule in stack.prometheus.rules()
            if rule["health"] != "ok"
        ]
    )
    yield Check(
        f"each of the {len(stack.prometheus.rules())} rules is evaluated", not unwell, "; ".join(unwell)
    )


def seen(stack: Observed) -> Iterator[Check]:
    """Every panel: its queries are read, name series that are there, and give samples."""
    there = families(stack.scrape()).keys() | OTHERS | {rule["name"] for rule in stack.prometheus.rules()}
    for board in BOARDS:
        for view in board.views:
            wrong = patiently(lambda view=view: list(faults(stack, view, there)))  # type: ignore[misc]
            yield Check(f"{board.title}: {view.title}", not wrong, "; ".join(wrong))


def faults(stack: Observed, view: View, there: set[str]) -> Iterator[str]:
    """What is wrong with the queries of a panel now."""
    for query in view.queries:
        expression = asked(query.expression)
        for name in selected(expression):
            if re.sub("_(bucket|count|sum)$", "", name) not in there and name not in there:
                yield f"nobody tells {name}"
        try:
            samples = stack.prometheus.query(expression)
        except httpx.HTTPStatusError as error:
            yield f"{expression}: {error.response.text}"
            continue
        if not any(not math.isnan(sample.value) for sample in samples):
            yield f"no sample of {expression}"


def fresh(stack: Observed) -> Iterator[Check]:
    """From a feedback's answer to the first time that the panel's own query shows it."""
    (panel,) = [view for board in BOARDS for view in board.views if view.title == "Changes of weights"]
    (query,) = panel.queries
    expression = asked(query.expression)
    headers = {"authorization": f"Bearer {stack.operator}"}
    tenant = "person-who-waits"
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as client:
        with stack.database.as_operator() as connection:
            create_tenants(connection, [tenant], LearningConfiguration())
        took = []
        for _ in range(FRESHNESS_ROUNDS):
            said = {"tenant_id": tenant, "session_id": "waits", "utility": 0.5}
            answer = client.post("/context/feedback", json=said)
            answer.raise_for_status()
            began, version = time.monotonic(), answer.json()["version"]
            while version not in {
                sample.value
                for sample in stack.prometheus.query(expression)
                if sample.labels["tenant_id"] == tenant
            }:
                if time.monotonic() - began > 10 * FRESH_SECONDS:
                    break
                time.sleep(0.05)
            took.append(time.monotonic() - began)
    yield Check(
        f"a feedback is in its panel within {FRESH_SECONDS:g} s",
        max(took) < FRESH_SECONDS,
        f"{min(took):.2f} to {max(took):.2f} s in {len(took)} times, the middle {median(took):.2f} s",
    )


def quiet(stack: Observed) -> Iterator[Check]:
    """What fires where all is well."""
    firing = patiently(lambda: sorted({alert["alertname"] for alert in stack.prometheus.alerts()}))
    yield Check(
        f"none of the {len(alert_expressions())} alerts fires where all is well",
        not firing,
        ", ".join(firing),
    )


def patiently(look: Callable[[], list[str]]) -> list[str]:
    """What is wrong, once nothing is, or once it has been waited for long enough."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (wrong := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return wrong


def main() -> None:
    """Check everything, print it, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to draw some of the panels")
    given = parser.parse_args()
    began = time.monotonic()
    checks: list[Check] = []

    def show(every: Iterator[Check]) -> None:
        for check in every:
            checks.append(check)
            mark = "✓" if check.holds else "✗"
            print(f"{mark} {check.sentence}{': ' if check.detail else ''}{check.detail}", flush=True)

    start = datetime.now(UTC)
    with observed(lambda doing: print(f"  {doing} …", flush=True)) as stack:
        show(written(stack.tools))
        for look in (told, seen, fresh, quiet):
            show(look(stack))
        if given.picture is not None:
            draw(stack.prometheus, start, given.picture)
    failed = [check for check in checks if not check.holds]
    report = {
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "seconds": round(time.monotonic() - began),
        "checks": [asdict(check) for check in checks],
        "holds": not failed,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(checks) - len(failed)} of {len(checks)} hold; written to {REPORT}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
