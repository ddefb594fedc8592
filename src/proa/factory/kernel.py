"""Debian's vmlinuz with its kernel compressed so that a machine can do it too.

Debian's frame takes 795 MB to make. Ours takes 16 MB and is about 1.5 % longer, so the code behind
it has to move up. That code is position independent: it is linked as a whole at address 0 and finds
everything relative to itself, and the kernel's build refuses relocations in it. What changes are
the references across the frame, and the fields of the headers that say how long things are:

- the start code before the frame (0x2cc bytes of assembly, arch/x86/boot/compressed/head_64.S)
  names things behind it: found by disassembling it;
- the code behind names three things before it, the two entries and the frame itself: found by
  these exact targets.

Whatever is not as expected raises :class:`KernelError`, and the release keeps Debian's bytes.
docs/decisions/0007-kernel-frame.md says how this was checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import capstone
from capstone import x86

from proa.wire import bzimage
from proa.wire.bzimage import Payload

_PAGE = 4096
# Where the 64-bit entry is, counted from the start code (boot.rst, "64-bit boot protocol").
_ENTRY_64 = 0x200
_DIRECTORY_CERTIFICATES = 4
_EXECUTABLE_32 = b"\x01\x08\x4c\x01"  # type 1, 8 bytes, IMAGE_FILE_MACHINE_I386: .compat's record
# An instruction may have an immediate operand behind its 32-bit distance.
_IMMEDIATES = (0, 1, 2, 4)


class KernelError(ValueError):
    """The kernel is not built as this module knows it; the message says in what."""


@dataclass(frozen=True)
class _Pe:
    """Offsets of the PE headers' parts in the file."""

    optional: int
    sections: tuple[int, ...]


def with_frame(image: bytes, frame: bytes) -> bytes:
    """Return ``image`` with ``frame``, which unpacks to the same kernel, in place of its own.

    The result is not signed: Debian's signature covers Debian's bytes. Raises
    :class:`KernelError` or :class:`bzimage.BzImageError`.
    """
    payload = bzimage.locate(image)
    pe = _pe(image)
    end = _file_end(image, pe)
    missing = len(frame) + bzimage.SIZE_FIELD - payload.size
    shift = max(0, -(-missing // _PAGE) * _PAGE)
    size = len(frame) + bzimage.SIZE_FIELD
    head = bytearray(image[: payload.offset])
    tail = bytearray(image[payload.end : end])
    _headers(head, payload, pe, size, shift)
    _start_code(head, payload, pe, shift)
    _code_behind(tail, payload, size, shift)
    room = payload.size + shift
    new = frame + struct.pack("<I", payload.unpacked_size)
    result = bytearray(head + new.ljust(room, b"\0") + tail)
    if _crc(_unsigned(image[:end], pe)) == 0:
        struct.pack_into("<I", result, len(result) - 4, _crc(result[:-4]))
    return bytes(result)


def _crc(data: bytes | bytearray) -> int:
    """Return the CRC-32 of boot.rst, "The image checksum": no final inversion.

    Up to 6.15 the kernel's build ends a bzImage with its CRC, so that of the whole file is 0.
    """
    return zlib.crc32(data) ^ 0xFFFFFFFF


def _unsigned(image: bytes, pe: _Pe) -> bytes:
    """Return the file as it was before it was signed."""
    plain = bytearray(image)
    _unsign(plain, pe)
    return bytes(plain)


def _unsign(head: bytearray, pe: _Pe) -> None:
    struct.pack_into("<I", head, pe.optional + 64, 0)  # CheckSum: none
    struct.pack_into("<II", head, pe.optional + 112 + 8 * _DIRECTORY_CERTIFICATES, 0, 0)


def _pe(image: bytes) -> _Pe:
    if image[:2] != b"MZ":
        raise KernelError("no EFI stub")
    (start,) = struct.unpack_from("<I", image, 0x3C)
    if image[start : start + 4] != b"PE\0\0":
        raise KernelError("no PE header")
    count, optional = struct.unpack_from("<6xH12xH", image, start)
    if struct.unpack_from("<H", image, start + 24)[0] != 0x20B or count != 4:
        raise KernelError("an EFI stub of another shape")
    table = start + 24 + optional
    return _Pe(start + 24, tuple(table + 40 * number for number in range(count)))


def _file_end(image: bytes, pe: _Pe) -> int:
    """Return where the file ends without the signature."""
    where, size = struct.unpack_from("<II", image, pe.optional + 112 + 8 * _DIRECTORY_CERTIFICATES)
    end = where or len(image)
    if end + size != len(image):
        raise KernelError("the signature is not at the end of the file")
    return end


def _add(data: bytearray, offset: int, shift: int) -> None:
    (value,) = struct.unpack_from("<I", data, offset)
    struct.pack_into("<I", data, offset, value + shift)


def _image_size(head: bytes | bytearray, payload: Payload, pe: _Pe) -> int:
    """Return how far the image reaches in memory, from the start code on."""
    size: int = struct.unpack_from("<I", head, pe.optional + 56)[0]
    return size - payload.setup_size


def _headers(head: bytearray, payload: Payload, pe: _Pe, size: int, shift: int) -> None:
    """Mend the setup header and the PE header."""
    old_init = _init_size(payload, payload.size, _image_size(head, payload, pe))
    (init,) = struct.unpack_from("<I", head, 0x260)
    if old_init > init:
        raise KernelError("the memory that the kernel asks for is not reckoned as known")
    new_init = _init_size(payload, size, _image_size(head, payload, pe) + shift)
    struct.pack_into("<I", head, 0x24C, size)
    struct.pack_into("<I", head, 0x260, max(init, new_init))
    _add(head, 0x1F4, shift // 16)  # syssize
    _add(head, 0x264, shift)  # handover_offset
    _add(head, 0x268, shift)  # kernel_info_offset

    _add(head, pe.optional + 4, shift)  # SizeOfCode
    _add(head, pe.optional + 16, shift)  # AddressOfEntryPoint
    _add(head, pe.optional + 56, shift)  # SizeOfImage
    _unsign(head, pe)
    names = [bytes(head[at : at + 8]).rstrip(b"\0") for at in pe.sections]
    if names != [b".setup", b".compat", b".text", b".data"]:
        raise KernelError("an EFI stub with other sections")
    _, compat, text, data = pe.sections
    for offset in (8, 16):  # VirtualSize, SizeOfRawData
        _add(head, text + offset, shift)
    for offset in (12, 20):  # VirtualAddress, PointerToRawData
        _add(head, data + offset, shift)
    (record,) = struct.unpack_from("<I", head, compat + 20)
    if bytes(head[record : record + 4]) != _EXECUTABLE_32:
        raise KernelError("the 32-bit EFI entry is not where it was")
    _add(head, record + 4, shift)


def _init_size(payload: Payload, size: int, image_size: int) -> int:
    """Return the memory that unpacking needs (arch/x86/boot/header.S, ZO_INIT_SIZE, for zstd).

    The kernel is unpacked over its own compressed form, from the end of the memory on.
    """
    extra = (payload.unpacked_size >> 8) + 131072
    offset = payload.unpacked_size + extra - size
    return image_size + -(-offset // _PAGE) * _PAGE


def _start_code(head: bytearray, payload: Payload, pe: _Pe, shift: int) -> None:
    """Mend what the code before the frame says of what is behind it.

    ``head`` has its new headers already, so the old size of the image is the new one less shift.
    """
    start, low = payload.setup_size, payload.end - payload.setup_size
    high = _image_size(head, payload, pe) - shift
    (preferred,) = struct.unpack_from("<Q", head, 0x258)
    if not 4 << 20 < low < high < preferred:
        raise KernelError("an image of unexpected size")
    code = bytes(head[start:])
    found = [
        *_operands(code[:_ENTRY_64], 0, capstone.CS_MODE_32, low, high),
        *_operands(code[_ENTRY_64:], _ENTRY_64, capstone.CS_MODE_64, low, high),
    ]
    if not 20 <= len(found) <= 60:
        raise KernelError(f"the start code has {len(found)} references")
    for position in found:
        _add(head, start + position, shift)


def _operands(code: bytes, address: int, mode: int, low: int, high: int) -> Iterator[int]:
    """Yield where the operands that name something from ``low`` to ``high`` stand.

    These are targets of calls and jumps, RIP-relative operands, and plain offsets as displacement
    or immediate: the start code holds the address of its first byte in a register.
    """
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    decoder.skipdata = True
    for instruction in decoder.disasm(code, address):
        if instruction.id == 0:
            continue
        for operand in instruction.operands:
            if operand.type == x86.X86_OP_IMM:
                value, size, at = operand.imm, instruction.imm_size, instruction.imm_offset
            elif operand.type == x86.X86_OP_MEM:
                relative = operand.mem.base == x86.X86_REG_RIP
                next_address = instruction.address + instruction.size
                value = operand.mem.disp + (next_address if relative else 0)
                size, at = instruction.disp_size, instruction.disp_offset
            else:
                continue
            if low <= value <= high:
                if size != 4:
                    raise KernelError(f"the start code has an odd reference: {instruction}")
                yield instruction.address + at


def _code_behind(tail: bytearray, payload: Payload, size: int, shift: int) -> None:
    """Mend what the code behind the frame says of what is before it, and the frame's length."""
    base = payload.end - payload.setup_size
    known = {0, _ENTRY_64, payload.offset - payload.setup_size}
    code = bytes(tail)
    found: list[int] = []
    frames = 0
    for position in range(len(code) - 3):
        (distance,) = struct.unpack_from("<i", code, position)
        if distance >= 0 or distance < -base - len(code):
            continue
        for immediate in _IMMEDIATES:
            target = base + position + 4 + immediate + distance
            if target in known:
                found.append(position)
                frames += target == payload.offset - payload.setup_size
    if not frames or len(found) > 12:
        raise KernelError(f"the unpacking code has {len(found)} references, {frames} to the frame")
    for position in found:
        (distance,) = struct.unpack_from("<i", tail, position)
        struct.pack_into("<i", tail, position, distance - shift)
    sizes = struct.pack("<II", payload.size, payload.unpacked_size)
    if code.count(sizes) != 1:
        raise KernelError("the unpacking code does not say once how long the frame is")
    struct.pack_into("<I", tail, code.index(sizes), size)
