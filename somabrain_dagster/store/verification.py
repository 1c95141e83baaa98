"""Two proofs about a tenant's weights, the chain that holds the log together, and the seals of what is gone.

Replay: the fold of the stored shifts equals the live state. Rederivation: each stored shift is what the
rule makes of its event, its logged recall, its recorded neuromodulators and the configuration that it names.
Replay alone would be content with a log that was forged from end to end. All comparisons are exact.

Replay speaks of the whole log, which is never pruned. Rederivation speaks of the events and recalls that are
kept. An event that is gone must be within a seal, and the seal must be the one that the digests in the log
give: so of pruned feedback it stays proven which it was, though no longer what it said.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import dict_row

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import FEATURES, Floats
from somabrain_dagster.learning.gates import failed
from somabrain_dagster.learning.guard import first_trip, to_micros
from somabrain_dagster.learning.lesson import (
    AUTO_ROLLBACK,
    CONFIGURATION,
    FEEDBACK,
    Experience,
    event_shifts,
)
from somabrain_dagster.learning.neuromodulators import Trace, hold, trace_steps
from somabrain_dagster.learning.policy import Scales, rescaled
from somabrain_dagster.learning.replay import Log, Replaying
from somabrain_dagster.learning.shifts import Shifts, constant
from somabrain_dagster.learning.weights import NAMES, WEIGHTS, Nanos
from somabrain_dagster.store.adaptation import (
    ADOPTION,
    START,
    AdaptationState,
)
from somabrain_dagster.store.audit import SYSTEM
from somabrain_dagster.store.binary import BLOCK_ROWS, Kind, read_columns
from somabrain_dagster.store.changes import RESET, ROLLBACK, SCALES
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.feedback_contract import Helpful
from somabrain_dagster.store.frames import microseconds
from somabrain_dagster.store.landing import credited_signals, event_digest, logged_recall
from somabrain_dagster.store.log_reading import Column, LogReader
from somabrain_dagster.store.partition_seals import Seal, read_seals, root_of, root_of_seals, within_seals
from somabrain_dagster.store.positions import Head
from somabrain_dagster.store.promotions import (
    PROMOTION,
    PROMOTION_ROLLBACK,
    Promotion,
    read_promotions,
)
from somabrain_dagster.store.retention import PRUNED
from somabrain_dagster.store.scales import FIRST_SCALES, list_scales, read_scale_versions
from somabrain_dagster.store.steering import DIVERSITY
from somabrain_dagster.store.step_proof import step_problems
from somabrain_dagster.store.tenant_fits import TENANT_FIT, TenantFit, read_applied_fits, shift_of
from somabrain_dagster.store.weight_log import START_HASH

Integers = NDArray[np.int64]

REPLAY = "replay equals live"
REDERIVATION = "every shift is rederived from its event"
GAPS = "versions have no gap"
CHAIN = "the hash chain is intact"
BOUNDS = "weights are within their bounds"
SEALS = "what was pruned is what its seals say"
CLAIMS = (REPLAY, REDERIVATION, GAPS, CHAIN, BOUNDS, SEALS)

_CAUSES = (
    START,
    FEEDBACK,
    CONFIGURATION,
    AUTO_ROLLBACK,
    ROLLBACK,
    RESET,
    PROMOTION,
    DIVERSITY,
    SCALES,
    ADOPTION,
    PROMOTION_ROLLBACK,
    TENANT_FIT,
)
_NAMING_SCALES = (START, SCALES, ADOPTION, PROMOTION_ROLLBACK)
_K = len(WEIGHTS)


@dataclass(frozen=True)
class Finding:
    """Something that does not hold.

    Attributes:
        claim: which of the claims of this module it contradicts.
        version: of the change that it is about; None if it is about the live state.
        message: what is wrong, in words.
    """

    claim: str
    tenant_id: str
    version: int | None
    message: str

    def __str__(self) -> str:
        where = "live state" if self.version is None else f"version {self.version}"
        return f"{self.tenant_id}, {where}: {self.message}"


@dataclass(frozen=True, eq=False)
class WeightLog:
    """The whole log as arrays, sorted by tenant and version, with the live states of the same instant.

    Attributes:
        tenants: (T,) in the order of the rows.
        log: the changes, with the bounds that each clips to.
        causes: (N,) positions in the known causes, −1 for an unknown one.
        explicit: (N,) whether the row stores its bounds itself.
        configurations: (N,) positions in `known`, −1 for one that is not stored.
        known: the stored configurations.
        event_seqs: (N,) 0 where the change answers no event.
        event_digests: (N,) of the event that the change answers.
        restored: (N,) −1 where the change restores no version.
        promotions: (N,) 0 where the change carries out no promotion.
        promoted: the promotions by version.
        named_scales: (N,) the scales that the row names, 0 where it names none.
        scales: by version.
        scale_versions: (T,) the scales that each tenant's recalls use.
        fits: of tenants to their own feedback, by tenant and the version that carried them out.
        seals: of feedback that was pruned, or is about to be.
        sealed: (N,) positions in the seals of the event that the change answers, −1 where it is not sealed.
        states: (T,) the live states.
    """

    tenants: list[str]
    log: Log
    causes: Integers
    explicit: NDArray[np.bool_]
    configurations: Integers
    known: list[LearningConfiguration]
    event_seqs: Integers
    event_digests: NDArray[np.void]
    restored: Integers
    promotions: Integers
    promoted: Mapping[int, Promotion]
    named_scales: Integers
    scales: Mapping[int, Scales]
    scale_versions: Integers
    fits: Mapping[tuple[str, int], TenantFit]
    seals: list[Seal]
    sealed: Integers
    states: list[AdaptationState]

    @property
    def heads(self) -> list[Head]:
        """Where the logs were at the instant of the reading, by tenant."""
        return [
            Head(state.tenant_id, state.version, state.hash, state.feedback_seq, state.updated_at)
            for state in sorted(self.states, key=lambda state: state.tenant_id)
        ]

    @property
    def owners(self) -> NDArray[np.intp]:
        """(N,) the position of each row's tenant."""
        return np.repeat(np.arange(len(self.tenants)), self.log.lengths)

    @property
    def first_rows(self) -> NDArray[np.intp]:
        """(T,) each tenant's row of version 0."""
        return np.cumsum(self.log.lengths) - self.log.lengths

    def scales_at(self, row: int) -> int:
        """The version of the scales in which the weights after this row are meant."""
        first = int(self.first_rows[self._owner(row)])
        named = np.flatnonzero(self.named_scales[first : row + 1])
        return int(self.named_scales[first + named[-1]]) if len(named) else FIRST_SCALES

    def tenant_of(self, row: int) -> str:
        """Whose change it is."""
        return self.tenants[self._owner(row)]

    def _owner(self, row: int) -> int:
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1


_ANSWERS: Mapping[str, Column] = {
    "landed": Column(sql.SQL("c.created_at"), "timestamptz"),
    "cause": Column(
        sql.SQL("coalesce(array_position({}, c.cause), 0) - 1").format(sql.Literal(list(_CAUSES))), "int4"
    ),
    "event_seq": Column(sql.SQL("coalesce(c.event_seq, 0)"), "int8"),
    "event_digest": Column(sql.SQL("coalesce(c.event_digest, {})").format(sql.Literal(bytes(32))), "digest"),
    "restored": Column(sql.SQL("coalesce(c.restored_version, -1)"), "int8"),
    "promotion": Column(sql.SQL("coalesce(c.promotion, 0)"), "int8"),
    "scales": Column(sql.SQL("coalesce(c.scale_version, 0)"), "int8"),
}


def read_log(connection: Connection) -> WeightLog:
    """Read the log and the live states.

    Args:
        connection: a snapshot, so that both are of one instant.
    """
    reader = LogReader.of(connection)
    log, columns = reader.whole(_ANSWERS)
    tenants = [state.tenant_id for state in reader.states]
    seals = read_seals(connection, "feedback_events")
    return WeightLog(
        tenants=tenants,
        log=log,
        causes=columns["cause"],
        explicit=columns["explicit"],
        configurations=columns["configuration"],
        known=list(reader.configurations.values()),
        event_seqs=columns["event_seq"],
        event_digests=columns["event_digest"],
        restored=columns["restored"],
        promotions=columns["promotion"],
        promoted={promotion.version: promotion for promotion in read_promotions(connection)},
        named_scales=columns["scales"],
        scales={known.scales.version: known.scales for known in list_scales(connection)},
        scale_versions=np.array(read_scale_versions(connection, tenants), dtype=np.int64),
        fits={(fit.tenant_id, fit.applied_version or 0): fit for fit in read_applied_fits(connection)},
        seals=seals,
        sealed=_sealed(seals, tenants, reader.lengths, columns["landed"], columns["event_seq"]),
        states=reader.states,
    )


def _sealed(
    seals: Sequence[Seal], tenants: Sequence[str], lengths: Integers, landed: Integers, event_seqs: Integers
) -> Integers:
    """Which seal holds the event of each change: an event and its change land at one instant."""
    sealed = np.full(len(landed), -1, dtype=np.int64)
    ends = np.cumsum(lengths)
    rows_of = {
        tenant: slice(end - length, end)
        for tenant, end, length in zip(tenants, ends.tolist(), lengths.tolist(), strict=True)
    }
    for position, seal in enumerate(seals):
        own = rows_of.get(seal.tenant_id, slice(0))
        within = (landed[own] >= microseconds(seal.begins)) & (landed[own] < microseconds(seal.ends))
        sealed[own][within & (event_seqs[own] > 0)] = position
    return sealed


def replay_findings(log: WeightLog) -> Iterator[Finding]:
    """Where the log contradicts itself or the live state."""
    return _replayed(log.log.blocks(BLOCK_ROWS), log.states)


def folded_findings(connection: Connection) -> Iterator[Finding]:
    """The same, of a log of any length: no more than a block of it is held at once.

    Args:
        connection: a snapshot.
    """
    reader = LogReader.of(connection)
    return _replayed((block for block, _ in reader.blocks()), reader.states)


def _replayed(blocks: Iterable[Log], states: Sequence[AdaptationState]) -> Iterator[Finding]:
    replaying = Replaying(len(states), _K)
    for block in blocks:
        gaps, wrong = replaying.add(block)
        ends = np.cumsum(block.lengths)
        for claim, message, rows in (
            (GAPS, "this version does not follow the one before", gaps),
            (REPLAY, "the weights after it are not the weights before it, shifted and clipped", wrong),
        ):
            owners = np.searchsorted(ends, rows, side="right").tolist()
            for owner, version in zip(owners, block.versions[rows].tolist(), strict=True):
                yield Finding(claim, states[owner].tenant_id, version, message)
    yield from _differing(states, replaying)


def _differing(states: Sequence[AdaptationState], replaying: Replaying) -> Iterator[Finding]:
    for state, folded, length in zip(
        states, replaying.weights.tolist(), replaying.lengths.tolist(), strict=True
    ):
        if state.version != length - 1:
            yield Finding(
                REPLAY, state.tenant_id, None, f"is at version {state.version}, the log at {length - 1}"
            )
        for name, live, replayed in zip(NAMES, state.weights.tolist(), folded, strict=True):
            if live != replayed:
                yield Finding(
                    REPLAY,
                    state.tenant_id,
                    None,
                    f"{name} is {live} nano-units, the replay gives {replayed} ({live - replayed:+d})",
                )


def bounds_findings(log: WeightLog) -> Iterator[Finding]:
    """Live weights outside the bounds of the configuration in force."""
    by_digest = {bytes.fromhex(configuration.digest): configuration for configuration in log.known}
    for state in log.states:
        configuration = by_digest.get(state.configuration)
        if configuration is None:
            yield Finding(BOUNDS, state.tenant_id, None, "its configuration is not stored")
            continue
        outside = (state.weights < configuration.low_nanos) | (state.weights > configuration.high_nanos)
        for position in np.flatnonzero(outside).tolist():
            yield Finding(
                BOUNDS,
                state.tenant_id,
                None,
                f"{NAMES[position]} is {int(state.weights[position])} nano-units, outside "
                f"[{configuration.low_nanos[position]}, {configuration.high_nanos[position]}]",
            )


def chain_findings(connection: Connection) -> Iterator[Finding]:
    """Rows whose hash is not that of their columns and the row before, and states that are not at the end.

    Of a tenant's rows only the first bad one is named: those behind it hang on it.
    """
    rows = connection.execute(
        """
        SELECT tenant_id, min(version)
        FROM (
            SELECT
                c.tenant_id, c.version, c.hash = weight_change_hash(
                    coalesce(lag(c.hash) OVER (PARTITION BY c.tenant_id ORDER BY c.version), %s), c
                ) AS intact
            FROM weight_changes c
        ) AS checked
        WHERE NOT intact GROUP BY tenant_id ORDER BY tenant_id
        """,
        (START_HASH,),
    )
    for tenant_id, version in rows:
        yield Finding(CHAIN, tenant_id, version, "the hash is not that of this row after the one before")
    heads = connection.execute(
        """
        SELECT s.tenant_id FROM adaptation_states s
        LEFT JOIN weight_changes c ON c.tenant_id = s.tenant_id AND c.version = s.version
        WHERE c.hash IS DISTINCT FROM s.hash ORDER BY s.tenant_id
        """
    )
    for (tenant_id,) in heads:
        yield Finding(CHAIN, tenant_id, None, "its hash is not that of its last change")


@dataclass(frozen=True, eq=False)
class _Events:
    """The feedback events that are there, sorted by tenant and seq; whether the recall is, too, of each."""

    tenants: Integers
    seqs: Integers
    utility: Floats
    reward: Floats
    recall_ids: Integers
    named: NDArray[np.bool_]
    recalled: NDArray[np.bool_]
    signals: Floats
    recorded: Floats
    digests: NDArray[np.void]


_LEVELS = (
    "delta",
    "dopamine",
    "serotonin",
    "noradrenaline",
    "acetylcholine",
    "reward_mean",
    "reward_variance",
)
_DOPAMINE, _MEAN, _VARIANCE = (_LEVELS.index(name) for name in ("dopamine", "reward_mean", "reward_variance"))

_EVENT_COLUMNS: Mapping[str, Kind] = {
    "tenant": "int4",
    "seq": "int8",
    "utility": "float8",
    "reward": "float8",
    "recall": "int8",
    "named": "bool",
    **dict.fromkeys(_LEVELS, "float8"),
    "digest": "digest",
}


def _read_events(connection: Connection, tenants: Sequence[str]) -> _Events:
    order = sql.Literal(list(tenants)) + sql.SQL("::text[]")
    columns = read_columns(
        connection,
        sql.SQL(
            """
            SELECT
                t.position::int4 - 1, e.seq, e.utility, coalesce(e.reward, e.utility),
                coalesce(e.recall_id, 0), e.helpful IS NOT NULL,
                e.delta, e.dopamine, e.serotonin, e.noradrenaline, e.acetylcholine,
                e.reward_mean, e.reward_variance, e.digest
            FROM feedback_events e
            JOIN unnest({}) WITH ORDINALITY AS t (tenant_id, position) USING (tenant_id)
            ORDER BY e.tenant_id, e.seq
            """
        ).format(order),
        _EVENT_COLUMNS,
    )
    signals = np.zeros((len(columns["seq"]), len(FEATURES)))
    recalled = np.ones(len(columns["seq"]), dtype=np.bool_)
    if columns["named"].any():
        named = connection.execute(
            sql.SQL(
                """
                SELECT e.helpful, r.candidate_ids, r.features, r.expected
                FROM feedback_events e
                JOIN unnest({}) WITH ORDINALITY AS t (tenant_id, position) USING (tenant_id)
                LEFT JOIN recalls r USING (tenant_id, recall_id)
                WHERE e.helpful IS NOT NULL ORDER BY e.tenant_id, e.seq
                """
            ).format(order)
        ).fetchall()
        recalled[columns["named"]] = [candidates is not None for _, candidates, *_ in named]
        signals[columns["named"] & recalled] = credited_signals(
            [
                (msgspec.convert(helpful, tuple[Helpful, ...]), logged_recall(candidates, *rest))
                for helpful, candidates, *rest in named
                if candidates is not None
            ]
        )
    return _Events(
        tenants=columns["tenant"].astype(np.int64),
        seqs=columns["seq"],
        utility=columns["utility"],
        reward=columns["reward"],
        recall_ids=columns["recall"],
        named=columns["named"],
        recalled=recalled,
        signals=signals,
        recorded=np.column_stack([columns[name] for name in _LEVELS]),
        digests=columns["digest"],
    )


def rederivation_findings(connection: Connection, log: WeightLog) -> Iterator[Finding]:
    """Changes that are not what the rules make of what they name, as far as that is kept.

    Args:
        connection: the snapshot that the log was read in.
        log: the whole log.
    """
    events = _read_events(connection, log.tenants)
    answers = np.flatnonzero(log.causes == _CAUSES.index(FEEDBACK))
    changes = _keys(log.owners[answers], log.event_seqs[answers])
    landed = _keys(events.tenants, events.seqs)

    for row in answers[~np.isin(changes, landed) & (log.sealed[answers] < 0)].tolist():
        yield _underived(log, row, f"its event {log.event_seqs[row]} is not there")
    for event in np.flatnonzero(~np.isin(landed, changes)).tolist():
        message = f"the event {events.seqs[event]} has no change of weights"
        yield Finding(REDERIVATION, log.tenants[events.tenants[event]], None, message)

    found = np.isin(changes, landed)
    rows = answers[found]
    matched = np.searchsorted(landed, changes[found])
    for row in rows[log.event_digests[rows] != events.digests[matched]].tolist():
        yield _underived(log, row, f"it names another body than that of its event {log.event_seqs[row]}")
    for row in rows[log.explicit[rows]].tolist():
        yield _underived(log, row, "feedback does not set bounds, yet the row has some")

    lost = np.flatnonzero(~events.recalled[matched])
    pruned = within_seals(connection, [_recall_of(log, events, event) for event in matched[lost].tolist()])
    for row, event in zip(rows[lost].tolist(), matched[lost].tolist(), strict=True):
        if _recall_of(log, events, event) not in pruned:
            yield _underived(log, row, f"the recall {events.recall_ids[event]} of its event is not there")

    for position, configuration in enumerate(log.known):
        under = log.configurations[rows] == position
        yield from _rederive(log, rows[under], events, matched[under], configuration)
    for row in np.flatnonzero(log.configurations < 0).tolist():
        yield _underived(log, row, "the configuration that it names is not stored")
    yield from _rederive_others(log, events)
    yield from _scales_findings(log)
    yield from _fits_without_change(log)
    configurations = {bytes.fromhex(known.digest): known for known in log.known}
    for problem in step_problems(connection, configurations):
        yield Finding(REDERIVATION, problem.tenant_id, problem.version, problem.message)


def _recall_of(log: WeightLog, events: _Events, event: int) -> tuple[str, int]:
    return log.tenants[events.tenants[event]], int(events.recall_ids[event])


def _keys(tenants: Integers, seqs: Integers) -> Integers:
    """Tenant and seq as one number, in the same order."""
    return (tenants.astype(np.int64) << 40) + seqs


def _underived(log: WeightLog, row: int, message: str) -> Finding:
    return Finding(REDERIVATION, log.tenant_of(row), int(log.log.versions[row]), message)


def _rederive(
    log: WeightLog,
    rows: NDArray[np.intp],
    events: _Events,
    matched: NDArray[np.intp],
    configuration: LearningConfiguration,
) -> Iterator[Finding]:
    """Derive the neuromodulators and shifts of the changes at `rows` again from the events at `matched`."""
    derived = event_shifts(
        configuration,
        Experience(
            lengths=np.array([len(matched)]),
            utility=events.utility[matched],
            reward=events.reward[matched],
            named=events.named[matched],
            signals=events.signals[matched],
        ),
        events.recorded[matched, _DOPAMINE],
    )
    stored = log.log.shifts.shift[rows]
    for place, weight in np.argwhere((stored != derived) & events.recalled[matched, None]).tolist():
        row = int(rows[place])
        yield _underived(
            log,
            row,
            f"the shift of {NAMES[weight]} is {stored[place, weight]} nano-units, "
            f"its event {log.event_seqs[row]} gives {derived[place, weight]}",
        )

    # What an event left is what the next one met; the oldest that is kept may follow one that is not.
    follows = (matched > 0) & (events.tenants[matched - 1] == events.tenants[matched])
    follows &= events.seqs[matched - 1] == events.seqs[matched] - 1
    begins = events.seqs[matched] == 1
    known = follows | begins
    met = np.where(follows[:, None], events.recorded[matched - 1][:, [_MEAN, _VARIANCE]], 0.0)[known]
    checked = matched[known]
    trace = trace_steps(events.reward[checked], met[:, 0], met[:, 1], configuration.reward_rate)
    trace = hold(trace, configuration.neuromodulators)
    differs = (_levels(trace) != events.recorded[checked]).any(axis=1)
    for row in rows[known][differs].tolist():
        yield _underived(
            log, row, f"the neuromodulators of its event {log.event_seqs[row]} do not follow from its rewards"
        )


def _levels(trace: Trace) -> Floats:
    return np.column_stack(
        [
            trace.delta,
            trace.dopamine,
            trace.serotonin,
            trace.noradrenaline,
            trace.acetylcholine,
            trace.mean,
            trace.variance,
        ]
    )


def _rederive_others(log: WeightLog, events: _Events) -> Iterator[Finding]:
    """Changes that answer no event: starts, resets, configurations, rollbacks, promotions, scales, fits."""
    shifts = log.log.shifts
    first_rows = log.first_rows
    started = np.zeros(len(log.causes), dtype=np.bool_)
    started[first_rows] = True
    for row in np.flatnonzero(log.causes != _CAUSES.index(FEEDBACK)).tolist():
        cause = _CAUSES[log.causes[row]] if log.causes[row] >= 0 else None
        configuration = log.known[log.configurations[row]] if log.configurations[row] >= 0 else None
        if configuration is None:
            continue  # said already
        low, high = shifts.low[row], shifts.high[row]
        if (cause == START) != started[row]:
            yield _underived(log, row, "a log begins with its start, and has no other")
        elif cause == START:
            if not _is_constant(shifts, row, configuration.start_nanos):
                yield _underived(log, row, "it is not the start of the configuration that it names")
        elif cause == CONFIGURATION:
            same_bounds = (low == configuration.low_nanos).all() and (high == configuration.high_nanos).all()
            if shifts.shift[row].any() or not same_bounds or not log.explicit[row]:
                yield _underived(log, row, "it does not set the bounds of the configuration that it names")
        elif cause == RESET:
            if not _is_constant(shifts, row, configuration.start_nanos):
                yield _underived(log, row, "it is not the start of the configuration that it names")
        elif cause == PROMOTION:
            promotion = log.promoted.get(int(log.promotions[row]))
            if promotion is None:
                yield _underived(log, row, f"its promotion {log.promotions[row]} is not there")
            elif log.explicit[row] or (shifts.shift[row] != promotion.shift).any():
                yield _underived(log, row, f"it is not the shift of promotion {promotion.version}")
        elif cause == ADOPTION:
            yield from _rederive_adoption(log, row, configuration)
        elif cause == PROMOTION_ROLLBACK:
            yield from _rederive_undoing(log, row, configuration)
        elif cause == TENANT_FIT:
            yield from _rederive_fit(log, row, configuration)
        elif cause == ROLLBACK:
            yield from _rederive_restoration(log, row, configuration)
        elif cause == AUTO_ROLLBACK:
            yield from _rederive_rollback(log, events, row, configuration)
        elif cause == SCALES:
            yield from _rederive_scales(log, row, configuration)
        elif cause == DIVERSITY:
            continue  # derived again from its recall, with the other steps
        else:
            yield _underived(log, row, "its cause is unknown")


def _is_constant(shifts: Shifts, row: int, weights: Nanos) -> bool:
    return _is(shifts, row, constant(weights))


def _is(shifts: Shifts, row: int, one: Shifts) -> bool:
    return bool(
        (shifts.shift[row] == one.shift).all()
        and (shifts.low[row] == one.low).all()
        and (shifts.high[row] == one.high).all()
    )


def _rederive_restoration(
    log: WeightLog, row: int, configuration: LearningConfiguration
) -> Iterator[Finding]:
    first = int(log.first_rows[int(log.owners[row])])
    restored = int(log.restored[row])
    if not 0 <= restored < row - first or not _is_constant(
        log.log.shifts,
        row,
        _meant_now(log, first + restored, log.scales_at(row), configuration),
    ):
        yield _underived(log, row, f"it does not restore the weights of version {restored}")


def _clipped(weights: Nanos, configuration: LearningConfiguration) -> Nanos:
    return np.asarray(np.clip(weights, configuration.low_nanos, configuration.high_nanos))


def _rederive_adoption(log: WeightLog, row: int, configuration: LearningConfiguration) -> Iterator[Finding]:
    promotion = log.promoted.get(int(log.promotions[row]))
    first = int(log.first_rows[int(log.owners[row])])
    if promotion is None:
        yield _underived(log, row, f"its promotion {log.promotions[row]} is not there")
    elif row != first + 1:
        yield _underived(log, row, "only a new tenant adopts what is promoted, as its first change")
    elif not _is_constant(log.log.shifts, row, _clipped(promotion.weights, configuration)):
        yield _underived(log, row, f"it is not what promotion {promotion.version} promoted")


def _rederive_undoing(log: WeightLog, row: int, configuration: LearningConfiguration) -> Iterator[Finding]:
    """A promotion undone: the weights before it again; for a younger tenant, what was promoted before."""
    revert = log.promoted.get(int(log.promotions[row]))
    if revert is None or revert.reverts is None:
        yield _underived(log, row, "it names no promotion that undoes another")
        return
    first = int(log.first_rows[int(log.owners[row])])
    own = slice(first, row)
    carried = np.flatnonzero(
        (log.promotions[own] == revert.reverts) & (log.causes[own] == _CAUSES.index(PROMOTION))
    )
    if not len(carried):
        if not _is_constant(log.log.shifts, row, _clipped(revert.weights, configuration)):
            yield _underived(log, row, f"it is not what was promoted before promotion {revert.reverts}")
        return
    shifted = int(carried[-1])
    brought = log.promoted[revert.reverts].scale_version
    with_scales = (
        log.causes[first + shifted - 1] == _CAUSES.index(SCALES)
        and log.named_scales[first + shifted - 1] == brought
    )
    before = shifted - (2 if with_scales else 1)
    if int(log.restored[row]) != before or not _is_constant(
        log.log.shifts, row, _clipped(log.log.after[first + before], configuration)
    ):
        yield _underived(log, row, f"it does not restore the weights before promotion {revert.reverts}")


def _meant_now(log: WeightLog, row: int, scale_version: int, configuration: LearningConfiguration) -> Nanos:
    """The weights after a row, meant in other scales if need be, within the bounds."""
    weights, then = log.log.after[row], log.scales_at(row)
    if then != scale_version and {then, scale_version} <= log.scales.keys():
        weights = rescaled(weights, log.scales[then], log.scales[scale_version])
    meant: Nanos = np.clip(weights, configuration.low_nanos, configuration.high_nanos)
    return meant


def _rederive_scales(log: WeightLog, row: int, configuration: LearningConfiguration) -> Iterator[Finding]:
    named = int(log.named_scales[row])
    if named == 0:
        yield _underived(log, row, "it changes the scales, yet names none")
    elif not _is_constant(log.log.shifts, row, _meant_now(log, row - 1, named, configuration)):
        yield _underived(log, row, f"it is not what the weights before it mean in scales {named}")


def _scales_findings(log: WeightLog) -> Iterator[Finding]:
    """Scales that are not there or named amiss, and tenants that use others than their log says."""
    may_name = np.isin(log.causes, [_CAUSES.index(cause) for cause in _NAMING_SCALES])
    for row in np.flatnonzero(log.named_scales).tolist():
        if not may_name[row]:
            yield _underived(log, row, "a change of this cause names no scales")
        elif int(log.named_scales[row]) not in log.scales:
            yield _underived(log, row, f"the scales {log.named_scales[row]} are not there")
    ends = (np.cumsum(log.log.lengths) - 1).tolist()
    for tenant_id, end, used in zip(log.tenants, ends, log.scale_versions.tolist(), strict=True):
        if (left := log.scales_at(end)) != used:
            message = f"its recalls use scales {used}, its log left it with {left}"
            yield Finding(REDERIVATION, tenant_id, None, message)


def _rederive_fit(log: WeightLog, row: int, configuration: LearningConfiguration) -> Iterator[Finding]:
    fit = log.fits.get((log.tenant_of(row), int(log.log.versions[row])))
    if fit is None:
        yield _underived(log, row, "no fit of the tenant names it")
    elif not fit.accepted or failed(fit.gates):
        yield _underived(log, row, f"the fit up to event {fit.last_seq} was refused")
    elif fit.scale_version != log.scales_at(row):
        yield _underived(log, row, f"the fit up to event {fit.last_seq} is meant in other scales")
    elif not _is(log.log.shifts, row, shift_of(fit.weights, configuration)):
        yield _underived(log, row, f"it is not what the fit up to event {fit.last_seq} came to")


def _fits_without_change(log: WeightLog) -> Iterator[Finding]:
    rows = np.flatnonzero(log.causes == _CAUSES.index(TENANT_FIT)).tolist()
    carried_out = {(log.tenant_of(row), int(log.log.versions[row])) for row in rows}
    for (tenant_id, version), fit in log.fits.items():
        if (tenant_id, version) not in carried_out:
            message = f"the fit up to event {fit.last_seq} names a change that is none"
            yield Finding(REDERIVATION, tenant_id, version, message)


def _rederive_rollback(
    log: WeightLog, events: _Events, row: int, configuration: LearningConfiguration
) -> Iterator[Finding]:
    yield from _rederive_restoration(log, row, configuration)
    owner = int(log.owners[row])
    first = int(log.first_rows[owner])
    before = slice(first, row)
    begun = np.flatnonzero(
        (log.causes[before] == _CAUSES.index(AUTO_ROLLBACK)) | (log.named_scales[before] > 0)
    )
    since = int(begun[-1]) if len(begun) else 0
    answered = log.event_seqs[first + since : row]
    answered = answered[answered > 0]
    own = (events.tenants == owner) & np.isin(events.seqs, answered)
    looked_at = answered[-configuration.guard.window :]
    if not np.isin(looked_at, events.seqs[own]).all():
        return  # pruned; or said already
    rewards = to_micros(events.reward[own])
    if first_trip(rewards[:-1], rewards[-1:], configuration.guard) != 0:
        yield _underived(log, row, "the rewards before it do not trip the guard")


def event_findings(connection: Connection) -> Iterator[Finding]:
    """Events whose stored columns are no longer those that were digested when they landed."""
    with connection.cursor(name="event_digests", row_factory=dict_row) as cursor:
        cursor.itersize = 5_000
        cursor.execute("SELECT * FROM feedback_events ORDER BY tenant_id, seq")
        for row in cursor:
            digested = row.pop("digest")
            if event_digest(row) != digested:
                message = f"the event {row['seq']} is not what landed"
                yield Finding(CHAIN, row["tenant_id"], None, message)


def seal_findings(connection: Connection, log: WeightLog) -> Iterator[Finding]:
    """Seals that are not what the log or the audit trail gives.

    Args:
        connection: the snapshot that the log was read in.
        log: the whole log.
    """
    order = np.argsort(log.sealed, kind="stable")
    firsts = np.searchsorted(log.sealed[order], np.arange(len(log.seals) + 1))
    for position, seal in enumerate(log.seals):
        rows = order[firsts[position] : firsts[position + 1]]
        rows = rows[np.argsort(log.event_seqs[rows], kind="stable")]
        seqs = log.event_seqs[rows]
        told = (seal.rows, seal.first_id, seal.last_id, seal.root)
        if not len(rows) or told != (
            len(rows),
            int(seqs[0]),
            int(seqs[-1]),
            root_of([log.event_digests[rows].tobytes()]),
        ):
            message = (
                f"the seal of its feedback from {seal.begins:%Y-%m-%d} to {seal.ends:%Y-%m-%d} is not that "
                f"of the {len(rows)} events that the log names"
            )
            yield Finding(SEALS, seal.tenant_id, None, message)
    prunings = connection.execute(
        """
        SELECT p.pruning_id, p.relation, p.begins, a.body ->> 'seals'
        FROM prunings p
        LEFT JOIN audit_events a ON a.tenant_id = %s AND a.action = %s
            AND (a.body -> 'pruning')::bigint = p.pruning_id
        WHERE p.dropped_at IS NOT NULL ORDER BY p.pruning_id
        """,
        (SYSTEM, PRUNED),
    )
    for pruning_id, relation, begins, recorded in prunings.fetchall():
        if root_of_seals(read_seals(connection, pruning_id=pruning_id)).hex() != recorded:
            message = f"the seals of {relation} from {begins:%Y-%m-%d} are not those that were recorded"
            yield Finding(SEALS, SYSTEM, None, message)


@dataclass(frozen=True, eq=False)
class Verification:
    """What was read, and what does not hold of it."""

    log: WeightLog
    findings: list[Finding]

    @property
    def sealed_events(self) -> int:
        """How many feedback events are sealed: nothing is derived again from those that are gone."""
        return sum(seal.rows for seal in self.log.seals)

    @property
    def derived_since(self) -> datetime | None:
        """Feedback that landed from this time on is not sealed; None where nothing is."""
        return max((seal.ends for seal in self.log.seals), default=None)

    def by_claim(self) -> dict[str, list[Finding]]:
        """For each claim, the findings against it."""
        return {claim: self.of(claim) for claim in CLAIMS}

    def of(self, *claims: str) -> list[Finding]:
        """The findings against these claims."""
        return [finding for finding in self.findings if finding.claim in claims]


def verify(connection: Connection) -> Verification:
    """Check every claim of this module.

    Args:
        connection: a snapshot.
    """
    log = read_log(connection)
    return Verification(
        log,
        [
            *replay_findings(log),
            *rederivation_findings(connection, log),
            *bounds_findings(log),
            *chain_findings(connection),
            *event_findings(connection),
            *seal_findings(connection, log),
        ],
    )
