"""What corpora are built from, who agreed to that, what was deleted since, and what was written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.canonical import canonical_json
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.gauges import NAMED, OTHERS
from somabrain_dagster.store.landed import read_landed
from somabrain_dagster.store.positions import position, read_heads

POOLED = "pooled"
"""The scope of a corpus of all tenants that agreed."""

_ROWS = 2000


class NoConsent(Exception):
    """A corpus may not be built; the message says who has to agree to it, and how."""


def set_learning_loop(connection: Connection, tenant_id: str, enabled: bool, actor: str) -> bool:
    """Let a tenant's data be learned from, or not any more; audited.

    Args:
        connection: an operator's transaction.
        tenant_id: whose.
        enabled: whether they may be.
        actor: who says so.

    Returns:
        Whether that is a change.

    Raises:
        UnknownTenant: there is no such tenant.
    """
    row = connection.execute(
        "SELECT learning_loop_enabled FROM tenants WHERE tenant_id = %s AND deleted_at IS NULL FOR UPDATE",
        (tenant_id,),
    ).fetchone()
    if row is None:
        raise UnknownTenant(tenant_id)
    if row[0] == enabled:
        return False
    connection.execute(
        "UPDATE tenants SET learning_loop_enabled = %s WHERE tenant_id = %s", (enabled, tenant_id)
    )
    audit.record(connection, tenant_id, actor, "learning_loop", {"enabled": enabled})
    return True


def consenting(connection: Connection, tenants: Sequence[str] | None = None) -> list[str]:
    """The tenants whose data may be learned from, by name.

    Args:
        connection: sees these tenants.
        tenants: must be among them; None for all that agreed.

    Raises:
        NoConsent: one that is named did not agree, or nobody did.
    """
    agreed = [
        tenant_id
        for (tenant_id,) in connection.execute(
            """
            SELECT tenant_id FROM tenants WHERE learning_loop_enabled AND deleted_at IS NULL
            ORDER BY tenant_id COLLATE "C"
            """
        )
    ]
    if tenants is None:
        if not agreed:
            raise NoConsent(
                "no tenant lets its data be learned from: `somabrain tenant learning-loop TENANT on` lets one"
            )
        return agreed
    missing = sorted(set(tenants) - set(agreed))
    if missing:
        raise NoConsent(
            f"tenant {missing[0]!r} does not let its data be learned from: "
            f"`somabrain tenant learning-loop {missing[0]} on` lets it"
        )
    return sorted(set(tenants))


def corpus_position(connection: Connection) -> str:
    """Where everything is that a corpus is built from: the logs, the memories and the tombstones."""
    (gone,) = connection.execute("SELECT count(*) FROM corpus_tombstones").fetchone() or (0,)
    memories = read_landed(connection, "memories").version
    return f"changes {position(read_heads(connection))}, memories {memories}, tombstones {gone}"


def memory_records(connection: Connection, tenants: Sequence[str]) -> Iterator[str]:
    """The memories of these tenants as records of a corpus: JSON, by tenant and id.

    A session's reward is the mean over its feedback of what each was worth, to nine places.

    Args:
        connection: a snapshot over all tenants.
        tenants: who agreed.
    """
    with connection.cursor(name="memory_records") as cursor:
        cursor.itersize = _ROWS
        cursor.execute(
            """
            WITH rewards AS MATERIALIZED (
                SELECT tenant_id, session_id,
                    round(avg(coalesce(reward, utility)::numeric), 9)::float8 AS reward
                FROM feedback_events WHERE tenant_id = ANY (%(tenants)s) GROUP BY tenant_id, session_id
            )
            SELECT json_build_object(
                'tenant_id', m.tenant_id, 'memory_id', m.memory_id, 'conversation_id', m.conversation_id,
                'speaker', m.speaker, 'text', m.text, 'payload', m.payload, 'reward', r.reward,
                'occurred_at', to_char(m.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
                'links', CASE WHEN m.conversation_id IS NULL THEN (
                    SELECT json_agg(json_build_object('target_id', l.target_id, 'kind', l.kind)
                        ORDER BY l.target_id)
                    FROM memory_links l
                    WHERE l.tenant_id = m.tenant_id AND l.source_id = m.memory_id AND l.kind = 'reply'
                ) END
            )::text
            FROM memories m
            LEFT JOIN rewards r ON r.tenant_id = m.tenant_id
                AND r.session_id = coalesce(m.conversation_id, m.payload ->> 'session_id')
            WHERE m.tenant_id = ANY (%(tenants)s)
            ORDER BY m.tenant_id COLLATE "C", m.memory_id
            """,
            {"tenants": list(tenants)},
        )
        for (record,) in cursor:
            yield record


def preference_records(connection: Connection, tenants: Sequence[str]) -> Iterator[str]:
    """What feedback says of the memories of a recall, as records of a corpus: JSON, by tenant and event.

    A memory that was credited answers the question of its recall; the one with the most credit is preferred
    to the one with the least below 0, or, where the user could have named any (`label` is `full`), to the
    first hit that was not named. Each memory with credit is a record of its own too, its credit the reward.

    Args:
        connection: a snapshot over all tenants.
        tenants: who agreed.
    """
    with connection.cursor(name="preference_records") as cursor:
        cursor.itersize = _ROWS
        cursor.execute(
            """
            SELECT f.tenant_id, f.session_id, f.label, r.query, (
                SELECT json_agg(json_build_object(
                        'memory_id', m.memory_id, 'text', m.text,
                        'credit', coalesce((h.entry ->> 'credit')::float8,
                            CASE WHEN h.entry IS NOT NULL THEN 1 END)
                    ) ORDER BY array_position(r.hits, m.memory_id), m.memory_id)
                FROM memories m
                LEFT JOIN jsonb_array_elements(f.helpful) AS h (entry)
                    ON (h.entry ->> 'memory')::bigint = m.memory_id
                WHERE m.tenant_id = f.tenant_id
                    AND (m.memory_id = ANY (r.hits) OR h.entry IS NOT NULL)
            )
            FROM feedback_events f
            JOIN recalls r ON r.tenant_id = f.tenant_id AND r.recall_id = f.recall_id
            WHERE f.tenant_id = ANY (%(tenants)s) AND f.helpful IS NOT NULL AND r.query <> ''
            ORDER BY f.tenant_id COLLATE "C", f.seq
            """,
            {"tenants": list(tenants)},
        )
        for tenant_id, session_id, label, query, memories in cursor:
            for record in _preferences(label, memories or []):
                whose = {"tenant_id": tenant_id, "session_id": session_id, "prompt": query}
                yield json.dumps({**whose, **record}, ensure_ascii=False)


def _preferences(label: str | None, memories: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    credited = [memory for memory in memories if memory["credit"]]
    for memory in credited:
        yield {
            "completion": memory["text"],
            "reward": memory["credit"],
            "memory_ids": [memory["memory_id"]],
        }
    best = max(credited, key=lambda memory: memory["credit"], default=None)
    if best is None or best["credit"] <= 0:
        return
    worst = min(credited, key=lambda memory: memory["credit"])
    if worst["credit"] >= 0:
        unnamed = [memory for memory in memories if memory["credit"] is None]
        if label != "full" or not unnamed:
            return
        worst = unnamed[0]
    yield {
        "chosen": best["text"],
        "rejected": worst["text"],
        "memory_ids": [best["memory_id"], worst["memory_id"]],
    }


def experiment_queries(connection: Connection, tenants: Sequence[str]) -> list[tuple[str, str | None, str]]:
    """Tenant, session and query of every recall that was made in an arm of an experiment."""
    return connection.execute(
        """
        SELECT DISTINCT tenant_id, session_id, query FROM recalls
        WHERE tenant_id = ANY (%s) AND arm IS NOT NULL AND query <> '' ORDER BY 1, 2, 3
        """,
        (list(tenants),),
    ).fetchall()


def tombstones(connection: Connection) -> list[tuple[str, int]]:
    """What was deleted: tenant and memory, 0 for the tenant as a whole."""
    return connection.execute(
        'SELECT tenant_id, memory_id FROM corpus_tombstones ORDER BY tenant_id COLLATE "C", memory_id'
    ).fetchall()


def delete_tenant(connection: Connection, tenant_id: str, actor: str) -> int:
    """Erase what a tenant remembers and asked, revoke its keys, and never give its name again; audited.

    Its log of weights and feedback stays, since proofs fold it from its start; it names no text of a memory.

    Args:
        connection: an operator's transaction.
        tenant_id: whom.
        actor: who asks.

    Returns:
        How many memories were erased.

    Raises:
        UnknownTenant: there is no such tenant.
    """
    gone = connection.execute(
        """
        UPDATE tenants SET deleted_at = now(), learning_loop_enabled = false
        WHERE tenant_id = %s AND deleted_at IS NULL
        """,
        (tenant_id,),
    ).rowcount
    if not gone:
        raise UnknownTenant(tenant_id)
    erased = connection.execute("DELETE FROM memories WHERE tenant_id = %s", (tenant_id,)).rowcount
    connection.execute("UPDATE recalls SET query = '', asker = NULL WHERE tenant_id = %s", (tenant_id,))
    connection.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE tenant_id = %s AND revoked_at IS NULL", (tenant_id,)
    )
    connection.execute("INSERT INTO corpus_tombstones (tenant_id, memory_id) VALUES (%s, 0)", (tenant_id,))
    audit.record(connection, tenant_id, actor, "tenant.delete", {"memories": erased})
    return erased


@dataclass(frozen=True)
class WrittenCorpus:
    """A corpus that was written.

    Attributes:
        manifest: its account, as run-metadata.json has it.
    """

    corpus_id: str
    kind: str
    scope: str
    url: str
    position: str
    manifest: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class Given:
    """What a tenant gave to a corpus."""

    tenant_id: str
    examples: int
    tokens: int
    rejected: Mapping[str, int]


def record_corpus(
    connection: Connection,
    url: str,
    manifest: Mapping[str, Any],
    given: Sequence[Given],
    actor: str,
) -> None:
    """Keep the account of a corpus that was written; audited.

    The same corpus written again has the newer account, and one more build.

    Args:
        connection: an operator's transaction.
        url: where the corpus is.
        manifest: its account.
        given: by each tenant.
        actor: who built it.
    """
    connection.execute(
        """
        INSERT INTO corpus_manifests (corpus_id, kind, scope, url, position, manifest)
        VALUES (%s, %s, %s, %s, %s, %s::jsonb)
        ON CONFLICT (corpus_id) DO UPDATE SET (url, position, manifest, created_at)
            = (EXCLUDED.url, EXCLUDED.position, EXCLUDED.manifest, now())
        """,
        (
            manifest["corpus_id"],
            manifest["kind"],
            manifest["scope"],
            url,
            manifest["position"],
            canonical_json(dict(manifest)).decode(),
        ),
    )
    for one in given:
        connection.execute(
            """
            INSERT INTO corpus_tenants AS t (tenant_id, corpus_id, examples, tokens, rejected)
            VALUES (%s, %s, %s, %s, %s::jsonb)
            ON CONFLICT (tenant_id, corpus_id) DO UPDATE SET (builds, examples, tokens, rejected)
                = (t.builds + 1, EXCLUDED.examples, EXCLUDED.tokens, EXCLUDED.rejected)
            """,
            (
                one.tenant_id,
                manifest["corpus_id"],
                one.examples,
                one.tokens,
                canonical_json(dict(one.rejected)).decode(),
            ),
        )
    audit.record(
        connection,
        audit.SYSTEM,
        actor,
        "corpus.build",
        {
            "corpus_id": manifest["corpus_id"],
            "position": manifest["position"],
            "tenants": [one.tenant_id for one in given],
        },
    )


_COLUMNS = "corpus_id, kind, scope, url, position, manifest, created_at"


def written_corpora(
    connection: Connection, kind: str | None = None, scope: str | None = None
) -> list[WrittenCorpus]:
    """The corpora that were written, the newest last."""
    rows = connection.execute(
        f"""
        SELECT {_COLUMNS} FROM corpus_manifests
        WHERE (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(scope)s::text IS NULL OR scope = %(scope)s)
        ORDER BY created_at, corpus_id
        """,  # noqa: S608 — a constant
        {"kind": kind, "scope": scope},
    )
    return [WrittenCorpus(*row) for row in rows]


@dataclass(frozen=True)
class CorpusCounts:
    """What a tenant gave to corpora, added up.

    Attributes:
        tenant_id: whose; several in one where they are many.
        exports: builds of corpora that it is part of.
        examples, tokens: in the corpora.
        rejected: by stage.
    """

    tenant_id: str
    exports: int
    examples: int
    tokens: int
    rejected: Mapping[str, int]


def corpus_counts(connection: Connection, most: int) -> list[CorpusCounts]:
    """What tenants gave to corpora.

    Args:
        connection: an operator's transaction.
        most: how many tenants are named; the rest is added up.
    """
    rows = connection.execute(
        f"""
        WITH given AS (
            SELECT coalesce(n.tenant_id, %(others)s) AS name, c.*
            FROM corpus_tenants c LEFT JOIN ({NAMED}) AS n USING (tenant_id)
        )
        SELECT g.name, sum(builds)::bigint, sum(examples * builds)::bigint, sum(tokens * builds)::bigint, (
            SELECT coalesce(jsonb_object_agg(stage, total), jsonb_build_object()) FROM (
                SELECT e.key AS stage, sum(e.value::bigint * i.builds)::bigint AS total
                FROM given i, jsonb_each_text(i.rejected) AS e WHERE i.name = g.name GROUP BY e.key
            ) AS stages
        )
        FROM given g GROUP BY g.name ORDER BY g.name
        """,  # noqa: S608 — of a constant
        {"most": most, "others": OTHERS},
    )
    return [CorpusCounts(*row) for row in rows]
