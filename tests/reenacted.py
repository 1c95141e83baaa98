"""One small re-enactment for all tests of a brain that people have taught: real, a hundred events each."""

from dataclasses import dataclass
from pathlib import Path

from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Plan, Reenacted, Story, reenact, stories
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database

PEOPLE = 6
PLAN = Plan(memories=450, feedback=100, held_out=40)
SETTINGS = Settings(home=Path("/nowhere"))


@dataclass(frozen=True)
class Reenactment:
    """What was re-enacted.

    Attributes:
        template: the name of the database in which it happened; connect to copies of it only.
    """

    template: str
    stories: list[Story]
    reenacted: list[Reenacted]


def reenactment_in(database: Database, template: str, embedder: Embedder) -> Reenactment:
    """Re-enact on a database without tenants."""
    told = stories(read_chitchat(PEOPLE), PLAN.memories)
    return Reenactment(template, told, reenact(database, embedder, SETTINGS, told, PLAN))
