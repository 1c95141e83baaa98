"""Experiments as they are stored: drawn up, started, stopped or completed, and analysed once.

While an experiment runs, a session's arm is known from its name alone, and its outcome from what landed. At
the end each session's one number is written down, and the analysis rests on these numbers alone, so that
anybody can make it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import isclose
from secrets import token_hex
from typing import Any, Literal

import numpy as np

from somabrain_dagster.learning.comparison import Comparison
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.experiments import (
    Analysis,
    Arm,
    Plan,
    PromotionRule,
    analyse,
    shared_equally,
)
from somabrain_dagster.learning.features import REGISTRY_VERSION
from somabrain_dagster.learning.gates import number_to_json
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.learning.multiplicity import Lord, lord_levels
from somabrain_dagster.learning.sequential import Harm, harm
from somabrain_dagster.learning.weights import NAMES, Nanos, by_name
from somabrain_dagster.store import audit
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.promotions import promoted
from somabrain_dagster.store.proposals import read_proposal
from somabrain_dagster.store.trials import arm_of_experiment, lock_trials, require_no_trial

Status = Literal["draft", "running", "stopped", "completed"]

PROPOSED = "proposed"
"""The arm that sees a proposal's weights."""

COMPLETED, STOPPED = "experiment.completed", "experiment.stopped"
"""In the audit trail."""


class UnknownExperiment(LookupError):
    """There is no such experiment."""


class InvalidExperiment(ValueError):
    """An experiment that cannot be; the message says what it needs."""


class WrongStatus(RuntimeError):
    """What was asked cannot be done with an experiment in this status; the message says what can."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """An experiment; A arms, the first is the control.

    Attributes:
        shifts: (A, K) nano-units, by which a tenant's weights are shifted as they are read.
        scale_version: that arms other than the control see; None for the tenant's own.
        promotion_version: what was promoted when it was drawn up.
        proposal_id: the proposal that it tries; None where a person chose the arms.
        end_reason: why it ended.
    """

    experiment_id: str
    status: Status
    actor: str
    salt: str
    plan: Plan
    shifts: Nanos
    scale_version: int | None
    promotion_version: int
    proposal_id: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None

    @property
    def names(self) -> dict[str, str]:
        """Each arm by the name that recalls and feedback keep."""
        return {arm_of_experiment(self.experiment_id, arm.name): arm.name for arm in self.plan.arms}

    def shift_of(self, arm: str) -> Nanos:
        """The shift (K,) of an arm."""
        return np.asarray(self.shifts[[one.name for one in self.plan.arms].index(arm)])


@dataclass(frozen=True)
class Session:
    """A session of an experiment.

    Attributes:
        value: the mean reward of its feedback.
        events: how many feedback events that is the mean of.
    """

    tenant_id: str
    session_id: str
    arm: str
    value: float
    events: int


@dataclass(frozen=True)
class Analysed:
    """What an experiment showed.

    Attributes:
        test: its number among all experiments that were analysed, from 1.
        online_level: what LORD++ allowed the test of this number.
        online_bound: whether that level was a gate.
        outcomes: the moments of the sessions' numbers, by arm.
    """

    experiment_id: str
    analysed_at: datetime
    test: int
    online_level: float
    online_bound: bool
    outcomes: Mapping[str, Moments]
    analysis: Analysis


def read_arms(connection: Connection, experiment_id: str) -> tuple[str, list[Arm]]:
    """The salt and the arms by which an experiment assigns units.

    Raises:
        UnknownExperiment: there is no such experiment.
    """
    row = connection.execute(
        "SELECT salt, arms, shares FROM experiments WHERE experiment_id = %s", (experiment_id,)
    ).fetchone()
    if row is None:
        raise UnknownExperiment(f"there is no experiment {experiment_id!r}")
    salt, arms, shares = row
    return salt, [Arm(name, share) for name, share in zip(arms, shares, strict=True)]


def create_experiment(
    connection: Connection,
    experiment_id: str,
    plan: Plan,
    shifts: Nanos,
    configuration: LearningConfiguration,
    actor: str,
    *,
    scale_version: int | None = None,
    proposal_id: int | None = None,
) -> Experiment:
    """Draw up an experiment; nobody sees its arms before it is started.

    Args:
        connection: an operator's transaction.
        experiment_id: a name that no other experiment has.
        plan: arms, size and rule.
        shifts: (A, K) nano-units, of the control 0.
        configuration: the global learning configuration, to know what is promoted.
        actor: who asks, for the audit trail.
        scale_version: of all arms but the control; None for the tenant's own.
        proposal_id: the proposal that is tried.

    Raises:
        InvalidExperiment: the name is taken or is none, or an arm's shift cannot be.
    """
    if shifts.shape != (len(plan.arms), len(NAMES)):
        raise InvalidExperiment(f"{len(plan.arms)} arms need as many shifts of {len(NAMES)} weights each")
    if shifts[0].any():
        raise InvalidExperiment(f"the first arm, {plan.control!r}, is the control: it must shift nothing")
    if scale_version is None and not shifts[1:].any(axis=1).all():
        raise InvalidExperiment("each arm but the control must shift something")
    row = connection.execute(
        """
        INSERT INTO experiments (
            experiment_id, actor, salt, arms, shares, shifts, scale_version, size, rule, promotion_version,
            registry_version, proposal_id
        )
        SELECT %(id)s, %(actor)s, %(salt)s, %(arms)s, %(shares)s, %(shifts)s, %(scales)s, %(size)s,
            %(rule)s::jsonb, %(promotion)s, %(registry)s, %(proposal)s
        WHERE %(id)s ~ '^[a-z0-9][a-z0-9._-]{0,62}$'
        ON CONFLICT (experiment_id) DO NOTHING RETURNING 1
        """,
        {
            "id": experiment_id,
            "actor": actor,
            # An experiment of its own salt: who was in the treatment before must not be more often again.
            "salt": f"{experiment_id}:{token_hex(8)}",
            "arms": [arm.name for arm in plan.arms],
            "shares": [arm.share for arm in plan.arms],
            "shifts": shifts.tolist(),
            "scales": scale_version,
            "size": plan.size,
            "rule": canonical_json(asdict(plan.rule)).decode(),
            "promotion": promoted(connection, configuration).version,
            "registry": REGISTRY_VERSION,
            "proposal": proposal_id,
        },
    ).fetchone()
    if row is None:
        raise InvalidExperiment(
            f"{experiment_id!r} is taken or cannot be an experiment's name: one has 1 to 63 of a-z, 0-9, "
            "'.', '_' and '-', and begins with a letter or a digit"
        )
    experiment = read_experiment(connection, experiment_id)
    audit.record(connection, audit.SYSTEM, actor, "experiment.created", described(experiment))
    return experiment


def described(experiment: Experiment) -> dict[str, Any]:
    """An experiment as JSON, for the audit trail and for a person."""
    return {
        "experiment_id": experiment.experiment_id,
        "proposal_id": experiment.proposal_id,
        "promotion_version": experiment.promotion_version,
        "scale_version": experiment.scale_version,
        "size": experiment.plan.size,
        "rule": asdict(experiment.plan.rule),
        "arms": {
            arm.name: {"share": arm.share, "shift": by_name(shift)}
            for arm, shift in zip(experiment.plan.arms, experiment.shifts, strict=True)
        },
    }


_COLUMNS = """
    experiment_id, status, actor, salt, arms, shares, size, rule, shifts, scale_version, promotion_version,
    proposal_id, created_at, started_at, ended_at, end_reason
"""


def _from_row(row: Sequence[Any]) -> Experiment:
    name, status, actor, salt, arms, shares, size, rule, shifts, scales, promotion, proposal, *times = row
    return Experiment(
        experiment_id=name,
        status=status,
        actor=actor,
        salt=salt,
        plan=Plan(
            tuple(Arm(arm, share) for arm, share in zip(arms, shares, strict=True)),
            size,
            PromotionRule(**rule),
        ),
        shifts=np.array(shifts, dtype=np.int64),
        scale_version=scales,
        promotion_version=promotion,
        proposal_id=proposal,
        created_at=times[0],
        started_at=times[1],
        ended_at=times[2],
        end_reason=times[3],
    )


def list_experiments(connection: Connection) -> list[Experiment]:
    """Every experiment, the oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM experiments "  # noqa: S608 — the columns are a constant
        "WHERE size IS NOT NULL ORDER BY created_at, experiment_id"
    )
    return [_from_row(row) for row in rows]


def read_latest(connection: Connection, before: str | None = None, most: int = 100) -> list[Experiment]:
    """The last experiments that were drawn up, the newest first.

    Args:
        connection: an operator's transaction.
        before: only those that were drawn up before this one; none if there is no such experiment.
        most: at most so many.
    """
    rows = connection.execute(
        f"""
        SELECT {_COLUMNS} FROM experiments
        WHERE size IS NOT NULL AND (%(before)s::text IS NULL OR (created_at, experiment_id) < (
            SELECT created_at, experiment_id FROM experiments WHERE experiment_id = %(before)s
        ))
        ORDER BY created_at DESC, experiment_id DESC LIMIT %(most)s
        """,  # noqa: S608 — the columns are a constant
        {"before": before, "most": most},
    )
    return [_from_row(row) for row in rows]


def read_experiment(connection: Connection, experiment_id: str) -> Experiment:
    """One experiment.

    Raises:
        UnknownExperiment: there is no such experiment.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM experiments "  # noqa: S608 — the columns are a constant
        "WHERE experiment_id = %s AND size IS NOT NULL",
        (experiment_id,),
    ).fetchone()
    if row is None:
        raise UnknownExperiment(f"there is no experiment {experiment_id!r}")
    return _from_row(row)


def running_experiment(connection: Connection) -> Experiment | None:
    """The experiment that runs, if one does."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM experiments WHERE status = 'running'"  # noqa: S608 — a constant
    ).fetchone()
    return None if row is None else _from_row(row)


def untried_proposal(connection: Connection, configuration: LearningConfiguration) -> int | None:
    """The newest accepted proposal that no experiment has tried, if there is one.

    One that was made of weights that are no longer promoted does not count.
    """
    row = connection.execute(
        """
        SELECT p.proposal_id FROM parameter_proposals p
        WHERE p.accepted AND p.promotion_version = %s
            AND NOT EXISTS (SELECT FROM experiments e WHERE e.proposal_id = p.proposal_id)
        ORDER BY p.proposal_id DESC LIMIT 1
        """,
        (promoted(connection, configuration).version,),
    ).fetchone()
    return None if row is None else int(row[0])


def try_proposal(
    connection: Connection,
    proposal_id: int,
    size: int,
    rule: PromotionRule,
    configuration: LearningConfiguration,
    actor: str,
) -> Experiment:
    """Draw up and start the experiment that compares a proposal with what is promoted.

    Args:
        connection: an operator's transaction; all is done in it.
        proposal_id: that was accepted.
        size: the sessions that each arm needs.
        rule: when it is promoted.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Raises:
        UnknownProposal: there is no such proposal.
        InvalidExperiment: it was refused.
        WrongStatus: other weights were promoted since it was made.
        TrialRunning: something else is on trial.
    """
    proposal = read_proposal(connection, proposal_id)
    if not proposal.accepted:
        raise InvalidExperiment(f"proposal {proposal_id} was refused: {'; '.join(proposal.refusals)}")
    experiment = create_experiment(
        connection,
        f"proposal-{proposal_id}",
        Plan(shared_equally(["control", PROPOSED]), size, rule),
        np.array([np.zeros_like(proposal.shift), proposal.shift]),
        configuration,
        actor,
        scale_version=proposal.to_scales,
        proposal_id=proposal_id,
    )
    return start_experiment(connection, experiment.experiment_id, configuration, actor)


def start_experiment(
    connection: Connection, experiment_id: str, configuration: LearningConfiguration, actor: str
) -> Experiment:
    """Let sessions see their arms from now on; the size was fixed when the experiment was drawn up.

    Raises:
        UnknownExperiment: there is no such experiment.
        WrongStatus: it ran before, or other weights were promoted since it was drawn up.
        TrialRunning: something else is on trial.
    """
    lock_trials(connection)
    experiment = read_experiment(connection, experiment_id)
    if experiment.status != "draft":
        raise WrongStatus(
            f"the experiment {experiment_id!r} is {experiment.status}: an experiment runs once, so that it "
            "is judged once; draw up another"
        )
    require_no_trial(connection)
    now_promoted = promoted(connection, configuration).version
    if experiment.promotion_version != now_promoted:
        raise WrongStatus(
            f"the experiment {experiment_id!r} compares with promotion {experiment.promotion_version}, but "
            f"promotion {now_promoted} is in force: draw it up anew"
        )
    connection.execute(
        "UPDATE experiments SET status = 'running', started_at = now() WHERE experiment_id = %s",
        (experiment_id,),
    )
    audit.record(connection, audit.SYSTEM, actor, "experiment.started", {"experiment_id": experiment_id})
    return read_experiment(connection, experiment_id)


def stop_experiment(connection: Connection, experiment_id: str, actor: str, reason: str) -> Experiment:
    """End an experiment before its time: it is not analysed, and nothing of it is promoted.

    Its sessions are written down as they are, so that what it was stopped for can be looked up.

    Raises:
        UnknownExperiment: there is no such experiment.
        WrongStatus: it does not run.
    """
    lock_trials(connection)
    experiment = _require_running(connection, experiment_id)
    kept = read_live_sessions(connection, experiment)
    _keep_sessions(connection, experiment_id, kept)
    ended = _end(connection, experiment, "stopped", reason)
    body = {"experiment_id": experiment_id, "reason": reason, "sessions": len(kept)}
    audit.record(connection, audit.SYSTEM, actor, STOPPED, body)
    return ended


def _require_running(connection: Connection, experiment_id: str) -> Experiment:
    experiment = read_experiment(connection, experiment_id)
    if experiment.status != "running":
        raise WrongStatus(f"the experiment {experiment_id!r} does not run: it is {experiment.status}")
    return experiment


def _end(connection: Connection, experiment: Experiment, status: Status, reason: str) -> Experiment:
    connection.execute(
        "UPDATE experiments SET status = %s, ended_at = now(), end_reason = %s WHERE experiment_id = %s",
        (status, reason, experiment.experiment_id),
    )
    return read_experiment(connection, experiment.experiment_id)


# A session belongs to the experiment from its first recall under an arm; what was said of it since counts.
_SESSIONS = """
    WITH exposed AS MATERIALIZED (
        SELECT tenant_id, session_id, arm, min(created_at) AS since
        FROM recalls
        WHERE arm = ANY (%(arms)s) AND session_id IS NOT NULL AND created_at >= %(since)s
        GROUP BY tenant_id, session_id, arm
    )
    SELECT
        x.tenant_id, x.session_id, x.arm,
        sum(coalesce(e.reward, e.utility) ORDER BY e.seq) / count(*), count(*)
    FROM exposed x
    JOIN feedback_events e ON e.tenant_id = x.tenant_id AND e.session_id = x.session_id
        AND e.created_at >= x.since
    GROUP BY x.tenant_id, x.session_id, x.arm
"""


def read_live_sessions(connection: Connection, experiment: Experiment) -> list[Session]:
    """The sessions of a running experiment of which something was said, as they are now.

    Args:
        connection: an operator's transaction.
        experiment: that runs.
    """
    names = experiment.names
    rows = connection.execute(_SESSIONS, {"arms": list(names), "since": experiment.started_at})
    return [
        Session(tenant, session, names[arm], value, events) for tenant, session, arm, value, events in rows
    ]


def read_sessions(connection: Connection, experiment_id: str) -> list[Session]:
    """The sessions of an experiment that ended, as they were written down."""
    rows = connection.execute(
        """
        SELECT tenant_id, session_id, arm, value, events FROM experiment_sessions
        WHERE experiment_id = %s ORDER BY tenant_id, session_id
        """,
        (experiment_id,),
    )
    return [Session(*row) for row in rows]


def read_outcomes(
    connection: Connection, experiments: Sequence[str]
) -> dict[str, dict[str, tuple[int, float]]]:
    """How many sessions of these experiments were written down, and their mean, by experiment and arm."""
    outcomes: dict[str, dict[str, tuple[int, float]]] = {}
    rows = connection.execute(
        """
        SELECT experiment_id, arm, count(*), avg(value) FROM experiment_sessions
        WHERE experiment_id = ANY (%s) GROUP BY experiment_id, arm
        """,
        (list(experiments),),
    )
    for experiment_id, arm, count, mean in rows:
        outcomes.setdefault(experiment_id, {})[arm] = count, mean
    return outcomes


def read_findings(
    connection: Connection, experiments: Sequence[str]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """What the analyses of these experiments found, as `analysis_json` has it, by experiment and arm."""
    rows = connection.execute(
        """
        SELECT experiment_id, analysis -> 'findings' FROM experiment_analyses
        WHERE experiment_id = ANY (%s)
        """,
        (list(experiments),),
    )
    return {
        experiment_id: {finding["arm"]: finding for finding in findings} for experiment_id, findings in rows
    }


def _keep_sessions(connection: Connection, experiment_id: str, sessions: Sequence[Session]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO experiment_sessions (experiment_id, tenant_id, session_id, arm, value, events)
            VALUES (%s, %s, %s, %s, %s, %s)
            """,
            [
                (experiment_id, one.tenant_id, one.session_id, one.arm, one.value, one.events)
                for one in sessions
            ],
        )


def outcomes_of(plan: Plan, sessions: Sequence[Session]) -> dict[str, Moments]:
    """The moments of the sessions' numbers, by arm; summed in one order, whoever read them."""
    ordered = sorted(sessions, key=lambda one: (one.tenant_id, one.session_id))
    return {arm.name: Moments.of([one.value for one in ordered if one.arm == arm.name]) for arm in plan.arms}


@dataclass(frozen=True)
class Progress:
    """How far a running experiment is.

    Attributes:
        outcomes: so far, by arm.
        size: the sessions that each arm needs.
        harms: the evidence of harm so far, by treatment.
    """

    outcomes: Mapping[str, Moments]
    size: int
    harms: Mapping[str, Harm]

    @property
    def complete(self) -> bool:
        """Each arm has its sessions: the one look is due."""
        return all(outcome.n >= self.size for outcome in self.outcomes.values())

    @property
    def harmful(self) -> tuple[str, ...]:
        """The treatments that do harm, for certain."""
        return tuple(arm for arm, evidence in self.harms.items() if evidence.stop)


def progress_of(plan: Plan, sessions: Sequence[Session]) -> Progress:
    """How far an experiment with these sessions is; each treatment has its part of α to be stopped by."""
    outcomes = outcomes_of(plan, sessions)
    alpha = plan.rule.alpha / len(plan.treatments)
    harms = {
        arm: harm(outcomes[plan.control], outcomes[arm], size=plan.size, alpha=alpha)
        for arm in plan.treatments
    }
    return Progress(outcomes, plan.size, harms)


def complete_experiment(
    connection: Connection, experiment_id: str, actor: str, *, online_bound: bool
) -> Analysed:
    """End an experiment whose arms have their sessions, write these down, and analyse them: once.

    Args:
        connection: an operator's transaction; all is done in it.
        experiment_id: that runs.
        actor: who asks, for the audit trail.
        online_bound: whether LORD++'s level over all experiments is a gate, or only told.

    Raises:
        UnknownExperiment: there is no such experiment.
        WrongStatus: it does not run, or an arm still lacks sessions.
    """
    lock_trials(connection)
    experiment = _require_running(connection, experiment_id)
    sessions = read_live_sessions(connection, experiment)
    outcomes = outcomes_of(experiment.plan, sessions)
    lacking = {arm: moments.n for arm, moments in outcomes.items() if moments.n < experiment.plan.size}
    if lacking:
        raise WrongStatus(
            f"the experiment {experiment_id!r} needs {experiment.plan.size} sessions an arm, and has "
            + ", ".join(f"{n} in {arm!r}" for arm, n in lacking.items())
            + ": one look, when all are there"
        )
    earlier = [p for (p,) in connection.execute("SELECT p FROM experiment_analyses ORDER BY test")]
    _, lord = lord_levels(earlier, Lord().alpha)
    analysis = analyse(experiment.plan, outcomes, online_level=lord.level if online_bound else None)
    _keep_sessions(connection, experiment_id, sessions)
    _end(connection, experiment, "completed", "each arm has its sessions")
    body = analysis_json(outcomes, analysis)
    connection.execute(
        """
        INSERT INTO experiment_analyses (
            experiment_id, test, p, online_level, online_bound, promoted_arm, analysis
        ) VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb)
        """,
        (
            experiment_id,
            lord.tests + 1,
            analysis.p,
            lord.level,
            online_bound,
            analysis.promoted,
            canonical_json(body).decode(),
        ),
    )
    recorded = {
        "experiment_id": experiment_id,
        "test": lord.tests + 1,
        "online_level": lord.level,
        "online_bound": online_bound,
        "promoted_arm": analysis.promoted,
        "rule": asdict(experiment.plan.rule),
        **body,
    }
    audit.record(connection, audit.SYSTEM, actor, COMPLETED, recorded)
    return read_analysis(connection, experiment_id)


def comparison_json(comparison: Comparison | None) -> dict[str, float | str | None] | None:
    """A comparison as JSON keeps it; null where none could be made."""
    if comparison is None:
        return None
    return {name: number_to_json(value) for name, value in asdict(comparison).items()}


def analysis_json(outcomes: Mapping[str, Moments], analysis: Analysis) -> dict[str, Any]:
    """An analysis as JSON keeps it."""
    return {
        "outcomes": {arm: asdict(moments) for arm, moments in outcomes.items()},
        "sample_ratio": number_to_json(analysis.sample_ratio),
        "findings": [
            {
                "arm": finding.arm,
                "p": finding.p,
                "promotable": finding.promotable,
                "comparison": comparison_json(finding.comparison),
                "gates": [gate.to_json() for gate in finding.gates],
            }
            for finding in analysis.findings
        ],
    }


def agree(again: Any, stored: Any) -> bool:
    """Whether JSON that was made again is what is stored.

    Numbers may differ by what another version of a mathematical library rounds otherwise.
    """
    if isinstance(again, dict) and isinstance(stored, dict):
        return again.keys() == stored.keys() and all(agree(again[name], stored[name]) for name in again)
    if isinstance(again, list) and isinstance(stored, list):
        return len(again) == len(stored) and all(map(agree, again, stored))
    if isinstance(again, float) and isinstance(stored, int | float):
        return isclose(again, stored, rel_tol=1e-9, abs_tol=1e-300)
    return bool(again == stored)


class NotAnalysed(LookupError):
    """An experiment that has no analysis; the message says why."""


class Forged(RuntimeError):
    """What is stored is not what the stored numbers give."""


def read_analysis(connection: Connection, experiment_id: str) -> Analysed:
    """What an experiment showed, made again from its sessions and compared with what is stored.

    Raises:
        UnknownExperiment: there is no such experiment.
        NotAnalysed: it was not completed.
        Forged: the stored analysis is not that of the stored sessions.
    """
    experiment = read_experiment(connection, experiment_id)
    row = connection.execute(
        """
        SELECT analysed_at, test, online_level, online_bound, promoted_arm, analysis
        FROM experiment_analyses WHERE experiment_id = %s
        """,
        (experiment_id,),
    ).fetchone()
    if row is None:
        raise NotAnalysed(
            f"the experiment {experiment_id!r} has no analysis: it is {experiment.status}, and one is "
            "analysed when it is completed"
        )
    analysed_at, test, level, bound, promoted_arm, stored = row
    outcomes = outcomes_of(experiment.plan, read_sessions(connection, experiment_id))
    analysis = analyse(experiment.plan, outcomes, online_level=level if bound else None)
    if not agree(analysis_json(outcomes, analysis), stored) or analysis.promoted != promoted_arm:
        raise Forged(f"the analysis of {experiment_id!r} that is stored is not that of its stored sessions")
    return Analysed(experiment_id, analysed_at, test, level, bound, outcomes, analysis)
