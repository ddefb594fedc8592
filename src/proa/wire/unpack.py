"""From a payload's group to the bytes of a release: streaming, in bounded memory.

A group's blob was checked before it comes here. Each lane is a stream of new bytes, made by its
patches from old content and from the blob's sections; the plan's steps take from the lanes, copy
from the old image, compress, and give the output in order.
"""

from __future__ import annotations

import contextlib
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from proa.wire import patch
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec, CodecError, Encoding
from proa.wire.erofs import ErofsError, PlainFile
from proa.wire.payload import (
    MAX_LANES,
    MAX_TABLE,
    Blob,
    Copy,
    Drop,
    Encode,
    Frame,
    Hold,
    Image,
    Inner,
    Item,
    Packing,
    Plain,
    Plan,
    Section,
    Source,
    Step,
    Zero,
    load_blob,
    load_plan,
)

# The largest window that an old frame may ask for: 8 MiB.
_MAX_WINDOW_LOG = 23

PIECE = 1 << 18  # bytes of a long run that are held at once
_FEED = 1 << 16  # packed bytes that a decoder gets at once

# Old content: (offset, size) → bytes.
ReadOld = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Workshop:
    """What unpacking works with.

    ``read`` gives (image, offset, size) → exactly size bytes, or raises OSError. ``codec`` is the
    compressor of the machine. ``scratch`` opens a nameless file on disk, or raises OSError: for old
    content that has to be unpacked as a whole, and for what would be unpacked again and again.
    """

    read: Callable[[Image, int, int], bytes]
    codec: Codec
    scratch: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Stored:
    """A group's blob: its bytes and how to get at them: ``read(offset, size)`` gives exactly size.

    It is read piece by piece, so that a blob in a file takes no memory.
    """

    size: int
    read: Callable[[int, int], bytes]


def held(data: bytes) -> Stored:
    """Return a blob that lies in memory."""
    return Stored(len(data), lambda offset, size: data[offset : offset + size])


def unpack(blob: Stored, shop: Workshop) -> Iterator[bytes]:
    """Yield the output of a group's blob in order, in pieces of at most a cluster.

    Raises :class:`PayloadError` where the blob does not do what it says, OSError where an old
    image cannot be read.
    """
    try:
        yield from _unpack(blob, shop)
    except (patch.PatchError, CodecError, ErofsError) as error:
        raise PayloadError(str(error)) from None


def _unpack(stored: Stored, shop: Workshop) -> Iterator[bytes]:
    blob, plan = _open_blob(stored, shop.codec)
    lanes: dict[int, _Lane] = {}
    end = stored.size
    # From the last to the first, for a lane may take from those behind it.
    for number in reversed(range(len(plan.lanes))):
        streams: list[_Section] = []
        for section in reversed(blob.lanes[number]):
            end -= section.stored
            streams.insert(0, _Section(section, stored, end, shop.codec))
        lanes[number] = _Lane(plan.lanes[number], streams, plan, lanes.copy(), shop)
    takers: dict[int, _Lane | _Aside] = dict(lanes)
    held = 0
    for step in plan.steps:
        if isinstance(step, Hold):
            takers[MAX_LANES + held] = _Aside(b"".join(takers[step.lane].take(step.length)))
            held += 1
        else:
            yield from _perform(step, takers, plan, shop)
    for lane in lanes.values():
        lane.end()


def _open_blob(stored: Stored, codec: Codec) -> tuple[Blob, Plan]:
    blob = load_blob(stored.read(0, min(stored.size, MAX_TABLE)), stored.size)
    plan = load_plan(_Section(blob.plan, stored, blob.content, codec).all())
    if len(plan.lanes) != len(blob.lanes):
        raise PayloadError("a plan has other lanes than its blob")
    return blob, plan


def _perform(
    step: Step, lanes: Mapping[int, _Lane | _Aside], plan: Plan, shop: Workshop
) -> Iterator[bytes]:
    match step:
        case Drop(lane, length):
            for _ in lanes[lane].take(length):
                pass
        case Copy(offset, length):
            for start in range(offset, offset + length, PIECE):
                yield shop.read(Image.OLD_USR, start, min(PIECE, offset + length - start))
        case Zero(length):
            for start in range(0, length, PIECE):
                yield bytes(min(PIECE, length - start))
        case Plain(lane, length):
            yield from lanes[lane].take(length)
        case Encode(lane, algorithm, plain, stored):
            encoding = Encoding(algorithm, plan.level, plan.cluster)
            yield shop.codec.encode(encoding, b"".join(lanes[lane].take(plain)), stored)


class _Aside:
    """Bytes that were put aside; taken as a whole, once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, size: int) -> Iterator[bytes]:
        if size != len(self._data):
            raise PayloadError(f"{size} bytes are taken of {len(self._data)} put aside")
        yield self._data
        self._data = b""


class _Lane:
    """A stream of new bytes, taken piece by piece."""

    def __init__(
        self,
        items: Sequence[Item],
        sections: Sequence[_Section],
        plan: Plan,
        behind: Mapping[int, _Lane],
        shop: Workshop,
    ) -> None:
        self._sections = sections
        self._pieces = _made(items, sections, plan, behind, shop)
        self._rest = memoryview(b"")

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes; each must be taken before the lane is used again."""
        while size:
            if not self._rest:
                try:
                    self._rest = memoryview(next(self._pieces))
                except StopIteration:
                    raise PayloadError(f"a lane ends {size} bytes early") from None
                continue
            piece = self._rest[:size]
            self._rest = self._rest[len(piece) :]
            size -= len(piece)
            yield bytes(piece)

    def end(self) -> None:
        """Raise unless all of the lane and of its sections was used."""
        if self._rest or any(self._pieces):
            raise PayloadError("a lane has bytes that nothing takes")
        for section in self._sections:
            section.end()


def _made(
    items: Sequence[Item],
    sections: Sequence[_Section],
    plan: Plan,
    behind: Mapping[int, _Lane],
    shop: Workshop,
) -> Iterator[bytes]:
    control, diff, extra = sections
    opened: int = 0
    old: ReadOld = _nothing
    with contextlib.ExitStack() as files:
        for item in items:
            if isinstance(item, Frame):
                yield from _frame(item, behind[item.lane], shop)
                continue
            if item.source != opened:
                # One at a time: a source's unpacked clusters are the memory that counts. Let go of
                # the one before the next is opened.
                opened, old = item.source, _nothing
                files.close()
                if item.source:
                    old = _open(plan.sources[item.source - 1], shop, files)
            instructions = control.read(item.control)
            yield from patch.apply(instructions, diff.read, extra.read, old, item.size)


def _nothing(offset: int, size: int) -> bytes:
    raise PayloadError("a patch without a source asks for old bytes")


def _open(source: Source, shop: Workshop, files: contextlib.ExitStack) -> ReadOld:
    def read(offset: int, size: int) -> bytes:
        return shop.read(source.image, offset, size)

    def scratch() -> BinaryIO:
        return files.enter_context(shop.scratch())

    file = PlainFile(read, source.extents, shop.codec, scratch=scratch)
    if source.inner is None:
        return file.read
    return _inner(file.read, source.inner, shop, scratch())


def _inner(read: ReadOld, inner: Inner, shop: Workshop, scratch: BinaryIO) -> ReadOld:
    """Unpack a frame within an old file to disk, where it can be read at any place."""
    stored = (
        read(inner.offset + start, min(PIECE, inner.stored - start))
        for start in range(0, inner.stored, PIECE)
    )
    total = 0
    for piece in shop.codec.zstd.decode_frame(stored, _MAX_WINDOW_LOG):
        total += len(piece)
        if total > inner.plain:
            raise PayloadError("an old frame holds more than it should")
        scratch.write(piece)
    if total != inner.plain:
        raise PayloadError("an old frame holds less than it should")
    scratch.flush()

    def read_scratch(offset: int, size: int) -> bytes:
        scratch.seek(offset)
        return scratch.read(size)

    return read_scratch


def _frame(frame: Frame, lane: _Lane, shop: Workshop) -> Iterator[bytes]:
    total = 0
    for piece in shop.codec.zstd.encode_with(lane.take(frame.plain), frame.parameters, frame.plain):
        total += len(piece)
        yield piece
    if total != frame.stored:
        raise PayloadError(f"a frame has {total} bytes instead of {frame.stored}")


class _Section:
    """A section's bytes, unpacked as they are read and never more than it says."""

    def __init__(self, section: Section, blob: Stored, start: int, codec: Codec) -> None:
        self._left = section.plain
        self._rest = bytearray()
        self._pieces = _unpacked(section, _fed(blob, start, start + section.stored), codec)

    def all(self) -> bytes:
        """Return the whole."""
        data = self.read(self._left)
        self.end()
        return data

    def read(self, size: int) -> bytes:
        """Return exactly the next ``size`` bytes."""
        if size > self._left:
            raise PayloadError(f"a section has {self._left} bytes left, not {size}")
        while len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                raise PayloadError("a section unpacks to less than it says")
            self._rest += piece
        self._left -= size
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def end(self) -> None:
        if self._left or self._rest or any(self._pieces):
            raise PayloadError("a section unpacks to more than is used")


def _fed(blob: Stored, start: int, end: int) -> Iterator[bytes]:
    """Yield packed bytes in small pieces: a decoder copies what it was given and has not used."""
    for at in range(start, end, _FEED):
        yield blob.read(at, min(_FEED, end - at))


def _unpacked(section: Section, packed: Iterator[bytes], codec: Codec) -> Iterator[bytes]:
    match section.packing:
        case Packing.NONE:
            yield from packed
        case Packing.ZSTD:
            window_log = section.window.bit_length() - 1
            yield from codec.zstd.decode_frame(packed, window_log)
        case Packing.LZMA:
            yield from _lzma(section, packed)


def _lzma(section: Section, packed: Iterator[bytes]) -> Iterator[bytes]:
    if not section.stored:
        return
    settings, lc = divmod(section.lclppb, 9)
    pb, lp = divmod(settings, 5)
    filters = [
        {
            "id": lzma.FILTER_LZMA2,
            "dict_size": max(section.dictionary, 4096),
            "lc": lc,
            "lp": lp,
            "pb": pb,
        }
    ]
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        for piece in packed:
            if decoder.eof:
                raise PayloadError("something follows a section")
            yield decoder.decompress(piece, PIECE)
            while not decoder.eof and not decoder.needs_input:
                yield decoder.decompress(b"", PIECE)
        if not decoder.eof:
            raise PayloadError("a section is cut off")
        if decoder.unused_data:
            raise PayloadError("something follows a section")
    except (lzma.LZMAError, ValueError) as error:
        raise PayloadError(f"a section cannot be unpacked: {error}") from None


def look_into(data: bytes, codec: Codec) -> tuple[Blob, Plan, tuple[bytes, ...]]:
    """Return a blob's table, its plan and the control bytes of each lane, and make nothing.

    For tools that explain a payload. Raises :class:`PayloadError` like :func:`unpack`.
    """
    stored = held(data)
    blob, plan = _open_blob(stored, codec)
    controls = []
    at = blob.content + blob.plan.stored
    for sections in blob.lanes:
        controls.append(_Section(sections[0], stored, at, codec).all())
        at += sum(section.stored for section in sections)
    return blob, plan, tuple(controls)
