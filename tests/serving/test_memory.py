"""Memory over HTTP: remembered, linked, recalled with reasons, credited, exported, erased."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from somabrain_dagster.memory.exporting import exported_lines
from tests.serving.running import Running

Tenant = tuple[str, str]
NOON = datetime(2018, 4, 1, 12, tzinfo=UTC)
SAID = [
    ("ada", "the harbour was full of sailing boats"),
    ("bob", "my sister bakes bread every Sunday"),
    ("ada", "the train to the coast leaves at nine"),
]


def memories() -> list[dict[str, Any]]:
    return [
        {"text": text, "speaker": speaker, "occurred_at": (NOON + timedelta(minutes=place)).isoformat()}
        for place, (speaker, text) in enumerate(SAID)
    ]


def test_a_memory_is_recalled_credited_and_the_weights_follow(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(key) as client:
        kept = client.post("/memory/remember", json=memories()).json()["memories"]
        again = client.post("/memory/remember", json=memories()[0])
        boats, bread, _ = (one["memory_id"] for one in kept)
        linked = client.post("/memory/link", json={"source_id": boats, "target_id": bread})
        question = {"text": "who bakes bread?", "session_id": "s-1", "k": 2}
        recalled = client.post("/memory/recall", json=question).json()
        assert recalled["hits"][0]["memory_id"] == bread
        assert recalled["hits"][0]["cleanup_backend"] == "exact"
        credit = {
            "session_id": "s-1",
            "utility": 1.0,
            "recall_id": recalled["recall_id"],
            "helpful": [{"memory": bread}],
        }
        landed = client.post("/context/feedback", json=credit).json()
        context = client.post("/memory/context", json={**question, "budget": 30}).json()
    assert again.json() == {"memory_id": boats, "repeated": True}
    assert (again.status_code, linked.json()) == (201, {"linked": 1})
    assert landed["weights"] != recalled["weights"]
    assert landed["version"] == recalled["weights_version"] + 1
    assert "bakes bread" in context["text"]
    assert context["tokens"] <= 30


def test_what_is_erased_is_gone_and_the_rest_is_exported(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with service.client(key) as client:
        kept = client.post("/memory/remember", json=memories()).json()["memories"]
        first, second, third = (one["memory_id"] for one in kept)
        client.post("/memory/link", json={"source_id": first, "target_id": third})
        shown = client.get(f"/memory/{first}").json()
        erased = client.delete(f"/memory/{second}")
        gone = client.get(f"/memory/{second}")
        exported = client.get("/memory/export")
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert (erased.status_code, erased.content, gone.status_code) == (204, b"", 404)
    assert exported.headers["content-type"] == "application/x-ndjson"
    assert [line["memory_id"] for line in lines] == [first, third]
    assert lines[0] == shown
    with service.database.as_tenants([name]) as connection:
        assert b"".join(exported_lines(connection, name)) == exported.content
    assert [link["target_id"] for link in shown["links"]] == [third]


def test_what_cannot_be_remembered_is_refused_by_name(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(key) as client:
        blank = client.post("/memory/remember", json={"text": " "})
        self_link = client.post("/memory/link", json={"source_id": 1, "target_id": 1})
        unknown = client.post("/memory/link", json={"source_id": 1, "target_id": 2**40})
        empty = client.post("/memory/recall", json={"text": ""})
    assert [answer.status_code for answer in (blank, self_link, unknown, empty)] == [422, 409, 404, 422]
    assert "$.text" in blank.json()["detail"]


@pytest.mark.parametrize("body", [b"[A-Za-z0-9]", b'5\xff+\n"', b"{", b""])
@pytest.mark.parametrize(
    "path", ["/memory/recall", "/memory/context", "/memory/remember", "/context/feedback"]
)
def test_what_is_no_json_is_said_to_be_none(service: Running, tenant: Tenant, path: str, body: bytes) -> None:
    with service.client(tenant[1]) as client:
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:somabrain:problem:not_json")
