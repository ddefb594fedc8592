"""Patches: what is made can be applied, and what was spoilt is refused or comes out wrong."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.factory import patch as factory
from proa.wire import patch as wire

TEXT, STRINGS, SYMBOLS, RELOCATIONS = 1, 2, 3, 4


def relocatable(functions: list[tuple[str, bytes, list[tuple[int, str]]]], btf: bytes) -> bytes:
    """Return an ELF relocatable file: functions with their code and calls (place, callee)."""
    text, names, symbols, relocations = b"", b"\0", bytes(24), b""
    number = {name: index + 2 for index, (name, _, _) in enumerate(functions)}
    symbols += struct.pack("<IBBHQQ", 0, 3, 0, TEXT, 0, 0)
    for name, code, calls in functions:
        symbols += struct.pack("<IBBHQQ", len(names), 2, 0, TEXT, len(text), len(code))
        names += name.encode() + b"\0"
        for place, callee in calls:
            relocations += struct.pack("<QQq", len(text) + place, number[callee] << 32 | 4, -4)
            relocations += struct.pack("<QQq", len(text) + place, 1 << 32 | 2, len(text) - 4)
        text += code + b"\x90" * (-len(code) % 16)
    section_names = b"\0.BTF\0"
    sections = [
        (0, 0, b"", 0, 0, 0, 0),
        (0, 1, text, 6, 0, 0, 0),
        (0, 3, names, 0, 0, 0, 0),
        (0, 2, symbols, 0, STRINGS, 2, 24),
        (0, 4, relocations, 0, SYMBOLS, TEXT, 24),
        (1, 1, btf, 0, 0, 0, 0),
        (0, 3, section_names, 0, 0, 0, 0),
    ]
    body, headers = bytes(64), b""
    for name_at, kind, content, flags, link, info, entry in sections:
        headers += struct.pack("<IIQQQQ", name_at, kind, flags, 0, len(body), len(content))
        headers += struct.pack("<IIQQ", link, info, 1, entry)
        body += content
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQI", 1, 62, 1, 0, 0, len(body), 0)
    header += struct.pack("<HHHHHH", 64, 0, 0, 64, len(sections), len(sections) - 1)
    return header + body[64:] + headers


def module_btf(seed: int, kernel_types: int, kernel_strings: int, moved: int) -> bytes:
    """Return a module's BTF: prototypes and functions, and pointers to the kernel's own types.

    The kernel's types above number 500 are ``moved`` further on.
    """
    random_ = random.Random(seed)
    types, strings = b"", b""
    for index in range(40):
        pointee = random_.randrange(1, 1000)
        types += struct.pack("<III", 0, 2 << 24, pointee + (moved if pointee > 500 else 0))
        types += struct.pack("<III", 0, 13 << 24, kernel_types + 1 + 3 * index)
        name = kernel_strings + len(strings)
        types += struct.pack("<III", name, 12 << 24, kernel_types + 2 + 3 * index)
        strings += f"function_{random_.randrange(10**6)}".encode() + b"\0"
    sizes = (0, len(types), len(types), len(strings))
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + types + strings


def module(
    seed: int, *, grown: frozenset[int] = frozenset(), count: int = 60, btf: bytes = b""
) -> bytes:
    """Return a relocatable file; the functions of ``grown`` are 32 bytes longer than else."""
    random_ = random.Random(seed)
    functions = []
    for index in range(count):
        code = bytearray(random_.randbytes(random_.randrange(40, 400)))
        calls = [(place, f"function_{random_.randrange(count)}") for place in range(8, 36, 8)]
        if index in grown:
            code += random.Random(index).randbytes(32)
        functions.append((f"function_{index}", bytes(code), calls))
    return relocatable(functions, btf)


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An old and a new content that share much."""
    old = draw(st.binary(max_size=600)) * draw(st.integers(1, 5))
    new = bytearray(old)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(new)))
        end = at + draw(st.integers(0, 30))
        new[at:end] = draw(st.binary(max_size=40))
    return old, bytes(new)


@given(edited())
def test_a_patch_makes_the_new_file_from_the_old(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    patch = factory.make(old, new)
    assert factory.apply(patch, old, len(new)) == new
    assert patch.kind == wire.PLAIN


@pytest.mark.parametrize(("old", "new"), [(b"", b""), (b"", b"new"), (b"old", b""), (b"x", b"x")])
def test_empty_files_can_be_patched(old: bytes, new: bytes) -> None:
    assert factory.apply(factory.make(old, new), old, len(new)) == new


def test_pieces_are_small_and_in_order() -> None:
    old = random.Random(1).randbytes(300_000)
    new = old[:100_000] + b"inserted" * 20_000 + old[90_000:]
    patch = factory.make(old, new)
    pieces = list(
        wire.apply(
            patch.control,
            factory.stream(patch.diff),
            factory.stream(patch.extra),
            factory.reader(old),
            len(new),
        )
    )
    assert b"".join(pieces) == new
    assert max(map(len, pieces)) <= 2 * wire.PIECE


@given(st.data())
def test_many_small_differences_come_out_right(data: st.DataObject) -> None:
    """Few of them are added one by one, many at once; a run may go on from one copy to the next."""
    old = random.Random(3).randbytes(data.draw(st.integers(1, 140_000)))
    new = bytearray(old)
    for at in range(data.draw(st.integers(0, 200)), len(new), data.draw(st.integers(1, 5000))):
        new[at] = (new[at] + data.draw(st.integers(1, 255))) & 255
    assert factory.apply(factory.make(old, bytes(new)), old, len(new)) == bytes(new)


def test_an_equal_stretch_costs_no_difference_bytes() -> None:
    old = random.Random(2).randbytes(200_000)
    new = old[:1000] + b"\0" + old[1001:]
    patch = factory.make(old, new)
    assert len(patch.diff) + len(patch.extra) <= 1
    assert len(patch.control) < 30


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.frozensets(st.integers(0, 59), max_size=5))
def test_references_of_a_relocatable_file_are_predicted(seed: int, grown: frozenset[int]) -> None:
    old, new = module(seed), module(seed, grown=grown)
    patch = factory.make(old, new)
    plain = factory.make(old, new, predict=False)
    assert factory.apply(patch, old, len(new)) == new
    assert patch.kind == wire.ELF
    # What is new is 32 bytes of code and a size for each function that grew; everything else
    # that differs (offsets, addends, values) follows from it.
    assert len(patch.diff) + len(patch.extra) <= 50 * len(grown) + 40
    if grown:
        assert len(patch.diff) <= len(plain.diff)


def test_the_numbers_of_the_kernels_types_are_learnt_from_all_its_modules() -> None:
    pairs = [
        (
            module(seed, btf=module_btf(seed, 1000, 50_000, 0)),
            module(seed, btf=module_btf(seed, 1007, 50_321, 7)),
        )
        for seed in range(6)
    ]
    kernel = factory.learn(pairs)
    assert {delta for start, _, delta in kernel.steps if start < wire.BTF_TYPES + 500} == {0}
    assert {delta for start, _, delta in kernel.steps if start > wire.BTF_TYPES + 500} == {7}
    for old, new in pairs:
        patch = factory.make(old, new, kernel=kernel)
        assert factory.apply(patch, old, len(new)) == new
        assert len(patch.diff) + len(patch.extra) == 0


def test_a_real_program_can_be_patched() -> None:
    old = Path("/bin/cat").read_bytes()
    new = bytearray(old)
    new[len(old) // 2 : len(old) // 2] = bytes(range(48))
    patch = factory.make(old, bytes(new))
    assert factory.apply(patch, old, len(new)) == bytes(new)


# --- spoilt patches -------------------------------------------------------------------------------


def attempt(control: bytes, diff: bytes, extra: bytes, old: bytes, new_size: int) -> bytes | None:
    """Apply what may be spoilt; None if it was refused. Any other exception fails the test."""
    asked = []

    def read(offset: int, size: int) -> bytes:
        # How large the old file is, a spoilt patch may say wrongly: behind the end is nothing.
        assert offset >= 0 <= size
        asked.append(size)
        return old[offset : offset + size]

    made = bytearray()
    try:
        for piece in wire.apply(
            control, factory.stream(diff), factory.stream(extra), read, new_size
        ):
            made += piece
            assert len(piece) <= wire.PIECE
            assert len(made) <= new_size
    except wire.PatchError:
        return None
    assert len(made) == new_size
    return bytes(made)


OLD = module(7, btf=module_btf(7, 1000, 50_000, 0))
NEW = module(7, grown=frozenset({3, 20}), btf=module_btf(7, 1007, 50_321, 7))
GOOD = factory.make(OLD, NEW)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_spoilt_patch_is_refused_or_makes_wrong_bytes(data: st.DataObject) -> None:
    streams = [bytearray(GOOD.control), bytearray(GOOD.diff), bytearray(GOOD.extra), bytearray(OLD)]
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = streams[data.draw(st.sampled_from([0, 0, 0, 1, 2]))]
        at = data.draw(st.integers(0, max(len(chosen) - 1, 0)))
        chosen[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    size = data.draw(st.sampled_from([len(NEW), len(NEW), 0, 1, len(NEW) + 1, 1 << 50]))
    control, diff, extra, old = map(bytes, streams)
    made = attempt(control, diff, extra, old, size)
    if size != len(NEW):
        assert made is None or (size < 2 and len(made) == size) or size == len(NEW) + 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_spoilt_old_file_is_no_way_out_of_the_decoder(data: st.DataObject) -> None:
    old = bytearray(OLD)
    places = st.one_of(
        st.integers(0, 63),
        st.integers(len(OLD) - 7 * 64, len(OLD) - 1),
        st.integers(0, len(OLD) - 1),
    )
    for _ in range(data.draw(st.integers(1, 8))):
        old[data.draw(places)] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    attempt(GOOD.control, GOOD.diff, GOOD.extra, bytes(old), len(NEW))


@given(st.binary(max_size=200), st.integers(0, 1 << 20))
def test_noise_is_not_a_patch(control: bytes, size: int) -> None:
    attempt(control, b"\1" * 100, b"\2" * 100, OLD, size)


@pytest.mark.parametrize("kind", [2, 3, 127])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(wire.PatchError, match="kind"):
        wire.read_control(bytes([kind]) + GOOD.control[1:], len(NEW))


def test_an_old_file_that_is_cut_short_is_refused() -> None:
    assert attempt_short(OLD[:-1]) is None


def attempt_short(old: bytes) -> bytes | None:
    parts = wire.apply(
        GOOD.control,
        factory.stream(GOOD.diff),
        factory.stream(GOOD.extra),
        factory.reader(old),
        len(NEW),
    )
    try:
        return b"".join(parts)
    except wire.PatchError:
        return None


@given(st.binary(min_size=1, max_size=300), st.data())
def test_bytes_are_added_without_carry(data: bytes, draw: st.DataObject) -> None:
    other = draw.draw(st.binary(min_size=len(data), max_size=len(data)))
    out = bytearray(b"ab" + data + b"c")
    wire._add(out, 2, other)
    expected = bytes((one + two) & 255 for one, two in zip(data, other, strict=True))
    assert out == b"ab" + expected + b"c"


@given(
    st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 3)), max_size=8),
    st.lists(st.integers(0, 700), max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_patch_cut_into_parts_makes_the_same_file(
    pieces: list[tuple[bytes, int]], places: list[int], dice: random.Random
) -> None:
    old = b"".join(piece for piece, _ in pieces)
    shuffled = [piece for piece, times in pieces for _ in range(times)]
    dice.shuffle(shuffled)
    new = b"".join(shuffled)
    whole = factory.make(old, new, predict=False)
    copies = wire.read_control(whole.control, len(new)).copies
    cuts = sorted({0, len(new), *(place for place in places if place < len(new))})
    made = b""
    for start, end in itertools.pairwise(cuts):
        part = factory.from_copies(old, new[start:end], factory.cut(copies, start, end))
        made += factory.apply(part, old, end - start)
    assert made == new
