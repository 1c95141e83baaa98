"""Steering τ: each recall adds its coordinates to its tenant's last ones, and their diversity moves τ.

The window of last coordinates is kept in the tenant's state and moved under its lock, so that recalls at the
same time follow one another in it. A step is a change of weights like any other; it names its recall, whose
log keeps what the step was made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from msgspec.structs import replace

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.diversity import repeats, tau_step
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.lesson import CONFIGURATION
from somabrain_dagster.learning.weights import TAU, Nanos
from somabrain_dagster.store.adaptation import (
    STATE_COLUMNS,
    AdaptationState,
    remember_configurations,
    state_from_row,
)
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.weight_log import WeightChange, chained, insert_changes

DIVERSITY = "diversity"
"""The cause of a step of τ."""


@dataclass(frozen=True, eq=False)
class Recollection:
    """What a tenant's recalls were before the present one, under the lock of its state.

    Attributes:
        state: now, locked.
        recalled: the ids of the last coordinates, oldest first.
        embeddings: of the last and the present coordinates, by id; unknown ones are missing.
        now: the transaction's time.
    """

    state: AdaptationState
    recalled: list[int]
    embeddings: Mapping[int, Floats]
    now: datetime


@dataclass(frozen=True, eq=False)
class Steering:
    """What a recall does to its tenant.

    Attributes:
        recalled: the ids of the last coordinates, the present ones included, oldest first; W at most.
        repeated: how many of them repeat an earlier one; None while there are fewer than W.
        serotonin: that the step met: of the state that was steered, or held by the configuration.
        changes: of weights, in order; empty where τ stays.
        hashes: of the changes.
        state: after them.
    """

    recalled: list[int]
    repeated: int | None
    serotonin: float
    changes: list[WeightChange]
    hashes: list[bytes]
    state: AdaptationState


def step(configuration: LearningConfiguration, repeated: int, serotonin: float) -> Nanos:
    """The shift (K,), in nano-units, that a full window with so many repeats makes."""
    shift = np.zeros_like(configuration.start_nanos)
    shift[TAU] = tau_step(configuration, 1.0 - repeated / configuration.diversity.window, serotonin)
    return shift


def recollect(connection: Connection, tenant_id: str, hits: Sequence[int]) -> Recollection:
    """Lock the tenant's state and read its last coordinates.

    Args:
        connection: a transaction for the tenant.
        tenant_id: who recalls.
        hits: the present recall's memories.
    """
    with connection.pipeline():
        locked = connection.execute(
            f"SELECT {STATE_COLUMNS}, s.recalled, now() FROM adaptation_states s "  # noqa: S608 — a constant
            "WHERE s.tenant_id = %s FOR NO KEY UPDATE",
            (tenant_id,),
        )
        # A statement of its own: it sees what the one who held the lock has committed.
        vectors = connection.execute(
            """
            SELECT memory_id, vector_send(embedding) FROM memories
            WHERE tenant_id = %s AND embedding IS NOT NULL AND memory_id = ANY (
                %s::bigint[] || (SELECT recalled FROM adaptation_states WHERE tenant_id = %s)
            )
            """,
            (tenant_id, list(hits), tenant_id),
        )
    row = locked.fetchone()
    if row is None:
        raise AssertionError(f"tenant {tenant_id!r} lost its state between two statements")
    *state, recalled, now = row
    return Recollection(
        state=state_from_row(state),
        recalled=recalled or [],
        embeddings={memory_id: _vector(sent) for memory_id, sent in vectors},
        now=now,
    )


def _vector(sent: bytes) -> Floats:
    """A vector in pgvector's binary form: two int16 (dimension, unused), then float32 components."""
    return np.frombuffer(sent, dtype=">f4", offset=4).astype(np.float64)


def steer(
    configuration: LearningConfiguration,
    recollection: Recollection,
    recall_id: int,
    hits: Sequence[int],
) -> Steering:
    """Add the hits to the last coordinates, and step τ where their diversity asks for it.

    A step that τ's bounds swallow whole is none. A step, like every change, brings in force what its
    configuration holds the neuromodulators at.

    Args:
        configuration: the tenant's.
        recollection: before the recall.
        recall_id: of the recall.
        hits: its memories, in order.
    """
    locked = recollection.state
    levels = replace(locked.levels, **configuration.neuromodulators)
    state = locked
    window = configuration.diversity.window
    recalled = [*recollection.recalled, *hits][-window:]
    repeated = None
    changes: list[WeightChange] = []
    if len(recalled) == window:
        known = recollection.embeddings
        dimension = max((len(vector) for vector in known.values()), default=1)
        nothing = np.zeros(dimension)
        embeddings = np.array([known.get(memory_id, nothing) for memory_id in recalled])
        repeated = int(repeats(recalled, embeddings, configuration.diversity.similarity).sum())
        changes = _changes(
            configuration, recollection, recall_id, step(configuration, repeated, levels.serotonin)
        )
    heads = {state.tenant_id: state.hash}
    hashes = chained(changes, heads)
    if changes:
        state = replace(
            state,
            version=changes[-1].version,
            weights=np.array(changes[-1].after, dtype=np.int64),
            hash=heads[state.tenant_id],
            configuration=changes[-1].configuration,
            levels=levels,
            updated_at=recollection.now,
        )
    return Steering(recalled, repeated, levels.serotonin, changes, hashes, state)


def _changes(
    configuration: LearningConfiguration, recollection: Recollection, recall_id: int, shift: Nanos
) -> list[WeightChange]:
    state = recollection.state
    low, high = configuration.low_nanos, configuration.high_nanos
    before = np.clip(state.weights, low, high)
    after = np.clip(before + shift, low, high)
    if after[TAU] == before[TAU]:
        return []
    in_force = bytes.fromhex(configuration.digest)
    changes = []
    if state.configuration != in_force:
        changes.append(
            WeightChange(
                tenant_id=state.tenant_id,
                version=state.version + 1,
                created_at=recollection.now,
                cause=CONFIGURATION,
                shift=[0] * len(shift),
                low=low.tolist(),
                high=high.tolist(),
                after=before.tolist(),
                configuration=in_force,
            )
        )
    changes.append(
        WeightChange(
            tenant_id=state.tenant_id,
            version=state.version + len(changes) + 1,
            created_at=recollection.now,
            cause=DIVERSITY,
            shift=shift.tolist(),
            after=after.tolist(),
            configuration=in_force,
            recall_id=recall_id,
        )
    )
    return changes


def write_steering(connection: Connection, configuration: LearningConfiguration, steering: Steering) -> None:
    """Write the last coordinates and, if τ stepped, the changes and the new state.

    Args:
        connection: the transaction that holds the lock, in a pipeline or not.
        configuration: the tenant's.
        steering: what to write.
    """
    state = steering.state
    if steering.changes:
        remember_configurations(connection, [configuration])
        insert_changes(connection, steering.changes, steering.hashes)
    connection.execute(
        """
        UPDATE adaptation_states
        SET (
            recalled, repeated, version, weights, hash, configuration,
            dopamine, serotonin, noradrenaline, acetylcholine, updated_at
        ) = (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        WHERE tenant_id = %s
        """,
        (
            steering.recalled,
            steering.repeated,
            state.version,
            state.weights.tolist(),
            state.hash,
            state.configuration,
            state.levels.dopamine,
            state.levels.serotonin,
            state.levels.noradrenaline,
            state.levels.acetylcholine,
            state.updated_at,
            state.tenant_id,
        ),
    )


def overridden(configuration: LearningConfiguration, overrides: Mapping[str, Any]) -> LearningConfiguration:
    """A tenant's configuration; the global one itself where nothing differs.

    Raises:
        InvalidConfiguration: the overrides cannot be.
    """
    return configuration.overridden(overrides) if overrides else configuration
