"""The store of patches: each made once for a pair of contents, whichever releases they are in.

A patch is kept under the hashes of what it leads from and to. Two releases that brought the same
change share it, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import patch
from proa.wire import patch as wire
from proa.wire.bytecode import PayloadError, Reader, Writer
from proa.wire.payload import MAX_CONTROL

# A patch that comes to more than this, packed, is made in parts: a machine holds one in memory.
LIMIT = 5 << 20
# New bytes of one part where nothing old is known.
LITERAL = 8 << 20

_MAX = 1 << 32


def _revision() -> str:
    """Return a hash of the code that makes and applies patches: what predicts must never differ
    between the two, so patches of older code are made anew."""
    digest = hashlib.sha256()
    for module in (patch, wire):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


_REVISION = _revision()


@dataclass(frozen=True)
class Made:
    """A patch for the next ``extents`` extents of a file; ``weight`` is about its packed size."""

    extents: int
    size: int
    control: bytes
    diff: bytes
    extra: bytes
    weight: int


def key(old: bytes | None, new: bytes) -> str:
    """Return the name under which the patch between two contents (their sha256) is kept."""
    words = f"{_REVISION} {old.hex() if old else '-'} {new.hex()}"
    return hashlib.sha256(words.encode()).hexdigest()


def load(store: Path, name: str) -> list[Made] | None:
    """Return a kept patch, or None where there is none that can be read."""
    try:
        read = Reader((store / name[:2] / name).read_bytes(), "a kept patch")
        found = [
            Made(
                read.number("extents", _MAX),
                read.number("size", _MAX),
                read.raw("control", read.number("length", _MAX)),
                read.raw("diff", read.number("length", _MAX)),
                read.raw("extra", read.number("length", _MAX)),
                read.number("weight", _MAX),
            )
            for _ in range(read.count("parts", 6))
        ]
        check = hashlib.sha256(b"".join(m.control + m.diff + m.extra for m in found)).digest()
        return found if read.raw("check", 32) == check else None
    except (OSError, PayloadError):
        return None


def keep(store: Path, name: str, made: Sequence[Made]) -> None:
    """Keep a patch; whoever reads sees it whole or not at all."""
    out = Writer()
    out.number(len(made))
    for part in made:
        out.number(part.extents)
        out.number(part.size)
        for data in (part.control, part.diff, part.extra):
            out.number(len(data))
            out.raw(data)
        out.number(part.weight)
    out.raw(hashlib.sha256(b"".join(m.control + m.diff + m.extra for m in made)).digest())
    path = store / name[:2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.write_bytes(out.done())
    temporary.replace(path)


def make(
    old: bytes, new: bytes, extents: Sequence[int], kernel: patch.Kernel | None = None
) -> list[Made]:
    """Return the patch or the parts of it that make ``new``.

    ``extents`` are the plain sizes of the new file's extents, at which it may be cut; ``kernel`` is
    what the modules of two kernels have in common.
    """
    if not old:
        return [
            wrap(patch.make(b"", new[start:end]), count, end - start)
            for count, start, end in _cuts(extents, LITERAL)
        ]
    whole = wrap(patch.make(old, new, kernel=kernel), len(extents), len(new))
    if whole.weight <= LIMIT and len(whole.control) <= MAX_CONTROL:
        return [whole]
    parts = -(-max(whole.weight, len(whole.control)) // (LIMIT // 2))
    # To look for the copies of each part anew would sort all of the old file each time.
    copies = wire.read_control(whole.control, len(new)).copies
    return [
        wrap(
            patch.from_copies(old, new[start:end], patch.cut(copies, start, end)),
            count,
            end - start,
        )
        for count, start, end in _cuts(extents, -(-len(new) // parts))
    ]


def make_whole(old: bytes, new: bytes) -> Made:
    """Return one patch, whatever it comes to."""
    return wrap(patch.make(old, new), 1, len(new))


def wrap(made: patch.Patch, extents: int, size: int) -> Made:
    """Return a patch with its weight."""
    weight = sum(len(zlib.compress(data, 1)) for data in (made.control, made.diff, made.extra))
    return Made(extents, size, made.control, made.diff, made.extra, weight)


def _cuts(extents: Sequence[int], size: int) -> list[tuple[int, int, int]]:
    """Cut into (number of extents, start, end) of about ``size`` bytes."""
    cuts, count, start, end = [], 0, 0, 0
    for plain in extents:
        if count and end + plain - start > size:
            cuts.append((count, start, end))
            count, start = 0, end
        count, end = count + 1, end + plain
    return [*cuts, (count, start, end)]
