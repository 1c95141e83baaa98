"""The servers that a process works with: those that the settings name, embedded ones for the rest."""

from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import redis

from somabrain_dagster.embedded import (
    ensure_database,
    postgres_status,
    start_postgres,
    start_valkey,
    stop_postgres,
    stop_valkey,
    valkey_status,
)
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import schema
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database, ensure_sibling_database, server_version

POSTGRES = "postgres"
REDIS = "redis"
BRAIN = "somabrain"
DAGSTER = "dagster"
"""The databases of the embedded server. Dagster's is apart: a long transaction of its own must not hold back
the brain's, and either can be restored without the other."""


@dataclass(frozen=True)
class Servers:
    """Where the brain, Dagster's storage and the cache are, all reachable and migrated."""

    database_url: str = field(repr=False)
    dagster_database_url: str = field(repr=False)
    redis_url: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables by which another process works with the same servers."""
        return {
            "SOMABRAIN_DATABASE_URL": self.database_url,
            "SOMABRAIN_DAGSTER_DATABASE_URL": self.dagster_database_url,
            "SOMABRAIN_REDIS_URL": self.redis_url,
        }


@dataclass(frozen=True)
class ServerStatus:
    """One server, for a person.

    Attributes:
        name: postgres or redis.
        kind: embedded, or by URL.
        where: host and port, or why it cannot be told.
        running: whether it answers.
    """

    name: str
    kind: str
    where: str
    running: bool


def start(settings: Settings) -> Servers:
    """Start or attach to what the settings name no URL for, and bring the brain's database to its schema.

    Raises:
        DatabaseNotPrepared: a superuser must prepare the server by URL; the message says how.
        EmbeddedServerError: an embedded server cannot be started; the message says what to do.
        psycopg.OperationalError: a server by URL cannot be reached.
    """
    if settings.database_url is None:
        postgres = start_postgres(settings.home, settings.postgres_binaries)
        ensure_database(postgres, BRAIN)
        ensure_database(postgres, DAGSTER)
        database_url, dagster_url = postgres.url(BRAIN), postgres.url(DAGSTER)
    else:
        database_url = settings.database_url.get_secret_value()
        if settings.dagster_database_url is None:
            dagster_url = ensure_sibling_database(database_url, suffix="_dagster")
    if settings.dagster_database_url is not None:
        dagster_url = settings.dagster_database_url.get_secret_value()
    if settings.redis_url is None:
        redis_url = start_valkey(settings.home, settings.valkey_binary).url
    else:
        redis_url = settings.redis_url.get_secret_value()
    schema.migrate(database_url)
    return Servers(database_url, dagster_url, redis_url)


def stop(settings: Settings, leaving: Collection[str] = ()) -> list[str]:
    """Stop the embedded servers of this home, except those to leave, and name those that ran.

    They are stopped even where the settings name their URLs, as `somabrain env` does; others are left alone.
    """
    stopped = []
    if POSTGRES not in leaving and stop_postgres(settings.home):
        stopped.append(POSTGRES)
    if REDIS not in leaving and stop_valkey(settings.home):
        stopped.append(REDIS)
    return stopped


def status(settings: Settings) -> list[ServerStatus]:
    """What runs; starts nothing."""
    return [_postgres_status(settings), _redis_status(settings)]


def _postgres_status(settings: Settings) -> ServerStatus:
    if settings.database_url is None:
        postgres = postgres_status(settings.home)
        if postgres is None:
            return ServerStatus(POSTGRES, "embedded", f"stopped, in {settings.home}", running=False)
        return ServerStatus(POSTGRES, "embedded", f"{postgres.host}:{postgres.port}", running=True)
    url = settings.database_url.get_secret_value()
    version = server_version(url)
    where = _without_password(url) + ("" if version is None else f", PostgreSQL {version}")
    return ServerStatus(POSTGRES, "by SOMABRAIN_DATABASE_URL", where, running=version is not None)


def _redis_status(settings: Settings) -> ServerStatus:
    if settings.redis_url is None:
        valkey = valkey_status(settings.home)
        if valkey is None:
            return ServerStatus(REDIS, "embedded", f"stopped, in {settings.home}", running=False)
        return ServerStatus(REDIS, "embedded", f"{valkey.host}:{valkey.port}", running=True)
    url = settings.redis_url.get_secret_value()
    return ServerStatus(REDIS, "by SOMABRAIN_REDIS_URL", _without_password(url), running=_answers(url))


def _answers(redis_url: str) -> bool:
    try:
        with redis.Redis.from_url(redis_url, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


def open_store(servers: Servers) -> tuple[Database, SnapshotCache]:
    """The store behind these servers; close both when done."""
    return Database(servers.database_url), SnapshotCache(servers.redis_url)
