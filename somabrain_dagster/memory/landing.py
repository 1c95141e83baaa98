"""Landing feedback, and keeping in mind what it calls helpful."""

from collections.abc import Sequence

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.memory.working import bring_to_mind
from somabrain_dagster.store.cache import Publisher
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Outcome, land
from somabrain_dagster.store.working_memory import Growth, WorkingMemory


def land_and_remember(
    database: Database,
    batch: Sequence[Feedback],
    configuration: LearningConfiguration,
    snapshots: Publisher | None,
    working: WorkingMemory,
) -> tuple[list[Outcome], list[Growth | None]]:
    """Land feedback, as `land` does; then what it calls helpful enters its session's working memory.

    Args:
        database: the brain's.
        batch: in order.
        configuration: the global learning configuration.
        snapshots: where the new states are published after the commit.
        working: working memory; that it cannot be reached changes nothing about what is landed.

    Returns:
        For each event, in order: its outcome; and what its memories did to working memory, None where nothing
        entered.

    Raises:
        DatabaseUnreachable: what of the batch was committed is unknown, and nothing entered working memory:
            send again with idempotency keys.
    """
    outcomes = land(database, batch, configuration, snapshots)
    return outcomes, bring_to_mind(working, batch, outcomes)
