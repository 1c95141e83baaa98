"""What requests and answers are made of: the service checks by these types, and describes itself by them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.serving.problems import ProblemDetails
from somabrain_dagster.store.feedback_contract import TENANT_PATTERN, Feedback
from somabrain_dagster.store.keys import Scope

TenantName = Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN)]
ExperimentName = TenantName
"""Experiments are named as tenants are."""
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern="^[^\\x00\\ud800-\\udfff]*$")]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

MOST_TOGETHER = 1000
"""Feedback in one list."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class FeedbackRequest(Feedback, frozen=True, kw_only=True):
    """Feedback as it is sent: a tenant's own key says whose it is, an operator's request must."""

    tenant_id: TenantName = ""


FeedbackList = Annotated[list[FeedbackRequest], msgspec.Meta(min_length=1, max_length=MOST_TOGETHER)]


class LandedFeedback(msgspec.Struct, frozen=True, kw_only=True):
    """Feedback that is committed.

    Attributes:
        event_id: names it everywhere.
        seq: its number in the tenant's own sequence.
        version: of the tenant's weights after it.
        weights: after it, in units, by name.
        repeated: the idempotency key was used before; this is the first answer.
    """

    event_id: str
    tenant_id: str
    seq: int
    version: int
    weights: dict[str, float]
    repeated: bool


class FeedbackResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one feedback of a list: it landed, or there was a problem."""

    landed: LandedFeedback | None = None
    problem: ProblemDetails | None = None


class FeedbackResults(msgspec.Struct, frozen=True, kw_only=True):
    """One result for each feedback of a list, in order."""

    results: list[FeedbackResult]


class RefusedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a stream that was not landed."""

    line: int
    problem: ProblemDetails


class TenantAfter(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant after a stream of feedback."""

    first_event_id: str
    last_event_id: str
    version: int
    weights: dict[str, float]


class StreamSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a stream of feedback.

    Attributes:
        landed, repeated, refused: how many lines.
        refusals: the first of those that were refused.
        tenants: each tenant after its last line.
    """

    landed: int
    repeated: int
    refused: int
    refusals: list[RefusedLine]
    tenants: dict[str, TenantAfter]


class TenantQuery(_Strict, frozen=True):
    """Which tenant; the key's own where it is left out."""

    tenant_id: TenantName | msgspec.UnsetType = msgspec.UNSET


class StateQuery(TenantQuery, frozen=True):
    """Which tenant, and the session that sees an arm of what is on trial."""

    session_id: Word | msgspec.UnsetType = msgspec.UNSET


class NamedTenantQuery(_Strict, frozen=True):
    """Which tenant; only operators ask, whose key is no tenant's."""

    tenant_id: TenantName


class HistoryQuery(_Strict, frozen=True):
    """Which part of a tenant's log."""

    tenant_id: TenantName | msgspec.UnsetType = msgspec.UNSET
    below: Version | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class TenantsQuery(_Strict, frozen=True):
    """Which tenants of those that the key may see."""

    prefix: Annotated[str, msgspec.Meta(pattern="^[a-z0-9._-]{0,63}$")] = ""
    after: TenantName | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class ExperimentsQuery(_Strict, frozen=True):
    """Which part of the experiments."""

    before: ExperimentName | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20


class AssignmentQuery(_Strict, frozen=True):
    """Which unit is to be assigned: tenant/session."""

    unit: Annotated[
        str,
        msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}/[^\x00-\x1f\ud800-\udfff]{1,200}$"),
    ]


class RollbackRequest(_Strict, frozen=True):
    """The version whose weights are to be given back."""

    version: Version


def _level(name: str) -> Any:
    low, high = LEVELS[name]
    return Annotated[float, msgspec.Meta(ge=low, le=high)] | None | msgspec.UnsetType


NeuromodulatorsRequest = msgspec.defstruct(
    "NeuromodulatorsRequest",
    [(name, _level(name), msgspec.UNSET) for name in LEVELS],
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    namespace={"__doc__": "Levels to hold; null lets go of one; what is left out stays as it is."},
)


class NeuromodulatorsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's neuromodulators.

    Attributes:
        levels: now, by name.
        held: those that an operator holds.
        prediction_error: of the tenant's last feedback.
    """

    tenant_id: str
    version: int
    levels: dict[str, float]
    held: dict[str, float]
    prediction_error: float
    updated_at: datetime


class StateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's adaptation state.

    Attributes:
        version: of its last change of weights.
        weights: in units, by name; `nanos` are the same, exactly, in nano-units.
        neuromodulators: their levels; `held` are those that an operator holds.
        learning_rate: that the last feedback met, under the configuration of the last change.
        prediction_error: of the last feedback.
        feedback_seq: its number, 0 before the first.
        hash: of the last change.
        arm: what the session, or the tenant where none is given, sees of what is on trial: it shifts the
            weights as they are read; null for none. A session of an experiment is named by `session_id`.
        source: where the answer was read.
    """

    tenant_id: str
    version: int
    weights: dict[str, float]
    nanos: list[int]
    neuromodulators: dict[str, float]
    held: dict[str, float]
    learning_rate: float
    prediction_error: float
    feedback_seq: int
    hash: str
    arm: str | None
    updated_at: datetime
    source: Literal["memory", "redis", "postgres"]


class ChangeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A change of weights: its cause, what that refers to, the weights before and after."""

    version: int
    created_at: datetime
    cause: str
    before: dict[str, float] | None
    after: dict[str, float]
    event_id: str | None
    restored_version: int | None
    recall_id: int | None
    promotion: int | None
    scale_version: int | None


class HistoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a tenant's log, newest first; `next_below` asks for the part before it."""

    tenant_id: str
    changes: list[ChangeAnswer]
    next_below: int | None


class SaidAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A feedback event, as it was said; `arm` is what its session saw of what was on trial."""

    event_id: str
    seq: int
    created_at: datetime
    occurred_at: datetime
    session_id: str
    source: str
    utility: float
    reward: float | None
    recall_id: int | None
    label: str | None
    arm: str | None


class FeedbackHistoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a tenant's feedback, newest first; `next_below` asks for the part before it."""

    tenant_id: str
    feedback: list[SaidAnswer]
    next_below: int | None


class TenantAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant.

    Attributes:
        learning_loop_enabled: whether corpora may be made of it.
        version: of its last change of weights.
        feedback: how many events it has had.
        updated_at: when its state last changed.
    """

    tenant_id: str
    created_at: datetime
    learning_loop_enabled: bool
    version: int
    weights: dict[str, float]
    feedback: int
    updated_at: datetime


class TenantsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the tenants that the key may see, by name; `next_after` asks for the part behind it.

    Attributes:
        scope: what the key may do.
    """

    scope: Scope
    tenants: list[TenantAnswer]
    next_after: str | None


class ArmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An arm of an experiment.

    Attributes:
        share: of the sessions.
        sessions: of which something was said so far.
        mean: of their rewards, one number a session.
        p: Welch's against the control, adjusted by Holm; null before the analysis, and of the control.
        d: Cohen's.
    """

    name: str
    share: float
    sessions: int
    mean: float | None
    p: float | None
    d: float | None


class ExperimentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment.

    Attributes:
        size: the sessions that each arm needs.
        arms: the control first.
        end_reason: why it ended.
        promoted_arm: the arm that passed every gate.
        canary: the status of the newest canary that tries that arm.
    """

    experiment_id: str
    status: Literal["draft", "running", "stopped", "completed"]
    size: int
    arms: list[ArmAnswer]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    promoted_arm: str | None
    canary: str | None


class ExperimentsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the experiments, newest first; `next_before` asks for the part before it."""

    experiments: list[ExperimentAnswer]
    next_before: str | None


class PromotedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that are promoted to all tenants.

    Attributes:
        version: 0 for the configured start, before any promotion.
        experiment_id: the experiment that they come from.
    """

    version: int
    weights: dict[str, float]
    experiment_id: str | None
    created_at: datetime | None


class AssignmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The arm of a unit."""

    experiment_id: str
    unit: str
    arm: str


class TokensRequest(_Strict, frozen=True):
    """Tokens that a session used; whose count it is, is the tokenizer's name."""

    session_id: Word
    tokens: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    tokenizer: Word
    tenant_id: TenantName | None = None
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class TokensAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows were recorded."""

    recorded: int


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"]
    version: str


class ReadyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether each thing that the service needs is there; `ok`, or what is wrong with it.

    Attributes:
        ready: whether feedback can be landed now; Redis may be away.
    """

    ready: bool
    draining: bool
    postgres: str
    migrations: str
    redis: str
    queue: str
    listening: bool
