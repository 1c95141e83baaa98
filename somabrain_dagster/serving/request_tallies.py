"""How this process's requests went, kept in memory and added to the database every few seconds."""

import asyncio
import logging
import time
from datetime import UTC, datetime

from somabrain_dagster.store.database import Database, DatabaseUnreachable
from somabrain_dagster.store.request_stats import Tally, add_requests

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0

COUNTED = frozenset({"/memory/recall", "/memory/context", "/context/feedback"})
"""The paths whose requests depend on weights, or change them."""

MOST_KEPT = 100_000
"""Tallies, one a tenant and minute, that wait for a database that is away: some 70 MB."""


class RequestTallies:
    """Requests by tenant and minute, since the last time that they were written down."""

    def __init__(self, database: Database, most_kept: int = MOST_KEPT) -> None:
        """Count nothing yet.

        Args:
            database: the brain's.
            most_kept: tallies that wait while it is away; then the oldest are forgotten, and that is logged.
        """
        self._database = database
        self._most_kept = most_kept
        self._counted: dict[tuple[str, int], Tally] = {}
        self._left_out = 0
        self._flushing = asyncio.Lock()

    def count(self, tenant_id: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or failed by no fault of the client.

        What the client did wrong is left out: how fast it is refused says nothing of the service.
        """
        if 400 <= status < 500:
            return
        key = (tenant_id, int(time.time()) // 60)
        tally = self._counted.get(key)
        if tally is None:
            tally = self._counted[key] = Tally()
            self._keep_to_the_limit()
        tally.count(seconds, failed=status >= 500)

    def _keep_to_the_limit(self) -> None:
        while len(self._counted) > self._most_kept:
            del self._counted[next(iter(self._counted))]  # the oldest
            self._left_out += 1

    async def keep_flushing(self) -> None:
        """Write down what was counted, for as long as the service runs."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write down what was counted since the last time; what the database does not take is kept.

        A commit whose answer is lost may be counted twice, but nothing is lost.
        """
        async with self._flushing:
            if self._left_out:
                _log.warning("requests of %d minutes of tenants are forgotten", self._left_out)
                self._left_out = 0
            counted, self._counted = self._counted, {}
            if not counted:
                return
            try:
                await asyncio.to_thread(self._write, counted)
            except DatabaseUnreachable as error:
                _log.warning("counts of requests wait for Postgres: %s", error)
                newer, self._counted = self._counted, counted
                for key, tally in newer.items():
                    self._counted.setdefault(key, Tally()).add(tally)
                self._keep_to_the_limit()

    def _write(self, counted: dict[tuple[str, int], Tally]) -> None:
        with self._database.as_operator() as connection:
            add_requests(
                connection,
                {
                    (tenant_id, datetime.fromtimestamp(minute * 60, UTC)): tally
                    for (tenant_id, minute), tally in counted.items()
                },
            )
