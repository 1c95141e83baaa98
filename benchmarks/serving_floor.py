"""The floor that the service is measured against: the same framework, doing as little as can be.

`GET /hello` answers a constant. `POST /bare` decodes the same feedback and puts it in the same kind of queue;
one thread inserts whatever waits by one multi-row INSERT and COMMIT into a table with its key alone, and
it is answered after the commit. A row is as large as the two that the service writes of a feedback, the event
and the change of weights.

    python -m benchmarks.serving_floor DATABASE_URL PORT
"""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from queue import Empty, SimpleQueue

import msgspec
import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from somabrain_dagster.store.feedback_contract import Feedback

Waiting = tuple[Feedback, "asyncio.Future[int]"]

TABLE = "CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, tenant_id text, body jsonb, rest bytea)"
INSERT = """
    INSERT INTO bare (tenant_id, body, rest) SELECT t, b::jsonb, r
    FROM unnest(%b::text[], %b::text[], %b::bytea[]) AS given (t, b, r) RETURNING id
"""
REST = os.urandom(360)
"""What makes a row of it as large; the report says how large both are."""


class Committer:
    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(TABLE)
        self._queue: SimpleQueue[Waiting] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, feedback: Feedback) -> "asyncio.Future[int]":
        answer = self._loop.create_future()
        self._queue.put((feedback, answer))
        return answer

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < 256:
                try:
                    batch.append(self._queue.get_nowait())
                except Empty:
                    break
            bodies = [msgspec.json.encode(feedback).decode() for feedback, _ in batch]
            rows = self._connection.execute(
                INSERT, ([feedback.tenant_id for feedback, _ in batch], bodies, [REST] * len(batch))
            ).fetchall()
            self._loop.call_soon_threadsafe(self._answer, batch, [row[0] for row in rows])

    def _answer(self, batch: list[Waiting], ids: list[int]) -> None:
        for (_, answer), number in zip(batch, ids, strict=True):
            answer.set_result(number)


def application(url: str) -> Starlette:
    decoder = msgspec.json.Decoder(Feedback)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.committer = Committer(url)
        yield

    async def hello(request: Request) -> Response:
        return JSONResponse({"hello": "world"})

    async def bare(request: Request) -> Response:
        feedback = decoder.decode(await request.body())
        return JSONResponse({"id": await request.app.state.committer.submit(feedback)})

    return Starlette(
        routes=[Route("/hello", hello), Route("/bare", bare, methods=["POST"])], lifespan=lifespan
    )


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[1]),
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
    )
