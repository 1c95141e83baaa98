"""What requests and answers are made of: the service checks by these types, and describes itself by them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.serving.problems import ProblemDetails
from somabrain_dagster.store.feedback_contract import TENANT_PATTERN, Feedback

TenantName = Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN)]
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


class NamedTenantQuery(_Strict, frozen=True):
    """Which tenant; only operators ask, whose key is no tenant's."""

    tenant_id: TenantName


class HistoryQuery(_Strict, frozen=True):
    """Which part of a tenant's log."""

    tenant_id: TenantName | msgspec.UnsetType = msgspec.UNSET
    below: Version | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


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
        arm: of an experiment that shifts the weights as they are read; null for none.
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
