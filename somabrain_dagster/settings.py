"""Every knob, from `SOMABRAIN_*` environment variables.

`SOMABRAIN_LEARNING` takes JSON in the shape of the learning configuration, only entries that differ, as in
`{"high": {"alpha": 2.0}, "guard": {"standard_errors": 5}}`; a tenant's own overrides have the same shape.
"""

import hashlib
import json
from datetime import date, timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from somabrain_dagster.learning.canary import CanaryRule
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.experiments import PromotionRule, sample_size
from somabrain_dagster.learning.guardrails import GuardrailRule
from somabrain_dagster.learning.trend_rule import TrendRule

_PLACES = {
    "service",
    "home",
    "database_url",
    "redis_url",
    "dagster_database_url",
    "postgres_binaries",
    "valkey_binary",
} | {
    "embedding_url",
    "embedding_api_key",
    "artifacts_url",
    "backup_url",
    "backup_database_url",
    "pseudonym_key",
    "kafka",
    "celery",
}
"""Where things are, as opposed to what is done: not part of the digest."""


class ServiceSettings(BaseSettings):
    """The knobs of the HTTP service, from `SOMABRAIN_SERVICE_*`; none of them changes what is learned.

    Attributes:
        most_waiting: feedback events that may wait in a process; more are refused with 429. An eighth is for
            requests of few; the rest has room for the longest list.
        most_together: feedback events that land in one transaction.
        body_bytes: the largest body of a request.
        requests_per_second: of each tenant, in each process; 0 for any number. With several processes a
            tenant can reach their sum: set it to the limit divided by the processes, or limit at the gateway.
        states_in_memory: tenants whose state a process holds.
        tenants_in_metrics: tenants with labels of their own; the others are under `_others`.
        metrics_open: whether `/metrics` answers without an operator's key.
        drain_seconds: how long a process that is told to end says so on `/readyz` before it stops listening.
        telemetry: whether requests are traced by OpenTelemetry, whose own variables say where to.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_SERVICE_", frozen=True, extra="ignore")

    most_waiting: int = Field(default=4096, ge=1152)
    most_together: int = Field(default=256, ge=1)
    body_bytes: int = Field(default=1024 * 1024, ge=1024)
    requests_per_second: float = Field(default=0.0, ge=0)
    states_in_memory: int = Field(default=20_000, ge=1)
    tenants_in_metrics: int = Field(default=1000, ge=0)
    metrics_open: bool = False
    drain_seconds: float = Field(default=1.0, ge=0)
    telemetry: bool = False


class KafkaSettings(BaseSettings):
    """Where the audit trail is published, from `SOMABRAIN_KAFKA_*`.

    Attributes:
        bootstrap: addresses of brokers, `host:port,host:port`; unset keeps the trail in Postgres alone.
        options: further properties of librdkafka, as JSON: `security.protocol`, `sasl.username`, …
        prefix: what the topics' names begin with.
        replication: on how many brokers each record is; one less must acknowledge it.
        partitions: of each topic, when it is created. A tenant's records are in one of them.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_KAFKA_", frozen=True, extra="ignore")

    bootstrap: str | None = Field(default=None, min_length=1)
    options: dict[str, str] = Field(default_factory=dict, repr=False)
    prefix: str = Field(default="somabrain", pattern=r"^[a-zA-Z0-9.-]{1,200}$")
    replication: int = Field(default=3, ge=1)
    partitions: int = Field(default=6, ge=1)

    @property
    def in_sync(self) -> int:
        """How many brokers must have a record before it is acknowledged."""
        return max(1, self.replication - 1)


class CelerySettings(BaseSettings):
    """Where Dagster's runs are worked on beyond one machine, from `SOMABRAIN_CELERY_*`.

    Attributes:
        broker_url: a Redis-protocol server by which runs reach Celery's workers; unset runs them on the
            daemon's machine. Another database of it than the brain's, as in `redis://…/1`.
        slots: how many runs all workers together take at once. More are not given out: they wait in Dagster's
            queue, where a run that waits for a worker is not taken for one that does not start.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_CELERY_", frozen=True, extra="ignore")

    broker_url: SecretStr | None = None
    slots: int = Field(default=4, ge=1)


class ExperimentSettings(BaseSettings):
    """When an arm of an experiment is better for certain and by enough, from `SOMABRAIN_EXPERIMENT_*`.

    Attributes:
        alpha: p, by Holm's method over the arms, must be below it.
        effect: Cohen's d must be above it, and experiments are planned to find it.
        power: how often they find it.
        sample_ratio: arms of sizes that chance gives more rarely than this make an experiment invalid.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_EXPERIMENT_", frozen=True, extra="ignore")

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    effect: float = Field(default=0.3, gt=0)
    power: float = Field(default=0.8, gt=0.5, lt=1)
    sample_ratio: float = Field(default=0.001, gt=0, lt=1)

    @property
    def rule(self) -> PromotionRule:
        """When an arm is promoted."""
        return PromotionRule(self.alpha, self.effect, self.sample_ratio)

    @property
    def size(self) -> int:
        """How many sessions an arm takes: 176 at the defaults."""
        return sample_size(self.effect, alpha=self.alpha, power_wanted=self.power)


class CanarySettings(BaseSettings):
    """Whom new weights are tried on first, and what ends the trial, from `SOMABRAIN_CANARY_*`.

    Attributes:
        share, strata, hours, hours_before, alpha, margin, sessions, guardrails: as in `CanaryRule`.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_CANARY_", frozen=True, extra="ignore")

    share: float = Field(default=CanaryRule.share, gt=0, lt=1)
    strata: int = Field(default=CanaryRule.strata, ge=1)
    hours: tuple[float, ...] = Field(default=CanaryRule.hours, min_length=1)
    hours_before: float = Field(default=CanaryRule.hours_before, gt=0)
    alpha: float = Field(default=CanaryRule.alpha, gt=0, lt=0.5)
    margin: float = Field(default=CanaryRule.margin, gt=0)
    sessions: int = Field(default=CanaryRule.sessions, ge=2)
    guardrails: tuple[Literal["error_rate", "latency_p95"], ...] = ("error_rate", "latency_p95")

    @field_validator("hours")
    @classmethod
    def _rising(cls, hours: tuple[float, ...]) -> tuple[float, ...]:
        if not all(earlier < later for earlier, later in pairwise((0.0, *hours))):
            raise ValueError("the hours of the looks must be above 0 and rise")
        return hours

    @property
    def rule(self) -> CanaryRule:
        """The rule of a canary that starts now."""
        return CanaryRule(**self.model_dump())


class GuardrailSettings(BaseSettings):
    """How much worse requests may go for a canary's tenants, from `SOMABRAIN_GUARDRAIL_*`.

    Attributes:
        error_margin, latency_factor, requests: as in `GuardrailRule`.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_GUARDRAIL_", frozen=True, extra="ignore")

    error_margin: float = Field(default=GuardrailRule.error_margin, ge=0, le=1)
    latency_factor: float = Field(default=GuardrailRule.latency_factor, ge=1)
    requests: int = Field(default=GuardrailRule.requests, ge=1)

    @property
    def rule(self) -> GuardrailRule:
        """The rule of a look that is taken now."""
        return GuardrailRule(**self.model_dump())


class RetentionSettings(BaseSettings):
    """How long what landed is kept, from `SOMABRAIN_RETENTION_*`.

    Attributes:
        days: feedback, recalls and token usage go once all that landed in the same week is older than this;
            idempotency keys and counts of requests go when they are.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_RETENTION_", frozen=True, extra="ignore")

    days: float = Field(default=90.0, gt=0, le=36_500)

    @property
    def kept(self) -> timedelta:
        """The time for which a row is kept at least."""
        return timedelta(days=self.days)


class Settings(BaseSettings):
    """The settings of one process, read once.

    Attributes:
        home: where embedded servers, Dagster's files and artifacts live.
        database_url: the brain's Postgres, as the owner of its database; unset starts the embedded one.
        redis_url: a Redis-protocol server; unset starts the embedded Valkey.
        dagster_database_url: where Dagster keeps its runs; unset is a database of its own beside the brain's.
        postgres_binaries, valkey_binary: other programs for the embedded servers than the bundled ones.
        learning: entries of the learning configuration that differ from the defaults.
        learning_rate_dynamic: whether dopamine scales the learning rate.
        tau_adaptation: whether recalls steer τ by the diversity of what a tenant recalls.
        neuromodulated_recall: whether noradrenaline sharpens and acetylcholine leans recall.
        graph_augment_max_additions: how many memories links alone may bring into one recall.
        hnsw_threshold: with how many embedded memories a tenant gets an approximate index of its own.
        working_memory_capacity: how many memories a session's working memory holds.
        working_memory_seconds: how long a working memory that nobody adds to is kept.
        embedding_url, embedding_model, embedding_dimension, embedding_api_key: a service that speaks the
            `/embeddings` protocol; without a URL the bundled model runs in the process.
        learning_loop_enabled: whether training corpora may be built at all.
        artifacts_url: where corpora are kept, an fsspec URL; unset is a folder at home.
        pseudonym_key: 64 or more hexadecimal digits, under which tenants have their names in corpora; unset
            uses a key that is made once and kept at home.
        backup_url: where backups are kept, an fsspec URL; unset is `backups` beside the corpora. They hold
            all that the brain holds: give it to nobody who may not read that.
        backup_database_url: the brain's Postgres again, for a role that may replicate and so copy the whole
            cluster; unset tries as the owner.
        backup_keep: how many verified backups are kept, besides the last one that was proven.
        backup_redis: whether working memories are backed up too.
        autopilot: whether sensors may change anything.
        sensor_interval_seconds: how often sensors look.
        service: the knobs of the HTTP service.
        kafka: where the audit trail is published.
        celery: where Dagster's runs are worked on beyond one machine.
        experiment: the knobs of experiments.
        canary: the knobs of canaries.
        promotion_fdr: whether the false discovery rate over all experiments (LORD++) is a gate of a
            promotion, or only told.
        guardrail: the knobs of a canary's guardrails.
        retention: how long what landed is kept.
        first_day: the first day that an event may be about; days before it are not aggregated.
        trend_false_discovery_rate: the share of false ones among the trends that are acted upon.
        trend_effect: by how many standard deviations of its residuals a tenant's utility must have risen or
            fallen for its trend to be acted upon.
        proposal_events: how many new labelled feedback events make a proposal of weights for everybody due.
        tenant_fit_events: how many make a fit of a tenant's own weights due.
        fit_recalls: of how many labelled recalls of each tenant, the newest, a fit learns.
    """

    model_config = SettingsConfigDict(env_prefix="SOMABRAIN_", frozen=True, extra="ignore")

    home: Path = Path(".somabrain")
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    dagster_database_url: SecretStr | None = None
    postgres_binaries: Path | None = None
    valkey_binary: Path | None = None
    learning: dict[str, Any] = Field(default_factory=dict)
    learning_rate_dynamic: bool = False
    tau_adaptation: bool = True
    neuromodulated_recall: bool = False
    graph_augment_max_additions: int = Field(default=10, ge=0, le=100)
    hnsw_threshold: int = Field(default=5000, ge=1)
    working_memory_capacity: int = Field(default=32, ge=1, le=10_000)
    working_memory_seconds: int = Field(default=86_400, ge=1)
    embedding_url: str | None = None
    embedding_model: str | None = None
    embedding_dimension: int | None = Field(default=None, ge=1, le=8192)
    embedding_api_key: SecretStr | None = None
    learning_loop_enabled: bool = False
    artifacts_url: str | None = None
    pseudonym_key: SecretStr | None = None
    backup_url: str | None = None
    backup_database_url: SecretStr | None = None
    backup_keep: int = Field(default=7, ge=1)
    backup_redis: bool = True
    autopilot: bool = False
    sensor_interval_seconds: int = Field(default=300, ge=1)
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    celery: CelerySettings = Field(default_factory=CelerySettings)
    experiment: ExperimentSettings = Field(default_factory=ExperimentSettings)
    canary: CanarySettings = Field(default_factory=CanarySettings)
    promotion_fdr: Literal["report", "enforce"] = "report"
    guardrail: GuardrailSettings = Field(default_factory=GuardrailSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    first_day: date = date(2018, 1, 1)
    trend_false_discovery_rate: float = Field(default=TrendRule.false_discovery_rate, gt=0, lt=1)
    trend_effect: float = Field(default=TrendRule.effect, ge=0)
    proposal_events: int = Field(default=100, ge=1)
    tenant_fit_events: int = Field(default=25, ge=1)
    fit_recalls: int = Field(default=500, ge=1)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("learning")
    @classmethod
    def _possible(cls, learning: dict[str, Any]) -> dict[str, Any]:
        LearningConfiguration().overridden(learning)
        return learning

    @cached_property
    def learning_configuration(self) -> LearningConfiguration:
        """The global learning configuration."""
        switched = {"dynamic_learning_rate": self.learning_rate_dynamic}
        return LearningConfiguration().overridden(switched | self.learning)

    @property
    def artifacts(self) -> str:
        """The fsspec URL of where corpora are kept."""
        return self.artifacts_url or f"file://{self.home / 'artifacts'}"

    @property
    def backups(self) -> str:
        """The fsspec URL of where backups are kept."""
        return self.backup_url or f"{self.artifacts.rstrip('/')}/backups"

    @cached_property
    def trend_rule(self) -> TrendRule:
        """When a trend is acted upon."""
        return TrendRule(self.trend_false_discovery_rate, self.trend_effect)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of every knob that decides what is done; addresses left out."""
        knobs = self.model_dump(mode="json", exclude=_PLACES | {"learning"})
        knobs["learning"] = self.learning_configuration.digest
        return hashlib.sha256(json.dumps(knobs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
