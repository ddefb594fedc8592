"""Where the compressed kernel lies in a bzImage, so that it can be taken out and put back.

A bzImage is: boot sector and setup code, a little start code, the *payload* (the real kernel in one
zstd frame and its size), then the code that unpacks it. An update ships the unpacked kernel as a
delta, and the machine makes the frame anew.

Source of the formats: the kernel's Documentation/arch/x86/boot.rst (setup header, fields
``setup_sects``, ``payload_offset`` and ``payload_length``, protocol 2.08) and RFC 8878 (zstd).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ZSTD_MAGIC = 0xFD2FB528
_OLDEST_PROTOCOL = 0x208
_SECTOR = 512
# The payload ends with the size of what it unpacks to, as the kernel's build appends it.
SIZE_FIELD = 4
_MAX_BLOCKS = 1 << 20


class BzImageError(ValueError):
    """Not a bzImage with a zstd payload; the message says why."""


@dataclass(frozen=True)
class Payload:
    """Offsets and sizes in bytes: the setup part, the frame, and the payload that holds it."""

    setup_size: int
    offset: int
    frame_size: int
    size: int
    unpacked_size: int

    @property
    def frame_end(self) -> int:
        """Offset of the first byte behind the frame."""
        return self.offset + self.frame_size

    @property
    def end(self) -> int:
        """Offset of the first byte behind the payload."""
        return self.offset + self.size


def locate(image: bytes | memoryview) -> Payload:
    """Find the payload of ``image``, which is the whole file or maps it.

    Raises :class:`BzImageError`.
    """
    if len(image) < 0x26C or bytes(image[0x1FE:0x200]) != b"\x55\xaa":
        raise BzImageError("no boot sector")
    if bytes(image[0x202:0x206]) != b"HdrS":
        raise BzImageError("no Linux setup header")
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        raise BzImageError(f"boot protocol {protocol:#x} does not say where the payload is")
    setup_size = ((image[0x1F1] or 4) + 1) * _SECTOR
    start, size = struct.unpack_from("<II", image, 0x248)
    offset = setup_size + start
    if size <= SIZE_FIELD or offset + size > len(image):
        raise BzImageError("the payload is not inside the file")
    frame_size = _frame_size(image, offset, offset + size - SIZE_FIELD)
    (unpacked,) = struct.unpack_from("<I", image, offset + size - SIZE_FIELD)
    return Payload(setup_size, offset, frame_size, size, unpacked)


def _frame_size(image: bytes | memoryview, offset: int, end: int) -> int:
    """Return the length of the zstd frame at ``offset``, by its blocks (RFC 8878, 3.1.1)."""
    position = offset
    if end - position < 5 or struct.unpack_from("<I", image, position)[0] != _ZSTD_MAGIC:
        raise BzImageError("the payload is not a zstd frame")
    descriptor = image[position + 4]
    single, checksum, dictionary = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor & 3
    content = (single, 2, 4, 8)[descriptor >> 6]
    position += 5 + (1 - single) + (0, 1, 2, 4)[dictionary] + content
    for _ in range(_MAX_BLOCKS):
        if position + 3 > end:
            break
        header = int.from_bytes(image[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3:
            raise BzImageError("the payload's frame has a block of no known kind")
        position += 3 + (1 if kind == 1 else size)
        if last:
            position += 4 * checksum
            if position > end:
                break
            return position - offset
    raise BzImageError("the payload's frame is cut short")
