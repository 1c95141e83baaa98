"""Metrics: a cap on tenants with labels of their own, and sums that are right whoever counted."""

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.store.database import Database
from tests.serving.conftest import QUICK
from tests.serving.running import Running, running

JSON = {"content-type": "application/json"}
Samples = dict[tuple[str, str], float]


def scraped(service: Running, label: str = "tenant_id", **only: str) -> Samples:
    """Samples by name and a label; where several differ in other labels, their sum."""
    with service.client(service.operator) as operator:
        text = operator.get("/metrics").text
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if any(sample.labels.get(name) != value for name, value in only.items()):
                continue
            key = (sample.name, sample.labels.get(label, ""))
            samples[key] = samples.get(key, 0.0) + sample.value
    return samples


def rated(service: Running, key: str, utility: float) -> dict[str, float]:
    with service.client(key) as client:
        landed = client.post("/context/feedback", json={"session_id": "s", "utility": utility})
    weights: dict[str, float] = landed.json()["weights"]
    return weights


def test_beyond_the_cap_tenants_are_one(valkey: ValkeyServer, database: Database, tmp_path: Path) -> None:
    variables = QUICK | {"SOMABRAIN_SERVICE_TENANTS_IN_METRICS": "2"}
    with running(database, f"{valkey.url}/9", tmp_path / "log", variables=variables) as service:
        keys = service.add_tenants([f"tenant-{number}" for number in range(5)])
        alpha = {
            name: rated(service, key, number / 10)["alpha"] for number, (name, key) in enumerate(keys.items())
        }
        samples = scraped(service)
    weights = {
        label: value for (name, label), value in samples.items() if name == "somabrain_retrieval_alpha"
    }
    others = [alpha[f"tenant-{number}"] for number in range(2, 5)]
    assert weights["tenant-0"] == alpha["tenant-0"]
    assert weights["tenant-1"] == alpha["tenant-1"]
    assert abs(weights["_others"] - sum(others) / 3) < 1e-9
    assert set(weights) == {"tenant-0", "tenant-1", "_others"}
    landed = {label: value for (name, label), value in samples.items() if name == "somabrain_feedback_total"}
    assert landed == {"tenant-0": 1, "tenant-1": 1, "_others": 3}
    assert samples["somabrain_tenants", ""] == 5


def test_refused_feedback_is_counted_by_its_reason(service: Running, tenant: tuple[str, str]) -> None:
    name, key = tenant
    good, unknown = {"session_id": "s", "utility": 0.5}, {"session_id": "s", "utility": 1, "recall_id": 10**9}
    wrong = {"session_id": "s", "utility": 2}
    with service.client(key) as client:
        assert client.post("/context/feedback", json=good).status_code == 200
        assert client.post("/context/feedback", json=unknown).status_code == 404
        assert client.post("/context/feedback", json=[good, unknown]).status_code == 207
        assert client.post("/context/feedback", json=wrong).status_code == 422
        assert client.post("/context/feedback", json=[wrong, wrong]).status_code == 422, "refused as a whole"
        lines = b"\n".join(json.dumps(line).encode() for line in (good, wrong, unknown))
        kind = {"content-type": "application/x-ndjson"}
        assert client.post("/context/feedback", content=lines, headers=kind).status_code == 200
        assert client.post("/context/feedback", content=b"{", headers=JSON).status_code == 400
    counted = scraped(service, "outcome", tenant_id=name)
    assert {
        outcome: value for (family, outcome), value in counted.items() if family == "somabrain_feedback_total"
    } == {"landed": 3, "unknown_recall": 3, "invalid": 3, "not_json": 1}


def test_several_processes_are_counted_as_one(
    valkey: ValkeyServer, database: Database, tmp_path: Path
) -> None:
    with running(database, f"{valkey.url}/9", tmp_path / "log", workers=2, variables=QUICK) as service:
        (key,) = service.add_tenants(["tenant"]).values()
        for _ in range(20):
            weights = rated(service, key, 0.1)
        for _ in range(3):  # whichever process answers
            samples = scraped(service)
            assert samples["somabrain_feedback_total", "tenant"] == 20
            assert samples["somabrain_feedback_latency_seconds_count", "tenant"] == 20
            assert samples["somabrain_retrieval_alpha", "tenant"] == weights["alpha"]
