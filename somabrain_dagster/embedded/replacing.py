"""Give a home other servers' data in place of its own, which stay aside."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from somabrain_dagster.embedded.errors import explained
from somabrain_dagster.embedded.postgres import PostgresState, end_postgres
from somabrain_dagster.embedded.state import State, data_directory, locked, make_home, read_state, write_state
from somabrain_dagster.embedded.valkey import end_valkey

_SERVERS: dict[str, tuple[type[State], Callable[[Path], bool]]] = {
    # A cache that is behind its Postgres comes to it by itself; one that is ahead would stay so.
    "valkey": (State, end_valkey),
    "postgres": (PostgresState, end_postgres),
}
"""In the order in which they are replaced: the kind of the state file, and how one is stopped."""


def replace_servers(home: Path, staged: Path) -> Path:
    """Move the servers of one home into another, which must not run; those that are there are stopped.

    A server's state file names its data, and is replaced in one step: at every moment the home has either the
    old server or the new one, whole. The old ones make up a home of their own.

    Args:
        home: whose servers are replaced.
        staged: the home, in the same file system, whose servers take their place.

    Returns:
        The home that the old servers are in now; `SOMABRAIN_HOME` can name it to look at them.
    """
    with explained("replace the servers", home):
        home = home.expanduser().resolve()
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        aside = make_home(home / f"replaced-{stamp}")
        for server, (kind, stop) in _SERVERS.items():
            new = read_state(staged, server, kind)
            if new is None:
                continue
            with locked(home, server):
                if (old := read_state(home, server, kind)) is not None:
                    # Under the lock: whoever works with the home may have started it again.
                    stop(data_directory(home, old))
                    write_state(
                        aside, server, msgspec.structs.replace(old, data=str(data_directory(home, old)))
                    )
                place = new.data
                if not Path(place).is_absolute():
                    place = f"{server}-{stamp}"
                    (staged / new.data).rename(home / place)
                write_state(home, server, msgspec.structs.replace(new, data=place))
                if old is not None and not Path(old.data).is_absolute() and (home / old.data).exists():
                    (home / old.data).rename(aside / server)
                    write_state(aside, server, msgspec.structs.replace(old, data=server))
        return aside


def discard_servers(home: Path) -> None:
    """Stop the servers of a scratch home, if it has any, and remove their data, wherever these are."""
    home = home.expanduser().resolve()
    for server, (kind, stop) in _SERVERS.items():
        if (state := read_state(home, server, kind)) is not None:
            data = data_directory(home, state)
            stop(data)
            shutil.rmtree(data, ignore_errors=True)
