"""The kernel's file after its kernel was compressed anew: everything still finds everything."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.factory import kernel
from proa.factory.kernel import KernelError
from proa.wire import bzimage
from proa.wire.bzimage import BzImageError

SETUP = 0x1000
START = 0x2CC  # length of the start code: where the frame begins, counted from it
FRAME = 5 << 20
CODE = 0x2000  # of the unpacking code; its data follow in one page
UNPACKED = 9 << 20
SIGNATURE = b"signed by Debian"


def frame(size: int) -> bytes:
    """A zstd frame of ``size`` bytes (at least 9) of raw blocks, as far as its lengths go."""
    out = bytearray(struct.pack("<IBB", 0xFD2FB528, 0, 0x68))
    while (left := size - len(out) - 3) > 0x20000:
        out += (0x20000 << 3).to_bytes(3, "little") + bytes(0x20000)
    return bytes(out + (left << 3 | 1).to_bytes(3, "little") + bytes(left))


def make_image() -> bytes:
    """A file with every kind of reference, all between the start code and what they name."""
    payload = FRAME + 4
    base = START + payload
    end = base + CODE + 0x1000  # of the file, from the start code on
    memory = end + 0x60000
    target = base + 0x100
    start = bytearray()
    for _ in range(8):
        start += b"\x8d\x85" + struct.pack("<I", target)  # lea target(%ebp), %eax
        start += b"\xe8" + struct.pack("<i", target - len(start) - 5)  # call target
        start += b"\x81\xeb" + struct.pack("<I", memory)  # sub $memory, %ebx
    start = start.ljust(0x200, b"\x90")
    start += b"\x48\x8d\x05" + struct.pack("<i", target - 0x207)  # lea target(%rip), %rax
    # What only looks like an offset: the bytes of two operands and an opcode.
    start += b"\x4c\x89\xff\x48\x8d\xb3" + struct.pack("<I", target)
    start = start.ljust(START, b"\x90")
    code = bytearray(b"\x90" * CODE)
    for at, wanted in ((0x200, START), (0x300, 0), (0x400, 0x200)):
        code[at : at + 3] = b"\x48\x8d\x05"  # lea wanted(%rip), %rax
        struct.pack_into("<i", code, at + 3, wanted - (base + at + 7))
    struct.pack_into("<II", code, CODE - 16, payload, UNPACKED)
    setup = bytearray(SETUP)
    setup[:2], setup[0x1F1] = b"MZ", SETUP // 512 - 1
    struct.pack_into("<I", setup, 0x3C, 0x40)
    setup[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<H12xH", setup, 0x46, 4, 160)
    optional = 0x58
    struct.pack_into("<H", setup, optional, 0x20B)
    struct.pack_into("<I", setup, optional + 4, base + CODE)
    struct.pack_into("<I", setup, optional + 16, target)
    struct.pack_into("<I", setup, optional + 56, SETUP + memory)
    sections = (
        (b".setup", 0x200, 0x200),
        (b".compat", 8, 0xF00),
        (b".text", base + CODE, SETUP),
        (b".data", 0x1000, SETUP + base + CODE),
    )
    for number, (name, size, at) in enumerate(sections):
        struct.pack_into("<8s4I", setup, optional + 160 + 40 * number, name, size, at, size, at)
    setup[0xF00:0xF04] = b"\x01\x08\x4c\x01"
    struct.pack_into("<I", setup, 0xF04, SETUP + target)
    setup[0x1FE:0x200], setup[0x202:0x206] = b"\x55\xaa", b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<I", setup, 0x1F4, end // 16)
    struct.pack_into("<II", setup, 0x248, START, payload)
    struct.pack_into("<QIII", setup, 0x258, 16 << 20, 64 << 20, target, target)
    body = setup + start + frame(FRAME) + struct.pack("<I", UNPACKED) + code + bytes(0xFFC)
    body += struct.pack("<I", zlib.crc32(body) ^ 0xFFFFFFFF)
    # Signed later.
    struct.pack_into("<I", body, optional + 64, 12345)
    struct.pack_into("<II", body, optional + 112 + 32, SETUP + end, len(SIGNATURE))
    return bytes(body) + SIGNATURE


IMAGE = make_image()
WHERE = bzimage.locate(IMAGE)


def word(image: bytes, offset: int) -> int:
    (value,) = struct.unpack_from("<i", image, offset)
    return int(value)


def test_a_payload_is_found_by_the_setup_header_and_measured_by_its_blocks() -> None:
    assert WHERE.setup_size == SETUP
    assert WHERE.offset == SETUP + START
    assert WHERE.frame_size == FRAME
    assert WHERE.unpacked_size == UNPACKED
    assert IMAGE[WHERE.offset : WHERE.frame_end] == frame(FRAME)


@settings(max_examples=20, deadline=None)
@given(st.integers(-5000, 200_000))
def test_every_reference_across_a_longer_or_shorter_frame_names_what_it_named(more: int) -> None:
    new = kernel.with_frame(IMAGE, frame(FRAME + more))
    where = bzimage.locate(new)
    moved = (len(new) + len(SIGNATURE)) - len(IMAGE)
    assert moved % 4096 == 0 and 0 <= moved < max(more, 0) + 4096
    assert new[where.offset : where.frame_end] == frame(FRAME + more)
    assert where.unpacked_size == UNPACKED
    base = START + FRAME + 4 + moved  # of the code behind, from the start code on
    target = base + 0x100
    # From the start code: offset, call, size of the image, RIP-relative.
    assert word(new, SETUP + 2) == target
    assert word(new, SETUP + 7) + 11 == target
    assert word(new, SETUP + 13) == base + CODE + 0x1000 + 0x60000
    assert word(new, SETUP + 0x203) + 0x207 == target
    assert word(new, SETUP + 0x20D) == target
    # From the code behind: the frame and both entries, and the frame's length.
    for at, wanted in ((0x200, START), (0x300, 0), (0x400, 0x200)):
        assert word(new, SETUP + base + at + 3) + base + at + 7 == wanted
    assert word(new, SETUP + base + CODE - 16) == FRAME + more + 4
    # From the headers: EFI entries for 64 and 32 bits, handover, kernel_info.
    assert word(new, 0x58 + 16) == target
    assert word(new, 0xF04) == SETUP + target
    assert word(new, 0x264) == word(new, 0x268) == target


def test_the_crc_of_the_whole_file_is_the_one_that_the_boot_protocol_wants() -> None:
    new = kernel.with_frame(IMAGE, frame(FRAME + 9000))
    # CRC-32 with no final inversion; over data and its own CRC it is 0.
    assert zlib.crc32(new) ^ 0xFFFFFFFF == 0


def test_a_file_without_a_crc_gets_none() -> None:
    image = bytearray(IMAGE)
    image[-len(SIGNATURE) - 4 : -len(SIGNATURE)] = b"data"
    assert kernel.with_frame(bytes(image), frame(FRAME + 9000)).endswith(b"data")


def test_nothing_but_the_signature_goes_when_the_same_frame_is_put_back() -> None:
    new = kernel.with_frame(IMAGE, frame(FRAME))
    differ = {at for at in range(len(new)) if new[at] != IMAGE[at]}
    assert len(new) == len(IMAGE) - len(SIGNATURE)
    assert differ <= {*range(0x58 + 64, 0x58 + 68), *range(0x58 + 144, 0x58 + 152)}


def test_there_is_memory_to_unpack_a_kernel_over_its_own_frame() -> None:
    where = WHERE
    tight = kernel._init_size(where, where.size, word(IMAGE, 0x58 + 56) - SETUP)
    image = bytearray(IMAGE)
    struct.pack_into("<I", image, 0x260, tight)
    new = kernel.with_frame(bytes(image), frame(FRAME + 10))
    found = bzimage.locate(new)
    memory = word(new, 0x58 + 56) - SETUP
    behind_frame = memory - (START + found.size)
    # The kernel is written from the start of the memory, the frame is read near its end.
    assert word(new, 0x260) - behind_frame >= UNPACKED + 131072 + (UNPACKED >> 8)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0x58 + 160 + 40 * 3, b".else", "other sections"),
        (0xF00, b"\0\0\0\0", "32-bit EFI entry"),
        (SETUP + START + FRAME + 4 + 0x203, b"\0\0\0\0", "references, 0 to the frame"),
        (SETUP + START + FRAME + 4 + CODE - 16, b"\0\0\0\0", "how long the frame is"),
        (0x258, b"\0\0\x10\0\0\0\0\0", "unexpected size"),
        (SETUP, b"\x90" * 0x200, "1 references|2 references"),
    ],
)
def test_a_kernel_of_another_make_is_refused(offset: int, value: bytes, reason: str) -> None:
    image = bytearray(IMAGE)
    image[offset : offset + len(value)] = value
    with pytest.raises(KernelError, match=reason):
        kernel.with_frame(bytes(image), frame(FRAME))


SMALL = bytes(IMAGE[: WHERE.offset]) + frame(300) + struct.pack("<I", UNPACKED)


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.integers(0, len(SMALL)))
def test_a_damaged_file_is_a_payload_inside_it_or_an_error(at: int, byte: int, cut: int) -> None:
    image = bytearray(SMALL)
    struct.pack_into("<I", image, 0x24C, 304)
    image[at] = byte
    try:
        found = bzimage.locate(bytes(image[:cut]))
    except BzImageError:
        return
    assert 0 < found.offset < found.frame_end <= found.end - 4 <= cut - 4
