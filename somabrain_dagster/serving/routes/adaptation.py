"""A tenant's adaptation: its state, its log, rollback, reset, neuromodulators."""

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec

from somabrain_dagster.learning.configuration import InvalidConfiguration
from somabrain_dagster.serving.answers import Answer, json_answer
from somabrain_dagster.serving.contracts import (
    ChangeAnswer,
    HistoryAnswer,
    HistoryQuery,
    NamedTenantQuery,
    NeuromodulatorsAnswer,
    NeuromodulatorsRequest,
    RollbackRequest,
    StateAnswer,
    StateQuery,
    TenantQuery,
)
from somabrain_dagster.serving.operations import Call, Operation
from somabrain_dagster.serving.problems import Problem, invalid
from somabrain_dagster.serving.routes.feedback import units
from somabrain_dagster.store import changes, history
from somabrain_dagster.store.adaptation import AdaptationState, read_state


async def state(call: Call) -> Answer:
    """The state, from memory if it is true there."""
    asked = call.query(StateQuery)
    tenant_id = call.about(asked.tenant_id)
    session_id = None if asked.session_id is msgspec.UNSET else asked.session_id
    arm = (await call.service.trials.now()).arm_of(tenant_id, session_id)
    return Answer(await call.service.states.answer(tenant_id, arm))


async def history_(call: Call) -> Answer:
    """A part of the log."""
    asked = call.query(HistoryQuery)
    tenant_id = call.about(asked.tenant_id)
    below = None if asked.below is msgspec.UNSET else asked.below

    def read() -> list[history.Change]:
        with call.service.database.as_tenants([tenant_id]) as connection:
            read_state(connection, tenant_id)
            return history.read_history(connection, tenant_id, below, asked.limit)

    found = await asyncio.to_thread(read)
    return json_answer(
        HistoryAnswer(
            tenant_id=tenant_id,
            changes=[
                ChangeAnswer(
                    version=change.version,
                    created_at=change.created_at,
                    cause=change.cause,
                    before=None if change.before is None else units(change.before),
                    after=units(change.after),
                    event_id=None if change.event_seq is None else f"{tenant_id}:{change.event_seq}",
                    restored_version=change.restored_version,
                    recall_id=change.recall_id,
                    promotion=change.promotion,
                    scale_version=change.scale_version,
                )
                for change in found
            ],
            next_below=found[-1].version if found and found[-1].version > 0 else None,
        )
    )


async def roll_back(call: Call) -> Answer:
    """Give the tenant the weights of a former version again."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    asked = await call.json(RollbackRequest)
    service = call.service

    def write() -> AdaptationState:
        with service.database.as_tenants([tenant_id]) as connection:
            return changes.roll_back(
                connection, tenant_id, asked.version, service.configuration, call.who.actor
            )

    try:
        changed = await asyncio.to_thread(write)
    except changes.UnknownVersion as error:
        raise Problem(HTTPStatus.NOT_FOUND, "unknown_version", str(error)) from error
    return await _answer(call, changed)


async def reset(call: Call) -> Answer:
    """Give the tenant its configured start again."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    service = call.service

    def write() -> AdaptationState:
        with service.database.as_tenants([tenant_id]) as connection:
            return changes.reset(connection, tenant_id, service.configuration, call.who.actor)

    return await _answer(call, await asyncio.to_thread(write))


async def _answer(call: Call, changed: AdaptationState) -> Answer:
    call.service.changed([changed])
    arm = (await call.service.trials.now()).arm_of(changed.tenant_id, None)
    return Answer(await call.service.states.answer(changed.tenant_id, arm))


async def neuromodulators(call: Call) -> Answer:
    """The tenant's levels."""
    tenant_id = call.about(call.query(TenantQuery).tenant_id)
    return _levels(call, await call.service.states.state(tenant_id))


async def hold_neuromodulators(call: Call) -> Answer:
    """Hold levels, or let go of them."""
    tenant_id = call.about(call.query(NamedTenantQuery).tenant_id)
    asked: dict[str, Any] = msgspec.structs.asdict(await call.json(NeuromodulatorsRequest))
    levels = {name: level for name, level in asked.items() if level is not msgspec.UNSET}
    service = call.service

    def write() -> AdaptationState:
        with service.database.as_operator() as connection:
            return changes.hold_neuromodulators(
                connection, tenant_id, levels, service.configuration, call.who.actor
            )

    try:
        changed = await asyncio.to_thread(write)
    except InvalidConfiguration as error:
        raise invalid(str(error)) from error
    service.changed([changed])
    return _levels(call, await service.states.state(tenant_id))


def _levels(call: Call, state: AdaptationState) -> Answer:
    levels = msgspec.structs.asdict(state.levels)
    delta = levels.pop("delta")
    return json_answer(
        NeuromodulatorsAnswer(
            tenant_id=state.tenant_id,
            version=state.version,
            levels=levels,
            held=dict(call.service.states.held_levels(state)),
            prediction_error=delta,
            updated_at=state.updated_at,
        )
    )


OPERATIONS = (
    Operation(
        "GET",
        "/context/adaptation/state",
        state,
        "A tenant's weights, neuromodulators and learning rate, now; and the arm that a session sees.",
        query=StateQuery,
        answers={200: StateAnswer},
        problems=(404, 429),
    ),
    Operation(
        "GET",
        "/context/adaptation/history",
        history_,
        "What changed a tenant's weights, the newest first.",
        query=HistoryQuery,
        answers={200: HistoryAnswer},
        problems=(404, 429),
    ),
    Operation(
        "POST",
        "/context/adaptation/rollback",
        roll_back,
        "Give a tenant the weights of a former version again; what was learned since is discarded.",
        scope="tenant",
        query=TenantQuery,
        body={"application/json": RollbackRequest},
        answers={200: StateAnswer},
        problems=(404, 413, 415, 429),
    ),
    Operation(
        "POST",
        "/context/adaptation/reset",
        reset,
        "Give a tenant its configured starting weights again; what was learned is discarded.",
        scope="tenant",
        query=TenantQuery,
        answers={200: StateAnswer},
        problems=(404, 429),
    ),
    Operation(
        "GET",
        "/context/neuromodulators",
        neuromodulators,
        "The levels of a tenant's neuromodulators.",
        query=TenantQuery,
        answers={200: NeuromodulatorsAnswer},
        problems=(404, 429),
    ),
    Operation(
        "PUT",
        "/context/neuromodulators",
        hold_neuromodulators,
        "Hold levels of a tenant's neuromodulators, or let go of them.",
        scope="operator",
        query=NamedTenantQuery,
        body={"application/json": NeuromodulatorsRequest},
        answers={200: NeuromodulatorsAnswer},
        problems=(404, 413, 415, 429),
    ),
)
