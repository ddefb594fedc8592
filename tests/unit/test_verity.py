"""The hash tree is the one that veritysetup makes, byte for byte."""

from __future__ import annotations

import struct
import tracemalloc
from hashlib import sha256
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.wire import verity
from proa.wire.verity import BLOCK, Tree, VerityError

UUID_ = UUID("c0ffee00-0000-4000-8000-000000000001")
SALT = bytes(4) + b"\xff" * 28


def numbered(blocks: int) -> bytes:
    return b"".join(struct.pack("<I", number) * 1024 for number in range(blocks))


# Of cryptsetup 2.7.5: veritysetup format --salt=… --uuid=…; the hash device's size, the root hash,
# and the hash device's sha256. One, two and three levels, a full block of hashes and one more.
KNOWN = [
    (
        1,
        b"",
        4096,
        "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7",
        "eac07c2e97403a524c95677a6ea7c128aa7fb978007f1f25fff551e3d16382c2",
    ),
    (
        1,
        SALT,
        4096,
        "eda66842aa40c8a3a2af430369408071365d9de9574383551e2d0439fbb5d69c",
        "1e9d99857c26c238063d41aec0243d16f6e4b6a2364752af4e256d3cb8b58b41",
    ),
    (
        2,
        SALT,
        8192,
        "2ffc16f8fb601f2b05cf36639bcb9f03104c8273cfc76088b26526b2f7efbe1a",
        "d5e385b923d9425844ab38dc8161255026b7b4aceb61024a19c03c07ad482963",
    ),
    (
        128,
        SALT,
        8192,
        "76d40d84c0669ffbe672ce2ec4fa15b01a12a83f3eb77ce3dee7b921791cb739",
        "d4756230b215de5f9e4f787bff871949a2318729bd9da8c9be4cd423ca1c3363",
    ),
    (
        129,
        b"",
        16384,
        "a4775aa2f6a70f893550e19227f60ae929c00bdf832531ae81731d34f751a502",
        "1f489e5ed4a04532b756b4be6f22caad9bdec6bb673f245e2fd7e94340815f85",
    ),
    (
        129,
        SALT,
        16384,
        "4a9f94ef6658abe11c88917c55aa4f651ac09e6bffc834bf797adde595e61ab2",
        "07bb46d7b0be55ae159ec0724bf4134a00c8185091f7d27411f3b36c771a70c9",
    ),
    (
        16385,
        SALT,
        544768,
        "216f6421c23a191e4411fdcb80608f36e1d97ad0fe921a56099345f477063dd2",
        "bf2ef0584ebd4d8c5a1a36e69a6eaa578869a1f287d509f57add0034df7df4a2",
    ),
]


@pytest.mark.parametrize(("blocks", "salt", "size", "root", "digest"), KNOWN)
def test_the_tree_is_that_of_veritysetup(
    blocks: int, salt: bytes, size: int, root: str, digest: str
) -> None:
    tree = Tree(salt)
    tree.update(numbered(blocks))
    assert tree.finish() == root
    device = b"".join(tree.device(UUID_))
    assert sha256(device).hexdigest() == digest
    assert len(device) == size == verity.device_size(blocks)
    assert verity.read_superblock(device) == (salt, UUID_, blocks)


@given(st.integers(1, 140), st.lists(st.integers(0, 30_000), max_size=9))
def test_the_data_may_come_in_any_pieces(blocks: int, sizes: list[int]) -> None:
    data = numbered(blocks)
    tree = Tree(SALT)
    at = 0
    for size in sizes:
        tree.update(data[at : at + size])
        at += size
    tree.update(data[at:])
    assert tree.data_blocks == blocks
    assert tree.finish() == verity.root_hash([data], SALT)


def test_any_changed_bit_changes_the_root_hash() -> None:
    data = bytearray(numbered(130))
    root = verity.root_hash([bytes(data)], SALT)
    for at in (0, 4095, 4096, 128 * BLOCK, len(data) - 1):
        data[at] ^= 1
        assert verity.root_hash([bytes(data)], SALT) != root
        data[at] ^= 1
    assert verity.root_hash([bytes(data)], SALT) == root
    assert verity.root_hash([bytes(data)], b"") != root


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_data_of_odd_size_are_refused(size: int) -> None:
    with pytest.raises(VerityError, match="whole blocks"):
        verity.root_hash([bytes(size)], SALT)


def test_a_finished_tree_takes_nothing_more() -> None:
    tree = Tree(SALT)
    tree.update(bytes(BLOCK))
    tree.finish()
    with pytest.raises(VerityError, match="finished"):
        tree.update(bytes(BLOCK))


def test_a_tree_takes_a_hundredth_of_its_data_in_memory() -> None:
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        tree = Tree(SALT)
        for _ in range(64):
            tree.update(piece)
        size = sum(map(len, tree.device(UUID_)))
        assert size == verity.device_size(64 << 8)
        # The tree, once more while it is put together, and a piece.
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


def test_other_superblocks_are_refused() -> None:
    good = verity.superblock(SALT, UUID_, 5)
    assert verity.read_superblock(good) == (SALT, UUID_, 5)
    for offset, new in (
        (0, b"V"),
        (8, b"\2"),
        (12, b"\0"),
        (32, b"sha512"),
        (65, b"\0"),
        (81, b"\2"),
    ):
        bad = good[:offset] + new + good[offset + len(new) :]
        with pytest.raises(VerityError):
            verity.read_superblock(bad)
    with pytest.raises(VerityError, match="cut off"):
        verity.read_superblock(good[:-1])
    with pytest.raises(VerityError, match="too long"):
        Tree(bytes(257))


@given(st.binary(min_size=500, max_size=520))
def test_noise_is_no_superblock(raw: bytes) -> None:
    with pytest.raises(VerityError):
        verity.read_superblock(raw)
