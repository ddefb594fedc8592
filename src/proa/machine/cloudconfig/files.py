"""Reading and writing below a root directory without ever following a symbolic link.

Root writes here into places that other users may own, from a text that came over a network: so
each directory of a path is opened by itself with ``O_NOFOLLOW``, and a link is an error that names
it. A file appears whole or not at all: a temporary file beside it, fsync, rename.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from proa.machine.hints import IO
from proa.machine.record import dataclass

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileProblem(Exception):
    """A path cannot be read or written; the text says which part of it and why."""


@dataclass(frozen=True)
class Found:
    """A regular file as it is on disk."""

    content: bytes
    mode: int
    uid: int
    gid: int
    links: int


@contextlib.contextmanager
def _parent(
    root: Path, path: str, *, make: bool = False, mode: int = 0o755
) -> Iterator[tuple[int, str]]:
    """The directory that holds ``path``, as a file descriptor, and the last name of the path."""
    *folders, name = [part for part in path.split("/") if part]
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    walked = ""
    try:
        for folder in folders:
            walked += f"/{folder}"
            try:
                inner = os.open(folder, _DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, mode, dir_fd=here)
                inner = os.open(folder, _DIRECTORY, dir_fd=here)
            except NotADirectoryError:
                what = os.stat(folder, dir_fd=here, follow_symlinks=False)
                link = stat.S_ISLNK(what.st_mode)
                kind = "a symbolic link, and none is followed" if link else "not a directory"
                raise FileProblem(f"{walked} is {kind}") from None
            os.close(here)
            here = inner
        yield here, name
    finally:
        os.close(here)


def read(root: Path, path: str, limit: int) -> Found | None:
    """The regular file at ``path``; ``None`` if nothing is there.

    Raises :class:`FileProblem` for a link, a device, or more than ``limit`` bytes.
    """
    try:
        with _parent(root, path) as (folder, name):
            # O_NONBLOCK: a planted FIFO must not hold up the boot.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_link(root, path):
            raise FileProblem(f"{path} is a symbolic link, and none is followed") from None
        raise FileProblem(f"{path}: {error.strerror}") from None
    what = os.fstat(descriptor)
    if not stat.S_ISREG(what.st_mode):
        os.close(descriptor)
        raise FileProblem(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileProblem(f"{path} is larger than {limit // 1024} KiB")
    return Found(content, stat.S_IMODE(what.st_mode), what.st_uid, what.st_gid, what.st_nlink)


def is_link(root: Path, path: str) -> bool:
    return target_of(root, path) is not None


def target_of(root: Path, path: str) -> str | None:
    """Where the symbolic link at ``path`` points; ``None`` if there is no link."""
    try:
        with _parent(root, path) as (folder, name):
            return os.readlink(name, dir_fd=folder)
    except (OSError, FileProblem):
        return None


def exists(root: Path, path: str) -> bool:
    """Whether anything, be it a dangling link, is at ``path``."""
    try:
        with _parent(root, path) as (folder, name):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (OSError, FileProblem):
        return False
    return True


def write(root: Path, path: str, content: bytes, mode: int, uid: int, gid: int) -> None:
    """Put a file at ``path``, whole or not at all; missing directories are made (0755)."""
    with replacing(root, path, mode, uid, gid) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(root: Path, path: str, mode: int, uid: int, gid: int) -> Iterator[IO[bytes]]:
    """Like :func:`write`, for content that comes piece by piece; none of it is there before all."""
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        _refuse_directory(folder, name, path)
        temporary = _temporary(folder, name, uid)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)  # after fchown, which takes setuid bits away
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


def reserve(root: Path, path: str, size: int, head: bytes, uid: int, gid: int) -> None:
    """Put a file of ``size`` bytes without holes at ``path`` (0600), whole or not at all.

    It begins with ``head``; nothing that is there is replaced.
    """
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        temporary = f".{_beginning(name)}.new"  # one name: what a cut left behind is taken away
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchown(descriptor, uid, gid)
                os.posix_fallocate(descriptor, 0, size)
                file.write(head)
                file.flush()
                os.fsync(descriptor)
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
        os.fsync(folder)


def link(root: Path, path: str, target: str, ids: tuple[int, int] | None = None) -> None:
    """Make ``path`` a symbolic link to ``target``, in place of a file or link there.

    ``ids`` are its owner and group; without them it belongs to who runs this.
    """
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        _refuse_directory(folder, name, path)
        temporary = _temporary(folder, name, ids[0] if ids else None)
        os.symlink(target, temporary, dir_fd=folder)
        if ids is not None:
            os.chown(temporary, *ids, dir_fd=folder, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def hard_link(root: Path, path: str, target: str) -> None:
    """Make ``path`` another name of the file ``target``, in place of a file or link there."""
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        _refuse_directory(folder, name, path)
        temporary = _temporary(folder, name)
        with _naming_errors(target), _parent(root, target) as (there, old):
            dirs = {"src_dir_fd": there, "dst_dir_fd": folder}
            os.link(old, temporary, **dirs, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        # Two names of one file: then rename(2) does nothing, and the temporary name is left.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.fsync(folder)


def is_same(root: Path, path: str, other: str) -> bool:
    """Whether two paths are names of one file, or of one link."""
    try:
        with _parent(root, path) as (folder, name), _parent(root, other) as (there, old):
            one = os.stat(name, dir_fd=folder, follow_symlinks=False)
            two = os.stat(old, dir_fd=there, follow_symlinks=False)
    except (OSError, FileProblem):
        return False
    return os.path.samestat(one, two)


def is_directory(root: Path, path: str) -> bool:
    try:
        with _parent(root, path) as (folder, name):
            return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except (OSError, FileProblem):
        return False


def adjust_directory(root: Path, path: str, mode: int | None, ids: tuple[int, int] | None) -> bool:
    """Give a directory this mode and owner, where not ``None``; whether it had another."""
    with _naming_errors(path), _parent(root, path) as (folder, name):
        descriptor = os.open(name, _DIRECTORY, dir_fd=folder)
        try:
            now = os.fstat(descriptor)
            mode = stat.S_IMODE(now.st_mode) if mode is None else mode
            ids = ids or (now.st_uid, now.st_gid)
            if (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (mode, *ids):
                return False
            os.fchown(descriptor, *ids)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        return True


def remove(root: Path, path: str) -> None:
    """Remove the file or link at ``path``, if there is one."""
    missing = contextlib.suppress(FileNotFoundError)
    with _naming_errors(path), missing, _parent(root, path) as (folder, name):
        os.unlink(name, dir_fd=folder)
        os.fsync(folder)


def make_directory(root: Path, path: str, mode: int, uid: int, gid: int) -> bool:
    """Make the directory ``path`` if it is missing; whether it was. One that exists is left."""
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            os.close(os.open(name, _DIRECTORY, dir_fd=folder))  # a link here is an error
            return False
        descriptor = os.open(name, _DIRECTORY, dir_fd=folder)
        try:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        return True


_MOST_LOOKED_AT = 10_000
"""Names of a directory; in a larger one, what a power cut left may stay."""


def _temporary(folder: int, name: str, owner: int | None = None) -> str:
    """A new name beside ``name``, for what is to be renamed to it; it will be ``owner``'s.

    What a power cut has left of earlier ones is taken away.
    """
    beginning = f".{_beginning(name)}."
    with contextlib.suppress(OSError):  # the write is what matters
        _sweep(folder, beginning, {os.geteuid(), owner})
    return f"{beginning}{os.urandom(6).hex()}"


def _beginning(name: str) -> str:
    return name.encode("utf-8", "ignore")[:200].decode("utf-8", "ignore")


def _sweep(folder: int, beginning: str, owners: Collection[int | None]) -> None:
    """Remove what bears exactly a name of ours, is one of the owners' and was left by an earlier
    boot: somebody may be writing what is younger."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    with os.scandir(folder) as entries:
        found = [
            entry
            for entry in islice(entries, _MOST_LOOKED_AT)
            if entry.name.startswith(beginning) and _is_random(entry.name[len(beginning) :])
        ]
    for entry in found:
        what = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        ours = what.st_uid in owners and what.st_nlink == 1 and what.st_mtime < booted
        if ours and (stat.S_ISREG(what.st_mode) or stat.S_ISLNK(what.st_mode)):
            os.unlink(entry.name, dir_fd=folder)


def _is_random(text: str) -> bool:
    return len(text) == 12 and set(text) <= set("0123456789abcdef")


def _refuse_directory(folder: int, name: str, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        what = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(what.st_mode):
            raise FileProblem(f"{path} is a directory")


@contextlib.contextmanager
def _naming_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileProblem(f"{path}: {error.strerror}") from None
