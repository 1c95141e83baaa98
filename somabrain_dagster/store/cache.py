"""The Redis snapshot of each tenant's adaptation state: a cache of Postgres that can always be rebuilt."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import redis

from somabrain_dagster.learning.weights import by_name
from somabrain_dagster.store.adaptation import AdaptationState

_log = logging.getLogger(__name__)

# Two processes that land for one tenant publish in either order: the newer version must stay.
_WRITE_IF_NEWER = """
local held = redis.call('HGET', KEYS[1], 'version')
if held and tonumber(held) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'state', ARGV[2])
return 1
"""


_WHOLE = "somabrain:adaptation:whole"
"""Is there as long as Redis has lost nothing since all snapshots were written."""


def snapshot_key(tenant_id: str) -> str:
    """Where a tenant's snapshot is; the braces keep a tenant's keys on one node of a Redis cluster."""
    return f"somabrain:{{{tenant_id}}}:adaptation"


def snapshot_of(state: AdaptationState) -> dict[str, Any]:
    """A state as it is published: weights in units by name, and exactly in nano-units."""
    return {
        "tenant_id": state.tenant_id,
        "version": state.version,
        "weights": by_name(state.weights),
        "nanos": state.weights.tolist(),
        "neuromodulators": msgspec.structs.asdict(state.levels),
        "reward_mean": state.rewards.mean,
        "reward_variance": state.rewards.variance,
        "feedback_seq": state.feedback_seq,
        "configuration": state.configuration.hex(),
        "hash": state.hash.hex(),
        "updated_at": state.updated_at,
    }


class Publisher(Protocol):
    """Takes states once they are committed."""

    def publish(self, states: Sequence[AdaptationState]) -> bool:
        """Publish states and return whether they were taken; it raises nothing."""


class SnapshotCache:
    """Snapshots in a Redis-protocol server."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=False)
        self._write_if_newer = self._redis.register_script(_WRITE_IF_NEWER)

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()

    def publish(self, states: Sequence[AdaptationState]) -> bool:
        """Publish states, each only if it is newer than what is there.

        A cache that cannot be reached is no reason to refuse what is already committed: it is logged, and
        `rebuild` makes up for it.

        Returns:
            Whether the cache took them.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for state in states:
                    self._write_if_newer(
                        keys=[snapshot_key(state.tenant_id)],
                        args=[state.version, msgspec.json.encode(snapshot_of(state))],
                        client=pipeline,
                    )
                pipeline.execute()
        except redis.RedisError as error:
            _log.warning("adaptation snapshots not published, rebuild the cache later: %s", error)
            return False
        return True

    def rebuild(self, states: Sequence[AdaptationState]) -> int:
        """Write states as Postgres has them, whatever is there, and return how many.

        Raises:
            redis.RedisError: the cache cannot be reached.
        """
        written = 0
        with self._redis.pipeline(transaction=False) as pipeline:
            for state in states:
                fields: dict[Any, Any] = {
                    "version": state.version,
                    "state": msgspec.json.encode(snapshot_of(state)),
                }
                pipeline.hset(snapshot_key(state.tenant_id), mapping=fields)
                written += 1
            pipeline.execute()
        return written

    def is_whole(self) -> bool:
        """Whether Redis still has what `make_whole` wrote; an emptied one has not.

        Raises:
            redis.RedisError: the cache cannot be reached.
        """
        return bool(self._redis.exists(_WHOLE))

    def make_whole(self, states: Sequence[AdaptationState]) -> int:
        """Write what is missing or older, while others publish, and return how many states were given.

        Raises:
            redis.RedisError: the cache cannot be reached.
        """
        if not self.publish(states):
            raise redis.ConnectionError("the cache did not take the snapshots")
        self._redis.set(_WHOLE, len(states))
        return len(states)

    def read(self, tenant_id: str) -> dict[str, Any] | None:
        """A tenant's snapshot, or None where there is none.

        Raises:
            redis.RedisError: the cache cannot be reached.
        """
        state = self._redis.hget(snapshot_key(tenant_id), "state")
        return None if state is None else msgspec.json.decode(state)

    def versions(self, tenants: Sequence[str]) -> list[int | None]:
        """The version of each tenant's snapshot, in order; None where there is none.

        Raises:
            redis.RedisError: the cache cannot be reached.
        """
        with self._redis.pipeline(transaction=False) as pipeline:
            for tenant_id in tenants:
                pipeline.hget(snapshot_key(tenant_id), "version")
            return [None if held is None else int(held) for held in pipeline.execute()]
