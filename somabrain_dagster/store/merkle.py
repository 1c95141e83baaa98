"""Merkle roots: 32 bytes that stand for a list, as RFC 6962 (Certificate Transparency), §2.1, hashes it."""

import hashlib
from collections.abc import Iterable

_LEAF, _NODE = b"\x00", b"\x01"


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The Merkle tree hash of a list, 32 bytes; SHA-256 of nothing for an empty one.

    Leaves and nodes are hashed behind different bytes, so no list has the root of another whose leaf is a
    node of the first. Whoever holds the root can be shown that a leaf is in the list by log₂ n hashes.

    Args:
        leaves: in their order, read once; memory is the logarithm of their number.
    """
    # Roots of complete subtrees, the largest first: one for every bit that is set in the number of leaves.
    subtrees: list[bytes] = []
    for position, leaf in enumerate(leaves):
        root = hashlib.sha256(_LEAF + leaf).digest()
        while position & 1:
            root = hashlib.sha256(_NODE + subtrees.pop() + root).digest()
            position >>= 1
        subtrees.append(root)
    if not subtrees:
        return hashlib.sha256().digest()
    root = subtrees.pop()
    while subtrees:
        root = hashlib.sha256(_NODE + subtrees.pop() + root).digest()
    return root
