"""A client of the service for agents: typed answers, retries that are safe, errors that say what to do.

with SomaBrain("http://127.0.0.1:8400", key) as brain:
    recalled = brain.recall("who bakes bread?", session_id="s-1")
    brain.feedback(
        session_id="s-1",
        utility=1.0,
        recall_id=recalled["recall_id"],
        helpful=[{"memory": recalled["hits"][0]["memory_id"]}],
    )
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
import msgspec

from somabrain_dagster.serving.contracts import (
    AssignmentAnswer,
    FeedbackResults,
    HistoryAnswer,
    LandedFeedback,
    NeuromodulatorsAnswer,
    PromotedAnswer,
    StateAnswer,
    TokensAnswer,
)
from somabrain_dagster.serving.problems import ProblemDetails

Answer = TypeVar("Answer")

_RETRIED = {429, 503}


class Refused(Exception):
    """The service refuses; `problem` says what and why."""

    def __init__(self, problem: ProblemDetails) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem


class SomaBrain:
    """A connection to the service with one key; a context manager. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        tenant_id: str | None = None,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: of the service.
            key: `sb_<id>_<secret>`.
            tenant_id: whose memory is meant; only an operator's key needs it.
            timeout_seconds: of one attempt.
            attempts: how often a request is sent while the service is away, full or without Postgres.
        """
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=timeout_seconds
        )
        self._tenant = {} if tenant_id is None else {"tenant_id": tenant_id}
        self._attempts = attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def feedback(self, *, idempotency_key: str | None = None, **said: Any) -> LandedFeedback:
        """Land feedback; it is committed when this returns, and lands once however often it is sent.

        Args:
            idempotency_key: makes a retry of the caller's own safe; else each call is an event of its own.
            said: the fields of a feedback: session_id, utility, reward, recall_id, helpful, ….

        Raises:
            Refused: it cannot be landed.
            httpx.TransportError: the service does not answer. Send it again with the same key.
        """
        headers = {"idempotency-key": idempotency_key or uuid4().hex}
        return self._ask(
            LandedFeedback, "POST", "/context/feedback", json=self._tenant | said, headers=headers
        )

    def feedback_all(
        self, feedbacks: Sequence[Mapping[str, Any]], idempotency_key: str | None = None
    ) -> FeedbackResults:
        """Land up to a thousand feedbacks in their order; each has a result of its own."""
        headers = {"idempotency-key": idempotency_key or uuid4().hex}
        said = [self._tenant | dict(feedback) for feedback in feedbacks]
        return self._ask(FeedbackResults, "POST", "/context/feedback", json=said, headers=headers)

    def state(self, session_id: str | None = None) -> StateAnswer:
        """The tenant's weights and neuromodulators, now, and the arm that a session sees."""
        params = self._tenant | ({} if session_id is None else {"session_id": session_id})
        return self._ask(StateAnswer, "GET", "/context/adaptation/state", params=params)

    def history(self, below: int | None = None, limit: int = 100) -> HistoryAnswer:
        """What changed the tenant's weights, the newest first."""
        params = self._tenant | {"limit": limit} | ({} if below is None else {"below": below})
        return self._ask(HistoryAnswer, "GET", "/context/adaptation/history", params=params)

    def roll_back(self, version: int) -> StateAnswer:
        """Give the tenant the weights of a former version again. Sent once: each is a change of its own."""
        path = "/context/adaptation/rollback"
        return self._ask(
            StateAnswer, "POST", path, params=self._tenant, json={"version": version}, attempts=1
        )

    def reset(self) -> StateAnswer:
        """Give the tenant its configured start again. Sent once: each is a change of its own."""
        return self._ask(StateAnswer, "POST", "/context/adaptation/reset", params=self._tenant, attempts=1)

    def neuromodulators(self) -> NeuromodulatorsAnswer:
        """The tenant's levels, and which of them are held."""
        return self._ask(NeuromodulatorsAnswer, "GET", "/context/neuromodulators", params=self._tenant)

    def promoted(self) -> PromotedAnswer:
        """The weights that are promoted to all tenants."""
        return self._ask(PromotedAnswer, "GET", "/config/weights")

    def assignment(self, experiment_id: str, unit: str) -> AssignmentAnswer:
        """The arm of a unit, tenant/session."""
        path = f"/experiments/{experiment_id}/assignment"
        return self._ask(AssignmentAnswer, "GET", path, params={"unit": unit})

    def tokens(self, session_id: str, tokens: int, tokenizer: str) -> TokensAnswer:
        """Record tokens that a session used. Sent once: each is a use of its own."""
        used = {"session_id": session_id, "tokens": tokens, "tokenizer": tokenizer}
        return self._ask(TokensAnswer, "POST", "/usage/tokens", json=self._tenant | used, attempts=1)

    def remember(self, text: str, **more: Any) -> dict[str, Any]:
        """Keep a memory; the same content is kept once."""
        body = self._tenant | {"text": text} | more
        return self._ask(dict[str, Any], "POST", "/memory/remember", json=body)

    def link(self, source_id: int, target_id: int, **more: Any) -> dict[str, Any]:
        """Link two memories: recalling the source brings the target to mind."""
        body = self._tenant | {"source_id": source_id, "target_id": target_id} | more
        return self._ask(dict[str, Any], "POST", "/memory/link", json=body)

    def recall(self, text: str, **more: Any) -> dict[str, Any]:
        """What a question brings to mind, and why; `recall_id` is what feedback speaks of."""
        body = self._tenant | {"text": text} | more
        return self._ask(dict[str, Any], "POST", "/memory/recall", json=body)

    def context(self, text: str, **more: Any) -> dict[str, Any]:
        """What is worth its room of what a question brings to mind, as one text."""
        body = self._tenant | {"text": text} | more
        return self._ask(dict[str, Any], "POST", "/memory/context", json=body)

    def memory(self, memory_id: int) -> dict[str, Any]:
        """One memory, with the links that lead from it."""
        return self._ask(dict[str, Any], "GET", f"/memory/{memory_id}", params=self._tenant)

    def erase(self, memory_id: int) -> None:
        """Erase a memory and its links."""
        self._send("DELETE", f"/memory/{memory_id}", params=self._tenant, attempts=1)

    def export(self) -> Iterator[dict[str, Any]]:
        """All memories of the tenant, one at a time."""
        with self._http.stream("GET", "/memory/export", params=self._tenant, timeout=None) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise _refused(answer)
            for line in answer.iter_lines():
                yield msgspec.json.decode(line)

    def _ask(self, kind: type[Answer], method: str, path: str, **options: Any) -> Answer:
        return msgspec.json.decode(self._send(method, path, **options).content, type=kind)

    def _send(self, method: str, path: str, *, attempts: int | None = None, **options: Any) -> httpx.Response:
        """Send, and send again after a pause that grows, where that is safe and may help."""
        left = self._attempts if attempts is None else attempts
        pause = 0.1
        while True:
            left -= 1
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError:
                if left <= 0:
                    raise
            else:
                if answer.status_code < 400:
                    return answer
                if answer.status_code not in _RETRIED or left <= 0:
                    raise _refused(answer)
                pause = max(pause, float(answer.headers.get("retry-after", 0)))
            time.sleep(pause * random.uniform(0.5, 1.0))  # so that clients do not come back together
            pause *= 2


def _refused(answer: httpx.Response) -> Refused:
    try:
        return Refused(msgspec.json.decode(answer.content, type=ProblemDetails))
    except msgspec.MsgspecError:
        detail = answer.text[:200]
        return Refused(
            ProblemDetails(type="about:blank", title="unexpected", status=answer.status_code, detail=detail)
        )
