"""Connections to the brain's Postgres, each transaction in the role of who asks."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import IsolationLevel, sql
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[tuple[Any, ...]]

DatabaseUnreachable = psycopg.OperationalError
"""The server cannot be reached, ended the connection, or let it wait for too long."""


class DatabaseNotPrepared(RuntimeError):
    """What only a superuser can make in a server by URL is missing; the message says what, and what to do."""

    def __init__(self, error: psycopg.Error, what: str) -> None:
        super().__init__(
            f"{what}: {error.diag.message_primary}. A superuser of the server prepares it once: "
            "deploy/postgres/prepare.sql has the statements, docs/DEPLOYMENT_PROD.md says what each is for."
        )


TENANT_ROLE = "somabrain_tenant"
OPERATOR_ROLE = "somabrain_operator"


class _Pooled(psycopg.Connection[tuple[Any, ...]]):
    """A connection that knows when it was last of use."""

    used_at = 0.0


_TRUSTED_SECONDS = 1.0

_RECONNECT_SECONDS = 0.5
"""How long the pool tries to replace a connection by itself, hence twice. Its pauses double: it would find a
server that was away for a minute up to a minute late, and let nobody else try meanwhile."""


def _check(connection: _Pooled) -> None:
    """Ask a connection whether it is alive, unless it was a moment ago: asking takes a round trip."""
    if time.monotonic() - connection.used_at > _TRUSTED_SECONDS:
        ConnectionPool.check_connection(connection)


class Database:
    """A pool of connections; every transaction is opened for tenants, for an operator or for the owner.

    Row-level security decides what the first two see: the tenants that were named, or all. Use as a context
    manager, or call `close`.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 8,
        wait_seconds: float = 30.0,
        options: str = "",
    ) -> None:
        """Open nothing yet.

        Args:
            url: of the owner of the database.
            max_connections: how many transactions can be open at once.
            wait_seconds: how long to wait for a connection before giving up.
            options: of each session, as in `-c lock_timeout=5s`.
        """
        self.url = url
        self._pool: ConnectionPool[_Pooled] = ConnectionPool(
            url,
            connection_class=_Pooled,
            min_size=0,
            max_size=max_connections,
            open=True,
            timeout=wait_seconds,
            # A plan prepared for one tenant misleads the planner for another: under row security a small
            # tenant silently got fewer rows than exist. Plans are made for the values they run with.
            kwargs={"prepare_threshold": None, "options": f"-c plan_cache_mode=force_custom_plan {options}"},
            check=_check,
            reconnect_timeout=_RECONNECT_SECONDS,
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[_Pooled]:
        # The pool would note its return as well, but by another thread, which costs a landing a switch to it.
        with self._pool.connection() as connection:
            try:
                yield connection
            finally:
                connection.used_at = time.monotonic()

    @contextmanager
    def as_tenants(self, tenants: Sequence[str], *, keep_plans: bool = False) -> Iterator[Connection]:
        """One transaction that sees and writes rows of these tenants and of no other.

        Args:
            tenants: their names.
            keep_plans: prepare the statements and keep their plans, those of the checks of foreign keys too,
                and send them in a pipeline. Only for statements that find every row by its whole key: no
                tenant's plan misleads another's.

        Raises:
            ValueError: a name has a comma, which would make two tenants of it.
        """
        if any("," in tenant for tenant in tenants):
            raise ValueError(f"no tenant's name has a comma: {tenants}")
        with self._transaction() as connection:
            connection.prepare_threshold = 0 if keep_plans else None
            try:
                with connection.pipeline() if keep_plans else nullcontext():
                    connection.execute(
                        "SELECT set_config('role', %s, true), set_config('app.tenants', %s, true), "
                        "set_config('plan_cache_mode', %s, true)",
                        (TENANT_ROLE, ",".join(tenants), "auto" if keep_plans else "force_custom_plan"),
                    )
                    yield connection
                    if keep_plans:
                        # With the end of the pipeline, in one round trip; by itself it would be one more.
                        connection.execute("COMMIT")
            finally:
                connection.prepare_threshold = None

    @contextmanager
    def as_operator(self) -> Iterator[Connection]:
        """One transaction that sees all tenants."""
        with self._transaction() as connection:
            connection.execute("SELECT set_config('role', %s, true)", (OPERATOR_ROLE,))
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One read-only transaction over all tenants in which every query sees the same instant."""
        with self._transaction() as connection:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            try:
                with connection.transaction():
                    connection.execute("SELECT set_config('role', %s, true)", (OPERATOR_ROLE,))
                    yield connection
            finally:
                connection.isolation_level = None
                connection.read_only = None

    @contextmanager
    def as_owner(self) -> Iterator[Connection]:
        """One transaction as the owner of the tables, for maintenance."""
        with self._transaction() as connection:
            yield connection


@contextmanager
def held(connection: Connection, name: str) -> Iterator[bool]:
    """Hold the server's lock of this name for the block, if nobody else does; whether it is held.

    Args:
        connection: outside of transactions; the server lets go of the lock when it ends, however that is.
        name: of the lock.
    """
    (taken,) = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (name,)).fetchone() or (False,)
    yield taken
    if taken:
        # The server notices a moment later that a connection has ended; who runs next must not find it taken.
        with suppress(DatabaseUnreachable):  # a connection that was lost meanwhile holds nothing
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", (name,))


def server_version(url: str) -> str | None:
    """The version of the server, or None if it cannot be reached."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.info.parameter_status("server_version")
    except psycopg.OperationalError:
        return None


def ensure_sibling_database(url: str, suffix: str) -> str:
    """Create, unless it is there, a database named like the URL's with a suffix, and return its URL.

    Raises:
        DatabaseNotPrepared: the role may not create databases.
    """
    parts = urlsplit(url)
    name = parts.path.removeprefix("/") + suffix
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).rowcount
        if not known:
            try:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            except psycopg.errors.InsufficientPrivilege as error:
                raise DatabaseNotPrepared(error, f"There is no database {name!r}") from error
    return urlunsplit(parts._replace(path=f"/{name}"))
