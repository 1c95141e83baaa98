"""Names that say nothing to whoever has not got the key: HMAC-SHA256 of what they stand for."""

import hmac
import os
import secrets
import tempfile
from functools import lru_cache
from pathlib import Path

KEY_BYTES = 32
SIZE = 16
"""Bytes of a pseudonym."""


class Pseudonyms:
    """Pseudonyms under one key; the same thing has the same one in every corpus that was made with it."""

    def __init__(self, key: bytes) -> None:
        """Take a key.

        Raises:
            ValueError: it is shorter than 32 bytes.
        """
        if len(key) < KEY_BYTES:
            raise ValueError(f"a pseudonym key has at least {KEY_BYTES} bytes, not {len(key)}")
        self.key = key
        self._of = lru_cache(1 << 12)(self._made)

    def tenant(self, tenant_id: str) -> str:
        """Of a tenant; a record without one has none."""
        return self._of("tenant", tenant_id) if tenant_id else ""

    def session(self, tenant_id: str, session: str) -> str:
        """Of a session of a tenant."""
        return self._of("session", f"{tenant_id}\0{session}") if session else ""

    def memory(self, tenant_id: str, memory_id: int) -> str:
        """Of a memory of a tenant."""
        return self._made("memory", f"{tenant_id}\0{memory_id}")

    def _made(self, kind: str, name: str) -> str:
        return hmac.digest(self.key, f"{kind}\0{name}".encode(), "sha256")[:SIZE].hex()


def pseudonym_key(given: str | None, home: Path) -> bytes:
    """The key of these settings: the one that is given, else the one kept at home, made at its first use.

    Args:
        given: 64 or more hexadecimal digits.
        home: where the key is kept, readable by its owner alone.

    Raises:
        ValueError: what is given is no such key.
    """
    if given is not None:
        try:
            key = bytes.fromhex(given)
        except ValueError:
            key = b""
        if len(key) < KEY_BYTES:
            raise ValueError(
                f"SOMABRAIN_PSEUDONYM_KEY must have at least {2 * KEY_BYTES} hexadecimal digits: "
                "`openssl rand -hex 32` makes one"
            )
        return key
    path = home / "pseudonym.key"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Written whole beside its place: of two that make one at once, the first keeps its own.
        handle, name = tempfile.mkstemp(dir=home)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        finally:
            Path(name).unlink()
    return bytes.fromhex(path.read_text().strip())
