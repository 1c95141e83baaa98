"""Feedback over HTTP: landed once, answered after the commit, refused by name."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.weights import from_names
from somabrain_dagster.store.adaptation import read_state
from somabrain_dagster.store.promotions import undo_promotion
from tests.serving.running import Running, until

Tenant = tuple[str, str]


def said(utility: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"session_id": "session-1", "utility": utility, **more}


def test_the_answer_is_what_is_committed(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with service.client(key) as client:
        answer = client.post("/context/feedback", json=said()).json()
    with service.database.as_tenants([name]) as connection:
        state = read_state(connection, name)
    assert answer["event_id"] == f"{name}:1"
    assert answer["version"] == state.version == 1
    assert from_names(answer["weights"]).tolist() == state.weights.tolist()


def test_a_key_makes_a_retry_safe(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(key, headers={"idempotency-key": "once"}) as client:
        first = client.post("/context/feedback", json=said())
        again = client.post("/context/feedback", json=said())
        other = client.post("/context/feedback", json=said(-0.5))
    assert (first.status_code, again.status_code, other.status_code) == (200, 200, 422)
    assert again.json() == {**first.json(), "repeated": True}
    assert other.json()["type"] == "urn:somabrain:problem:key_reused"


def test_a_list_is_answered_one_by_one_and_in_order(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with service.client(key) as client:
        answer = client.post("/context/feedback", json=[said(), said(recall_id=7), said()])
    first, second, third = answer.json()["results"]
    assert answer.status_code == 207
    assert [first["landed"]["event_id"], third["landed"]["event_id"]] == [f"{name}:1", f"{name}:2"]
    assert second["problem"]["status"] == 404


def test_who_streams_much_leaves_room_for_who_says_a_word(service: Running, tenant: Tenant) -> None:
    """More lines than may wait in the service, in many streams at once."""
    _, key = tenant
    lines = b"\n".join([json.dumps(said()).encode()] * 300)

    def stream() -> dict[str, Any]:
        with service.client(key) as client:
            kind = {"content-type": "application/x-ndjson"}
            summary: dict[str, Any] = client.post("/context/feedback", content=lines, headers=kind).json()
        return summary

    with ThreadPoolExecutor(24) as pool, service.client(key) as client:
        streams = [pool.submit(stream) for _ in range(24)]
        answers = []
        while not all(one.done() for one in streams):
            answers.append(client.post("/context/feedback", json=said()).status_code)
    assert {one.result()["landed"] for one in streams} == {300}
    assert set(answers) == {200}


def test_a_list_with_a_key_can_be_sent_again(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(key, headers={"idempotency-key": "all"}) as client:
        first = client.post("/context/feedback", json=[said(), said(0.1)]).json()["results"]
        again = client.post("/context/feedback", json=[said(), said(0.1)]).json()["results"]
    assert [entry["landed"]["repeated"] for entry in first] == [False, False]
    assert [entry["landed"]["repeated"] for entry in again] == [True, True]
    assert [entry["landed"]["seq"] for entry in again] == [1, 2]


def test_a_stream_lands_what_it_can_and_names_the_lines_that_it_cannot(
    service: Running, tenant: Tenant
) -> None:
    name, key = tenant
    lines = [said(0.1) if number % 100 else said(7.0) for number in range(1, 701)]
    body = "\n".join(json.dumps(line) for line in lines)
    with service.client(key) as client:
        answer = client.post(
            "/context/feedback", content=body, headers={"content-type": "application/x-ndjson"}
        ).json()
    assert (answer["landed"], answer["refused"]) == (693, 7)
    assert [refusal["line"] for refusal in answer["refusals"]] == [100, 200, 300, 400, 500, 600, 700]
    assert answer["tenants"][name]["last_event_id"] == f"{name}:693"


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"session_id": "s"}', "application/json", 422),
        (b'{"session_id": "s", "utility": 2}', "application/json", 422),
        (b'{"session_id": "s", "utility": 0.5, "more": 1}', "application/json", 422),
        (b'{"session_id": "s", "utility": 0.5, "helpful": [{"memory": 1}]}', "application/json", 422),
        (b"utility=0.5", "application/x-www-form-urlencoded", 415),
        (b'{"session_id": "' + b"s" * 2**20 + b'", "utility": 0.5}', "application/json", 413),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_reason(
    service: Running, tenant: Tenant, content: bytes, content_type: str, status: int
) -> None:
    _, key = tenant
    with service.client(key) as client:
        answer = client.post("/context/feedback", content=content, headers={"content-type": content_type})
        state = client.get("/context/adaptation/state").json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail", "request_id"}
    assert state["version"] == 0


def test_rollback_reset_and_history_tell_the_same_story(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(key) as client:
        after = [client.post("/context/feedback", json=said()).json()["weights"] for _ in range(3)]
        rolled_back = client.post("/context/adaptation/rollback", json={"version": 1}).json()
        reset = client.post("/context/adaptation/reset").json()
        history = client.get("/context/adaptation/history", params={"limit": 3}).json()
        rest = client.get("/context/adaptation/history", params={"below": history["next_below"]}).json()
        missing = client.post("/context/adaptation/rollback", json={"version": 99})
    assert rolled_back["weights"] == after[0]
    assert (rolled_back["version"], reset["version"]) == (4, 5)
    changes = history["changes"] + rest["changes"]
    assert [change["cause"] for change in changes] == ["reset", "rollback", *["feedback"] * 3, "start"]
    assert changes[0]["after"] == changes[-1]["after"] == reset["weights"]
    for newer, older in pairwise(changes):
        assert newer["before"] == older["after"]
    assert missing.status_code == 404


def test_held_neuromodulators_stay_until_they_are_let_go(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with (
        service.client(service.operator, params={"tenant_id": name}) as operator,
        service.client(key) as client,
    ):
        held = operator.put("/context/neuromodulators", json={"dopamine": 0.7}).json()
        client.post("/context/feedback", json=said(-1.0))
        during = client.get("/context/neuromodulators").json()
        operator.put("/context/neuromodulators", json={"dopamine": None})
        client.post("/context/feedback", json=said(-1.0))
        after = client.get("/context/neuromodulators").json()
        own = client.put("/context/neuromodulators", json={"dopamine": 0.7})
        outside = operator.put("/context/neuromodulators", json={"dopamine": 0.9})
    assert held["held"] == during["held"] == {"dopamine": 0.7}
    assert held["levels"]["dopamine"] == during["levels"]["dopamine"] == 0.7
    assert (after["held"], after["levels"]["dopamine"]) == ({}, 0.2)
    assert (own.status_code, outside.status_code) == (403, 422)


def test_what_is_promoted_shifts_every_tenant(service: Running, tenant: Tenant) -> None:
    _, key = tenant
    with service.client(service.operator) as operator, service.client(key) as client:
        client.post("/context/feedback", json=said())
        before = client.get("/config/weights").json()
        state = client.get("/context/adaptation/state").json()
        alpha = before["weights"]["alpha"] + 0.125
        promoted = operator.put("/config/weights", json={"alpha": alpha}).json()
        shifted = client.get("/context/adaptation/state").json()
        forbidden = client.put("/config/weights", json={"alpha": alpha})
        with service.database.as_operator() as connection:
            undo_promotion(connection, LearningConfiguration(), "tests")
        until(lambda: client.get("/context/adaptation/state").json()["nanos"] == state["nanos"])
    assert promoted["version"] == before["version"] + 1
    assert promoted["weights"] == {**before["weights"], "alpha": alpha}
    assert shifted["nanos"][0] == state["nanos"][0] + 125_000_000
    assert shifted["nanos"][1:] == state["nanos"][1:]
    assert forbidden.status_code == 403


def test_requests_are_named_and_logged_without_their_content(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    secret = "what nobody else should read"
    with service.client(key) as client:
        answer = client.post(
            "/context/feedback",
            json=said(metadata={"note": secret}),
            headers={"x-request-id": f"request-of-{name}"},
        )
        bad = client.post("/context/feedback", json=said(note=secret))
    assert answer.headers["x-request-id"] == f"request-of-{name}"
    assert bad.headers["x-request-id"] == bad.json()["request_id"]
    logged = wait_for_line(service, f"request-of-{name}")
    assert (logged["route"], logged["status"], logged["tenant_id"]) == ("/context/feedback", 200, name)
    written = service.log.read_text()
    assert secret not in written
    assert key.rsplit("_", 1)[-1] not in written


def wait_for_line(service: Running, request_id: str) -> dict[str, Any]:
    for _ in range(100):
        for line in service.lines():
            if line.startswith("{") and (logged := json.loads(line)).get("request_id") == request_id:
                found: dict[str, Any] = logged
                return found
        time.sleep(0.05)
    raise AssertionError(f"no line of {request_id}")


def test_the_description_needs_nothing_from_elsewhere(service: Running) -> None:
    page = httpx.get(f"{service.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /context/feedback" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "src=" not in page.text


def test_metrics_tell_of_every_weight_and_level(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with service.client(key) as client:
        landed = client.post("/context/feedback", json=said()).json()
        assert client.get("/metrics").status_code == 403
    with service.client(service.operator) as operator:
        lines = operator.get("/metrics").text.splitlines()
    value = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }
    weights = landed["weights"]
    for weight in ("alpha", "beta", "gamma", "tau"):
        assert value[f'somabrain_retrieval_{weight}{{tenant_id="{name}"}}'] == weights[weight]
    for weight in ("lambda", "mu", "nu"):
        assert value[f'somabrain_utility_{weight}{{tenant_id="{name}"}}'] == weights[weight]
    for kind in ("dopamine", "serotonin", "noradrenaline", "acetylcholine"):
        assert f'somabrain_neuromodulator_level{{kind="{kind}",tenant_id="{name}"}}' in value
    assert value[f'somabrain_learning_rate{{tenant_id="{name}"}}'] == 0.05
    assert value[f'somabrain_feedback_total{{outcome="landed",tenant_id="{name}"}}'] == 1
    bucket = f'somabrain_feedback_latency_seconds_bucket{{le="0.3",tenant_id="{name}"}}'
    assert value[bucket] == 1
