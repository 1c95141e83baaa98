"""Rows of the history that are not what was recorded, each by its table, tenant and version.

A row whose columns were changed no longer gives the hash that the next row is chained to. Where whoever
changed it computed the hash anew, the next row no longer follows; where they computed all of them anew, the
seals no longer hold. Feedback events are no chain of their own: the changes of weights, which are one, hold
their digests.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from psycopg import sql
from psycopg.rows import dict_row

from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import read_configurations
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.landing import event_digest
from somabrain_dagster.store.seals import SEALED, ChainLog, read_sealed, read_seals, root_of
from somabrain_dagster.store.weight_log import START_HASH, WeightChange

NEWEST_SEALS = 24
"""How many seals' roots are computed again; of all of them it is seen that the chains have their heads."""


@dataclass(frozen=True, order=True)
class Tampering:
    """A row that is not what was recorded.

    Attributes:
        table: where.
        tenant_id: whose history.
        version: of the row; of a feedback event its seq, of a seal its number.
        differs: what is not as it was.
    """

    table: str
    tenant_id: str
    version: int
    differs: str

    def __str__(self) -> str:
        return f"{self.table}, {self.tenant_id}, version {self.version}: {self.differs}"


@dataclass(frozen=True)
class _Link:
    """A row of a chain: the hash that it has, and the one that its columns give."""

    version: int
    stored: bytes
    hash: Callable[[bytes], bytes]
    named: Callable[[bytes, bytes], str | None]
    """What was changed, given the previous hash and the one to arrive at; None where that cannot be told."""


def find_tampering(connection: Connection) -> list[Tampering]:
    """All rows of the history that are not what was recorded.

    Args:
        connection: a snapshot.
    """
    return [
        *changes_tampered(connection),
        *audit_tampered(connection),
        *events_tampered(connection),
        *seals_broken(connection),
    ]


def count_history(connection: Connection) -> dict[str, int]:
    """How many rows each table of the history has."""
    rows = connection.execute(
        """
        SELECT 'audit_events', count(*) FROM audit_events
        UNION ALL SELECT 'weight_changes', count(*) FROM weight_changes
        UNION ALL SELECT 'feedback_events', count(*) FROM feedback_events
        UNION ALL SELECT 'audit_seals', count(*) FROM audit_seals
        """
    )
    return dict(rows.fetchall())


def changes_tampered(connection: Connection) -> Iterator[Tampering]:
    """Of the log of weight changes. Postgres finds the tenants, whose rows are then looked at one by one."""
    suspects = connection.execute(
        """
        SELECT s.tenant_id, s.version, s.hash
        FROM adaptation_states s
        WHERE s.tenant_id IN (
            SELECT tenant_id FROM (
                SELECT
                    c.tenant_id, c.version = row_number() OVER chain - 1
                    AND c.hash = weight_change_hash(coalesce(lag(c.hash) OVER chain, %s), c) AS intact
                FROM weight_changes c WINDOW chain AS (PARTITION BY c.tenant_id ORDER BY c.version)
            ) AS checked WHERE NOT intact
        ) OR NOT EXISTS (
            SELECT FROM weight_changes c
            WHERE (c.tenant_id, c.version, c.hash) = (s.tenant_id, s.version, s.hash)
        )
        ORDER BY s.tenant_id
        """,
        (START_HASH,),
    ).fetchall()
    for tenant_id, version, head in suspects:
        links = list(_change_links(connection, tenant_id))
        found = list(_faults("weight_changes", tenant_id, links, version, head))
        yield from found
        if not found:
            last = links[-1].version if links else -1
            yield Tampering(
                "adaptation_states",
                tenant_id,
                version,
                f"it is not the state after the last change of weights, which is version {last}",
            )


def _change_links(connection: Connection, tenant_id: str) -> Iterator[_Link]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            SELECT c.*, e.digest AS true_digest, e.created_at AS landed_at
            FROM weight_changes c
            LEFT JOIN feedback_events e ON e.tenant_id = c.tenant_id AND e.seq = c.event_seq
            WHERE c.tenant_id = %s ORDER BY c.version
            """,
            (tenant_id,),
        ).fetchall()
    configurations = read_configurations(connection)
    causes = sorted({row["cause"] for row in rows})
    before: list[int] | None = None
    for row in rows:
        change = WeightChange(**{name: row[name] for name in WeightChange.__struct_fields__})
        likely: dict[str, list[Any]] = {
            "cause": causes,
            "configuration": list(configurations),
            "event_digest": [row["true_digest"]],
            "created_at": [row["landed_at"] or change.created_at],
        }
        if before is not None and len(before) == len(change.shift) == len(change.after):
            known = configurations.get(change.configuration)
            low = change.low or (None if known is None else known.low_nanos.tolist())
            high = change.high or (None if known is None else known.high_nanos.tolist())
            if low is not None and high is not None:
                shifted = np.clip(np.array(before) + np.array(change.shift), low, high)
                likely["after"] = [shifted.tolist()]
            likely["shift"] = [(np.array(change.after) - np.array(before)).tolist()]
        yield _Link(change.version, row["hash"], change.hash, _guess(change, likely))
        before = change.after


def _guess(change: WeightChange, likely: dict[str, list[Any]]) -> Callable[[bytes, bytes], str | None]:
    """Try what a column must have been: where the hash is right again, that was it, beyond any doubt."""

    def named(previous: bytes, hashed: bytes) -> str | None:
        for column, values in likely.items():
            for value in values:
                if msgspec.structs.replace(change, **{column: value}).hash(previous) == hashed:
                    return f"{column} is {_shown(getattr(change, column))}, it was {_shown(value)}"
        return None

    return named


def _shown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def audit_tampered(connection: Connection) -> Iterator[Tampering]:
    """Of the audit trail; an end that was cut off is known where it was sealed or published."""
    known = {
        tenant_id: (version, hashed)
        for tenant_id, version, hashed in connection.execute(
            """
            SELECT DISTINCT ON (tenant_id) tenant_id, version, hash FROM (
                SELECT tenant_id, version, hash FROM relay_marks WHERE log = 'audit_events'
                UNION ALL
                SELECT tenant_id, version, hash FROM audit_seal_heads WHERE log = 'audit_events'
            ) AS heads ORDER BY tenant_id, version DESC
            """
        )
    }
    for tenant_id, rows in groupby(audit.read_events(connection), key=lambda event: event.tenant_id):
        links = [_Link(event.version, event.hash, event.rehashed, lambda *_: None) for event in rows]
        version, head = known.pop(tenant_id, (-1, None))
        if links[-1].version >= version:
            version, head = links[-1].version, head if links[-1].version == version else None
        yield from _faults("audit_events", tenant_id, links, version, head)
    for tenant_id, (version, _) in known.items():
        yield from _faults("audit_events", tenant_id, [], version, None)


def _faults(
    table: str, tenant_id: str, links: Sequence[_Link], last: int, head: bytes | None
) -> Iterator[Tampering]:
    """Where a chain is broken, and which of the two sides of the break is wrong.

    Args:
        table: of the chain.
        tenant_id: of the chain.
        links: its rows, in order.
        last: the version that it is known to end with, or to have had.
        head: the hash of that version, where it is known from elsewhere.
    """
    previous: bytes | None = START_HASH
    due = 0
    for place, link in enumerate(links):
        if link.version != due:
            yield Tampering(table, tenant_id, due, _gone(due, link.version - 1))
            previous = None
        due = link.version + 1
        following = links[place + 1] if place + 1 < len(links) else None

        def leads_on(hashed: bytes, link: _Link = link, following: _Link | None = following) -> bool:
            """Whether what comes after the row is chained to this hash of it."""
            if following is not None and following.version == link.version + 1:
                return following.hash(hashed) == following.stored
            return link.version == last and head == hashed

        if previous is not None and (computed := link.hash(previous)) != link.stored:
            if leads_on(computed):
                yield Tampering(
                    table,
                    tenant_id,
                    link.version,
                    f"hash is {link.stored.hex()}, it was {computed.hex()}; its columns are as recorded",
                )
                previous = computed
                continue
            yield Tampering(
                table, tenant_id, link.version, link.named(previous, link.stored) or _changed(link)
            )
        previous = link.stored
    if due <= last:
        yield Tampering(table, tenant_id, due, _gone(due, last))


def _changed(link: _Link) -> str:
    text = "its columns do not give its hash"
    return text if link.version == 0 else f"{text} after version {link.version - 1}"


def _gone(first: int, last: int) -> str:
    return "the row is gone" if first == last else f"the rows up to version {last} are gone"


def events_tampered(connection: Connection) -> Iterator[Tampering]:
    """Of the feedback events: each against its digest, and that against the change that answers it."""
    with connection.cursor(name="tampered_events", row_factory=dict_row) as cursor:
        cursor.itersize = 5_000
        cursor.execute(
            """
            SELECT e.*, c.event_digest AS answered
            FROM feedback_events e
            LEFT JOIN weight_changes c ON c.tenant_id = e.tenant_id AND c.event_seq = e.seq
            ORDER BY e.tenant_id, e.seq
            """
        )
        for row in cursor:
            answered, stored = row.pop("answered"), row.pop("digest")
            given = event_digest(row)
            if given == stored == answered:
                continue
            if answered is None:
                differs = "no change of weights answers it: it was added, or the change is gone"
            elif given == answered:
                differs = f"digest is {stored.hex()}, it was {answered.hex()}; its columns are as they landed"
            else:
                differs = "its columns are not those that landed"
            yield Tampering("feedback_events", row["tenant_id"], row["seq"], differs)
    gone = connection.execute(
        """
        SELECT c.tenant_id, c.event_seq
        FROM weight_changes c
        WHERE c.event_seq IS NOT NULL AND NOT EXISTS (
            SELECT FROM feedback_events e WHERE e.tenant_id = c.tenant_id AND e.seq = c.event_seq
        ) AND NOT EXISTS (
            SELECT FROM seals s
            WHERE s.tenant_id = c.tenant_id AND s.relation = 'feedback_events'
              AND c.event_seq BETWEEN s.first_id AND s.last_id
        )
        ORDER BY c.tenant_id, c.event_seq
        """
    )
    for tenant_id, seq in gone:
        yield Tampering("feedback_events", tenant_id, seq, "the row is gone, and retention sealed none such")


_LOGS: tuple[ChainLog, ...] = ("audit_events", "weight_changes")


def seals_broken(connection: Connection) -> Iterator[Tampering]:
    """Chains that no longer have the heads that were sealed, and seals that are not what they were."""
    for log in _LOGS:
        broken = connection.execute(
            sql.SQL(
                """
            SELECT DISTINCT ON (h.tenant_id) h.tenant_id, h.seal, h.version, s.sealed_at, l.hash IS NULL, (
                SELECT max(i.version) FROM audit_seal_heads i
                JOIN {} k ON (k.tenant_id, k.version, k.hash) = (i.tenant_id, i.version, i.hash)
                WHERE i.tenant_id = h.tenant_id AND i.log = h.log AND i.seal < h.seal
            )
            FROM audit_seal_heads h JOIN audit_seals s USING (seal)
            LEFT JOIN {} l ON (l.tenant_id, l.version) = (h.tenant_id, h.version)
            WHERE h.log = %s AND l.hash IS DISTINCT FROM h.hash
            ORDER BY h.tenant_id, h.seal
            """
            ).format(sql.Identifier(log), sql.Identifier(log)),
            (log,),
        )
        for tenant_id, number, version, sealed_at, gone, sound in broken:
            since = "the beginning" if sound is None else f"version {sound + 1}"
            differs = (
                f"the row is gone, though seal {number} holds it"
                if gone
                else f"it is not the row that seal {number} of {sealed_at:%Y-%m-%d %H:%M} holds: something "
                f"from {since} on was changed, and the hashes after it were computed anew"
            )
            yield Tampering(log, tenant_id, version, differs)
    yield from _seals_changed(connection)


def _seals_changed(connection: Connection) -> Iterator[Tampering]:
    told: dict[int, str] = dict(
        connection.execute(
            """
            SELECT (body ->> 'seal')::bigint, body ->> 'root' FROM audit_events
            WHERE tenant_id = %s AND action = %s
            """,
            (audit.SYSTEM, SEALED),
        ).fetchall()
    )
    seals = read_seals(connection)
    for sealed in seals[-NEWEST_SEALS:]:
        if (root := root_of(read_sealed(connection, sealed.number))) != sealed.root:
            differs = f"its root is {sealed.root}, its heads give {root}"
            yield Tampering("audit_seals", audit.SYSTEM, sealed.number, differs)
    for sealed in seals:
        recorded = told.pop(sealed.number, None)
        if recorded != sealed.root:
            differs = f"its root is {sealed.root}, the audit trail has {recorded}"
            yield Tampering("audit_seals", audit.SYSTEM, sealed.number, differs)
    for number in sorted(told):
        yield Tampering("audit_seals", audit.SYSTEM, number, "the row is gone")
