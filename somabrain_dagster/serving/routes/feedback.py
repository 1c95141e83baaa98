"""Feedback: one, a list, or a stream of lines, answered after the commit; and what was said before."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from somabrain_dagster.learning.weights import NAMES, NANO
from somabrain_dagster.serving.answers import NDJSON, Answer, json_answer
from somabrain_dagster.serving.committer import QueueFull
from somabrain_dagster.serving.contracts import (
    FeedbackHistoryAnswer,
    FeedbackList,
    FeedbackRequest,
    FeedbackResult,
    FeedbackResults,
    HistoryQuery,
    LandedFeedback,
    RefusedLine,
    SaidAnswer,
    StreamSummary,
    TenantAfter,
)
from somabrain_dagster.serving.operations import IDEMPOTENCY_KEY, Call, Operation, decode
from somabrain_dagster.serving.problems import Problem, ProblemDetails, invalid, too_many, unavailable
from somabrain_dagster.store import history
from somabrain_dagster.store.adaptation import read_state
from somabrain_dagster.store.database import DatabaseUnreachable
from somabrain_dagster.store.feedback_contract import InvalidFeedback, check
from somabrain_dagster.store.landing import Landed, Outcome, Refused

LINES_TOGETHER = 256
"""Lines of a stream that are submitted at once."""

LONGEST_LINE = 64 * 1024
MOST_REFUSALS = 1000

_one = msgspec.json.Decoder(FeedbackRequest)
_list = msgspec.json.Decoder(FeedbackList)

_STATUS = {
    "unknown_tenant": HTTPStatus.NOT_FOUND,
    "unknown_recall": HTTPStatus.NOT_FOUND,
    "pruned_recall": HTTPStatus.GONE,
    "outdated_recall": HTTPStatus.CONFLICT,
    "invalid_configuration": HTTPStatus.CONFLICT,
}
"""Of a refusal; 422 for any other."""


async def land(call: Call) -> Answer:
    """Land one feedback, a list or a stream."""
    began = time.perf_counter()
    try:
        media_type = call.media_type(b"application/json", NDJSON)
        key = idempotency_key(call)
        if media_type == NDJSON:
            return await _land_stream(call, key)
        body = await call.body()
        if body[:1] == b"{" or not body.lstrip().startswith(b"["):
            answer = await _land_one(call, decode(body, _one), key)
        else:
            answer = await _land_list(call, decode(body, _list), key)
    except Problem as problem:
        call.service.metrics.feedback(call.tenant_id or call.who.tenant_id, problem.code)
        raise
    assert call.tenant_id is not None
    call.service.metrics.feedback_took(call.tenant_id, time.perf_counter() - began)
    return answer


async def _land_one(call: Call, feedback: FeedbackRequest, key: str | None) -> Answer:
    named = feedback.tenant_id or None
    checked(feedback, call.about(named), key)
    (outcome,) = await submitted(call, [feedback])
    if isinstance(outcome, Refused):
        raise problem_of(outcome)
    _count(call, [outcome])
    return json_answer(landed(outcome))


async def _land_list(call: Call, feedbacks: list[FeedbackRequest], key: str | None) -> Answer:
    tenants = {feedback.tenant_id or None for feedback in feedbacks}
    owners = {named: call.about(named) for named in tenants}
    for position, feedback in enumerate(feedbacks):
        own_key = None if key is None else f"{key}/{position}"
        try:
            checked(feedback, owners[feedback.tenant_id or None], own_key)
        except Problem as problem:
            where = f"{problem.detail} - at `$[{position}]`"
            raise Problem(problem.status, problem.code, where) from problem
    outcomes = await submitted(call, feedbacks)
    _count(call, outcomes)
    results = FeedbackResults(
        results=[
            FeedbackResult(problem=problem_of(outcome).details())
            if isinstance(outcome, Refused)
            else FeedbackResult(landed=landed(outcome))
            for outcome in outcomes
        ]
    )
    refused = any(isinstance(outcome, Refused) for outcome in outcomes)
    return json_answer(results, HTTPStatus.MULTI_STATUS if refused else HTTPStatus.OK)


async def submitted(call: Call, feedbacks: Sequence[FeedbackRequest]) -> list[Outcome]:
    """The outcomes of feedback, after their commit.

    Raises:
        Problem: 429 where the queue is full, 503 where Postgres does not answer.
    """
    try:
        return await call.service.committer.submit(feedbacks)
    except QueueFull as full:
        raise too_many("too much feedback waits to be landed: send it again", 1) from full
    except DatabaseUnreachable as error:
        raise unavailable("Postgres") from error


def checked(feedback: FeedbackRequest, tenant_id: str, key: str | None) -> None:
    """Complete a feedback by what the request as a whole says, and check it.

    Raises:
        Problem: 409 or 422.
    """
    # The struct is fresh from the decoder and nobody else's: a copy would cost as much as decoding it.
    msgspec.structs.force_setattr(feedback, "tenant_id", tenant_id)
    if key is not None and feedback.idempotency_key is None:
        msgspec.structs.force_setattr(feedback, "idempotency_key", key)
    helpful = feedback.helpful
    if helpful is not None and len({named.memory for named in helpful}) < len(helpful):
        raise Problem(HTTPStatus.CONFLICT, "named_twice", "`helpful` names a memory twice: give each once")
    try:
        check(feedback)
    except InvalidFeedback as error:
        raise invalid(str(error)) from error


def idempotency_key(call: Call) -> str | None:
    """The key by which a retry is safe.

    Raises:
        Problem: 422 if it is too long or not made of printable ASCII.
    """
    given = call.headers.get(b"idempotency-key")
    if given is None:
        return None
    key = given.decode("latin-1")
    if IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise invalid("`Idempotency-Key` must be 1 to 180 printable characters of ASCII")
    return key


def landed(outcome: Landed) -> LandedFeedback:
    """What is answered to feedback that is committed."""
    return LandedFeedback(
        event_id=outcome.event_id,
        tenant_id=outcome.tenant_id,
        seq=outcome.seq,
        version=outcome.version,
        weights=units(outcome.weights),
        repeated=outcome.repeated,
    )


def units(nanos: Sequence[int]) -> dict[str, float]:
    """Nano-units as units by name."""
    return {name: nano / NANO for name, nano in zip(NAMES, nanos, strict=True)}


def problem_of(refused: Refused) -> Problem:
    """A refusal as a problem."""
    status = _STATUS.get(refused.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    return Problem(status, refused.code, refused.reason)


def _count(call: Call, outcomes: Sequence[Outcome]) -> None:
    assert call.tenant_id is not None
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            call.service.metrics.feedback(call.tenant_id, outcome.code)
        else:
            call.service.metrics.feedback(outcome.tenant_id, "repeated" if outcome.repeated else "landed")


class _Tally:
    """What becomes of a stream."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refusals: list[RefusedLine] = []
        self.tenants: dict[str, TenantAfter] = {}

    def refuse(self, line: int, details: ProblemDetails) -> None:
        self.counts["refused"] += 1
        if len(self.refusals) < MOST_REFUSALS:
            self.refusals.append(RefusedLine(line=line, problem=details))

    def add(self, line: int, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self.refuse(line, problem_of(outcome).details())
            return
        self.counts["repeated" if outcome.repeated else "landed"] += 1
        before = self.tenants.get(outcome.tenant_id)
        if before is None or before.version <= outcome.version:
            self.tenants[outcome.tenant_id] = TenantAfter(
                first_event_id=outcome.event_id if before is None else before.first_event_id,
                last_event_id=outcome.event_id,
                version=outcome.version,
                weights=units(outcome.weights),
            )

    def summary(self) -> StreamSummary:
        return StreamSummary(
            landed=self.counts["landed"],
            repeated=self.counts["repeated"],
            refused=self.counts["refused"],
            refusals=sorted(self.refusals, key=lambda refusal: refusal.line),
            tenants=self.tenants,
        )


async def _land_stream(call: Call, key: str | None) -> Answer:
    """Land lines as they come; what is landed stays so, whatever becomes of the rest."""
    tally = _Tally()
    number = 0
    rest = b""
    more = True
    waiting: list[tuple[int, FeedbackRequest]] = []
    while more:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            break
        more = message.get("more_body", False)
        *lines, rest = (rest + message.get("body", b"")).split(b"\n")
        if not more:
            lines.append(rest)
        elif len(rest) > LONGEST_LINE:
            raise Problem(413, "line_too_long", f"line {number + 1} has more than {LONGEST_LINE} bytes")
        for line in lines:
            number += 1
            if not line.strip():
                continue
            whose = call.who.tenant_id
            try:
                feedback = decode(line, _one)
                whose = tenant_id = call.who.tenant(feedback.tenant_id or None)
                checked(feedback, tenant_id, None if key is None else f"{key}/{number}")
            except Problem as problem:
                call.service.metrics.feedback(whose, problem.code)
                tally.refuse(number, problem.details())
                continue
            call.tenant_id = tenant_id
            waiting.append((number, feedback))
            if len(waiting) == LINES_TOGETHER:
                await _land_lines(call, waiting, tally)
                waiting = []
    if waiting:
        await _land_lines(call, waiting, tally)
    return json_answer(tally.summary())


async def _land_lines(call: Call, lines: list[tuple[int, FeedbackRequest]], tally: _Tally) -> None:
    """Land lines when there is room: a stream waits, so that it is not refused in its midst."""
    committer = call.service.committer
    while not committer.has_room(len(lines)):
        await asyncio.sleep(0.005)
    outcomes = await submitted(call, [feedback for _, feedback in lines])
    _count(call, outcomes)
    for (number, _), outcome in zip(lines, outcomes, strict=True):
        tally.add(number, outcome)


async def said(call: Call) -> Answer:
    """A part of what was said."""
    asked = call.query(HistoryQuery)
    tenant_id = call.about(asked.tenant_id)
    below = None if asked.below is msgspec.UNSET else asked.below

    def read() -> list[history.Said]:
        with call.service.database.as_tenants([tenant_id]) as connection:
            read_state(connection, tenant_id)
            return history.read_feedback(connection, tenant_id, below, asked.limit)

    found = await asyncio.to_thread(read)
    return json_answer(
        FeedbackHistoryAnswer(
            tenant_id=tenant_id,
            feedback=[SaidAnswer(event_id=f"{tenant_id}:{event.seq}", **vars(event)) for event in found],
            next_below=found[-1].seq if found and found[-1].seq > 1 else None,
        )
    )


OPERATIONS = (
    Operation(
        "GET",
        "/context/feedback/history",
        said,
        "What was said of a tenant's recalls and sessions, the newest first.",
        query=HistoryQuery,
        answers={200: FeedbackHistoryAnswer},
        problems=(404, 429),
    ),
    Operation(
        "POST",
        "/context/feedback",
        land,
        "Land feedback: one, a list, or a stream of lines. Answered after the commit.",
        scope="tenant",
        body={"application/json": FeedbackRequest | FeedbackList, "application/x-ndjson": FeedbackRequest},
        answers={200: (LandedFeedback, FeedbackResults, StreamSummary), 207: FeedbackResults},
        problems=(404, 409, 410, 413, 415, 429),
        idempotent=True,
    ),
)
