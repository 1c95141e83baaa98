"""What is written of metrics, rules and dashboards holds together; `make observability` asks a live stack."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from scripts.dashboards import BOARDS
from scripts.dashboards.__main__ import METRICS, RULES, alert_expressions, filled
from scripts.dashboards.views import HEIGHT, WIDTH, Board, View, asked
from scripts.observability import Check, selected, written
from somabrain_dagster.embedded.prometheus import PrometheusTools
from tests.serving.test_documented_metrics import documented

ROOT = Path(__file__).parent.parent
ALERT_TESTS = sorted((ROOT / "tests" / "alerts").glob("*.yml"))
GROUPS: list[dict[str, Any]] = [
    group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
MADE_BY_PROMETHEUS = {"up", "scrape_duration_seconds", "ALERTS"}

VIEWS = [(board, view) for board in BOARDS for view in board.views]


def base(series: str) -> str:
    """The metric that a series belongs to."""
    return re.sub("_(bucket|count|sum)$", "", series)


def test_prometheus_accepts_what_is_written_and_every_test_of_the_alerts_holds(
    tools: PrometheusTools,
) -> None:
    assert [check for check in written(tools) if not check.holds] == []


def test_a_test_of_an_alert_that_does_not_hold_is_found(tools: PrometheusTools, tmp_path: Path) -> None:
    text = (ROOT / "tests" / "alerts" / "service.yml").read_text()
    rules = RULES / "service.yml"
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        text.replace("../../deploy/prometheus/rules/service.yml", str(rules)).replace("1 1 1 0x10", "1x20", 1)
    )
    told = subprocess.run(
        [tools.promtool, "test", "rules", wrong], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "ServiceDown" in told.stdout + told.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["labels"]["product"] == "somabrain"
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == (f"docs/ops/LEARNING_RUNBOOK.md#{alert['alert'].lower()}")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_made_to_fire_by_a_test(alert: dict[str, Any]) -> None:
    fires = f'alertname="{alert["alert"]}"'
    assert any(fires in path.read_text() for path in ALERT_TESTS)


def test_rules_go_by_metrics_that_are_documented() -> None:
    known = documented().keys() | RECORDED | MADE_BY_PROMETHEUS
    for group in GROUPS:
        for rule in group["rules"]:
            assert {base(name) for name in selected(rule["expr"])} <= known, rule


@pytest.mark.parametrize(("board", "view"), VIEWS, ids=lambda one: one.title)
def test_a_panel_asks_for_metrics_that_are_documented(board: Board, view: View) -> None:
    known = documented().keys() | RECORDED | MADE_BY_PROMETHEUS
    assert view.why
    for query in view.queries:
        assert {base(name) for name in selected(asked(query.expression))} <= known


def test_every_metric_has_a_panel() -> None:
    shown = {
        base(name)
        for _, view in VIEWS
        for query in view.queries
        for name in selected(asked(query.expression))
    }
    assert documented().keys() - shown == set()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)
def test_a_dashboard_is_as_its_code_writes_it(board: Board) -> None:
    assert board.path.read_text() == board.json(), "run `make dashboards`"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)
def test_the_panels_of_a_dashboard_fill_its_lines(board: Board) -> None:
    panels = json.loads(board.json())["panels"]
    lines: dict[int, int] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["h"] == (1 if panel["type"] == "row" else HEIGHT)
        lines[place["y"]] = lines.get(place["y"], 0) + place["w"]
    assert set(lines.values()) == {WIDTH}


def test_the_document_says_where_each_metric_is_seen() -> None:
    assert METRICS.read_text() == filled(METRICS.read_text()), "run `make dashboards`"


def test_grafana_is_told_of_the_source_that_the_panels_ask() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(provisioning.read_text())["datasources"]
    asks = {
        panel["datasource"]["uid"]
        for board in BOARDS
        for panel in json.loads(board.json())["panels"]
        if "targets" in panel
    }
    assert asks == {source["uid"]}


def test_a_metric_keeps_its_own_label_job() -> None:
    told = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (ours,) = [scrape for scrape in told["scrape_configs"] if scrape["job_name"] == "somabrain"]
    assert ours["honor_labels"] is True


def test_grafana_knows_how_often_prometheus_looks() -> None:
    told = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (ours,) = [scrape for scrape in told["scrape_configs"] if scrape["job_name"] == "somabrain"]
    provisioning = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(provisioning.read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == ours["scrape_interval"]


def test_what_is_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        selected("sum by (")
    assert selected('a / rate(b_count{x="1"}[5m]) unless on () (max_over_time(c[1d:5m]) > -d)') == {
        "a",
        "b_count",
        "c",
        "d",
    }


def test_a_check_is_told_in_a_sentence() -> None:
    assert Check("it holds", True).detail == ""
    assert alert_expressions().keys() == {alert["alert"] for alert in ALERTS}
