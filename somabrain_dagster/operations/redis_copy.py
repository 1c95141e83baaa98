"""A copy of a Redis-protocol server's data, as the server itself writes it: RDB.

It is asked for as a replica asks for it, so that it works the same beside the server and over the network;
the server forks and goes on serving.
"""

from collections.abc import Callable, Iterator

import redis

CHUNK = 1 << 16
SILENCE_SECONDS = 600.0
MARK_BYTES = 40


class CannotCopyRedis(RuntimeError):
    """The server gives no copy of its data; the message says what to do."""


def redis_version(url: str) -> str:
    """The version that the server reports, Valkey's own where it is one.

    Raises:
        CannotCopyRedis: the server does not answer.
    """
    try:
        with redis.Redis.from_url(url) as client:
            told = client.info("server")
    except redis.RedisError as error:
        raise _refused(error) from error
    name = "valkey" if "valkey_version" in told else "redis"
    return f"{name} {told[f'{name}_version']}"


def copied(url: str) -> Iterator[bytes]:
    """The data of a server at one instant, in RDB format, as it comes.

    Raises:
        CannotCopyRedis: the server refuses, or the connection ends early.
    """
    with redis.Redis.from_url(url, socket_timeout=SILENCE_SECONDS) as client:
        connection = client.connection_pool.make_connection()
        try:
            connection.connect()
            connection.send_command("REPLCONF", "rdb-only", "1")
            connection.read_response()
            connection.send_command("SYNC")
            # From here on it is no longer the protocol of clients: the bytes are read as they are.
            yield from _payload(connection._sock.recv)
        except (redis.RedisError, OSError) as error:
            raise _refused(error) from error
        finally:
            connection.disconnect()


def _refused(error: Exception) -> CannotCopyRedis:
    return CannotCopyRedis(
        f"Redis gives no copy of its data ({error}): allow its user the commands SYNC and REPLCONF, or "
        "set SOMABRAIN_BACKUP_REDIS=0: then a restore rebuilds the states from Postgres, and working memory "
        "is not kept"
    )


def _payload(receive: Callable[[int], bytes]) -> Iterator[bytes]:
    """The copy, out of `$<bytes>` and the bytes, or out of `$EOF:<mark>` and the bytes up to the mark."""
    head = b""
    while not head.endswith(b"\n") or not head.strip():
        head += _some(receive(1))
    told = head.strip()
    if not told.startswith(b"$"):
        raise redis.ResponseError(told.decode(errors="replace"))
    if not told.startswith(b"$EOF:"):
        left = int(told[1:])
        while left:
            chunk = _some(receive(min(CHUNK, left)))
            left -= len(chunk)
            yield chunk
        return
    mark, held = told[5:], b""
    while not held.endswith(mark):
        held += _some(receive(CHUNK))
        yield held[:-MARK_BYTES]
        held = held[-MARK_BYTES:]


def _some(received: bytes) -> bytes:
    if not received:
        raise redis.ConnectionError("the connection ended before the copy did")
    return received
