"""Proposals: when one is due, what it is made from, and the row that keeps it, accepted or refused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.gates import Gate, failed, number_to_json
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.proposal import (
    NOT_STORED,
    Label,
    Proposal,
    from_answers,
    from_rewards,
    refused,
)
from somabrain_dagster.learning.weights import NAMES, Nanos
from somabrain_dagster.store.adaptation import read_configurations, remember_configurations
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.labelled_recalls import (
    TEACHES,
    LabelledRecalls,
    read_labelled,
    read_teachers,
)
from somabrain_dagster.store.positions import Head, read_heads
from somabrain_dagster.store.promotions import lock_promotions, promoted, promoted_scales
from somabrain_dagster.store.scales import add_next_scales, read_scales
from somabrain_dagster.store.trends import read_falling
from somabrain_dagster.store.trials import TrialRunning, lock_trials, require_no_trial

LABELS: tuple[Label, ...] = ("full", "bandit")
"""In the order of preference: where the right memory is known, nothing has to be estimated."""


@dataclass(frozen=True)
class Due:
    """A proposal that should be made.

    Attributes:
        label: of the feedback that it is to learn from.
        reason: in words.
        falling: tenants whose trend asks for it.
    """

    label: Label
    reason: str
    falling: tuple[str, ...]


@dataclass(frozen=True)
class NotDue:
    """Why no proposal is made now, in words."""

    reason: str


def due(connection: Connection, events: int) -> Due | NotDue:
    """Whether a proposal is due, and nothing is on trial.

    What a proposal has looked at is kept with it, tenant by tenant, so the same position of the log asks for
    nothing twice.

    Args:
        connection: an operator's transaction or a snapshot.
        events: how many feedback events with a label must have landed since the last proposal from it.
    """
    try:
        require_no_trial(connection)
    except TrialRunning as running:
        return NotDue(str(running))
    new = {label: _unseen(connection, label) for label in LABELS}
    falling = tuple(read_falling(connection))
    for label in LABELS:
        if new[label] >= events:
            return Due(label, f"{new[label]:,} new feedback events with label {label}", falling)
    if falling:
        label = "full" if new["full"] >= new["bandit"] else "bandit"
        return Due(label, f"the utility of {len(falling)} tenants falls, {falling[0]} among them", falling)
    told = " and ".join(f"{new[label]:,} with label {label}" for label in LABELS)
    return NotDue(f"{told} since the last proposals from them, where {events:,} of either are asked for")


def _unseen(connection: Connection, label: Label) -> int:
    """How many events with a label no proposal from that label has looked at."""
    row = connection.execute(
        f"""
        SELECT coalesce(sum(n.events), 0)
        FROM adaptation_states s
        LEFT JOIN (
            SELECT t.tenant_id, max(t.last_seq) AS seq
            FROM proposal_tenants t JOIN parameter_proposals p USING (proposal_id)
            WHERE p.label = %(label)s GROUP BY t.tenant_id
        ) AS seen USING (tenant_id)
        CROSS JOIN LATERAL (
            SELECT count(*) AS events FROM feedback_events e
            WHERE e.tenant_id = s.tenant_id AND e.seq > coalesce(seen.seq, 0) AND {TEACHES[label]}
        ) AS n
        WHERE s.feedback_seq > coalesce(seen.seq, 0)
        """,  # noqa: S608 — all parts are constants
        {"label": label},
    ).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, eq=False)
class StoredProposal:
    """A proposal as it is kept.

    Attributes:
        reason: why it was made.
        promotion_version: of what was promoted when it was made: it speaks of nothing else.
        before, weights: (K,) nano-units, both in the scales `to_scales`.
        from_scales: in which the promoted weights were meant.
        first_recall_id, last_recall_id: that it learned from; 0 where it learned from none of this brain's.
        fit: diagnostics, as JSON.
    """

    proposal_id: int
    created_at: datetime
    reason: str
    label: Label
    promotion_version: int
    registry_version: int
    configuration: bytes
    from_scales: int
    to_scales: int
    before: Nanos
    weights: Nanos
    recalls: int
    first_recall_id: int
    last_recall_id: int
    accepted: bool
    gates: tuple[Gate, ...]
    fit: dict[str, Any]

    @property
    def shift(self) -> Nanos:
        """What a tenant's weights are shifted by, in the scales `to_scales`."""
        return self.weights - self.before

    @property
    def refusals(self) -> tuple[str, ...]:
        """Which gates failed, and by how much."""
        return tuple(str(gate) for gate in failed(self.gates))


_COLUMNS = (
    "proposal_id, created_at, reason, label, promotion_version, registry_version, configuration, "
    "from_scales, to_scales, before, weights, recalls, first_recall_id, last_recall_id, accepted, gates, fit"
)


def _stored(*row: Any) -> StoredProposal:
    named = dict(zip(StoredProposal.__dataclass_fields__, row, strict=True))
    return StoredProposal(
        **named
        | {
            "before": np.array(named["before"], dtype=np.int64),
            "weights": np.array(named["weights"], dtype=np.int64),
            "gates": tuple(Gate.from_json(gate) for gate in named["gates"]),
        }
    )


def read_proposals(connection: Connection, most: int = 20) -> list[StoredProposal]:
    """The newest proposals, the newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM parameter_proposals "  # noqa: S608 — the columns are a constant
        "WHERE registry_version = %s ORDER BY proposal_id DESC LIMIT %s",
        (REGISTRY_VERSION, most),
    )
    return [_stored(*row) for row in rows]


def count_proposals(connection: Connection) -> int:
    """How many proposals are kept."""
    (count,) = connection.execute("SELECT count(*) FROM parameter_proposals").fetchone() or (0,)
    return int(count)


def proposal_problems(connection: Connection) -> list[str]:
    """What is wrong with accepted proposals, in words: nothing that is stored as a verdict is trusted."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM parameter_proposals "  # noqa: S608 — the columns are a constant
        "WHERE accepted AND registry_version = %s ORDER BY proposal_id",
        (REGISTRY_VERSION,),
    )
    known = read_configurations(connection)
    problems = []
    for proposal in (_stored(*row) for row in rows):
        name = f"proposal {proposal.proposal_id}"
        problems += [f"{name}: {refusal}" for refusal in proposal.refusals]
        if not proposal.gates:
            problems.append(f"{name} has no gates")
        bounds = known[proposal.configuration]
        low, high = bounds.low_nanos, bounds.high_nanos
        outside = (proposal.weights < low) | (proposal.weights > high)
        problems += [
            f"{name}: {NAMES[place]} is {proposal.weights[place]} nano-units, outside "
            f"[{low[place]}, {high[place]}]"
            for place in np.flatnonzero(outside).tolist()
        ]
    return problems


class UnknownProposal(LookupError):
    """There is no such proposal."""


def read_proposal(connection: Connection, proposal_id: int) -> StoredProposal:
    """One proposal.

    Raises:
        UnknownProposal: there is none with this id.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM parameter_proposals WHERE proposal_id = %s",  # noqa: S608 — a constant
        (proposal_id,),
    ).fetchone()
    if row is None:
        raise UnknownProposal(f"there is no proposal {proposal_id}")
    return _stored(*row)


@dataclass(frozen=True)
class Look:
    """What a proposal has looked at: a tenant's feedback events by number, and the recalls that taught."""

    tenant_id: str
    first_seq: int
    last_seq: int
    recalls: int


def insert_proposal(
    connection: Connection,
    proposal: Proposal,
    configuration: LearningConfiguration,
    *,
    reason: str,
    promotion_version: int,
    from_scales: int,
    measured_from: str,
    looks: Sequence[Look] = (),
    recall_ids: tuple[int, int] = (0, 0),
    also: dict[str, Any] | None = None,
) -> StoredProposal:
    """Keep a proposal, and its scales where they are new.

    Args:
        connection: an operator's transaction that holds `lock_trials` and `lock_promotions`.
        proposal: accepted or refused.
        configuration: under which it was made.
        reason: why it was made.
        promotion_version: what it was compared with.
        from_scales: in which that was meant.
        measured_from: on what new scales were measured, for a person.
        looks: what it looked at.
        recall_ids: the first and the last recall that it learned from.
        also: what else belongs to its diagnostics, as JSON.
    """
    scales = proposal.scales
    if scales.version == NOT_STORED:
        scales = add_next_scales(connection, scales, measured_from)
    remember_configurations(connection, [configuration])
    (row,) = connection.execute(
        f"""
        INSERT INTO parameter_proposals (
            reason, label, promotion_version, registry_version, configuration, from_scales, to_scales,
            before, weights, recalls, first_recall_id, last_recall_id, accepted, gates, fit
        ) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING {_COLUMNS}
        """,  # noqa: S608 — the columns are a constant
        (
            reason,
            proposal.label,
            promotion_version,
            REGISTRY_VERSION,
            bytes.fromhex(configuration.digest),
            from_scales,
            scales.version,
            proposal.before.tolist(),
            proposal.weights.tolist(),
            proposal.recalls,
            *recall_ids,
            proposal.accepted,
            Jsonb([gate.to_json() for gate in proposal.gates]),
            Jsonb(_numbers(asdict(proposal.diagnostics)) | (also or {})),
        ),
    ).fetchall()
    stored = _stored(*row)
    connection.execute(
        """
        INSERT INTO proposal_tenants (tenant_id, proposal_id, first_seq, last_seq, recalls)
        SELECT *
        FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
        """,
        (
            [look.tenant_id for look in looks],
            [stored.proposal_id] * len(looks),
            [look.first_seq for look in looks],
            [look.last_seq for look in looks],
            [look.recalls for look in looks],
        ),
    )
    return stored


def _numbers(value: Any) -> Any:
    """A tree of diagnostics as JSON keeps it."""
    if isinstance(value, dict):
        return {str(name): _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(entry) for entry in value]
    return number_to_json(value) if isinstance(value, float) else value


def propose(
    database: Database,
    configuration: LearningConfiguration,
    *,
    events: int,
    most: int,
    half_lives: Sequence[float] | None = None,
) -> StoredProposal | NotDue:
    """Make a proposal if one is due, and keep it, accepted or refused.

    What is read is of one instant. When the proposal is kept, what is on trial and what is promoted are read
    again, under their locks: if either has changed meanwhile nothing is kept, and it is still due.

    Args:
        database: the brain's.
        configuration: the global learning configuration.
        events: how many new labelled feedback events make a proposal due.
        most: feedback events of each tenant that are learned from, the newest.
        half_lives: as `from_answers` takes them.
    """
    with database.snapshot() as connection:
        asked = due(connection, events)
        if isinstance(asked, NotDue):
            return asked
        promotion = promoted(connection, configuration)
        scales = read_scales(connection, promoted_scales(connection))
        heads = read_heads(connection)
        teachers = read_teachers(connection, asked.label)
        found = read_labelled(connection, teachers, asked.label, scales, most)
        (seen,) = connection.execute("SELECT max(proposal_id) FROM parameter_proposals").fetchone() or (None,)
    made = _made(asked.label, found, promotion.weights, scales, configuration, half_lives)
    with database.as_operator() as connection:
        lock_trials(connection)
        lock_promotions(connection)
        try:
            require_no_trial(connection)
        except TrialRunning as running:
            return NotDue(str(running))
        if promoted(connection, configuration).version != promotion.version:
            return NotDue("other weights were promoted meanwhile: a proposal is made for those next time")
        newest = connection.execute("SELECT max(proposal_id) FROM parameter_proposals").fetchone()
        if newest != (seen,):
            return NotDue(f"proposal {newest and newest[0]} was made meanwhile")
        return insert_proposal(
            connection,
            made,
            configuration,
            reason=asked.reason,
            promotion_version=promotion.version,
            from_scales=scales.version,
            measured_from=f"{made.recalls:,} labelled recalls by {made.diagnostics.tenants} tenants, with "
            f"which a half-life of {made.scales.half_life_seconds:g} s was proposed",
            looks=_looks(heads, found, asked.falling),
            recall_ids=(int(found.recall_ids.min()), int(found.recall_ids.max())) if made.recalls else (0, 0),
            also={
                "forgotten": found.forgotten,
                "untold": found.untold,
                "half_life_seconds": made.scales.half_life_seconds,
            },
        )


def _made(
    label: Label,
    found: LabelledRecalls,
    weights: Nanos,
    scales: Scales,
    configuration: LearningConfiguration,
    half_lives: Sequence[float] | None,
) -> Proposal:
    if found.choices is None:
        return refused(label, None, weights, scales, configuration)
    if label == "full":
        return from_answers(found.choices, found.ages, weights, scales, configuration, half_lives)
    return from_rewards(found.log(), weights, scales, configuration)


def _looks(heads: Sequence[Head], found: LabelledRecalls, falling: Sequence[str]) -> list[Look]:
    """Everything up to the heads was looked at, of those that labelled something or whose trend asked."""
    at = {head.tenant_id: head.feedback_seq for head in heads}
    looks = [
        Look(tenant_id, first, at[tenant_id], recalls)
        for tenant_id, first, recalls in zip(found.tenants, found.first_seqs, found.counts, strict=True)
    ]
    return [*looks, *(Look(name, at[name], at[name], 0) for name in falling if name not in found.tenants)]
