"""What the routes list: tenants, what was said of them, experiments; whole, in order, to whom it is due."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from somabrain_dagster.store.keys import create_key
from tests.brain import CONFIGURATION
from tests.serving.running import Running
from tests.serving.test_trials import experiment

Tenant = tuple[str, str]


def pages(client: httpx.Client, path: str, entries: str, cursor: str, **params: Any) -> Iterator[list[Any]]:
    """The parts of a list, asked for one after the other as each answer says."""
    while True:
        answer = client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        yield answer.json()[entries]
        following = answer.json()[f"next_{cursor}"]
        if following is None:
            return
        params[cursor] = following


def test_an_operator_sees_every_tenant_once_and_by_name(service: Running) -> None:
    names = [f"listed-{uuid4().hex[:6]}" for _ in range(5)]
    service.add_tenants(names)
    with service.client(service.operator) as client:
        parts = list(pages(client, "/tenants", "tenants", "after", prefix="listed-", limit=2))
        assert len(list(pages(client, "/tenants", "tenants", "after", prefix="listed-", limit=5))) == 1
        assert client.get("/tenants").json()["scope"] == "operator"
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [one["tenant_id"] for part in parts for one in part] == sorted(names)
    assert parts[0][0]["weights"] == CONFIGURATION.start
    assert parts[0][0]["feedback"] == parts[0][0]["version"] == 0


@pytest.mark.parametrize("scope", ["tenant", "read_only"])
def test_a_tenants_key_sees_its_own_alone(service: Running, tenant: Tenant, scope: Any) -> None:
    name, _ = tenant
    service.add_tenants([f"{name}-other"])
    with service.database.as_operator() as connection:
        key = create_key(connection, name, scope, "tests")
    with service.client(key) as client:
        answer = client.get("/tenants").json()
        assert client.get("/tenants", params={"prefix": f"{name}-"}).json()["tenants"] == []
    assert (answer["scope"], [one["tenant_id"] for one in answer["tenants"]]) == (scope, [name])


def test_feedback_is_told_as_it_was_said_the_newest_first(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with service.client(key) as client:
        for number in range(5):
            said = {"session_id": f"session-{number}", "utility": number / 10, "source": "thumbs"}
            client.post("/context/feedback", json={**said, "metadata": {"note": "kept to itself"}})
        parts = list(pages(client, "/context/feedback/history", "feedback", "below", limit=2))
    told = [event for part in parts for event in part]
    assert [(one["seq"], one["session_id"], one["utility"]) for one in told] == [
        (number + 1, f"session-{number}", number / 10) for number in reversed(range(5))
    ]
    assert told[0]["event_id"] == f"{name}:5"
    assert {(one["source"], one["reward"], one["recall_id"], one["arm"]) for one in told} == {
        ("thumbs", None, None, None)
    }
    assert datetime.fromisoformat(told[0]["created_at"]) >= datetime.fromisoformat(told[-1]["created_at"])


def test_experiments_are_told_from_the_newest_on_with_what_became_of_them(service: Running) -> None:
    with experiment(service) as ended:
        pass
    with experiment(service) as running, service.client(service.operator) as client:
        newest, before = client.get("/experiments", params={"limit": 2}).json()["experiments"]
        (after,) = client.get("/experiments", params={"limit": 1, "before": running}).json()["experiments"]
        assert client.get("/experiments", params={"before": "never-drawn-up"}).json()["experiments"] == []
    assert (newest["experiment_id"], newest["status"], newest["end_reason"]) == (running, "running", None)
    assert before == after
    assert (before["experiment_id"], before["status"]) == (ended, "stopped")
    assert before["end_reason"] == "the test is over"
    nothing = {"share": 0.5, "sessions": 0, "mean": None, "p": None, "d": None}
    assert newest["arms"] == [{"name": "control", **nothing}, {"name": "warm", **nothing}]


def test_experiments_are_for_operators(service: Running, tenant: Tenant) -> None:
    with service.client(tenant[1]) as client:
        assert client.get("/experiments").status_code == 403
