"""What concerns all tenants: their names, promoted weights, experiments; and the tokens that sessions use."""

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
    ArmAnswer,
    AssignmentAnswer,
    AssignmentQuery,
    ExperimentAnswer,
    ExperimentsAnswer,
    ExperimentsQuery,
    PromotedAnswer,
    TenantAnswer,
    TenantsAnswer,
    TenantsQuery,
    TokensAnswer,
    TokensRequest,
)
from somabrain_dagster.serving.operations import Call, Operation, in_utc
from somabrain_dagster.serving.problems import Problem
from somabrain_dagster.store.adaptation import AdaptationState, read_state
from somabrain_dagster.store.experiments import UnknownExperiment, read_arms
from somabrain_dagster.store.overviews import Overview, read_overviews
from somabrain_dagster.store.promotions import Promotion, promote, promoted
from somabrain_dagster.store.tenants import Tenant, read_tenants
from somabrain_dagster.store.usage import TokenUsage, record_tokens


async def tenants(call: Call) -> Answer:
    """All tenants for an operator, their own for anybody else."""
    asked = call.query(TenantsQuery)
    after = None if asked.after is msgspec.UNSET else asked.after
    own = None if call.who.tenant_id is None else call.about(None)
    database = call.service.database

    def read() -> list[Tenant]:
        with database.as_operator() if own is None else database.as_tenants([own]) as connection:
            return read_tenants(connection, asked.prefix, after, asked.limit + 1)

    found = await asyncio.to_thread(read)
    shown = found[: asked.limit]
    return json_answer(
        TenantsAnswer(
            scope=call.who.scope,
            tenants=[
                TenantAnswer(
                    tenant_id=one.tenant_id,
                    created_at=one.created_at,
                    learning_loop_enabled=one.learning_loop_enabled,
                    version=one.version,
                    weights=by_name(one.weights),
                    feedback=one.feedback_seq,
                    updated_at=one.updated_at,
                )
                for one in shown
            ],
            next_after=shown[-1].tenant_id if len(found) > asked.limit else None,
        )
    )


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


async def experiments(call: Call) -> Answer:
    """A part of the experiments."""
    asked = call.query(ExperimentsQuery)
    before = None if asked.before is msgspec.UNSET else asked.before
    service = call.service

    def read() -> list[Overview]:
        with service.database.as_operator() as connection:
            return read_overviews(connection, before, asked.limit + 1)

    found = await asyncio.to_thread(read)
    shown = found[: asked.limit]
    return json_answer(
        ExperimentsAnswer(
            experiments=[
                ExperimentAnswer(
                    experiment_id=one.experiment.experiment_id,
                    status=one.experiment.status,
                    size=one.experiment.plan.size,
                    arms=[ArmAnswer(**vars(arm)) for arm in one.arms],
                    created_at=one.experiment.created_at,
                    started_at=one.experiment.started_at,
                    ended_at=one.experiment.ended_at,
                    end_reason=one.experiment.end_reason,
                    promoted_arm=one.promoted_arm,
                    canary=one.canary,
                )
                for one in shown
            ],
            next_before=shown[-1].experiment.experiment_id if len(found) > asked.limit else None,
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
        "/tenants",
        tenants,
        "The tenants that the key may see, by name: an operator's sees all, a tenant's its own.",
        query=TenantsQuery,
        answers={200: TenantsAnswer},
        problems=(429,),
    ),
    Operation(
        "GET",
        "/experiments",
        experiments,
        "Experiments, the newest first: their arms in numbers, and what became of them.",
        scope="operator",
        query=ExperimentsQuery,
        answers={200: ExperimentsAnswer},
    ),
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
