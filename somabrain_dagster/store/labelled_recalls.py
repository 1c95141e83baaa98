"""Recalls that feedback labelled, as arrays: what weights for everybody and for one tenant are fitted to.

Two kinds, as the feedback says. `full`: it names the right memory, which could have been any. `bandit`: only
what was shown could be rewarded, so only a recall that was sampled counts, and what it showed first.

Where one recall is labelled twice, the last word counts. What a label is worth does not depend on the weights
under which the recall was made, so recalls under a neuromodulated τ or an experiment's arm teach like others
where the right memory is known. Of sampled ones, those of an arm are left out: what they earned is not what
the present policy earns, with which the log compares. A neuromodulated τ is in the logged propensities, and
importance weights are right with it. A recall that weighed a memory which is forgotten now teaches nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning.choices import Choices, Integers
from somabrain_dagster.learning.features import FEATURES, REGISTRY_VERSION, Floats
from somabrain_dagster.learning.half_life import RECENCY
from somabrain_dagster.learning.offpolicy import Log
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.proposal import Label
from somabrain_dagster.store.arrays import bigints
from somabrain_dagster.store.binary import sent_bigints, sent_floats
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.scales import read_scales

MOST_POOLED = 20_000
"""Recalls of all tenants together that are held in memory: with 72 candidates each, 100 MB and copies."""


@dataclass(frozen=True, eq=False)
class LabelledRecalls:
    """N recalls of T tenants with M candidates in all, by tenant and time.

    Attributes:
        choices: the candidates, their features over the scales that were asked for; `chosen` is the right
            memory (full) or what was shown first (bandit), ω is 1, `tenant` a position in `tenants`. None
            where there are no recalls.
        ages: of the candidates, in seconds, shape (M,).
        policy: the logged propensities, shape (M,).
        reward: of the feedback, shape (N,).
        recall_ids: shape (N,).
        tenants: that labelled anything, in order.
        first_seqs: of each tenant, its own number of the first feedback event that was looked at, (T,).
        forgotten: recalls that were left out because a memory that they weighed is gone.
        untold: that were left out because they say nothing, or are gone themselves.
    """

    choices: Choices | None
    ages: Floats
    policy: Floats
    reward: Floats
    recall_ids: Integers
    tenants: list[str]
    first_seqs: list[int]
    forgotten: int
    untold: int

    @property
    def counts(self) -> list[int]:
        """How many recalls each tenant has here, (T,)."""
        if self.choices is None:
            return [0] * len(self.tenants)
        counted: list[int] = np.bincount(self.choices.tenant, minlength=len(self.tenants)).tolist()
        return counted

    def log(self) -> Log:
        """The recalls as a log of what was shown, for `bandit` ones.

        Raises:
            ValueError: there are none.
        """
        if self.choices is None:
            raise ValueError("there are no sampled recalls that were rewarded")
        return Log(self.choices, self.policy, self.reward)


TEACHES: dict[Label, str] = {
    "full": "label = 'full' AND recall_id IS NOT NULL AND helpful IS NOT NULL",
    "bandit": "label = 'bandit' AND recall_id IS NOT NULL",
}
"""Which feedback events can teach, as a condition on their columns."""

_CHOSEN: dict[Label, str] = {
    "full": """
        (SELECT (entry ->> 'memory')::bigint
         FROM jsonb_array_elements(e.helpful) WITH ORDINALITY AS named (entry, place)
         WHERE (entry ->> 'credit')::float8 > 0 ORDER BY place LIMIT 1)
    """,
    "bandit": "CASE WHEN r.mode = 'sample' AND r.arm IS NULL THEN r.hits[1] END",
}


def _query(label: Label) -> str:
    """The newest events of a tenant, beside their recalls; nulls where there is nothing to choose."""
    return f"""
        SELECT
            e.seq, r.recall_id, r.scale_version, extract(epoch FROM r.occurred_at)::float8,
            array_position(r.candidate_ids, {_CHOSEN[label]}) - 1, cardinality(r.candidate_ids), e.reward,
            array_send(r.candidate_ids), array_send(r.features), array_send(r.propensities)
        FROM (
            SELECT DISTINCT ON (recall_id) recall_id, seq, helpful, coalesce(reward, utility) AS reward
            FROM (
                SELECT * FROM feedback_events WHERE tenant_id = %(tenant)s AND {TEACHES[label]}
                ORDER BY seq DESC LIMIT %(most)s
            ) AS newest
            ORDER BY recall_id, seq DESC
        ) AS e
        LEFT JOIN recalls r
            ON r.tenant_id = %(tenant)s AND r.recall_id = e.recall_id AND r.registry_version = %(registry)s
        ORDER BY r.occurred_at, r.recall_id
    """  # noqa: S608 — all parts are constants


def read_teachers(connection: Connection, label: Label) -> list[str]:
    """The tenants that labelled any recall so, in order."""
    rows = connection.execute(
        f"""
        SELECT tenant_id FROM adaptation_states s
        WHERE feedback_seq > 0 AND EXISTS (
            SELECT FROM feedback_events e WHERE e.tenant_id = s.tenant_id AND {TEACHES[label]}
        )
        """  # noqa: S608 — all parts are constants
    )
    return sorted(tenant_id for (tenant_id,) in rows)


def read_labelled(
    connection: Connection, tenants: Sequence[str], label: Label, scales: Scales, most: int
) -> LabelledRecalls:
    """Read the newest labelled recalls of tenants, each tenant's in the order of time.

    Args:
        connection: a snapshot.
        tenants: whose.
        label: of the feedback.
        scales: what the features are to be divided by, whatever they were logged over.
        most: feedback events of each tenant that are looked at, the newest; fewer where all tenants together
            would exceed `MOST_POOLED`.

    Raises:
        UnknownScales: a recall names scales that are not there.
    """
    most = max(1, min(most, MOST_POOLED // max(len(tenants), 1)))
    known = {scales.version: scales}
    parts: list[_Part] = []
    names: list[str] = []
    first_seqs: list[int] = []
    forgotten, untold = 0, 0
    for tenant_id in tenants:
        rows = connection.execute(
            _query(label).encode(),
            {"tenant": tenant_id, "label": label, "most": most, "registry": REGISTRY_VERSION},
            binary=True,
        ).fetchall()
        if not rows:
            continue
        telling = [row for row in rows if row[4] is not None]
        untold += len(rows) - len(telling)
        part = _part(connection, tenant_id, len(names), telling)
        names.append(tenant_id)
        first_seqs.append(min(row[0] for row in rows))
        forgotten += part.forgotten
        for version in part.versions - known.keys():
            known[version] = read_scales(connection, version)
        if len(part.lengths):
            parts.append(part)
    if not parts:
        nothing = np.zeros(0)
        empty = np.zeros(0, dtype=np.int64)
        return LabelledRecalls(None, nothing, nothing, nothing, empty, names, first_seqs, forgotten, untold)
    lengths = np.concatenate([part.lengths for part in parts])
    choices = Choices(
        np.concatenate([part.over(scales, known) for part in parts]),
        lengths,
        np.concatenate([part.chosen for part in parts]),
        np.ones(len(lengths)),
        np.concatenate([np.full(len(part.lengths), part.tenant) for part in parts]),
    )
    return LabelledRecalls(
        choices,
        np.concatenate([part.ages for part in parts]),
        np.concatenate([part.policy for part in parts]),
        np.concatenate([part.reward for part in parts]),
        np.concatenate([part.recall_ids for part in parts]),
        names,
        first_seqs,
        forgotten,
        untold,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """One tenant's recalls, as logged."""

    tenant: int
    recall_ids: Integers
    lengths: Integers
    chosen: Integers
    reward: Floats
    scale_versions: Integers
    features: Floats
    policy: Floats
    ages: Floats
    forgotten: int

    @property
    def versions(self) -> set[int]:
        """Of the scales that the features were logged over."""
        return set(self.scale_versions.tolist())

    def over(self, scales: Scales, known: dict[int, Scales]) -> Floats:
        """The features over these scales: z · old/new; recency at another half-life is made from the age."""
        new = np.array(scales.values)
        features = self.features
        of_candidates = np.repeat(self.scale_versions, self.lengths)
        for version in self.versions - {scales.version}:
            old, rows = known[version], of_candidates == version
            features[rows] *= np.array(old.values) / new
            if old.half_life_seconds != scales.half_life_seconds:
                features[rows, RECENCY] = np.exp2(-self.ages[rows] / scales.half_life_seconds) / new[RECENCY]
        return features


def _part(connection: Connection, tenant_id: str, tenant: int, rows: Sequence[tuple[Any, ...]]) -> _Part:
    lengths = np.array([row[5] for row in rows], dtype=np.int64)
    asked_at = np.array([row[3] for row in rows], dtype=np.float64)
    candidates = sent_bigints(row[7] for row in rows)
    remembered_at = _remembered_at(connection, tenant_id, candidates)
    gone = np.isnan(remembered_at)
    whole = np.ones(len(rows), dtype=np.bool_)
    whole[np.repeat(np.arange(len(rows)), lengths)[gone]] = False
    kept = np.repeat(whole, lengths)

    def of_recalls(column: int, kind: Any) -> NDArray[Any]:
        return np.array([row[column] for row in rows], dtype=kind)[whole]

    return _Part(
        tenant=tenant,
        recall_ids=of_recalls(1, np.int64),
        lengths=lengths[whole],
        chosen=of_recalls(4, np.int64),
        reward=of_recalls(6, np.float64),
        scale_versions=of_recalls(2, np.int64),
        features=sent_floats(row[8] for row in rows).reshape(-1, len(FEATURES))[kept],
        policy=sent_floats(row[9] for row in rows)[kept],
        ages=(np.repeat(asked_at, lengths) - remembered_at)[kept],
        forgotten=int((~whole).sum()),
    )


def _remembered_at(connection: Connection, tenant_id: str, memory_ids: NDArray[np.int64]) -> Floats:
    """When each memory occurred, in seconds since 1970, shape (M,); NaN for one that is gone."""
    distinct, places = np.unique(memory_ids, return_inverse=True)
    rows = connection.execute(
        """
        SELECT memory_id, extract(epoch FROM occurred_at)::float8
        FROM memories WHERE tenant_id = %s AND memory_id = ANY (%s)
        """,
        (tenant_id, bigints(distinct)),
        binary=True,
    ).fetchall()
    times = np.full(len(distinct), np.nan)
    if rows:
        found = np.array([row[0] for row in rows], dtype=np.int64)
        times[np.searchsorted(distinct, found)] = [row[1] for row in rows]
    return np.asarray(times[places])
