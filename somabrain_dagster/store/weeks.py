"""The weekly partitions of the logs: made when somebody first needs one."""

from collections.abc import Callable
from typing import TypeVar

import psycopg

from somabrain_dagster.store.database import Database
from somabrain_dagster.store.usage import ensure_partitions

Result = TypeVar("Result")


def with_partitions(database: Database, work: Callable[[], Result]) -> Result:
    """Do work that writes to a log; where nobody has made this week's partition yet, make it and try again.

    Args:
        database: the brain's.
        work: a transaction of its own, from beginning to end.
    """
    try:
        return work()
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name is not None:
            raise
    # No constraint of ours: the row has no partition.
    with database.as_owner() as connection:
        ensure_partitions(connection)
    return work()
