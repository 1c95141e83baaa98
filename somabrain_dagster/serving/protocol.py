"""HTTP/1.1 as uvicorn speaks it, with the head of an answer and its body in one write.

Uvicorn writes them one after the other, and uvloop sends each at once: a system call more for every answer,
and a client that wakes for the head to find that it must wait for the rest.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """A connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Write by a transport that joins."""
        super().connection_made(cast(asyncio.Transport, Joining(transport, self.loop)))


class Joining:
    """A transport that keeps what is written until more is, or the loop comes round; then it is sent."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep, or send together with what is kept."""
        if self._kept:
            data, self._kept = self._kept + data, b""
            self._transport.write(data)
        else:
            self._kept = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what is kept, unless the client has gone meanwhile."""
        data, self._kept = self._kept, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Send what is kept, and close."""
        self.flush()
        self._transport.close()
