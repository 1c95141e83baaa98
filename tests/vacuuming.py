"""How tests meet an autovacuum: a real one, told to take its time."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from somabrain_dagster.embedded import PostgresServer
from tests.serving.running import until

_SLOW = sql.SQL("""
    ALTER TABLE {} SET (
        autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
    )
""")


@contextmanager
def autovacuum_at_work(postgres: PostgresServer, database: str, table: str) -> Iterator[None]:
    """While an autovacuum is at work on a table, a page in a tenth of a second at most."""
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:

        def nap(setting: sql.SQL) -> None:
            admin.execute(sql.SQL("ALTER SYSTEM ") + setting)
            admin.execute("SELECT pg_reload_conf()")

        def at_work() -> bool:
            query = "SELECT FROM pg_stat_progress_vacuum WHERE datname = %s"
            return admin.execute(query, (database,)).rowcount > 0

        nap(sql.SQL("SET autovacuum_naptime = '1s'"))
        try:
            with psycopg.connect(postgres.admin_url(database), autocommit=True) as there:
                there.execute(_SLOW.format(sql.Identifier(table)))
                there.execute(sql.SQL("UPDATE {0} SET tenant_id = tenant_id").format(sql.Identifier(table)))
            until(at_work, seconds=60)
            yield
        finally:
            nap(sql.SQL("RESET autovacuum_naptime"))
