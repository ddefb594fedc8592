"""Reading a GUID partition table and changing the unique ids of its partitions. Pure.

Source of the format: UEFI specification 2.10, chapter 5.3. A table is kept twice on a disk, and
each copy carries checksums, so a change can be made safe against a power cut: the backup copy is
written and flushed first, then the primary one; at each moment one of the two is whole. (sfdisk
writes both arrays, then both headers, then flushes once: a cut in that moment can leave neither.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE = b"EFI PART"
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ARRAY = 1 << 20  # bytes; the usual array has 128 entries of 128 bytes

Read = Callable[[int, int], bytes]  # offset, size → the bytes there, fewer at the end


class GptError(ValueError):
    """There is no whole partition table; the message says what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """A partition. ``index`` counts from 1, as the kernel's partition numbers do."""

    index: int
    type: UUID
    uuid: UUID
    name: str
    first_lba: int
    last_lba: int


@dataclass(frozen=True)
class Table:
    """A partition table. ``array`` is the raw entry array, which is kept but for the ids."""

    sector: int
    header: bytes
    array: bytes
    primary_lba: int
    primary_array_lba: int
    backup_lba: int
    backup_array_lba: int

    @property
    def entry_size(self) -> int:
        return int(_HEADER.unpack_from(self.header)[12])

    def entries(self) -> list[Entry]:
        """Return the partitions in use, in the order of their numbers."""
        found = []
        for number, offset in enumerate(range(0, len(self.array), self.entry_size), start=1):
            kind, unique, first, last, _, name = _ENTRY.unpack_from(self.array, offset)
            if any(kind):
                text = name.decode("utf-16-le", "replace").partition("\0")[0]
                found.append(
                    Entry(number, UUID(bytes_le=kind), UUID(bytes_le=unique), text, first, last)
                )
        return found

    def with_uuids(self, uuids: Mapping[int, UUID]) -> Table:
        """Return the table with the unique ids of some partitions (by index) changed."""
        array = bytearray(self.array)
        for index, uuid in uuids.items():
            offset = (index - 1) * self.entry_size + 16
            array[offset : offset + 16] = uuid.bytes_le
        return replace(self, array=bytes(array))

    def backup_writes(self) -> list[tuple[int, bytes]]:
        """Return what to write where (byte offset, bytes) for the backup copy."""
        return self._writes(self.backup_lba, self.primary_lba, self.backup_array_lba)

    def primary_writes(self) -> list[tuple[int, bytes]]:
        """Return what to write where (byte offset, bytes) for the primary copy."""
        return self._writes(self.primary_lba, self.backup_lba, self.primary_array_lba)

    def _writes(self, own: int, other: int, array_lba: int) -> list[tuple[int, bytes]]:
        fields = list(_HEADER.unpack_from(self.header))
        size = fields[2]
        fields[3], fields[5], fields[6], fields[10] = 0, own, other, array_lba
        fields[13] = zlib.crc32(self.array)
        fields[3] = zlib.crc32(_HEADER.pack(*fields) + self.header[_HEADER.size : size])
        block = _HEADER.pack(*fields) + self.header[_HEADER.size : size]
        return [
            (array_lba * self.sector, self.array),
            (own * self.sector, block.ljust(self.sector, b"\0")),
        ]


@dataclass(frozen=True)
class Found:
    """What :func:`load` made of a disk; ``whole`` is False where only one copy was good."""

    table: Table
    whole: bool


def load(read: Read, size: int) -> Found:
    """Read the table of a disk of ``size`` bytes, the backup copy where the primary is broken."""
    for sector in (512, 4096):
        primary = _copy(read, sector, 1)
        last = size // sector - 1
        backup = _copy(read, sector, primary.other if primary else last)
        good = primary or backup
        if good is None:
            continue
        blocks = -(-len(good.array) // sector)
        return Found(
            Table(
                sector=sector,
                header=good.header,
                array=good.array,
                primary_lba=1,
                primary_array_lba=primary.array_lba if primary else 2,
                backup_lba=good.other if primary else good.own,
                backup_array_lba=backup.array_lba if backup else good.other - blocks,
            ),
            whole=primary is not None and backup is not None and primary.array == backup.array,
        )
    raise GptError("neither copy of the partition table is whole")


@dataclass(frozen=True)
class _Copy:
    own: int
    other: int
    array_lba: int
    header: bytes
    array: bytes


def _copy(read: Read, sector: int, lba: int) -> _Copy | None:
    """Read and check one copy: signature, place, and both checksums."""
    block = read(lba * sector, sector)
    if len(block) < sector or not block.startswith(_SIGNATURE):
        return None
    fields = _HEADER.unpack_from(block)
    size, crc, own, other, array_lba, count, entry_size, array_crc = (
        fields[i] for i in (2, 3, 5, 6, 10, 11, 12, 13)
    )
    if not _HEADER.size <= size <= sector or own != lba:
        return None
    if zlib.crc32(block[:16] + bytes(4) + block[20:size]) != crc:
        return None
    if entry_size < _ENTRY.size or entry_size % 8 or count * entry_size > _MAX_ARRAY:
        return None
    array = read(array_lba * sector, count * entry_size)
    if len(array) != count * entry_size or zlib.crc32(array) != array_crc:
        return None
    return _Copy(own, other, array_lba, block[:size], array)
