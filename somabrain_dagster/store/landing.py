"""Landing feedback: the event, the change of weights and the new state, together or not at all.

A batch is one transaction. The tenants' states are locked first, in the order of their names, so batches that
share tenants wait for one another and none deadlocks; under that lock an event gets its place in the tenant's
log, hence the log's order is the order of commits.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate, chain, groupby, repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psycopg

from somabrain_dagster.learning.adaptation import credit_signals
from somabrain_dagster.learning.configuration import InvalidConfiguration, LearningConfiguration
from somabrain_dagster.learning.features import FEATURES, REGISTRY_VERSION, Floats
from somabrain_dagster.learning.lesson import FEEDBACK, Experience, Learner, Lesson, learn
from somabrain_dagster.learning.weights import Nanos
from somabrain_dagster.store import frames
from somabrain_dagster.store.adaptation import (
    STATE_COLUMNS,
    AdaptationState,
    Levels,
    UnknownTenant,
    remember_configurations,
    state_from_row,
)
from somabrain_dagster.store.arrays import (
    bigints,
    bigints_or_null,
    byteas,
    floats,
    floats_or_null,
    names,
    texts,
    timestamps,
)
from somabrain_dagster.store.cache import Publisher
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection, Database
from somabrain_dagster.store.feedback_contract import Feedback, Helpful
from somabrain_dagster.store.partition_seals import within_seals
from somabrain_dagster.store.trials import Trials, ask_trials, trials_of
from somabrain_dagster.store.weight_log import WeightChange, chained, insert_changes


class Landed(msgspec.Struct, frozen=True):
    """An event that is committed.

    Attributes:
        seq: the event's number in its tenant's own sequence.
        version: of the tenant's weights after it.
        weights: nano-units after it.
        repeated: the idempotency key was used before; this is the first answer.
    """

    tenant_id: str
    seq: int
    version: int
    weights: list[int]
    repeated: bool = False

    @property
    def event_id(self) -> str:
        """Names the event everywhere."""
        return f"{self.tenant_id}:{self.seq}"


class Refused(msgspec.Struct, frozen=True):
    """An event that is not landed, and why.

    Attributes:
        code: unknown_tenant, unknown_recall, pruned_recall, outdated_recall, unknown_candidate,
            key_reused, invalid_configuration or database.
        reason: for the person who sent it.
    """

    code: str
    reason: str


Outcome = Landed | Refused


class _Tenant(NamedTuple):
    """A tenant as it is locked for a batch."""

    state: AdaptationState
    configuration: LearningConfiguration


@dataclass(frozen=True, eq=False)
class LoggedRecall:
    """What a recall's feedback needs of its log: where each candidate is, its features z, and E_p z."""

    position: dict[int, int]
    features: Floats
    expected: Floats


def land(
    database: Database,
    batch: Sequence[Feedback],
    configuration: LearningConfiguration,
    snapshots: Publisher | None = None,
) -> list[Outcome]:
    """Land feedback; on return, whatever is `Landed` is committed.

    A tenant's events keep their order. A bad event is refused alone; if the database itself refuses one, the
    batch is halved until that one stands alone.

    Args:
        database: the brain's.
        batch: in order.
        configuration: the global learning configuration; each tenant's overrides are applied to it.
        snapshots: where the new states are published after the commit.

    Returns:
        One outcome for each event, in order.

    Raises:
        psycopg.OperationalError: the database cannot be reached or ended the connection. What of the batch
            was committed is then unknown: send again with idempotency keys.
    """
    if not batch:
        return []
    try:
        outcomes, states = _land_whole(database, batch, configuration)
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.NotSupportedError) as error:
        refusal: psycopg.DatabaseError = error
    else:
        if snapshots is not None:
            snapshots.publish(states)
        return outcomes
    if len(batch) == 1:
        return [Refused("database", f"the database refuses it: {refusal.diag.message_primary or refusal}")]
    middle = len(batch) // 2
    return [
        *land(database, batch[:middle], configuration, snapshots),
        *land(database, batch[middle:], configuration, snapshots),
    ]


def _land_whole(
    database: Database, batch: Sequence[Feedback], configuration: LearningConfiguration
) -> tuple[list[Outcome], list[AdaptationState]]:
    """`_land_together`, and once more where nobody has made this week's partitions yet."""
    try:
        return _land_together(database, batch, configuration)
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name is not None:
            raise
    # No constraint of ours: the row has no partition. Others may be here at once, so that it has one by now.
    with database.as_owner() as connection:
        connection.execute("SELECT ensure_partitions()")
    return _land_together(database, batch, configuration)


def _land_together(
    database: Database, batch: Sequence[Feedback], configuration: LearningConfiguration
) -> tuple[list[Outcome], list[AdaptationState]]:
    """One transaction: the outcome of each event, and the states that are new."""
    names = sorted({feedback.tenant_id for feedback in batch})
    keyed = [(feedback.tenant_id, feedback.idempotency_key) for feedback in batch if feedback.idempotency_key]
    about = {(feedback.tenant_id, feedback.recall_id) for feedback in batch if feedback.recall_id is not None}
    with database.as_tenants(names, keep_plans=True) as connection:
        locked = connection.execute(
            f"SELECT {STATE_COLUMNS}, t.overrides::text, now() "  # noqa: S608 — the columns are a constant
            "FROM adaptation_states s JOIN tenants t USING (tenant_id) "
            "WHERE s.tenant_id = ANY (%s) AND t.deleted_at IS NULL "
            "ORDER BY s.tenant_id FOR NO KEY UPDATE OF s",
            (names,),
            binary=True,
        )
        asked = ask_trials(connection)
        used = _find_answers(connection, keyed) if keyed else ()
        named = _find_recalls(connection, about) if about else ()
        rows = locked.fetchall()
        tenants, misconfigured = _configured(rows, configuration)
        answers = {
            (tenant, key): (said, Landed(tenant, seq, version, after, repeated=True))
            for tenant, key, said, seq, version, after in used
        }
        recalls = {
            (tenant, recall): logged_recall(*logged) if registry == REGISTRY_VERSION else None
            for tenant, recall, registry, *logged in named
        }
        absent = about - recalls.keys()
        pruned = within_seals(connection, absent) if absent else set()

        outcomes: list[Outcome | None] = [None] * len(batch)
        first_with_key: dict[tuple[str, str], int] = {}
        for position, feedback in enumerate(batch):
            key = (feedback.tenant_id, feedback.idempotency_key or "")
            if feedback.idempotency_key and key in first_with_key:
                continue
            if feedback.idempotency_key and key in answers:
                outcomes[position] = _same_answer(feedback, *answers[key])
                continue
            outcomes[position] = misconfigured.get(feedback.tenant_id) or _refusal(
                feedback, tenants, recalls, pruned
            )
            if feedback.idempotency_key and outcomes[position] is None:
                first_with_key[key] = position

        fresh = [
            position
            for position, feedback in enumerate(batch)
            if outcomes[position] is None
            and first_with_key.get((feedback.tenant_id, feedback.idempotency_key or ""), position) == position
        ]
        states: list[AdaptationState] = []
        if fresh:
            now: datetime = rows[0][-1]
            events = [batch[position] for position in fresh]
            landed, states = _write(connection, now, events, tenants, recalls, trials_of(asked))
            for position, outcome in zip(fresh, landed, strict=True):
                outcomes[position] = outcome
    answered = [
        outcome or _answer_of_first(feedback, batch, outcomes, first_with_key)
        for feedback, outcome in zip(batch, outcomes, strict=True)
    ]
    return answered, states


def _configured(
    rows: Iterable[tuple[Any, ...]], configuration: LearningConfiguration
) -> tuple[dict[str, _Tenant], dict[str, Refused]]:
    """The locked tenants, and the refusals of those whose overrides the global configuration outgrew."""
    tenants, misconfigured = {}, {}
    for *state, overrides, _ in rows:
        try:
            tenants[state[0]] = _Tenant(state_from_row(state), _overridden(configuration, overrides))
        except InvalidConfiguration as error:
            misconfigured[state[0]] = Refused(
                "invalid_configuration", f"the overrides of tenant {state[0]!r} cannot be: {error}"
            )
    return tenants, misconfigured


@lru_cache(maxsize=10_000)
def _overridden(configuration: LearningConfiguration, overrides: str) -> LearningConfiguration:
    """A tenant's configuration by the text of its overrides; checking and digesting one takes a while."""
    return configuration.overridden(json.loads(overrides))


def _find_answers(connection: Connection, keys: Sequence[tuple[str, str]]) -> psycopg.Cursor[tuple[Any, ...]]:
    """What was answered to the idempotency keys that were used before.

    Each key is looked up by itself. For many of them the planner, which under row security expects few rows
    of a tenant, would rather read and sort all keys that these tenants ever used, with their states locked.
    """
    return connection.execute(
        """
        SELECT asked.tenant_id, asked.key, k.digest, k.seq, k.version, c.after
        FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, key)
        CROSS JOIN LATERAL (
            SELECT digest, seq, version FROM idempotency_keys
            WHERE (tenant_id, key) = (asked.tenant_id, asked.key) LIMIT 1
        ) AS k
        CROSS JOIN LATERAL (
            SELECT after FROM weight_changes
            WHERE (tenant_id, version) = (asked.tenant_id, k.version) LIMIT 1
        ) AS c
        """,
        ([tenant for tenant, _ in keys], [key for _, key in keys]),
    )


def _find_recalls(
    connection: Connection, named: Collection[tuple[str, int]]
) -> psycopg.Cursor[tuple[Any, ...]]:
    return connection.execute(
        """
        SELECT asked.tenant_id, asked.recall_id, r.registry_version, r.candidate_ids, r.features, r.expected
        FROM unnest(%s::text[], %s::bigint[]) AS asked (tenant_id, recall_id)
        CROSS JOIN LATERAL (
            SELECT registry_version, candidate_ids, features, expected FROM recalls
            WHERE (tenant_id, recall_id) = (asked.tenant_id, asked.recall_id) LIMIT 1
        ) AS r
        """,
        ([tenant for tenant, _ in named], [recall for _, recall in named]),
    )


def logged_recall(candidate_ids: list[int], features: list[float], expected: list[float]) -> LoggedRecall:
    """A recall from its columns; the features are row-major, one row a candidate."""
    return LoggedRecall(
        position={memory: position for position, memory in enumerate(candidate_ids)},
        features=np.array(features, dtype=np.float64).reshape(len(candidate_ids), len(expected)),
        expected=np.array(expected, dtype=np.float64),
    )


def _same_answer(feedback: Feedback, said: bytes, answer: Landed) -> Outcome:
    if feedback.digest() == said:
        return answer
    return Refused(
        "key_reused",
        f"the idempotency key {feedback.idempotency_key!r} was used for another feedback: use a new key",
    )


def _answer_of_first(
    feedback: Feedback,
    batch: Sequence[Feedback],
    outcomes: Sequence[Outcome | None],
    first_with_key: dict[tuple[str, str], int],
) -> Outcome:
    """What a feedback gets whose key an earlier one of the same batch has."""
    first = first_with_key[feedback.tenant_id, feedback.idempotency_key or ""]
    answer = outcomes[first]
    if not isinstance(answer, Landed):
        raise AssertionError("the first feedback with a key was landed")
    repeated = Landed(answer.tenant_id, answer.seq, answer.version, answer.weights, repeated=True)
    return _same_answer(feedback, batch[first].digest(), repeated)


def _refusal(
    feedback: Feedback,
    tenants: dict[str, _Tenant],
    recalls: dict[tuple[str, int], LoggedRecall | None],
    pruned: Collection[tuple[str, int]],
) -> Refused | None:
    """Why the event cannot be landed, if it cannot.

    Args:
        feedback: the event.
        tenants: those that exist.
        recalls: those that exist; None where the features are of another registry.
        pruned: those of the others that are of a time whose recalls are pruned.
    """
    if feedback.tenant_id not in tenants:
        return Refused("unknown_tenant", str(UnknownTenant(feedback.tenant_id)))
    if feedback.recall_id is None:
        return None
    if (feedback.tenant_id, feedback.recall_id) in pruned:
        return Refused(
            "pruned_recall",
            f"recall {feedback.recall_id} of tenant {feedback.tenant_id!r} is of a time whose recalls are "
            "pruned: send what is said of its session without `recall_id`",
        )
    if (feedback.tenant_id, feedback.recall_id) not in recalls:
        return Refused(
            "unknown_recall",
            f"tenant {feedback.tenant_id!r} has no recall {feedback.recall_id}: "
            "give the id that the recall answered, or leave it out",
        )
    if feedback.helpful is None:
        return None
    recall = recalls[feedback.tenant_id, feedback.recall_id]
    if recall is None:
        return Refused(
            "outdated_recall",
            f"recall {feedback.recall_id} weighed other features than there are now: "
            "send its utility without `helpful`",
        )
    strangers = [entry.memory for entry in feedback.helpful if entry.memory not in recall.position]
    if strangers:
        return Refused(
            "unknown_candidate",
            f"memory {strangers[0]} was not a candidate of recall {feedback.recall_id}: "
            "only memories that the recall weighed can get credit for it",
        )
    return None


def _write(
    connection: Connection,
    now: datetime,
    fresh: Sequence[Feedback],
    tenants: dict[str, _Tenant],
    recalls: dict[tuple[str, int], LoggedRecall | None],
    trials: Trials,
) -> tuple[list[Landed], list[AdaptationState]]:
    """Learn from fresh events and write events, changes, states and keys; one outcome for each, in order."""

    def configured(position: int) -> tuple[str, str]:
        tenant_id = fresh[position].tenant_id
        return tenants[tenant_id].configuration.digest, tenant_id

    order = sorted(range(len(fresh)), key=configured)  # stable: a tenant's events stay in their order
    groups = [list(group) for _, group in groupby(order, key=lambda position: configured(position)[0])]
    taught = [
        _learn(connection, now, [fresh[position] for position in group], tenants, recalls, trials)
        for group in groups
    ]
    # What is ready is sent: Postgres is at work on it while the next is made.
    _insert_events(connection, [row for each in taught for row in each.rows])
    remember_configurations(connection, [each.configuration for each in taught if each.is_new])
    changes = [each.changes(now) for each in taught]
    heads = {state.tenant_id: state.hash for each in taught for state in each.states}
    together = list(chain.from_iterable(changes))
    insert_changes(connection, together, chained(together, heads))
    states = [state for each in taught for state in each.states_after(now, heads)]
    _update_states(connection, states)
    landed: dict[int, Landed] = {}
    for group, of_group in zip(groups, changes, strict=True):
        answers = [
            Landed(change.tenant_id, change.event_seq, change.version, change.after)
            for change in of_group
            if change.event_seq is not None
        ]
        landed.update(zip(group, answers, strict=True))
    outcomes = [landed[position] for position in range(len(fresh))]
    keyed = [pair for pair in zip(fresh, outcomes, strict=True) if pair[0].idempotency_key]
    if keyed:
        _insert_keys(connection, now, keyed)
    return outcomes, states


class _Taught(NamedTuple):
    """What the events of tenants that share a configuration taught.

    Attributes:
        in_force: the configuration's digest.
        states: of the tenants, before.
        lengths: (T,), how many events each has.
        rows: one an event, as it is stored, the tenants one after the other.
    """

    configuration: LearningConfiguration
    in_force: bytes
    states: list[AdaptationState]
    lengths: list[int]
    lesson: Lesson
    rows: list[dict[str, Any]]

    @property
    def is_new(self) -> bool:
        """Whether the configuration may not be stored; a state whose last change names it says that it is."""
        return any(state.configuration != self.in_force for state in self.states)

    def changes(self, now: datetime) -> list[WeightChange]:
        """The changes of weights, in the order of the logs."""
        shifts = self.lesson.shifts
        tenants = chain.from_iterable(
            repeat(state.tenant_id, length)
            for state, length in zip(self.states, self.lesson.lengths.tolist(), strict=True)
        )
        changes = []
        for tenant_id, cause, event, version, restored, shift, low, high, after in zip(
            tenants,
            self.lesson.causes,
            self.lesson.events.tolist(),
            self.lesson.versions.tolist(),
            self.lesson.restored.tolist(),
            shifts.shift.tolist(),
            shifts.low.tolist(),
            shifts.high.tolist(),
            self.lesson.after.tolist(),
            strict=True,
        ):
            answers = cause == FEEDBACK
            changes.append(
                WeightChange(
                    tenant_id=tenant_id,
                    version=version,
                    created_at=now,
                    cause=cause,
                    shift=shift,
                    low=None if answers else low,
                    high=None if answers else high,
                    after=after,
                    configuration=self.in_force,
                    event_seq=self.rows[event]["seq"] if answers else None,
                    event_digest=self.rows[event]["digest"] if answers else None,
                    restored_version=None if restored < 0 else restored,
                )
            )
        return changes

    def states_after(self, now: datetime, heads: dict[str, bytes]) -> list[AdaptationState]:
        """The tenants' states after it all.

        Args:
            now: the transaction's time.
            heads: the hash of each tenant's last change.
        """
        return [
            AdaptationState(
                tenant_id=state.tenant_id,
                version=version,
                weights=self.lesson.after[end - 1],
                hash=heads[state.tenant_id],
                configuration=self.in_force,
                feedback_seq=row["seq"],
                levels=Levels(**{name: row[name] for name in _LEVELS}),
                rewards=rewards,
                recent_rewards=recent,
                updated_at=now,
            )
            for state, row, end, version, rewards, recent in zip(
                self.states,
                (self.rows[end - 1] for end in accumulate(self.lengths)),
                accumulate(self.lesson.lengths.tolist()),
                self.lesson.versions[self.lesson.lengths.cumsum() - 1].tolist(),
                self.lesson.rewards,
                self.lesson.recent_rewards,
                strict=True,
            )
        ]


def _learn(
    connection: Connection,
    now: datetime,
    events: Sequence[Feedback],
    tenants: dict[str, _Tenant],
    recalls: dict[tuple[str, int], LoggedRecall | None],
    trials: Trials,
) -> _Taught:
    """Learn from the events of tenants that share a configuration."""
    runs = [(name, sum(1 for _ in run)) for name, run in groupby(event.tenant_id for event in events)]
    states = [tenants[name].state for name, _ in runs]
    lengths = [length for _, length in runs]
    configuration = tenants[runs[0][0]].configuration
    in_force = bytes.fromhex(configuration.digest)
    seqs = [
        state.feedback_seq + place
        for state, length in zip(states, lengths, strict=True)
        for place in range(1, length + 1)
    ]
    lesson = learn(
        configuration,
        [
            Learner(
                state.version,
                state.weights,
                state.rewards,
                state.recent_rewards,
                configured=state.configuration == in_force,
            )
            for state in states
        ],
        experience_of(events, [recalls.get((e.tenant_id, e.recall_id or 0)) for e in events], lengths),
        lambda tenant, back: _weights_before_event(
            connection, states[tenant].tenant_id, states[tenant].feedback_seq + 1 - back
        ),
    )
    rows = [
        _event_row(event, seq, now, trials, dict(zip(_TRACED, levels, strict=True)))
        for event, seq, *levels in zip(events, seqs, *_traced(lesson), strict=True)
    ]
    return _Taught(configuration, in_force, states, lengths, lesson, rows)


def experience_of(
    events: Sequence[Feedback], recalls: Sequence[LoggedRecall | None], lengths: Iterable[int]
) -> Experience:
    """The numbers of events, each beside the recall that it speaks of."""
    named = np.array([event.helpful is not None for event in events], dtype=np.bool_)
    signals = np.zeros((len(events), len(FEATURES)))
    signals[named] = credited_signals(
        [
            (event.helpful, recall)
            for event, recall in zip(events, recalls, strict=True)
            if event.helpful is not None and recall is not None
        ]
    )
    return Experience(
        lengths=np.array(lengths, dtype=np.intp),
        utility=np.array([event.utility for event in events], dtype=np.float64),
        reward=np.array([event.effective_reward for event in events], dtype=np.float64),
        named=named,
        signals=signals,
    )


def credited_signals(credited: Sequence[tuple[Sequence[Helpful], LoggedRecall]]) -> Floats:
    """The credit of each feature, (n, F), for n events that name memories of their recalls."""
    if not credited:
        return np.zeros((0, len(FEATURES)))
    return credit_signals(
        np.concatenate(
            [r.features[[r.position[entry.memory] for entry in helpful]] for helpful, r in credited]
        ),
        np.array([entry.credit for helpful, _ in credited for entry in helpful]),
        np.array([recall.expected for _, recall in credited]),
        [len(helpful) for helpful, _ in credited],
    )


_LEVELS = ("delta", "dopamine", "serotonin", "noradrenaline", "acetylcholine")
_TRACED = (*_LEVELS, "reward_mean", "reward_variance")


def _traced(lesson: Lesson) -> list[list[float]]:
    trace = lesson.trace
    return [
        values.tolist()
        for values in (
            trace.delta,
            trace.dopamine,
            trace.serotonin,
            trace.noradrenaline,
            trace.acetylcholine,
            trace.mean,
            trace.variance,
        )
    ]


def _event_row(
    event: Feedback, seq: int, now: datetime, trials: Trials, levels: dict[str, float]
) -> dict[str, Any]:
    row = {
        "tenant_id": event.tenant_id,
        "seq": seq,
        "created_at": now,
        "occurred_at": event.occurred_at or now,
        "session_id": event.session_id,
        "source": event.source,
        "utility": event.utility,
        "reward": event.reward,
        "recall_id": event.recall_id,
        "label": event.label,
        "helpful": None if event.helpful is None else msgspec.to_builtins(event.helpful),
        "arm": event.arm or trials.arm_of(event.tenant_id, event.session_id),
        "metadata": event.metadata,
        **levels,
    }
    return {**row, "digest": event_digest(row)}


def event_digest(row: dict[str, Any]) -> bytes:
    """SHA-256 of an event as it is stored: every column but the digest itself, framed."""
    return hashlib.sha256(
        b"".join(
            (
                frames.name(row["tenant_id"]),
                frames.bigint(row["seq"]),
                frames.timestamp(row["created_at"]),
                frames.timestamp(row["occurred_at"]),
                frames.text(row["session_id"]),
                frames.name(row["source"]),
                frames.double(row["utility"]),
                frames.double(row["reward"]),
                frames.bigint(row["recall_id"]),
                frames.name(row["label"]),
                frames.binary(None if row["helpful"] is None else canonical_json(row["helpful"])),
                frames.name(row["arm"]),
                frames.binary(canonical_json(row["metadata"])),
                frames.doubles([row[name] for name in _TRACED]),
            )
        )
    ).digest()


def _weights_before_event(connection: Connection, tenant_id: str, seq: int) -> tuple[int, Nanos]:
    row = connection.execute(
        """
        SELECT b.version, b.after
        FROM weight_changes c JOIN weight_changes b ON b.tenant_id = c.tenant_id AND b.version = c.version - 1
        WHERE c.tenant_id = %s AND c.event_seq = %s
        """,
        (tenant_id, seq),
    ).fetchone()
    if row is None:
        raise AssertionError(f"the log of tenant {tenant_id!r} has no change for its event {seq}")
    return row[0], np.array(row[1], dtype=np.int64)


def _insert_events(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    def column(name: str) -> list[Any]:
        return [row[name] for row in rows]

    connection.execute(
        """
        INSERT INTO feedback_events (
            tenant_id, seq, created_at, occurred_at, session_id, source, utility, reward, recall_id, label,
            helpful, arm, metadata, delta, dopamine, serotonin, noradrenaline, acetylcholine,
            reward_mean, reward_variance, digest
        )
        SELECT
            e.tenant_id, e.seq, e.created_at, e.occurred_at, e.session_id, e.source, e.utility, e.reward,
            e.recall_id, e.label, e.helpful::jsonb, e.arm, e.metadata::jsonb,
            e.delta, e.dopamine, e.serotonin, e.noradrenaline, e.acetylcholine,
            e.reward_mean, e.reward_variance, e.digest
        FROM unnest(
            %s::text[], %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[],
            %s::float8[], %s::float8[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[],
            %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
            %s::bytea[]
        ) AS e (
            tenant_id, seq, created_at, occurred_at, session_id, source, utility, reward, recall_id, label,
            helpful, arm, metadata, delta, dopamine, serotonin, noradrenaline, acetylcholine,
            reward_mean, reward_variance, digest
        )
        """,
        (
            names(column("tenant_id")),
            bigints(column("seq")),
            timestamps(column("created_at")),
            timestamps(column("occurred_at")),
            texts(column("session_id")),
            names(column("source")),
            floats(column("utility")),
            floats_or_null(column("reward")),
            bigints_or_null(column("recall_id")),
            names(column("label")),
            texts([_json_or_null(helpful) for helpful in column("helpful")]),
            names(column("arm")),
            texts([_json_or_null(metadata) for metadata in column("metadata")]),
            *(floats(column(name)) for name in _TRACED),
            byteas(column("digest")),
        ),
    )


def _json_or_null(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _insert_keys(connection: Connection, now: datetime, keyed: Sequence[tuple[Feedback, Landed]]) -> None:
    connection.execute(
        """
        INSERT INTO idempotency_keys (tenant_id, key, digest, seq, version, created_at)
        SELECT * FROM unnest(
            %s::text[], %s::text[], %s::bytea[], %s::bigint[], %s::bigint[], %s::timestamptz[]
        )
        """,
        (
            names([feedback.tenant_id for feedback, _ in keyed]),
            texts([feedback.idempotency_key for feedback, _ in keyed]),
            byteas([feedback.digest() for feedback, _ in keyed]),
            bigints([answer.seq for _, answer in keyed]),
            bigints([answer.version for _, answer in keyed]),
            timestamps([now] * len(keyed)),
        ),
    )


def _update_states(connection: Connection, states: Sequence[AdaptationState]) -> None:
    """Write the states; their rows are locked, and no log takes two changes of one version."""
    ends = list(accumulate(len(state.recent_rewards) for state in states))
    connection.execute(
        """
        UPDATE adaptation_states s
        SET (
            version, weights, hash, configuration, feedback_seq, delta, dopamine, serotonin, noradrenaline,
            acetylcholine, reward_mean, reward_variance, recent_rewards, updated_at
        ) = (
            n.version, (%(weights)s::bigint[])[k * (n.row - 1) + 1 : k * n.row], n.hash, n.configuration,
            n.feedback_seq, n.delta, n.dopamine, n.serotonin, n.noradrenaline, n.acetylcholine,
            n.reward_mean, n.reward_variance, (%(recent)s::bigint[])[n.recent_begin + 1 : n.recent_end],
            n.updated_at
        )
        FROM (SELECT %(k)s::int AS k) AS weights, unnest(
            %(tenant_id)s::text[], %(version)s::bigint[], %(hash)s::bytea[], %(configuration)s::bytea[],
            %(feedback_seq)s::bigint[], %(delta)s::float8[], %(dopamine)s::float8[], %(serotonin)s::float8[],
            %(noradrenaline)s::float8[], %(acetylcholine)s::float8[], %(reward_mean)s::float8[],
            %(reward_variance)s::float8[], %(recent_begin)s::bigint[], %(recent_end)s::bigint[],
            %(updated_at)s::timestamptz[]
        ) WITH ORDINALITY AS n (
            tenant_id, version, hash, configuration, feedback_seq, delta, dopamine, serotonin, noradrenaline,
            acetylcholine, reward_mean, reward_variance, recent_begin, recent_end, updated_at, row
        )
        WHERE s.tenant_id = n.tenant_id
        """,
        {
            "k": len(states[0].weights) if states else 1,
            "tenant_id": names([state.tenant_id for state in states]),
            "version": bigints([state.version for state in states]),
            "weights": bigints(np.array([state.weights for state in states])),
            "hash": byteas([state.hash for state in states]),
            "configuration": byteas([state.configuration for state in states]),
            "feedback_seq": bigints([state.feedback_seq for state in states]),
            **{name: floats([getattr(state.levels, name) for state in states]) for name in _LEVELS},
            "reward_mean": floats([state.rewards.mean for state in states]),
            "reward_variance": floats([state.rewards.variance for state in states]),
            "recent": bigints(np.concatenate([state.recent_rewards for state in states])),
            "recent_begin": bigints([0, *ends[:-1]]),
            "recent_end": bigints(ends),
            "updated_at": timestamps([state.updated_at for state in states]),
        },
    )
