"""The dm-verity hash tree of an image: the very bytes that ``veritysetup format`` writes. Pure.

Source of the format: the kernel's Documentation/admin-guide/device-mapper/verity.rst and
lib/verity/verity.c of cryptsetup (superblock version 1, hash type 1: the salt comes first). What
Proa's releases have is all that is made here: sha256, and blocks of 4096 bytes for data and hashes.

A hash device begins with a superblock in a block of its own. Levels of hashes follow, the highest
first: each level holds the hashes of all blocks of the one below, 128 in a block, the rest of the
last block being zeros. The lowest level is of the data, and the root hash is of the highest level's
only block; of a single block of data, which has no levels, it is that block's hash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from uuid import UUID

BLOCK = 4096
_DIGEST = 32
_IN_BLOCK = BLOCK // _DIGEST
_MAX_SALT = 256

# signature, version, hash type, uuid, algorithm, data and hash block size, data blocks, salt size
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")


class VerityError(ValueError):
    """The data cannot have a tree, or the superblock is not one that is read here."""


class Tree:
    """The tree over data that is given piece by piece.

    Memory: one hash for each block, 1/128 of the data.
    """

    def __init__(self, salt: bytes) -> None:
        if len(salt) > _MAX_SALT:
            raise VerityError(f"a salt of {len(salt)} bytes is too long")
        self.salt = salt
        self._salted = sha256(salt)
        self._hashes = bytearray()
        self._rest = b""
        self._levels: list[bytes] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes, any number of them."""
        if self._levels is not None:
            raise VerityError("the tree is finished")
        view = memoryview(data)
        if self._rest:
            need = BLOCK - len(self._rest)
            self._rest += view[:need]
            view = view[need:]
            if len(self._rest) < BLOCK:
                return
            self._hashes += self._digests(memoryview(self._rest))
        whole = len(view) // BLOCK * BLOCK
        self._hashes += self._digests(view[:whole])
        self._rest = bytes(view[whole:])

    def finish(self) -> str:
        """Return the root hash in hexadecimal. The data must be whole blocks, one at least."""
        return self._built()[-1].hex()

    @property
    def data_blocks(self) -> int:
        """How many blocks of data were taken."""
        return len(self._hashes) // _DIGEST

    def device(self, uuid: UUID) -> Iterator[bytes]:
        """Yield the hash device's content: its superblock, then each level in pieces."""
        levels = self._built()
        yield superblock(self.salt, uuid, self.data_blocks).ljust(BLOCK, b"\0")
        # Behind the levels comes the root hash, which is not stored.
        for level in reversed(levels[:-1]):
            for offset in range(0, len(level), 64 << 10):
                yield level[offset : offset + (64 << 10)]

    def _built(self) -> list[bytes]:
        if self._levels is None:
            if self._rest or not self._hashes:
                raise VerityError("the data are not whole blocks of 4096 bytes")
            levels = []
            hashes = bytes(self._hashes)
            while len(hashes) > _DIGEST:
                levels.append(hashes + bytes(-len(hashes) % BLOCK))
                hashes = self._digests(memoryview(levels[-1]))
            self._levels = [*levels, hashes]
        return self._levels

    def _digests(self, data: memoryview) -> bytes:
        digests = []
        copy = self._salted.copy
        for offset in range(0, len(data), BLOCK):
            state = copy()
            state.update(data[offset : offset + BLOCK])
            digests.append(state.digest())
        return b"".join(digests)


def superblock(salt: bytes, uuid: UUID, data_blocks: int) -> bytes:
    """Return the 512 bytes of the superblock."""
    return _SUPERBLOCK.pack(
        b"verity\0\0", 1, 1, uuid.bytes, b"sha256", BLOCK, BLOCK, data_blocks, len(salt), salt
    )


def read_superblock(raw: bytes) -> tuple[bytes, UUID, int]:
    """Return (salt, uuid, number of data blocks) from the first 512 bytes of a hash device."""
    if len(raw) < _SUPERBLOCK.size:
        raise VerityError("the superblock is cut off")
    signature, version, kind, uuid, algorithm, data, hashes, blocks, size, salt = (
        _SUPERBLOCK.unpack_from(raw)
    )
    if signature != b"verity\0\0" or version != 1:
        raise VerityError("not a dm-verity superblock")
    if (kind, algorithm.rstrip(b"\0"), data, hashes) != (1, b"sha256", BLOCK, BLOCK):
        raise VerityError("not sha256 over blocks of 4096 bytes")
    if size > _MAX_SALT:
        raise VerityError(f"a salt of {size} bytes is too long")
    return salt[:size], UUID(bytes=uuid), blocks


def device_size(data_blocks: int) -> int:
    """Return the size in bytes of the hash device for so many blocks of data."""
    size, count = BLOCK, data_blocks
    while count > 1:
        count = -(-count // _IN_BLOCK)
        size += count * BLOCK
    return size


def root_hash(chunks: Iterable[bytes], salt: bytes) -> str:
    """Return the root hash, in hexadecimal, of the data that ``chunks`` make up."""
    tree = Tree(salt)
    for chunk in chunks:
        tree.update(chunk)
    return tree.finish()
