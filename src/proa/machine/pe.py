"""Looking into a unified kernel image: the sections of a PE file, by name.

Source of the formats: Microsoft's PE/COFF specification (headers) and UAPI.5 (which sections a
unified kernel image has: ``.linux``, ``.initrd``, ``.cmdline``, ``.osrel``, ``.uname``, ...).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MAX_SECTIONS = 96  # as the Windows loader


class PeError(ValueError):
    """The file is not a PE image that can be read; the message says why."""


@dataclass(frozen=True)
class Section:
    """Where a section's content lies in the file, in bytes."""

    offset: int
    size: int


def sections(path: Path) -> Mapping[str, Section]:
    """Return the sections of an image. The file is not read beyond its headers."""
    total = path.stat().st_size
    with path.open("rb") as file:
        dos = file.read(64)
        if len(dos) < 64 or not dos.startswith(b"MZ"):
            raise PeError(f"{path.name} is not a PE image")
        (start,) = struct.unpack_from("<I", dos, 0x3C)
        file.seek(start)
        header = file.read(24)
        if len(header) < 24 or not header.startswith(b"PE\0\0"):
            raise PeError(f"{path.name} has no PE header")
        count, optional = struct.unpack_from("<6xH12xH", header)
        if count > _MAX_SECTIONS:
            raise PeError(f"{path.name} has {count} sections; at most {_MAX_SECTIONS} are read")
        file.seek(start + 24 + optional)
        table = file.read(40 * count)
    if len(table) < 40 * count:
        raise PeError(f"{path.name} is cut short")
    found: dict[str, Section] = {}
    for position in range(0, 40 * count, 40):
        name = table[position : position + 8].rstrip(b"\0").decode("ascii", "replace")
        virtual, _, raw, offset = struct.unpack_from("<IIII", table, position + 8)
        # The raw size is padded to the file's alignment; the virtual one is the content's own.
        size = min(virtual, raw)
        if offset + size > total:
            raise PeError(f"{path.name}: the section {name} ends behind the end of the file")
        found.setdefault(name, Section(offset, size))
    return found


def read_text(path: Path, name: str, limit: int = 64 << 10) -> str:
    """Return a small text section without its padding, or "" where there is none."""
    section = sections(path).get(name)
    if section is None:
        return ""
    if section.size > limit:
        raise PeError(f"{path.name}: the section {name} has {section.size} bytes; too many")
    with path.open("rb") as file:
        file.seek(section.offset)
        return file.read(section.size).rstrip(b"\0\n ").decode("utf-8", "replace")
