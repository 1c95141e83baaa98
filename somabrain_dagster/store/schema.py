"""Bring a database to the schema that this version needs; forward only."""

import re
from functools import cache
from pathlib import Path

import psycopg

from somabrain_dagster.store.database import Connection

_VERSIONS = Path(__file__).parent / "migrations" / "versions"


class SchemaTooNew(RuntimeError):
    """A newer version of the project has migrated the database."""


@cache
def revisions() -> tuple[str, ...]:
    """The revisions that this version of the project knows, from the first to the newest."""
    return tuple(sorted(path.stem[:4] for path in _VERSIONS.glob("*.py") if re.match(r"\d{4}_", path.stem)))


def newest_revision() -> str:
    """The revision that this version of the project needs."""
    return revisions()[-1]


def current_revision(url: str) -> str | None:
    """The revision that the database of a URL's owner is at; None for an empty one.

    Raises:
        DatabaseUnreachable: the server cannot be reached.
    """
    with psycopg.connect(url) as connection:
        return revision_in(connection)


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
    if current_revision(url) == newest_revision():
        return newest_revision()
    # Alembic takes half a second to import, and is needed once a version.
    from somabrain_dagster.store.migrations.upgrading import upgrade

    return upgrade(url, revision)
