"""The boot image in a payload: mostly a second copy of what is in the new /usr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import patches
from proa.factory.compare import File, Usr
from proa.factory.layout import FILES, Group, pack_group
from proa.wire.codec import Encoding
from proa.wire.erofs import Extent
from proa.wire.payload import Image, Plain, Source

# Shorter runs are not worth an item of their own, in bytes.
_LEAST = 4096


@dataclass(frozen=True)
class Run:
    """Bytes ``start`` to ``end`` of the boot image, which are ``file`` of /usr, if it is given."""

    start: int
    end: int
    file: File | None


def group(old: Path | None, new: Path, usr: Usr, encoding: Encoding) -> tuple[int, bytes]:
    """Return (length, blob) of the one group that makes the boot image ``new``."""
    image = new.read_bytes()
    before = old.read_bytes() if old else b""
    source = None
    if old:
        extent = Extent(0, len(before), 0, len(before), "raw")
        source = Source(Image.OLD_UKI, (extent,))
    made = Group()
    for run in runs(image, usr):
        data = image[run.start : run.end]
        if run.file is not None:
            (part,) = patches.make(data, data, [len(data)])
            made.add(FILES, Source(Image.NEW_USR, run.file.extents), part)
        else:
            (part,) = patches.make(before, data, [len(data)])
            made.add(FILES, source, part)
        made.steps.append(Plain(FILES, len(data)))
    return len(image), pack_group(made, encoding, fast=old is None)


def runs(image: bytes, usr: Usr) -> Iterator[Run]:
    """Cut a boot image where large files of /usr lie in it."""
    end = 0
    for start, file in sorted(_found(image, usr.files, usr)):
        if start < end:
            continue
        if start > end:
            yield Run(end, start, None)
        end = start + file.size
        yield Run(start, end, file)
    if end < len(image):
        yield Run(end, len(image), None)


def _found(image: bytes, files: Sequence[File], usr: Usr) -> Iterator[tuple[int, File]]:
    for file in files:
        if file.size >= _LEAST and file.paths[0].endswith("/vmlinuz"):
            start = image.find(usr.plain(file.extents))
            if start >= 0:
                yield start, file
