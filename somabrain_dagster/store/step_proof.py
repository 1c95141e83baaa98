"""The proof of the steps of τ: each is derived again from the recall that it names.

The recall's log says which coordinates the step looked at, how many of them repeat, and which serotonin it
met. What can be known without it is checked too: the coordinates end with the recall's own hits, memories that
occur twice are repeats, and serotonin is what the last feedback before the step left.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.diversity import repeats
from somabrain_dagster.store.adaptation import Levels
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.steering import DIVERSITY, step


@dataclass(frozen=True)
class Problem:
    """A step that does not follow from what it names."""

    tenant_id: str
    version: int
    message: str


def step_problems(
    connection: Connection, configurations: Mapping[bytes, LearningConfiguration]
) -> Iterator[Problem]:
    """The steps of τ that do not follow from their recalls.

    Args:
        connection: a snapshot.
        configurations: the stored ones, by digest.
    """
    with connection.cursor(name="steps") as cursor:
        cursor.itersize = 5_000
        cursor.execute(
            """
            SELECT
                c.tenant_id, c.version, c.configuration, c.shift, c.low IS NOT NULL, c.last_seq, e.serotonin,
                r.recall_id, r.hits, r.recalled, r.repeated, r.serotonin
            FROM (
                SELECT *, max(event_seq) OVER (PARTITION BY tenant_id ORDER BY version) AS last_seq
                FROM weight_changes
            ) AS c
            LEFT JOIN recalls r ON r.tenant_id = c.tenant_id AND r.recall_id = c.recall_id
            LEFT JOIN feedback_events e ON e.tenant_id = c.tenant_id AND e.seq = c.last_seq
            WHERE c.cause = %s ORDER BY c.tenant_id, c.version
            """,
            (DIVERSITY,),
        )
        for tenant_id, version, digest, *rest in cursor:
            configuration = configurations.get(digest)
            message = None if configuration is None else _problem(configuration, *rest)
            if message is not None:
                yield Problem(tenant_id, version, message)


def _problem(
    configuration: LearningConfiguration,
    shift: list[int],
    explicit: bool,
    last_seq: int | None,
    left: float | None,
    recall_id: int | None,
    hits: list[int],
    recalled: list[int] | None,
    repeated: int | None,
    serotonin: float | None,
) -> str | None:
    """What is wrong with a step, if anything is."""
    window = configuration.diversity.window
    if recall_id is None:
        return "the recall that it names is not there"
    if recalled is None or repeated is None or serotonin is None or len(recalled) != window:
        return f"its recall {recall_id} does not say on which coordinates it rests"
    if explicit:
        return "a step of τ does not set bounds, yet the row has some"
    own = hits[-window:]
    if recalled[len(recalled) - len(own) :] != own:
        return f"its coordinates do not end with the hits of its recall {recall_id}"
    least = int(repeats(recalled, None, configuration.diversity.similarity).sum())
    if not least <= repeated < window:
        return f"{repeated} of its coordinates are said to repeat, where {least} are the same memory"
    if last_seq is None:
        left = Levels().serotonin
    if left is not None and serotonin != left:
        return f"its serotonin is {serotonin}, the feedback before it left {left}"
    derived: list[Any] = step(configuration, repeated, serotonin).tolist()
    if shift != derived:
        return f"the shift is {shift} nano-units, its recall {recall_id} gives {derived}"
    return None
