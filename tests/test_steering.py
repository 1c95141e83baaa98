"""τ through the real log: recalls steer it, each step is a change of weights, and each can be proved."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, islice
from typing import Any, LiteralString

import numpy as np
import pytest
from psycopg import sql

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.learning.diversity import diversity
from somabrain_dagster.learning.weights import NAMES, TAU
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.remember import embedded_text
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.changes import hold_neuromodulators, reset
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.verification import REDERIVATION, Finding, verify
from tests.brain import (
    CONFIGURATION,
    Row,
    assert_sound,
    changes_of,
    landed,
    new_tenant,
    said,
    state_of,
)
from tests.remembering import SECOND, logged, memory_of, messages, remember, room

pytestmark = pytest.mark.learning

SAID = messages(100)
LATER = SAID[-1].occurred_at + SECOND
QUESTION = "Do you like music?"


def steered(database: Database, embedder: Embedder, **settings: Any) -> Memories:
    return room(database, embedder, tau_adaptation=True, **settings)


def repeating(tenant: str) -> Query:
    return Query(tenant_id=tenant, text=QUESTION, as_of=LATER)


def varied(tenant: str) -> list[Query]:
    """Each asks for ten memories that no other of them sees."""
    moments = [one.occurred_at for one in SAID] + [LATER]
    return [
        Query(tenant_id=tenant, text=QUESTION, since=moments[first], as_of=moments[first + 10])
        for first in range(0, 100, 10)
    ]


def taus(database: Database, tenant: str) -> list[int]:
    """τ in nano-units, from the start and after each step of it."""
    return [
        change["after"][TAU]
        for change in changes_of(database, tenant)
        if change["cause"] in ("start", "diversity")
    ]


def findings(database: Database) -> list[Finding]:
    with database.snapshot() as connection:
        return verify(connection).findings


def test_the_same_hits_again_and_again_raise_tau_to_its_bound(database: Database, minilm: Embedder) -> None:
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)
    recalls = [memories.recall(repeating(tenant)) for _ in range(45)]
    assert len({tuple(hit.memory_id for hit in recall.hits) for recall in recalls}) == 1

    path = taus(database, tenant)
    assert path[0] == 700_000_000
    assert path[-1] == 1_200_000_000
    assert path == sorted(set(path))
    # The window is full at the fifth recall, and from then on has 40 repeats of 50: 0.1 · 0.3 · (1 − 1/2).
    assert path[1] - path[0] == 15_000_000
    assert [recall.steered_to is not None for recall in recalls] == [4 <= place < 38 for place in range(45)]
    assert_sound(database, tenant)
    assert findings(database) == []


def test_varied_hits_lower_tau_to_its_bound(database: Database, minilm: Embedder) -> None:
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)
    for query in islice(cycle(varied(tenant)), 40):
        assert len(memories.recall(query).hits) == 10
    path = taus(database, tenant)
    assert path[-1] == 400_000_000
    assert path == sorted(set(path), reverse=True)
    assert findings(database) == []


def test_each_step_is_a_change_that_names_its_recall(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = steered(shared_database, minilm), new_tenant(shared_database)
    remember(memories, tenant, SAID)
    recalls = [memories.recall(repeating(tenant)) for _ in range(7)]
    steps = changes_of(shared_database, tenant)[1:]
    assert [(step["cause"], step["recall_id"], step["version"]) for step in steps] == [
        ("diversity", recall.recall_id, recall.steered_to) for recall in recalls[4:]
    ]
    for step, recall in zip(steps, recalls[4:], strict=True):
        row = logged(shared_database, tenant, recall.recall_id)
        assert row["recalled"] == [hit.memory_id for hit in recall.hits] * 5
        assert (row["repeated"], row["serotonin"]) == (40, 1.0)
        assert row["weights_version"] == step["version"] - 1
        assert row["weights"][TAU] == step["after"][TAU] - step["shift"][TAU]
        assert [shift for place, shift in enumerate(step["shift"]) if place != TAU] == [0] * (len(NAMES) - 1)
    assert logged(shared_database, tenant, recalls[3].recall_id)["repeated"] is None


def test_memories_that_mean_the_same_repeat_one_another(shared_database: Database, minilm: Embedder) -> None:
    """Fifty memories of one text by one speaker, at fifty times: other memories, the same coordinate."""
    memories, tenant = steered(shared_database, minilm), new_tenant(shared_database)
    memories.remember_all([memory_of(tenant, SAID[0], occurred_at=one.occurred_at) for one in SAID[:50]])
    recall = memories.recall(Query(tenant_id=tenant, text=QUESTION, k=50))
    assert len({hit.memory_id for hit in recall.hits}) == 50
    row = logged(shared_database, tenant, recall.recall_id)
    assert row["repeated"] == 49
    assert taus(shared_database, tenant)[-1] - 700_000_000 == 24_000_000


def test_without_adaptation_tau_stands_still(shared_database: Database, minilm: Embedder) -> None:
    memories, tenant = room(shared_database, minilm), new_tenant(shared_database)
    remember(memories, tenant, SAID)
    for _ in range(8):
        assert memories.recall(repeating(tenant)).steered_to is None
    assert len(changes_of(shared_database, tenant)) == 1


def test_steps_and_feedback_interleave(database: Database, minilm: Embedder) -> None:
    """Serotonin is what the last feedback left; a stable tenant steps half as far as an upset one."""
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)
    for place in range(20):
        recall = memories.recall(repeating(tenant))
        if place % 3 == 0:
            helpful = [{"memory": recall.hits[-1].memory_id}]
            reward = 1.0 if place % 2 else -1.0
            event = said(tenant, reward=reward, recall_id=recall.recall_id, helpful=helpful)
            landed(database, [event])
    steps = [change for change in changes_of(database, tenant) if change["cause"] == "diversity"]
    assert len({step["shift"][TAU] for step in steps}) > 3
    assert_sound(database, tenant)
    assert findings(database) == []


def test_steps_follow_a_serotonin_that_an_operator_holds(database: Database, minilm: Embedder) -> None:
    """Held before any feedback, after some, and let go again: what is let go stays until feedback."""
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)

    def hold(level: float | None) -> None:
        with database.as_operator() as connection:
            hold_neuromodulators(connection, tenant, {"serotonin": level}, CONFIGURATION, "operator")

    def steps(count: int) -> list[int]:
        for _ in range(count):
            memories.recall(repeating(tenant))
        return [change["shift"][TAU] for change in changes_of(database, tenant)[-count:]]

    for _ in range(4):
        memories.recall(repeating(tenant))
    assert steps(2) == [15_000_000] * 2
    hold(0.0)
    assert steps(2) == [30_000_000] * 2
    hold(None)
    assert steps(2) == [30_000_000] * 2
    landed(database, [said(tenant, 0.0)])
    assert steps(2) == [15_000_000] * 2
    hold(0.5)
    assert steps(2) == [22_500_000] * 2
    landed(database, [said(tenant, 0.0)])
    assert steps(2) == [22_500_000] * 2
    with database.as_operator() as connection:
        reset(connection, tenant, CONFIGURATION, "operator")
    assert steps(2) == [22_500_000] * 2
    assert findings(database) == []


def test_a_level_that_everybodys_configuration_holds_counts_at_once(
    database: Database, minilm: Embedder
) -> None:
    tenant = new_tenant(database)
    held = steered(database, minilm, learning={"neuromodulators": {"serotonin": 0.0}})
    free = steered(database, minilm)
    remember(free, tenant, SAID)
    for _ in range(4):
        free.recall(repeating(tenant))
    for memories, shift in ((held, 30_000_000), (free, 30_000_000), (held, 30_000_000)):
        memories.recall(repeating(tenant))
        configured, stepped = changes_of(database, tenant)[-2:]
        assert (configured["cause"], stepped["cause"]) == ("configuration", "diversity")
        assert stepped["shift"][TAU] == shift
    assert findings(database) == []


def test_a_tenants_own_bounds_and_window_hold(database: Database, minilm: Embedder) -> None:
    overrides = {"high": {"tau": 0.75}, "diversity": {"window": 20, "rise": 0.2}}
    memories, tenant = steered(database, minilm), new_tenant(database, overrides)
    remember(memories, tenant, SAID)
    for _ in range(5):
        memories.recall(repeating(tenant))
    # Ten of twenty repeat: just the target, so it stands. Of two again and again eighteen do.
    assert taus(database, tenant) == [700_000_000]
    for _ in range(15):
        memories.recall(Query(tenant_id=tenant, text=QUESTION, as_of=LATER, k=2))
    assert taus(database, tenant)[-1] == 750_000_000
    assert findings(database) == []


def test_recalls_at_the_same_time_follow_one_another(database: Database, minilm: Embedder) -> None:
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID)
    with ThreadPoolExecutor(4) as pool:
        recalls = list(pool.map(lambda _: memories.recall(repeating(tenant)), range(24)))
    versions = [recall.steered_to for recall in recalls if recall.steered_to is not None]
    assert sorted(versions) == list(range(1, 21))
    assert_sound(database, tenant)
    assert findings(database) == []


def test_a_step_is_published(database: Database, minilm: Embedder, valkey: ValkeyServer) -> None:
    tenant = new_tenant(database)
    with closing(SnapshotCache(valkey.url)) as snapshots:
        memories = Memories(database, minilm, Settings(), snapshots=snapshots)
        remember(memories, tenant, SAID)
        for _ in range(6):
            memories.recall(repeating(tenant))
        published = snapshots.read(tenant)
    state = state_of(database, tenant)
    assert state.version == 2
    assert published is not None
    assert (published["version"], published["weights"]["tau"]) == (2, state.weights_by_name["tau"])


def sampled_diversity(
    database: Database, embedder: Embedder, seed: int, *, adapts: bool
) -> tuple[float, list[int]]:
    """The mean diversity of the last 35 of 120 recalls, and τ on the way.

    A tenant with the starting weights samples its answer to one question again and again, which few memories
    answer. Diversity is worked out from what was returned, whether τ adapts or not.
    """
    tenant = new_tenant(database)
    memories = room(database, embedder, seed, tau_adaptation=adapts)
    ids = remember(memories, tenant, SAID)
    vectors = embedder.embed([embedded_text(one.speaker, one.text) for one in SAID]).astype(np.float64)
    place = dict(zip(ids, range(len(ids)), strict=True))
    question = Query(tenant_id=tenant, text="Where did you go to school?", as_of=LATER, mode="sample", k=1)
    recalled = [memories.recall(question).hits[0].memory_id for _ in range(120)]
    seen = [
        diversity(recalled[:end], vectors[[place[one] for one in recalled[:end]]], CONFIGURATION.diversity)
        for end in range(86, 121)
    ]
    return float(np.mean([of for of in seen if of is not None])), taus(database, tenant)


@pytest.mark.parametrize("seed", [1, 2])
def test_in_closed_loop_on_real_memories_diversity_improves(
    shared_database: Database, minilm: Embedder, seed: int
) -> None:
    """The same stream and the same seed, τ fixed and τ adapting: nearer to the target, from below."""
    held, still = sampled_diversity(shared_database, minilm, seed, adapts=False)
    adapted, path = sampled_diversity(shared_database, minilm, seed, adapts=True)
    assert still == [700_000_000]
    assert max(path) > path[0] == 700_000_000
    assert all(400_000_000 <= tau <= 1_200_000_000 for tau in path)
    assert held + 0.1 < adapted < 0.6


# The proof


def in_the_recall(column: LiteralString, value: Callable[[Row], Any]) -> Callable[[Database, str, Row], None]:
    """Change what a recall's log says a step was made of."""

    def tamper(database: Database, tenant: str, recall: Row) -> None:
        with database.as_owner() as connection:
            connection.execute("ALTER TABLE recalls NO FORCE ROW LEVEL SECURITY")
            changed = connection.execute(
                sql.SQL("UPDATE recalls SET {} = %s WHERE recall_id = %s").format(sql.Identifier(column)),
                (value(recall), recall["recall_id"]),
            )
            assert changed.rowcount == 1
            connection.execute("ALTER TABLE recalls FORCE ROW LEVEL SECURITY")

    return tamper


def forged_step(database: Database, tenant: str, recall: Row) -> None:
    """Shift τ by a nano-unit more in the last step, and make weights, hash and live state agree."""
    with database.as_owner() as connection:
        for table in ("weight_changes", "adaptation_states"):
            connection.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            """
            UPDATE weight_changes SET shift[7] = shift[7] + 1, after[7] = after[7] + 1
            WHERE tenant_id = %s AND recall_id = %s
            """,
            (tenant, recall["recall_id"]),
        )
        connection.execute(
            """
            UPDATE weight_changes c SET hash = weight_change_hash(p.hash, c) FROM weight_changes p
            WHERE c.tenant_id = %s AND c.recall_id = %s
              AND p.tenant_id = c.tenant_id AND p.version = c.version - 1
            """,
            (tenant, recall["recall_id"]),
        )
        connection.execute(
            """
            UPDATE adaptation_states s SET weights = c.after, hash = c.hash FROM weight_changes c
            WHERE c.tenant_id = %s AND c.recall_id = %s AND s.tenant_id = c.tenant_id
            """,
            (tenant, recall["recall_id"]),
        )
        for table in ("weight_changes", "adaptation_states"):
            connection.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def forgotten(database: Database, tenant: str, recall: Row) -> None:
    with database.as_owner() as connection:
        connection.execute("ALTER TABLE recalls NO FORCE ROW LEVEL SECURITY")
        connection.execute("DELETE FROM recalls WHERE recall_id = %s", (recall["recall_id"],))
        connection.execute("ALTER TABLE recalls FORCE ROW LEVEL SECURITY")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (forged_step, "the shift is"),
        (forgotten, "is not there"),
        (in_the_recall("repeated", lambda row: row["repeated"] + 1), "the shift is"),
        (in_the_recall("repeated", lambda row: 39), "are the same memory"),
        (in_the_recall("repeated", lambda row: None), "does not say"),
        (in_the_recall("serotonin", lambda row: 0.5), "its serotonin is 0.5"),
        (in_the_recall("recalled", lambda row: row["recalled"][:-1]), "does not say"),
        (in_the_recall("recalled", lambda row: row["recalled"][::-1]), "do not end with the hits"),
        (in_the_recall("hits", lambda row: row["hits"][::-1]), "do not end with the hits"),
    ],
    ids=[
        "shift",
        "recall gone",
        "more repeats",
        "fewer repeats",
        "no repeats",
        "serotonin",
        "shorter window",
        "window",
        "hits",
    ],
)
def test_a_tampered_step_is_found(
    database: Database, minilm: Embedder, tamper: Callable[[Database, str, Row], None], message: str
) -> None:
    memories, tenant = steered(database, minilm), new_tenant(database)
    remember(memories, tenant, SAID[:40])
    for _ in range(6):
        recall = memories.recall(repeating(tenant))
    assert findings(database) == []
    tamper(database, tenant, logged(database, tenant, recall.recall_id))
    (finding,) = findings(database)
    assert (finding.claim, finding.tenant_id, finding.version) == (REDERIVATION, tenant, 2)
    assert message in finding.message
