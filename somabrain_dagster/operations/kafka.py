"""Kafka as the relay needs it: the client, the topics, and how a cluster fares."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from somabrain_dagster.settings import KafkaSettings
from somabrain_dagster.store.kafka_health import KafkaCounts, KafkaState
from somabrain_dagster.store.outbox import LOGS, LogName

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient, ClusterMetadata

ASK_SECONDS = 5.0
"""How long a cluster has for an answer."""

_UNHEARD_SECONDS = 0.1

CURRENT_SECONDS = 5.0
"""A controller that has not asked the leader for more in this time is not there: they ask twice a second."""

_NAMES: Mapping[LogName, str] = {
    "audit_events": "audit",
    "weight_changes": "weights",
    "feedback_events": "feedback",
}
_LARGEST_RECORD = 4 * 1024 * 1024
_FOR_KAFKA_PYTHON = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}


class KafkaMissing(RuntimeError):
    """Kafka is not configured, or its clients are not installed; the message says what to do."""


class KafkaUnreachable(RuntimeError):
    """No broker answers, or none can do what is asked of it now."""


class UnsafeTopics(RuntimeError):
    """Topics cannot be had on as many brokers as they must be on; the message says what to do."""


def required(kafka: KafkaSettings) -> str:
    """The bootstrap addresses, once it is sure that they can be used.

    Raises:
        KafkaMissing: there are none, or the extra `kafka` is not installed.
    """
    if kafka.bootstrap is None:
        raise KafkaMissing(
            "Kafka is not configured: set SOMABRAIN_KAFKA_BOOTSTRAP to the brokers, as host:port,host:port; "
            "`make kafka` starts three on this machine to try it out"
        )
    try:
        import confluent_kafka  # noqa: F401
        import kafka as _  # noqa: F401
    except ImportError as error:
        raise KafkaMissing(
            f"SOMABRAIN_KAFKA_BOOTSTRAP is set, but {error.name} is not installed: "
            "pip install 'somabrain-dagster[kafka]', or unset it to keep the audit trail in Postgres alone"
        ) from error
    return kafka.bootstrap


def topic_of(kafka: KafkaSettings, log: LogName) -> str:
    """The topic of a log: `somabrain.audit`, `somabrain.weights`, `somabrain.feedback`."""
    return f"{kafka.prefix}.{_NAMES[log]}"


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """What every client of librdkafka gets; its log goes to ours."""
    return {
        "bootstrap.servers": required(kafka),
        "client.id": "somabrain",
        "socket.timeout.ms": int(ASK_SECONDS * 1000),
        "reconnect.backoff.max.ms": 1000,
        "log_level": 4,
        **kafka.options,
    }


def producer_options(kafka: KafkaSettings) -> dict[str, Any]:
    """What the relay's producer gets: nothing is given up, nothing overtakes, nothing is there twice."""
    return {
        "client.id": "somabrain-relay",
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": _LARGEST_RECORD,
        **client_options(kafka),
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": 0,  # a record waits for as long as its cluster is away
        "partitioner": "murmur2_random",  # as clients in Java do it
    }


def _administrator(kafka: KafkaSettings, **options: Any) -> "AdminClient":
    from confluent_kafka.admin import AdminClient

    # Brokers that do not answer are what is being asked about: no news for the log.
    return AdminClient({**client_options(kafka), **options}, logger=_quiet())


def _quiet() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.librdkafka")
    logger.setLevel(logging.CRITICAL)
    return logger


def ensure_topics(kafka: KafkaSettings, logs: Iterable[LogName]) -> list[str]:
    """Create the topics that are missing, and refuse those that would lose records with one broker.

    Returns:
        The names of those that were created.

    Raises:
        UnsafeTopics: there are too few brokers, or a topic has too few replicas or asks for too few of them.
        KafkaUnreachable: the cluster does not answer.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import NewTopic

    administrator = _administrator(kafka)
    wanted = [topic_of(kafka, log) for log in logs]
    try:
        known = administrator.list_topics(timeout=ASK_SECONDS)
        missing = [name for name in wanted if name not in known.topics]
        if missing and len(known.brokers) < kafka.replication:
            raise UnsafeTopics(
                f"{len(known.brokers)} of the {kafka.replication} brokers are there that the topics "
                f"{', '.join(missing)} must be on: start more, or set SOMABRAIN_KAFKA_REPLICATION to "
                f"{len(known.brokers)} and live with what the loss of one then means"
            )
        made = (
            administrator.create_topics(
                [
                    NewTopic(
                        name,
                        num_partitions=kafka.partitions,
                        replication_factor=kafka.replication,
                        config={
                            "min.insync.replicas": str(kafka.in_sync),
                            "unclean.leader.election.enable": "false",
                            "max.message.bytes": str(_LARGEST_RECORD),
                            "retention.ms": "-1",
                        },
                    )
                    for name in missing
                ],
                request_timeout=ASK_SECONDS,
            )
            if missing
            else {}
        )
        for future in made.values():
            future.result(ASK_SECONDS)
        minimum = _minimum_in_sync(administrator, [name for name in wanted if name not in missing])
    except (KafkaException, TimeoutError) as error:
        raise KafkaUnreachable(_words(error)) from error
    for name, in_sync in minimum.items():
        replicas = min(len(partition.replicas) for partition in known.topics[name].partitions.values())
        if replicas < kafka.replication or in_sync < kafka.in_sync:
            raise UnsafeTopics(
                f"the topic {name} is on {replicas} brokers, of which {in_sync} must acknowledge a record; "
                f"{kafka.replication} and {kafka.in_sync} are wanted. Change it with "
                "kafka-reassign-partitions and kafka-configs, or set "
                f"SOMABRAIN_KAFKA_REPLICATION={replicas}"
            )
    return missing


def _minimum_in_sync(administrator: "AdminClient", topics: Iterable[str]) -> dict[str, int]:
    """Of each topic, how many replicas must have a record before it is acknowledged."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import ConfigResource, ResourceType

    asked = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    if not asked:
        return {}
    deadline = time.monotonic() + ASK_SECONDS
    while True:
        answers = administrator.describe_configs(asked, request_timeout=ASK_SECONDS)
        try:
            return {
                resource.name: int(future.result(ASK_SECONDS)["min.insync.replicas"].value)
                for resource, future in answers.items()
            }
        except KafkaException as error:
            # A broker that answers may not have heard yet of a topic that another knows.
            unheard = error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            if not unheard or time.monotonic() > deadline:
                raise
        time.sleep(_UNHEARD_SECONDS)


def _words(error: BaseException) -> str:
    reason = error.args[0] if error.args else error
    return str(reason.str() if hasattr(reason, "str") else reason) or type(error).__name__


@dataclass(frozen=True)
class Partition:
    """A partition of one of the relay's topics.

    Attributes:
        name: such as `somabrain.audit/3`.
        replicas: the brokers that it is to be on.
        in_sync: those of them that have all of it, and answer.
        minimum: how many must have a record before it is acknowledged.
        led: whether its leader answers.
    """

    name: str
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]
    minimum: int
    led: bool

    @property
    def writable(self) -> bool:
        """Whether a record for it can be acknowledged."""
        return self.led and len(self.in_sync) >= self.minimum


@dataclass(frozen=True)
class KafkaHealth:
    """How a cluster fares.

    Attributes:
        answering: the brokers that answered, by id.
        silent: those that are to have a replica, or were there a moment ago, and did not answer.
        unreachable: addresses at which nobody answered.
        voters: the controllers that vote; none where no leader says who they are.
        current: those of them that follow the leader.
        partitions: of the relay's topics.
    """

    answering: tuple[int, ...]
    silent: tuple[int, ...]
    unreachable: tuple[str, ...]
    voters: tuple[int, ...]
    current: tuple[int, ...]
    partitions: tuple[Partition, ...]

    @property
    def quorum(self) -> bool:
        """Whether a majority of the controllers is there."""
        return 2 * len(self.current) > len(self.voters)

    @property
    def under_replicated(self) -> list[Partition]:
        """Partitions that are not on all the brokers that they are to be on."""
        return [
            partition for partition in self.partitions if len(partition.in_sync) < len(partition.replicas)
        ]

    @property
    def unwritable(self) -> list[Partition]:
        """Partitions in which nothing can be acknowledged."""
        return [partition for partition in self.partitions if not partition.writable]

    @property
    def at_minimum(self) -> list[Partition]:
        """Partitions that one more loss would make so."""
        return [
            partition
            for partition in self.partitions
            if partition.writable and len(partition.in_sync) == partition.minimum
        ]

    @property
    def state(self) -> KafkaState:
        """`at risk` where one more loss would stop it."""
        if not self.quorum or self.unwritable:
            return "stopped"
        outlives = 2 * (len(self.current) - 1) > len(self.voters)
        return "healthy" if outlives and not self.at_minimum and not self.silent else "at risk"

    @property
    def counts(self) -> KafkaCounts:
        """The same in numbers."""
        return KafkaCounts(
            state=self.state,
            answering=len(self.answering),
            silent=len(self.silent),
            voters=len(self.voters),
            current_voters=len(self.current),
            under_replicated=len(self.under_replicated),
            at_minimum=len(self.at_minimum),
            unwritable=len(self.unwritable),
        )

    @property
    def advice(self) -> str:
        """What to do, in a sentence or two."""
        lost = sorted({*self.silent} | ({*self.voters} - {*self.current}))
        away = ", ".join(f"node {node}" for node in lost) or ", ".join(self.unreachable)
        if not self.answering:
            return "No broker answers: start them, or correct SOMABRAIN_KAFKA_BOOTSTRAP."
        if not self.quorum:
            return (
                f"Start what is away ({away}) at once: without a majority of the controllers nothing is "
                "acknowledged. Nothing is lost: what is not acknowledged waits in Postgres."
            )
        if self.unwritable:
            return (
                f"Start what is away ({away}): partitions have too few replicas in sync, and the relay waits "
                "for them. Nothing is lost: what is not acknowledged waits in Postgres."
            )
        if self.state == "healthy":
            return "It outlives the loss of any one node."
        if away:
            return f"Bring back {away}: one more loss would stop it."
        return "It has too few nodes to outlive the loss of one: run three, and keep topics on three."


def kafka_health(kafka: KafkaSettings) -> KafkaHealth:
    """Ask each broker, the leader of the controllers, and the partitions' states.

    Raises:
        KafkaMissing: Kafka is not configured, or its clients are not installed.
    """
    bootstrap = required(kafka).split(",")
    with ThreadPoolExecutor(2 + len(bootstrap)) as pool:
        asked = pool.submit(_quorum, kafka)
        answers = dict(zip(bootstrap, pool.map(lambda one: _metadata_at(kafka, one), bootstrap), strict=True))
        named = {
            broker.id: f"{broker.host}:{broker.port}"
            for metadata in answers.values()
            if metadata is not None
            for broker in metadata.brokers.values()
        }
        others = [address for address in named.values() if address not in answers]
        answers |= dict(zip(others, pool.map(lambda one: _metadata_at(kafka, one), others), strict=True))
        voters, current = asked.result()
    answering = {broker for broker, address in named.items() if answers[address] is not None}
    partitions = list(_partitions(kafka, answers.values(), answering))
    replicas = {replica for partition in partitions for replica in partition.replicas}
    return KafkaHealth(
        answering=tuple(sorted(answering)),
        silent=tuple(sorted((replicas | named.keys()) - answering)),
        unreachable=tuple(address for address, metadata in answers.items() if metadata is None),
        voters=tuple(sorted(voters)),
        current=tuple(sorted(current)),
        partitions=tuple(partitions),
    )


def _metadata_at(kafka: KafkaSettings, address: str) -> "ClusterMetadata | None":
    """What one broker answers; None where nobody does."""
    from confluent_kafka import KafkaException

    try:
        return _administrator(kafka, **{"bootstrap.servers": address}).list_topics(timeout=ASK_SECONDS)
    except KafkaException:
        return None


def _partitions(
    kafka: KafkaSettings, answers: Iterable["ClusterMetadata | None"], answering: set[int]
) -> Iterator[Partition]:
    """The partitions of the relay's topics, as somebody who answers sees them.

    Without a quorum nobody is told that a replica is lost: of those in sync, only brokers that answer count.
    """
    from confluent_kafka import KafkaException

    known = next((metadata for metadata in answers if metadata is not None), None)
    if known is None:
        return
    topics = [name for name in (topic_of(kafka, log) for log in LOGS) if name in known.topics]
    try:
        minimum = _minimum_in_sync(_administrator(kafka), topics)
    except (KafkaException, TimeoutError):
        minimum = {}
    for name in topics:
        for number, partition in sorted(known.topics[name].partitions.items()):
            yield Partition(
                name=f"{name}/{number}",
                replicas=tuple(partition.replicas),
                in_sync=tuple(set(partition.isrs) & answering),
                minimum=minimum.get(name, kafka.in_sync),
                led=partition.leader in answering,
            )


def _quorum(kafka: KafkaSettings) -> tuple[set[int], set[int]]:
    """The controllers that vote, and those of them that follow their leader; none where there is no leader.

    `confluent_kafka` has no call for it, `kafka` has.
    """
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    options = {
        _FOR_KAFKA_PYTHON[name]: value for name, value in kafka.options.items() if name in _FOR_KAFKA_PYTHON
    }
    milliseconds = int(ASK_SECONDS * 1000)
    try:
        client = KafkaAdminClient(
            bootstrap_servers=required(kafka).split(","),
            bootstrap_timeout_ms=milliseconds,
            request_timeout_ms=milliseconds,
            **options,
        )
        try:
            (topic,) = client.describe_metadata_quorum()["topics"]
        finally:
            client.close()
    except (KafkaError, OSError):
        return set(), set()
    (partition,) = topic["partitions"]
    asked_last = {voter["replica_id"]: voter["last_fetch_timestamp"] for voter in partition["current_voters"]}
    now = asked_last.get(partition["leader_id"], -1)
    if now < 0:
        return set(asked_last), set()
    return set(asked_last), {
        voter for voter, at in asked_last.items() if at > 0 and now - at <= CURRENT_SECONDS * 1000
    }
