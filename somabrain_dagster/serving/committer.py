"""Group commit: feedback that waits together lands together, and is answered after its commit."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.memory.landing import land_and_remember
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Outcome
from somabrain_dagster.store.working_memory import WorkingMemory

_log = logging.getLogger(__name__)


IN_FLIGHT = 2
"""Transactions at once: while one is in Postgres, the next is computed."""

WORTH_A_TRANSACTION = 12
"""Requests that wait before one more begins beside another: by itself it costs as much as twenty events."""

GATHER_SHARE = 0.25
"""For which part of the time that a landing takes events are gathered, where several come at once."""

MOST_GATHER_SECONDS = 0.002


class QueueFull(Exception):
    """As many events wait as may wait."""


class _Waiting(NamedTuple):
    events: Sequence[Feedback]
    tenants: frozenset[str]
    answer: "asyncio.Future[list[Outcome]]"


class Committer:
    """Threads that take whatever waits and land it, each in one transaction.

    While transactions are on their way others gather, so the batches grow with the load: alone, an event
    waits for nobody. What is on its way at once is of different tenants: a tenant's events land in the order
    in which they were submitted, and no transaction waits for another's locks.
    """

    def __init__(
        self,
        database: Database,
        configuration: LearningConfiguration,
        working: WorkingMemory,
        *,
        most_waiting: int,
        most_together: int,
        landed: Callable[[list[AdaptationState]], None],
    ) -> None:
        """Start the threads.

        Args:
            database: the brain's, with a connection for each of the transactions `IN_FLIGHT`.
            configuration: the global learning configuration.
            working: working memory, which what is called helpful enters.
            most_waiting: how many events may wait or be on their way.
            most_together: how many land in one transaction.
            landed: is given, on the event loop, each batch's new states once they are committed.
        """
        self._database = database
        self._configuration = configuration
        self._working = working
        self._most_waiting = most_waiting
        self._most_together = most_together
        self._landed = landed
        self._queue: list[_Waiting] = []
        self._waiting = 0
        self._ending = False
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._gather = 0.0
        self._turn = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._run, name=f"committer-{number}", daemon=True)
            for number in range(IN_FLIGHT)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many events wait or are on their way."""
        return self._waiting

    @property
    def room(self) -> int:
        """How many events may still be submitted."""
        return self._most_waiting - self._waiting

    @property
    def alive(self) -> bool:
        """Whether the threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, events: Sequence[Feedback]) -> "asyncio.Future[list[Outcome]]":
        """Put events in the queue; they land together or with others, in this order.

        Returns:
            Their outcomes, after the commit; `DatabaseUnreachable` where the database does not answer, and
            nothing is acknowledged.

        Raises:
            QueueFull: they do not all fit; none is taken.
        """
        if len(events) > self.room:
            raise QueueFull
        answer = self._loop.create_future()
        self._waiting += len(events)
        waiting = _Waiting(events, frozenset([event.tenant_id for event in events]), answer)
        with self._changed:
            self._queue.append(waiting)
            if self._worth_a_transaction():
                self._changed.notify_all()
        return answer

    async def close(self) -> None:
        """Land what waits, then stop."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)  # the last answers are on the loop

    def _run(self) -> None:
        while batch := self._take():
            began = time.perf_counter()
            self._land(batch)
            took = time.perf_counter() - began
            with self._changed:
                self._busy.difference_update(*(waiting.tenants for waiting in batch))
                # Whoever was just answered is about to send again: landing together is worth a moment.
                self._gather = min(GATHER_SHARE * took, MOST_GATHER_SECONDS) if len(batch) > 1 else 0.0
                self._changed.notify_all()

    def _take(self) -> list[_Waiting]:
        """What may land now, once there is something; nothing at the end."""
        with self._turn:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._worth_a_transaction() or self._ending)
                    if not self._queue:
                        return []
                if self._gather:
                    time.sleep(self._gather)
                with self._changed:
                    if batch := self._split_off():
                        return batch
                    self._changed.wait()  # all of it is of tenants that are on their way

    def _worth_a_transaction(self) -> bool:
        """Whether to begin one more."""
        return len(self._queue) >= (WORTH_A_TRANSACTION if self._busy else 1)

    def _split_off(self) -> list[_Waiting]:
        """Take from the queue, in its order, what is of no tenant that is on its way or was passed over."""
        batch: list[_Waiting] = []
        kept: list[_Waiting] = []
        passed_over: set[str] = set()
        size = 0
        for position, waiting in enumerate(self._queue):
            if size >= self._most_together:
                kept += self._queue[position:]
                break
            if self._busy.isdisjoint(waiting.tenants) and passed_over.isdisjoint(waiting.tenants):
                batch.append(waiting)
                size += len(waiting.events)
            else:
                passed_over |= waiting.tenants
                kept.append(waiting)
        self._queue = kept
        self._busy.update(*(waiting.tenants for waiting in batch))
        return batch

    def _land(self, batch: list[_Waiting]) -> None:
        states = _States()
        events = [event for waiting in batch for event in waiting.events]
        try:
            outcomes, _ = land_and_remember(
                self._database, events, self._configuration, states, self._working
            )
        except Exception as error:  # noqa: BLE001 — whoever waits must hear of it; they decide what it means
            self._loop.call_soon_threadsafe(self._fail, batch, error)
        else:
            self._loop.call_soon_threadsafe(self._answer, batch, outcomes, states.new)

    def _answer(self, batch: list[_Waiting], outcomes: list[Outcome], states: list[AdaptationState]) -> None:
        self._landed(states)
        begin = 0
        for waiting in batch:
            end = begin + len(waiting.events)
            if not waiting.answer.done():  # whoever asked may have gone
                waiting.answer.set_result(outcomes[begin:end])
            begin = end
        self._waiting -= begin

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
            self._waiting -= len(waiting.events)


class _States:
    """Takes the states that a landing publishes."""

    def __init__(self) -> None:
        self.new: list[AdaptationState] = []

    def publish(self, states: Sequence[AdaptationState]) -> bool:
        self.new += states
        return True
