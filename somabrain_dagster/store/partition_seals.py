"""Seals: what stands for rows that retention took away, so that what they were can still be proven.

A seal speaks of one tenant's rows in one partition. Its root is the Merkle root over their digests, in the
order of their numbers. Of feedback the log of weight changes keeps every digest for good, under its own hash
chain, so the seal of events that are gone is computed again from the log. Of recalls and token usage nothing
else remains: whoever has a backup with the rows can show that they are those that were sealed. The seals of a
pruning have a root of their own, which the audit trail keeps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from somabrain_dagster.store import frames
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.merkle import merkle_root

Relation = Literal["feedback_events", "recalls", "token_usage"]
"""The tables whose partitions are weeks of landing."""

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Seal:
    """What stands for a tenant's rows of a partition.

    Attributes:
        pruning_id: of the pruning that takes them away.
        begins, ends: they landed from the one on and before the other.
        rows: how many.
        first_id, last_id: the least and the greatest of their numbers.
        root: Merkle root over their digests, in the order of their numbers.
    """

    tenant_id: str
    pruning_id: int
    relation: Relation
    begins: datetime
    ends: datetime
    rows: int
    first_id: int
    last_id: int
    root: bytes

    def leaf(self) -> bytes:
        """The seal itself as a leaf: each of its fields, framed."""
        return b"".join(
            (
                frames.text(self.tenant_id),
                frames.bigint(self.pruning_id),
                frames.text(self.relation),
                frames.timestamp(self.begins),
                frames.timestamp(self.ends),
                frames.bigint(self.rows),
                frames.bigint(self.first_id),
                frames.bigint(self.last_id),
                frames.binary(self.root),
            )
        )


def root_of(slices: Iterable[bytes]) -> bytes:
    """The Merkle root over digests that lie one after the other, in one or several slices."""
    return merkle_root(
        digests[start : start + DIGEST_BYTES]
        for digests in slices
        for start in range(0, len(digests), DIGEST_BYTES)
    )


def root_of_seals(seals: Iterable[Seal]) -> bytes:
    """The Merkle root over the seals of a pruning, by tenant."""
    return merkle_root(seal.leaf() for seal in sorted(seals, key=lambda seal: seal.tenant_id))


def read_seals(
    connection: Connection, relation: Relation | None = None, pruning_id: int | None = None
) -> list[Seal]:
    """The seals that the transaction may see, in the order of the prunings.

    Args:
        connection: an open transaction.
        relation: of this table only.
        pruning_id: of this pruning only.
    """
    rows = connection.execute(
        """
        SELECT tenant_id, pruning_id, relation, begins, ends, rows, first_id, last_id, root FROM seals
        WHERE (%(relation)s::text IS NULL OR relation = %(relation)s)
            AND (%(pruning)s::bigint IS NULL OR pruning_id = %(pruning)s)
        """,
        {"relation": relation, "pruning": pruning_id},
    )
    return sorted((Seal(*row) for row in rows), key=lambda seal: (seal.pruning_id, seal.tenant_id))


def write_seals(connection: Connection, seals: Sequence[Seal]) -> None:
    """Add seals; an owner's."""
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO seals (
                tenant_id, pruning_id, relation, begins, ends, rows, first_id, last_id, root
            ) VALUES (
                %(tenant_id)s, %(pruning_id)s, %(relation)s, %(begins)s, %(ends)s, %(rows)s, %(first_id)s,
                %(last_id)s, %(root)s
            )
            """,
            [asdict(seal) for seal in seals],
        )


def within_seals(connection: Connection, recalls: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those recalls, of ones that are not there, that are of a time whose recalls are pruned.

    Args:
        connection: a transaction that sees the tenants.
        recalls: tenants and numbers.
    """
    asked = list(recalls)
    rows = connection.execute(
        """
        SELECT DISTINCT a.tenant_id, a.recall_id
        FROM unnest(%s::text[], %s::bigint[]) AS a (tenant_id, recall_id)
        JOIN seals s ON s.tenant_id = a.tenant_id AND s.relation = 'recalls'
            AND a.recall_id BETWEEN s.first_id AND s.last_id
        """,
        ([tenant for tenant, _ in asked], [recall for _, recall in asked]),
    )
    return {(tenant, recall) for tenant, recall in rows}
