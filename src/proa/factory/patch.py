"""Make the patch of one file: the encoder of :mod:`proa.wire.patch`.

The search for equal parts is bsdiff's (the C core of ``bsdiff4``). It does not see the files as
they are but as *shadows* of the same size, in which every reference is replaced by a label of what
it points to. In the first pass the label is a hash of the bytes at the target; in the second, the
target's address in the new file, as the copies of the first pass predict it. So code that only
moved looks the same in both shadows, and so do tables of nothing but references.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import bsdiff4.core
import numpy as np
from numpy.typing import NDArray

from proa.wire import patch as wire

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

# Differences that are this near are one run: the zeros between them cost less than a number.
JOIN = 1

# Copies with fewer equal bytes than this cost more than they save.
FLOOR = 12

# In a program with more copies than this (another compiler, say) their places cost more, and so
# does the memory of the machine that applies it: the floor is higher there.
MANY = 100_000
HIGH_FLOOR = 24


@dataclass(frozen=True)
class Patch:
    """One file's patch; ``control``, ``diff`` and ``extra`` as the decoder reads them."""

    control: bytes
    diff: bytes
    extra: bytes
    kind: int


@dataclass(frozen=True)
class Kernel:
    """What the BTF of all modules of two kernels has in common.

    ``steps`` are (old number, end, new - old) of the kernel's own types and strings, counted from
    :data:`proa.wire.patch.BTF_TYPES` and :data:`~proa.wire.patch.BTF_STRINGS`. Every module's
    patch carries them, so that it stands alone; compressed together they cost nothing.
    """

    steps: tuple[tuple[int, int, int], ...] = ()


def make(old: bytes, new: bytes, *, predict: bool = True, kernel: Kernel | None = None) -> Patch:
    """Return the patch that makes ``new`` from ``old``, verified by applying it.

    With ``predict`` off, the files are taken as plain bytes even if they are ELF. ``kernel`` is
    what :func:`learn` found in all modules of the same two kernels.
    """
    made = None
    if predict:
        try:
            made = _make_elf(old, new, kernel)
        except (wire.PatchError, OverflowError, struct.error):
            # Not an ELF file, or one with strange numbers.
            made = None
    if made is None:
        copies = _match(old, new)
        made = _encode(wire.PLAIN, b"", copies, old, new, None)
    if apply(made, old, len(new)) != new:
        raise AssertionError("a patch does not make the file that it was made for")
    return made


def make_from_part(old: bytes, start: int, new: bytes) -> Patch:
    """Return a patch over the whole of ``old`` that only looks at what lies behind ``start``."""
    found = _match(old[start:], new)
    places = [at + start for at in found.old]
    return from_copies(old, new, wire.Copies(found.length, places, found.new, found.extra))


def cut(copies: wire.Copies, start: int, end: int) -> wire.Copies:
    """Return the copies of the part of the new file between ``start`` and ``end``."""
    length, place, to, extra = [0], [0], [0], [0]
    for count, at, made, more in zip(
        copies.length, copies.old, copies.new, copies.extra, strict=True
    ):
        low, high = max(made, start), min(made + count, end)
        if low < high:
            length.append(high - low)
            place.append(at + low - made)
            to.append(low - start)
            extra.append(0)
        extra[-1] += max(min(made + count + more, end) - max(made + count, start), 0)
    return wire.Copies(length, place, to, extra)


def from_copies(old: bytes, new: bytes, copies: wire.Copies) -> Patch:
    """Return the patch with these copies, which the caller knows of, verified by applying it."""
    made = _encode(wire.PLAIN, b"", copies, old, new, None)
    if apply(made, old, len(new)) != new:
        raise AssertionError("a patch does not make the file that it was made for")
    return made


def apply(patch: Patch, old: bytes, new_size: int) -> bytes:
    """Return the new file: the decoder on byte strings."""
    parts = wire.apply(
        patch.control, stream(patch.diff), stream(patch.extra), reader(old), new_size
    )
    return b"".join(parts)


def reader(data: bytes) -> wire.Reader:
    """Return random access to ``data`` as the decoder wants it."""
    return lambda offset, size: data[offset : offset + size]


def stream(data: bytes) -> wire.Stream:
    """Return ``data`` as a stream of which the decoder takes n bytes at a time."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    return take


# --- copies ---------------------------------------------------------------------------------------


def _match(old: bytes, new: bytes) -> wire.Copies:
    """Return bsdiff's copies of two byte strings."""
    if not old or not new:
        return wire.Copies([0], [0], [0], [len(new)])
    if old == new:
        return wire.Copies([len(new)], [0], [0], [0])
    control, _, _ = bsdiff4.core.diff(old, new)
    # The numbers are 64 bits, little-endian, with the sign in the top bit alone.
    raw = np.frombuffer(control, "<i8")
    triples = np.where(raw < 0, -(raw & np.int64(2**63 - 1)), raw).reshape(-1, 3)
    length, place, to, extra = [], [], [], []
    at = made = 0
    for count, more, seek in triples.tolist():
        length.append(count)
        extra.append(more)
        place.append(at)
        to.append(made)
        at += count + seek
        made += count + more
    floor = HIGH_FLOOR if len(length) > MANY else FLOOR
    return _prune(wire.Copies(length, place, to, extra), old, new, floor)


def _prune(copies: wire.Copies, old: bytes, new: bytes, floor: int) -> wire.Copies:
    """Drop the copies that have fewer than ``floor`` equal bytes: new bytes are cheaper.

    They are also the ones most likely to be there by chance, and to mislead the address map.
    """
    one, two = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    length, place, to, extra = [0], [0], [0], [0]
    for count, start, made, more in zip(
        copies.length, copies.old, copies.new, copies.extra, strict=True
    ):
        if count >= floor and (
            count >= 4 * floor
            or np.count_nonzero(one[start : start + count] == two[made : made + count]) >= floor
        ):
            length.append(count)
            place.append(start)
            to.append(made)
            extra.append(more)
        else:
            extra[-1] += count + more
    return wire.Copies(length, place, to, extra)


def _make_elf(old: bytes, new: bytes, kernel: Kernel | None) -> Patch:
    old_btf, new_btf = _module_btf(old), _module_btf(new)
    if old_btf is None or new_btf is None:
        old_btf = new_btf = None
    elif kernel is None:
        kernel = learn([(old, new)])
    strings = old_btf.kernel_strings if old_btf else None
    old_layout = wire.read_layout(reader(old), len(old), strings)
    new_layout = wire.read_layout(
        reader(new), len(new), new_btf.kernel_strings if new_btf else None
    )
    old_fields = _fields(old, old_layout)
    new_fields = _fields(new, new_layout)
    copies = _match(
        _content_labels(old, old_layout, old_fields, old_btf),
        _content_labels(new, new_layout, new_fields, new_btf),
    )
    more = _steps(copies, kernel, old_btf, new_btf)
    addresses = _addresses(copies, old_layout, new_layout, more)
    copies = _match(
        _address_labels(old, old_layout, old_fields, addresses),
        _address_labels(new, new_layout, new_fields, None),
    )
    more = _steps(copies, kernel, old_btf, new_btf)
    addresses = _addresses(copies, old_layout, new_layout, more)
    predicted = _predict(copies, old, old_layout, new_layout, addresses)
    header = _elf_header(new_layout, strings, more)
    return _encode(wire.ELF, header, copies, old, new, predicted)


def _addresses(
    copies: wire.Copies,
    old: wire.Layout,
    new: wire.Layout,
    more: list[tuple[int, int, int]],
) -> wire.AddressMap:
    return wire.AddressMap(wire.address_steps(copies, old.segments, new.segments, more))


def _predict(
    copies: wire.Copies,
    old: bytes,
    layout: wire.Layout,
    new_layout: wire.Layout,
    addresses: wire.AddressMap,
) -> bytes:
    """Return what the decoder predicts for all copies, one after the other."""
    out = []
    for length, start, to in zip(copies.length, copies.old, copies.new, strict=True):
        for done in range(0, length, wire.PIECE):
            at, place = start + done, to + done
            piece = old[at : at + min(wire.PIECE, length - done)]
            shift = place + new_layout.segments.bias(place) - at - layout.segments.bias(at)
            out.append(bytes(wire.predict(layout, addresses, at, piece, shift)))
    return b"".join(out)


# --- BTF ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ModuleBtf:
    """A module's BTF: where it is in the file, and how many numbers are the kernel's own.

    Types above ``kernel_types`` and string offsets from ``kernel_strings`` on are the module's.
    """

    offset: int
    data: bytes
    btf: wire.Btf
    kernel_types: int
    kernel_strings: int


def _module_btf(file: bytes) -> _ModuleBtf | None:
    """Return the BTF of a kernel module, None if it has none or what is not a module's."""
    sections = wire.read_layout(reader(file), len(file)).sections
    section = next((s for s in sections if s.name == b".BTF"), None)
    if section is None or section.size > wire.MAX_BTF:
        return None
    data = file[section.offset : section.end]
    btf = wire.read_btf(data)
    fields = np.array(btf.fields, np.int64)
    if not len(fields):
        return None
    values = _words(data, fields)
    is_type = np.frombuffer(btf.is_type, np.uint8) == 1
    # The last string is there because something is called by it.
    last = data.rfind(b"\0", btf.strings, btf.strings + btf.strings_size - 1) + 1 - btf.strings
    kernel_strings = int(values[~is_type].max()) - max(last, 0)
    # A function follows its prototype (kinds 12 and 13), so it tells the number of the type
    # before it.
    kinds = np.frombuffer(btf.kinds, np.uint8)
    records = np.array(btf.records, np.int64)
    functions = np.flatnonzero((kinds[1:] == 12) & (kinds[:-1] == 13)) + 1
    if kernel_strings == 0:
        return _ModuleBtf(section.offset, data, btf, 0, 0)
    if not len(functions) or kernel_strings < 0:
        return None
    firsts = _words(data, records[functions] + 8) - functions
    votes, counts = np.unique(firsts, return_counts=True)
    kernel_types = int(votes[np.argmax(counts)])
    if kernel_types <= 0:
        return None
    return _ModuleBtf(section.offset, data, btf, kernel_types, kernel_strings)


def _words(data: bytes, at: Ints) -> Ints:
    """Return the little-endian words of 32 bits at the given places."""
    raw = np.frombuffer(data, np.uint8).astype(np.int64)
    return raw[at] | raw[at + 1] << 8 | raw[at + 2] << 16 | raw[at + 3] << 24


def learn(pairs: Iterable[tuple[bytes, bytes]]) -> Kernel:
    """Find how the numbers of the kernel's own types and strings changed.

    ``pairs`` are the old and new files of one kernel's modules; others are passed over.
    """
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    for old, new in pairs:
        try:
            old_btf, new_btf = _module_btf(old), _module_btf(new)
        except wire.PatchError:
            continue
        if old_btf and new_btf and old_btf.kernel_strings and new_btf.kernel_strings:
            _vote(old_btf, new_btf, votes)
    steps: list[tuple[int, int, int]] = []
    for number in sorted(votes):
        (delta, _), *_ = votes[number].most_common(1)
        if steps and steps[-1][2] == delta:
            steps[-1] = (steps[-1][0], number + 1, delta)
        else:
            steps.append((number, number + 1, delta))
    return Kernel(tuple(steps))


def _vote(old: _ModuleBtf, new: _ModuleBtf, votes: dict[int, Counter[int]]) -> None:
    """Count which number of the old kernel stands where which of the new one does."""
    sides = []
    for side in (old, new):
        region = wire.btf_region(side.data, 0, 0, side.kernel_strings)
        layout = wire.Layout(wire.Segments((), 0), [region])
        fields = _fields(side.data, layout)
        alone = dataclasses.replace(side, offset=0)
        sides.append((fields, _content_labels(side.data, layout, fields, alone)))
    (old_fields, old_shadow), (new_fields, new_shadow) = sides
    copies = _match(old_shadow, new_shadow)
    went = _went(copies, len(old.data))[old_fields.at]
    index = np.minimum(np.searchsorted(new_fields.at, went), len(new_fields.at) - 1)
    target, became = old_fields.target, new_fields.target[index]
    good = (new_fields.at[index] == went) & (target >= wire.BTF_TYPES)
    good &= (target >= wire.BTF_STRINGS) == (became >= wire.BTF_STRINGS)
    good &= (became >= wire.BTF_TYPES) & (target < wire.BTF_STRINGS + old.kernel_strings)
    # A module's own types are no news of the kernel's.
    for side, number in ((old, target), (new, became)):
        own = (number > wire.BTF_TYPES + side.kernel_types) & (number < wire.BTF_STRINGS)
        good &= ~own
    for number, now in zip(target[good].tolist(), became[good].tolist(), strict=True):
        votes[number][now - number] += 1


def _went(copies: wire.Copies, size: int) -> Ints:
    """Return for each byte of the old file where it went in the new one, -1 for nowhere."""
    went = np.full(size, -1, np.int64)
    for length, start, to in zip(copies.length, copies.old, copies.new, strict=True):
        went[start : start + length] = np.arange(to, to + length)
    return went


def _steps(
    copies: wire.Copies, kernel: Kernel | None, old: _ModuleBtf | None, new: _ModuleBtf | None
) -> list[tuple[int, int, int]]:
    """Return the steps of the address map that the copies do not say."""
    if old is None or new is None or kernel is None:
        return []
    steps = list(kernel.steps)
    records = np.array(old.btf.records, np.int64)
    went = np.full(len(records), -1, np.int64)
    starts = records + old.offset
    for length, start, to in zip(copies.length, copies.old, copies.new, strict=True):
        low, high = np.searchsorted(starts, (start, start + length))
        went[low:high] = starts[low:high] - start + to
    became = {at + new.offset: number for number, at in enumerate(new.btf.records)}
    own: list[tuple[int, int, int]] = []
    for number, place in enumerate(went.tolist()):
        now = became.get(place)
        if now is None or old.btf.kinds[number] != new.btf.kinds[now]:
            continue
        first = wire.BTF_TYPES + old.kernel_types + 1 + number
        delta = now + new.kernel_types - number - old.kernel_types
        if own and own[-1][2] == delta:
            own[-1] = (own[-1][0], first + 1, delta)
        else:
            own.append((first, first + 1, delta))
    strings = new.offset + new.btf.strings - old.offset - old.btf.strings
    strings -= new.kernel_strings - old.kernel_strings
    return sorted([*steps, *own, (wire.BTF_OWN, wire.BTF_OWN + 1, strings)])


# --- shadows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fields:
    """The references of a file: place, form and target address of each."""

    at: Ints
    form: Ints
    target: Ints


def _fields(data: bytes, layout: wire.Layout) -> _Fields:
    # One flat array: a list of tuples would take a gigabyte for a large program.
    numbers = (number for reference in layout.references(0, data) for number in reference[:3])
    found = np.fromiter(numbers, np.int64).reshape(-1, 3)
    return _Fields(found[:, 0], found[:, 1], found[:, 2])


def _write(shadow: Bytes, fields: _Fields, labels: Ints) -> None:
    for form, (_, width, *_) in enumerate(wire.FORMS):
        chosen = fields.form == form
        at, value = fields.at[chosen], labels[chosen].astype(np.uint64)
        for byte in range(width):
            shadow[at + byte] = (
                (value >> np.uint64(8 * byte)).astype(np.uint8) if byte < 4 else np.uint8(0)
            )


def _content_labels(
    data: bytes, layout: wire.Layout, fields: _Fields, btf: _ModuleBtf | None
) -> bytes:
    """Return the shadow whose labels are hashes of the bytes around each target."""
    shadow = np.frombuffer(data, np.uint8).copy()
    zero = np.zeros(len(fields.at), np.int64)
    _write(shadow, fields, zero)
    blank = np.concatenate([np.zeros(16, np.uint8), shadow, np.zeros(32, np.uint8)])
    offsets = _offsets(fields.target, layout.segments, len(data))
    # A symbol or section header is known by its name, which is its first field.
    names = np.full(len(data) + 1, -1, np.int64)
    chosen = fields.form == wire.WORD
    names[fields.at[chosen]] = np.where(offsets[chosen] < 0, -1, offsets[chosen])
    indirect = np.isin(fields.form, (wire.INDEX, wire.SECTION)) & (offsets >= 0)
    if btf is not None:
        number = fields.target - wire.BTF_TYPES - btf.kernel_types - 1
        own = (number >= 0) & (number < len(btf.btf.records))
        records = np.array(btf.btf.records, np.int64) + btf.offset
        offsets[own] = records[number[own]]
        indirect |= own
    named = np.where(indirect, names[offsets], -1)
    offsets = np.where(named >= 0, named, offsets)
    hashes = np.zeros(len(offsets), np.uint64)
    for byte in range(-8, 12):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + blank[offsets + 16 + byte] + np.uint64(1)
    labels = np.where(offsets >= 0, hashes >> np.uint64(32), np.uint64(0)).astype(np.int64)
    if layout.segments.loads:
        labels = _relocated_labels(fields, labels)
    _write(shadow, fields, labels)
    _write_words(shadow, layout, fields, labels)
    return shadow.tobytes()


def _relocations(fields: _Fields) -> tuple[Ints, Ints]:
    """Return for each relocation the numbers of the fields for its place and for its value.

    A record has 8 bytes at 0 (the place), then a symbol's number at 12 or an address at 16; if it
    has both, the address (of a section's symbol) says more.
    """
    places = np.flatnonzero(fields.form == wire.QUAD)
    known = fields.at[places]
    found: dict[int, int] = {}
    for form, distance in ((wire.INDEX, 12), (wire.QUAD, 16)):
        values = np.flatnonzero(fields.form == form)
        index = np.minimum(np.searchsorted(known, fields.at[values] - distance), len(known) - 1)
        if len(known):
            hit = known[index] == fields.at[values] - distance
            found.update(zip(places[index[hit]].tolist(), values[hit].tolist(), strict=True))
    return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)


def _relocated_labels(fields: _Fields, labels: Ints) -> Ints:
    """Give what points to a relocated word the label of what the word will point to.

    So an entry of the PLT or GOT is known by its symbol.
    """
    place, value = _relocations(fields)
    if not len(place):
        return labels
    order = np.argsort(fields.target[place], kind="stable")
    word, meant = fields.target[place][order], labels[value][order]
    found = np.minimum(np.searchsorted(word, fields.target), len(word) - 1)
    return np.where(word[found] == fields.target, meant[found] ^ 0x5BD1E995, labels)


def _write_words(shadow: Bytes, layout: wire.Layout, fields: _Fields, labels: Ints) -> None:
    """Write into every relocated place, which is empty in the file, the label of its value."""
    place, value = _relocations(fields)
    if len(place):
        at = _offsets(fields.target[place], layout.segments, len(shadow) - 4)
        meant = labels[value][at >= 0]
        at = at[at >= 0]
        for byte in range(4):
            shadow[at + byte] = (meant >> (8 * byte)).astype(np.uint8)


def _offsets(addresses: Ints, segments: wire.Segments, size: int) -> Ints:
    """Return the file offsets of addresses, -1 for what is not in the file."""
    offsets = addresses - segments.unloaded
    for start, length, bias in segments.loads:
        inside = (addresses >= start + bias) & (addresses < start + bias + length)
        offsets = np.where(inside, addresses - bias, offsets)
    return np.where((offsets >= 0) & (offsets < size), offsets, -1)


def _address_labels(
    data: bytes, layout: wire.Layout, fields: _Fields, addresses: wire.AddressMap | None
) -> bytes:
    """Return the shadow whose labels are target addresses in the new file."""
    shadow = np.frombuffer(data, np.uint8).copy()
    target = fields.target
    if addresses is not None:
        starts = np.array(addresses.starts, np.uint64)
        index = np.searchsorted(starts, np.maximum(target, 0).astype(np.uint64), side="right") - 1
        target = target + np.array(addresses.deltas, np.int64)[index]
    labels = target & 0xFFFFFFFF
    _write(shadow, fields, labels)
    _write_words(shadow, layout, fields, labels)
    return shadow.tobytes()


# --- streams --------------------------------------------------------------------------------------


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    return _number(value << 1 if value >= 0 else (~value << 1) | 1)


def _numbers(values: Ints) -> bytes:
    """Return non-negative numbers as LEB128, one after the other."""
    if not len(values):
        return b""
    rest = values.astype(np.uint64)
    size = np.ones(len(rest), np.int64)
    for width in range(1, 9):
        size += rest >= np.uint64(1 << (7 * width))
    ends = np.cumsum(size)
    out = np.zeros(int(ends[-1]), np.uint8)
    at = ends - size
    for width in range(9):
        chosen = size > width
        byte = ((rest >> np.uint64(7 * width)) & np.uint64(127)).astype(np.uint8)
        more = np.where(size > width + 1, np.uint8(128), np.uint8(0))
        out[at[chosen] + width] = (byte | more)[chosen]
    return out.tobytes()


def _elf_header(
    new: wire.Layout, btf_strings: int | None, more: list[tuple[int, int, int]]
) -> bytes:
    relocatable = new.segments.unloaded == 0
    out = [_number(int(relocatable)), _number(len(new.segments.loads))]
    at = 0
    for start, size, bias in new.segments.loads:
        out += [_number(start - at), _number(size), _signed(bias)]
        at = start
    out += [_number(0 if btf_strings is None else btf_strings + 1), _number(len(more))]
    at = 0
    for start, end, delta in more:
        out += [_number(start - at), _number(end - start), _signed(delta)]
        at = start
    return b"".join(out)


def _encode(
    kind: int, header: bytes, copies: wire.Copies, old: bytes, new: bytes, predicted: bytes | None
) -> Patch:
    triples = list(zip(copies.length, copies.old, copies.new, copies.extra, strict=True))
    if predicted is None:
        predicted = b"".join(old[start : start + n] for n, start, _, _ in triples)
    wanted = b"".join(new[to : to + n] for n, _, to, _ in triples)
    extra = b"".join(new[to + n : to + n + more] for n, _, to, more in triples)
    difference = np.frombuffer(wanted, np.uint8) - np.frombuffer(predicted, np.uint8)
    places = np.flatnonzero(difference)
    if len(places):
        first = np.concatenate([[True], np.diff(places) > JOIN + 1])
        starts = places[first]
        ends = places[np.concatenate([first[1:], [True]])] + 1
    else:
        starts = ends = np.zeros(0, np.int64)
    gaps = starts - np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(starts)]
    mark = np.zeros(len(difference) + 1, np.int8)
    mark[starts] += 1
    np.subtract.at(mark, ends, 1)
    diff = difference[np.cumsum(mark[:-1]).astype(bool)].tobytes()
    seeks = []
    at = 0
    for length, start, _, _ in triples:
        seeks.append(start - at)
        at = start + length
    gap_column, run_column = _numbers(gaps), _numbers(ends - starts)
    control = b"".join(
        [
            _number(kind),
            _number(len(old)),
            _number(len(triples)),
            header,
            _number(len(starts)),
            _number(len(gap_column)),
            _numbers(np.array(copies.length, np.int64)),
            _numbers(np.array(copies.extra, np.int64)),
            b"".join(map(_signed, seeks)),
            gap_column,
            run_column,
        ]
    )
    return Patch(control, diff, extra, kind)
