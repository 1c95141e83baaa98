"""The client: what agents call, against the real service."""

import pytest

from somabrain_dagster.client import Refused, SomaBrain
from tests.serving.running import Running

Tenant = tuple[str, str]


def test_an_agent_remembers_recalls_and_learns(service: Running, tenant: Tenant) -> None:
    name, key = tenant
    with SomaBrain(service.url, key) as brain:
        kept = brain.remember("bob bakes bread every Sunday", speaker="bob")
        recalled = brain.recall("who bakes bread?", session_id="s-1")
        helpful = [{"memory": recalled["hits"][0]["memory_id"]}]
        landed = brain.feedback(
            session_id="s-1", utility=1.0, recall_id=recalled["recall_id"], helpful=helpful
        )
        again = brain.feedback(session_id="s-1", utility=0.5, idempotency_key="once")
        repeated = brain.feedback(session_id="s-1", utility=0.5, idempotency_key="once")
        many = brain.feedback_all([{"session_id": "s-1", "utility": 0.1}] * 3)
        state = brain.state()
        history = brain.history(limit=2)
        back = brain.roll_back(landed.version)
        assert [memory["memory_id"] for memory in brain.export()] == [kept["memory_id"]]
        brain.erase(kept["memory_id"])
        with pytest.raises(Refused, match="404 unknown memory"):
            brain.memory(kept["memory_id"])
    assert (landed.tenant_id, again.repeated, repeated.repeated) == (name, False, True)
    assert [result.landed.seq for result in many.results if result.landed is not None] == [3, 4, 5]
    assert state.feedback_seq == 5
    assert history.changes[0].version == state.version
    assert back.weights == landed.weights


def test_an_operator_says_whom_it_means(service: Running, tenant: Tenant) -> None:
    name, _ = tenant
    with SomaBrain(service.url, service.operator, tenant_id=name) as brain:
        assert brain.state().tenant_id == brain.neuromodulators().tenant_id == name
        assert brain.promoted().version >= 0
        assert brain.tokens("s-1", 5, "words").recorded == 1


def test_a_wrong_key_is_named(service: Running) -> None:
    with SomaBrain(service.url, "sb_wrong") as brain, pytest.raises(Refused, match="401 unauthorized"):
        brain.state()
