"""Load on an HTTP server, from a process of its own. Prints one line of JSON.

    python -m benchmarks.load 127.0.0.1 8400 requests.bin --clients 8 --seconds 5

Each client sends when it has its answer; with `--rate` the requests are due at even times, and the latency of
one counts from when it was due. `requests.bin` holds whole HTTP/1.1 requests, each preceded by its length in
four bytes; the clients take them in turn, from the beginning again when they are through, or with `--once`
end then. `--answers FILE` gets a line for each answer as it comes, by which somebody who was interrupted goes
on: the request's place, the time, the latency in seconds, the status and the body, with tabs between.
"""

import argparse
import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import uvloop


def request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Write the file that the process reads."""
    path.write_bytes(b"".join(struct.pack(">I", len(request)) + request for request in requests))


def read_requests(path: Path) -> list[bytes]:
    """Read what `write_requests` wrote."""
    data = path.read_bytes()
    requests = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from(">I", data, start)
        requests.append(data[start + 4 : start + 4 + length])
        start += 4 + length
    return requests


class _Client(asyncio.Protocol):
    def __init__(
        self, requests: Iterator[tuple[int, bytes]], tally: "Tally", done: "asyncio.Future[None]"
    ) -> None:
        self._requests = requests
        self._tally = tally
        self._done = done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._wait_and_send()

    def _wait_and_send(self) -> None:
        now = time.perf_counter()
        self._sent = next(self._tally.due, now)
        if self._sent > now:
            asyncio.get_running_loop().call_later(self._sent - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        try:
            self._place, asked = next(self._requests)
        except StopIteration:
            self._transport.close()
        else:
            self._transport.write(asked)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        place = head.find(b"content-length:")
        if place < 0:
            raise ValueError(f"an answer without its length: {head!r}")
        length = int(head[place + 15 :].split(b"\r", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        status = int(head[9:12])
        self._tally.add(self._place, now, now - self._sent, status, self._buffer[end + 4 : end + 4 + length])
        self._buffer = self._buffer[end + 4 + length :]
        if now >= self._tally.until:
            self._transport.close()
        else:
            self._wait_and_send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Tally:
    """What came back."""

    def __init__(
        self, begins: float, until: float, due: Iterator[float], answers: TextIO | None = None
    ) -> None:
        self.begins = begins
        self.until = until
        self.due = due
        self.answers = answers
        self.answered_at: list[float] = []
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.failure: str | None = None

    def add(self, place: int, now: float, latency: float, status: int, body: bytes) -> None:
        """Count an answer; those of the warm-up only by their status."""
        self.statuses[status] += 1
        if self.answers is not None:
            said = body.decode(errors="replace").replace("\n", " ")
            self.answers.write(f"{place}\t{time.time():.6f}\t{latency:.6f}\t{status}\t{said}\n")
        if status >= 400 and self.failure is None:
            self.failure = body[:300].decode(errors="replace")
        if now >= self.begins:
            self.latencies.append(latency)
            self.answered_at.append(time.time())


async def _load(
    host: str,
    port: int,
    requests: Sequence[bytes],
    clients: int,
    warm: float,
    seconds: float,
    rate: float | None,
    answers: TextIO | None,
    once: bool,
) -> Tally:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    due = iter(()) if rate is None else (began + number / rate for number in count())
    tally = Tally(began + warm, began + warm + seconds, due, answers)
    numbered = enumerate(requests)
    turns = numbered if once else cycle(numbered)

    async def client() -> None:
        # A server that closes a connection, as one does that replaces its workers, is connected to again; but
        # where each request is sent once, what was lost with it must be known.
        while time.perf_counter() < tally.until:
            done: asyncio.Future[None] = loop.create_future()
            try:
                await loop.create_connection(partial(_Client, turns, tally, done), host, port)
            except OSError:
                if once:
                    raise
                await asyncio.sleep(0.01)
            else:
                await done
                if once:
                    return

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(clients))), warm + seconds + 30)
    return tally


def load(
    host: str,
    port: int,
    requests: Sequence[bytes],
    clients: int,
    warm: float,
    seconds: float,
    rate: float | None = None,
    trace: Path | None = None,
    answers: TextIO | None = None,
    *,
    once: bool = False,
) -> dict[str, Any]:
    """Load a server and say what came back.

    Args:
        host: where it listens.
        port: where it listens.
        requests: taken in turn.
        clients: how many connections.
        warm: seconds that are not counted.
        seconds: that are.
        rate: requests a second in all; None for as many as are answered.
        trace: a file for the time of each answer and its latency, in seconds, a numpy array (N, 2).
        answers: gets a line for each answer.
        once: end when all requests are answered, if that is earlier.
    """
    began = time.process_time()
    tally = uvloop.run(_load(host, port, requests, clients, warm, seconds, rate, answers, once))
    worked = time.process_time() - began
    if trace is not None:
        np.save(trace, np.column_stack((tally.answered_at, tally.latencies)))
    latencies = np.array(tally.latencies)
    p50, p95, p99 = (
        (np.quantile(latencies, [0.5, 0.95, 0.99]) * 1000).tolist() if len(latencies) else (0, 0, 0)
    )
    return {
        "clients": clients,
        "requests": len(latencies),
        "rps": round(len(latencies) / seconds, 1),
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "statuses": {str(status): times for status, times in sorted(tally.statuses.items())},
        "client_cpu_seconds": round(worked, 3),
        "failure": tally.failure,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    with given.answers.open("w", buffering=1) if given.answers else nullcontext() as answers:
        said = load(
            given.host,
            given.port,
            read_requests(given.requests),
            given.clients,
            given.warm,
            given.seconds,
            given.rate,
            given.trace,
            answers,
            once=given.once,
        )
    print(json.dumps(said))


if __name__ == "__main__":
    main()
