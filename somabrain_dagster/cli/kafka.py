"""The relay of the audit trail to Kafka, and how Kafka fares, for a person at a terminal."""

import signal
import sys
import threading
from datetime import datetime

import click
from rich.table import Table

from somabrain_dagster.cli.console import console, explained, opened
from somabrain_dagster.embedded.kafka import start_kafka, stop_kafka
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.kafka import KafkaHealth, ensure_topics, kafka_health, required, topic_of
from somabrain_dagster.operations.relay import Relay
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.outbox import LOGS, read_unpublished


@click.group()
def kafka() -> None:
    """Kafka: the audit trail in others' hands."""


@kafka.command()
@explained
def relay() -> None:
    """Publish audit events, changes of weights and feedback, until Ctrl-C or SIGTERM.

    One relay works on a database; another one waits until it has ended.
    """
    settings = Settings()
    required(settings.kafka)
    running = servers.start(settings)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    Relay(running.database_url, settings.kafka, said).run(stopping)


def said(sentence: str) -> None:
    """Print what the relay says, with the time."""
    click.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {sentence}")


@kafka.command()
@explained
def topics() -> None:
    """Create the topics that are missing, on as many brokers as they must be on."""
    settings = Settings()
    required(settings.kafka)
    created = ensure_topics(settings.kafka, LOGS)
    for log in LOGS:
        topic = topic_of(settings.kafka, log)
        console.print(f"{topic}: {'created' if topic in created else 'exists already'}", highlight=False)


@kafka.command()
@explained
def lag() -> None:
    """Show how much of each log is not published yet."""
    settings = Settings()
    required(settings.kafka)
    with opened(settings) as (database, _), database.as_operator() as connection:
        unpublished = read_unpublished(connection)
    table = Table(box=None)
    table.add_column("topic")
    table.add_column("unpublished", justify="right")
    table.add_column("oldest", justify="right")
    for each in unpublished:
        oldest = f"{each.oldest_seconds:,.1f} s" if each.records else ""
        table.add_row(topic_of(settings.kafka, each.log), f"{each.records:,}", oldest)
    console.print(table)


@kafka.command()
@explained
def health() -> None:
    """Say how the brokers, the controllers' quorum and the topics fare.

    Exit 1 where one more loss would stop it, or where it has stopped.
    """
    found = kafka_health(Settings().kafka)
    show_health(found)
    if found.state != "healthy":
        sys.exit(1)


def show_health(found: KafkaHealth) -> None:
    """Print what answers, what is away, and what to do."""
    color = {"healthy": "green", "at risk": "yellow", "stopped": "red"}[found.state]
    console.print(f"[{color}]{found.state}[/]  {found.advice}", highlight=False)
    brokers = f"{numbered(found.answering)} answer"
    if found.silent:
        brokers += f"; {numbered(found.silent)} do not"
    controllers = f"{numbered(found.current)} of {numbered(found.voters)} follow their leader"
    if not found.voters:
        controllers = "nobody knows a leader: there is no majority of them"
    console.print(f"brokers      {brokers}", highlight=False)
    console.print(f"controllers  {controllers}", highlight=False)
    if not found.partitions:
        console.print("partitions   none yet: `somabrain kafka topics` creates the topics", highlight=False)
        return
    console.print(
        f"partitions   {len(found.partitions)}: {len(found.under_replicated)} under-replicated, "
        f"{len(found.at_minimum)} with no replica to spare, {len(found.unwritable)} that cannot be written",
        highlight=False,
    )


def numbered(nodes: tuple[int, ...]) -> str:
    """Nodes as a person reads them."""
    return ", ".join(map(str, nodes)) or "none"


@kafka.command()
@explained
def up() -> None:
    """Start three nodes of Kafka on this machine to try it out; needs Java 17 and Maven."""
    cluster = start_kafka(Settings().home)
    console.print(
        f"nodes {numbered(tuple(cluster.running()))} of Kafka run, in {cluster.directory}", highlight=False
    )
    console.print(f"export SOMABRAIN_KAFKA_BOOTSTRAP={cluster.bootstrap}", highlight=False, soft_wrap=True)


@kafka.command()
@explained
def down() -> None:
    """Stop them; what they hold stays."""
    console.print("Kafka is stopped" if stop_kafka(Settings().home) else "no node of Kafka was running")
