"""Changes of weights that answer no feedback: each is one clipped shift at the end of a tenant's log.

Whatever the cause, the tenant's state is locked, the configuration in force is applied first if the last
change was made under another, and the change, its hash and the new state are written together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.lesson import CONFIGURATION
from somabrain_dagster.learning.policy import rescaled
from somabrain_dagster.learning.shifts import Shifts, apply, constant
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import (
    STATE_COLUMNS,
    AdaptationState,
    UnknownTenant,
    read_state,
    remember_configurations,
    state_from_row,
)
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.scales import FIRST_SCALES, read_scales
from somabrain_dagster.store.weight_log import WeightChange, as_recordset, chained, insert_changes

ROLLBACK = "rollback"
RESET = "reset"
SCALES = "scales"


class UnknownVersion(LookupError):
    """A version that the tenant's log does not have, or that is not before its last one."""


@dataclass(frozen=True, eq=False)
class Change:
    """What is to change, and why.

    Attributes:
        cause: by which it is derived again.
        shifts: (K,), the clipped shift.
        bounded: it clips to the bounds of the configuration, which are then not stored in the row.
        restored_version, recall_id, promotion: what the cause refers to.
        scale_version: the scales in which the weights are meant from this change on; None where they stay.
    """

    cause: str
    shifts: Shifts
    bounded: bool = False
    restored_version: int | None = None
    recall_id: int | None = None
    promotion: int | None = None
    scale_version: int | None = None


def shift_within_bounds(configuration: LearningConfiguration, shift: Any) -> Shifts:
    """A shift that clips to the bounds of the configuration; give it as `bounded`."""
    return Shifts(np.array(shift, dtype=np.int64), configuration.low_nanos, configuration.high_nanos)


ChangeOf = Callable[[AdaptationState, LearningConfiguration], Change | None]
"""What is to change for a tenant whose state is locked, under its own configuration; None for nothing."""


def append_changes(
    connection: Connection,
    tenants: Sequence[str] | None,
    configuration: LearningConfiguration,
    change_of: ChangeOf,
) -> list[AdaptationState]:
    """Append one change to the log of each tenant, under the lock of its state.

    Args:
        connection: a transaction that may write for these tenants.
        tenants: whose weights change; None for all that the transaction sees.
        configuration: the global learning configuration; each tenant's overrides are applied to it.
        change_of: is asked under the lock, so that a change can depend on the state.

    Returns:
        The new states, of tenants that changed: publish them when the transaction is committed.

    Raises:
        UnknownTenant: there is no such tenant, or the transaction must not see it.
        InvalidConfiguration: a tenant's overrides cannot be.
    """
    rows = connection.execute(
        f"SELECT {STATE_COLUMNS}, t.overrides, now() "  # noqa: S608 — the columns are a constant
        "FROM adaptation_states s JOIN tenants t USING (tenant_id) "
        "WHERE %(tenants)s::text[] IS NULL OR s.tenant_id = ANY (%(tenants)s) "
        "ORDER BY s.tenant_id FOR NO KEY UPDATE OF s",
        {"tenants": None if tenants is None else sorted(set(tenants))},
    ).fetchall()
    missing = sorted(set(tenants or ()) - {row[0] for row in rows})
    if missing:
        raise UnknownTenant(missing[0])

    changes: list[WeightChange] = []
    states: list[AdaptationState] = []
    heads: dict[str, bytes] = {}
    configurations: set[LearningConfiguration] = set()
    for *row, overrides, now in rows:
        locked = state_from_row(row)
        own = configuration.overridden(overrides)
        state = locked
        for due in _due(locked, own, change_of):
            state, change = _apply(state, own, due, now)
            changes.append(change)
        if state is not locked:
            heads[state.tenant_id] = locked.hash
            configurations.add(own)
            states.append(state)
    if not changes:
        return []
    hashes = chained(changes, heads)
    states = [replace(state, hash=heads[state.tenant_id]) for state in states]
    remember_configurations(connection, configurations)
    insert_changes(connection, changes, hashes)
    _update(connection, states)
    return states


def _due(state: AdaptationState, configuration: LearningConfiguration, change_of: ChangeOf) -> list[Change]:
    """The change of configuration, if there is one, and the change itself."""
    due = []
    if state.configuration != bytes.fromhex(configuration.digest):
        bounds = shift_within_bounds(configuration, np.zeros_like(state.weights))
        due.append(Change(CONFIGURATION, bounds))
        state = replace(state, weights=apply(bounds, state.weights))
    change = change_of(state, configuration)
    return due if change is None else [*due, change]


def _apply(
    state: AdaptationState, configuration: LearningConfiguration, change: Change, now: datetime
) -> tuple[AdaptationState, WeightChange]:
    digest = bytes.fromhex(configuration.digest)
    after = apply(change.shifts, state.weights)
    appended = WeightChange(
        tenant_id=state.tenant_id,
        version=state.version + 1,
        created_at=now,
        cause=change.cause,
        shift=change.shifts.shift.tolist(),
        low=None if change.bounded else change.shifts.low.tolist(),
        high=None if change.bounded else change.shifts.high.tolist(),
        after=after.tolist(),
        configuration=digest,
        restored_version=change.restored_version,
        recall_id=change.recall_id,
        promotion=change.promotion,
        scale_version=change.scale_version,
    )
    levels = replace(state.levels, **configuration.neuromodulators)
    changed = replace(
        state,
        version=appended.version,
        weights=after,
        configuration=digest,
        levels=levels,
        # A guard that looked back beyond a change of scales would restore weights that were meant otherwise.
        recent_rewards=state.recent_rewards if change.scale_version is None else state.recent_rewards[:0],
        updated_at=now,
    )
    return changed, appended


def _update(connection: Connection, states: Sequence[AdaptationState]) -> None:
    rows = [
        {
            "tenant_id": state.tenant_id,
            "version": state.version,
            "weights": state.weights.tolist(),
            "hash": state.hash,
            "configuration": state.configuration,
            **asdict(state.levels),
            "recent_rewards": state.recent_rewards.tolist(),
            "updated_at": state.updated_at,
        }
        for state in states
    ]
    connection.execute(
        """
        UPDATE adaptation_states s
        SET (
            version, weights, hash, configuration,
            dopamine, serotonin, noradrenaline, acetylcholine, recent_rewards, updated_at
        ) = (
            n.version, n.weights, n.hash, n.configuration,
            n.dopamine, n.serotonin, n.noradrenaline, n.acetylcholine, n.recent_rewards, n.updated_at
        )
        FROM json_to_recordset(%s::json) AS n (
            tenant_id text, version bigint, weights bigint[], hash bytea, configuration bytea,
            dopamine float8, serotonin float8, noradrenaline float8, acetylcholine float8,
            recent_rewards bigint[], updated_at timestamptz
        )
        WHERE s.tenant_id = n.tenant_id
        """,
        (as_recordset(rows),),
    )


def roll_back(
    connection: Connection, tenant_id: str, version: int, configuration: LearningConfiguration, actor: str
) -> AdaptationState:
    """Give a tenant the weights of a former version again; what was learned since is discarded.

    Where they were meant in other scales they are first expressed in those in force, and then clipped to the
    bounds in force.

    Raises:
        UnknownTenant: there is no such tenant, or the transaction must not see it.
        UnknownVersion: the log has no such version.
    """
    row = connection.execute(
        "SELECT after FROM weight_changes WHERE tenant_id = %s AND version = %s", (tenant_id, version)
    ).fetchone()

    def change(state: AdaptationState, own: LearningConfiguration) -> Change:
        if row is None:
            raise UnknownVersion(
                f"tenant {tenant_id!r} has no version {version}: its last one is {state.version}"
            )
        weights = np.array(row[0], dtype=np.int64)
        then = scale_version_at(connection, tenant_id, version)
        now = scale_version_at(connection, tenant_id, state.version)
        if then != now:
            weights = rescaled(weights, read_scales(connection, then), read_scales(connection, now))
        weights = np.clip(weights, own.low_nanos, own.high_nanos)
        return Change(ROLLBACK, constant(weights), restored_version=version)

    (state,) = append_changes(connection, [tenant_id], configuration, change)
    body = {"restored_version": version, "version": state.version}
    audit.record(connection, tenant_id, actor, ROLLBACK, body)
    return state


def reset(
    connection: Connection, tenant_id: str, configuration: LearningConfiguration, actor: str
) -> AdaptationState:
    """Give a tenant its configured starting weights again; what was learned is discarded.

    Raises:
        UnknownTenant: there is no such tenant, or the transaction must not see it.
    """
    (state,) = append_changes(
        connection,
        [tenant_id],
        configuration,
        lambda _, own: Change(RESET, constant(own.start_nanos)),
    )
    audit.record(connection, tenant_id, actor, RESET, {"version": state.version})
    return state


def scale_version_at(connection: Connection, tenant_id: str, version: int) -> int:
    """The scales in which a tenant's weights of a version are meant."""
    row = connection.execute(
        """
        SELECT scale_version FROM weight_changes
        WHERE tenant_id = %s AND version <= %s AND scale_version IS NOT NULL
        ORDER BY version DESC LIMIT 1
        """,
        (tenant_id, version),
    ).fetchone()
    return FIRST_SCALES if row is None else int(row[0])


def change_scales(
    connection: Connection,
    tenants: Sequence[str] | None,
    version: int,
    configuration: LearningConfiguration,
    actor: str,
) -> list[AdaptationState]:
    """Let tenants' recalls divide features by another version of the scales, and their weights mean the same.

    Each weight becomes w · new/old, within its bounds: what a feature adds to a score stays as it was, as far
    as the bounds allow. Feedback on a recall that was made before is still learned from as it was logged. The
    rollback guard begins anew, since weights from before the change are meant in other scales.

    Args:
        connection: an operator's transaction.
        tenants: whose scales change; None for all.
        version: of the scales; a tenant that has them already stays as it is.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Returns:
        The new states, of tenants that changed: publish them when the transaction is committed.

    Raises:
        UnknownScales: there is no such version for the present registry of features.
        UnknownTenant: there is no such tenant.
    """
    new = read_scales(connection, version)
    # Tenants before states, as everywhere. Whose scales they are cannot change until this is through.
    before: dict[str, int] = dict(
        connection.execute(
            """
            SELECT tenant_id, scale_version FROM tenants
            WHERE %(tenants)s::text[] IS NULL OR tenant_id = ANY (%(tenants)s)
            ORDER BY tenant_id FOR NO KEY UPDATE
            """,
            {"tenants": None if tenants is None else list(tenants)},
        ).fetchall()
    )
    scales = {old: read_scales(connection, old) for old in set(before.values())}

    def change(state: AdaptationState, own: LearningConfiguration) -> Change | None:
        old = scales[before[state.tenant_id]]
        if old.version == new.version:
            return None
        weights = np.clip(rescaled(state.weights, old, new), own.low_nanos, own.high_nanos)
        return Change(SCALES, constant(weights), scale_version=new.version)

    changed = append_changes(connection, list(before) if tenants is None else tenants, configuration, change)
    moved = sorted(tenant_id for tenant_id, old in before.items() if old != version)
    connection.execute(
        "UPDATE tenants SET scale_version = %s WHERE tenant_id = ANY (%s)", (new.version, moved)
    )
    body: dict[str, Any] = {"scale_version": new.version, "tenants": len(moved)}
    if tenants is not None:
        body["named"] = sorted(set(tenants))
    audit.record(connection, audit.SYSTEM, actor, SCALES, body)
    return changed


def hold_neuromodulators(
    connection: Connection,
    tenant_id: str,
    levels: Mapping[str, float | None],
    configuration: LearningConfiguration,
    actor: str,
) -> AdaptationState:
    """Hold neuromodulators of a tenant at levels of an operator's choice, or let go of them.

    What is held is part of the tenant's configuration: the change of configuration is in the log, every later
    change names it by its digest, and so the levels that an event met can be derived again. A level that is
    let go stays where it is until the next feedback moves it.

    Args:
        connection: an operator's transaction.
        tenant_id: the tenant.
        levels: by name; None lets the rewards have it back.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Raises:
        UnknownTenant: there is no such tenant.
        InvalidConfiguration: a name is unknown, or a level is outside its range.
    """
    row = connection.execute(
        "SELECT overrides FROM tenants WHERE tenant_id = %s FOR NO KEY UPDATE", (tenant_id,)
    ).fetchone()
    if row is None:
        raise UnknownTenant(tenant_id)
    overrides: dict[str, Any] = row[0]
    held = {
        name: level
        for name, level in (overrides.get("neuromodulators", {}) | dict(levels)).items()
        if level is not None
    }
    overrides = {name: value for name, value in overrides.items() if name != "neuromodulators"}
    if held:
        overrides["neuromodulators"] = held
    configuration.overridden(overrides)
    connection.execute(
        "UPDATE tenants SET overrides = %s::jsonb WHERE tenant_id = %s",
        (canonical_json(overrides).decode(), tenant_id),
    )
    # The state's lock before the trail's, as everywhere.
    changed = append_changes(connection, [tenant_id], configuration, lambda _state, _own: None)
    audit.record(connection, tenant_id, actor, "neuromodulators.hold", {"held": held})
    return changed[0] if changed else read_state(connection, tenant_id)
