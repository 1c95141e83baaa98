"""Merkle roots: the known ones of Certificate Transparency, RFC 6962's recursion, what they tell apart."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.store.merkle import merkle_root

LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""The inputs of the test vectors of Certificate Transparency's own implementation."""

ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The root of the first n of them, n from 0 to 8."""

leaf_lists = st.lists(st.binary(max_size=8), max_size=40)


def rfc_6962(leaves: Sequence[bytes]) -> bytes:
    """MTH as §2.1 writes it down: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + rfc_6962(leaves[:split]) + rfc_6962(leaves[split:])).digest()


@pytest.mark.parametrize(("count", "root"), list(enumerate(ROOTS)))
def test_the_known_roots(count: int, root: str) -> None:
    assert merkle_root(LEAVES[:count]).hex() == root


@given(leaf_lists)
def test_a_stream_has_the_root_that_the_recursion_gives(leaves: list[bytes]) -> None:
    assert merkle_root(iter(leaves)) == rfc_6962(leaves)


@given(leaf_lists, leaf_lists)
def test_lists_that_differ_have_roots_that_differ(one: list[bytes], other: list[bytes]) -> None:
    assert (merkle_root(one) == merkle_root(other)) == (one == other)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_a_bit_of_a_leaf_or_a_leaf_that_is_left_out_changes_the_root(
    leaves: list[bytes], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(leaves) - 1))
    longer = [*leaves[:place], leaves[place] + b"\x00", *leaves[place + 1 :]]
    shorter = [*leaves[:place], *leaves[place + 1 :]]
    assert len({merkle_root(leaves), merkle_root(longer), merkle_root(shorter)}) == 3


def test_a_node_does_not_pass_for_a_leaf() -> None:
    """Without the bytes before leaves and nodes, these two would have one root."""
    left, right = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in LEAVES[:2])
    assert merkle_root(LEAVES[:2]) != merkle_root([left + right])
