"""What enters working memory: a memory that was recalled and helped."""

from collections.abc import Sequence
from dataclasses import dataclass

from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed, Outcome
from somabrain_dagster.store.working_memory import Addition, Growth, Noted, WorkingMemory


@dataclass(frozen=True)
class Entered:
    """A feedback whose memories enter its session's working memory.

    Attributes:
        position: of the feedback among those that were landed.
        addition: what enters.
    """

    position: int
    addition: Addition


def entering(batch: Sequence[Feedback], outcomes: Sequence[Outcome]) -> list[Entered]:
    """What landed feedback brings to mind: the memories that it names with a positive credit.

    An event that was refused brings nothing; one that is repeated did so the first time. Of what one event
    names, the memory that helped most comes last and so stays longest.

    Args:
        batch: in the order of landing.
        outcomes: one for each.
    """
    entered = []
    for position, (feedback, outcome) in enumerate(zip(batch, outcomes, strict=True)):
        if not isinstance(outcome, Landed) or outcome.repeated:
            continue
        helpful = [Noted(named.memory, named.credit) for named in feedback.helpful or () if named.credit > 0]
        if helpful:
            helpful.sort(key=lambda noted: noted.credit)
            entered.append(
                Entered(position, Addition(feedback.tenant_id, feedback.session_id, tuple(helpful)))
            )
    return entered


def bring_to_mind(
    working: WorkingMemory, batch: Sequence[Feedback], outcomes: Sequence[Outcome]
) -> list[Growth | None]:
    """Let what landed feedback calls helpful enter working memory; it raises nothing.

    Args:
        working: of all sessions.
        batch: in the order of landing.
        outcomes: one for each; what is `Landed` is committed.

    Returns:
        For each event what its memories did to its session's working memory; None where nothing entered, or
        the server of working memory cannot be reached.
    """
    growth: list[Growth | None] = [None] * len(batch)
    entered = entering(batch, outcomes)
    grown = working.note([one.addition for one in entered])
    if grown is not None:
        for one, its_growth in zip(entered, grown, strict=True):
            growth[one.position] = its_growth
    return growth
