"""Ending a database."""

from urllib.parse import urlsplit

import psycopg
from psycopg import sql


def drop_database(url: str, via: str) -> None:
    """Drop a database, and end whoever is still connected to it; nothing happens where there is none.

    Args:
        url: of the database, for its owner.
        via: of another database on the same server, for the same role.
    """
    name = urlsplit(url).path.removeprefix("/")
    with psycopg.connect(via, autocommit=True) as connection:
        try:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
        except psycopg.errors.InsufficientPrivilege:
            # An autovacuum is at work there. Only a superuser may end it; a drop without force does.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = %s AND usename = current_user",
                (name,),
            )
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
