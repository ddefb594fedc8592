"""The patch of one file: the new content from the old one, made on the machine.

A patch is bsdiff's (Colin Percival, "Naive differences of executable code", 2003): copies from the
old file whose bytes are corrected by a difference, and new bytes between them. For an ELF file
there is one step more, which is Courgette's and Zucchini's idea: most bytes that differ between
two builds are *references* (branch displacements, relocation records, symbol values, unwind
tables) which moved only because their targets moved. The copies say where every piece of the old
file went. So the decoder finds the references in the old file, sends every target through that map,
and corrects only what is still wrong. Nothing is ever read from the new file.

Everything here is bounded: a wrong patch ends in :class:`PatchError` or in wrong bytes (the caller
checks the hash), never in another exception, an endless loop or memory beyond the control stream.

The control stream is made of unsigned LEB128 numbers (signed ones zigzag):

- kind, size of the old file, number of copies
- of an ELF file, its *new* address space: relocatable (0, 1), number of loaded segments, and of
  each: offset (from the last one's), size, address - offset (signed); size of the kernel's BTF
  strings + 1, or 0; number of steps of the address map that no copy says, and of each: address
  (from the last one's), size, new - old (signed)
- number of runs of differences, bytes in the column of their gaps
- columns: length of each copy; new bytes after each copy; place of each copy in the old file
  (signed, from the end of the last one); equal bytes before each run, counted over all copies;
  length of each run

The difference stream has the bytes of all runs, to be added modulo 256; the extra stream the new
bytes. Both go on from one file to the next.
"""

from __future__ import annotations

import heapq
import itertools
import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

# The kinds of patch: the first number of the control stream.
PLAIN = 0
ELF = 1

# A copy is worked on in pieces of this size, in bytes. Part of the format: a reference that lies
# across the edge of two pieces is not predicted.
PIECE = 1 << 16

MAX_FILE = 1 << 40
MAX_COPIES = 1 << 22
MAX_SECTIONS = 4096
MAX_SEGMENTS = 64
MAX_BTF = 8 << 20

# Addresses of what is not loaded: its file offset plus this.
UNLOADED = 1 << 60

Reader = Callable[[int, int], bytes]
Stream = Callable[[int], bytes]


class PatchError(ValueError):
    """The patch does not fit the old file or is not a patch at all."""


class Numbers:
    """Reads unsigned LEB128 numbers below 2**63 from ``data[at:end]``."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        if not 0 <= at <= end <= len(data):
            raise PatchError("a column of the control stream lies outside it")
        self._data, self.at, self._end = data, at, end

    def next(self) -> int:
        data, at = self._data, self.at
        value = shift = 0
        while True:
            if at >= self._end or shift > 56:
                raise PatchError("the control stream ends early or has a number that is too long")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self.at = at
                return value
            shift += 7

    def signed(self) -> int:
        """Return the next number, zigzag: 0, -1, 1, -2, ..."""
        return _signed(self.next())

    def column(self, count: int, most: int) -> array[int]:
        """Return the next ``count`` numbers, of which none may be above ``most``."""
        found = _numbers_up_to(most)
        for _ in range(count):
            value = self.next()
            if value > most:
                raise PatchError("a copy is longer than the file")
            found.append(value)
        return found

    def each(self) -> Iterator[int]:
        """Yield all numbers that are left; more are asked for in vain."""
        # There are millions of them, most below 128: this is next() without its calls.
        data, end = self._data, self._end
        while self.at < end:
            byte = data[self.at]
            if byte < 128:
                self.at += 1
                yield byte
            else:
                yield self.next()
        raise PatchError("the control stream ends early")


def _numbers_up_to(most: int) -> array[int]:
    return array("I" if most < 1 << 32 else "Q")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


@dataclass(frozen=True)
class Copies:
    """What is copied: for each copy its length, place in the old and in the new file, in order.

    ``extra`` is the number of new bytes that follow each copy.
    """

    length: Sequence[int]
    old: Sequence[int]
    new: Sequence[int]
    extra: Sequence[int]


@dataclass(frozen=True)
class Segments:
    """How file offsets become addresses: (offset, size, address - offset), none overlapping."""

    loads: tuple[tuple[int, int, int], ...] = ()
    unloaded: int = UNLOADED

    def bias(self, offset: int) -> int:
        """Return what is added to a file offset to make an address."""
        for start, size, bias in self.loads:
            if start <= offset < start + size:
                return bias
        return self.unloaded

    def cut(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Cut a file range into (start, end, bias) in which the bias does not change."""
        edges = {offset, end}
        for start, size, _ in self.loads:
            edges.update(edge for edge in (start, start + size) if offset < edge < end)
        ordered = sorted(edges)
        for start, stop in itertools.pairwise(ordered):
            yield start, stop, self.bias(start)


def _in_order(values: array[int]) -> Iterator[int]:
    """Yield the indexes of ``values`` from the smallest value to the largest, equal ones in order.

    What sorted() makes of all at once would be the peak of the memory of a whole update.
    """
    chunks = (
        array("I", sorted(range(at, min(at + _CHUNK, len(values))), key=values.__getitem__))
        for at in range(0, len(values), _CHUNK)
    )
    return heapq.merge(*chunks, key=values.__getitem__)


_CHUNK = 1 << 14


class AddressMap:
    """Old address to new address, as a step function of differences that is nowhere undefined."""

    def __init__(self, steps: Iterable[tuple[int, int, int]]) -> None:
        """``steps`` are (old address, end, new - old); of two that overlap the longer wins."""
        # Arrays all through: a large program has some 100,000 steps, and as tuples they would
        # take more memory than all the rest.
        low, high, change = array("Q"), array("Q"), array("q")
        for start, end, delta in steps:
            low.append(start)
            high.append(end)
            change.append(delta)
        kept_start, kept_end, kept_delta = array("Q"), array("Q"), array("q")
        for index in _in_order(low):
            start, end = low[index], high[index]
            if kept_end and start < kept_end[-1]:
                if end <= kept_end[-1] or end - start <= kept_end[-1] - kept_start[-1]:
                    start = kept_end[-1]
                else:
                    kept_end[-1] = start
            if start < end:
                kept_start.append(start)
                kept_end.append(end)
                kept_delta.append(change[index])
        del low, high, change
        starts = array("Q", [0])
        deltas = array("q", [kept_delta[0] if kept_delta else 0])
        last = 0
        for start, end, delta in zip(kept_start, kept_end, kept_delta, strict=True):
            if delta != deltas[-1]:
                # Between two copies the nearer one counts.
                starts.append((last + start + 1) // 2 if last else start)
                deltas.append(delta)
            last = end
        self.starts, self.deltas = starts, deltas

    def delta(self, address: int) -> int:
        return self.deltas[bisect_right(self.starts, max(address, 0)) - 1]


# A reference found in a piece: where in the piece, how it is written (an index of FORMS), the
# old address that it means, and the old address that it is counted from. A base of HERE is the
# place of the reference itself, and ZERO is address 0.
Reference = tuple[int, int, int, int]
HERE = -1
ZERO = -2

# A scanner yields the references in piece[low:high]; piece starts at a file offset.
Scanner = Callable[[bytes, int, int, int], Iterator[Reference]]

# The forms of a reference: (struct, bytes, sign, divisor, mask).
WORD, BACK, QUAD, INDEX, SECTION = range(5)
FORMS = (
    (struct.Struct("<I"), 4, 1, 1, (1 << 32) - 1),
    (struct.Struct("<I"), 4, -1, 1, (1 << 32) - 1),
    (struct.Struct("<Q"), 8, 1, 1, (1 << 64) - 1),
    (struct.Struct("<I"), 4, 1, 24, (1 << 32) - 1),
    (struct.Struct("<H"), 2, 1, 64, (1 << 16) - 1),
)


@dataclass(frozen=True)
class Region:
    """A range of an ELF file (file offsets) with references of one kind in it."""

    start: int
    end: int
    scan: Scanner


class Layout:
    """Where the references of an ELF file are."""

    def __init__(
        self, segments: Segments, regions: Iterable[Region], sections: Sequence[Section] = ()
    ) -> None:
        self.segments = segments
        self.sections = tuple(sections)
        kept: list[Region] = []
        for region in sorted(regions, key=lambda region: region.start):
            if region.start < region.end and (not kept or region.start >= kept[-1].end):
                kept.append(region)
        self.regions = tuple(kept)
        self._starts = [region.start for region in kept]

    def references(self, start: int, piece: bytes) -> Iterator[Reference]:
        """Yield the references in ``piece``, which is the file's content from ``start`` on."""
        end = start + len(piece)
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self.regions)):
            region = self.regions[index]
            if region.start >= end:
                break
            low, high = max(start, region.start) - start, min(end, region.end) - start
            if low < high:
                yield from region.scan(piece, start, low, high)


# --- reading the old file's headers -------------------------------------------------------------

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_RELA = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_PAIR = struct.Struct("<ii")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")

_ET_REL, _ET_EXEC, _ET_DYN = 1, 2, 3
_EM_X86_64 = 62
_PT_LOAD = 1
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_DYNSYM = 1, 2, 4, 8, 11
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STT_SECTION, _STT_TLS = 3, 6
_R_RELATIVE, _R_IRELATIVE = 8, 37
_R_PC32, _R_PLT32 = 2, 4

# Addresses of sections without content in a relocatable file.
_NO_CONTENT = 1 << 48

# Addresses of the kernel are counted from here, so that all addresses are small.
_KERNEL = 0xFFFFFFFF00000000

# Addresses of what the BTF of a kernel module counts: types, the strings of the kernel itself,
# and one place that stands for the change in size of the kernel's own strings.
BTF_TYPES = 1 << 52
BTF_STRINGS = 1 << 53
BTF_OWN = 1 << 54


@dataclass(frozen=True)
class Section:
    """A section header; ``address`` is in the one address space of :class:`Segments`."""

    index: int
    name: bytes
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    entry: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class _File:
    """An ELF file by its headers. ``headers`` is the file offset of the section headers and
    ``kernel`` whether its addresses are the kernel's."""

    size: int
    kind: int
    kernel: bool
    segments: Segments
    sections: tuple[Section, ...]
    headers: int
    names: int

    @property
    def relocatable(self) -> bool:
        return self.kind == _ET_REL


def read_layout(old: Reader, size: int, btf_strings: int | None = None) -> Layout:
    """Find the references of an x86-64 ELF file by its headers.

    ``btf_strings`` is the size of the kernel's BTF strings, from which on the offsets in a
    module's BTF mean its own (0 for the kernel itself); without it, BTF is not looked into.

    Raises :class:`PatchError` if it is another kind of file or its headers contradict its size.
    """
    file = _read_headers(old, size)
    return Layout(file.segments, _regions(old, file, btf_strings), file.sections)


def _read_headers(old: Reader, size: int) -> _File:
    if size < _HEADER.size:
        raise PatchError("the old file is too short for an ELF file")
    (ident, kind, machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, names) = (
        _HEADER.unpack(_read(old, 0, _HEADER.size, size))
    )
    if ident[:6] != b"\x7fELF\x02\x01" or machine != _EM_X86_64:
        raise PatchError("the old file is not an ELF file of x86-64")
    if phnum > MAX_SEGMENTS or shnum > MAX_SECTIONS:
        raise PatchError("the old file has too many sections")
    if (phnum and phentsize != _PROGRAM.size) or (shnum and shentsize != _SECTION.size):
        raise PatchError("the old file has headers of a strange size")
    relocatable = kind == _ET_REL
    kernel = False
    loads = []
    for entry in _PROGRAM.iter_unpack(_read(old, phoff, phnum * _PROGRAM.size, size)):
        p_type, _, offset, address, _, in_file, _, _ = entry
        if p_type == _PT_LOAD and in_file:
            kernel |= kind == _ET_EXEC and address >= _KERNEL
            address -= _KERNEL if address >= _KERNEL else 0
            if offset + in_file > size or address >= _NO_CONTENT:
                raise PatchError("a segment of the old file lies outside it")
            loads.append((offset, in_file, address - offset))
    segments = Segments(() if relocatable else tuple(loads), 0 if relocatable else UNLOADED)
    raw = list(_SECTION.iter_unpack(_read(old, shoff, shnum * _SECTION.size, size)))
    sections = []
    for index, (name, s_type, flags, address, offset, s_size, link, info, _, entry) in enumerate(
        raw
    ):
        address -= _KERNEL if address >= _KERNEL else 0
        text = b""
        if s_type == _SHT_NOBITS:
            if relocatable:
                address = _NO_CONTENT + (index << 32)
        elif offset + s_size > size:
            raise PatchError("a section of the old file lies outside it")
        elif relocatable or not flags & _SHF_ALLOC:
            address = offset + segments.unloaded
        if address >= UNLOADED << 1:
            raise PatchError("a section of the old file has a strange address")
        if names < len(raw) and s_type not in (0, _SHT_NOBITS):
            at = raw[names][4] + name
            text = _read(old, at, max(min(32, size - at), 0), size).split(b"\0")[0]
        sections.append(
            Section(index, text, s_type, flags, address, offset, s_size, link, info, entry)
        )
    return _File(size, kind, kernel, segments, tuple(sections), shoff, names)


def _read(old: Reader, offset: int, count: int, size: int) -> bytes:
    if count < 0 or offset < 0 or offset + count > size:
        raise PatchError("the old file's headers point outside it")
    data = old(offset, count) if count else b""
    if len(data) != count:
        raise PatchError("the old file is shorter than it should be")
    return data


def _regions(old: Reader, file: _File, btf_strings: int | None) -> Iterator[Region]:
    """Yield the regions of a file: what is in them is known by their sections' type and name."""
    sections, size = file.sections, file.size
    if not sections:
        return
    headers_end = file.headers + len(sections) * _SECTION.size
    string_base = sections[file.names].address if file.names < len(sections) else 0
    yield Region(file.headers, headers_end, _scan_headers(string_base, file.relocatable))
    loaded = [s for s in sections if s.flags & _SHF_ALLOC and s.type != 0 and s.size]
    low = min((s.address for s in loaded if s.address), default=0)
    high = max((s.address + s.size for s in loaded if s.address < _NO_CONTENT), default=0)
    if file.kernel:
        # What follows the section headers are the addresses to relocate (vmlinux.relocs).
        yield Region(headers_end, size, _scan_addresses(headers_end, low, high))
    code = [s for s in loaded if s.flags & _SHF_EXECINSTR]
    symbols: dict[int, dict[int, int]] = {}
    for section in sections:
        scan: Scanner | None = None
        if section.type in (0, _SHT_NOBITS):
            continue
        link = sections[section.link] if section.link < len(sections) else sections[0]
        if section.type == _SHT_RELA and section.entry == _RELA.size:
            if not file.relocatable:
                scan = _scan_rela_dyn(section.offset, link.address)
            elif section.info < len(sections):
                target = sections[section.info].address
                if link.index not in symbols:
                    symbols[link.index] = _section_symbols(old, link, sections, size)
                scan = _scan_rela_rel(section.offset, target, link.address, symbols[link.index])
        elif section.type in (_SHT_SYMTAB, _SHT_DYNSYM) and section.entry == _SYMBOL.size:
            bases = tuple(s.address for s in sections) if file.relocatable else ()
            headers = file.headers + file.segments.bias(file.headers)
            scan = _scan_symbols(section.offset, link.address, headers, len(sections), bases)
        elif section.name == b".eh_frame_hdr":
            scan = _scan_eh_frame_hdr(section.offset, section.address)
        elif section.name == b".eh_frame":
            entries = _eh_frame_entries(old, section, size)
            scan = _scan_eh_frame(entries, section.address - section.offset)
        elif section.name == b".BTF":
            if btf_strings is not None:
                data = _read(old, section.offset, min(section.size, MAX_BTF), size)
                yield btf_region(data, section.offset, section.address, btf_strings)
        elif file.kernel and section.name in _KERNEL_TABLES:
            scan = _scan_table(section.offset, section.address, low, high, section.name)
        elif section.name == b".BTF_ids" and btf_strings is not None:
            scan = _scan_type_numbers(section.offset)
        elif section.type == _SHT_PROGBITS and section.flags & _SHF_EXECINSTR:
            first, last = section.address, section.address + section.size
            if not file.relocatable:
                first, last = low, high
            scan = _scan_x86(section.address - section.offset, first, last)
            if section.name == b".plt":
                table = next((s.address for s in sections if s.name == b".rela.plt"), 0)
                scan = _scan_plt(scan, section.offset, table)
            elif file.kernel:
                scan = _scan_absolute(scan, low, high)
        elif file.relocatable or not section.flags & _SHF_ALLOC:
            continue
        elif section.flags & _SHF_WRITE or file.kind != _ET_DYN:
            scan = _scan_pointers(section.offset, low, high, _KERNEL if file.kernel else 0)
        elif section.name.startswith(b".rodata") and code:
            first, last = code[0].address, code[-1].address + code[-1].size
            scan = _scan_jump_tables(section.offset, section.address, first, last)
        if scan is not None:
            yield Region(section.offset, section.end, scan)


def _section_symbols(
    old: Reader, table: Section, sections: Sequence[Section], size: int
) -> dict[int, int]:
    """Return symbol number → address for the symbols that stand for whole sections."""
    found: dict[int, int] = {}
    if table.type != _SHT_SYMTAB or table.entry != _SYMBOL.size:
        return found
    # They are local, and the local symbols come first (sh_info of them).
    count = min(table.size // _SYMBOL.size, table.info, 2 * MAX_SECTIONS)
    data = _read(old, table.offset, count * _SYMBOL.size, size)
    for number, (_, info, _, section, _, _) in enumerate(_SYMBOL.iter_unpack(data)):
        if info & 15 == _STT_SECTION and section < len(sections):
            found[number] = sections[section].address
    return found


def _eh_frame_entries(old: Reader, section: Section, size: int) -> array[int]:
    """Return the file offsets of the FDEs of ``.eh_frame``."""
    found = array("Q")
    at, end = section.offset, section.end
    window, window_start = b"", 0
    while at + 12 <= end:
        if not window_start <= at <= window_start + len(window) - 8:
            window_start = at
            window = _read(old, at, min(PIECE, end - at), size)
        length, pointer = struct.unpack_from("<II", window, at - window_start)
        if not 4 <= length < 1 << 24:
            break
        if pointer and length >= 12:
            found.append(at)
        at += 4 + length
    return found


# The kinds of BTF types (linux/btf.h): those whose third word is a type, the bytes that follow the
# three words once, and for each member its bytes and where in it are a string and types.
_BTF_HEADER = struct.Struct("<HBBIIIII")
_BTF_TYPED = frozenset((2, 8, 9, 10, 11, 12, 13, 14, 17, 18))
_BTF_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_BTF_MEMBER = {
    4: (12, ((0, 0), (4, 1))),
    5: (12, ((0, 0), (4, 1))),
    6: (8, ((0, 0),)),
    13: (8, ((0, 0), (4, 1))),
    15: (12, ((0, 1),)),
    19: (12, ((0, 0),)),
}


@dataclass(frozen=True)
class Btf:
    """A BTF section taken apart: all offsets are from the section's start.

    ``records`` are the places of the types in order; ``fields`` the places of all references and
    ``is_type`` whether each is one to a type or to a string.
    """

    strings: int
    strings_size: int
    records: array[int]
    kinds: bytes
    fields: array[int]
    is_type: bytes


def read_btf(data: bytes) -> Btf:
    """Take a BTF section apart as far as it can be understood; never fails."""
    records, fields = array("I"), array("I")
    kinds, is_type = bytearray(), bytearray()
    if len(data) < _BTF_HEADER.size:
        return Btf(0, 0, records, b"", fields, b"")
    magic, _, _, header, types, types_size, strings, strings_size = _BTF_HEADER.unpack_from(data)
    at = header + types
    end = min(at + types_size, len(data))
    if magic != 0xEB9F or header + strings + strings_size > len(data):
        return Btf(0, 0, records, b"", fields, b"")
    while at + 12 <= end:
        (info,) = _U32.unpack_from(data, at + 4)
        kind, count = info >> 24 & 31, info & 0xFFFF
        after = at + 12 + _BTF_FIXED.get(kind, 0)
        width, places = _BTF_MEMBER.get(kind, (0, ()))
        if after + width * count > end:
            break
        records.append(at)
        kinds.append(kind)
        fields.append(at)
        is_type.append(0)
        if kind in _BTF_TYPED:
            fields.append(at + 8)
            is_type.append(1)
        elif kind == 3:
            fields.extend((at + 12, at + 16))
            is_type += b"\1\1"
        if width:
            for member in range(after, after + width * count, width):
                for place, typed in places:
                    fields.append(member + place)
                    is_type.append(typed)
        at = after + width * count
    return Btf(header + strings, strings_size, records, bytes(kinds), fields, bytes(is_type))


def btf_region(data: bytes, offset: int, address: int, kernel_strings: int) -> Region:
    """Return the references of a module's BTF section, whose content is ``data``."""
    btf = read_btf(data)
    fields, is_type, strings = btf.fields, btf.is_type, address + btf.strings
    unpack = _U32.unpack_from

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        first = start - offset
        for index in range(
            bisect_left(fields, max(first + low, 0)), bisect_left(fields, max(first + high - 3, 0))
        ):
            at = fields[index] - first
            (value,) = unpack(piece, at)
            if not value:
                continue
            if is_type[index]:
                yield at, WORD, BTF_TYPES + value, ZERO
            elif value < kernel_strings:
                yield at, WORD, BTF_STRINGS + value, ZERO
            else:
                yield at, WORD, strings + value - kernel_strings, BTF_OWN

    return Region(offset, offset + len(data), scan)


# --- finding references -------------------------------------------------------------------------

# Instructions with a 32-bit displacement: call, jmp, jcc, and the common operations with a
# RIP-relative operand (ModRM: mod 00, r/m 101). Approximate on purpose: a wrong hit costs a few
# bytes in the rare case that it is predicted to change.
_X86 = re.compile(
    rb"[\xe8\xe9]|\x0f[\x80-\x8f]"
    rb"|(?:[\x01\x03\x09\x0b\x21\x23\x29\x2b\x31\x33\x38-\x3b\x63\x80\x81\x83-\x8d\xc6\xc7"
    rb"\xf6\xf7\xff\x69\x6b\xd1\xd3]|\x0f[\x10-\x17\x28-\x2f\x40-\x7f\xa0-\xff]"
    rb"|(?:\xc5.|\xc4[\x01-\x03\x41-\x43\x61-\x63\x81-\x83\xc1-\xc3\xe1-\xe3].|\x62...)[\x10-\xff])"
    rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]",
    re.DOTALL,
)


def _scan_x86(bias: int, first: int, last: int) -> Scanner:
    unpack = _I32.unpack_from
    find = _X86.finditer

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        here = start + bias + 4
        done = low
        for match in find(piece, low, high - 4):
            at = match.end()
            if match.start() >= done:
                target = here + at + unpack(piece, at)[0]
                if first <= target < last:
                    yield at, WORD, target, HERE
                    done = at + 4

    return scan


def _records(start: int, low: int, high: int, first: int, stride: int) -> tuple[int, int]:
    """Return (place in the piece, bytes) of the whole records of a table that begins at first."""
    at = low + (first - start - low) % stride
    return at, max((high - at) // stride * stride, 0)


def _scan_rela_dyn(first: int, symbols: int) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 24)
        for offset, info, addend in _RELA.iter_unpack(memoryview(piece)[at : at + count]):
            yield at, QUAD, offset, ZERO
            if info > 0xFFFFFFFF:
                yield at + 12, INDEX, symbols + 24 * (info >> 32), symbols
            if info & 0xFFFFFFFF in (_R_RELATIVE, _R_IRELATIVE):
                yield at + 16, QUAD, addend, ZERO
            at += 24

    return scan


def _scan_rela_rel(
    first: int, section: int, symbols: int, section_symbols: dict[int, int]
) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 24)
        for offset, info, addend in _RELA.iter_unpack(memoryview(piece)[at : at + count]):
            yield at, QUAD, section + offset, section
            symbol = info >> 32
            yield at + 12, INDEX, symbols + 24 * symbol, symbols
            base = section_symbols.get(symbol)
            if base is not None:
                if info & 0xFFFFFFFF in (_R_PC32, _R_PLT32) and addend < 0xFFFFFFFF:
                    addend += 4
                yield at + 16, QUAD, base + addend, base
            at += 24

    return scan


def _scan_symbols(
    first: int, strings: int, headers: int, sections: int, bases: tuple[int, ...]
) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 24)
        for name, info, _, section, value, length in _SYMBOL.iter_unpack(
            memoryview(piece)[at : at + count]
        ):
            if name:
                yield at, WORD, strings + name, strings
            if 0 < section < sections:
                yield at + 6, SECTION, headers + 64 * section, headers
                if info & 15 != _STT_TLS:
                    base = bases[section] if bases else ZERO
                    address = bases[section] + value if bases else value
                    yield at + 8, QUAD, address, base
                    if length:
                        yield at + 16, QUAD, address + length, address
            at += 24

    return scan


def _scan_plt(code: Scanner, first: int, relocations: int) -> Scanner:
    """Entries of 16 bytes: jmp *slot(%rip); push $number; jmp first entry."""

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        yield from code(piece, start, low, high)
        at, count = _records(start, low, high, first, 16)
        for entry in range(at, at + count, 16):
            if piece[entry + 6] == 0x68:
                (number,) = _I32.unpack_from(piece, entry + 7)
                if number >= 0:
                    yield entry + 7, INDEX, relocations + 24 * number, relocations

    return scan


def _scan_eh_frame_hdr(first: int, address: int) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first + 12, 8)
        if start + low < first + 12:
            at, count = _records(start, max(first + 12 - start, low), high, first + 12, 8)
            if start + low <= first and high - low >= 12:
                at4 = first - start + 4
                yield at4, WORD, address + 4 + _I32.unpack_from(piece, at4)[0], HERE
        for code, entry in _PAIR.iter_unpack(memoryview(piece)[at : at + count]):
            yield at, WORD, address + code, address
            yield at + 4, WORD, address + entry, address
            at += 8

    return scan


def _scan_eh_frame(entries: array[int], bias: int) -> Scanner:
    unpack = struct.Struct("<IiI").unpack_from

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        index = bisect_left(entries, start + low)
        stop = bisect_left(entries, start + high - 15)
        for entry in entries[index:stop]:
            at = entry - start
            back, code, length = unpack(piece, at + 4)
            yield at + 4, BACK, entry + bias + 4 - back, HERE
            code += entry + bias + 8
            yield at + 8, WORD, code, HERE
            yield at + 12, WORD, code + length, code

    return scan


def _scan_pointers(first: int, low_address: int, high_address: int, origin: int) -> Scanner:
    low_address, high_address = low_address + origin, high_address + origin

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 8)
        words = array("Q", piece[at : at + count])
        for number, value in enumerate(words):
            if low_address <= value < high_address and value:
                yield at + 8 * number, QUAD, value - origin, ZERO

    return scan


# The kernel's tables of addresses that are relative to their own place: the size of an entry and
# the places of 32-bit words in it.
_SITES = (4, (0,))
_KERNEL_TABLES = {
    b"__ksymtab": (12, (0, 4, 8)),
    b"__ksymtab_gpl": (12, (0, 4, 8)),
    b"__ex_table": (12, (0, 4)),
    b"__bug_table": (12, (0, 4)),
    b".altinstructions": (14, (0, 4)),
    b".orc_unwind_ip": _SITES,
    b".retpoline_sites": _SITES,
    b".return_sites": _SITES,
    b".call_sites": _SITES,
    b".ibt_endbr_seal": _SITES,
    b".smp_locks": _SITES,
}


def _scan_table(
    first: int, address: int, low_address: int, high_address: int, name: bytes
) -> Scanner:
    stride, places = _KERNEL_TABLES[name]
    unpack = _I32.unpack_from

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, stride)
        bias = address - first + start
        for record in range(at, at + count, stride):
            for place in places:
                target = record + place + bias + unpack(piece, record + place)[0]
                if low_address <= target < high_address:
                    yield record + place, WORD, target, HERE

    return scan


def _scan_addresses(first: int, low_address: int, high_address: int) -> Scanner:
    """Words that are the low 32 bits of kernel addresses."""

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 4)
        for number, value in enumerate(array("I", piece[at : at + count])):
            if low_address <= value < high_address:
                yield at + 4 * number, WORD, value, ZERO

    return scan


def _scan_type_numbers(first: int) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 4)
        for number, value in enumerate(array("I", piece[at : at + count])):
            if 0 < value < 1 << 24:
                yield at + 4 * number, WORD, BTF_TYPES + value, ZERO

    return scan


# mov $address, register: the kernel's addresses fit 32 bits with their sign.
_ABSOLUTE = re.compile(
    rb"\xc7[\xc0-\xc7]|[\x80-\x8f][\x04\x0c\x14\x1c\x24\x2c\x34\x3c].|\x3d", re.DOTALL
)


def _scan_absolute(code: Scanner, low_address: int, high_address: int) -> Scanner:
    unpack = _U32.unpack_from

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        yield from code(piece, start, low, high)
        done = low
        for match in _ABSOLUTE.finditer(piece, low, high - 4):
            at = match.end()
            if match.start() >= done:
                (value,) = unpack(piece, at)
                if low_address <= value < high_address:
                    yield at, WORD, value, ZERO
                    done = at + 4

    return scan


def _scan_jump_tables(first: int, address: int, first_code: int, last_code: int) -> Scanner:
    """Tables of branches in position-independent code: words counted from the table's start.

    A table is known only by its words: they follow one another and lead into code.
    """

    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, first, 4)
        words = array("i", piece[at : at + count])
        here = start + at - first + address
        table = previous = -1
        for number, value in enumerate(words):
            place = here + 4 * number
            if value and first_code <= place + value < last_code:
                if number != previous + 1:
                    table = place
                previous = number
                yield at + 4 * number, WORD, table + value, table

    return scan


def _scan_headers(strings: int, relocatable: bool) -> Scanner:
    def scan(piece: bytes, start: int, low: int, high: int) -> Iterator[Reference]:
        at, count = _records(start, low, high, low + start, 64)
        for name, _, _, address, offset, size, *_ in _SECTION.iter_unpack(
            memoryview(piece)[at : at + count]
        ):
            yield at, WORD, strings + name, strings
            place = address
            if relocatable:
                place = offset
            elif address:
                place = address - _KERNEL if address >= _KERNEL else address
                yield at + 16, QUAD, place, ZERO
            else:
                place = offset + UNLOADED
            yield at + 24, QUAD, place, ZERO
            yield at + 32, QUAD, place + size, place
            at += 64

    return scan


# --- predicting ---------------------------------------------------------------------------------


def address_steps(
    copies: Copies, old: Segments, new: Segments, more: Iterable[tuple[int, int, int]] = ()
) -> Iterator[tuple[int, int, int]]:
    """Yield (old address, end, new - old) of all copies, and ``more`` of the same after them."""
    edges = sorted({edge for at, size, _ in old.loads for edge in (at, at + size)})
    for length, start, to in zip(copies.length, copies.old, copies.new, strict=True):
        if length:
            end = start + length
            whole = bisect_right(edges, start) == bisect_left(edges, end)
            pieces = ((start, end, old.bias(start)),) if whole else old.cut(start, end)
            for low, high, bias in pieces:
                place = to + low - start
                delta = place + new.bias(place) - low - bias
                yield low + bias, high + bias, delta
    yield from more


def predict(
    layout: Layout, addresses: AddressMap, start: int, piece: bytes, shift: int
) -> bytes | bytearray:
    """Return the old bytes ``piece`` with their references changed to where their targets went.

    ``start`` is the piece's offset in the old file, ``shift`` the change of its own address.
    """
    starts, deltas = addresses.starts, addresses.deltas
    out: bytearray | None = None
    for at, form, target, base in layout.references(start, piece):
        change = deltas[bisect_right(starts, target) - 1 if target > 0 else 0]
        if base == HERE:
            change -= shift
        elif base != ZERO:
            change -= deltas[bisect_right(starts, base) - 1]
        if change:
            code, width, sign, divisor, mask = FORMS[form]
            if divisor != 1:
                change, rest = divmod(change, divisor)
                if rest:
                    continue
            if out is None:
                out = bytearray(piece)
            value = (code.unpack_from(piece, at)[0] + sign * change) & mask
            out[at : at + width] = value.to_bytes(width, "little")
    return piece if out is None else out


# --- the control stream -------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """A control stream taken apart. The runs are read while the copies are made.

    ``steps`` are columns: address, end, change of each.
    """

    kind: int
    old_size: int
    copies: Copies
    segments: Segments
    btf_strings: int | None
    steps: tuple[Sequence[int], Sequence[int], Sequence[int]]
    gaps: Numbers
    runs: Numbers
    run_count: int


def read_control(control: bytes, new_size: int) -> Control:
    """Take a control stream apart and check that it makes ``new_size`` bytes."""
    numbers = Numbers(control, 0, len(control))
    kind, old_size, count = numbers.next(), numbers.next(), numbers.next()
    if kind not in (PLAIN, ELF):
        raise PatchError(f"kind {kind} of patch is not known")
    if not 0 <= new_size <= MAX_FILE or old_size > MAX_FILE:
        raise PatchError("a file is too large")
    if count > MAX_COPIES:
        raise PatchError("too many copies")
    segments = Segments()
    step_starts, step_ends, step_changes = array("Q"), array("Q"), array("q")
    btf_strings: int | None = None
    if kind == ELF:
        relocatable, loads = numbers.next(), numbers.next()
        if loads > MAX_SEGMENTS or relocatable > 1:
            raise PatchError("too many segments")
        places = []
        at = 0
        for _ in range(loads):
            at += numbers.next()
            size, bias = numbers.next(), numbers.signed()
            if at + size > MAX_FILE:
                raise PatchError("a segment is too large")
            places.append((at, size, bias))
        segments = Segments(tuple(places), 0 if relocatable else UNLOADED)
        # One more than the number, 0 for none.
        btf_strings, step_count = numbers.next() - 1, numbers.next()
        if btf_strings < 0:
            btf_strings = None
        if step_count > MAX_COPIES:
            raise PatchError("too many steps")
        at = 0
        for _ in range(step_count):
            at += numbers.next()
            size, delta = numbers.next(), numbers.signed()
            if at + size >= 1 << 61 or abs(delta) >= 1 << 61:
                raise PatchError("a step is too large")
            step_starts.append(at)
            step_ends.append(at + size)
            step_changes.append(delta)
    run_count, gap_bytes = numbers.next(), numbers.next()
    if run_count > len(control):
        raise PatchError("too many runs")
    length, extra = numbers.column(count, old_size), numbers.column(count, new_size)
    old, new = _numbers_up_to(old_size), _numbers_up_to(new_size)
    at = made = 0
    for size, more in zip(length, extra, strict=True):
        at += numbers.signed()
        if not 0 <= at <= at + size <= old_size:
            raise PatchError("a copy lies outside the old file")
        old.append(at)
        new.append(made)
        at += size
        made += size + more
        if made > new_size:
            raise PatchError("the patch makes more than the new file")
    if made != new_size:
        raise PatchError("the patch makes less than the new file")
    gaps = Numbers(control, numbers.at, numbers.at + gap_bytes)
    runs = Numbers(control, numbers.at + gap_bytes, len(control))
    copies = Copies(length, old, new, extra)
    steps = (step_starts, step_ends, step_changes)
    return Control(kind, old_size, copies, segments, btf_strings, steps, gaps, runs, run_count)


def apply(
    control: bytes, diff: Stream, extra: Stream, old: Reader, new_size: int
) -> Iterator[bytes]:
    """Yield the new file in order, in pieces of some :data:`PIECE` bytes, twice that at most.

    ``control`` is this file's whole control stream; ``diff(n)`` and ``extra(n)`` return the next n
    bytes of theirs, and ``old(offset, n)`` n bytes of the old file. Raises :class:`PatchError`;
    what was yielded before is then worth nothing.
    """
    made = bytearray()
    try:
        for piece in _apply(read_control(control, new_size), diff, extra, old):
            made += piece
            if len(made) >= PIECE:
                yield bytes(made)
                made.clear()
    except (struct.error, OverflowError) as error:
        raise PatchError(f"the patch has a number that does not fit: {error}") from None
    if made:
        yield bytes(made)


def _apply(
    control: Control, diff: Stream, extra: Stream, old: Reader
) -> Iterator[bytes | bytearray]:
    copies = control.copies
    layout: Layout | None = None
    if control.kind == ELF:
        layout = read_layout(old, control.old_size, control.btf_strings)
        more_steps = zip(*control.steps, strict=True)
        steps = address_steps(copies, layout.segments, control.segments, more_steps)
        addresses = AddressMap(steps)
    runs = _Runs(control)
    for length, start, to, more in zip(
        copies.length, copies.old, copies.new, copies.extra, strict=True
    ):
        for done in range(0, length, PIECE):
            at = start + done
            piece: bytes | bytearray = _read(old, at, min(PIECE, length - done), control.old_size)
            if layout is not None:
                place = to + done
                shift = place + control.segments.bias(place) - at - layout.segments.bias(at)
                piece = predict(layout, addresses, at, bytes(piece), shift)
            if runs.gap < len(piece):
                yield _corrected(piece, runs.within(len(piece)), diff)
            else:
                runs.gap -= len(piece)
                yield piece
        for done in range(0, more, PIECE):
            yield _take(extra, min(PIECE, more - done))
    if runs.left:
        raise PatchError("there are more differences than bytes that were copied")


class _Runs:
    """Where the copied bytes differ: ``gap`` equal ones are next, then a run of different ones."""

    def __init__(self, control: Control) -> None:
        self._gaps, self._lengths = control.gaps.each(), control.runs.each()
        self.left = control.run_count
        self.gap, self._run = MAX_FILE, 0
        if self.left:
            self.gap, self._run = next(self._gaps), next(self._lengths)

    def within(self, size: int) -> list[tuple[int, int]]:
        """Return (place, length) of each run, or part of one, in the next ``size`` bytes."""
        gaps, lengths, gap, run = self._gaps, self._lengths, self.gap, self._run
        found = []
        at = 0
        while at + gap < size:
            at += gap
            count = min(run, size - at)
            found.append((at, count))
            at += count
            run -= count
            gap = 0
            if not run:
                self.left -= 1
                if not self.left:
                    gap = MAX_FILE
                    break
                gap, run = next(gaps), next(lengths)
                if not run:
                    raise PatchError("a run is empty")
        self.gap, self._run = gap - (size - at), run
        return found


def _corrected(piece: bytes | bytearray, runs: Sequence[tuple[int, int]], diff: Stream) -> bytes:
    """Return ``piece`` with its differences added."""
    data = _take(diff, sum(count for _, count in runs))
    taken = 0
    if len(runs) < _FEW:
        out = bytearray(piece)
        for at, count in runs:
            _add(out, at, data[taken : taken + count])
            taken += count
        return bytes(out)
    differences = bytearray(len(piece))
    for at, count in runs:
        differences[at : at + count] = data[taken : taken + count]
        taken += count
    return _sum(piece, differences)


# From so many runs on the differences of a piece are added at once.
_FEW = 8


def _take(stream: Stream, count: int) -> bytes:
    data = stream(count)
    if len(data) != count:
        raise PatchError("a stream of the patch ends early")
    return data


def _add(out: bytearray, at: int, data: bytes) -> None:
    """Add ``data`` to ``out`` from ``at`` on, byte by byte modulo 256."""
    count = len(data)
    if count < 16:
        for byte in data:
            out[at] = (out[at] + byte) & 255
            at += 1
        return
    out[at : at + count] = _sum(out[at : at + count], data)


def _sum(first: bytes | bytearray, second: bytes | bytearray) -> bytes:
    """Add two strings of one length, byte by byte modulo 256."""
    # As two big integers with the carry between bytes kept out: the top bit of every byte is added
    # without carry.
    low = int.from_bytes(b"\x7f" * len(first), "little")
    one, two = int.from_bytes(first, "little"), int.from_bytes(second, "little")
    total = ((one & low) + (two & low)) ^ ((one ^ two) & ~low)
    return total.to_bytes(len(first), "little")
