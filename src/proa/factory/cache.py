"""The cache: what builds make once and use again, made whole or not at all, and pruned by use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# How many entries of each kind stay, the last used first. A tour uses one package tree and seven
# initrds; a package tree is about 700 MB, an initrd 12 MB. Of the libraries of old releases each
# release has two at most, and payloads start from three releases.
KEEP: Mapping[str, int] = {
    "snapshots": 2,
    "sdk": 2,
    "trees": 3,
    "initrds": 20,
    "kernels": 5,
    "libraries": 12,
}

_PATCH = re.compile(r"\.?([0-9a-f]{64})(?:\.[0-9]+)?", re.ASCII)

# Bytes of a store of patches. Those for a new kernel and a dozen packages come to some 100 MB.
PATCHES = 2 << 30

# No build takes this long, so what was used since may be in use still; in seconds.
IN_USE_FOR = 24 * 3600


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``file``: two builds never make the same cache entry."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A directory on the cache's file system that is gone afterwards, whatever happens."""
    cache.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="work-", dir=cache))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def used(entry: Path) -> Path:
    """Note that ``entry`` is used now, and return it."""
    # The time in which a snapshot was fetched is that of its pointer, so no meaning is lost.
    os.utime(entry)
    return entry


def prune(cache: Path) -> None:
    """Remove what no build is likely to want again; see :data:`KEEP`."""
    now = time.time()
    for kind, count in KEEP.items():
        for entry in surplus(cache / kind, count, now):
            remove(entry)
    prune_patches(cache / "patches", now)
    # What builds that were killed have left.
    for entry in surplus(cache, 0, now, "work-*"):
        remove(entry)


def prune_patches(store: Path, now: float, most: int = PATCHES) -> None:
    """Remove the patches of a store beyond ``most`` bytes, those last used long ago first.

    They cost only time. ``now`` is in seconds since 1970.
    """
    found = []
    for file in store.glob("??/*"):
        # A store may be any directory of the owner's. Only a patch has this name, and what a run
        # that was killed has left of one.
        if not ((match := _PATCH.fullmatch(file.name)) and match[1][:2] == file.parent.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            # Reading moves the one, to the day on most file systems; making it the other.
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    total = 0
    for used, size, file in sorted(found, reverse=True):
        total += size
        if total > most and now - used > IN_USE_FOR:
            remove(file)


def surplus(directory: Path, keep: int, now: float, pattern: str = "*") -> list[Path]:
    """Return the entries of ``directory`` beyond the ``keep`` last used that no build can be using.

    ``now`` is in seconds since 1970.
    """
    times: dict[Path, float] = {}
    for entry in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            times[entry] = entry.stat().st_mtime
    by_use = sorted(times, key=lambda entry: (times[entry], entry), reverse=True)
    return [entry for entry in by_use[keep:] if now - times[entry] > IN_USE_FOR]


def remove(entry: Path) -> None:
    """Remove a file or a directory of the cache."""
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
