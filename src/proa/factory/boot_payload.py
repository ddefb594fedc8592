"""The boot image in a payload: a recipe over the new /usr, which is written by then.

Kernel and most of the initrd are files of the new /usr. The initrd is one compressed frame: its
plain content is put together on the machine and compressed again. What is the same as in the
running release's boot image comes from there, and only what is nowhere is shipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import boot_recipe, frames, patch, patches
from proa.factory.boot_recipe import FromPart, FromUsr, Literal, Segment
from proa.factory.compare import Usr
from proa.factory.layout import FILES, INNER, Group, pack_group
from proa.wire import patch as wire
from proa.wire.codec import Codec, CodecError, Encoding
from proa.wire.erofs import Extent
from proa.wire.payload import Frame, Image, Inner, Plain, Source

# Windows of old initrds that are unpacked, as a power of two: what the machine allows too.
_MAX_WINDOW_LOG = 23

# What differs in the same entry of two archives: a header's numbers, and versions in names.
_CHANGES = re.compile(rb"070701[0-9A-F]{104}|\d")


class _Contents:
    """The files of a /usr image by their content."""

    def __init__(self, usr: Usr) -> None:
        self.files = {file.sha256.hex(): file for file in usr.files}
        self._sizes = {file.size for file in usr.files}

    def find(self, data: bytes | memoryview) -> FromUsr | None:
        size = len(data)
        if size < 64 or size not in self._sizes:
            return None
        digest = hashlib.sha256(data).hexdigest()
        file = self.files.get(digest)
        return FromUsr(file.paths[0], size, digest) if file else None


@dataclass(frozen=True)
class _Boot:
    """A boot image taken apart: its segments, and its initrd's frame and content."""

    data: bytes
    segments: Sequence[Segment]
    frame: Inner
    cpio: bytes


def group(
    old: Path | None, old_usr: Usr | None, new: Path, usr: Usr, encoding: Encoding, codec: Codec
) -> tuple[int, bytes, int]:
    """Return the one group that makes the boot image ``new``: its output's length, its blob, and
    the bytes on disk that the machine needs for it."""
    contents = _Contents(usr)
    image = _take_apart(new.read_bytes(), contents, codec)
    old_contents = _Contents(old_usr) if old_usr else None
    before = _take_apart(old.read_bytes(), old_contents, codec) if old and old_contents else None
    made = Group()
    old_literals = _literals(before)
    for segment in image.segments:
        if isinstance(segment, FromPart):
            _add_initrd(made, image.cpio, before, contents, old_contents)
            made.lanes[FILES].append(Frame(INNER, len(image.cpio), segment.size, frames.PARAMETERS))
        elif isinstance(segment, FromUsr):
            _add_file(made, FILES, segment, contents)
        else:
            source, data = next(old_literals, (None, b""))
            (part,) = patches.make(data, segment.data, [len(segment.data)])
            made.add(FILES, source, part)
    made.steps.append(Plain(FILES, len(image.data)))
    return len(image.data), pack_group(made, encoding, fast=old is None), made.scratch


def _take_apart(data: bytes, contents: _Contents, codec: Codec) -> _Boot:
    found = boot_recipe.section(data, b".initrd")
    start, size = found if found else (0, 0)
    frame = data[start : start + size]
    cpio = b""
    if frame:
        try:
            cpio = b"".join(codec.zstd.decode_frame([frame], _MAX_WINDOW_LOG))
            again = codec.zstd.encode_with([cpio], frames.PARAMETERS, len(cpio))
            # An initrd that was made another way is shipped as it is.
            cpio = cpio if b"".join(again) == frame else b""
        except CodecError:
            cpio = b""
    parts = {"initrd": frame} if cpio else {}
    segments = boot_recipe.segments_of_uki(data, contents, parts)
    return _Boot(data, segments, Inner(start, size, len(cpio)), cpio)


def _literals(boot: _Boot | None) -> Iterator[tuple[Source | None, bytes]]:
    """Yield the literals of the running boot image and where they lie in it."""
    at = 0
    for segment in boot.segments if boot else ():
        size = len(segment.data) if isinstance(segment, Literal) else segment.size
        if isinstance(segment, Literal):
            yield Source(Image.OLD_UKI, (Extent(0, size, at, size, "raw"),)), segment.data
        at += size


def _add_file(made: Group, lane: int, segment: FromUsr, contents: _Contents) -> None:
    """Append a whole file of the new /usr."""
    file = contents.files[segment.sha256]
    whole = wire.Copies([file.size], [0], [0], [0])
    made.add(lane, Source(Image.NEW_USR, file.extents), _part(bytes(file.size), None, whole))


def _add_initrd(
    made: Group,
    cpio: bytes,
    old: _Boot | None,
    contents: _Contents,
    old_contents: _Contents | None,
) -> None:
    """Append the plain content of the initrd to its lane."""
    source, known = None, _Known({}, {})
    before = b""
    if old is not None and old_contents is not None and old.cpio:
        raw = Extent(0, len(old.data), 0, len(old.data), "raw")
        source, before = Source(Image.OLD_UKI, (raw,), old.frame), old.cpio
        known = _known(before, old_contents)
    run: list[tuple[int | None, bytes]] = []
    for segment in boot_recipe.segments_of_initrd(cpio, contents):
        data = segment.data if isinstance(segment, Literal) else None
        if isinstance(segment, FromUsr):
            place = known.files.get(segment.sha256)
            if place is None:
                _add_run(made, run, source, before)
                _add_file(made, INNER, segment, contents)
                continue
            run.append((place, before[place : place + segment.size]))
        elif data is not None:
            run.append((known.literals.get(_shape(data)), data))
    _add_run(made, run, source, before)


@dataclass(frozen=True)
class _Known:
    """Where an old archive has which files (by sha256) and literals (by their shape)."""

    files: Mapping[str, int]
    literals: Mapping[tuple[int, bytes], int]


def _known(cpio: bytes, contents: _Contents) -> _Known:
    files: dict[str, int] = {}
    literals: dict[tuple[int, bytes], int] = {}
    at = 0
    for segment in boot_recipe.segments_of_initrd(cpio, contents):
        if isinstance(segment, Literal):
            literals[_shape(segment.data)] = at
            at += len(segment.data)
        elif isinstance(segment, FromUsr):
            files[segment.sha256] = at
            at += segment.size
    return _Known(files, literals)


def _shape(literal: bytes) -> tuple[int, bytes]:
    return len(literal), _CHANGES.sub(b"#", literal)


def _add_run(
    made: Group, run: list[tuple[int | None, bytes]], source: Source | None, before: bytes
) -> None:
    """Append pieces of the old archive, or new bytes, as one patch; ``run`` is empty then."""
    copies = wire.Copies([], [], [], [])
    new = bytearray()
    lengths, places, targets, extras = [0], [0], [0], [0]
    for place, data in run:
        if place is None:
            extras[-1] += len(data)
        elif extras[-1] == 0 and places[-1] + lengths[-1] == place:
            lengths[-1] += len(data)
        else:
            lengths.append(len(data))
            places.append(place)
            targets.append(len(new))
            extras.append(0)
        new += data
    if new:
        copies = wire.Copies(lengths, places, targets, extras)
        made.add(INNER, source, _part(before, bytes(new), copies))
    run.clear()


def _part(old: bytes, new: bytes | None, copies: wire.Copies) -> patches.Made:
    wanted = old if new is None else new
    return patches.wrap(patch.from_copies(old, wanted, copies), 1, len(wanted))
