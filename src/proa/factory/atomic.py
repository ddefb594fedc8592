"""Files that are either old or new, never half: written beside, made durable, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_PREFIX = ".new-"


@dataclass(frozen=True)
class Digest:
    """Size in bytes of a file's content and its hashes in lower-case hex."""

    size: int
    sha256: str
    sha1: str


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path``; after a crash there is the old content or the new."""
    with _beside(path, mode) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)


def copy(source: Path, path: Path, *, accept: Callable[[Digest], None]) -> None:
    """Copy ``source`` to ``path``, which appears only if ``accept`` did not object by raising.

    ``accept`` sees the digest of the very bytes that were written, so a source that changes
    between a check and the copy cannot slip through.
    """
    with _beside(path, 0o644) as descriptor, source.open("rb") as file:
        accept(_digest(file.read, lambda chunk: _write_all(descriptor, chunk)))


def digest(path: Path) -> Digest:
    """Return the digest of the file at ``path``."""
    with path.open("rb") as file:
        return _digest(file.read, lambda _: None)


def sweep(directory: Path) -> None:
    """Remove what writes that were killed left below ``directory``; needs the caller's lock."""
    for leftover in directory.rglob(f"{_PREFIX}*"):
        leftover.unlink()


def rename(old: Path, new: Path) -> None:
    """Rename durably, replacing ``new``."""
    old.replace(new)
    _sync_directory(new.parent)
    if old.parent != new.parent:
        _sync_directory(old.parent)


@contextlib.contextmanager
def lock(path: Path, *, seconds: float, busy: Callable[[], Exception]) -> Iterator[None]:
    """Hold the lock file ``path``; raise ``busy()`` if another holds it for ``seconds``.

    The kernel lets go of it when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise busy() from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _beside(path: Path, mode: int) -> Iterator[int]:
    """Yield a descriptor whose file becomes ``path`` if the body succeeds."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX)
    temporary = Path(name)
    try:
        yield descriptor
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _sync_directory(path.parent)


def _digest(read: Callable[[int], bytes], take: Callable[[bytes], object]) -> Digest:
    sha256, sha1, size = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), 0
    while chunk := read(_CHUNK):
        sha256.update(chunk)
        sha1.update(chunk)
        size += len(chunk)
        take(chunk)
    return Digest(size, sha256.hexdigest(), sha1.hexdigest())


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
