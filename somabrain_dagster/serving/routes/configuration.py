"""What concerns all tenants: promoted weights and experiments; and the tokens that sessions use."""

import asyncio
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.experiments import assign
from somabrain_dagster.learning.weights import NAMES, by_name
from somabrain_dagster.serving.answers import Answer, json_answer
from somabrain_dagster.serving.contracts import (
    AssignmentAnswer,
    AssignmentQuery,
    PromotedAnswer,
    TokensAnswer,
    TokensRequest,
)
from somabrain_dagster.serving.operations import Call, Operation, in_utc
from somabrain_dagster.serving.problems import Problem
from somabrain_dagster.store.adaptation import AdaptationState, read_state
from somabrain_dagster.store.experiments import UnknownExperiment, read_arms
from somabrain_dagster.store.promotions import Promotion, promote, promoted
from somabrain_dagster.store.usage import TokenUsage, record_tokens


async def weights(call: Call) -> Answer:
    """What is promoted now."""
    service = call.service

    def read() -> Promotion:
        with service.database.as_operator() as connection:
            return promoted(connection, service.configuration)

    return _promoted(await asyncio.to_thread(read))


def promoting(configuration: LearningConfiguration) -> Operation:
    """The operation that promotes weights within the bounds of a configuration."""
    request = msgspec.defstruct(
        "PromotionRequest",
        [
            (
                f"{name}_" if name == "lambda" else name,
                Annotated[float, msgspec.Meta(ge=configuration.low[name], le=configuration.high[name])]
                | msgspec.UnsetType,
                msgspec.field(default=msgspec.UNSET, name=name),
            )
            for name in NAMES
        ],
        frozen=True,
        forbid_unknown_fields=True,
        kw_only=True,
        namespace={"__doc__": "The weights to promote; those that are left out stay as they are promoted."},
    )

    async def put(call: Call) -> Answer:
        named: dict[str, Any] = msgspec.to_builtins(await call.json(request))
        service = call.service

        def write() -> tuple[Promotion, list[AdaptationState]]:
            with service.database.as_operator() as connection:
                return promote(connection, named, service.configuration, call.who.actor)

        promotion, states = await asyncio.to_thread(write)
        service.changed(states)
        return _promoted(promotion)

    return Operation(
        "PUT",
        "/config/weights",
        put,
        "Promote weights to all tenants: each is shifted by what changes, within its bounds.",
        scope="operator",
        body={"application/json": request},
        answers={200: PromotedAnswer},
        problems=(413, 415),
    )


def _promoted(promotion: Promotion) -> Answer:
    return json_answer(
        PromotedAnswer(
            version=promotion.version,
            weights=by_name(promotion.weights),
            experiment_id=promotion.experiment_id,
            created_at=promotion.created_at,
        )
    )


async def assignment(call: Call) -> Answer:
    """The arm of a unit."""
    unit = call.query(AssignmentQuery).unit
    call.about(unit.split("/", 1)[0])
    experiment_id = call.path["experiment_id"]
    service = call.service

    def read() -> str:
        with service.database.as_operator() as connection:
            salt, arms = read_arms(connection, experiment_id)
        return assign(salt, unit, arms)

    try:
        arm = await asyncio.to_thread(read)
    except UnknownExperiment as error:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown_experiment", str(error)) from error
    return json_answer(AssignmentAnswer(experiment_id=experiment_id, unit=unit, arm=arm))


async def tokens(call: Call) -> Answer:
    """Record tokens that a session used."""
    asked = await call.json(TokensRequest)
    tenant_id = call.about(asked.tenant_id)
    usage = TokenUsage(
        tenant_id=tenant_id,
        session_id=asked.session_id,
        tokens=asked.tokens,
        tokenizer=asked.tokenizer,
        occurred_at=in_utc("occurred_at", asked.occurred_at) or datetime.now(UTC),
    )

    def write() -> int:
        with call.service.database.as_tenants([tenant_id]) as connection:
            read_state(connection, tenant_id)
            return record_tokens(connection, [usage])

    return json_answer(TokensAnswer(recorded=await asyncio.to_thread(write)), HTTPStatus.CREATED)


OPERATIONS = (
    Operation(
        "GET",
        "/config/weights",
        weights,
        "The weights that are promoted to all tenants.",
        answers={200: PromotedAnswer},
    ),
    Operation(
        "GET",
        "/experiments/{experiment_id}/assignment",
        assignment,
        "The arm of a unit, tenant/session: the same for ever, of the unit and the experiment alone.",
        query=AssignmentQuery,
        answers={200: AssignmentAnswer},
        problems=(404, 429),
    ),
    Operation(
        "POST",
        "/usage/tokens",
        tokens,
        "Record tokens that a session used.",
        scope="tenant",
        body={"application/json": TokensRequest},
        answers={201: TokensAnswer},
        problems=(404, 413, 415, 429),
    ),
)
