"""Every change that the updater makes to a disk, in six primitive steps.

The order of changes and of flushes is what a machine's life hangs on when the power goes. So all
of them pass through one small class, and a test can put another in its place that cuts the power
before any one step and takes back what had not been flushed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20  # bytes held in memory at once, everywhere in the updater


class Files:
    """Primitive steps (overridden in tests), and safe compositions of them below."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of ``data``; not durable before :meth:`fsync`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def fsync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- Compositions -----------------------------------------------------------------------

    @contextlib.contextmanager
    def target(self, path: Path, *, create: bool = False) -> Iterator[Target]:
        """Open a partition or a file for writing in place."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            yield Target(self, fd)
        finally:
            os.close(fd)

    def replace(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Put ``data`` at ``path``: after a crash there is the old content or the new, whole."""
        with self.replacing(path, mode) as target:
            target.write(0, data)

    @contextlib.contextmanager
    def replacing(self, path: Path, mode: int = 0o644) -> Iterator[Target]:
        """Like :meth:`replace`, for content that is written piece by piece."""
        temporary = path.with_name(f".{path.name}.new")
        try:
            with self.target(temporary, create=True) as target:
                self.truncate(target.fd, 0)
                os.fchmod(target.fd, mode)
                yield target
                target.sync()
            self.rename(temporary, path)
            self.fsync_dir(path.parent)
        except OSError:
            # Most often: no room. What is half written must not keep taking it.
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def move(self, source: Path, target: Path) -> None:
        """Rename within a file system, durably."""
        self.rename(source, target)
        self.fsync_dir(target.parent)
        if source.parent != target.parent:
            self.fsync_dir(source.parent)

    def remove(self, path: Path) -> None:
        """Delete a file durably; one that is not there is no error."""
        try:
            self.unlink(path)
        except FileNotFoundError:
            return
        self.fsync_dir(path.parent)


class Target:
    """An open partition or file, written by offset."""

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self.fd = fd

    def size(self) -> int:
        """Return the bytes that a file has, or that a partition has room for."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def write(self, offset: int, data: bytes) -> None:
        self._files.pwrite(self.fd, data, offset)

    def truncate(self, size: int) -> None:
        self._files.truncate(self.fd, size)

    def sync(self) -> None:
        self._files.fsync(self.fd)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end`` in chunks; stops early where a file ends."""
        while start < end:
            data = os.pread(self.fd, min(CHUNK, end - start), start)
            if not data:
                return
            yield data
            start += len(data)

    def forget_cache(self) -> None:
        """Ask the kernel to drop cached pages, so that the next read comes from the disk."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
