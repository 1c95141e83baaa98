"""The brain: its database and its snapshots, for whatever runs in Dagster."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import dagster as dg

from somabrain_dagster.operations.servers import open_store, start
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database


@dataclass(frozen=True)
class Brain:
    """What an asset, a check or a sensor works with.

    Attributes:
        settings: of the process.
        database: the brain's Postgres.
        snapshots: the adaptation states as they are served from Redis.
    """

    settings: Settings
    database: Database
    snapshots: SnapshotCache


def brain_resource(settings: Settings) -> dg.ResourceDefinition:
    """The brain behind these settings, opened when a run or a tick needs it and closed after it.

    Servers that the settings name by URL are used as they are; embedded ones are attached to, and started
    where they do not run.
    """

    @dg.resource(description="The brain's Postgres and the snapshots in Redis.")
    def brain(_context: dg.InitResourceContext) -> Iterator[Brain]:
        database, snapshots = open_store(start(settings))
        with database, closing(snapshots):
            yield Brain(settings, database, snapshots)

    return brain
