"""Who asks, and whether they may: API keys, tenants, scopes, rates."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from http import HTTPStatus

from somabrain_dagster.serving.problems import Problem, too_many
from somabrain_dagster.store import keys
from somabrain_dagster.store.database import Database, DatabaseUnreachable
from somabrain_dagster.store.keys import Credential, Scope

TRUSTED_SECONDS = 60.0
"""How long a key is trusted without a look at the database; a revocation is heard of at once."""

UNKNOWN_SECONDS = 5.0
"""How long an id that no key has is remembered as such."""

MOST_UNKNOWN = 10_000


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` tokens flow in a second, a second's worth fits in."""

    rate: float
    tokens: float = field(init=False)
    filled_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin full."""
        self.tokens = max(self.rate, 1.0)

    def take(self, count: int = 1) -> float:
        """Take tokens and return 0, or take none and return after how many seconds there will be enough.

        A full bucket gives any number and goes into debt: more than a second's worth can pass at once.
        """
        now = time.monotonic()
        capacity = max(self.rate, 1.0)
        self.tokens = min(capacity, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens >= min(count, capacity):
            self.tokens -= count
            return 0.0
        return (min(count, capacity) - self.tokens) / self.rate


@dataclass(slots=True)
class Principal:
    """Whoever presented a valid key.

    Attributes:
        tenant_id: whose key it is; None for an operator's, who must name the tenant that is meant.
    """

    key_id: str
    tenant_id: str | None
    scope: Scope
    secret_hash: bytes = field(repr=False)
    checked_at: float

    @property
    def actor(self) -> str:
        """For the audit trail."""
        return f"key {self.key_id}"

    def require(self, scope: Scope) -> None:
        """Refuse with 403 unless the key's scope covers what is asked."""
        covered = {
            "read_only": True,
            "tenant": self.scope != "read_only",
            "operator": self.scope == "operator",
        }
        if not covered[scope]:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "scope",
                f"a key of scope {self.scope} may not: use one of scope {scope}",
            )

    def tenant(self, named: str | None) -> str:
        """The tenant that a request is about.

        Args:
            named: what the request says, if anything.

        Raises:
            Problem: 403 for another tenant than the key's; 422 where an operator names none.
        """
        if self.tenant_id is None:
            if named is None:
                raise Problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", "an operator's request must give `tenant_id`"
                )
            return named
        if named is not None and named != self.tenant_id:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "other_tenant",
                f"the key is not of tenant {named!r}: leave `tenant_id` out",
            )
        return self.tenant_id


class Gatekeeper:
    """Keys that were checked, as this process remembers them."""

    def __init__(self, database: Database, requests_per_second: float) -> None:
        """Remember nothing yet.

        Args:
            database: the brain's.
            requests_per_second: of each tenant, in this process; 0 for any number.
        """
        self._database = database
        self._rate = requests_per_second
        self._principals: dict[str, Principal] = {}
        self._unknown: dict[str, float] = {}
        self._buckets: dict[str, Bucket] = {}
        self._used: set[str] = set()

    def forget(self, key_id: str) -> None:
        """The key is new or revoked: look again."""
        self._principals.pop(key_id, None)
        self._unknown.pop(key_id, None)

    def forget_all(self) -> None:
        """Revocations may have been missed."""
        self._principals.clear()
        self._unknown.clear()

    def recognise(self, key: bytes) -> Principal | None:
        """Whose key it is, if this process knows without asking the database."""
        parts = keys.split_key(key.decode("latin-1"))
        if parts is None:
            raise _unauthorized()
        principal = self._principals.get(parts[0])
        if principal is None or time.monotonic() - principal.checked_at > TRUSTED_SECONDS:
            return None
        credential = Credential(
            principal.key_id, principal.tenant_id or "", principal.scope, principal.secret_hash
        )
        if not credential.admits(parts[1]):
            raise _unauthorized()
        self._used.add(principal.key_id)
        return principal

    async def identify(self, key: bytes) -> Principal:
        """Whose key it is.

        Raises:
            Problem: 401 if it is no valid key.
            DatabaseUnreachable: it is not known here, and the database does not answer.
        """
        parts = keys.split_key(key.decode("latin-1"))
        if parts is None:
            raise _unauthorized()
        key_id, secret = parts
        now = time.monotonic()
        if now - self._unknown.get(key_id, -UNKNOWN_SECONDS) < UNKNOWN_SECONDS:
            raise _unauthorized()
        try:
            credential = await asyncio.to_thread(self._find, key_id)
        except DatabaseUnreachable:
            # A key that was valid a minute ago still tells who asks; what they ask for may need no database.
            known = self._principals.get(key_id)
            if known is None:
                raise
            credential = Credential(key_id, known.tenant_id or "", known.scope, known.secret_hash)
        if credential is None:
            self._principals.pop(key_id, None)
            if len(self._unknown) >= MOST_UNKNOWN:
                self._unknown.clear()
            self._unknown[key_id] = now
            raise _unauthorized()
        if not credential.admits(secret):
            raise _unauthorized()
        principal = Principal(
            key_id,
            None if credential.scope == "operator" else credential.tenant_id,
            credential.scope,
            credential.secret_hash,
            now,
        )
        self._principals[key_id] = principal
        self._used.add(key_id)
        return principal

    def _find(self, key_id: str) -> Credential | None:
        with self._database.as_operator() as connection:
            return keys.find_credential(connection, key_id)

    def spend(self, tenant_id: str, count: int = 1) -> None:
        """Count requests of a tenant against its rate.

        Raises:
            Problem: 429 with the time to wait.
        """
        if not self._rate:
            return
        bucket = self._buckets.get(tenant_id)
        if bucket is None:
            bucket = self._buckets[tenant_id] = Bucket(self._rate)
        wait = bucket.take(count)
        if wait:
            raise too_many(
                f"tenant {tenant_id!r} may ask {self._rate:g} times a second of this process", wait
            )

    async def note_use(self, every_seconds: float) -> None:
        """Write down, for as long as the service runs, which keys were used."""
        while True:
            await asyncio.sleep(every_seconds)
            await self.note_use_now()

    async def note_use_now(self) -> None:
        """Write down which keys were used since the last time."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await asyncio.to_thread(self._mark, used)
        except DatabaseUnreachable:
            self._used |= used

    def _mark(self, used: set[str]) -> None:
        with self._database.as_operator() as connection:
            keys.mark_used(connection, used)


def bearer(authorization: bytes | None) -> bytes:
    """The key of an Authorization header.

    Raises:
        Problem: 401 where there is none.
    """
    if authorization is None or authorization[:7].lower() != b"bearer ":
        raise _unauthorized()
    return authorization[7:]


def _unauthorized() -> Problem:
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "send a valid key as `Authorization: Bearer sb_…`; `somabrain key create` makes one",
        {"www-authenticate": "Bearer"},
    )


def digest_of(key: bytes) -> bytes:
    """What a key is remembered by."""
    return hashlib.sha256(key).digest()
