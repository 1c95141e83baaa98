"""What the operations share: the store, what is remembered of it, the committer, metrics and the log."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import redis

from somabrain_dagster.memory.embedding import Embedder, HttpEmbedder, MiniLM
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.operations.tokens import MiniLMTokens
from somabrain_dagster.serving.access import Gatekeeper
from somabrain_dagster.serving.committer import Committer
from somabrain_dagster.serving.logs import RequestLog
from somabrain_dagster.serving.metrics import Metrics
from somabrain_dagster.serving.request_tallies import COUNTED, RequestTallies
from somabrain_dagster.serving.states import States
from somabrain_dagster.serving.trials import HeardTrials
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import keys, notifications, trials
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.gauges import read_named
from somabrain_dagster.store.notifications import Listener
from somabrain_dagster.store.working_memory import WorkingMemory

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

MEMORY_THREADS = 4
KEY_USE_SECONDS = 30.0
_SESSION = "-c lock_timeout=5s -c statement_timeout=30s -c idle_in_transaction_session_timeout=30s"


class Service:
    """One process of the service.

    Attributes:
        draining: it is about to end: it still answers, but nobody should send it more.
    """

    def __init__(self, settings: Settings, servers: Servers) -> None:
        """Connect to nothing yet.

        Args:
            settings: of the process.
            servers: where the brain and the cache are, migrated.
        """
        knobs = settings.service
        self.settings = settings
        self.servers = servers
        self.configuration = settings.learning_configuration
        self.database = Database(servers.database_url, max_connections=8, wait_seconds=3.0, options=_SESSION)
        self.landing_database = Database(
            servers.database_url, max_connections=1, wait_seconds=3.0, options=_SESSION
        )
        self.dagster_database = Database(
            servers.dagster_database_url,
            max_connections=1,
            wait_seconds=1.0,
            options=f"{_SESSION} -c default_transaction_read_only=on",
        )
        self.snapshots = SnapshotCache(servers.redis_url)
        self.states = States(self.database, self.snapshots, self.configuration, knobs.states_in_memory)
        self.trials = HeardTrials(self.database)
        self.working = WorkingMemory(
            servers.redis_url, settings.working_memory_capacity, settings.working_memory_seconds
        )
        self.gatekeeper = Gatekeeper(self.database, knobs.requests_per_second)
        self.metrics = Metrics(self, knobs.tenants_in_metrics)
        self.tallies = RequestTallies(self.database)
        self.request_log = RequestLog()
        self.draining = False
        self.committer: Committer
        self._listener = Listener(
            servers.database_url,
            [notifications.STATES, keys.NOTIFICATIONS, trials.CHANNEL],
            self._connected,
            self._heard,
            self._lost,
        )
        self._workers = ThreadPoolExecutor(MEMORY_THREADS, "memory")
        self._background: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @cached_property
    def embedder(self) -> Embedder:
        """Makes the vectors of memories and questions; the first who asks waits for the model."""
        settings = self.settings
        if settings.embedding_url is None:
            return MiniLM(threads=1)
        assert settings.embedding_model is not None
        assert settings.embedding_dimension is not None
        key = settings.embedding_api_key
        return HttpEmbedder(
            settings.embedding_url,
            settings.embedding_model,
            settings.embedding_dimension,
            api_key=None if key is None else key.get_secret_value(),
        )

    @cached_property
    def memories(self) -> Memories:
        """The memories of all tenants."""
        return Memories(self.database, self.embedder, self.settings, snapshots=self.snapshots)

    @cached_property
    def tokens(self) -> MiniLMTokens:
        """Counts the tokens of contexts."""
        return MiniLMTokens()

    def in_background(self, work: Coroutine[None, None, None]) -> None:
        """Do work that nobody waits for; the end of the service cuts it off."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def at_work(self, work: Callable[[], Result]) -> Result:
        """Do work of memory in a thread of its own kind, so that it cannot crowd out feedback."""
        return await self._loop.run_in_executor(self._workers, work)

    async def start(self) -> None:
        """Restore the states and begin to serve."""
        self._loop = asyncio.get_running_loop()
        knobs = self.settings.service
        self.committer = Committer(
            self.landing_database,
            self.configuration,
            self.working,
            most_waiting=knobs.most_waiting,
            most_together=knobs.most_together,
            landed=self.states.take,
        )
        self._listener.start()
        self._keep(self.states.publish_to_redis())
        self._keep(self.states.repair_redis())
        self._keep(self.gatekeeper.note_use(KEY_USE_SECONDS))
        self._keep(self.tallies.keep_flushing())
        self._keep(self.metrics.keep_watching())
        self._keep(self.request_log.keep_flushing())

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """Land what waits, publish what is new, and close every connection."""
        await self.committer.close()
        await self.states.publish_now()
        await self.gatekeeper.note_use_now()
        await self.tallies.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._listener.close)
        self.request_log.flush()
        self._workers.shutdown()
        self.working.close()
        self.snapshots.close()
        self.dagster_database.close()
        self.landing_database.close()
        self.database.close()

    def note(
        self,
        request_id: str,
        method: str,
        route: str,
        status: int,
        seconds: float,
        tenant_id: str | None,
        key_id: str | None,
        *,
        streamed: bool = False,
    ) -> None:
        """Count and log a request; a stream is as long as its sender makes it, and its time not counted."""
        self.metrics.request(method, route, status)
        if tenant_id is not None and route in COUNTED and not streamed:
            self.tallies.count(tenant_id, status, seconds)
        self.request_log.add(request_id, method, route, status, seconds, tenant_id, key_id)

    def changed(self, states: list[AdaptationState]) -> None:
        """Know of states that were just committed."""
        self.states.take(states)

    def redis_answers(self) -> bool:
        """Whether Redis can be reached; asks it."""
        try:
            self.snapshots.is_whole()
        except redis.RedisError:
            return False
        return True

    # The listener's thread calls these; everything that is remembered belongs to the event loop.

    def _connected(self) -> None:
        began = time.perf_counter()
        states, configurations = self.states.restore()
        with self.database.as_operator() as connection:
            self.metrics.know_tenants(read_named(connection, self.metrics.most_tenants))
        self._know_trials()
        self._loop.call_soon_threadsafe(self.states.take_all, states, configurations)
        self._loop.call_soon_threadsafe(self.gatekeeper.forget_all)
        _log.info("restored the states of %d tenants in %.3f s", len(states), time.perf_counter() - began)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == notifications.STATES:
            self._loop.call_soon_threadsafe(self.states.hear, notifications.versions(payload))
        elif channel == trials.CHANNEL:
            self._know_trials()
        else:
            self._loop.call_soon_threadsafe(self.gatekeeper.forget, payload)

    def _know_trials(self) -> None:
        self._loop.call_soon_threadsafe(self.trials.take, self.trials.read())

    def _lost(self) -> None:
        self._loop.call_soon_threadsafe(self.states.doubt)
        self._loop.call_soon_threadsafe(self.trials.doubt)
