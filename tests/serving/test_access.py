"""Keys: whose they are, what they may, and that two tenants' never meet, on every route there is."""

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest

from somabrain_dagster.serving.app import operations_of
from somabrain_dagster.serving.operations import Operation
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.keys import TooManyKeys, create_key, list_keys, revoke_key
from tests.serving.running import Running, until

OPERATIONS = operations_of(Settings())
WITH_KEY = [operation for operation in OPERATIONS if operation.scope is not None]


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@dataclass(frozen=True)
class About:
    """A request that is about a tenant: where the tenant is named, and what else it needs."""

    params: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    path: dict[str, str] = field(default_factory=lambda: {"experiment_id": "exp-1", "memory_id": "1"})


def requests_about(tenant: str) -> dict[str, About]:
    """For each operation that is about one tenant, a request that names it."""
    here = {"tenant_id": tenant}
    return {
        "POST /context/feedback": About(body={**here, "session_id": "s", "utility": 0.5}),
        "GET /context/feedback/history": About(here),
        "GET /context/adaptation/state": About(here),
        "GET /context/adaptation/history": About(here),
        "POST /context/adaptation/rollback": About(here, {"version": 0}),
        "POST /context/adaptation/reset": About(here),
        "GET /context/neuromodulators": About(here),
        "GET /experiments/{experiment_id}/assignment": About({"unit": f"{tenant}/session"}),
        "POST /memory/remember": About(body={**here, "text": "it rained"}),
        "POST /memory/link": About(body={**here, "source_id": 1, "target_id": 2}),
        "POST /memory/recall": About(body={**here, "text": "did it rain?"}),
        "POST /memory/context": About(body={**here, "text": "did it rain?"}),
        "GET /memory/export": About(here),
        "GET /memory/{memory_id}": About(here),
        "DELETE /memory/{memory_id}": About(here),
        "POST /usage/tokens": About(body={**here, "session_id": "s", "tokens": 1, "tokenizer": "words"}),
    }


GLOBAL = {"GET /config/weights", "GET /tenants"}
"""Operations that every key may use, and that are about no tenant that a request could name."""


def send(service: Running, key: str | None, operation: Operation, about: About) -> httpx.Response:
    with service.client(key) as client:
        return client.request(
            operation.method,
            operation.path.format(**about.path),
            params=about.params,
            json=about.body,
        )


@pytest.fixture
def two(service: Running) -> tuple[str, str, str]:
    """Two tenants, and the key of the first."""
    first, second = (f"{name}-{uuid4().hex[:8]}" for name in ("alice", "bob"))
    keys = service.add_tenants([first, second])
    return first, second, keys[first]


@pytest.mark.parametrize("operation", WITH_KEY, ids=named)
def test_every_route_is_in_the_table_or_for_operators(operation: Operation) -> None:
    assert named(operation) in requests_about("x").keys() | GLOBAL or operation.scope == "operator"


@pytest.mark.parametrize("operation", WITH_KEY, ids=named)
def test_another_tenants_key_is_refused(
    service: Running, two: tuple[str, str, str], operation: Operation
) -> None:
    _, other, key = two
    about = requests_about(other).get(named(operation), About({"tenant_id": other}, {}))
    before = log_of(service, other)
    answer = send(service, key, operation, about)
    if named(operation) in GLOBAL:
        assert other not in answer.text
    else:
        assert answer.status_code == 403, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert log_of(service, other) == before


def log_of(service: Running, tenant: str) -> str:
    """Everything that is stored of a tenant, but when its keys were used."""
    with service.database.as_owner() as connection:
        tables = connection.execute(
            """
            SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
              AND NOT c.relispartition AND a.attname = 'tenant_id' AND c.relname <> 'api_keys' ORDER BY 1
            """
        ).fetchall()
    found = {}
    with service.database.as_operator() as connection:
        for (table,) in tables:
            rows = connection.execute(
                f"SELECT row_to_json(t)::text FROM {table} t WHERE tenant_id = %s ORDER BY 1",  # noqa: S608
                (tenant,),
            )
            found[table] = rows.fetchall()
    return json.dumps(found)


@pytest.mark.parametrize("operation", WITH_KEY, ids=named)
@pytest.mark.parametrize(
    "key",
    [None, "?", "sb_", "sb_0123456789abcdef_" + "A" * 43, "sb_0123456789abcdef_short", "x" * 5000],
    ids=["none", "word", "cut", "unknown", "short", "long"],
)
def test_without_a_valid_key_nothing_is_answered(
    service: Running, operation: Operation, key: str | None
) -> None:
    answer = send(service, key, operation, About(body={}))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("operation", WITH_KEY, ids=named)
def test_the_right_id_with_a_wrong_secret_is_refused(
    service: Running, tenant: tuple[str, str], operation: Operation
) -> None:
    _, key = tenant
    for _ in range(2):  # not known to the process, then known
        wrong = key[:-43] + ("A" * 43)
        assert send(service, wrong, operation, About(body={})).status_code == 401
        with service.client(key) as client:
            assert client.get("/context/adaptation/state").status_code == 200


@pytest.mark.parametrize("operation", WITH_KEY, ids=named)
def test_a_key_that_only_reads_writes_nothing(service: Running, operation: Operation) -> None:
    name = f"reader-{uuid4().hex[:8]}"
    service.add_tenants([name])
    with service.database.as_operator() as connection:
        key = create_key(connection, name, "read_only", "tests")
    before = log_of(service, name)
    answer = send(service, key, operation, requests_about(name).get(named(operation), About(body={})))
    allowed = operation.scope == "read_only"
    assert (answer.status_code == 403) != allowed
    assert log_of(service, name) == before


@pytest.mark.parametrize(
    "operation", [operation for operation in WITH_KEY if named(operation) in requests_about("x")], ids=named
)
def test_an_operator_must_name_the_tenant(
    service: Running, two: tuple[str, str, str], operation: Operation
) -> None:
    first, *_ = two
    about = requests_about(first)[named(operation)]
    known = send(service, service.operator, operation, about).status_code
    assert known < 300 or (known == 404 and ("{" in operation.path or operation.path == "/memory/link"))
    if "unit" in about.params:
        return
    unnamed = About(
        {name: value for name, value in about.params.items() if name != "tenant_id"},
        None if about.body is None else {n: v for n, v in about.body.items() if n != "tenant_id"},
        about.path,
    )
    assert send(service, service.operator, operation, unnamed).status_code == 422


def test_a_revoked_key_is_refused_at_once(service: Running, tenant: tuple[str, str]) -> None:
    name, key = tenant
    with service.client(key) as client:
        assert client.get("/context/adaptation/state").status_code == 200
        with service.database.as_operator() as connection:
            revoked = revoke_key(connection, key.split("_")[1], "tests")
        assert revoked.tenant_id == name
        until(lambda: client.get("/context/adaptation/state").status_code == 401, 5.0)


def test_two_keys_of_a_tenant_are_valid_at_once_and_no_third(
    service: Running, tenant: tuple[str, str]
) -> None:
    name, first = tenant
    with service.database.as_operator() as connection:
        second = create_key(connection, name, "tenant", "tests")
    for key in (first, second):
        with service.client(key) as client:
            assert client.get("/context/adaptation/state").status_code == 200
    with service.database.as_operator() as connection, pytest.raises(TooManyKeys, match="revoke"):
        create_key(connection, name, "tenant", "tests")
    with service.database.as_operator() as connection:
        revoke_key(connection, first.split("_")[1], "tests")
        create_key(connection, name, "tenant", "tests")


def test_operators_are_several(service: Running) -> None:
    with service.database.as_operator() as connection:
        made = [create_key(connection, audit.SYSTEM, "operator", "tests") for _ in range(4)]
        for key in made:
            revoke_key(connection, key.split("_")[1], "tests")
    assert len({*made}) == 4


def test_secrets_are_stored_nowhere(service: Running, tenant: tuple[str, str]) -> None:
    name, key = tenant
    with service.database.as_operator() as connection:
        stored = connection.execute("SELECT row_to_json(k)::text FROM api_keys k").fetchall()
        trail = connection.execute("SELECT row_to_json(e)::text FROM audit_events e").fetchall()
        (listed,) = list_keys(connection, name)
    secret = key.split("_", 2)[2]
    assert listed.scope == "tenant"
    assert secret not in repr((stored, trail, listed))


def test_the_audit_trail_names_who_changed_what(service: Running, tenant: tuple[str, str]) -> None:
    name, key = tenant
    with service.client(key) as client:
        client.post("/context/adaptation/reset")
    with service.database.as_operator() as connection:
        trail = connection.execute(
            "SELECT actor, action FROM audit_events WHERE tenant_id = %s ORDER BY version", (name,)
        ).fetchall()
        assert audit.verify_chain(connection, name) is None
    assert trail == [("tests", "key.create"), (f"key {key.split('_')[1]}", "reset")]
