"""Each tenant's state in memory, kept true by the database's own notifications.

A state is answered from memory only while the listener hears every commit and none of a newer version was
heard of; otherwise from the Redis snapshot if that is new enough, otherwise from Postgres. What a worker
landed itself it knows at once; of the others' it hears a moment after their commit.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from somabrain_dagster.learning.adaptation import effective_rate
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.serving.answers import encode
from somabrain_dagster.store.adaptation import (
    AdaptationState,
    read_configurations,
    read_state,
    read_states,
)
from somabrain_dagster.store.cache import SnapshotCache, snapshot_of
from somabrain_dagster.store.database import Database, DatabaseUnreachable

_log = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.1
REPAIR_SECONDS = 1.0


class _Held:
    """A state, and its answer by arm, once somebody has asked."""

    __slots__ = ("answers", "state")

    def __init__(self, state: AdaptationState) -> None:
        self.state = state
        self.answers: dict[str | None, bytes] = {}


class States:
    """The states that this process holds."""

    def __init__(
        self,
        database: Database,
        snapshots: SnapshotCache,
        configuration: LearningConfiguration,
        most_held: int,
    ) -> None:
        """Hold nothing yet.

        Args:
            database: the brain's.
            snapshots: the Redis snapshots behind the memory.
            configuration: the global learning configuration.
            most_held: how many states are held; of more tenants, the others are read when they are asked for.
        """
        self._database = database
        self._snapshots = snapshots
        self._most_held = most_held
        self._held: dict[str, _Held] = {}
        self._known: dict[str, int] = {}
        self._true = False
        self._configuration = configuration
        self._configurations = {bytes.fromhex(configuration.digest): configuration}
        self._unpublished: dict[str, AdaptationState] = {}
        self._redis_whole = False

    @property
    def true(self) -> bool:
        """Whether every commit is heard of, so that memory can be trusted."""
        return self._true

    @property
    def redis_whole(self) -> bool:
        """Whether Redis has every snapshot, as far as this process knows."""
        return self._redis_whole and not self._unpublished

    def held(self) -> list[AdaptationState]:
        """What is in memory."""
        return [held.state for held in self._held.values()]

    def restore(self) -> tuple[list[AdaptationState], dict[bytes, LearningConfiguration]]:
        """Read every state from Postgres; give it to `take_all` on the event loop."""
        with self._database.as_operator() as connection:
            return read_states(connection), read_configurations(connection)

    def take_all(
        self, states: Iterable[AdaptationState], configurations: dict[bytes, LearningConfiguration]
    ) -> None:
        """Forget what was held and hold these, read after listening began."""
        self._configurations.update(configurations)
        newest = sorted(states, key=lambda state: state.updated_at)[-self._most_held :]
        self._held = {state.tenant_id: _Held(state) for state in newest}
        self._known = {}
        self._true = True

    def know(self, configurations: Mapping[bytes, LearningConfiguration]) -> None:
        """Remember configurations by their digests; what a digest stands for never changes."""
        self._configurations.update(configurations)

    def doubt(self) -> None:
        """Nothing is heard any more: what is held may be old."""
        self._true = False

    def hear(self, versions: Iterable[tuple[str, int]]) -> None:
        """Somebody committed these versions."""
        for tenant_id, version in versions:
            held = self._held.get(tenant_id)
            if held is None or held.state.version < version:
                self._known[tenant_id] = max(version, self._known.get(tenant_id, 0))

    def take(self, states: Iterable[AdaptationState]) -> None:
        """Hold states that were just committed, and publish them to Redis soon."""
        for state in states:
            self._unpublished[state.tenant_id] = state
            self._hold(state)

    def _hold(self, state: AdaptationState) -> None:
        held = self._held.get(state.tenant_id)
        if held is not None and held.state.version > state.version:
            return
        if held is None and len(self._held) >= self._most_held:
            del self._held[next(iter(self._held))]
        self._held[state.tenant_id] = _Held(state)
        if self._known.get(state.tenant_id, -1) <= state.version:
            self._known.pop(state.tenant_id, None)

    def answer_from_memory(self, tenant_id: str, arm: str | None = None) -> bytes | None:
        """The answer if memory has it and can be trusted; see `answer`."""
        held = self._held.get(tenant_id)
        if held is None or not self._true or tenant_id in self._known:
            return None
        if arm not in held.answers:
            if held.state.configuration not in self._configurations:
                return None
            held.answers[arm] = self._encoded(snapshot_of(held.state), "memory", arm)
        return held.answers[arm]

    async def answer(self, tenant_id: str, arm: str | None = None) -> bytes:
        """The answer, from wherever it is true.

        Args:
            tenant_id: whose state.
            arm: that the one who asks sees; None for none.

        Raises:
            UnknownTenant: there is no such tenant.
            DatabaseUnreachable: neither memory nor Redis can be trusted, and Postgres does not answer.
        """
        return self.answer_from_memory(tenant_id, arm) or await self._answer_from_elsewhere(tenant_id, arm)

    async def _answer_from_elsewhere(self, tenant_id: str, arm: str | None) -> bytes:
        if self._true and self.redis_whole:
            snapshot = await asyncio.to_thread(self._snapshot, tenant_id)
            if snapshot is not None:
                return self._encoded(snapshot, "redis", arm)
        state = await self._read(tenant_id)
        return self._encoded(snapshot_of(state), "postgres", arm)

    async def state(self, tenant_id: str) -> AdaptationState:
        """The state itself, from memory if that can be trusted, else from Postgres.

        Raises:
            UnknownTenant: there is no such tenant.
            DatabaseUnreachable: memory cannot be trusted, and Postgres does not answer.
        """
        held = self._held.get(tenant_id)
        if (
            held is not None
            and self._true
            and tenant_id not in self._known
            and held.state.configuration in self._configurations
        ):
            return held.state
        return await self._read(tenant_id)

    async def _read(self, tenant_id: str) -> AdaptationState:
        def read() -> tuple[AdaptationState, dict[bytes, LearningConfiguration]]:
            with self._database.as_tenants([tenant_id]) as connection:
                state = read_state(connection, tenant_id)
                known = state.configuration in self._configurations
                return state, {} if known else read_configurations(connection)

        state, configurations = await asyncio.to_thread(read)
        self._configurations.update(configurations)
        if self._true:
            self._hold(state)
        return state

    def _snapshot(self, tenant_id: str) -> dict[str, Any] | None:
        """The Redis snapshot, if it is new enough and can be understood."""
        try:
            snapshot = self._snapshots.read(tenant_id)
        except redis.RedisError:
            return None
        if (
            snapshot is None
            or snapshot["version"] < self._known.get(tenant_id, 0)
            or bytes.fromhex(snapshot["configuration"]) not in self._configurations
        ):
            return None
        return snapshot

    def held_levels(self, state: AdaptationState) -> Mapping[str, float]:
        """The neuromodulators that an operator holds, by the configuration of the state's last change."""
        return self._configurations.get(state.configuration, self._configuration).neuromodulators

    def configuration(self, digest: bytes | None) -> LearningConfiguration:
        """A configuration by its digest; the global one for one that is not known."""
        return self._configurations.get(digest or b"", self._configuration)

    def learning_rate(self, configuration: bytes | None, levels: Mapping[str, float]) -> float:
        """The learning rate of a feedback that meets these levels, under a configuration by its digest."""
        return float(effective_rate(self.configuration(configuration), levels["dopamine"]))

    def _encoded(self, snapshot: dict[str, Any], source: str, arm: str | None) -> bytes:
        digest = bytes.fromhex(snapshot["configuration"])
        configuration = self._configurations[digest]
        neuromodulators = dict(snapshot["neuromodulators"])
        delta = neuromodulators.pop("delta")
        return encode(
            {
                "tenant_id": snapshot["tenant_id"],
                "version": snapshot["version"],
                "weights": snapshot["weights"],
                "nanos": snapshot["nanos"],
                "neuromodulators": neuromodulators,
                "held": configuration.neuromodulators,
                "learning_rate": self.learning_rate(digest, neuromodulators),
                "prediction_error": delta,
                "feedback_seq": snapshot["feedback_seq"],
                "hash": snapshot["hash"],
                "arm": arm,
                "updated_at": snapshot["updated_at"],
                "source": source,
            }
        )

    async def publish_to_redis(self) -> None:
        """Publish what is new, a batch at a time, for as long as the service runs."""
        while True:
            await asyncio.sleep(PUBLISH_SECONDS)
            await self.publish_now()

    async def publish_now(self) -> None:
        """Publish what is new; what Redis does not take waits for the repair."""
        if not self._unpublished or not self._redis_whole:
            return
        batch, self._unpublished = self._unpublished, {}
        if not await asyncio.to_thread(self._snapshots.publish, list(batch.values())):
            self._redis_whole = False
            self._unpublished = batch | self._unpublished

    async def repair_redis(self) -> None:
        """Look, for as long as the service runs, whether Redis lost its snapshots, and write them again."""
        while True:
            try:
                if not (self._redis_whole and await asyncio.to_thread(self._snapshots.is_whole)):
                    self._redis_whole = False
                    written = await asyncio.to_thread(self._rebuild)
                    self._redis_whole = True
                    _log.info("%d adaptation snapshots are in Redis", written)
            except (redis.RedisError, DatabaseUnreachable) as error:
                self._redis_whole = False
                _log.warning("adaptation snapshots cannot be rebuilt yet: %s", error)
            await asyncio.sleep(REPAIR_SECONDS)

    def _rebuild(self) -> int:
        with self._database.as_operator() as connection:
            states = read_states(connection)
        return self._snapshots.make_whole(states)
