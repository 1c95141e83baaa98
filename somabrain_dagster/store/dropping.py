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
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
