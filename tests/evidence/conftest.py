"""One re-enactment for all tests of the evidence: it takes most of a minute."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.enhancement_report import EnhancementReport
from somabrain_dagster.operations.evidence import judge, origin_of
from somabrain_dagster.operations.reenactment import reenact, stories
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from tests.conftest import new_database
from tests.evidence.stage import PEOPLE, PLAN, PRIOR, Stage, blinded


@pytest.fixture(scope="session")
def stage(postgres: PostgresServer, migrated_template: str) -> Iterator[Stage]:
    settings = Settings(home=Path("/nowhere"))
    embedder = MiniLM(threads=1)
    told = stories(read_chitchat(PEOPLE), PLAN.memories)
    with new_database(postgres, migrated_template) as name, Database(postgres.url(name)) as database:
        reenacted = reenact(database, embedder, settings, told, PLAN)
        origin = origin_of(database, settings, embedder, PLAN, reenacted)
        room = Memories(database, embedder, settings, generator=np.random.default_rng(1))
        yield Stage(database, room, told, reenacted, judge(reenacted, PRIOR, origin))


@pytest.fixture(scope="session")
def blind_report(stage: Stage) -> EnhancementReport:
    """What the same recalls show when the feedback names candidates drawn blindly."""
    return judge(blinded(stage.reenacted, seed=0), PRIOR, stage.report.origin)
