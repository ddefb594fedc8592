"""Laying a new image out: which of its bytes are copied, which are patched, which are encoded.

The outcome is groups: pieces of the output, in order, each with the patches that it needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from proa.factory import compare, pack, patches
from proa.factory.compare import File, Region, Usr
from proa.wire import payload as form
from proa.wire.codec import CodecError, Encoding
from proa.wire.erofs import Extent
from proa.wire.payload import (
    Copy,
    Drop,
    Encode,
    Frame,
    Hold,
    Item,
    Patch,
    Plain,
    Plan,
    Source,
    Step,
    Zero,
)

# A group is cut when its patches come to about so many bytes, packed: it is what a machine holds in
# memory, and fetches again at most when it was interrupted.
GROUP = 3 << 20

FILES, META, INNER = 0, 1, 2  # lanes


@dataclass(frozen=True)
class Copied:
    """``length`` bytes that lie in the old image at ``offset``."""

    offset: int
    length: int


@dataclass(frozen=True)
class Literal:
    """Bytes ``start`` to ``end`` of the new image, compared with the old one's metadata."""

    start: int
    end: int


@dataclass(frozen=True)
class Cluster:
    """An extent of a changed file, with the zeros before it."""

    file: File
    index: int
    padding: int

    @property
    def extent(self) -> Extent:
        return self.file.extents[self.index]


@dataclass(frozen=True)
class Zeros:
    """``length`` zero bytes."""

    length: int


Part = Copied | Literal | Cluster | Zeros


def lay_out(old: Usr | None, new: Usr, encoding: Encoding) -> list[Part]:
    """Return what the new image is made of, in order."""
    there = compare.stored(old) if old else compare.Stored({}, {}, frozenset())
    followed: dict[bytes, bool] = {}
    parts: list[Part] = []
    for region in new.regions():
        for part in _parts(region, old, new, there, parts) or _made(
            region, new, encoding, there, followed
        ):
            _append(parts, part)
    return parts


def _parts(
    region: Region,
    old: Usr | None,
    new: Usr,
    there: compare.Stored,
    parts: Sequence[Part],
) -> list[Part]:
    """Return copies if the old image has the region's bytes."""
    if old is None:
        return []
    length = region.end - region.start
    last = parts[-1] if parts else None
    if isinstance(last, Copied):
        # What simply goes on is the cheapest copy of all, and metadata does so too.
        at = last.offset + last.length
        if old.data[at : at + length] == new.data[region.start : region.end]:
            return [Copied(at, length)]
    if region.extent is None:
        return []
    if not region.inline:
        digest = hashlib.sha256(new.read(region.start, length)).digest()
        if digest in there.regions:
            return [Copied(there.regions[digest], length)]
    # A tail that was inlined and is not any more, or the other way round.
    extent = region.extent
    digest = hashlib.sha256(new.read(extent.physical, extent.stored)).digest()
    if digest in there.extents and not (region.inline and digest in there.inline):
        padding = extent.physical - region.start
        copied = Copied(there.extents[digest], extent.stored)
        return [Zeros(padding), copied] if padding else [copied]
    return []


def _made(
    region: Region,
    new: Usr,
    encoding: Encoding,
    there: compare.Stored,
    followed: dict[bytes, bool],
) -> list[Part]:
    """Return a cluster of a changed file, or what is compared as metadata."""
    file, extent = region.file, region.extent
    literal = Literal(region.start, region.end)
    if file is None or extent is None:
        return [literal]
    if region.inline and (
        extent.algorithm == "raw"
        or hashlib.sha256(new.read(extent.physical, extent.stored)).digest() in there.inline
    ):
        return [literal]
    if file.sha256 not in followed:
        followed[file.sha256] = _encodes(file, new, encoding)
    if not followed[file.sha256]:
        return [literal]
    return [Cluster(file, file.extents.index(extent), extent.physical - region.start)]


def _append(parts: list[Part], part: Part) -> None:
    last = parts[-1] if parts else None
    match last, part:
        case Copied(before, length), Copied(offset, more) if before + length == offset:
            parts[-1] = Copied(before, length + more)
        case Literal(start, end), Literal(begin, stop) if end == begin:
            parts[-1] = Literal(start, stop)
        case _:
            parts.append(part)


def _encodes(file: File, new: Usr, encoding: Encoding) -> bool:
    """Whether the encoder makes all of a file's clusters, byte for byte."""
    for extent in file.extents:
        if extent.algorithm == "raw":
            continue
        stored = new.read(extent.physical, extent.stored)
        try:
            plain = new.plain([extent])
            if new.codec.encode(encoding, plain, extent.stored) != stored:
                return False
        except CodecError:
            return False
    return True


# --- Groups ---------------------------------------------------------------------------------------


@dataclass
class _Held:
    """``length`` bytes put aside in step ``step``; ``taken`` is the step that takes them."""

    step: int
    length: int
    taken: int | None = None


@dataclass(frozen=True)
class Kernel:
    """A kernel's file: what is before its frame, in it, and behind it. All extents of the file.

    ``parameters`` are the frame's. Each part comes with its source.
    """

    head: tuple[patches.Made, Source | None]
    inner: tuple[patches.Made, Source | None]
    tail: tuple[patches.Made, Source | None]
    frame: int
    parameters: tuple[tuple[int, int], ...]
    extents: int


@dataclass
class Group:
    """A group as it grows. ``streams`` holds (control, diff, extra) of each lane."""

    sources: list[Source] = field(default_factory=list)
    lanes: tuple[list[Item], ...] = field(default_factory=lambda: ([], [], []))
    streams: tuple[tuple[bytearray, ...], ...] = field(
        default_factory=lambda: tuple(tuple(bytearray() for _ in range(3)) for _ in range(3))
    )
    steps: list[Step] = field(default_factory=list)
    meta: bytearray = field(default_factory=bytearray)
    held: dict[tuple[bytes, int], _Held] = field(default_factory=dict)
    # The file in the lane of files: its next extent, and how many extents its patch gives.
    file: File | None = None
    next: int = 0
    end: int = 0
    weight: int = 0
    length: int = 0

    def add(self, lane: int, source: Source | None, made: patches.Made) -> None:
        """Append a patch to a lane."""
        number = 0
        if source is not None:
            if source not in self.sources:
                self.sources.append(source)
            number = self.sources.index(source) + 1
        self.lanes[lane].append(Patch(number, made.size, len(made.control)))
        streams = (made.control, made.diff, made.extra)
        for stream, data in zip(self.streams[lane], streams, strict=True):
            stream += data
        self.weight += made.weight

    def has(self, file: File, index: int) -> bool:
        """Whether an extent of a file can be taken."""
        in_lane = self.file is file and self.next <= index < self.end
        return in_lane or (file.sha256, index) in self.held

    def begin(
        self, file: File, first: int, made: patches.Made | Kernel, source: Source | None
    ) -> None:
        """Put the patch that gives ``file`` from extent ``first`` on into the lane of files."""
        self.put_aside(self.end)
        if isinstance(made, Kernel):
            self.add(FILES, made.head[1], made.head[0])
            self.add(INNER, made.inner[1], made.inner[0])
            plain = made.inner[0].size
            self.lanes[FILES].append(Frame(INNER, plain, made.frame, made.parameters))
            self.add(FILES, made.tail[1], made.tail[0])
        else:
            self.add(FILES, source, made)
        self.file, self.next, self.end = file, first, first + made.extents

    def take(self, file: File, index: int) -> None:
        """Lay out an extent of a file."""
        extent = file.extents[index]
        held = self.held.get((file.sha256, index))
        if held is None:
            self.put_aside(index)
            self.next = index + 1
        else:
            held.taken = len(self.steps)
        if extent.algorithm == "raw":
            self.steps.append(Plain(FILES, extent.plain))
        else:
            self.steps.append(Encode(FILES, extent.algorithm, extent.plain, extent.stored))

    @property
    def scratch(self) -> int:
        """Bytes on disk that the machine needs to unpack old content as a whole."""
        return sum(source.inner.plain for source in self.sources if source.inner)

    def put_aside(self, end: int) -> None:
        """Put aside what comes later in the output: the lane's extents before number ``end``."""
        if self.file is None:
            return
        for index in range(self.next, end):
            extent = self.file.extents[index]
            self.held[self.file.sha256, index] = _Held(len(self.steps), extent.plain)
            self.steps.append(Hold(FILES, extent.plain))
        self.next = max(self.next, end)

    def finished_steps(self) -> tuple[Step, ...]:
        """Return the steps; what was put aside for nothing is dropped, the rest is numbered."""
        numbers: dict[int, int] = {}
        steps = list(self.steps)
        for held in sorted(self.held.values(), key=lambda h: h.step):
            if held.taken is None:
                steps[held.step] = Drop(FILES, held.length)
            else:
                numbers[held.taken] = form.MAX_LANES + len(numbers)
        for index, number in numbers.items():
            step = steps[index]
            if isinstance(step, Encode | Plain):
                steps[index] = replace(step, lane=number)
        return tuple(steps)


def group_up(
    parts: Sequence[Part],
    new: Usr,
    patch_for: Callable[[File, int], tuple[int, patches.Made | Kernel, Source | None]],
) -> Iterator[Group]:
    """Yield the groups that lay out ``parts``.

    ``patch_for`` gives a patch that makes a given extent of a file and perhaps others: the first
    extent that it makes, the patch, and its source.
    """
    group = Group()
    for part in parts:
        match part:
            case Copied(offset, length):
                group.steps.append(Copy(offset, length))
                group.length += length
            case Zeros(length):
                group.steps.append(Zero(length))
                group.length += length
            case Literal(start, end):
                if group.weight + len(group.meta) // 3 > GROUP:
                    yield group
                    group = Group()
                group.meta += new.read(start, end - start)
                group.steps.append(Plain(META, end - start))
                group.length += end - start
            case Cluster(file, index, padding):
                if not group.has(file, index):
                    if group.weight + len(group.meta) // 3 > GROUP:
                        yield group
                        group = Group()
                    group.begin(file, *patch_for(file, index))
                if padding:
                    group.steps.append(Zero(padding))
                group.take(file, index)
                group.length += padding + part.extent.stored
    yield group


def pack_group(group: Group, encoding: Encoding, fast: bool) -> bytes:
    """Return a group's blob."""
    group.put_aside(group.end)
    plan = Plan(
        tuple(group.sources),
        tuple(map(tuple, group.lanes)),
        group.finished_steps(),
        encoding.level,
        encoding.cluster,
    )
    lanes = [[pack.pack(bytes(stream), fast=fast) for stream in lane] for lane in group.streams]
    return form.dump_blob(pack.pack(form.dump_plan(plan), fast=False), lanes)
