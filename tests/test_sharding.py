"""Ready to be spread over many machines by tenant: the schema, the statements, the keys in Redis.

A distributed Postgres such as Citus puts a tenant's rows of all tables on one node. It can where every key of
such a table has the tenant in it (unique ones: `test_schema.py`), and it answers a statement on one node, or
on each by itself, where all of the statement's tables are joined by the tenant.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pglast
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from somabrain_dagster.embedded.valkey import valkey_path
from somabrain_dagster.operations.processes import beside, free_port
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.cache import SnapshotCache, snapshot_key
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.working_memory import Noted, WorkingMemory
from tests.brain import new_tenants
from tests.sharding import Statement, Unbound, statements

REFERENCE = {
    "audit_seals",
    "backups",
    "brain",
    "canaries",
    "canary_looks",
    "configurations",
    "corpus_manifests",
    "embedding_models",
    "experiment_analyses",
    "experiments",
    "feature_scales",
    "kafka_health",
    "parameter_proposals",
    "promotions",
    "proofs",
    "prunings",
    "restore_drills",
}
"""Small tables that are of no tenant: a distributed Postgres keeps a copy of each on every node."""

ON_PURPOSE = {
    ("indexes.py", "DELETE FROM memories_default p WHERE NOT EXISTS"): "gives one large tenant a partition "
    "of its own, under a lock, in tables that hold no other's rows; a distributed Postgres has its own way "
    "of isolating a tenant",
    ("retention.py", "WITH RECURSIVE found AS"): "asks one partition which tenants are in it, before it is "
    "dropped",
    ("retention.py", "DELETE FROM idempotency_keys WHERE ctid"): "deletes what is too old by its place, a "
    "batch in a transaction: it is to run on each node by itself",
}
"""Statements that join tenants' tables by something else, and why they may."""

TABLES = """
SELECT c.relname, EXISTS (
    SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
)
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'alembic_version'
"""

FOREIGN = """
SELECT k.conrelid::regclass::text, k.confrelid::regclass::text, k.conname, EXISTS (
    SELECT FROM unnest(k.conkey, k.confkey) AS pair (own, other)
    JOIN pg_attribute o ON o.attrelid = k.conrelid AND o.attnum = pair.own
    JOIN pg_attribute f ON f.attrelid = k.confrelid AND f.attnum = pair.other
    WHERE o.attname = 'tenant_id' AND f.attname = 'tenant_id'
)
FROM pg_constraint k
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.connamespace = 'public'::regnamespace
"""


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.as_owner() as opened:
        yield opened


def of_tenants(connection: Connection) -> set[str]:
    return {name for name, has_tenant in connection.execute(TABLES.encode()).fetchall() if has_tenant}


# The schema


def test_a_table_is_a_tenants_or_a_small_one_that_every_node_has(connection: Connection) -> None:
    tables = connection.execute(TABLES.encode()).fetchall()
    assert {name for name, has_tenant in tables if not has_tenant} == REFERENCE
    assert len(of_tenants(connection)) >= 25


def test_a_foreign_key_stays_with_its_tenant_or_leads_to_a_table_that_every_node_has(
    connection: Connection,
) -> None:
    tenants = of_tenants(connection)
    keys = connection.execute(FOREIGN.encode()).fetchall()
    assert len(keys) > 20
    crossing = [
        (table, name)
        for table, other, name, by_tenant in keys
        if other in tenants and not (table in tenants and by_tenant)
    ]
    assert crossing == []


# The statements


@pytest.fixture(scope="module")
def written() -> list[Statement]:
    return list(statements())


def readable(statement: Statement, every: list[Statement]) -> bool:
    """Whether it is a statement, and not the beginning that several others share."""
    try:
        pglast.parse_sql(statement.text)
    except pglast.parser.ParseError:
        if any(statement.text in other.text for other in every if other is not statement):
            return False
        raise
    return True


def test_every_join_of_tenants_tables_names_the_tenant(
    connection: Connection, written: list[Statement]
) -> None:
    tables = of_tenants(connection) | {"memories_default"}
    read = [statement for statement in written if readable(statement, written)]
    assert len(read) > 300
    unbound = {
        (statement.module, " ".join(statement.text.split())): (statement.place, found.groups)
        for statement in read
        if (found := Unbound(statement.text, tables)).groups
    }
    excused = {
        key: excuse
        for key in unbound
        for excuse in ON_PURPOSE
        if key[0] == excuse[0] and key[1].startswith(excuse[1])
    }
    assert [unbound[key] for key in unbound.keys() - excused.keys()] == []
    assert set(excused.values()) == set(ON_PURPOSE), "what is no longer there needs no excuse"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT FROM recalls r JOIN feedback_events e ON e.recall_id = r.recall_id",
        "SELECT FROM recalls r JOIN feedback_events e USING (recall_id) WHERE r.tenant_id = $1",
        "SELECT FROM recalls, feedback_events",
        "SELECT FROM recalls r WHERE EXISTS (SELECT FROM feedback_events e WHERE e.recall_id = r.recall_id)",
        "SELECT FROM recalls WHERE recall_id IN (SELECT recall_id FROM feedback_events)",
        "SELECT (SELECT max(seq) FROM feedback_events) FROM recalls WHERE tenant_id = $1",
        "UPDATE recalls r SET query = '' FROM feedback_events e WHERE e.recall_id = r.recall_id",
        "DELETE FROM recalls r USING feedback_events e WHERE r.tenant_id <> e.tenant_id",
        "INSERT INTO recalls (tenant_id) SELECT session_id FROM feedback_events",
        "WITH c AS (SELECT recall_id FROM feedback_events) SELECT FROM recalls JOIN c USING (recall_id)",
        "SELECT FROM recalls r JOIN feedback_events e ON r.tenant_id = ANY ($1) AND e.tenant_id = ANY ($1)",
        "SELECT FROM recalls CROSS JOIN LATERAL (SELECT FROM feedback_events LIMIT 1) AS l",
    ],
)
def test_a_join_by_something_else_is_found(text: str) -> None:
    assert len(Unbound(text, {"recalls", "feedback_events"}).groups) == 2


@pytest.mark.parametrize(
    "text",
    [
        "SELECT FROM recalls JOIN feedback_events USING (tenant_id, recall_id)",
        "SELECT FROM recalls r JOIN feedback_events e ON (r.tenant_id, 1) = (e.tenant_id, e.seq)",
        "SELECT FROM recalls r, feedback_events e WHERE r.tenant_id = $1 AND e.tenant_id = $1",
        "SELECT FROM recalls r WHERE EXISTS (SELECT FROM feedback_events e WHERE e.tenant_id = r.tenant_id)",
        "SELECT FROM recalls WHERE tenant_id IN (SELECT tenant_id FROM feedback_events)",
        "WITH c AS (SELECT tenant_id FROM feedback_events) SELECT FROM recalls JOIN c USING (tenant_id)",
        "INSERT INTO recalls (query, tenant_id) SELECT '', tenant_id FROM feedback_events",
        "SELECT FROM recalls JOIN feature_scales ON true",
        "SELECT FROM recalls r CROSS JOIN LATERAL ("
        "SELECT FROM feedback_events e WHERE e.tenant_id = r.tenant_id LIMIT 1) AS l",
    ],
)
def test_a_join_by_the_tenant_is_none_of_them(text: str) -> None:
    assert Unbound(text, {"recalls", "feedback_events"}).groups == []


# Redis


@pytest.fixture(scope="module")
def cluster(reachable_path: Path) -> Iterator[str]:
    """The URL of a Valkey that is a cluster of one node: what touches two slots at once it refuses."""
    port = free_port(8491)
    # Without a file: it forgets that it was a cluster.
    options = {"port": port, "bind": "127.0.0.1", "save": "", "cluster-enabled": "yes"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    home = reachable_path / "cluster"
    home.mkdir()
    with beside([str(valkey_path()), *arguments, "--dir", str(home)], os.environ, home / "log"):
        url = f"redis://127.0.0.1:{port}/0"
        with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 100)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            deadline = time.monotonic() + 20
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < deadline, "the cluster does not come about"
                time.sleep(0.1)
        yield url


def test_such_a_cluster_refuses_what_touches_two_slots(cluster: str) -> None:
    with redis.Redis.from_url(cluster) as client, pytest.raises(redis.ResponseError, match="same slot"):
        client.delete("somabrain:{a}:working", "somabrain:{b}:working")


@pytest.mark.parametrize("session", ["s", "chat {1}", "}{", "ü: 7"])
def test_whatever_touches_several_keys_at_once_stays_with_one_tenant(cluster: str, session: str) -> None:
    with WorkingMemory(cluster, capacity=2, seconds=60) as working:
        for memory in (1, 2, 3):
            working.remember("acme", session, [Noted(memory)])
        assert [noted.memory_id for noted in working.recent("acme", session)] == [3, 2]
        assert working.sizes("acme")[session] == 2
        assert working.forget("acme", session)


def test_snapshots_of_many_tenants_are_published_to_a_cluster(cluster: str, database: Database) -> None:
    tenants = new_tenants(database, 5)
    with database.as_operator() as connection:
        states = read_states(connection, tenants)
    with closing(SnapshotCache(cluster)) as snapshots:
        assert snapshots.publish(states)
        assert snapshots.versions(tenants) == [0] * len(tenants)


def test_tenants_are_spread_over_the_slots(cluster: str) -> None:
    keys = [snapshot_key(f"tenant-{number}") for number in range(50)]
    with redis.Redis.from_url(cluster) as client:
        assert len({client.execute_command("CLUSTER KEYSLOT", key) for key in keys}) > 40
