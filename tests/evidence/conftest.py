"""What the tests of the evidence look at: a copy of the re-enactment, and what was made of it."""

from collections.abc import Iterator

import numpy as np
import pytest

from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations.enhancement_report import EnhancementReport
from somabrain_dagster.operations.evidence import judge, origin_of
from somabrain_dagster.store.database import Database
from tests.conftest import new_database
from tests.evidence.stage import PRIOR, Stage, blinded
from tests.reenacted import PLAN, SETTINGS, Reenactment
from tests.remembering import EmbeddedOnce


@pytest.fixture(scope="session")
def stage(postgres: PostgresServer, reenactment: Reenactment, minilm: EmbeddedOnce) -> Iterator[Stage]:
    reenacted = reenactment.reenacted
    with new_database(postgres, reenactment.template) as name, Database(postgres.url(name)) as database:
        origin = origin_of(database, SETTINGS, minilm, PLAN, reenacted)
        room = Memories(database, minilm, SETTINGS, generator=np.random.default_rng(1))
        yield Stage(database, room, reenactment.stories, reenacted, judge(reenacted, PRIOR, origin))


@pytest.fixture(scope="session")
def blind_report(stage: Stage) -> EnhancementReport:
    """What the same recalls show when the feedback names candidates drawn blindly."""
    return judge(blinded(stage.reenacted, seed=0), PRIOR, stage.report.origin)
