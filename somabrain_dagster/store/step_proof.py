"""The proof of the steps of τ: each is derived again from the recall that it names.

The recall's log says which coordinates the step looked at, how many of them repeat, and which serotonin it
met. What can be known without it is checked too: the coordinates end with the recall's own hits, memories
that occur twice are repeats, and serotonin is what the last feedback before the step left, or what a
configuration holds that has been in force since. Of a step whose recall is pruned nothing is said.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.diversity import repeats
from somabrain_dagster.learning.lesson import FEEDBACK
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
    holding = {
        digest: configuration.neuromodulators["serotonin"]
        for digest, configuration in configurations.items()
        if "serotonin" in configuration.neuromodulators
    }
    with connection.cursor(name="steps") as cursor:
        cursor.itersize = 5_000
        cursor.execute(
            """
            SELECT
                c.tenant_id, c.version, c.configuration, h.configuration, c.answered IS NOT NULL, e.serotonin,
                r.recall_id IS NULL AND EXISTS (
                    SELECT FROM seals s WHERE s.tenant_id = c.tenant_id AND s.relation = 'recalls'
                        AND c.recall_id BETWEEN s.first_id AND s.last_id
                ),
                c.shift, c.low IS NOT NULL, r.recall_id, r.hits, r.recalled, r.repeated, r.serotonin
            FROM (
                SELECT
                    *,
                    max(event_seq) FILTER (WHERE cause = %(feedback)s) OVER earlier AS answered,
                    max(version) FILTER (WHERE cause = %(feedback)s) OVER earlier AS answering,
                    max(version) FILTER (WHERE version > 0 AND configuration = ANY (%(holding)s))
                        OVER earlier AS held
                FROM weight_changes WINDOW earlier AS (PARTITION BY tenant_id ORDER BY version)
            ) AS c
            LEFT JOIN weight_changes h
                ON h.tenant_id = c.tenant_id AND h.version = c.held AND c.held >= coalesce(c.answering, 0)
            LEFT JOIN recalls r ON r.tenant_id = c.tenant_id AND r.recall_id = c.recall_id
            LEFT JOIN feedback_events e ON e.tenant_id = c.tenant_id AND e.seq = c.answered
            WHERE c.cause = %(diversity)s ORDER BY c.tenant_id, c.version
            """,
            {"feedback": FEEDBACK, "diversity": DIVERSITY, "holding": list(holding)},
        )
        for tenant_id, version, digest, held, answered, left, pruned, *rest in cursor:
            if pruned:
                continue
            if held is not None:
                left = holding[held]
            elif not answered:
                left = Levels().serotonin
            configuration = configurations.get(digest)
            message = None if configuration is None else _problem(configuration, left, *rest)
            if message is not None:
                yield Problem(tenant_id, version, message)


def _problem(
    configuration: LearningConfiguration,
    left: float | None,
    shift: list[int],
    explicit: bool,
    recall_id: int | None,
    hits: list[int],
    recalled: list[int] | None,
    repeated: int | None,
    serotonin: float | None,
) -> str | None:
    """What is wrong with a step, if anything is; `left` is unknown where its feedback is gone."""
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
    if left is not None and serotonin != left:
        return f"its serotonin is {serotonin}, what went before it left {left}"
    derived: list[Any] = step(configuration, repeated, serotonin).tolist()
    if shift != derived:
        return f"the shift is {shift} nano-units, its recall {recall_id} gives {derived}"
    return None
