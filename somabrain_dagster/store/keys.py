"""API keys: who may ask the service for what.

A key is `sb_<id>_<secret>`: the id finds the row, the secret proves that the bearer was given it. A secret
is 256 random bits, so nobody can try all guesses, and one SHA-256 hides it as well as the slow hash that a
person's password needs; it costs every request a microsecond instead of a tenth of a second.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import UnknownTenant
from somabrain_dagster.store.database import Connection

Scope = Literal["tenant", "read_only", "operator"]
"""`tenant` reads and writes its tenant, `read_only` reads it, `operator` reads and writes every tenant."""

MOST_LIVE: dict[Scope, int] = {"tenant": 2, "read_only": 2, "operator": 8}
"""Keys of one tenant and scope that are valid at once: the old one and the new one while it is replaced.
Operators are several: people, and Prometheus."""

NOTIFICATIONS = "somabrain_keys"
"""The channel on which the id of every new or revoked key is sent."""

_KEY = re.compile(r"sb_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class TooManyKeys(ValueError):
    """A tenant has as many keys as may be valid at once; the message says what to do."""


class UnknownKey(LookupError):
    """There is no such key, or it is revoked already."""


@dataclass(frozen=True)
class Key:
    """A key without its secret.

    Attributes:
        key_id: what it is called.
        tenant_id: whose it is; `_system` for an operator's.
        used_at: when it was last seen, within a minute.
    """

    key_id: str
    tenant_id: str
    scope: Scope
    created_at: datetime
    revoked_at: datetime | None
    used_at: datetime | None


@dataclass(frozen=True)
class Credential:
    """What is needed to check a key that somebody presents."""

    key_id: str
    tenant_id: str
    scope: Scope
    secret_hash: bytes = field(repr=False)

    def admits(self, secret: str) -> bool:
        """Whether this is the key's secret, compared in constant time."""
        return hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), self.secret_hash)


def split_key(key: str) -> tuple[str, str] | None:
    """The id and the secret of a key; None if it is not shaped as one."""
    matched = _KEY.fullmatch(key)
    return None if matched is None else (matched[1], matched[2])


def create_key(connection: Connection, tenant_id: str, scope: Scope, actor: str) -> str:
    """Create a key and return it whole: it can be shown now and never again.

    Args:
        connection: an operator's transaction.
        tenant_id: whose it is; `audit.SYSTEM` for scope `operator`.
        scope: what it may do.
        actor: who asks, for the audit trail.

    Raises:
        UnknownTenant: there is no such tenant.
        TooManyKeys: the tenant has as many valid keys of this scope as it may.
        ValueError: an operator's key is not a tenant's.
    """
    if (scope == "operator") != (tenant_id == audit.SYSTEM):
        raise ValueError(f"an operator's key is {audit.SYSTEM}'s, and {audit.SYSTEM} has no other")
    # Appending to the tenant's audit chain locks it, so two who create at once cannot both see one key.
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    audit.record(connection, tenant_id, actor, "key.create", {"key_id": key_id, "scope": scope})
    known = connection.execute(
        "SELECT FROM tenants WHERE tenant_id = %s AND deleted_at IS NULL", (tenant_id,)
    ).rowcount
    if not known and scope != "operator":
        raise UnknownTenant(tenant_id)
    live = connection.execute(
        "SELECT key_id FROM api_keys WHERE tenant_id = %s AND scope = %s AND revoked_at IS NULL",
        (tenant_id, scope),
    ).fetchall()
    if len(live) >= MOST_LIVE[scope]:
        raise TooManyKeys(
            f"{tenant_id} has {len(live)} valid keys of scope {scope}: revoke one of them first, "
            + " or ".join(f"`somabrain key revoke {key_id}`" for (key_id,) in live)
        )
    connection.execute(
        "INSERT INTO api_keys (tenant_id, key_id, scope, secret_hash) VALUES (%s, %s, %s, %s)",
        (tenant_id, key_id, scope, hashlib.sha256(secret.encode()).digest()),
    )
    return f"sb_{key_id}_{secret}"


def revoke_key(connection: Connection, key_id: str, actor: str) -> Key:
    """Make a key invalid, everywhere, as soon as the transaction is committed.

    Args:
        connection: an operator's transaction.
        key_id: its id.
        actor: who asks, for the audit trail.

    Raises:
        UnknownKey: there is no such key, or it is revoked already.
    """
    row = connection.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE key_id = %s AND revoked_at IS NULL "
        "RETURNING key_id, tenant_id, scope, created_at, revoked_at, used_at",
        (key_id,),
    ).fetchone()
    if row is None:
        raise UnknownKey(f"there is no valid key {key_id!r}: `somabrain key list` shows them")
    key = Key(*row)
    audit.record(connection, key.tenant_id, actor, "key.revoke", {"key_id": key_id})
    return key


def list_keys(connection: Connection, tenant_id: str | None = None) -> list[Key]:
    """The keys of a tenant, or all that the transaction sees, the oldest first."""
    rows = connection.execute(
        "SELECT key_id, tenant_id, scope, created_at, revoked_at, used_at FROM api_keys "
        "WHERE %(tenant)s::text IS NULL OR tenant_id = %(tenant)s ORDER BY tenant_id, created_at, key_id",
        {"tenant": tenant_id},
    )
    return [Key(*row) for row in rows]


def find_credential(connection: Connection, key_id: str) -> Credential | None:
    """What a presented key is checked against; None if there is no valid key of that id.

    Args:
        connection: an operator's transaction.
        key_id: the id that the presented key states.
    """
    row = connection.execute(
        "SELECT key_id, tenant_id, scope, secret_hash FROM api_keys WHERE key_id = %s AND revoked_at IS NULL",
        (key_id,),
    ).fetchone()
    return None if row is None else Credential(*row)


def mark_used(connection: Connection, key_ids: Iterable[str]) -> None:
    """Note that keys were used now."""
    connection.execute("UPDATE api_keys SET used_at = now() WHERE key_id = ANY (%s)", (sorted(set(key_ids)),))
