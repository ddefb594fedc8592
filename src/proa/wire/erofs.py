"""Reading an erofs image: which bytes of it are which bytes of which file. Pure.

Source of the format: include/erofs_fs.h and lib/zmap.c of erofs-utils 1.8.6 (Linux:
fs/erofs/erofs_fs.h and zmap.c). Read is what mkfs.erofs writes for a /usr: blocks of 4 KiB, flat
and inline files, and files compressed with zstd or lz4 in clusters of any number of blocks, with
inlined tails and compact indexes. Refused by name is what it writes only when it is asked for more:
fragments, deduplication and the long indexes that come with it, chunks, further devices, 48-bit
layouts, other algorithms, and a second algorithm in a file.

Nothing in an image is believed: offsets and sizes are checked before they are used, every directory
is entered at most once, and what is held in memory is bounded by the image's own size.
"""

from __future__ import annotations

import itertools
import stat
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from proa.wire.codec import BLOCK, MAX_PLAIN, MAX_STORED, Algorithm, Codec, CodecError

Read = Callable[[int, int], bytes]  # offset, size → the bytes there, fewer at the end

# The largest file that is read, in bytes.
MAX_FILE = 4 << 30
# Bytes of a path from the image's root, and directories on the way to it.
MAX_PATH = 4096
MAX_DEPTH = 128
# Entries of a whole image.
MAX_ENTRIES = 1 << 20

_SUPER = 1024
_MAGIC = 0xE0F5E1E2

# feature_incompat
_ZERO_PADDING = 0x01
_COMPR_CFGS = 0x02  # the same bit as big pclusters
_ZTAILPACKING = 0x10
_KNOWN = _ZERO_PADDING | _COMPR_CFGS | _ZTAILPACKING
_REFUSED = {
    0x04: "chunk-based files",
    0x08: "a second algorithm or further devices",
    0x20: "fragments or deduplication",
    0x40: "long extended attribute prefixes",
    0x80: "a 48-bit layout",
    0x100: "metadata boxes",
}

# Data layouts of an inode.
_FLAT_PLAIN, _FLAT_INLINE, _COMPACT = 0, 2, 3
_LAYOUTS = {1: "long indexes", 4: "chunks"}

# z_erofs_map_header.h_advise
_COMPACTED_2B = 0x01
_BIG_1, _BIG_2 = 0x02, 0x04
_INLINE = 0x08
_KNOWN_ADVICE = _COMPACTED_2B | _BIG_1 | _BIG_2 | _INLINE

# Types of logical clusters.
_PLAIN, _HEAD, _NONHEAD, _HEAD2 = range(4)
_BLOCK_COUNT = 1 << 11

_ALGORITHMS: dict[int, Algorithm] = {0: "lz4", 3: "zstd"}
_OTHER_ALGORITHMS = {1: "lzma", 2: "deflate"}

_DIRENT = struct.Struct("<QHBB")
_COMPACT_INODE = struct.Struct("<HHHHIIIIHHI")
_EXTENDED_INODE = struct.Struct("<HHHHQIIIIQII16x")


class ErofsError(ValueError):
    """The image is damaged, or holds something that is not read here; the message says what."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of a file and where it is stored.

    The file's bytes ``logical`` to ``logical + plain`` are made from the image's bytes ``physical``
    to ``physical + stored``: as they are ("raw"; then both sizes are the same), or decoded. The
    stored bytes are exactly what the encoder made. They end at the end of a block, with zeros
    before them in their first block, or are an inlined tail, which lies behind the inode's indexes.
    """

    logical: int
    plain: int
    physical: int
    stored: int
    algorithm: Algorithm


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode; hard links share one. ``where`` is its byte offset and ``size`` the file's."""

    nid: int
    where: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    layout: int
    # Where indexes or an inlined tail may begin, and the block of flat data.
    behind: int
    block: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the tree. ``path`` is relative to the root, which is "" itself.

    Bytes of a name that are not UTF-8 are kept as surrogates, as the os module does.
    """

    path: str
    inode: Inode

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.inode.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.inode.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.inode.mode)


class Image:
    """An erofs image of ``size`` bytes. Raises :class:`ErofsError` from every method.

    ``read`` may raise OSError, which is passed on. An image is not held in memory: a walk takes the
    names of the directories that are open, and an inode number for each directory seen.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._source = read
        self.size = size
        raw = self._read(_SUPER, 128)
        magic, _, _, bits, slots, root = struct.unpack_from("<IIIBBH", raw)
        if magic != _MAGIC:
            raise ErofsError("not an erofs image")
        if bits != 12:
            raise ErofsError("blocks are not of 4096 bytes")
        blocks, metadata = struct.unpack_from("<II", raw, 36)
        self.features, algorithms, devices = struct.unpack_from("<IHH", raw, 80)
        for bit, name in _REFUSED.items():
            if self.features & bit:
                raise ErofsError(f"the image has {name}, which is not read here")
        if self.features & ~_KNOWN:
            raise ErofsError(f"unknown features {self.features & ~_KNOWN:#x}")
        if devices:
            raise ErofsError("the image has further devices, which is not read here")
        if raw[90]:
            raise ErofsError("directory blocks are not of 4096 bytes")
        if blocks * BLOCK > -(-size // BLOCK) * BLOCK:
            raise ErofsError("the image is cut off")
        self._metadata = metadata * BLOCK
        # Without this feature there is one algorithm, and one more meaning of the field.
        self._algorithms = algorithms if self.features & _COMPR_CFGS else 1
        self.super_size = 128 + slots * 16
        self.root_nid = root

    def walk(self) -> Iterator[Entry]:
        """Yield every entry, each directory before what it holds, names in byte order."""
        root = Entry("", self.inode(self.root_nid))
        if not root.is_directory:
            raise ErofsError("the root is not a directory")
        seen = {self.root_nid}
        # Directories together are smaller than the image: no block can serve two of them for long.
        budget = self.size - root.inode.size
        count = 1
        yield root
        stack = [(root, iter(self._children(root)))]
        while stack:
            parent, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                continue
            name, nid = child
            path = f"{parent.path}/{name}" if parent.path else name
            count += 1
            if len(path) > MAX_PATH or count > MAX_ENTRIES:
                raise ErofsError("a path is too long, or there are too many entries")
            entry = Entry(path, self.inode(nid))
            if entry.is_directory:
                budget -= entry.inode.size
                if nid in seen or budget < 0 or len(stack) >= MAX_DEPTH:
                    raise ErofsError(f"{path!r}: directories in a circle, or too many")
                seen.add(nid)
                yield entry
                stack.append((entry, iter(self._children(entry))))
            else:
                yield entry

    def inode(self, nid: int) -> Inode:
        """Return the inode of a number."""
        where = self._metadata + nid * 32
        raw = self._read(where, 32)
        form = raw[0] | raw[1] << 8
        if form & ~0xF:
            raise ErofsError(f"inode {nid}: unknown format {form:#x}")
        if form & 1:
            raw += self._read(where + 32, 32)
            _, icount, mode, _, size, block, _, uid, gid, _, _, links = _EXTENDED_INODE.unpack(raw)
        else:
            _, icount, mode, links, size, _, block, _, uid, gid, _ = _COMPACT_INODE.unpack(raw)
        attributes = 12 + 4 * (icount - 1) if icount else 0
        behind = where + len(raw) + attributes
        if not stat.S_IFMT(mode):
            raise ErofsError(f"inode {nid}: no such file type")
        if behind > self.size:
            raise ErofsError(f"inode {nid}: attributes lie outside the image")
        return Inode(nid, where, mode, uid, gid, size, links, form >> 1 & 7, behind, block)

    def extents(self, inode: Inode) -> tuple[Extent, ...]:
        """Return where the content of a file, directory or symlink lies, in order, without gaps."""
        if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode) or stat.S_ISLNK(inode.mode)):
            return ()
        if inode.size > MAX_FILE:
            raise ErofsError(f"inode {inode.nid}: a file of {inode.size} bytes is too large")
        if inode.layout in (_FLAT_PLAIN, _FLAT_INLINE):
            return self._flat(inode)
        if inode.layout == _COMPACT:
            return self._compressed(inode) if inode.size else ()
        layout = _LAYOUTS.get(inode.layout, f"layout {inode.layout}")
        raise ErofsError(f"inode {inode.nid}: {layout}, which is not read here")

    def target(self, inode: Inode, codec: Codec) -> str:
        """Return what a symlink points to."""
        if not stat.S_ISLNK(inode.mode) or inode.size > MAX_PATH:
            raise ErofsError(f"inode {inode.nid}: not a symlink")
        data = PlainFile(self._read, self.extents(inode), codec).read(0, inode.size)
        return data.decode("utf-8", "surrogateescape")

    def stored(self, extent: Extent) -> bytes:
        """Return the stored bytes of an extent."""
        return self._read(extent.physical, extent.stored)

    # --- Directories ---

    def _children(self, parent: Entry) -> list[tuple[str, int]]:
        """Return (name, inode number) of what a directory holds, without "." and ".."."""
        inode = parent.inode
        if inode.size > self.size:
            raise ErofsError(f"{parent.path!r}: larger than the image")
        if inode.layout not in (_FLAT_PLAIN, _FLAT_INLINE):
            raise ErofsError(f"{parent.path!r}: compressed directories are not read here")
        found: list[tuple[bytes, int]] = []
        for extent in self._flat(inode):
            for offset in range(0, extent.plain, BLOCK):
                size = min(BLOCK, extent.plain - offset)
                found += _entries(self._read(extent.physical + offset, size), parent.path)
                if len(found) > MAX_ENTRIES:
                    raise ErofsError(f"{parent.path!r}: too many entries")
        if any(a >= b for (a, _), (b, _) in itertools.pairwise(found)):
            raise ErofsError(f"{parent.path!r}: names are not in order")
        return [
            (name.decode("utf-8", "surrogateescape"), nid)
            for name, nid in found
            if name not in (b".", b"..")
        ]

    # --- Extents ---

    def _flat(self, inode: Inode) -> tuple[Extent, ...]:
        # What has an inlined tail has it in the last block, which may be full.
        inlined = inode.layout == _FLAT_INLINE and inode.size > 0
        blocks = -(-inode.size // BLOCK) - inlined
        whole = blocks * BLOCK if inlined else inode.size
        extents = []
        if whole:
            extents.append(Extent(0, whole, inode.block * BLOCK, whole, "raw"))
        if inlined:
            tail = inode.size - whole
            if inode.behind % BLOCK + tail > BLOCK:
                raise ErofsError(f"inode {inode.nid}: the inlined tail crosses a block")
            extents.append(Extent(whole, tail, inode.behind, tail, "raw"))
        for extent in extents:
            self._inside(inode, extent.physical, extent.stored)
        return tuple(extents)

    def _compressed(self, inode: Inode) -> tuple[Extent, ...]:
        if not self.features & _ZERO_PADDING:
            raise ErofsError("clusters that are padded at their end are not read here")
        header = -(-inode.behind // 8) * 8
        _, inlined, advice, algorithms, bits = struct.unpack("<HHHBB", self._read(header, 8))
        if bits & 0x80 or advice & ~_KNOWN_ADVICE:
            raise ErofsError(f"inode {inode.nid}: fragments or unknown advice {advice:#x}")
        if bits:
            raise ErofsError(f"inode {inode.nid}: logical clusters are not of 4096 bytes")
        if bool(advice & _BIG_1) != bool(advice & _BIG_2):
            raise ErofsError(f"inode {inode.nid}: big clusters of one kind only")
        # Without deduplication, each cluster but an inlined one has a block of its own.
        heads, end = _heads(inode, advice, header, self._read, self.size // BLOCK + 1)
        if not heads or heads[0].logical != 0:
            raise ErofsError(f"inode {inode.nid}: the file does not begin with a cluster")
        extents = []
        for head, after in zip(heads, [*heads[1:], None], strict=True):
            plain = (after.logical if after else inode.size) - head.logical
            if not 0 < plain <= MAX_PLAIN:
                raise ErofsError(f"inode {inode.nid}: a cluster of {plain} plain bytes")
            algorithm: Algorithm = "raw"
            if head.kind != _PLAIN:
                algorithm = self._algorithm(inode, algorithms & 15)
            if after is None and advice & _INLINE:
                if not inlined or end % BLOCK + inlined > BLOCK:
                    raise ErofsError(f"inode {inode.nid}: the inlined tail crosses a block")
                physical, stored = end, inlined
            else:
                physical, stored = head.block * BLOCK, head.blocks * BLOCK
                if not 0 < stored <= MAX_STORED:
                    raise ErofsError(f"inode {inode.nid}: a cluster of {stored} stored bytes")
            self._inside(inode, physical, stored)
            if algorithm == "raw":
                if plain > stored:
                    raise ErofsError(f"inode {inode.nid}: a plain cluster is too small")
                stored = plain
            elif stored % BLOCK == 0 and not (after is None and advice & _INLINE):
                padding = self._padding(inode, physical)
                physical, stored = physical + padding, stored - padding
            extents.append(Extent(head.logical, plain, physical, stored, algorithm))
        return tuple(extents)

    def _padding(self, inode: Inode, physical: int) -> int:
        """Return how many zeros lie before a cluster's first byte, which is never zero itself."""
        for size in (64, BLOCK):
            start = self._read(physical, size)
            if (padding := size - len(start.lstrip(b"\0"))) < size:
                return padding
        raise ErofsError(f"inode {inode.nid}: a cluster begins with a block of zeros")

    def _algorithm(self, inode: Inode, number: int) -> Algorithm:
        if number in _OTHER_ALGORITHMS:
            raise ErofsError(f"{_OTHER_ALGORITHMS[number]} is not read here")
        if number not in _ALGORITHMS or not self._algorithms >> number & 1:
            raise ErofsError(f"inode {inode.nid}: unknown algorithm {number}")
        return _ALGORITHMS[number]

    # --- Bytes ---

    def _inside(self, inode: Inode, offset: int, size: int) -> None:
        if offset + size > self.size:
            raise ErofsError(f"inode {inode.nid}: content lies outside the image")

    def _read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ErofsError(f"{size} bytes at {offset} lie outside the image")
        data = self._source(offset, size)
        if len(data) != size:
            raise ErofsError(f"the image ends before byte {offset + size}")
        return data


class PlainFile:
    """Random access to a file's plain content.

    Decoded clusters are kept up to ``cache`` bytes, the last used ones. One that is decoded a
    second time is kept on disk from then on, if there is ``scratch`` to open a file there: copies
    that jump about in a large file would decode each of its clusters a hundred times. A cluster is
    decoded as a whole, so one of mkfs.erofs's largest (a file of zeros: 8 MiB, :data:`MAX_PLAIN` at
    most) takes that much while it is read.
    """

    def __init__(
        self,
        read: Read,
        extents: Sequence[Extent],
        codec: Codec,
        cache: int = 4 << 20,
        scratch: Callable[[], BinaryIO] | None = None,
    ) -> None:
        self._read = read
        self._extents = extents
        self._codec = codec
        self._starts = [extent.logical for extent in extents]
        self._room = cache
        self._held = 0
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._decoded: set[int] = set()
        self._scratch = scratch
        self._disk: BinaryIO | None = None
        self._on_disk: set[int] = set()
        self.size = extents[-1].logical + extents[-1].plain if extents else 0

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, fewer at the end of the file."""
        if offset < 0 or size < 0:
            raise ErofsError("a read outside the file")
        end = min(offset + size, self.size)
        parts = []
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            extent = self._extents[index]
            start = offset - extent.logical
            part = self._part(index, start, min(end - extent.logical, extent.plain) - start)
            parts.append(part)
            offset += len(part)
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, index: int, start: int, size: int) -> bytes:
        extent = self._extents[index]
        if extent.algorithm == "raw":
            return self._exactly(extent.physical + start, size)
        data = self._cache.get(index)
        if data is None and index in self._on_disk:
            part = self._from_disk(extent.logical + start, size)
            if part is not None:
                return part
        if data is None:
            # Room first: the new one and the old ones are never held together.
            while self._cache and self._held + extent.plain > self._room:
                self._held -= len(self._cache.popitem(last=False)[1])
            try:
                stored = self._exactly(extent.physical, extent.stored)
                data = self._codec.decode(extent.algorithm, stored, extent.plain)
            except CodecError as error:
                raise ErofsError(f"the cluster at {extent.physical}: {error}") from None
            self._cache[index] = data
            self._held += len(data)
            if index in self._decoded:
                self._to_disk(index, data)
            self._decoded.add(index)
        else:
            self._cache.move_to_end(index)
        return data if size == len(data) else data[start : start + size]

    def _to_disk(self, index: int, data: bytes) -> None:
        try:
            if self._scratch is not None and self._disk is None:
                self._disk = self._scratch()
            if self._disk is not None:
                self._disk.seek(self._extents[index].logical)
                self._disk.write(data)
                self._on_disk.add(index)
        except OSError:
            # Without room it only takes longer.
            self._scratch = self._disk = None
            self._on_disk.clear()

    def _from_disk(self, offset: int, size: int) -> bytes | None:
        if self._disk is None:
            return None
        try:
            self._disk.seek(offset)
            data = self._disk.read(size)
        except OSError:
            return None
        return data if len(data) == size else None

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise ErofsError(f"the image ends before {offset + size}")
        return data


# --- Directory blocks ---------------------------------------------------------------------------


def _entries(data: bytes, path: str) -> list[tuple[bytes, int]]:
    """Return (name, inode number) of a directory block."""
    if len(data) < _DIRENT.size:
        raise ErofsError(f"{path!r}: a directory block is too small")
    first = _DIRENT.unpack_from(data)[1]
    if first < _DIRENT.size or first % _DIRENT.size or first > len(data):
        raise ErofsError(f"{path!r}: a directory block is damaged")
    entries = [_DIRENT.unpack_from(data, at) for at in range(0, first, _DIRENT.size)]
    ends = [entry[1] for entry in entries[1:]] + [len(data)]
    found = []
    for (nid, start, _, _), end in zip(entries, ends, strict=True):
        if not first <= start < end <= len(data):
            raise ErofsError(f"{path!r}: a name lies outside its block")
        name = data[start:end]
        if end == len(data):
            name = name.rstrip(b"\0")
        if not 0 < len(name) <= 255 or b"/" in name or b"\0" in name:
            raise ErofsError(f"{path!r}: a name is not one")
        found.append((name, nid))
    return found


# --- Indexes of compressed files ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a cluster begins in its file, its type, and the blocks where it is stored."""

    logical: int
    kind: int
    block: int
    blocks: int


def _heads(
    inode: Inode, advice: int, header: int, read: Read, limit: int
) -> tuple[list[_Head], int]:
    """Return a file's clusters, ``limit`` at most, and the byte offset behind its indexes.

    An index describes each 4 KiB of the file: a head, where a cluster begins, or not. The first one
    that is not tells how many blocks the cluster has (if clusters can be big); without one it is a
    single block.
    """
    count = -(-inode.size // BLOCK)
    heads: list[_Head] = []
    # A head that waits for the next index to say how many blocks it has.
    waiting: tuple[int, int, int] | None = None
    big = bool(advice & _BIG_1)
    indexes, end = _indexes(count, advice, header, read)
    for number, (kind, value, block) in enumerate(indexes):
        if kind == _NONHEAD:
            if waiting is None:
                if number == 0 or value & _BLOCK_COUNT:
                    raise ErofsError(f"inode {inode.nid}: a damaged index")
                continue
            if big != bool(value & _BLOCK_COUNT):
                raise ErofsError(f"inode {inode.nid}: a cluster does not tell its size")
            heads.append(_Head(*waiting, value & ~_BLOCK_COUNT if big else 1))
            waiting = None
            continue
        if kind == _HEAD2:
            raise ErofsError(f"inode {inode.nid}: a second algorithm, which is not read here")
        if waiting is not None:
            heads.append(_Head(*waiting, 1))
            waiting = None
        if len(heads) >= limit:
            raise ErofsError(f"inode {inode.nid}: more clusters than the image has blocks")
        logical = number * BLOCK + value
        # mkfs.erofs closes a file with a head at its very end, which is no cluster.
        if logical < inode.size:
            waiting = logical, kind, block
    if waiting is not None:
        heads.append(_Head(*waiting, 1))
    return heads, end


_Index = tuple[int, int, int]  # type, clusterofs or delta, block (of a head)


def _indexes(count: int, advice: int, header: int, read: Read) -> tuple[Iterator[_Index], int]:
    """Read indexes in packs: 2 in 8 bytes, or 16 in 32 bytes, which are aligned to 32 bytes."""
    start = header + 8
    big = bool(advice & _BIG_1)
    # As many small packs as bring the large ones to their alignment, and the rest of them behind.
    before = (32 - start % 32) // 4 & 7
    middle = 0
    if advice & _COMPACTED_2B and before < count:
        middle = (count - before) // 16 * 16
    else:
        before = 0
    small = -(-(count - before - middle) // 2)
    parts = (
        (start, before // 2, 2),
        (start + before * 4, middle // 16, 16),
        (start + before * 4 + middle * 2, small, 2),
    )
    end = parts[2][0] + small * 8

    def indexes() -> Iterator[_Index]:
        left = count
        for where, packs, each in parts:
            size = 8 if each == 2 else 32
            for data in _pieces(where, where + packs * size, read):
                for at in range(0, len(data), size):
                    pack = _unpack(data[at : at + size], each, big)
                    yield from pack[:left]
                    left -= len(pack)

    return indexes(), end


def _unpack(pack: bytes, count: int, big: bool) -> list[_Index]:
    """Return the indexes of a pack: 12 bits of value and 2 of type each, and the last 4 bytes.

    Those are a block number, from which the clusters that begin in the pack lie one behind another.
    (In a pack of two, an index has two bits to spare.)
    """
    (block,) = struct.unpack_from("<I", pack, len(pack) - 4)
    bits = int.from_bytes(pack[:-4], "little")
    width = 16 if count == 2 else 14
    found: list[_Index] = []
    single = False  # the last head has not told its size
    if not big:
        # The number is then that of the block before.
        block += 1
    for _ in range(count):
        value, kind = bits & 0xFFF, bits >> 12 & 3
        bits >>= width
        if kind == _NONHEAD:
            if big and value & _BLOCK_COUNT:
                block += value & ~_BLOCK_COUNT
                single = False
            found.append((kind, value, 0))
            continue
        if single:
            block += 1
        found.append((kind, value, block & 0xFFFFFFFF))
        single = True
    return found


def _pieces(start: int, end: int, read: Read) -> Iterator[bytes]:
    """Read a range in pieces that hold whole indexes and packs."""
    for offset in range(start, end, 64 << 10):
        yield read(offset, min(64 << 10, end - offset))
