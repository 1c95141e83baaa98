"""A real Prometheus beside a real service: what it is told, and how it is got."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.dashboards import BOARDS
from scripts.dashboards.views import asked
from somabrain_dagster.embedded import EmbeddedServerError
from somabrain_dagster.embedded.prometheus import (
    Prometheus,
    PrometheusMissing,
    PrometheusTools,
    prometheus_beside,
    prometheus_tools,
)
from tests.serving.conftest import on_its_own, service, tenant
from tests.serving.running import Running

__all__ = ["on_its_own", "service", "tenant"]

RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules"


@pytest.fixture(scope="module")
def prometheus(
    service: Running, tools: PrometheusTools, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with prometheus_beside(
        tmp_path_factory.mktemp("prometheus"),
        tools,
        service_url=service.url,
        key=service.operator,
        rules=[RULES / "*.yml"],
    ) as started:
        yield started


def test_it_is_told_what_a_tenant_learned(
    service: Running, prometheus: Prometheus, tenant: tuple[str, str]
) -> None:
    name, key = tenant
    with service.client(key) as client:
        said = {"tenant_id": name, "session_id": "s", "utility": 0.5}
        version = client.post("/context/feedback", json=said).json()["version"]
    (sample,) = prometheus.wait_for(f'somabrain_weights_version{{tenant_id="{name}"}} == {version}', 30)
    assert sample.labels["job"] == "somabrain"
    (up,) = prometheus.query("up")
    assert up.value == 1


def test_it_reads_every_query_of_every_panel(prometheus: Prometheus) -> None:
    for board in BOARDS:
        for view in board.views:
            for query in view.queries:
                prometheus.query(asked(query.expression))


def test_it_has_the_rules(prometheus: Prometheus) -> None:
    assert "WeightsPinnedWhileRewardFalls" in {rule["name"] for rule in prometheus.rules()}
    assert prometheus.alerts() == []


def test_what_it_remembers_can_be_asked_of_a_time(prometheus: Prometheus) -> None:
    prometheus.wait_for("count_over_time(up[1m]) >= 2", 30)
    (now,) = prometheus.query("time()")
    ((labels, values),) = prometheus.query_range("up", now.value - 10, now.value, 1)
    assert labels["job"] == "somabrain"
    assert {value for _, value in values} == {1.0}


def test_what_never_comes_is_not_waited_for(prometheus: Prometheus) -> None:
    with pytest.raises(TimeoutError, match="no sample of nothing"):
        prometheus.wait_for("nothing", 0.3)


def test_a_configuration_that_it_refuses_is_told(tools: PrometheusTools, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]")
    with (
        pytest.raises(EmbeddedServerError, match=r"Prometheus ended \(\d+\)[\s\S]*parse expression"),
        prometheus_beside(tmp_path / "prometheus", tools, rules=[rules]),
    ):
        pass


def test_where_there_is_none_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrometheusMissing, match="install Prometheus"):
        prometheus_tools(tmp_path / "home")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this is no Debian")
def test_debians_package_is_taken_without_its_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*"):
            if program.name not in ("prometheus", "promtool") and not (path / program.name).is_symlink():
                (path / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(path))
    tools = prometheus_tools(tmp_path / "home")
    assert tools.promtool.is_relative_to(tmp_path)
    told = subprocess.run([tools.promtool, "--version"], capture_output=True, text=True, check=True)
    assert "promtool, version" in told.stdout + told.stderr
    assert prometheus_tools(tmp_path / "home") == tools
