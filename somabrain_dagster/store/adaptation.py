"""Tenants, their adaptation states, and the configurations that their changes name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.guard import Micros
from somabrain_dagster.learning.neuromodulators import RewardState
from somabrain_dagster.learning.weights import Nanos, by_name
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.feedback_contract import TENANT_PATTERN
from somabrain_dagster.store.scales import SHIPPED_SCALES
from somabrain_dagster.store.weight_log import START_HASH, WeightChange, as_recordset, chained, insert_changes

START = "start"
ADOPTION = "adoption"
"""Causes of a tenant's first changes: its configured start, and what was promoted before it came."""


class InvalidTenant(ValueError):
    """A name that no tenant can have; the message says what names are."""


class UnknownTenant(LookupError):
    """A tenant that does not exist; the message says how to create one."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(
            f"there is no tenant {tenant_id!r}: create it with `somabrain tenant create {tenant_id}`"
        )
        self.tenant_id = tenant_id


class Levels(msgspec.Struct, frozen=True):
    """The neuromodulators as the tenant's last feedback left them, and its prediction error."""

    delta: float = 0.0
    dopamine: float = 0.4
    serotonin: float = 1.0
    noradrenaline: float = 0.0
    acetylcholine: float = 0.0


class AdaptationState(msgspec.Struct, frozen=True, eq=False):
    """A tenant's weights now, and all that the next feedback needs to know.

    Attributes:
        version: of the last change of weights.
        weights: nano-units, (K,).
        hash: of the last change.
        configuration: the digest of the configuration of the last change.
        feedback_seq: of the tenant's last feedback event, 0 before the first.
        levels: the neuromodulators after it.
        rewards: running mean and variance after it.
        recent_rewards: micro-units, oldest first, as the rollback guard remembers them.
    """

    tenant_id: str
    version: int
    weights: Nanos
    hash: bytes
    configuration: bytes
    feedback_seq: int
    levels: Levels
    rewards: RewardState
    recent_rewards: Micros
    updated_at: datetime

    @property
    def weights_by_name(self) -> dict[str, float]:
        """The weights in units."""
        return by_name(self.weights)


STATE_COLUMNS = """
    s.tenant_id, s.version, s.weights, s.hash, s.configuration, s.feedback_seq,
    s.delta, s.dopamine, s.serotonin, s.noradrenaline, s.acetylcholine,
    s.reward_mean, s.reward_variance, s.recent_rewards, s.updated_at
"""


def state_from_row(row: Sequence[Any]) -> AdaptationState:
    """A state from a row of `STATE_COLUMNS`."""
    return AdaptationState(
        tenant_id=row[0],
        version=row[1],
        weights=np.array(row[2], dtype=np.int64),
        hash=row[3],
        configuration=row[4],
        feedback_seq=row[5],
        levels=Levels(*row[6:11]),
        rewards=RewardState(*row[11:13]),
        recent_rewards=np.array(row[13], dtype=np.int64),
        updated_at=row[14],
    )


def read_states(connection: Connection, tenants: Sequence[str] | None = None) -> list[AdaptationState]:
    """The states of these tenants, or of all that the transaction sees, by tenant."""
    rows = connection.execute(
        f"SELECT {STATE_COLUMNS} FROM adaptation_states s "  # noqa: S608 — the columns are a constant
        "WHERE %(tenants)s::text[] IS NULL OR s.tenant_id = ANY (%(tenants)s) ORDER BY s.tenant_id",
        {"tenants": None if tenants is None else list(tenants)},
    )
    return [state_from_row(row) for row in rows]


def read_state(connection: Connection, tenant_id: str) -> AdaptationState:
    """One tenant's state.

    Raises:
        UnknownTenant: there is no such tenant, or the transaction must not see it.
    """
    states = read_states(connection, [tenant_id])
    if not states:
        raise UnknownTenant(tenant_id)
    return states[0]


def list_tenants(connection: Connection) -> list[str]:
    """The names of all tenants that the transaction sees, in order."""
    return [tenant_id for (tenant_id,) in connection.execute("SELECT tenant_id FROM tenants ORDER BY 1")]


def require_tenants(connection: Connection, tenants: Sequence[str]) -> None:
    """Make sure that these tenants exist.

    Raises:
        UnknownTenant: one does not, or the transaction must not see it.
    """
    known = connection.execute(
        "SELECT tenant_id FROM tenants WHERE tenant_id = ANY (%s) AND deleted_at IS NULL", (list(tenants),)
    )
    unknown = set(tenants) - {tenant_id for (tenant_id,) in known}
    if unknown:
        raise UnknownTenant(min(unknown))


def remember_configurations(connection: Connection, configurations: Iterable[LearningConfiguration]) -> None:
    """Store configurations under their digests, so that a change that names one can be derived again."""
    for configuration in configurations:
        connection.execute(
            "INSERT INTO configurations (digest, body) VALUES (%s, %s::jsonb) ON CONFLICT DO NOTHING",
            (bytes.fromhex(configuration.digest), canonical_json(configuration.to_json()).decode()),
        )


def read_configurations(connection: Connection) -> dict[bytes, LearningConfiguration]:
    """Every configuration that a change may name, by digest; one that its digest is not of is left out."""
    rows = connection.execute("SELECT digest, body FROM configurations")
    read = ((digest, LearningConfiguration.from_json(body)) for digest, body in rows)
    return {digest: stored for digest, stored in read if bytes.fromhex(stored.digest) == digest}


def deleted_among(connection: Connection, tenants: Sequence[str]) -> set[str]:
    """Those of these names that were a tenant's which was deleted: they are never given again."""
    rows = connection.execute(
        "SELECT tenant_id FROM tenants WHERE tenant_id = ANY (%s) AND deleted_at IS NOT NULL",
        (list(tenants),),
    )
    return {tenant_id for (tenant_id,) in rows}


def create_tenants(
    connection: Connection,
    tenants: Sequence[str],
    configuration: LearningConfiguration,
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create tenants that do not exist yet, each with version 0 of its weights: the configured starts.

    Where something else is promoted, version 1 is that.

    Args:
        connection: an operator's transaction.
        tenants: the new keys, in any order.
        configuration: the global learning configuration.
        overrides: what these tenants have different from it.

    Returns:
        Those that were created.

    Raises:
        InvalidTenant: a name is not one, or is that of a tenant that was deleted.
        InvalidConfiguration: the overrides cannot be.
    """
    for tenant_id in tenants:
        if not re.search(TENANT_PATTERN, tenant_id):
            raise InvalidTenant(
                f"{tenant_id!r} cannot be a tenant's name: one has 1 to 63 of a-z, 0-9, '.', '_' and '-', "
                "and begins with a letter or a digit"
            )
    own = configuration.overridden(overrides or {})
    if deleted := deleted_among(connection, tenants):
        raise InvalidTenant(
            f"there was a tenant {min(deleted)!r}, which was deleted: no name is given twice, choose another"
        )
    # A promotion sees every tenant, or the tenant sees the promotion.
    connection.execute("SELECT pg_advisory_xact_lock_shared(hashtext('somabrain_promotion'))")
    adopted = connection.execute(
        """
        SELECT version, weights, coalesce(
            (
                SELECT p.scale_version FROM promotions p
                WHERE p.scale_version IS NOT NULL ORDER BY p.version DESC LIMIT 1
            ), %s
        )
        FROM promotions ORDER BY version DESC LIMIT 1
        """,
        (SHIPPED_SCALES,),
    ).fetchone()
    scale_version = SHIPPED_SCALES if adopted is None else adopted[2]
    names = [
        tenant_id
        for (tenant_id,) in connection.execute(
            """
            INSERT INTO tenants (tenant_id, overrides, scale_version)
            SELECT unnest(%s::text[]), %s::jsonb, %s
            ON CONFLICT DO NOTHING RETURNING tenant_id
            """,
            # In one order, so that two who create the same tenants wait for one another and none deadlocks.
            (sorted(tenants), canonical_json(dict(overrides or {})).decode(), scale_version),
        )
    ]
    if not names:
        return []
    (now,) = connection.execute("SELECT now()").fetchone() or ()
    remember_configurations(connection, [own])

    def constant(
        tenant_id: str,
        version: int,
        cause: str,
        weights: list[int],
        promotion: int | None,
        scale_version: int | None,
    ) -> WeightChange:
        return WeightChange(
            tenant_id=tenant_id,
            version=version,
            created_at=now,
            cause=cause,
            shift=[0] * len(weights),
            low=weights,
            high=weights,
            after=weights,
            configuration=bytes.fromhex(own.digest),
            promotion=promotion,
            scale_version=scale_version,
        )

    start = own.start_nanos.tolist()
    changes = [constant(name, 0, START, start, None, SHIPPED_SCALES) for name in names]
    if adopted is not None and (adopted[1] != start or scale_version != SHIPPED_SCALES):
        promotion, weights, _ = adopted
        kept = np.clip(np.array(weights, dtype=np.int64), own.low_nanos, own.high_nanos).tolist()
        brought = None if scale_version == SHIPPED_SCALES else scale_version
        changes += [constant(name, 1, ADOPTION, kept, promotion, brought) for name in names]
    heads = dict.fromkeys(names, START_HASH)
    hashes = chained(changes, heads)
    insert_changes(connection, changes, hashes)
    last = changes[-len(names) :]
    levels = Levels()
    connection.execute(
        """
        INSERT INTO adaptation_states
        SELECT * FROM json_populate_recordset(NULL::adaptation_states, %s::json)
        """,
        (
            as_recordset(
                [
                    {
                        "tenant_id": change.tenant_id,
                        "version": change.version,
                        "weights": change.after,
                        "hash": heads[change.tenant_id],
                        "configuration": change.configuration,
                        "feedback_seq": 0,
                        **msgspec.structs.asdict(levels),
                        "reward_mean": 0.0,
                        "reward_variance": 0.0,
                        "recent_rewards": [],
                        "updated_at": now,
                    }
                    for change in last
                ]
            ),
        ),
    )
    return names
