"""An erofs image is read as it was written, or refused; no image makes the reader run away."""

from __future__ import annotations

import errno
import io
import itertools
import stat
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.wire.codec import BLOCK, Codec
from proa.wire.erofs import ErofsError, Extent, Image, PlainFile
from support import erofs_samples as samples

IMAGES = {name: samples.image(name) for name in samples.OPTIONS}


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with Codec() as made:
        yield made


def opened(data: bytes) -> Image:
    return Image(lambda offset, size: data[offset : offset + size], len(data))


def content(name: str) -> bytes:
    return samples.FILES[samples.HARD_LINK[1] if name == samples.HARD_LINK[0] else name]


@pytest.mark.parametrize("name", samples.OPTIONS)
def test_the_tree_is_the_one_that_was_packed(name: str, codec: Codec) -> None:
    image = opened(IMAGES[name])
    entries = list(image.walk())
    files = {entry.path: entry for entry in entries if entry.is_file}
    assert {*files} == {*samples.FILES, samples.HARD_LINK[0]}
    for path, entry in files.items():
        plain = PlainFile(image._read, image.extents(entry.inode), codec)
        assert plain.size == entry.inode.size
        assert plain.read(0, plain.size + 1) == content(path)
    links = {e.path: image.target(e.inode, codec) for e in entries if e.is_symlink}
    assert links == samples.SYMLINKS
    one, other = (files[path].inode for path in samples.HARD_LINK)
    assert one == other
    assert one.links == 2
    assert stat.S_IMODE(files["d/setuid"].inode.mode) == 0o4755
    assert stat.S_ISFIFO(next(e for e in entries if e.path == "fifo").inode.mode)


@pytest.mark.parametrize("name", samples.OPTIONS)
def test_a_walk_is_in_byte_order_and_parents_come_first(name: str) -> None:
    paths = [entry.path for entry in opened(IMAGES[name]).walk()]
    assert paths[0] == ""
    assert paths[1:] == sorted(paths[1:], key=lambda path: path.encode().split(b"/"))


@pytest.mark.parametrize("name", samples.OPTIONS)
def test_extents_of_a_file_have_no_gaps_and_no_byte_is_stored_twice(name: str) -> None:
    image = opened(IMAGES[name])
    stored: list[tuple[int, int]] = []
    for inode in {entry.inode for entry in image.walk()}:
        at = 0
        for extent in image.extents(inode):
            assert extent.logical == at
            assert (extent.plain == extent.stored) == (extent.algorithm == "raw")
            at += extent.plain
            stored.append((extent.physical, extent.physical + extent.stored))
        assert at == (inode.size if stat.S_IFMT(inode.mode) != stat.S_IFIFO else 0)
    stored.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(stored))


@pytest.mark.parametrize(
    ("name", "algorithm"), [("zstd", "zstd"), ("lz4", "lz4"), ("small", "lz4")]
)
def test_the_samples_have_what_they_are_kept_for(name: str, algorithm: str) -> None:
    image = opened(IMAGES[name])
    of = {entry.path: image.extents(entry.inode) for entry in image.walk()}
    clusters = [extent for extents in of.values() for extent in extents]
    assert algorithm in {extent.algorithm for extent in clusters}
    assert max(map(len, of.values())) > 1
    # Indexes in packs of 16.
    assert len(of["lines"]) > 1 and len(samples.FILES["lines"]) > 32 * BLOCK
    # Without padding a cluster ends with its block; an inlined tail lies somewhere else.
    ends = {(x.physical + x.stored) % BLOCK == 0 for x in clusters if x.algorithm != "raw"}
    assert ends == ({True} if name == "small" else {True, False})
    assert any(x.algorithm != "raw" and x.stored > BLOCK for x in of["mixed"]) == (name != "small")
    # Plain clusters in a file that is compressed otherwise.
    assert {x.algorithm for x in of["mixed"]} == {"raw", algorithm}


def test_a_plain_file_is_read_anywhere_in_any_size(codec: Codec) -> None:
    image = opened(IMAGES["zstd"])
    of = {entry.path: image.extents(entry.inode) for entry in image.walk()}

    @given(st.data())
    @settings(max_examples=200)
    def check(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(["mixed", "hex", "lines", "tiny", "empty"]))
        plain = PlainFile(
            image._read, of[path], codec, cache=data.draw(st.sampled_from([0, 1 << 20]))
        )
        for _ in range(3):
            offset = data.draw(st.integers(0, plain.size + 10))
            size = data.draw(st.integers(0, plain.size + 10))
            assert plain.read(offset, size) == content(path)[offset : offset + size]

    check()


def test_a_cluster_is_decoded_once_while_there_is_room(codec: Codec) -> None:
    image = opened(IMAGES["zstd"])
    extents = next(image.extents(e.inode) for e in image.walk() if e.path == "hex")
    decoded = []

    class Counting(Codec):
        def decode(self, algorithm: object, stored: bytes, plain: int) -> bytes:
            decoded.append(plain)
            return codec.decode("zstd", stored, plain)

    size = sum(extent.plain for extent in extents)
    roomy = PlainFile(image._read, extents, Counting(), cache=size)
    tight = PlainFile(image._read, extents, Counting(), cache=size - 1)
    for plain, times in ((roomy, len(extents)), (tight, 3 * len(extents))):
        decoded.clear()
        for _ in range(3):
            assert b"".join(plain.read(at, 1000) for at in range(0, size, 1000)) == content("hex")
        assert len(decoded) == times


class FullDisk(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class BadDisk(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


class ShortDisk(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return super().read(size)[:-1]


@pytest.mark.parametrize(
    ("disk", "most"), [(io.BytesIO, 2), (FullDisk, 50), (BadDisk, 50), (ShortDisk, 50)]
)
def test_with_a_disk_no_cluster_is_decoded_a_third_time_and_a_bad_one_costs_only_time(
    codec: Codec, disk: Callable[[], BinaryIO], most: int
) -> None:
    image = opened(IMAGES["zstd"])
    extents = next(image.extents(e.inode) for e in image.walk() if e.path == "hex")
    assert len(extents) > 1
    decoded = []
    disks = []

    class Counting(Codec):
        def decode(self, algorithm: object, stored: bytes, plain: int) -> bytes:
            decoded.append(plain)
            return codec.decode("zstd", stored, plain)

    def scratch() -> BinaryIO:
        disks.append(disk())
        return disks[-1]

    size = sum(extent.plain for extent in extents)
    plain = PlainFile(image._read, extents, Counting(), cache=0, scratch=scratch)
    for _ in range(50):
        assert b"".join(plain.read(at, 999) for at in range(0, size, size // 7)) == b"".join(
            content("hex")[at : at + 999] for at in range(0, size, size // 7)
        )
    assert len(decoded) <= most * len(extents) * 7
    assert len(disks) == 1
    if most == 2:
        assert len(decoded) <= 2 * len(extents)


def test_what_is_read_once_in_order_is_not_written_to_disk(codec: Codec) -> None:
    image = opened(IMAGES["zstd"])
    extents = next(image.extents(e.inode) for e in image.walk() if e.path == "hex")

    def scratch() -> BinaryIO:
        raise AssertionError("nothing is to be written")

    size = sum(extent.plain for extent in extents)
    plain = PlainFile(image._read, extents, codec, cache=1, scratch=scratch)
    assert b"".join(plain.read(at, 1000) for at in range(0, size, 1000)) == content("hex")


# --- What is refused ----------------------------------------------------------------------------


def altered(name: str, offset: int, new: bytes) -> bytes:
    data = bytearray(IMAGES[name])
    data[offset : offset + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "new", "words"),
    [
        (1024, b"\0", "not an erofs image"),
        (1024 + 12, b"\x0d", "blocks are not of 4096 bytes"),
        (1024 + 36, b"\xff\xff", "cut off"),
        (1024 + 80, b"\x24", "fragments or deduplication|chunk-based"),
        (1024 + 80, b"\x33", "fragments or deduplication"),
        (1024 + 80, b"\x1b", "further devices"),
        (1024 + 80, b"\x93", "48-bit"),
        (1024 + 81, b"\x80", "unknown features"),
        (1024 + 86, b"\x01", "further devices"),
        (1024 + 14, b"\xff\xff", "outside the image"),
    ],
)
def test_what_is_not_read_is_refused_by_name(offset: int, new: bytes, words: str) -> None:
    with pytest.raises(ErofsError, match=words):
        list(opened(altered("zstd", offset, new)).walk())


def inode_of(name: str, path: str) -> int:
    return next(e.inode.where for e in opened(IMAGES[name]).walk() if e.path == path)


def header_of(name: str, path: str) -> int:
    """Where the map header of a compressed file without attributes lies."""
    return next(e.inode.behind + 7 & -8 for e in opened(IMAGES[name]).walk() if e.path == path)


@pytest.mark.parametrize(
    ("where", "new", "words"),
    [
        (("inode", 0), b"\x03", "long indexes"),
        (("inode", 0), b"\x09", "chunks"),
        (("inode", 0), b"\x0f", "layout 7"),
        (("inode", 8), struct.pack("<I", 1 << 31), "outside the image|more clusters"),
        (("header", 4), b"\x2f", "fragments"),
        (("header", 7), b"\x80", "fragments"),
        (("header", 7), b"\x01", "logical clusters"),
        (("header", 4), b"\x0b", "one kind only"),
        (("header", 6), b"\x01", "lzma"),
        (("header", 6), b"\x0f", "unknown algorithm"),
        (("header", 2), b"\xff\xff", "inlined tail"),
        (("header", 2), b"\0\0", "inlined tail"),
    ],
)
def test_a_file_that_is_not_read_is_refused_by_name(
    where: tuple[str, int], new: bytes, words: str
) -> None:
    base = (inode_of if where[0] == "inode" else header_of)("zstd", "hex")
    image = opened(altered("zstd", base + where[1], new))
    entry = next(entry for entry in image.walk() if entry.path == "hex")
    with pytest.raises(ErofsError, match=words):
        image.extents(entry.inode)


def test_a_huge_file_is_refused() -> None:
    where = inode_of("lz4", "hex")
    image = opened(altered("lz4", where + 8, struct.pack("<Q", 1 << 40)))
    entry = next(entry for entry in image.walk() if entry.path == "hex")
    with pytest.raises(ErofsError, match="too large"):
        image.extents(entry.inode)


def test_a_damaged_cluster_is_refused(codec: Codec) -> None:
    image = opened(IMAGES["zstd"])
    extents = next(image.extents(e.inode) for e in image.walk() if e.path == "hex")
    damaged = opened(altered("zstd", extents[0].physical + 4, b"\xff\xff\xff"))
    with pytest.raises(ErofsError, match="the cluster at"):
        PlainFile(damaged._read, extents, codec).read(0, 10)


def test_a_directory_that_holds_itself_is_refused() -> None:
    image = opened(IMAGES["zstd"])
    entries = {entry.path: entry for entry in image.walk()}
    inner = entries["d/e"].inode.nid
    (extent,) = image.extents(entries["d"].inode)
    block = IMAGES["zstd"][extent.physical : extent.physical + extent.plain]
    at = block.index(struct.pack("<Q", inner))
    again = struct.pack("<Q", image.root_nid)
    with pytest.raises(ErofsError, match="in a circle"):
        list(opened(altered("zstd", extent.physical + at, again)).walk())


@pytest.mark.parametrize("name", samples.OPTIONS)
def test_no_mutation_does_more_than_raise_erofs_error(name: str, codec: Codec) -> None:
    data = IMAGES[name]
    metadata = sorted(
        {
            byte
            for entry in opened(data).walk()
            for byte in range(entry.inode.where, entry.inode.behind + 64)
            if len(entry.path) < 10
        }
        | {*range(1024, 1024 + 160)}
    )
    changes = st.lists(
        st.tuples(
            st.sampled_from(metadata) | st.integers(0, len(data) - 8),
            st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x80", b"\x01", b"\0" * 8])
            | st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=6,
    )

    @given(changes, st.sampled_from([0, 0, 0, 1, 4096, 50_000]))
    @settings(max_examples=150)
    def check(changed: list[tuple[int, bytes]], cut: int) -> None:
        mutated = bytearray(data[: len(data) - cut])
        for offset, new in changed:
            mutated[offset : offset + len(new)] = new
        read = survey(bytes(mutated), codec)
        # Nothing is made of nothing: a walk takes an image's size in time and memory.
        assert read.entries <= len(mutated) // 12
        assert read.extents <= read.entries * (len(mutated) // BLOCK + 1)

    check()


class survey:
    """Reads all that can be read of an image, and counts."""

    def __init__(self, data: bytes, codec: Codec) -> None:
        self.entries = self.extents = 0
        try:
            image = opened(data)
            for entry in image.walk():
                self.entries += 1
                extents: tuple[Extent, ...] = ()
                try:
                    extents = image.extents(entry.inode)
                    plain = PlainFile(image._read, extents, codec)
                    for offset in (0, plain.size // 2, plain.size - 10):
                        if offset >= 0:
                            plain.read(offset, 100)
                    if entry.is_symlink:
                        image.target(entry.inode, codec)
                except ErofsError:
                    pass
                self.extents += len(extents)
        except ErofsError:
            pass
