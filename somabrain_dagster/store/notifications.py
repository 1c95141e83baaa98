"""Word of what others committed, by Postgres' LISTEN and NOTIFY."""

import logging
import threading
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql

_log = logging.getLogger(__name__)

STATES = "somabrain_states"
"""The channel on which every new adaptation state is announced, as `tenant:version,tenant:version,…`."""

_LONGEST_PAUSE = 2.0
_WAKE_SECONDS = 1.0


def versions(payload: str) -> list[tuple[str, int]]:
    """The tenants and versions of a notification of `STATES`."""
    pairs = (entry.rsplit(":", 1) for entry in payload.split(","))
    return [(tenant_id, int(version)) for tenant_id, version in pairs]


class Listener:
    """A thread that listens, and listens again whenever the connection is lost."""

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        connected: Callable[[], None],
        heard: Callable[[str, str], None],
        lost: Callable[[], None],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            url: of the database.
            channels: what to listen to.
            connected: called, in the thread, when listening has begun: what is read from now on is not older
                than what will be heard.
            heard: called, in the thread, with the channel and the payload of each notification.
            lost: called, in the thread, when the connection is lost.
        """
        self._url = url
        self._channels = channels
        self._connected = connected
        self._heard = heard
        self._lost = lost
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop and wait for the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        pause = 0.05
        while not self._ending.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    for channel in self._channels:
                        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    self._connected()
                    pause = 0.05
                    while not self._ending.is_set():
                        for notification in connection.notifies(timeout=_WAKE_SECONDS):
                            self._heard(notification.channel, notification.payload)
            except psycopg.OperationalError as error:
                self._lost()
                _log.warning("not listening to Postgres, trying again: %s", error)
                self._ending.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
