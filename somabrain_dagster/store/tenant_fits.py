"""Weights of a tenant's own: a fit to what it labelled, kept whether or not it passed, and carried out if so.

A fit starts from what is promoted, as it is in the tenant's scales, and is judged on the tenant's feedback at
the promoted τ: a tenant's own τ follows the diversity of what it recalls, and is no part of the fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import nan
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from somabrain_dagster.learning.configuration import InvalidConfiguration, LearningConfiguration
from somabrain_dagster.learning.experiments import position
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.gated_fit import GAIN, GAIN_LOWER_BOUND, GatedFit, gated_fit
from somabrain_dagster.learning.gates import Gate, failed
from somabrain_dagster.learning.lesson import AUTO_ROLLBACK
from somabrain_dagster.learning.shifts import Shifts
from somabrain_dagster.learning.weights import RETRIEVAL, TAU, Nanos, to_nanos, to_units
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.changes import RESET, ROLLBACK, Change, append_changes
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.labelled_recalls import TEACHES, read_labelled
from somabrain_dagster.store.promotions import in_scales, lock_promotions, promoted
from somabrain_dagster.store.scales import read_scales

TENANT_FIT = "tenant_fit"
"""The cause of a change that carries out a fit."""


@dataclass(frozen=True)
class Share:
    """One share of the tenants, by the hash of their keys; of one share, all of them.

    Attributes:
        number: which one, from 0.
        of: how many there are.

    Raises:
        ValueError: there is no such share.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"shares are numbered from 0: there is no share {self.number} of {self.of}")

    def __contains__(self, tenant_id: str) -> bool:
        return int(position(TENANT_FIT, tenant_id) * self.of) == self.number


@dataclass(frozen=True, eq=False)
class TenantFit:
    """A tenant's own fit.

    Attributes:
        last_seq: the tenant's last feedback event that it looked at.
        first_seq: the first one that could teach.
        recalls: that taught.
        promotion_version: of what was promoted.
        scale_version: of the scales in which prior and weights are meant.
        prior: what is promoted, (K,) nano-units.
        weights: the fit where it was accepted, else the prior, (K,) nano-units.
        applied_version: of the tenant's weights that carried it out; None where nothing did.
    """

    tenant_id: str
    last_seq: int
    created_at: datetime
    first_seq: int
    recalls: int
    promotion_version: int
    scale_version: int
    prior: Nanos
    weights: Nanos
    accepted: bool
    gates: tuple[Gate, ...]
    applied_version: int | None

    @property
    def refusals(self) -> tuple[str, ...]:
        """Which gates failed, and by how much."""
        return tuple(str(gate) for gate in failed(self.gates))

    @property
    def gain(self) -> float:
        """In reciprocal rank over the prior, cross-validated; NaN where nothing was measured."""
        return self._measured(GAIN)

    @property
    def lower(self) -> float:
        """The one-sided bound of the gain; NaN where nothing was measured."""
        return self._measured(GAIN_LOWER_BOUND)

    def _measured(self, name: str) -> float:
        return next((gate.value for gate in self.gates if gate.name == name), nan)


_COLUMNS = (
    "tenant_id, last_seq, created_at, first_seq, recalls, promotion_version, scale_version, prior, weights, "
    "accepted, gates, applied_version"
)


def _stored(*row: Any) -> TenantFit:
    named = dict(zip(TenantFit.__dataclass_fields__, row, strict=True))
    return TenantFit(
        **named
        | {
            "prior": np.array(named["prior"], dtype=np.int64),
            "weights": np.array(named["weights"], dtype=np.int64),
            "gates": tuple(Gate.from_json(gate) for gate in named["gates"]),
        }
    )


def read_newest_fits(connection: Connection) -> list[TenantFit]:
    """Each tenant's newest fit, by tenant."""
    rows = connection.execute(
        f"SELECT DISTINCT ON (tenant_id) {_COLUMNS} FROM tenant_fits "  # noqa: S608 — constants
        "WHERE registry_version = %s ORDER BY tenant_id, last_seq DESC",
        (REGISTRY_VERSION,),
    )
    return [_stored(*row) for row in rows]


def count_fits(connection: Connection) -> int:
    """How many fits are kept."""
    (count,) = connection.execute("SELECT count(*) FROM tenant_fits").fetchone() or (0,)
    return int(count)


def read_applied_fits(connection: Connection) -> list[TenantFit]:
    """Every fit that a change of weights is said to have carried out."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tenant_fits "  # noqa: S608 — constants
        "WHERE applied_version IS NOT NULL ORDER BY tenant_id, last_seq"
    )
    return [_stored(*row) for row in rows]


def read_due(connection: Connection, events: int) -> list[str]:
    """The tenants of whom so many feedback events can teach that no fit of theirs has looked at."""
    rows = connection.execute(
        f"""
        SELECT s.tenant_id
        FROM adaptation_states s
        LEFT JOIN (
            SELECT tenant_id, max(last_seq) AS seq FROM tenant_fits GROUP BY tenant_id
        ) AS seen USING (tenant_id)
        CROSS JOIN LATERAL (
            SELECT count(*) AS events FROM feedback_events e
            WHERE e.tenant_id = s.tenant_id AND e.seq > coalesce(seen.seq, 0) AND {TEACHES["full"]}
        ) AS n
        WHERE s.feedback_seq >= coalesce(seen.seq, 0) + %(events)s AND n.events >= %(events)s
        """,  # noqa: S608 — all parts are constants
        {"events": events},
    )
    return sorted(tenant_id for (tenant_id,) in rows)


def fit_tenant(
    database: Database, tenant_id: str, configuration: LearningConfiguration, most: int
) -> TenantFit | None:
    """Fit one tenant's newest labelled recalls, and keep the fit, accepted or not.

    Args:
        database: the brain's.
        tenant_id: the tenant.
        configuration: the global learning configuration; the tenant's overrides are applied to it.
        most: feedback events that are learned from, the newest.

    Returns:
        The fit; None where there is nothing to fit, or another fit of the same position is kept already.

    Raises:
        InvalidConfiguration: the tenant's overrides cannot be.
    """
    with database.snapshot() as connection:
        (overrides, scale_version, last_seq) = (
            connection.execute(
                """
                SELECT t.overrides, t.scale_version, s.feedback_seq
                FROM tenants t JOIN adaptation_states s USING (tenant_id) WHERE t.tenant_id = %s
                """,
                (tenant_id,),
            ).fetchone()
            or ()
        )
        own = configuration.overridden(overrides)
        promotion = promoted(connection, configuration)
        prior = np.clip(
            in_scales(connection, configuration, promotion, scale_version), own.low_nanos, own.high_nanos
        )
        found = read_labelled(connection, [tenant_id], "full", read_scales(connection, scale_version), most)
    if not found.tenants:
        return None
    units = to_units(prior)
    if found.choices is None:
        made = GatedFit(units[RETRIEVAL], None, 0)
    else:
        low, high = to_units(own.low_nanos)[RETRIEVAL], to_units(own.high_nanos)[RETRIEVAL]
        made = gated_fit(found.choices, units[RETRIEVAL], float(units[TAU]), low, high)
    weights = prior.copy()
    if made.own:
        weights[RETRIEVAL] = np.clip(
            to_nanos(made.weights), own.low_nanos[RETRIEVAL], own.high_nanos[RETRIEVAL]
        )
    with database.as_operator() as connection:
        row = connection.execute(
            f"""
            INSERT INTO tenant_fits (
                tenant_id, last_seq, first_seq, recalls, promotion_version, registry_version, scale_version,
                prior, weights, accepted, gates
            ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT DO NOTHING RETURNING {_COLUMNS}
            """,  # noqa: S608 — the columns are a constant
            (
                tenant_id,
                last_seq,
                found.first_seqs[0],
                made.choices,
                promotion.version,
                REGISTRY_VERSION,
                scale_version,
                prior.tolist(),
                weights.tolist(),
                made.own,
                Jsonb([gate.to_json() for gate in made.gates]),
            ),
        ).fetchone()
    return None if row is None else _stored(*row)


def fit_tenants(
    database: Database,
    configuration: LearningConfiguration,
    *,
    events: int,
    most: int,
    share: Share = Share(),
) -> Iterator[TenantFit | tuple[str, str]]:
    """Fit every tenant of whom enough is new, one after the other.

    Args:
        database: the brain's.
        configuration: the global learning configuration.
        events: how many new feedback events that can teach make a fit due.
        most: as `fit_tenant` takes it.
        share: whose tenants. Another process may fit another share meanwhile.

    Yields:
        Each fit when it is kept, or a tenant and why it cannot be fitted.
    """
    with database.snapshot() as connection:
        due = [tenant_id for tenant_id in read_due(connection, events) if tenant_id in share]
    for tenant_id in due:
        try:
            fit = fit_tenant(database, tenant_id, configuration, most)
        except InvalidConfiguration as error:
            yield tenant_id, f"its overrides cannot be: {error}"
        else:
            if fit is not None:
                yield fit


def shift_of(weights: Nanos, configuration: LearningConfiguration) -> Shifts:
    """The clipped shift (K,) that carries out a fit: its retrieval weights, whatever came before.

    Between their bounds all other weights, τ among them, stay as they are.
    """
    low, high = configuration.low_nanos.copy(), configuration.high_nanos.copy()
    fixed = np.clip(weights, low, high)[RETRIEVAL]
    low[RETRIEVAL], high[RETRIEVAL] = fixed, fixed
    return Shifts(np.zeros_like(low), low, high)


def apply_fits(
    database: Database, configuration: LearningConfiguration, fits: Sequence[TenantFit]
) -> list[AdaptationState]:
    """Carry out accepted fits that nothing has carried out yet, each in a transaction of its own.

    One that was made from other promoted weights, or in other scales, than those in force is left alone, and
    so is one that somebody's rollback or reset, or the guard's, came after.

    Returns:
        The new states: publish them.
    """
    states = []
    for fit in fits:
        if fit.accepted and fit.applied_version is None:
            with database.as_operator() as connection:
                states += _apply(connection, configuration, fit)
    return states


def _apply(
    connection: Connection, configuration: LearningConfiguration, fit: TenantFit
) -> list[AdaptationState]:
    lock_promotions(connection)
    still = connection.execute(
        """
        SELECT FROM tenants t JOIN tenant_fits f USING (tenant_id)
        WHERE t.tenant_id = %(tenant)s AND t.scale_version = f.scale_version
            AND f.last_seq = %(seq)s AND f.applied_version IS NULL
        FOR NO KEY UPDATE
        """,
        {"tenant": fit.tenant_id, "seq": fit.last_seq},
    ).rowcount
    if not still or promoted(connection, configuration).version != fit.promotion_version:
        return []

    carried_out = False

    def change(_state: AdaptationState, own: LearningConfiguration) -> Change | None:
        nonlocal carried_out
        # Under the lock of the state: nobody rolls back in between.
        undone = connection.execute(
            """
            SELECT FROM weight_changes WHERE tenant_id = %s AND created_at > %s AND cause = ANY (%s) LIMIT 1
            """,
            (fit.tenant_id, fit.created_at, [ROLLBACK, RESET, AUTO_ROLLBACK]),
        ).rowcount
        carried_out = not undone
        return Change(TENANT_FIT, shift_of(fit.weights, own)) if carried_out else None

    states = append_changes(connection, [fit.tenant_id], configuration, change)
    if carried_out:
        connection.execute(
            "UPDATE tenant_fits SET applied_version = %s WHERE tenant_id = %s AND last_seq = %s",
            (states[0].version, fit.tenant_id, fit.last_seq),
        )
    return states
