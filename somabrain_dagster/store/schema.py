"""Bring a database to the schema that this version needs; forward only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from somabrain_dagster.store.database import Connection, DatabaseNotPrepared, DatabaseUnreachable

_MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaTooNew(RuntimeError):
    """A newer version of the project has migrated the database."""


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


def _configuration() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(_MIGRATIONS))
    return configuration


def newest_revision() -> str:
    """The revision that this version of the project needs."""
    head = ScriptDirectory.from_config(_configuration()).get_current_head()
    assert head is not None
    return head


def is_known(revision: str) -> bool:
    """Whether this version of the project can bring a database at that revision to its own."""
    scripts = ScriptDirectory.from_config(_configuration())
    return revision in {each.revision for each in scripts.walk_revisions()}


def current_revision(url: str) -> str | None:
    """The revision that the database is at; None for an empty one."""
    with _connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def revision_in(connection: Connection) -> str | None:
    """The revision of the database that an owner's transaction is in; None for an empty one."""
    exists = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if exists != (True,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def migrate(url: str, revision: str = "head") -> str | None:
    """Migrate the database as its owner; safe to call at every start and from several processes at once.

    Args:
        url: of the owner of the database.
        revision: the revision to go forward to.

    Returns:
        The revision that the database was at before.

    Raises:
        DatabaseNotPrepared: an extension or a role is missing that a superuser must make.
        DatabaseUnreachable: the server cannot be reached.
        SchemaTooNew: the database is at a revision that this version of the project does not know.
    """
    configuration = _configuration()
    with _connected(url) as connection:
        # Two processes that start together must not both create the tables.
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('somabrain_migrate'))"))
        connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        if before is not None and before not in _known_revisions():
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


def _known_revisions() -> set[str]:
    """The revisions of this version of the project."""
    scripts = ScriptDirectory.from_config(_configuration())
    return {script.revision for script in scripts.walk_revisions()}
