"""Run the migrations that a database lacks, by Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from somabrain_dagster.store.database import DatabaseNotPrepared, DatabaseUnreachable
from somabrain_dagster.store.schema import SchemaTooNew, newest_revision, revisions


@contextmanager
def _connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection as Alembic wants it; that it cannot be had is the driver's own error."""
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        raise DatabaseUnreachable(str(error.orig)) from error
    with connection:
        yield connection


def upgrade(url: str, revision: str) -> str | None:
    """Run what is missing up to a revision; see `store.schema.migrate`."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    with _connected(url) as connection:
        # Two processes that start together must not both create the tables.
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('somabrain_migrate'))"))
        connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        if before is not None and before not in revisions():
            raise SchemaTooNew(
                f"The database is at revision {before}, and this version knows none after "
                f"{newest_revision()}: run the version that migrated it, since migrations go forward only."
            )
        configuration.attributes["connection"] = connection
        try:
            command.upgrade(configuration, revision)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
            raise DatabaseNotPrepared(error, "The schema cannot be made") from error
        connection.commit()
    return before
