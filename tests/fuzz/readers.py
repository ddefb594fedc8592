"""The readers of payloads, each as something that takes any bytes: what a fuzzer needs.

``fuzz.search`` runs them under atheris. ``python -m fuzz.readers DIRECTORY`` writes good inputs to
start from. ``tests/fuzz/corpus`` has the inputs that reach all that was reached; a unit test
replays them.
"""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fuzz import write_seeds
from proa.wire import erofs, patch
from proa.wire import payload as form
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec
from proa.wire.payload import Image, Packing, Section
from proa.wire.unpack import Workshop, held, unpack
from support import payload_samples

CORPUS = Path(__file__).with_name("corpus")

# Bytes of an output that are taken; a machine stops where a group gives more than it says.
_MOST = 4 << 20


def one(data: bytes) -> str:
    """Give ``data`` to the reader that its first byte names; return how it ended.

    Anything but the readers' own exceptions goes through: that is a find.
    """
    if not data:
        return "nothing"
    reader = _READERS[data[0] % len(_READERS)]
    try:
        reader(data[1:])
    except (PayloadError, patch.PatchError, erofs.ErofsError, OSError) as error:
        return f"{reader.__name__}: {type(error).__name__}"
    return f"{reader.__name__}: read"


def _head(data: bytes) -> None:
    head = form.load_head(data)
    assert form.load_head(form.dump_head(head)) == head


def _blob(data: bytes) -> None:
    """A blob as it comes."""
    _take(_only(PayloadError, unpack(held(data), _workshop())))


def _group(data: bytes) -> None:
    """A blob whose sections are not packed: a plan, then three streams for each lane."""
    parts = _cut(data)
    if len(parts) % 3 != 1 or len(parts) > 1 + 3 * form.MAX_LANES:
        return
    sections = [(Section(Packing.NONE, len(part), len(part)), part) for part in parts]
    lanes = [sections[n : n + 3] for n in range(1, len(sections), 3)]
    _take(_only(PayloadError, unpack(held(form.dump_blob(sections[0], lanes)), _workshop())))


def _plan(data: bytes) -> None:
    plan = form.load_plan(data)
    assert form.load_plan(form.dump_plan(plan)) == plan


def _patch(data: bytes) -> None:
    """A patch: control, diff, extra, the new size, and the old file."""
    parts = _cut(data)
    if len(parts) != 5:
        return
    control, diff, extra, size, old = parts
    new_size = int.from_bytes(size, "little")
    pieces = patch.apply(
        control,
        io.BytesIO(diff).read,
        io.BytesIO(extra).read,
        lambda offset, count: old[offset : offset + count],
        new_size,
    )
    made = _take(_only(patch.PatchError, pieces))
    assert made is None or made == new_size


def _erofs(data: bytes) -> None:
    """Changes of an image: two bytes of offset, one of length, and that many bytes; repeated."""
    image = bytearray(_image())
    at = 0
    while at + 3 < len(data):
        offset, count = struct.unpack_from("<HB", data, at)
        change = data[at + 3 : at + 3 + count]
        image[offset : offset + len(change)] = change
        at += 3 + count
    size = len(image)
    found = erofs.Image(lambda offset, count: bytes(image[offset : offset + count]), size)
    left = _MOST
    with Codec() as codec:
        for entry in found.walk():
            extents = found.extents(entry.inode)
            if entry.is_symlink:
                found.target(entry.inode, codec)
            left -= entry.inode.size
            if entry.is_file and left > 0:
                file = erofs.PlainFile(
                    lambda offset, count: bytes(image[offset : offset + count]), extents, codec
                )
                for start in range(0, file.size, 1 << 18):
                    file.read(start, 1 << 18)


_READERS: Sequence[Callable[[bytes], None]] = (_head, _blob, _group, _plan, _patch, _erofs)


def _cut(data: bytes) -> list[bytes]:
    """Cut ``data`` into parts, each with three bytes of length before it."""
    parts, at = [], 0
    while at + 3 <= len(data):
        size = int.from_bytes(data[at : at + 3], "little")
        parts.append(data[at + 3 : at + 3 + size])
        at += 3 + size
    return parts


def _join(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(3, "little") + part for part in parts)


def _only(kind: type[Exception], pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield ``pieces``; an exception that this reader may not raise is a find."""
    try:
        yield from pieces
    except (kind, OSError):
        raise
    except ValueError as error:
        raise AssertionError(f"{type(error).__name__} goes through") from error


def _take(pieces: Iterator[bytes]) -> int | None:
    made = 0
    for piece in pieces:
        made += len(piece)
        if made > _MOST:
            return None
    return made


@functools.cache
def _image() -> bytes:
    return payload_samples.image(False)


def _read(image: Image, offset: int, size: int) -> bytes:
    data = _image()
    if offset < 0 or offset + size > len(data):
        raise OSError("outside the image")
    return data[offset : offset + size]


def _workshop() -> Workshop:
    return Workshop(_read, Codec(), io.BytesIO)


# --- Seeds ----------------------------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Yield good inputs for each reader, but large images."""
    from fuzz import mutations
    from proa.factory import patch as factory

    def name(reader: Callable[[bytes], None]) -> bytes:
        return bytes([_READERS.index(reader)])

    with tempfile.TemporaryDirectory() as directory:
        delta = payload_samples.make(Path(directory), delta=True)
        full = payload_samples.make(Path(directory), delta=False)
    for sample in (delta, full):
        yield name(_head) + sample.head
    for blob in delta.blobs:
        yield name(_blob) + blob
        parts = mutations.opened(blob)
        yield name(_plan) + parts.plan
        yield name(_group) + _join([parts.plan, *(data for lane in parts.lanes for data in lane)])
    # Small ones: a fuzzer's changes should hit something.
    for old, new in (
        (b"the old words" * 9, b"the new words" * 9),
        (payload_samples.program(None, 6, 128), payload_samples.program(2, 6, 128)),
    ):
        made = factory.make(old, new)
        streams = [made.control, made.diff, made.extra]
        yield name(_patch) + _join([*streams, len(new).to_bytes(3, "little"), old])
    yield name(_erofs) + struct.pack("<HB4s", 1024, 4, _image()[1024:1028])


if __name__ == "__main__":
    write_seeds(seeds())
