"""Give a home other servers' data in place of its own, which stay aside."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from somabrain_dagster.embedded.errors import explained
from somabrain_dagster.embedded.postgres import PostgresState, stop_postgres
from somabrain_dagster.embedded.state import State, data_directory, locked, make_home, read_state, write_state
from somabrain_dagster.embedded.valkey import stop_valkey

_KINDS: dict[str, type[State]] = {"postgres": PostgresState, "valkey": State}


def replace_servers(home: Path, staged: Path) -> Path:
    """Move the servers of one home into another; all of them must have been stopped.

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
        for server, kind in _KINDS.items():
            new = read_state(staged, server, kind)
            if new is None:
                continue
            with locked(home, server):
                if (old := read_state(home, server, kind)) is not None:
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
    for server, kind, stop in (
        ("postgres", PostgresState, stop_postgres),
        ("valkey", State, stop_valkey),
    ):
        if (home / f"{server}.json").exists():
            stop(home)
            state = read_state(home, server, kind)
            if state is not None:
                shutil.rmtree(data_directory(home, state), ignore_errors=True)
