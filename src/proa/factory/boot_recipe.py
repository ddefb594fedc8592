"""Initrd and boot image described as pieces of ``/usr``, and the bytes that are only theirs.

A machine that has the new ``/usr`` has nearly all of its boot image: kernel, systemd, libraries,
modules. So an update ships a list of segments in place of the images: "content of this file of
/usr" or literal bytes. Joining the segments gives the image, bit for bit.

Source of the formats: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst
(newc cpio) and Microsoft's PE/COFF specification with UAPI.5 (sections of a UKI).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

_CPIO_HEADER = 110
_CPIO_MAGIC = b"070701"
# Shorter files are literals: naming them costs about as much, and they compress together.
_SHORTEST = 64
_MAX_SECTIONS = 96


class RecipeError(ValueError):
    """The image has not the format that it should have; the message says where."""


@dataclass(frozen=True)
class Literal:
    """Bytes that are nowhere in ``/usr``."""

    data: bytes


@dataclass(frozen=True)
class FromUsr:
    """The whole content of a file; ``path`` is below the root of ``/usr``, without ``usr/``."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FromPart:
    """A whole part that has been made before: the initrd in the boot image."""

    name: str
    size: int
    sha256: str


Segment = Literal | FromUsr | FromPart


class Index(Protocol):
    """Something that knows the files of ``/usr`` by their content."""

    def find(self, data: bytes | memoryview) -> FromUsr | None: ...


class Contents:
    """The files of a tree by their content: size first, hash only where the size occurs."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._by_size: dict[int, list[str]] = {}
        self._by_hash: dict[int, dict[str, str]] = {}
        for directory, _, names in os.walk(tree):
            for name in names:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    relative = path.relative_to(tree).as_posix()
                    self._by_size.setdefault(path.stat().st_size, []).append(relative)

    def find(self, data: bytes | memoryview) -> FromUsr | None:
        """Return the file with exactly this content; of several, the first by name."""
        size = len(data)
        if size < _SHORTEST or size not in self._by_size:
            return None
        if size not in self._by_hash:
            hashes: dict[str, str] = {}
            for name in sorted(self._by_size[size], reverse=True):
                hashes[hashlib.sha256((self._tree / name).read_bytes()).hexdigest()] = name
            self._by_hash[size] = hashes
        digest = hashlib.sha256(data).hexdigest()
        name = self._by_hash[size].get(digest, "")
        return FromUsr(name, size, digest) if name else None


def segments_of_initrd(cpio: bytes, usr: Index) -> list[Segment]:
    """Describe an uncompressed newc archive: headers, names and padding are literals."""
    return list(_merged(_cpio(cpio, usr)))


def _cpio(cpio: bytes, usr: Index) -> Iterator[Segment]:
    done = 0
    for start, size in entries(cpio):
        if (found := usr.find(memoryview(cpio)[start : start + size])) is not None:
            yield Literal(cpio[done:start])
            yield found
            done = start + size
    yield Literal(cpio[done:])


def entries(cpio: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of each entry's content."""
    position = 0
    while cpio[position : position + 6] == _CPIO_MAGIC:
        try:
            size = int(cpio[position + 54 : position + 62], 16)
            name_size = int(cpio[position + 94 : position + 102], 16)
        except ValueError:
            raise RecipeError(f"no cpio header at {position}") from None
        start = _aligned(position + _CPIO_HEADER + name_size)
        if start + size > len(cpio):
            raise RecipeError(f"the cpio entry at {position} is cut short")
        yield start, size
        position = _aligned(start + size)
    if not position:
        raise RecipeError("not a cpio archive of the new ASCII format")


def _aligned(offset: int) -> int:
    return -(-offset // 4) * 4


def segments_of_uki(uki: bytes, usr: Index, parts: Mapping[str, bytes]) -> list[Segment]:
    """Describe a unified kernel image.

    ``parts`` are images that the machine has made by then, by name: the compressed initrd. Headers,
    the stub, the small sections, padding and the signature are literals.
    """
    return list(_merged(_uki(uki, usr, parts)))


def _uki(uki: bytes, usr: Index, parts: Mapping[str, bytes]) -> Iterator[Segment]:
    done = 0
    for offset, size in _sections(uki):
        data = memoryview(uki)[offset : offset + size]
        segment: Segment | None = usr.find(data)
        for name, part in parts.items():
            if segment is None and part == data:
                segment = FromPart(name, size, hashlib.sha256(data).hexdigest())
        if segment is not None:
            yield Literal(uki[done:offset])
            yield segment
            done = offset + size
    yield Literal(uki[done:])


def section(uki: bytes, name: bytes) -> tuple[int, int] | None:
    """Return (offset, size) of a section's content, or None where there is none."""
    return next(((at, size) for found, at, size in _table(uki) if found == name), None)


def _sections(uki: bytes) -> list[tuple[int, int]]:
    """Return (offset, size) of the sections' contents, in the file's order."""
    found = sorted((offset, size) for _, offset, size in _table(uki))
    if any(a + size > b for (a, size), (b, _) in pairwise(found)):
        raise RecipeError("sections overlap")
    return found


def _table(uki: bytes) -> list[tuple[bytes, int, int]]:
    """Return (name, offset, size) of the sections."""
    if uki[:2] != b"MZ" or len(uki) < 64:
        raise RecipeError("not a PE image")
    (start,) = struct.unpack_from("<I", uki, 0x3C)
    if start + 24 > len(uki) or uki[start : start + 4] != b"PE\0\0":
        raise RecipeError("no PE header")
    count, optional = struct.unpack_from("<6xH12xH", uki, start)
    table = start + 24 + optional
    if count > _MAX_SECTIONS or table + 40 * count > len(uki):
        raise RecipeError("the table of sections is cut short")
    found = []
    for entry in range(table, table + 40 * count, 40):
        virtual, _, raw, offset = struct.unpack_from("<IIII", uki, entry + 8)
        size = min(virtual, raw)
        if offset + size > len(uki):
            raise RecipeError("a section ends behind the end of the file")
        found.append((uki[entry : entry + 8].rstrip(b"\0"), offset, size))
    return found


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Leave out empty literals."""
    for segment in segments:
        if not isinstance(segment, Literal) or segment.data:
            yield segment


def join(segments: Iterable[Segment], tree: Path, parts: Mapping[str, bytes]) -> bytes:
    """Return the image that ``segments`` describe.

    Raises :class:`RecipeError` where a file or part is not the one that is meant.
    """
    pieces = []
    for segment in segments:
        if isinstance(segment, Literal):
            pieces.append(segment.data)
            continue
        if isinstance(segment, FromUsr):
            name, data = segment.path, (tree / segment.path).read_bytes()
        else:
            name, data = segment.name, parts[segment.name]
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise RecipeError(f"{name} is another than the recipe means")
        pieces.append(data)
    return b"".join(pieces)


def literals(segments: Iterable[Segment]) -> bytes:
    """Return all literal bytes in one piece: what has to be shipped, before compression."""
    return b"".join(s.data for s in segments if isinstance(s, Literal))
