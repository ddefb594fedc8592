"""Reading and writing below a root directory without ever following a symbolic link.

Root writes here into places that other users may own, from a text that came over a network: so
each directory of a path is opened by itself with ``O_NOFOLLOW``, and a link is an error that names
it. A file appears whole or not at all: a temporary file beside it, fsync, rename.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    with os.fdopen(descriptor, "rb") as file:
        what = os.fstat(descriptor)
        if not stat.S_ISREG(what.st_mode):
            raise FileProblem(f"{path} is not a regular file")
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
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        _refuse_directory(folder, name, path)
        temporary = f".{name[:200]}.{os.urandom(6).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
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


def link(root: Path, path: str, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, in place of a file or link there."""
    with _naming_errors(path), _parent(root, path, make=True) as (folder, name):
        _refuse_directory(folder, name, path)
        temporary = f".{name[:200]}.{os.urandom(6).hex()}"
        os.symlink(target, temporary, dir_fd=folder)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


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
