"""What is on trial, in memory, kept true by the database's own notifications."""

import asyncio

from somabrain_dagster.store.database import Database
from somabrain_dagster.store.trials import Trials, read_trials


class HeardTrials:
    """The trials that this process knows of: read as one begins or ends, and trusted while that is heard."""

    def __init__(self, database: Database) -> None:
        """Know of nothing yet.

        Args:
            database: the brain's.
        """
        self._database = database
        self._known: Trials | None = None

    def read(self) -> Trials:
        """Read them from Postgres; give them to `take` on the event loop."""
        with self._database.as_operator() as connection:
            return read_trials(connection)

    def take(self, trials: Trials) -> None:
        """Know these, read after listening began."""
        self._known = trials

    def doubt(self) -> None:
        """Nothing is heard any more: what is known may be over."""
        self._known = None

    async def now(self) -> Trials:
        """What is on trial.

        Raises:
            DatabaseUnreachable: nothing is heard, and Postgres does not answer.
        """
        if self._known is not None:
            return self._known
        return await asyncio.to_thread(self.read)
