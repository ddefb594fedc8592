"""Applying a payload: the new release comes out of the running one and of what is fetched.

One pass over the network and one over the slot. For each group its blob is fetched and checked
against the head, taken apart (``wire.unpack``), and each window of the output is checked before it
is written. What is durable is noted after each group, and a blob that came in part is kept, so that
an update goes on after any stop. The hash tree is computed on the way and never fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from proa.machine import fetch
from proa.machine.errors import Code
from proa.machine.files import Target
from proa.machine.system import System
from proa.wire import payload as form
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec, CodecError, Zstd
from proa.wire.erofs import ErofsError
from proa.wire.memory import be_frugal
from proa.wire.payload import GroupEntry, Image
from proa.wire.unpack import PIECE, Stored, Workshop, unpack

_PARTIAL = "partial-"  # and the sha256 that it has when it is whole


@dataclass(frozen=True)
class Signed:
    """A payload that the repository vouches for.

    ``urls`` are its addresses, one for each mirror; ``head_length`` and ``head_sha256`` are of its
    beginning. ``source`` is the root hash of what it starts from, "" for nothing, ``origin`` the
    version of that, and ``encoder`` the compressor that the machine must have.
    """

    urls: tuple[str, ...]
    size: int
    head_length: int
    head_sha256: str
    encoder: str
    source: str
    origin: str
    scratch: int = 0


class Unusable(Exception):
    """This payload does not lead to the release on this machine; another way may.

    ``code`` is what it counts as if there is no other. ``fetched`` are the bytes that it cost.
    """

    def __init__(self, message: str, code: Code = Code.PAYLOAD_MISMATCH) -> None:
        super().__init__(message)
        self.code = code
        self.fetched = 0


def encoder() -> str:
    """Return the name of this machine's compressor, or "" if there is none."""
    try:
        return f"zstd {Zstd().version}"
    except CodecError:
        return ""


@dataclass(frozen=True)
class Places:
    """Where old bytes lie on this machine: partitions and files."""

    old_usr: Path
    old_uki: Path | None
    new_usr: Path


class Payload:
    """A payload while it is applied: its head, and its blobs as they are asked for."""

    def __init__(self, system: System, signed: Signed, patience: fetch.Patience) -> None:
        """Fetch and check the head. Raises :class:`Unusable`, :class:`fetch.FetchError`."""
        self._system, self._signed, self._patience = system, signed, patience
        self._urls = signed.urls
        self.fetched = 0
        if signed.head_length > form.MAX_HEAD:
            raise Unusable(f"its head of {signed.head_length} bytes is too large")
        with contextlib.closing(
            self._checked(0, signed.head_length, signed.head_sha256, "head")
        ) as kept:
            data = kept.read(0, signed.head_length)
        try:
            self.head = form.load_head(data)
        except PayloadError as error:
            raise Unusable(str(error)) from None
        if signed.head_length + self.head.body != signed.size:
            raise Unusable("the payload is longer or shorter than its groups")
        self._forget_others()

    def blob(self, entry: GroupEntry, before: int) -> Kept:
        """Return a group's blob, of which ``before`` bytes of other blobs lie ahead."""
        start = self._signed.head_length + before
        return self._checked(start, entry.size, entry.sha256.hex(), f"group at {before}")

    def _checked(self, start: int, size: int, sha256: str, what: str) -> Kept:
        """Fetch a range that must have a hash, from one mirror after the other."""
        wrong: Unusable | None = None
        failed: fetch.FetchError | None = None
        for url in self._urls:
            # What was kept may be at fault; then it is fetched whole, once.
            for fresh in (False, True):
                with contextlib.ExitStack() as stack:
                    kept = stack.enter_context(contextlib.closing(Kept(self._file(sha256), size)))
                    if fresh:
                        kept.empty()
                    begun = kept.size
                    try:
                        self._fetch(url, start, size, kept)
                    except fetch.WrongSize as error:
                        wrong = Unusable(str(error))
                        break
                    except fetch.FetchError as error:
                        failed = error
                        break
                    if kept.sha256() == sha256:
                        # Those before it are not waited for again, at each blob.
                        self._urls = (url, *(other for other in self._urls if other != url))
                        stack.pop_all()
                        return kept
                self._forget(sha256)
                wrong = Unusable(f"{url}: the {what} is not what was signed (its sha256 differs)")
                if not begun:
                    break
        # A mirror that cannot be reached may be for ever: where another has it wrong, there are
        # other ways.
        raise wrong or failed or Unusable("there is no address to fetch the payload from")

    def _fetch(self, url: str, start: int, size: int, kept: Kept) -> None:
        if kept.size == size:
            return
        for chunk in fetch.download(
            url,
            start + kept.size,
            self._signed.size,
            self._patience,
            self._system.sleep,
            end=start + size,
        ):
            self.fetched += len(chunk)
            kept.add(chunk)

    # What came is kept, each blob in a file of its own, until what it gives is durable: a group
    # may end within a window, which is written when the next group has come. Nothing here is
    # trusted or must be durable: whoever uses it checks the hash of the whole, and a full disk only
    # means that more is fetched again.

    def _file(self, sha256: str) -> Path:
        return self._system.state_dir / f"{_PARTIAL}{sha256}"

    def _forget(self, sha256: str) -> None:
        with contextlib.suppress(OSError):
            self._file(sha256).unlink()

    def settle(self, built: form.Built, durable: int) -> None:
        """Forget the blobs of an output of which so many bytes are durable."""
        end = 0
        for entry in built.groups:
            end += entry.length
            if end <= durable:
                self._forget(entry.sha256.hex())

    def _forget_others(self) -> None:
        groups = (*self.head.usr.groups, *self.head.uki.groups)
        own = {self._signed.head_sha256, *(entry.sha256.hex() for entry in groups)}
        forget_blobs(self._system, own)


def forget_blobs(system: System, but: Collection[str] = ()) -> None:
    """Remove what was kept of blobs, but for those of these hashes."""
    for path in system.state_dir.glob(f"{_PARTIAL}*"):
        if path.name.removeprefix(_PARTIAL) not in but:
            with contextlib.suppress(OSError):
                path.unlink()


def kept_bytes(system: System) -> int:
    """Return how many bytes were kept of blobs."""
    total = 0
    for path in system.state_dir.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


class Kept:
    """The bytes of a range as far as they came: in a file, or in memory where none can be written.

    In the file they take no memory, of which an update has little.
    """

    def __init__(self, path: Path, most: int) -> None:
        """Go on with what ``path`` has, unless that is more than the ``most`` that it can be."""
        self.size = 0
        self._memory = bytearray()
        self._fd = -1
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.size = os.fstat(self._fd).st_size
        if self.size > most:
            self.empty()

    def empty(self) -> None:
        """Forget what came."""
        self.size = 0
        self._memory.clear()
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                self.close()

    def add(self, chunk: bytes) -> None:
        """Append what came."""
        if self._fd >= 0:
            try:
                done = 0
                while done < len(chunk):
                    done += os.pwrite(self._fd, chunk[done:], self.size + done)
            except OSError:
                # A full disk, say: what is in the file is still good, the rest goes on in memory.
                self._memory += self.read(0, self.size)
                self.close()
        if self._fd < 0:
            self._memory += chunk
        self.size += len(chunk)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``: fewer where fewer can be read."""
        if self._fd < 0:
            return bytes(self._memory[offset : offset + size])
        try:
            return os.pread(self._fd, size, offset)
        except OSError:
            return b""

    def sha256(self) -> str:
        """Return the hash of what can be read, in hexadecimal."""
        digest = hashlib.sha256()
        for start in range(0, self.size, PIECE):
            digest.update(self.read(start, PIECE))
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the file; what is in memory stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# --- Taking apart ---------------------------------------------------------------------------------


def workshop(system: System, places: Places, stack: contextlib.ExitStack) -> Workshop:
    """Return what unpacking works with; files stay open as long as ``stack``."""
    be_frugal()
    files: dict[Image, BinaryIO] = {}
    paths = {
        Image.OLD_USR: places.old_usr,
        Image.OLD_UKI: places.old_uki,
        Image.NEW_USR: places.new_usr,
    }

    def read(image: Image, offset: int, size: int) -> bytes:
        path = paths[image]
        if path is None:
            raise Unusable(f"the {image.name.lower()} that it starts from is not here")
        try:
            if image not in files:
                files[image] = stack.enter_context(path.open("rb", buffering=0))
            data = os.pread(files[image].fileno(), size, offset)
            if len(data) != size:
                raise Unusable(f"{path} ends before {offset + size} bytes")
            return data
        except OSError as error:
            raise Unusable(f"{path} cannot be read: {error.strerror}", Code.SLOT_FAILED) from None

    def scratch() -> BinaryIO:
        system.state_dir.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=system.state_dir)))

    return Workshop(read, stack.enter_context(Codec()), scratch)


def groups(
    payload: Payload, built: form.Built, before: int, start: int, shop: Workshop
) -> Iterator[tuple[bytes, bool]]:
    """Yield an output's bytes from ``start``, which is the beginning of a group.

    ``before`` are the bytes of the blobs of earlier outputs. With each piece comes whether it is
    the last of its group. Raises :class:`Unusable`, :class:`fetch.FetchError`.
    """
    done = 0
    for entry in built.groups:
        if done >= start:
            yield from _group(payload, entry, before, shop)
        done += entry.length
        before += entry.size


def _group(
    payload: Payload, entry: GroupEntry, before: int, shop: Workshop
) -> Iterator[tuple[bytes, bool]]:
    made = 0
    try:
        with contextlib.closing(payload.blob(entry, before)) as blob:
            for piece in unpack(Stored(entry.size, blob.read), shop):
                made += len(piece)
                if made > entry.length:
                    raise Unusable("a group gives more than it says")
                if piece:
                    yield piece, made == entry.length
    except (PayloadError, ErofsError, CodecError) as error:
        raise Unusable(f"a group cannot be taken apart: {error}") from None
    except OSError as error:
        raise Unusable(f"no room to unpack old content: {error.strerror}", Code.NO_ROOM) from None
    if made != entry.length:
        raise Unusable("a group gives less than it says")


def group_start(built: form.Built, durable: int) -> int:
    """Return where the group begins in which byte ``durable`` lies."""
    start = 0
    for entry in built.groups:
        if start + entry.length > durable:
            return start
        start += entry.length
    return start


class Windows:
    """Holds an output's bytes back until the window that they are in was checked."""

    def __init__(self, built: form.Built, start: int, target: Target) -> None:
        """``start`` may lie within a window; what is in place of it is read again."""
        self._hashes = built.windows
        self._size = built.size
        self.written = start
        self._pending: list[bytearray] = []
        self._held = 0
        begin = start - start % form.WINDOW
        self._ahead = b"".join(target.read(begin, start))
        if len(self._ahead) != start - begin:
            raise Unusable("what an earlier run wrote cannot be read")
        self._target = target

    def add(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece; yield what was checked and written."""
        view = memoryview(piece)
        while view:
            end = min((self.written // form.WINDOW + 1) * form.WINDOW, self._size)
            room = end - self.written - self._held
            if room <= 0:
                raise Unusable("the payload gives more than the image")
            if not self._pending or len(self._pending[-1]) >= PIECE:
                self._pending.append(bytearray())
            part = view[: min(room, PIECE)]
            self._pending[-1] += part
            self._held += len(part)
            view = view[len(part) :]
            if self.written + self._held == end:
                yield from self._write()

    def _write(self) -> Iterator[bytes]:
        # Piece by piece, for the whole is never held twice.
        digest = hashlib.sha256(self._ahead)
        for held in self._pending:
            digest.update(held)
        if digest.digest()[: form.WINDOW_HASH] != self._hashes[self.written // form.WINDOW]:
            raise Unusable(
                f"the bytes at {self.written >> 20} MiB come out wrong: this machine's old content "
                "is not what it should be"
            )
        pending, self._pending, self._held, self._ahead = self._pending, [], 0, b""
        while pending:
            data = bytes(pending.pop(0))
            self._target.write(self.written, data)
            self.written += len(data)
            yield data
