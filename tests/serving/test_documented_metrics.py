"""Every metric of docs/METRICS.md is in the scrape of a service whose brain has learned, and no other is."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.exporting import artifacts_of, export
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.embedded.prometheus import PrometheusTools
from somabrain_dagster.operations.dagster_home import prepare, workspace
from somabrain_dagster.operations.kafka import kafka_health
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.settings import KafkaSettings, Settings
from somabrain_dagster.store.corpora import set_learning_loop
from somabrain_dagster.store.daily import aggregate
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.kafka_health import record_kafka_health
from somabrain_dagster.store.verification import CLAIMS
from tests.chain import Chain, daemon, opened_instance, settings_for, wait_until
from tests.conftest import new_database
from tests.reenacted import Reenactment
from tests.remembering import EmbeddedOnce
from tests.serving.conftest import QUICK
from tests.serving.running import Running, free_port, running
from tests.trials import new_life

DOCUMENT = Path(__file__).parents[2] / "docs" / "METRICS.md"
ROW = re.compile(r"^\| `(somabrain_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """A metric: its type, and the names of its labels."""

    type: str
    labels: frozenset[str]


def documented() -> dict[str, Family]:
    return {
        name: Family(kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in ROW.findall(DOCUMENT.read_text())
    }


def families(text: str) -> dict[str, Family]:
    """The metrics of a scrape that have a sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if family.samples:
            found[name] = Family(family.type, frozenset(labels))
    return found


def scrape(service: Running) -> str:
    with service.client(service.operator) as operator:
        return operator.get("/metrics").text


def use(service: Running, database: Database) -> None:
    """What only the process itself counts: recalls, indexes, feedback of each outcome."""
    with database.snapshot() as connection:
        ((tenant,),) = connection.execute("SELECT min(tenant_id) FROM tenants").fetchall()
    with service.client(service.operator) as operator:
        said = {"tenant_id": tenant, "session_id": "s", "utility": 0.5}
        assert operator.post("/context/feedback", json=said).status_code == 200
        assert operator.post("/context/feedback", json=said | {"recall_id": 10**9}).status_code == 404
        question = {"tenant_id": tenant, "text": "how are you?", "k": 3, "session_id": "s"}
        assert operator.post("/memory/recall", json=question).status_code == 200
        assert operator.post("/memory/admin/rebuild-ann").status_code == 202


@pytest.fixture(scope="module")
def lived(
    postgres: PostgresServer,
    valkey: ValkeyServer,
    empty_template: str,
    reenactment: Reenactment,
    minilm: EmbeddedOnce,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """A service on a brain that six people taught, beside a daemon that has done what it does.

    What the sessions of the one experiment are worth is generated; everything else is real.
    """
    home = tmp_path_factory.mktemp("lived")
    with ExitStack() as stack:
        name = stack.enter_context(new_database(postgres, reenactment.template))
        storage = stack.enter_context(new_database(postgres, empty_template))
        database = stack.enter_context(Database(postgres.url(name)))
        servers = Servers(database.url, postgres.url(storage), valkey.url)
        settings = settings_for(database.url, valkey, home=home, learning_loop_enabled=True)
        agree_and_export(database, settings)
        new_life(database, minilm, tenants=2).won(size=4)
        kafka = f"127.0.0.1:{free_port()}"
        with database.as_operator() as connection:
            record_kafka_health(connection, kafka_health(KafkaSettings(bootstrap=kafka)).counts)

        variables = QUICK | {
            "SOMABRAIN_DAGSTER_DATABASE_URL": servers.dagster_database_url,
            "SOMABRAIN_KAFKA_BOOTSTRAP": kafka,
            "SOMABRAIN_HNSW_THRESHOLD": "100",
        }
        service = stack.enter_context(
            running(database, f"{valkey.url}/11", home / "service.log", variables=variables)
        )
        use(service, database)

        chain = Chain(stack.enter_context(opened_instance(settings, servers)), settings, database)
        first, last = chain.unseen_days()
        assert first is not None
        assert last is not None
        with database.as_operator() as connection:
            aggregate(connection, first, last, first)
        assert chain.materialise("adaptation_state").success
        refused = chain.materialise("restore_drill")
        assert not refused.success, "there is no backup to prove"
        chain.tell_of(refused)
        environment = {
            **os.environ,
            **prepare(settings, servers),
            "SOMABRAIN_SENSOR_INTERVAL_SECONDS": "1",
        }
        stack.enter_context(daemon(environment, workspace(settings), home / "daemon.log"))
        wait_until(lambda: 'instigator="feedback_landed"' in scrape(service))
        wait_until(lambda: "somabrain_ann_rebuild_total" in families(scrape(service)))
        yield service


def agree_and_export(database: Database, settings: Settings) -> None:
    with database.as_operator() as connection:
        ((tenant,),) = connection.execute("SELECT min(tenant_id) FROM tenants").fetchall()
        assert set_learning_loop(connection, tenant, True, "ada")
    plan = Plan(tokenizer=None, formats=("examples", "sources", "messages"), validation=0.1)
    assert export(database, settings, artifacts_of(settings), plan, actor="ada").examples


def test_every_documented_metric_is_there_and_every_other_is_documented(lived: Running) -> None:
    assert families(scrape(lived)) == documented()


def test_what_happened_is_what_is_told(lived: Running) -> None:
    lines = scrape(lived).splitlines()
    told = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
    arm = 'arm="warm",experiment_id="warmer"'
    assert told['somabrain_experiment_status{experiment_id="warmer",status="completed"}'] == 1
    assert (
        told[f"somabrain_experiment_sessions{{{arm}}}"]
        == told['somabrain_experiment_size{experiment_id="warmer"}']
    )
    assert told[f"somabrain_experiment_effect{{{arm}}}"] > 0.3
    assert told[f"somabrain_experiment_promotable{{{arm}}}"] == 1
    assert told['somabrain_dagster_run_failures_total{job="__ASSET_JOB"}'] == 1
    assert told['somabrain_dagster_last_run_failed{job="__ASSET_JOB"}'] == 1
    assert told['somabrain_kafka_state{state="stopped"}'] == 1
    assert told["somabrain_relay_running"] == 0
    findings = [value for name, value in told.items() if name.startswith("somabrain_proof_findings")]
    assert findings == [0.0] * len(CLAIMS)
    now = time.time()
    for ended in (
        "somabrain_proof_last_timestamp_seconds",
        'somabrain_dagster_last_success_timestamp_seconds{job="__ASSET_JOB"}',
        'somabrain_dagster_daemon_heartbeat_timestamp_seconds{daemon="SENSOR"}',
        'somabrain_dagster_last_tick_timestamp_seconds{instigator="feedback_landed",kind="sensor"}',
    ):
        assert 0 <= now - told[ended] < 300, ended


def test_the_metrics_are_named_as_prometheus_asks(lived: Running, tools: PrometheusTools) -> None:
    checked = subprocess.run(
        [tools.promtool, "check", "metrics"], input=scrape(lived), text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
