"""Whose rows a transaction sees and writes: its tenants', in every table, and the log's never again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.audit import record
from somabrain_dagster.store.database import OPERATOR_ROLE, TENANT_ROLE, Connection, Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.landing import Landed, land
from somabrain_dagster.store.memories import Link, link_all, parse_memory, remember_all
from somabrain_dagster.store.outbox import Outbox
from somabrain_dagster.store.retention import place_hold
from somabrain_dagster.store.seals import seal
from somabrain_dagster.store.usage import TokenUsage, record_tokens
from tests.test_outbox import publish

CONFIGURATION = LearningConfiguration()
NOON = datetime(2018, 4, 1, 12, tzinfo=UTC)
LOG = ("weight_changes", "feedback_events", "audit_events", "recalls", "token_usage", "idempotency_keys")
"""What is appended to and never changed."""


def tables(connection: Connection) -> list[str]:
    """Every table with a tenant_id, from the catalogue."""
    rows = connection.execute(
        """
        SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND a.attname = 'tenant_id'
        ORDER BY c.relname
        """
    )
    return [name for (name,) in rows]


def on(table: str, statement: LiteralString) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(table))


def tenants_in(connection: Connection, table: str) -> set[str]:
    return {tenant for (tenant,) in connection.execute(on(table, "SELECT DISTINCT tenant_id FROM {}"))}


def assert_powerless(connection: Connection) -> None:
    """The one who asks is no superuser, is not exempt from row security, owns nothing, and is nobody else."""
    attributes = connection.execute(
        """
        SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin
        FROM pg_roles WHERE rolname = current_user
        """
    ).fetchone()
    assert attributes == (False,) * 6
    owned = connection.execute(
        """
        SELECT 'class', relname FROM pg_class WHERE relowner = current_user::regrole
        UNION ALL SELECT 'namespace', nspname FROM pg_namespace WHERE nspowner = current_user::regrole
        UNION ALL SELECT 'function', proname FROM pg_proc WHERE proowner = current_user::regrole
        UNION ALL SELECT 'database', datname FROM pg_database WHERE datdba = current_user::regrole
        """
    ).fetchall()
    assert owned == []
    (is_owner,) = connection.execute(
        """
        SELECT pg_has_role(current_user, datdba, 'MEMBER') FROM pg_database
        WHERE datname = current_database()
        """
    ).fetchone() or (None,)
    assert is_owner is False
    memberships = connection.execute(
        "SELECT roleid::regrole FROM pg_auth_members WHERE member = current_user::regrole"
    ).fetchall()
    assert memberships == []


@dataclass(frozen=True)
class Populated:
    """A database with rows of two tenants."""

    database: Database
    alice: str
    bob: str

    @contextmanager
    def as_tenants(self, *tenants: str) -> Iterator[Connection]:
        """A tenant role's transaction that leaves nothing behind."""
        with self.database.as_tenants(tenants) as connection:
            assert_powerless(connection)
            yield connection
            connection.rollback()


@pytest.fixture(scope="module")
def populated(shared_database: Database) -> Populated:
    populated = Populated(shared_database, f"alice-{uuid4().hex[:8]}", f"bob-{uuid4().hex[:8]}")
    with shared_database.as_operator() as connection:
        create_tenants(connection, [populated.alice, populated.bob], CONFIGURATION)
    for tenant in (populated.alice, populated.bob):
        live(shared_database, tenant)
    with Outbox(shared_database.url) as outbox:
        publish(outbox)
    with shared_database.as_operator() as connection:
        assert seal(connection, "ada") is not None
    return populated


def live(database: Database, tenant: str) -> None:
    """Leave a row of the tenant in every table, each written by the role that may."""
    with database.as_tenants([tenant]) as connection:
        question, answer = (
            remembered.memory_id
            for remembered in remember_all(
                connection,
                [
                    parse_memory({"tenant_id": tenant, "text": text, "occurred_at": NOON})
                    for text in ("a question", "its answer")
                ],
            )
        )
        assert link_all(
            connection, [Link(tenant_id=tenant, source_id=question, target_id=answer, occurred_at=NOON)]
        )
        connection.execute(
            """
            INSERT INTO recalls (
                tenant_id, occurred_at, query, mode, weights_version, weights, scale_version,
                registry_version, candidate_ids, features, propensities, expected, hits, cleanup_backend
            )
            SELECT
                %s, now(), 'a question', 'rank', version, weights, 1, 1, %s, '{}', '{}', '{}', '{}', 'exact'
            FROM adaptation_states
            """,
            (tenant, [question, answer]),
        )
        used = TokenUsage(
            tenant_id=tenant, session_id="session-1", tokens=2, tokenizer="words", occurred_at=NOON
        )
        assert record_tokens(connection, [used])
        connection.execute(
            "INSERT INTO memory_keys (tenant_id, key, content_digest) VALUES (%s, 'once', sha256(''))",
            (tenant,),
        )
        record(connection, tenant, "ada", "restore", {})
    said = {"tenant_id": tenant, "session_id": "session-1", "utility": 0.5, "idempotency_key": "once"}
    (landed,) = land(database, [parse_feedback(said)], CONFIGURATION)
    assert isinstance(landed, Landed)
    with database.as_operator() as connection:
        create_key(connection, tenant, "tenant", "ada")
        connection.execute(
            """
            INSERT INTO log_marks (tenant_id, consumer, version, hash, feedback_seq)
            SELECT tenant_id, 'relay', version, hash, feedback_seq FROM adaptation_states WHERE tenant_id = %s
            """,
            (tenant,),
        )
        connection.execute(
            """
            INSERT INTO api_keys (tenant_id, key_id, scope, secret_hash)
            VALUES (%s, left(encode(sha256(convert_to(%s, 'UTF8')), 'hex'), 16), 'tenant', sha256('secret'))
            """,
            (tenant, tenant),
        )
        connection.execute(
            "INSERT INTO corpus_manifests (corpus_id, kind, scope, url, position, manifest) "
            "VALUES (%s, 'corpus', 'pooled', 'file:///nowhere', '0', '{}')",
            (f"corpus-{tenant}",),
        )
        connection.execute(
            "INSERT INTO corpus_tenants (tenant_id, corpus_id, examples, tokens, rejected) "
            "VALUES (%s, %s, 1, 2, '{}')",
            (tenant, f"corpus-{tenant}"),
        )
        connection.execute("INSERT INTO corpus_tombstones (tenant_id, memory_id) VALUES (%s, 0)", (tenant,))
        connection.execute(
            """
            INSERT INTO feedback_daily (
                tenant_id, day, events, sessions,
                utility_sum, utility_square_sum, reward_sum, reward_square_sum
            )
            SELECT tenant_id, created_at::date, 1, 1, utility, utility ^ 2, utility, utility ^ 2
            FROM feedback_events WHERE tenant_id = %s
            """,
            (tenant,),
        )
        _tried(connection, tenant)
        place_hold(connection, tenant, "ada", "a case")
    with database.as_owner() as connection:
        ((pruning,),) = connection.execute(
            """
            INSERT INTO prunings (
                relation, partition, begins, ends, actor, decided_at, tenants, rows, bytes
            ) VALUES ('token_usage', 'a_week', now(), 'infinity', 'ada', now(), 1, 1, 1)
            RETURNING pruning_id
            """
        ).fetchall()
        connection.execute(
            """
            INSERT INTO seals (
                tenant_id, pruning_id, relation, begins, ends, rows, first_id, last_id, root
            ) VALUES (%s, %s, 'token_usage', now(), now(), 1, 1, 1, sha256(''))
            """,
            (tenant, pruning),
        )


def _tried(connection: Connection, tenant: str) -> None:
    """A row of the tenant in every table of what is tried before it is promoted."""
    weights = CONFIGURATION.start_nanos.tolist()
    trial = f"trial-{tenant}"
    ((proposal,),) = connection.execute(
        """
        INSERT INTO parameter_proposals (
            reason, label, promotion_version, registry_version, configuration, from_scales, to_scales, before,
            weights, recalls, first_recall_id, last_recall_id, accepted, gates, fit
        ) VALUES ('test', 'full', 0, 1, decode(%s, 'hex'), 1, 1, %s, %s, 1, 1, 1, false, '[]', '{}')
        RETURNING proposal_id
        """,
        (CONFIGURATION.digest, weights, weights),
    ).fetchall()
    connection.execute("INSERT INTO proposal_tenants VALUES (%s, %s, 1, 1, 1)", (tenant, proposal))
    connection.execute(
        """
        INSERT INTO tenant_fits (
            tenant_id, last_seq, first_seq, recalls, promotion_version, registry_version, scale_version,
            prior, weights, accepted, gates
        ) VALUES (%s, 1, 1, 1, 0, 1, 1, %s, %s, false, '[]')
        """,
        (tenant, weights, weights),
    )
    connection.execute(
        """
        INSERT INTO performance_trends (
            tenant_id, feedback_seq, bins, tau, p, uncorrected_p, autocorrelation, slope, low, high, effect,
            q, direction
        ) VALUES (%s, 1, 30, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0)
        """,
        (tenant,),
    )
    connection.execute(
        "INSERT INTO experiments (experiment_id, salt, arms, shares) VALUES (%s, 'salt', '{a,b}', '{.5,.5}')",
        (trial,),
    )
    connection.execute("INSERT INTO experiment_sessions VALUES (%s, %s, 's', 'a', 0, 1)", (tenant, trial))
    ((canary,),) = connection.execute(
        """
        INSERT INTO canaries (experiment_id, arm, actor, status, shift, rule, ended_at)
        VALUES (%s, 'b', 'ada', 'held', %s, '{}', now()) RETURNING canary_id
        """,
        (trial, weights),
    ).fetchall()
    connection.execute("INSERT INTO canary_members VALUES (%s, %s, true)", (tenant, canary))
    connection.execute(
        "INSERT INTO canary_looks (canary_id, look, action, decision) VALUES (%s, 0, 'HOLD', '{}')", (canary,)
    )
    connection.execute("INSERT INTO canary_periods VALUES (%s, %s, 0, 0, 0, 0, 0, 0, 0)", (tenant, canary))
    connection.execute("INSERT INTO request_stats VALUES (%s, now(), 1, 0, '{1}')", (tenant,))


@pytest.fixture
def tenant(populated: Populated) -> Iterator[Connection]:
    """A transaction of alice."""
    with populated.as_tenants(populated.alice) as connection:
        yield connection


@pytest.fixture
def operator(populated: Populated) -> Iterator[Connection]:
    """An operator's transaction."""
    with populated.database.as_operator() as connection:
        assert_powerless(connection)
        yield connection
        connection.rollback()


@pytest.fixture(params=["tenant", "operator"])
def either(request: pytest.FixtureRequest) -> Connection:
    """A transaction of alice, and one of an operator."""
    connection: Connection = request.getfixturevalue(request.param)
    return connection


def attempt(connection: Connection, statement: sql.Composed, *arguments: object) -> int | None:
    """How many rows the statement changes; None where it is not permitted. Either way nothing is changed."""
    try:
        with connection.transaction(force_rollback=True):
            return connection.execute(statement, arguments).rowcount
    except InsufficientPrivilege:
        return None


def own_rows(connection: Connection) -> dict[str, int]:
    return {table: connection.execute(on(table, "SELECT FROM {}")).rowcount for table in tables(connection)}


def test_every_table_has_rows_of_both_tenants_to_hide(populated: Populated, operator: Connection) -> None:
    """Whoever adds a table gives it a row in `live`, so that the tests below are about it too."""
    both = {populated.alice, populated.bob}
    assert {table for table in tables(operator) if not both <= tenants_in(operator, table)} == set()


def test_a_tenant_sees_its_own_rows_and_no_other(populated: Populated, tenant: Connection) -> None:
    seen = {table: tenants_in(tenant, table) for table in tables(tenant)}
    assert {table: tenants for table, tenants in seen.items() if tenants != {populated.alice}} == {}


def test_a_batch_sees_the_tenants_that_it_names(populated: Populated) -> None:
    both = {populated.alice, populated.bob}
    with populated.as_tenants(*both) as connection:
        seen = {table: tenants_in(connection, table) for table in tables(connection)}
        assert {table: tenants for table, tenants in seen.items() if tenants != both} == {}


@pytest.mark.parametrize("named", [[], [""], ["nobody"]])
def test_whoever_names_no_tenant_sees_nothing(populated: Populated, named: list[str]) -> None:
    with populated.as_tenants(*named) as connection:
        assert {table: tenants_in(connection, table) for table in tables(connection)} == {
            table: set() for table in tables(connection)
        }


def test_a_session_that_never_named_a_tenant_sees_nothing(populated: Populated) -> None:
    with psycopg.connect(populated.database.url) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(TENANT_ROLE)))
        assert_powerless(connection)
        assert connection.execute("SELECT current_setting('app.tenants', true)").fetchone() == (None,)
        assert {table: tenants_in(connection, table) for table in tables(connection)} == {
            table: set() for table in tables(connection)
        }


def test_a_name_with_a_comma_is_not_two_tenants(populated: Populated) -> None:
    with (
        pytest.raises(ValueError, match="comma"),
        populated.as_tenants(f"{populated.alice},{populated.bob}"),
    ):
        pass


def test_the_weights_as_decimals_are_the_tenants_own_too(populated: Populated, tenant: Connection) -> None:
    assert tenants_in(tenant, "weights") == {populated.alice}


def test_an_update_reaches_own_rows_only(tenant: Connection) -> None:
    own = own_rows(tenant)
    changed = {
        table: attempt(tenant, on(table, "UPDATE {} SET tenant_id = tenant_id")) for table in tables(tenant)
    }
    assert {table: rows for table, rows in changed.items() if rows is not None} == {
        table: own[table] for table in ("adaptation_states", "memories", "memory_links")
    }


def test_a_deletion_reaches_own_rows_only(tenant: Connection) -> None:
    own = own_rows(tenant)
    deleted = {table: attempt(tenant, on(table, "DELETE FROM {}")) for table in tables(tenant)}
    assert {table: rows for table, rows in deleted.items() if rows is not None} == {
        table: own[table] for table in ("memories", "memory_links")
    }


def test_no_row_is_given_to_another_tenant(populated: Populated, tenant: Connection) -> None:
    given = {
        table: attempt(tenant, on(table, "UPDATE {} SET tenant_id = %s"), populated.bob)
        for table in tables(tenant)
    }
    assert given == dict.fromkeys(tables(tenant))


def test_no_row_is_inserted_for_another_tenant(populated: Populated, tenant: Connection) -> None:
    """A row like one's own, but for the name."""
    inserted = {}
    for table in tables(tenant):
        columns = tenant.execute(
            """
            SELECT attname FROM pg_attribute
            WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = '' AND attname <> 'tenant_id'
              AND NOT attisdropped
            """,
            (table,),
        )
        copied = sql.SQL(", ").join(sql.Identifier(name) for (name,) in columns)
        inserted[table] = attempt(
            tenant,
            sql.SQL("INSERT INTO {table} (tenant_id, {columns}) SELECT %s, {columns} FROM {table}").format(
                table=sql.Identifier(table), columns=copied
            ),
            populated.bob,
        )
    assert inserted == dict.fromkeys(tables(tenant))


def test_row_security_cannot_be_turned_off(tenant: Connection) -> None:
    tenant.execute("SET LOCAL row_security = off")
    for table in tables(tenant):
        with pytest.raises(InsufficientPrivilege, match="row-level security"), tenant.transaction():
            tenant.execute(on(table, "SELECT FROM {}"))


@pytest.mark.parametrize("table", [*LOG, "configurations"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET created_at = created_at", "DELETE FROM {}", "TRUNCATE {}"]
)
def test_what_was_logged_is_not_changed_by_tenant_or_operator(
    either: Connection, table: str, statement: str
) -> None:
    with pytest.raises(InsufficientPrivilege, match="permission denied"), either.transaction():
        either.execute(on(table, statement))


def test_partitions_are_reached_through_their_table_only(either: Connection) -> None:
    partitions = [
        name
        for (name,) in either.execute("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    ]
    assert len(partitions) >= 3 * 9
    for partition in partitions:
        for statement in (
            "SELECT FROM {}",
            "INSERT INTO {} DEFAULT VALUES",
            "DELETE FROM {}",
            "TRUNCATE {}",
            "UPDATE {} SET tenant_id = tenant_id",
        ):
            assert attempt(either, on(partition, statement)) is None, partition


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.own (tenant_id text)",
        "CREATE SCHEMA own",
        "CREATE FUNCTION public.own() RETURNS integer LANGUAGE sql RETURN 1",
        "ALTER TABLE memories NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY own_tenants ON memories",
        "CREATE POLICY own ON memories USING (true)",
        "ALTER TABLE weight_changes DISABLE TRIGGER ALL",
        "CREATE RULE own AS ON DELETE TO weight_changes DO INSTEAD NOTHING",
        "SET session_replication_role = replica",
    ],
)
def test_the_schema_is_the_owners_alone(either: Connection, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege), either.transaction():
        either.execute(statement.encode())


def test_a_function_that_runs_as_its_owner_fixes_where_it_looks_for_names(operator: Connection) -> None:
    """Else whoever calls it could put a table of the same name before the owner's."""
    loose = operator.execute(
        """
        SELECT proname FROM pg_proc
        WHERE prosecdef AND pronamespace = 'public'::regnamespace
          AND NOT coalesce(array_to_string(proconfig, ' ') LIKE '%search_path=%pg_temp', false)
        """
    ).fetchall()
    assert loose == []


def test_a_connection_goes_back_without_its_role_and_tenants(populated: Populated) -> None:
    def asks(connection: Connection) -> Any:
        return connection.execute("SELECT current_user, current_setting('app.tenants', true)").fetchone()

    class Interrupted(Exception):
        pass

    with Database(populated.database.url, max_connections=1) as database:
        with database.as_owner() as connection:
            owner, _ = asks(connection)
        with database.as_tenants([populated.alice]) as connection:
            assert asks(connection) == (TENANT_ROLE, populated.alice)
        with database.as_owner() as connection:
            assert asks(connection) == (owner, "")
        with pytest.raises(Interrupted), database.as_tenants([populated.alice]):
            raise Interrupted
        with database.as_operator() as connection:
            assert asks(connection) == (OPERATOR_ROLE, "")
        with database.as_owner() as connection:
            assert asks(connection) == (owner, "")


def test_a_snapshot_sees_one_instant_and_writes_nothing(populated: Populated) -> None:
    def state(connection: Connection) -> Any:
        return connection.execute(
            "SELECT version FROM adaptation_states WHERE tenant_id = %s", (populated.bob,)
        ).fetchone()

    said = {"tenant_id": populated.bob, "session_id": "session-1", "utility": 0.5}
    with populated.database.snapshot() as snapshot:
        assert_powerless(snapshot)
        before = state(snapshot)
        land(populated.database, [parse_feedback(said)], CONFIGURATION)
        assert state(snapshot) == before
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), snapshot.transaction():
            snapshot.execute("UPDATE adaptation_states SET version = version")
    with populated.database.snapshot() as snapshot:
        assert state(snapshot) == (before[0] + 1,)
