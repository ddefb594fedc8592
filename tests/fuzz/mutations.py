"""Payloads spoilt in every region, given to the readers: what must never happen, does not.

Three ways. **before**: the file at the mirror is spoilt, and the machine's own code fetches it and
checks its hashes: nothing but what was signed may come out. **behind**: each reader gets spoilt
bytes as if the hashes were right: a head, a blob, a plan, the streams of a patch, the old content,
an image. There a wrong output is allowed (its hash would not be right), but no other exception
than the reader's own, no output beyond what was said, and no memory beyond :data:`ROOM`.

    PYTHONPATH=src:tests python -m fuzz.mutations --cases 20000

prints how many cases ended how, and stops with a traceback and the case's number where one is not
as it should be (``--first`` repeats from there).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from proa.machine import fetch
from proa.machine import payload as machine
from proa.machine.files import Target
from proa.machine.system import System
from proa.wire import erofs, patch
from proa.wire import payload as form
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec
from proa.wire.payload import Image, Packing, Section
from proa.wire.unpack import Workshop, held, unpack
from support import payload_samples
from support.payload_samples import Payload

# What a case may take of address space, in bytes, beyond what the program has at the start.
ROOM = 256 << 20

Spoil = Callable[[bytes, random.Random], bytes]


# --- Spoiling -------------------------------------------------------------------------------------

# Numbers at the edges of what fits.
_NUMBERS = (
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x10",
    b"\x80\x80\x80\x04",
    b"\xff\x7f",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
)


def spoil(data: bytes, dice: random.Random, other: bytes = b"") -> bytes:
    """Return ``data`` changed in one to three places, perhaps with pieces of ``other``."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        data = _spoil_once(data, dice, other)
    return data


def _spoil_once(data: bytes, dice: random.Random, other: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    end = min(at + dice.choice((1, 1, 2, 4, 8, 64, 4096)), len(data))
    match dice.randrange(10):
        case 0:  # one bit
            if at == len(data):
                return data
            return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        case 1:  # one byte
            return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        case 2:  # cut off
            return data[:at]
        case 3:  # grown
            return data + dice.randbytes(dice.choice((1, 2, 100)))
        case 4:  # a piece out
            return data[:at] + data[end:]
        case 5:  # a piece in
            return data[:at] + dice.randbytes(end - at) + data[at:]
        case 6:  # a piece twice
            return data[:end] + data[at:]
        case 7:  # two pieces exchanged
            to = dice.randrange(len(data) + 1)
            low, high = min(at, to), max(at, to)
            length = min(dice.choice((1, 2, 16, 300)), high - low, len(data) - high)
            one, two = data[low : low + length], data[high : high + length]
            return data[:low] + two + data[low + length : high] + one + data[high + length :]
        case 8:  # an edge
            number = dice.choice(_NUMBERS)
            return data[:at] + number + data[at + dice.choice((0, 1, len(number))) :]
        case _:  # a piece of something else, at the same place or another
            start = at if dice.random() < 0.5 else dice.randrange(len(other) + 1)
            piece = other[start : start + end - at]
            return data[:at] + piece + data[at + len(piece) :]


# --- Before the hashes: the machine's own code ----------------------------------------------------


class Unread:
    """A slot: what is written to it must have been checked."""

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        yield bytes(self.data[start:end])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset:] = data


def receive(sample: Payload, data: bytes, state: Path, *, lies: bool) -> tuple[bytes, bytes]:
    """Apply the file ``data``, which a mirror says is the signed one, as a machine does.

    A mirror that ``lies`` says that the file has the signed length. Raises what the machine's code
    raises; returns (usr, boot image) where it takes them.
    """
    length = len(sample.head) + sum(map(len, sample.blobs))

    def download(
        url: str, start: int, size: int, *_: object, end: int | None = None
    ) -> Iterator[bytes]:
        if len(data) != size and not lies:
            raise fetch.WrongSize(f"{url} has another size", temporary=False)
        found = data[start : size if end is None else end]
        for at in range(0, len(found), 1000):
            yield found[at : at + 1000]
        if len(found) < (size if end is None else end) - start:
            raise fetch.FetchError(f"{url}: the transfer ended early")

    system = SimpleNamespace(state_dir=state, sleep=lambda _: None)
    signed = machine.Signed(
        urls=("mirror:",),
        size=length,
        head_length=len(sample.head),
        head_sha256=hashlib.sha256(sample.head).hexdigest(),
        encoder="",
        source="",
        origin="",
    )
    slot = Unread()
    real, fetch.download = fetch.download, cast(Any, download)
    try:
        opened = machine.Payload(cast(System, system), signed, fetch.PATIENCE)
        built, shop = opened.head.usr, workshop(sample)
        windows = machine.Windows(built, 0, cast(Target, slot))
        for piece, _ in machine.groups(opened, built, 0, 0, shop):
            for _ in windows.add(piece):
                pass
        uki = opened.head.uki
        position = sum(entry.size for entry in built.groups)
        boot = b"".join(piece for piece, _ in machine.groups(opened, uki, position, 0, shop))
        if hashlib.sha256(boot).digest() != uki.sha256:
            raise machine.Unusable("the boot image is another")
        return bytes(slot.data), boot
    finally:
        fetch.download = real
        # Refused or not: nothing wrong was written.
        assert slot.data == sample.outputs[0][: len(slot.data)]


def workshop(sample: Payload) -> Workshop:
    return Workshop(sample.read, Codec(), io.BytesIO)


def before(sample: Payload, other: Payload, dice: random.Random, state: Path) -> str:
    """Spoil the file and let a machine fetch it; return how it ended."""
    whole = sample.head + b"".join(sample.blobs)
    foreign = other.head + b"".join(other.blobs)
    data = foreign if dice.random() < 0.01 else spoil(whole, dice, foreign)
    for name in state.iterdir():
        if dice.random() < 0.5:
            name.unlink()
    # What a try before this one left, and may be the right thing.
    kept = any(state.iterdir())
    try:
        made = receive(sample, data, state, lies=dice.random() < 0.7)
    except (machine.Unusable, fetch.FetchError) as error:
        return f"refused: {type(error).__name__}"
    assert made == sample.outputs, "something else came out than was signed"
    assert kept or data[: len(whole)] == whole, "a file that is not the signed one was taken"
    return "the same bytes"


# --- Behind the hashes ----------------------------------------------------------------------------


_PARTS = ("head", "blob", "table", "plan", "lanes", "control", "old", "erofs")


@dataclass(frozen=True)
class Opened:
    """A blob in its parts, unpacked."""

    plan: bytes
    lanes: tuple[tuple[bytes, bytes, bytes], ...]

    def packed(self) -> bytes:
        """Return a blob of these parts, as they are."""

        def section(data: bytes) -> tuple[Section, bytes]:
            return Section(Packing.NONE, len(data), len(data)), data

        lanes = [[section(data) for data in lane] for lane in self.lanes]
        return form.dump_blob(section(self.plan), lanes)


def opened(blob: bytes) -> Opened:
    from proa.wire import unpack as module

    table = form.load_blob(blob, len(blob))
    at = table.content
    found = []
    for section in (table.plan, *(section for lane in table.lanes for section in lane)):
        found.append(module._Section(section, held(blob), at, Codec()).all())
        at += section.stored
    lanes = [
        cast(tuple[bytes, bytes, bytes], tuple(found[n : n + 3])) for n in range(1, len(found), 3)
    ]
    return Opened(found[0], tuple(lanes))


def consume(pieces: Iterator[bytes], most: int) -> bytes | None:
    """Take an output as a machine does; None if there is more than ``most`` of it."""
    made = bytearray()
    for piece in pieces:
        made += piece
        if len(made) > most:
            return None
    return bytes(made)


def run_blob(blob: bytes, length: int, shop: Workshop) -> str:
    try:
        made = consume(unpack(held(blob), shop), length)
    except PayloadError as error:
        _not_of_memory(error)
        return "refused: PayloadError"
    except OSError:
        return "refused: OSError"
    if made is None:
        return "too much output"
    return "some output"


def _not_of_memory(error: Exception) -> None:
    words = str(error).lower()
    assert "allocation" not in words and "out of memory" not in words, error


def behind(sample: Payload, other: Payload, dice: random.Random) -> str:
    """Spoil one part of a payload and give it to the reader of that part."""
    entries = [*sample.parsed.usr.groups, *sample.parsed.uki.groups]
    number = dice.randrange(len(sample.blobs))
    blob, length = sample.blobs[number], entries[number].length
    foreign = dice.choice(other.blobs)
    match dice.choice(_PARTS):
        case "head":
            try:
                form.load_head(spoil(sample.head, dice, other.head))
            except PayloadError:
                return "head: refused"
            return "head: read"
        case "blob":
            return "blob: " + run_blob(spoil(blob, dice, foreign), length, workshop(sample))
        case "table":
            start = form.load_blob(blob, len(blob)).content
            table = spoil(blob[:start], dice, foreign)
            return "table: " + run_blob(table + blob[start:], length, workshop(sample))
        case "plan":
            parts = opened(blob)
            plan = spoil(parts.plan, dice, opened(foreign).plan)
            spoilt = Opened(plan, parts.lanes).packed()
            return "plan: " + run_blob(spoilt, length, workshop(sample))
        case "lanes":
            parts = opened(blob)
            lanes = [list(lane) for lane in parts.lanes]
            for lane in lanes:
                for index in range(3):
                    if dice.random() < 0.3:
                        lane[index] = spoil(lane[index], dice, parts.plan)
            spoilt = Opened(parts.plan, tuple(cast(Any, map(tuple, lanes)))).packed()
            return "lanes: " + run_blob(spoilt, length, workshop(sample))
        case "control":
            return "control: " + _patch(dice)
        case "old":
            images = dict(sample.images)
            for image in Image:
                if image in images:
                    images[image] = spoil(images[image], dice, foreign)
            spoilt_old = Payload(sample.head, sample.blobs, images, sample.outputs)
            return "old: " + run_blob(blob, length, workshop(spoilt_old))
        case _:
            return "erofs: " + walk(spoil(sample.outputs[0], dice, foreign))


def _patch(dice: random.Random) -> str:
    """Spoil a patch between two programs, or the old program."""
    old, control, diff, extra, size = patches()[dice.random() < 0.7]
    if dice.random() < 0.8:
        control = spoil(control, dice, old)
    if dice.random() < 0.2:
        diff, extra = spoil(diff, dice, old), spoil(extra, dice, old)
    if dice.random() < 0.4:
        # The headers are where it hurts.
        cut = dice.choice((64, 120, len(old)))
        old = (
            spoil(old[:cut], dice, control).ljust(cut, b"\0") + old[cut:]
            if dice.random() < 0.5
            else old[:-576] + spoil(old[-576:], dice, control)
        )
    try:
        made = consume(patch.apply(control, _taking(diff), _taking(extra), _at(old), size), size)
    except patch.PatchError:
        return "refused"
    assert made is not None and len(made) == size
    return "some output"


_PATCHES: list[tuple[bytes, bytes, bytes, bytes, int]] = []


def patches() -> Sequence[tuple[bytes, bytes, bytes, bytes, int]]:
    """Return (old, control, diff, extra, new size): a patch of text and one of a program."""
    if not _PATCHES:
        from proa.factory import patch as factory

        pairs = [
            (payload_samples.files(False)[name], payload_samples.files(True)[name])
            for name in ("share/text", "bin/program")
        ]
        for old, new in pairs:
            made = factory.make(old, new)
            _PATCHES.append((old, made.control, made.diff, made.extra, len(new)))
        assert [made[1][0] for made in _PATCHES] == [patch.PLAIN, patch.ELF]
    return _PATCHES


def _taking(data: bytes) -> patch.Stream:
    stream = io.BytesIO(data)
    return stream.read


def _at(data: bytes) -> patch.Reader:
    return lambda offset, size: data[offset : offset + size]


def walk(image: bytes) -> str:
    """Read all of an erofs image, but no file of more than the image could hold."""
    try:
        found = erofs.Image(_at(image), len(image))
        left = 16 << 20
        with Codec() as codec:
            for entry in found.walk():
                extents = found.extents(entry.inode)
                left -= entry.inode.size
                if entry.is_symlink:
                    found.target(entry.inode, codec)
                elif entry.is_file and left > 0:
                    file = erofs.PlainFile(_at(image), extents, codec)
                    for start in range(0, file.size, 1 << 18):
                        file.read(start, 1 << 18)
    except erofs.ErofsError:
        return "refused"
    return "read"


# --- Running --------------------------------------------------------------------------------------


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Within it, taking more than :data:`ROOM` is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(delta: Payload, full: Payload, state: Path, cases: range) -> Counter[str]:
    """Run cases of these numbers; return how many ended how."""
    ended: Counter[str] = Counter()
    patches()
    with little_memory():
        for number in cases:
            dice = random.Random(number)
            sample, other = (delta, full) if dice.random() < 0.7 else (full, delta)
            try:
                if number % 3:
                    ended["behind " + behind(sample, other, dice)] += 1
                else:
                    ended["before " + before(sample, other, dice, state)] += 1
            except BaseException as error:
                error.add_note(f"case {number}")
                raise
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--most-seconds", type=int, default=60, help="of CPU for one case")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        delta = payload_samples.make(Path(directory), delta=True)
        full = payload_samples.make(Path(directory), delta=False)
        state = Path(directory, "state")
        state.mkdir()
        ended: Counter[str] = Counter()
        slowest = (0.0, 0)
        start = time.process_time()
        for number in range(args.first, args.first + args.cases):
            signal.setitimer(signal.ITIMER_VIRTUAL, args.most_seconds)  # kills, if it comes to it
            began = time.process_time()
            ended += run(delta, full, state, range(number, number + 1))
            slowest = max(slowest, (time.process_time() - began, number))
    for name, count in sorted(ended.items()):
        print(f"{count:7}  {name}")
    print(f"{sum(ended.values()):7}  cases in {time.process_time() - start:.0f} s of CPU")
    print(f"the slowest, number {slowest[1]}, took {slowest[0]:.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
