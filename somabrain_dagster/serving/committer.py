"""Group commit: feedback that waits together lands together, and is answered after its commit."""

import asyncio
import logging
import threading
from collections import deque
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


GATHER_SECONDS = 0.002
"""How long at most the next ones are waited for, where several came together."""


FEW = 32
"""Events of a request that goes before requests with more: a person does not wait for bulk."""

RESERVED = 1 / 8
"""Of the room, for requests of few."""


class QueueFull(Exception):
    """As many events wait as may wait."""


class _Waiting(NamedTuple):
    events: Sequence[Feedback]
    answer: "asyncio.Future[list[Outcome]]"


class Committer:
    """One thread that takes whatever waits and lands it in one transaction.

    While a transaction is on its way others gather, so the batches grow with the load: alone, an event waits
    for nobody. A second transaction beside the first would make both smaller, and a transaction by itself
    costs as much as thirty events. Requests of few events go first; with them lands one of many at least.
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
        """Start the thread.

        Args:
            database: the brain's.
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
        self._few: deque[_Waiting] = deque()
        self._many: deque[_Waiting] = deque()
        self._waiting = 0
        self._ending = False
        self._changed = threading.Condition()
        self._expected = 1
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many events wait or are on their way."""
        return self._waiting

    @property
    def room(self) -> int:
        """How many events may still be submitted, by requests of few."""
        return self._most_waiting - self._waiting

    @property
    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def has_room(self, count: int) -> bool:
        """Whether a request of so many events may be submitted."""
        reserved = 0 if count <= FEW else int(self._most_waiting * RESERVED)
        return count <= self.room - reserved

    def submit(self, events: Sequence[Feedback]) -> "asyncio.Future[list[Outcome]]":
        """Put events in the queue; they land together or with others, in this order.

        Returns:
            Their outcomes, after the commit; `DatabaseUnreachable` where the database does not answer, and
            nothing is acknowledged.

        Raises:
            QueueFull: they do not all fit; none is taken.
        """
        if not self.has_room(len(events)):
            raise QueueFull
        answer = self._loop.create_future()
        self._waiting += len(events)
        with self._changed:
            (self._few if len(events) <= FEW else self._many).append(_Waiting(events, answer))
            if self._requests in (1, self._expected):
                self._changed.notify()
        return answer

    async def close(self) -> None:
        """Land what waits, then stop."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # the last answers are on the loop

    def _run(self) -> None:
        while batch := self._take():
            self._land(batch)
            # Whoever was just answered is about to send again: landing together is worth a moment.
            self._expected = len(batch)

    def _take(self) -> list[_Waiting]:
        """What may land together, once there is something; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._ending)
            self._changed.wait_for(lambda: self._requests >= self._expected or self._ending, GATHER_SECONDS)
            return self._split_off()

    @property
    def _requests(self) -> int:
        return len(self._few) + len(self._many)

    def _split_off(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._few and size < self._most_together:
            batch.append(self._few.popleft())
            size += len(batch[-1].events)
        bulk = len(batch)
        while self._many and (len(batch) == bulk or size < self._most_together):
            batch.append(self._many.popleft())
            size += len(batch[-1].events)
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
