"""The payload of an update: how the files of a release come out of an older release, or of nothing.

``docs/payload-format.md`` is the specification; this module is its structures, read and written.
A payload is a **head** and, behind it, one **blob** for each group of work. The head's length and
sha256 are in the signed metadata, the blobs' in the head: nothing is parsed before it was checked.

Everything here is pure; ``wire.unpack`` turns groups into the bytes of a release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from proa.wire.bytecode import PayloadError, Reader, Writer
from proa.wire.codec import Algorithm
from proa.wire.erofs import Extent

MAGIC = b"PROAPLD1"

# A window of an output is checked as a whole before any of it is written, in bytes.
WINDOW = 4 << 20
WINDOW_HASH = 16  # bytes of its sha256 that are kept: no second preimage in 2^128

# What a reader must be ready to hold; anything more is refused before it is read.
MAX_HEAD = 1 << 20
MAX_BLOB = 12 << 20
MAX_TABLE = 1 << 10  # bytes of a blob in front of its sections: 13 of them have some 300
MAX_SECTION = 1 << 30  # bytes of a section when unpacked; they are streamed
MAX_PLAN = 8 << 20
MAX_ENTRIES = 1 << 17  # sources, extents, items and steps of a plan, together
MAX_CONTROL = 8 << 20  # of one patch; it is held as a whole
MAX_OUTPUT = 8 << 30
MAX_LANES = 4
MAX_HELD = 1 << 16
MAX_HELD_BYTES = 8 << 20
MAX_DICTIONARY = 8 << 20
MAX_WINDOW_LOG = 22  # of a section that is packed with zstd
MAX_WINDOWS = 32 << 20  # of all sections of a blob, together
MAX_CLUSTER = 8 << 20  # plain bytes of one compressed cluster


_Kind = TypeVar("_Kind", bound=IntEnum)


class Output(IntEnum):
    """The outputs of a payload, in this order: each once."""

    USR = 0
    VERITY = 1
    UKI = 2


class Image(IntEnum):
    """What a source's bytes lie in."""

    OLD_USR = 0
    NEW_USR = 1
    OLD_UKI = 2


class Packing(IntEnum):
    """How a section is compressed."""

    NONE = 0
    LZMA = 1
    ZSTD = 2


# The parameters of zstd that a frame may set, by their numbers in zstd.h, and the largest value of
# each: window, hash and chain log (40 MiB of tables at most), search log, shortest match, target
# length, strategy, checksum. A value of 0 is zstd's own choice. Levels and threads are not among
# them, for what they take is not bounded.
FRAME_PARAMETERS = {101: 23, 102: 22, 103: 22, 104: 12, 105: 7, 106: 4096, 107: 9, 201: 1}

# How an extent of erofs is stored, by number.
ALGORITHMS: tuple[Algorithm, ...] = ("raw", "zstd", "lz4")


# --- The head -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupEntry:
    """One group: ``length`` bytes of the output, from a blob of ``size`` bytes."""

    length: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Built:
    """An output that groups make. ``windows`` are the hashes of its windows; none if it has none:
    then it is checked as a whole, before it gets its name."""

    size: int
    sha256: bytes
    groups: tuple[GroupEntry, ...]
    windows: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Verity:
    """The dm-verity hash tree of the usr output: computed on the machine, never shipped."""

    size: int
    sha256: bytes
    salt: bytes
    uuid: bytes


@dataclass(frozen=True)
class Head:
    """A payload's head. ``source`` is the verity root hash of the old usr, or b"" for a full one.

    ``encoder`` names the compressor that the machine must have to make the same bytes, such as
    ``zstd 1.5.7``; "" where none is needed. ``memory`` is the most that a group's compressors,
    caches and buffers take, in bytes, ``scratch`` the room that is needed on disk.
    """

    encoder: str
    source: bytes
    source_size: int
    usr: Built
    verity: Verity
    uki: Built
    scratch: int = 0

    @property
    def size(self) -> int:
        """Bytes of the outputs, which are written."""
        return self.usr.size + self.verity.size + self.uki.size

    @property
    def body(self) -> int:
        """Bytes of all blobs."""
        return sum(g.size for built in (self.usr, self.uki) for g in built.groups)


def dump_head(head: Head) -> bytes:
    """Return the bytes of a head, magic included."""
    out = Writer()
    out.raw(MAGIC)
    out.number(0)  # features that a reader must know
    out.text(head.encoder)
    out.number(len(head.source))
    out.raw(head.source)
    out.number(head.source_size)
    out.number(head.scratch)
    _dump_built(out, head.usr)
    out.number(head.verity.size)
    out.raw(head.verity.sha256)
    out.number(len(head.verity.salt))
    out.raw(head.verity.salt)
    out.raw(head.verity.uuid)
    _dump_built(out, head.uki)
    return out.done()


def _dump_built(out: Writer, built: Built) -> None:
    out.number(built.size)
    out.raw(built.sha256)
    out.number(len(built.windows))
    for window in built.windows:
        out.raw(window)
    out.number(len(built.groups))
    for group in built.groups:
        out.number(group.length)
        out.number(group.size)
        out.raw(group.sha256)


def load_head(data: bytes) -> Head:
    """Parse a head that was checked, or raise :class:`PayloadError`."""
    if len(data) > MAX_HEAD:
        raise PayloadError(f"the head has {len(data)} bytes; at most {MAX_HEAD} are allowed")
    head, length = find_head(data)
    if length != len(data):
        raise PayloadError(f"the payload's head: {len(data) - length} bytes too many")
    return head


def find_head(data: bytes) -> tuple[Head, int]:
    """Parse the head that ``data`` begins with; return it and its length in bytes.

    For tools that have no signed metadata: a machine knows the length, and checks before it reads.
    """
    if not data.startswith(MAGIC[:-1]):
        raise PayloadError("this is not a payload")
    if not data.startswith(MAGIC):
        raise PayloadError("the payload has a format of another version; this program reads 1")
    read = Reader(data[len(MAGIC) :], "the payload's head")
    if read.number("the features", (1 << 63) - 1):
        raise PayloadError("the payload needs features that this program does not know")
    encoder = read.text("the encoder")
    source = read.raw("the source", read.number("the length of the source", 32))
    if len(source) not in (0, 32):
        raise PayloadError("the payload's source is not a root hash")
    source_size = read.number("the size of the source", MAX_OUTPUT)
    scratch = read.number("the room on disk", MAX_OUTPUT)
    usr = _load_built(read, "usr", small=False)
    verity = Verity(
        read.number("the size of verity", MAX_OUTPUT),
        read.raw("the sha256 of verity", 32),
        read.raw("the salt", read.number("the length of the salt", 256)),
        read.raw("the UUID of verity", 16),
    )
    uki = _load_built(read, "the boot image", small=True)
    head = Head(encoder, source, source_size, usr, verity, uki, scratch)
    return head, len(data) - read.left


def _load_built(read: Reader, name: str, *, small: bool) -> Built:
    size = read.number(f"the size of {name}", MAX_OUTPUT)
    digest = read.raw(f"the sha256 of {name}", 32)
    count = read.count(f"windows of {name}", WINDOW_HASH)
    # A slot is written as it comes, so all of it is checked before; a file is checked as a whole.
    if count != -(-size // WINDOW) and (count or not small):
        raise PayloadError(f"{name} of {size} bytes has {count} windows")
    windows = tuple(read.raw("a window's hash", WINDOW_HASH) for _ in range(count))
    groups = tuple(
        GroupEntry(
            read.number("the length of a group", MAX_OUTPUT),
            read.number("the size of a blob", MAX_BLOB),
            read.raw("the sha256 of a blob", 32),
        )
        for _ in range(read.count(f"groups of {name}", 34))
    )
    if sum(group.length for group in groups) != size:
        raise PayloadError(f"the groups of {name} do not make its {size} bytes")
    return Built(size, digest, groups, windows)


# --- A blob -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A piece of a blob: ``stored`` bytes that unpack to ``plain``.

    For LZMA, ``lclppb`` are the three settings as in an .lzma file's first byte and ``dictionary``
    the size of its window in bytes (raw LZMA2).
    """

    packing: Packing
    stored: int
    plain: int
    lclppb: int = 0
    dictionary: int = 0

    @property
    def window(self) -> int:
        """Bytes of what was unpacked that are held, at most, while the rest is unpacked."""
        if self.packing == Packing.ZSTD:
            return 1 << min(MAX_WINDOW_LOG, max(10, self.plain.bit_length()))
        return self.dictionary


@dataclass(frozen=True)
class Inner:
    """A zstd frame inside a source: ``stored`` bytes at ``offset``, which unpack to ``plain``."""

    offset: int
    stored: int
    plain: int


@dataclass(frozen=True)
class Source:
    """The old bytes that a patch looks at: the extents' plain content, one behind the other; or,
    with ``inner``, the content of a frame in it."""

    image: Image
    extents: tuple[Extent, ...]
    inner: Inner | None = None


@dataclass(frozen=True)
class Patch:
    """``size`` new bytes, by ``control`` bytes of instructions over source number ``source``."""

    source: int
    size: int
    control: int


@dataclass(frozen=True)
class Frame:
    """``stored`` bytes: the zstd frame of the next ``plain`` bytes of another lane.

    ``parameters`` are (zstd parameter number, value) pairs in the order in which they are set.
    """

    lane: int
    plain: int
    stored: int
    parameters: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Copy:
    """``length`` bytes of the old usr from ``offset``, as they lie there."""

    offset: int
    length: int


@dataclass(frozen=True)
class Plain:
    """The next ``length`` bytes of a lane."""

    lane: int
    length: int


@dataclass(frozen=True)
class Encode:
    """The next ``plain`` bytes of a lane, compressed to exactly ``stored`` bytes."""

    lane: int
    algorithm: Algorithm
    plain: int
    stored: int


@dataclass(frozen=True)
class Zero:
    """``length`` zero bytes."""

    length: int


@dataclass(frozen=True)
class Hold:
    """Put the next ``length`` bytes of a lane aside. What was put aside first is named as lane
    :data:`MAX_LANES`, what came second as the one after it, and so on; each is taken once.

    A file's tail lies far behind the rest of it in the image, and a patch makes a whole file.
    """

    lane: int
    length: int


@dataclass(frozen=True)
class Drop:
    """Take the next ``length`` bytes of a lane and use them for nothing."""

    lane: int
    length: int


Item = Patch | Frame
Step = Copy | Plain | Encode | Zero | Hold | Drop


@dataclass(frozen=True)
class Plan:
    """What a group does: lanes of new bytes, made by patches, and steps that lay them out.

    ``level`` and ``cluster`` are what mkfs.erofs was asked for: the compressor's level and the
    largest cluster, in bytes.
    """

    sources: tuple[Source, ...]
    lanes: tuple[tuple[Item, ...], ...]
    steps: tuple[Step, ...]
    level: int
    cluster: int


@dataclass(frozen=True)
class Blob:
    """A blob's table: the plan's section, and (control, diff, extra) of each lane, then bytes."""

    plan: Section
    lanes: tuple[tuple[Section, Section, Section], ...]
    content: int  # where the sections' bytes begin


def dump_blob(
    plan: tuple[Section, bytes], lanes: Sequence[Sequence[tuple[Section, bytes]]]
) -> bytes:
    """Join sections to a blob; each lane has three."""
    out = Writer()
    out.number(len(lanes))
    sections = [plan, *(section for lane in lanes for section in lane)]
    for section, _ in sections:
        out.number(section.packing)
        out.number(section.stored)
        out.number(section.plain)
        if section.packing == Packing.LZMA:
            out.number(section.lclppb)
            out.number(section.dictionary)
    for _, data in sections:
        out.raw(data)
    return out.done()


def load_blob(start: bytes, size: int) -> Blob:
    """Parse the table of a blob of ``size`` bytes, or raise :class:`PayloadError`.

    ``start`` are its first :data:`MAX_TABLE` bytes, or all of it.
    """
    if size > MAX_BLOB:
        raise PayloadError(f"a blob has {size} bytes; at most {MAX_BLOB} are allowed")
    read = Reader(start[:MAX_TABLE], "a blob")
    count = read.number("the number of lanes", MAX_LANES)
    plan = _load_section(read, MAX_PLAN)
    lanes = tuple(
        (
            _load_section(read, MAX_SECTION),
            _load_section(read, MAX_SECTION),
            _load_section(read, MAX_SECTION),
        )
        for _ in range(count)
    )
    sections = [plan, *(section for lane in lanes for section in lane)]
    content = min(len(start), MAX_TABLE) - read.left
    if content + sum(section.stored for section in sections) != size:
        raise PayloadError("a blob's sections do not fill it")
    if sum(section.window for section in sections) > MAX_WINDOWS:
        raise PayloadError("a blob asks for too much memory")
    return Blob(plan, lanes, content)


def _load_section(read: Reader, most: int) -> Section:
    try:
        packing = Packing(read.number("a packing", 255))
    except ValueError:
        raise PayloadError("a section is packed in a way that this program does not know") from None
    stored = read.number("the size of a section", MAX_BLOB)
    plain = read.number("the unpacked size of a section", most)
    if packing == Packing.LZMA:
        settings = read.number("the settings of LZMA", 224)
        dictionary = read.number("the dictionary of LZMA", MAX_DICTIONARY)
        if settings % 9 + settings // 9 % 5 > 4:
            raise PayloadError("a section has settings of LZMA that do not exist")
        return Section(packing, stored, plain, settings, dictionary)
    if packing == Packing.NONE and stored != plain:
        raise PayloadError("a section that is not packed has two sizes")
    return Section(packing, stored, plain)


# The structures of a plan are written in columns: all first members, then all second ones, and so
# on. What is alike stands together, and the section's compression finds it.
_COPY, _PLAIN, _ENCODE, _ZERO, _HOLD, _DROP = range(6)


def dump_plan(plan: Plan) -> bytes:
    """Return the bytes of a plan."""
    out = Writer()
    out.number(plan.level)
    out.number(plan.cluster)
    out.number(len(plan.sources))
    for source in plan.sources:
        _dump_source(out, source)
    out.number(len(plan.lanes))
    for lane in plan.lanes:
        _dump_lane(out, lane)
    out.number(len(plan.steps))
    copies = [step for step in plan.steps if isinstance(step, Copy)]
    # Three kinds with the same members, in the order of the steps.
    plains = [step for step in plan.steps if isinstance(step, Plain | Hold | Drop)]
    encodes = [step for step in plan.steps if isinstance(step, Encode)]
    for step in plan.steps:
        out.number((Copy, Plain, Encode, Zero, Hold, Drop).index(type(step)))
    end = 0
    for copy in copies:
        out.signed_size(copy.offset - end)
        end = copy.offset + copy.length
    for copy in copies:
        out.size(copy.length)
    for plain in plains:
        out.number(plain.lane)
    for plain in plains:
        out.size(plain.length)
    for encode in encodes:
        out.number(encode.lane)
    for encode in encodes:
        out.number(ALGORITHMS.index(encode.algorithm))
    for encode in encodes:
        out.number(encode.plain)
    for encode in encodes:
        out.number(encode.stored)
    for step in plan.steps:
        if isinstance(step, Zero):
            out.number(step.length)
    return out.done()


def _dump_source(out: Writer, source: Source) -> None:
    out.number(source.image)
    out.number(len(source.extents))
    end = 0
    for extent in source.extents:
        # Compressed clusters end at the end of a block and begin where their bytes begin.
        out.signed_size(extent.physical + extent.stored - end)
        end = extent.physical + extent.stored
    for extent in source.extents:
        out.size(extent.stored)
    for extent in source.extents:
        out.number(ALGORITHMS.index(extent.algorithm))
    for extent in source.extents:
        if extent.algorithm != "raw":
            out.number(extent.plain)
    out.number(source.inner is not None)
    if source.inner is not None:
        out.number(source.inner.offset)
        out.number(source.inner.stored)
        out.number(source.inner.plain)


def _dump_lane(out: Writer, lane: Sequence[Item]) -> None:
    out.number(len(lane))
    for item in lane:
        if isinstance(item, Patch):
            out.number(0)
            out.number(item.source)
            out.number(item.size)
            out.number(item.control)
        else:
            out.number(1)
            out.number(item.lane)
            out.number(item.plain)
            out.number(item.stored)
            out.number(len(item.parameters))
            for key, value in item.parameters:
                out.number(key)
                out.signed(value)


def load_plan(data: bytes) -> Plan:
    """Parse a plan, or raise :class:`PayloadError`."""
    read = Reader(data, "a plan", MAX_ENTRIES)
    level = read.number("a level", 22)
    cluster = read.number("the size of clusters", MAX_CLUSTER)
    sources = tuple(_load_source(read) for _ in range(read.count("sources", 3)))
    lane_count = read.number("the number of lanes", MAX_LANES)
    lanes = tuple(
        tuple(
            _load_item(read, lane, lane_count, len(sources)) for _ in range(read.count("items", 4))
        )
        for lane in range(lane_count)
    )
    steps = _load_steps(read, lane_count)
    read.end()
    _check_work(lanes, steps)
    return Plan(sources, lanes, steps, level, cluster)


def _load_source(read: Reader) -> Source:
    image = _known(Image, read.number("an image", 255))
    count = read.count("extents", 3)
    gaps = [read.signed_size("an offset", MAX_OUTPUT) for _ in range(count)]
    stored = [read.size("a stored size", MAX_OUTPUT) for _ in range(count)]
    algorithms = [_algorithm(read) for _ in range(count)]
    end = logical = 0
    extents = []
    for gap, size, algorithm in zip(gaps, stored, algorithms, strict=True):
        end += gap
        if end < size:
            raise PayloadError("a source begins before its image")
        if end > MAX_OUTPUT:
            raise PayloadError("a source ends behind any image")
        plain = size
        if algorithm != "raw":
            plain = read.number("a plain size", MAX_CLUSTER)
            if size > MAX_CLUSTER:
                raise PayloadError(f"a cluster has {size} bytes")
        extents.append(Extent(logical, plain, end - size, size, algorithm))
        logical += plain
    inner = None
    if read.number("the kind of a source", 1):
        inner = Inner(
            read.number("the offset of a frame", MAX_OUTPUT),
            read.number("the size of a frame", MAX_OUTPUT),
            read.number("the plain size of a frame", MAX_SECTION),
        )
    return Source(image, tuple(extents), inner)


def _load_item(read: Reader, lane: int, lanes: int, sources: int) -> Item:
    if read.number("the kind of an item", 1) == 0:
        number = read.number("a source", 1 << 20)
        if number > sources:
            raise PayloadError(f"a patch names source {number} of {sources}")
        return Patch(
            number,
            read.number("the size of a patch", MAX_SECTION),
            read.number("the control bytes of a patch", MAX_CONTROL),
        )
    inner = read.number("a lane", MAX_LANES)
    if not lane < inner < lanes:
        # Lanes feed only those before them, so that they cannot wait for one another.
        raise PayloadError(f"lane {lane} takes its bytes from lane {inner} of {lanes}")
    plain = read.number("the plain size of a frame", MAX_SECTION)
    stored = read.number("the size of a frame", MAX_SECTION)
    parameters = tuple(
        (read.number("a parameter", 10000), read.signed("a value", (1 << 31) - 1))
        for _ in range(read.count("parameters", 2, 32))
    )
    for key, value in parameters:
        if not 0 <= value <= FRAME_PARAMETERS.get(key, -1):
            raise PayloadError(f"a frame's parameter {key} cannot be {value}")
    return Frame(inner, plain, stored, parameters)


def _load_steps(read: Reader, lanes: int) -> tuple[Step, ...]:
    kinds = [read.number("the kind of a step", _DROP) for _ in range(read.count("steps", 2))]
    copies = kinds.count(_COPY)
    gaps = [read.signed_size("an offset", MAX_OUTPUT) for _ in range(copies)]
    lengths = [read.size("a length", MAX_OUTPUT) for _ in range(copies)]
    moves: list[Copy] = []
    end = 0
    for gap, length in zip(gaps, lengths, strict=True):
        if end + gap < 0:
            raise PayloadError("a copy begins before its image")
        moves.append(Copy(end + gap, length))
        end += gap + length
        if end > MAX_OUTPUT:
            raise PayloadError("a copy ends behind any image")
    plains = sum(kind in (_PLAIN, _HOLD, _DROP) for kind in kinds)
    taken = [read.number("a lane", MAX_LANES + MAX_HELD) for _ in range(plains)]
    takes = iter([(lane, read.size("a length", MAX_SECTION)) for lane in taken])
    encodes = kinds.count(_ENCODE)
    from_lane = [read.number("a lane", MAX_LANES + MAX_HELD) for _ in range(encodes)]
    algorithms = [_algorithm(read) for _ in range(encodes)]
    plain = [read.number("a plain size", MAX_CLUSTER) for _ in range(encodes)]
    stored = [read.number("a stored size", MAX_CLUSTER) for _ in range(encodes)]
    clusters = iter([Encode(*e) for e in zip(from_lane, algorithms, plain, stored, strict=True)])
    copied = iter(moves)
    steps: list[Step] = []
    for kind in kinds:
        match kind:
            case 0:
                steps.append(next(copied))
            case 1:
                steps.append(Plain(*next(takes)))
            case 2:
                steps.append(next(clusters))
            case 3:
                steps.append(Zero(read.number("a length", MAX_OUTPUT)))
            case 4:
                steps.append(Hold(*next(takes)))
            case _:
                steps.append(Drop(*next(takes)))
    _check_lanes(steps, lanes)
    return tuple(steps)


def _check_work(lanes: Sequence[Sequence[Item]], steps: Sequence[Step]) -> None:
    """Raise if a plan makes more bytes than any output has, whether or not they are used."""
    made = sum(item.size if isinstance(item, Patch) else item.stored for o in lanes for item in o)
    if made > MAX_OUTPUT:
        raise PayloadError(f"the lanes of a plan make more than {MAX_OUTPUT} bytes")
    given = sum(
        step.stored if isinstance(step, Encode) else step.length
        for step in steps
        if not isinstance(step, Hold | Drop)
    )
    if given > MAX_OUTPUT:
        raise PayloadError(f"a plan makes more than {MAX_OUTPUT} bytes")


def _check_lanes(steps: Sequence[Step], lanes: int) -> None:
    """Raise unless each step takes from a lane, or from what was put aside and is still there."""
    aside: set[int] = set()
    count = total = 0
    for step in steps:
        if isinstance(step, Copy | Zero):
            continue
        if step.lane in aside:
            aside.remove(step.lane)
        elif step.lane >= lanes:
            raise PayloadError(f"a step takes from lane {step.lane} of {lanes}")
        if isinstance(step, Hold):
            aside.add(MAX_LANES + count)
            count += 1
            total += step.length
            if total > MAX_HELD_BYTES:
                raise PayloadError("a plan puts too much aside")
    if aside:
        raise PayloadError("something that was put aside is not used")


def _algorithm(read: Reader) -> Algorithm:
    return ALGORITHMS[read.number("an algorithm", len(ALGORITHMS) - 1)]


def _known(kind: type[_Kind], value: int) -> _Kind:
    try:
        return kind(value)
    except ValueError:
        raise PayloadError(f"{kind.__name__.lower()} {value} is not known") from None
