"""Two images of /usr side by side: what of the new one lies in the old one, and what has to come.

An image falls into *regions*: the blocks of each file's data, and the metadata between them, in
which small files and the tails of larger ones lie too. A region of data is there already if the old
image has the same bytes anywhere; otherwise it comes from a *counterpart*, the old file that the
new one was made from. Metadata is compared as a whole.
"""

from __future__ import annotations

import difflib
import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.wire.codec import BLOCK, Codec
from proa.wire.erofs import ErofsError, Extent, Image
from proa.wire.errors import UserError


@dataclass(frozen=True)
class File:
    """A regular file of an image. ``paths`` are all its names; ``sha256`` is of its content."""

    paths: tuple[str, ...]
    size: int
    sha256: bytes
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Region:
    """Bytes ``start`` to ``end`` of an image that hold extent ``extent`` of ``file``.

    Both are None for metadata. Data regions are whole blocks, or an inlined tail.
    """

    start: int
    end: int
    file: File | None = None
    extent: Extent | None = None

    @property
    def inline(self) -> bool:
        return self.start % BLOCK != 0 or self.end % BLOCK != 0


class Usr:
    """A /usr image on disk, mapped into memory, and what is in it."""

    def __init__(self, path: Path, codec: Codec) -> None:
        self.path = path
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.codec = codec
        try:
            self.files = tuple(self._files())
        except ErofsError as error:
            raise UserError(
                f"{path}: {error}", hint="payloads are made between images that `proa build` made"
            ) from None

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def plain(self, extents: Sequence[Extent]) -> bytes:
        """Return the plain content of some extents, joined."""
        return b"".join(
            self.codec.decode(e.algorithm, self.read(e.physical, e.stored), e.plain)
            for e in extents
        )

    def _files(self) -> Iterator[File]:
        image = Image(self.read, len(self.data))
        names: dict[int, list[str]] = {}
        inodes = {}
        for entry in image.walk():
            if entry.is_file and entry.inode.size:
                names.setdefault(entry.inode.nid, []).append(entry.path)
                inodes[entry.inode.nid] = entry.inode
        for nid, paths in names.items():
            extents = image.extents(inodes[nid])
            digest = hashlib.sha256()
            for extent in extents:
                digest.update(self.plain([extent]))
            yield File(tuple(paths), inodes[nid].size, digest.digest(), extents)

    def regions(self) -> list[Region]:
        """Return the regions of the whole image, in order and without gaps."""
        data = sorted(self._data_regions(), key=lambda region: region.start)
        regions: list[Region] = []
        end = 0
        for region in data:
            if region.start < end:
                raise UserError(f"{self.path}: two files share the bytes at {region.start}")
            if region.start > end:
                regions.append(Region(end, region.start))
            regions.append(region)
            end = region.end
        if end < len(self.data):
            regions.append(Region(end, len(self.data)))
        return regions

    def _data_regions(self) -> Iterator[Region]:
        for file in self.files:
            for extent in file.extents:
                if not extent.stored:
                    continue
                start, end = extent.physical, extent.physical + extent.stored
                before = start % BLOCK
                if end % BLOCK == 0 and not any(self.read(start - before, before)):
                    # Zeros before the stored bytes fill their first block.
                    start -= before
                yield Region(start, end, file, extent)


# What differs between the paths of two versions of one file: kernel and library versions.
_NUMBERS = re.compile(r"\d+([.+~-]\d+)*")


def counterparts(old: Usr, new: Usr) -> Mapping[bytes, File]:
    """Return for new files' contents (sha256) the old file that each was most likely made from.

    The same path first, then the same path but for numbers in it, then the same name and the most
    similar size. A file with no such old one has no entry.
    """
    by_path = {path: file for file in old.files for path in file.paths}
    by_shape: dict[str, list[File]] = {}
    by_name: dict[str, list[File]] = {}
    for file in old.files:
        for path in file.paths:
            by_shape.setdefault(_NUMBERS.sub("#", path), []).append(file)
            by_name.setdefault(_NUMBERS.sub("#", path.rpartition("/")[2]), []).append(file)
    same = {file.sha256: file for file in old.files}
    found = {}
    for file in new.files:
        if file.sha256 in same:
            found[file.sha256] = same[file.sha256]
            continue
        at_path = [by_path[path] for path in file.paths if path in by_path]
        shape = [f for p in file.paths for f in by_shape.get(_NUMBERS.sub("#", p), [])]
        name = [
            f for p in file.paths for f in by_name.get(_NUMBERS.sub("#", p.rpartition("/")[2]), [])
        ]
        for candidates in (at_path, shape, name):
            if candidates:
                found[file.sha256] = _closest(file, candidates)
                break
    return found


def _closest(file: File, candidates: Sequence[File]) -> File:
    def distance(other: File) -> tuple[int, float]:
        likeness = difflib.SequenceMatcher(None, file.paths[0], other.paths[0]).ratio()
        return abs(other.size - file.size), -likeness

    return min(candidates, key=distance)


@dataclass(frozen=True)
class Stored:
    """Where the old image has which bytes, by sha256: whole data regions, and stored extents."""

    regions: Mapping[bytes, int]
    extents: Mapping[bytes, int]
    inline: frozenset[bytes]


def stored(old: Usr) -> Stored:
    """Return what data lies where in the old image."""
    regions, extents, inline = {}, {}, set()
    for region in old.regions():
        if region.extent is None:
            continue
        content = old.read(region.extent.physical, region.extent.stored)
        digest = hashlib.sha256(content).digest()
        extents[digest] = region.extent.physical
        if region.inline:
            inline.add(digest)
        else:
            whole = old.read(region.start, region.end - region.start)
            regions[hashlib.sha256(whole).digest()] = region.start
    return Stored(regions, extents, frozenset(inline))
