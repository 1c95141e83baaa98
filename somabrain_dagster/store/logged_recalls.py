"""Recalls as they were logged: which memories were weighed, with which features."""

from collections.abc import Sequence

from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.landing import LoggedRecall, logged_recall


class UnknownRecall(LookupError):
    """A recall that was never logged, was pruned, or that the transaction must not see."""

    def __init__(self, tenant_id: str, recall_id: int) -> None:
        super().__init__(
            f"tenant {tenant_id!r} has no recall {recall_id}: it was never logged, or was pruned"
        )


def read_recalls(connection: Connection, tenant_id: str, recall_ids: Sequence[int]) -> list[LoggedRecall]:
    """These recalls of a tenant, in the order in which they are asked for.

    Raises:
        UnknownRecall: one of them is not there.
    """
    rows = connection.execute(
        """
        SELECT recall_id, candidate_ids, features, expected
        FROM recalls WHERE tenant_id = %s AND recall_id = ANY (%s)
        """,
        (tenant_id, list(recall_ids)),
    )
    found = {recall_id: logged_recall(*logged) for recall_id, *logged in rows}
    for recall_id in recall_ids:
        if recall_id not in found:
            raise UnknownRecall(tenant_id, recall_id)
    return [found[recall_id] for recall_id in recall_ids]
