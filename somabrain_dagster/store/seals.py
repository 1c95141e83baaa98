"""Seals: the heads of all hash chains at an instant, as one Merkle root.

A chain shows what was changed in it by somebody who left its hashes alone. Whoever owns the tables can also
compute the hashes anew, or cut off a chain's end: then the heads are no longer those that were sealed. A root
that lies where its owner cannot write proves that nothing up to the seal was changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from somabrain_dagster.store import audit, frames
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.merkle import merkle_root

ChainLog = Literal["audit_events", "weight_changes"]
"""The tables that are chained."""

SEALED = "seal"
"""The action of the audit event that tells of a seal."""


@dataclass(frozen=True, order=True)
class ChainHead:
    """The end of a chain.

    Attributes:
        log: the table.
        version: of its last row.
        hash: of that row.
    """

    log: ChainLog
    tenant_id: str
    version: int
    hash: bytes

    @property
    def leaf(self) -> bytes:
        """What the tree is made of: every field, framed by its length."""
        return b"".join(
            (
                frames.text(self.log),
                frames.text(self.tenant_id),
                frames.bigint(self.version),
                frames.binary(self.hash),
            )
        )


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """A Merkle root over the heads of all chains.

    Attributes:
        number: from 1, without a gap.
        sealed_at: after every head was committed.
        chains: how many heads there are.
        root: by RFC 6962 over their leaves, in the order of log and tenant; hexadecimal.
    """

    number: int
    sealed_at: datetime
    chains: int
    root: str


def root_of(heads: Iterable[ChainHead]) -> str:
    """The Merkle root over heads, whatever their order here."""
    return merkle_root(head.leaf for head in sorted(heads)).hex()


def seal(connection: Connection, actor: str) -> Seal | None:
    """Seal the heads of all chains as they are now, and record it in the audit trail.

    Args:
        connection: an operator's transaction.
        actor: who asks for it.

    Returns:
        The seal; None where nothing but the event of the last seal happened since it.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('somabrain_seal'))")
    # One statement sees one instant; the lock before it makes that later than the last seal.
    moved = connection.execute(
        """
        WITH heads AS (
            SELECT 'weight_changes' AS log, tenant_id, version, hash FROM adaptation_states
            UNION ALL
            SELECT * FROM (
                SELECT DISTINCT ON (tenant_id) 'audit_events', tenant_id, version, hash
                FROM audit_events ORDER BY tenant_id, version DESC
            ) AS audited
        ), sealed AS (
            SELECT DISTINCT ON (tenant_id, log) tenant_id, log, version, hash
            FROM audit_seal_heads ORDER BY tenant_id, log, seal DESC
        )
        SELECT h.log, h.tenant_id, h.version, h.hash
        FROM heads h LEFT JOIN sealed s USING (tenant_id, log)
        WHERE (h.version, h.hash) IS DISTINCT FROM (s.version, s.hash)
        """
    ).fetchall()
    last = _last_number(connection)
    if _only_the_last_seal(connection, moved, last):
        return None
    known = {(head.log, head.tenant_id): head for head in read_sealed(connection, last)}
    changed = [ChainHead(*row) for row in moved]
    known |= {(head.log, head.tenant_id): head for head in changed}
    root = root_of(known.values())
    (sealed_at,) = connection.execute(
        """
        INSERT INTO audit_seals (seal, sealed_at, chains, root)
        VALUES (%s, clock_timestamp(), %s, %s) RETURNING sealed_at
        """,
        (last + 1, len(known), bytes.fromhex(root)),
    ).fetchall()[0]
    connection.execute(
        """
        INSERT INTO audit_seal_heads (log, tenant_id, seal, version, hash)
        SELECT log, tenant_id, %s, version, hash
        FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[]) AS h (log, tenant_id, version, hash)
        """,
        (
            last + 1,
            [head.log for head in changed],
            [head.tenant_id for head in changed],
            [head.version for head in changed],
            [head.hash for head in changed],
        ),
    )
    made = Seal(number=last + 1, sealed_at=sealed_at, chains=len(known), root=root)
    body = {"seal": made.number, "chains": made.chains, "root": made.root}
    audit.record(connection, audit.SYSTEM, actor, SEALED, body)
    return made


def _last_number(connection: Connection) -> int:
    ((number,),) = connection.execute("SELECT coalesce(max(seal), 0) FROM audit_seals").fetchall()
    return int(number)


def _only_the_last_seal(connection: Connection, moved: list[tuple[str, str, int, bytes]], last: int) -> bool:
    """Whether no chain moved, or only by the event of the last seal."""
    if not moved:
        return True
    if len(moved) > 1 or moved[0][:2] != ("audit_events", audit.SYSTEM):
        return False
    before = connection.execute(
        """
        SELECT max(version) FROM audit_seal_heads WHERE tenant_id = %s AND log = 'audit_events'
        """,
        (audit.SYSTEM,),
    ).fetchone()
    told = connection.execute(
        "SELECT action, body ->> 'seal' FROM audit_events WHERE tenant_id = %s AND version = %s",
        (audit.SYSTEM, moved[0][2]),
    ).fetchone()
    since = moved[0][2] - (-1 if before is None or before[0] is None else before[0])
    return since == 1 and told == (SEALED, str(last))


def read_seals(connection: Connection) -> list[Seal]:
    """Every seal, in their order."""
    rows = connection.execute("SELECT seal, sealed_at, chains, root FROM audit_seals ORDER BY seal")
    return [
        Seal(number=number, sealed_at=sealed_at, chains=chains, root=root.hex())
        for number, sealed_at, chains, root in rows
    ]


def read_sealed(connection: Connection, number: int) -> list[ChainHead]:
    """The heads that a seal is over."""
    rows = connection.execute(
        """
        SELECT DISTINCT ON (tenant_id, log) log, tenant_id, version, hash
        FROM audit_seal_heads WHERE seal <= %s ORDER BY tenant_id, log, seal DESC
        """,
        (number,),
    )
    return [ChainHead(*row) for row in rows]
