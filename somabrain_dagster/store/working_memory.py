"""Working memory in Redis: the few memories that a session has in mind, the latest first.

A session has two keys, and a tenant one more; the braces keep them on one node of a Redis cluster:

    somabrain:{<tenant>}:working:<session>    sorted set: memory ids by the order in which they came
    somabrain:{<tenant>}:credit:<session>     hash: the credit of each
    somabrain:{<tenant>}:working              sorted set: the tenant's sessions by when they expire

Nothing here is the truth about anything: what is lost is only out of mind, and returns when it helps again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 1.0
"""Nobody waits longer for a cache."""

_SESSIONS_AT_ONCE = 1000

# KEYS: order, credits, sessions. ARGV: capacity, milliseconds, session, then id and credit of each.
# The clock is the server's, so that the keys and the index of sessions expire together.
_REMEMBER = """
if #ARGV < 4 then return {0, 0, 0, redis.call('ZCARD', KEYS[1])} end
local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local place = newest[2] and tonumber(newest[2]) or 0
local added, refreshed = 0, 0
for i = 4, #ARGV, 2 do
    place = place + 1
    if redis.call('ZADD', KEYS[1], place, ARGV[i]) == 1 then added = added + 1
    else refreshed = refreshed + 1 end
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
local evicted = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[1])
if evicted > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, evicted - 1)) do redis.call('HDEL', KEYS[2], id) end
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, evicted - 1)
else evicted = 0 end
local now = redis.call('TIME')
local expires = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
redis.call('PEXPIREAT', KEYS[1], expires)
redis.call('PEXPIREAT', KEYS[2], expires)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', expires - ARGV[2])
redis.call('ZADD', KEYS[3], expires, ARGV[3])
local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[3], last[2])
return {added, refreshed, evicted, redis.call('ZCARD', KEYS[1])}
"""


class WorkingMemoryUnavailable(RuntimeError):
    """The server of working memory cannot be reached or refuses; the message says what it said."""


@dataclass(frozen=True)
class Noted:
    """A memory that a session has in mind.

    Attributes:
        memory_id: names it within its tenant.
        credit: how much it helped when it last did, in (0, 1].
    """

    memory_id: int
    credit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.credit <= 1:
            raise ValueError(f"what enters working memory has helped: a credit in (0, 1], not {self.credit}")


@dataclass(frozen=True)
class Addition:
    """Memories that enter a session's working memory together, the latest last."""

    tenant_id: str
    session_id: str
    memories: Sequence[Noted]


@dataclass(frozen=True)
class Growth:
    """What an addition did.

    Attributes:
        added: memories that were not there: by how much it grew before any had to leave.
        refreshed: memories that were there and are now the latest.
        evicted: the oldest, which left because there are more than may be kept.
        size: memories that are there now.
    """

    added: int
    refreshed: int
    evicted: int
    size: int


class WorkingMemory:
    """The working memories of all sessions, in a Redis-protocol server. Safe to share between threads."""

    def __init__(self, url: str, capacity: int, seconds: float) -> None:
        """Connect to nothing yet.

        Args:
            url: of the server.
            capacity: how many memories a session keeps, ≥ 1; of more, the oldest leave.
            seconds: how long a working memory that nothing enters is kept, at least a millisecond.

        Raises:
            ValueError: `capacity` or `seconds` is too small.
        """
        if capacity < 1 or seconds < 0.001:
            raise ValueError(
                "a working memory holds one memory and lasts a millisecond at least, "
                f"not {capacity} and {seconds} s"
            )
        self._capacity = capacity
        self._milliseconds = round(seconds * 1000)
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            # Once more is enough for a connection that went stale; it adds no memory twice.
            retry=Retry(NoBackoff(), 1),
        )
        self._remember = self._redis.register_script(_REMEMBER)

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def remember(self, tenant_id: str, session_id: str, memories: Sequence[Noted]) -> Growth:
        """Let memories enter a session's working memory, the latest last; a known one becomes the latest.

        Raises:
            WorkingMemoryUnavailable: the server does not take them.
        """
        (growth,) = self._remember_all([Addition(tenant_id, session_id, memories)])
        return growth

    def note(self, additions: Sequence[Addition]) -> list[Growth] | None:
        """Let memories enter working memories after what made them do so is committed; it raises nothing.

        A server that cannot be reached is no reason to refuse what is already committed: it is logged, and
        the memories enter when they help again.

        Returns:
            What each addition did, in order; None where the server may not have taken them all.
        """
        try:
            return self._remember_all(additions)
        except WorkingMemoryUnavailable as error:
            _log.warning("%d additions to working memory are lost: %s", len(additions), error)
            return None

    def _remember_all(self, additions: Sequence[Addition]) -> list[Growth]:
        """One round trip; each addition is atomic by itself."""
        if not additions:
            return []
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for addition in additions:
                    self._remember(
                        keys=_keys(addition.tenant_id, addition.session_id),
                        args=[
                            self._capacity,
                            self._milliseconds,
                            addition.session_id,
                            *(
                                part
                                for noted in addition.memories
                                for part in (noted.memory_id, noted.credit)
                            ),
                        ],
                        client=pipeline,
                    )
                return [Growth(*counts) for counts in pipeline.execute()]
        except redis.RedisError as error:
            raise _unavailable(error) from error

    def recent(self, tenant_id: str, session_id: str) -> list[Noted]:
        """What a session has in mind, the latest first; empty where nothing entered or all of it expired.

        Raises:
            WorkingMemoryUnavailable: the server does not answer.
        """
        order, credits, _ = _keys(tenant_id, session_id)
        try:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.zrevrange(order, 0, -1)
                pipeline.hgetall(credits)
                ids, credit = pipeline.execute()
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return [Noted(int(memory_id), float(credit[memory_id])) for memory_id in ids]

    def forget(self, tenant_id: str, session_id: str) -> bool:
        """Empty a session's working memory; whether there was anything in it.

        Raises:
            WorkingMemoryUnavailable: the server does not answer.
        """
        order, credits, sessions = _keys(tenant_id, session_id)
        try:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(order, credits)
                pipeline.zrem(sessions, session_id)
                deleted, _ = pipeline.execute()
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return bool(deleted)

    def sizes(self, tenant_id: str) -> dict[str, int]:
        """How many memories each of a tenant's sessions has in mind; sessions with none are left out.

        Raises:
            WorkingMemoryUnavailable: the server does not answer.
        """
        sizes: dict[str, int] = {}
        try:
            sessions = [str(session_id) for session_id in self._redis.zrange(_sessions_key(tenant_id), 0, -1)]
            for start in range(0, len(sessions), _SESSIONS_AT_ONCE):
                some = sessions[start : start + _SESSIONS_AT_ONCE]
                with self._redis.pipeline(transaction=False) as pipeline:
                    for session_id in some:
                        pipeline.zcard(_keys(tenant_id, session_id)[0])
                    sizes.update(zip(some, pipeline.execute(), strict=True))
        except redis.RedisError as error:
            raise _unavailable(error) from error
        return {session_id: size for session_id, size in sizes.items() if size}


def _sessions_key(tenant_id: str) -> str:
    return f"somabrain:{{{tenant_id}}}:working"


def _keys(tenant_id: str, session_id: str) -> tuple[str, str, str]:
    """The keys of a session's order and credits, and of its tenant's sessions."""
    sessions = _sessions_key(tenant_id)
    return f"{sessions}:{session_id}", f"somabrain:{{{tenant_id}}}:credit:{session_id}", sessions


def _unavailable(error: redis.RedisError) -> WorkingMemoryUnavailable:
    return WorkingMemoryUnavailable(
        f"working memory does not answer ({type(error).__name__}: {error}): check the Redis server"
    )
