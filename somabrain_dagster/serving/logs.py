"""Logs as lines of JSON: when, what, and of which request; never a secret or a memory."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable

import msgspec

_encode = msgspec.json.Encoder().encode

FLUSH_SECONDS = 0.2


class JSONFormatter(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "at": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def configure() -> None:
    """Let every logger of the process write lines of JSON to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True


def _write(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


class RequestLog:
    """A line for each request, written a few at a time: a line each would cost as much as the request."""

    def __init__(self, write: Callable[[bytes], None] = _write) -> None:
        self._write = write
        self._lines: list[bytes] = []

    def add(
        self,
        request_id: str,
        method: str,
        route: str,
        status: int,
        seconds: float,
        tenant_id: str | None,
        key_id: str | None,
    ) -> None:
        """Note a request; the route is the path's template, so that nothing of its content is written."""
        self._lines.append(
            _encode(
                {
                    "at": time.time(),
                    "level": "info" if status < 500 else "error",
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "tenant_id": tenant_id,
                    "key_id": key_id,
                }
            )
        )

    def flush(self) -> None:
        """Write what was noted."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(b"\n".join(lines) + b"\n")

    async def keep_flushing(self) -> None:
        """Write what is noted, for as long as the service runs."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()
