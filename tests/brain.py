"""What the tests of the store share: tenants of their own, feedback in few words, a whole log checked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.adaptation import (
    AdaptationState,
    create_tenants,
    read_configurations,
    read_state,
)
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.feedback_contract import Feedback, parse_feedback
from somabrain_dagster.store.landing import Landed, Outcome, event_digest, land
from somabrain_dagster.store.weight_log import START_HASH, WeightChange

CONFIGURATION = LearningConfiguration()
Row = dict[str, Any]


def new_tenants(
    database: Database,
    count: int,
    overrides: Mapping[str, Any] | None = None,
    configuration: LearningConfiguration = CONFIGURATION,
) -> list[str]:
    """Tenants that nobody else has, in the order of their names."""
    tenants = sorted(f"tenant-{uuid4().hex[:12]}" for _ in range(count))
    with database.as_operator() as connection:
        assert sorted(create_tenants(connection, tenants, configuration, overrides)) == tenants
    return tenants


def new_tenant(database: Database, overrides: Mapping[str, Any] | None = None) -> str:
    (tenant_id,) = new_tenants(database, 1, overrides)
    return tenant_id


def said(tenant_id: str, utility: float = 0.5, **fields: Any) -> Feedback:
    """A checked feedback; without a word more, of one session."""
    return parse_feedback({"tenant_id": tenant_id, "session_id": "session-1", "utility": utility, **fields})


def landed(
    database: Database, batch: Sequence[Feedback], configuration: LearningConfiguration = CONFIGURATION
) -> list[Landed]:
    """Land a batch of which nothing is refused."""
    outcomes = land(database, batch, configuration)
    assert len(outcomes) == len(batch)
    return [answer(outcome) for outcome in outcomes]


def answer(outcome: Outcome) -> Landed:
    assert isinstance(outcome, Landed), outcome
    return outcome


def state_of(database: Database, tenant_id: str) -> AdaptationState:
    with database.as_tenants([tenant_id]) as connection:
        return read_state(connection, tenant_id)


def weights_of(database: Database, tenant_id: str) -> list[int]:
    weights: list[int] = state_of(database, tenant_id).weights.tolist()
    return weights


def changes_of(database: Database, tenant_id: str) -> list[Row]:
    """A tenant's log, in order, as rows; `in_sql` is the hash that the database computes for each."""
    with database.as_tenants([tenant_id]) as connection:
        return _rows(
            connection,
            """
            SELECT c.*, weight_change_hash(coalesce(lag(c.hash) OVER (ORDER BY c.version), %s), c) AS in_sql
            FROM weight_changes c ORDER BY c.version
            """,
            START_HASH,
        )


def events_of(database: Database, tenant_id: str) -> list[Row]:
    """A tenant's feedback events, in order, as rows."""
    with database.as_tenants([tenant_id]) as connection:
        return _rows(connection, "SELECT * FROM feedback_events ORDER BY seq")


def _rows(connection: Connection, query: str, *arguments: object) -> list[Row]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), arguments).fetchall()


def assert_sound(database: Database, tenant_id: str) -> None:
    """Everything that must hold of a tenant's log, checked with nothing but Python's integers and bytes.

    Versions and sequence numbers have no gap; every row is the row before it, shifted and clamped; the last
    row is the live state; the chain is intact, in Python and in SQL; every event is what was digested.
    """
    state, changes, events = (
        state_of(database, tenant_id),
        changes_of(database, tenant_id),
        events_of(database, tenant_id),
    )
    with database.as_tenants([tenant_id]) as connection:
        configurations = read_configurations(connection)

    assert [change["version"] for change in changes] == list(range(len(changes)))
    previous, weights = START_HASH, [0] * len(changes[0]["after"])
    for change in changes:
        configuration = configurations[change["configuration"]]
        low = configuration.low_nanos.tolist() if change["low"] is None else change["low"]
        high = configuration.high_nanos.tolist() if change["high"] is None else change["high"]
        weights = [
            max(bottom, min(weight + shift, top))
            for weight, shift, bottom, top in zip(weights, change["shift"], low, high, strict=True)
        ]
        assert change["after"] == weights
        row = WeightChange(**{name: change[name] for name in WeightChange.__struct_fields__})
        assert row.hash(previous) == change["in_sql"] == change["hash"]
        previous = change["hash"]
    assert (state.version, state.weights.tolist(), state.hash, state.configuration) == (
        changes[-1]["version"],
        weights,
        previous,
        changes[-1]["configuration"],
    )

    assert [event["seq"] for event in events] == list(range(1, state.feedback_seq + 1))
    assert [(event["seq"], event["digest"]) for event in events] == [
        (change["event_seq"], change["event_digest"]) for change in changes if change["cause"] == "feedback"
    ]
    for event in events:
        assert (
            event_digest({name: value for name, value in event.items() if name != "digest"})
            == event["digest"]
        )


def learned(database: Database, tenant_id: str) -> Row:
    """All that a tenant has learned and remembers: its log and state without names, times and hashes."""
    state = state_of(database, tenant_id)
    return {
        "log": [
            {
                name: change[name]
                for name in ("version", "cause", "shift", "low", "high", "after", "event_seq")
            }
            | {"restored": change["restored_version"], "configuration": change["configuration"]}
            for change in changes_of(database, tenant_id)
        ],
        "version": state.version,
        "weights": state.weights.tolist(),
        "rewards": state.rewards,
        "recent_rewards": state.recent_rewards.tolist(),
        "levels": state.levels,
        "feedback_seq": state.feedback_seq,
    }


def to_tenant(feedback: Feedback, tenant_id: str) -> Feedback:
    """The same words of another tenant."""
    return msgspec.structs.replace(feedback, tenant_id=tenant_id)


@contextmanager
def away(postgres: PostgresServer, database: Database) -> Iterator[None]:
    """A database that nobody can connect to, and whose connections are ended."""
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        name = psycopg.conninfo.conninfo_to_dict(database.url)["dbname"]

        def allow(allowed: bool) -> None:
            admin.execute(
                sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(
                    sql.Identifier(str(name)), sql.Literal(allowed)
                )
            )

        allow(False)
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            yield
        finally:
            allow(True)
