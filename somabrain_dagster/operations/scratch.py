"""A brain of its own for a measurement, beside the real one and gone when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from somabrain_dagster.embedded import ensure_database, start_postgres
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import schema
from somabrain_dagster.store.database import Database, ensure_sibling_database
from somabrain_dagster.store.dropping import drop_database


@contextmanager
def scratch_database(settings: Settings, purpose: str) -> Iterator[Database]:
    """An empty database at the newest schema, on the brain's server, dropped at the end.

    Args:
        settings: say which server; the embedded one is started unless it runs.
        purpose: becomes part of the database's name.

    Raises:
        DatabaseNotPrepared: the role of the server by URL may not create databases, or the extension
            pgvector in them.
    """
    name = f"{purpose}_{uuid4().hex[:8]}"
    if settings.database_url is None:
        server = start_postgres(settings.home, settings.postgres_binaries)
        ensure_database(server, name)
        url, via = server.url(name), server.url("postgres")
    else:
        via = settings.database_url.get_secret_value()
        url = ensure_sibling_database(via, f"_{name}")
    try:
        schema.migrate(url)
        with Database(url) as database:
            yield database
    finally:
        drop_database(url, via)
