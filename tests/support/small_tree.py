"""A tree with a few of the image's own programs in it, to run them where they can do no harm.

The programs and the libraries that they name come out of the package tree that ``proa build`` keeps
in its cache, so they are those of the release: Debian 13's useradd, and not that of the host.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from proa.paths import cache_dir

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/libexec/sudo", "usr/lib/sudo")


def newest_package_tree(programs: Iterable[str]) -> Path | None:
    """The newest tree that has all of these, for a recipe of its own may leave some out."""
    trees = sorted((cache_dir() / "trees").glob("*.tar"), key=lambda path: path.stat().st_mtime)
    wanted = set(programs)
    for path in reversed(trees):
        with tarfile.open(path) as tar:
            if wanted <= {posixpath.normpath(member.name) for member in tar}:
                return path
    return None


def make(source: Path, target: Path, programs: Iterable[str], others: Iterable[str]) -> None:
    """Unpack programs with their libraries, and other files and directories, below ``target``."""
    with tarfile.open(source) as tar:
        names = {posixpath.normpath(member.name): member for member in tar}
        wanted = list(programs)
        done: set[str] = set()
        for folder in others:
            inside = [name for name in names if name == folder or name.startswith(f"{folder}/")]
            for name in sorted(inside):
                _unpack(tar, names[name], target, name)
        while wanted:
            name = wanted.pop()
            if name in done or name not in names:
                continue
            done.add(name)
            member = names[name]
            _unpack(tar, member, target, name)
            if member.issym():
                wanted.append(
                    posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                )
            elif member.isfile():
                for library in _needed(target / name):
                    wanted += [f"{folder}/{library}" for folder in LIBRARIES]
    for link in ("bin", "sbin", "lib", "lib64"):
        (target / link).symlink_to(f"usr/{link}")
    for folder in ("dev", "home", "root", "run", "tmp", "var/log"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    os.mknod(target / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, name: str) -> None:
    place = target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        place.mkdir(exist_ok=True)
    elif member.issym():
        place.symlink_to(member.linkname)
    elif (content := tar.extractfile(member)) is not None:
        place.write_bytes(content.read())
        place.chmod(member.mode)


def _needed(path: Path) -> list[str]:
    """The libraries that a program or library names, and the loader that starts it."""
    with path.open("rb") as file:
        try:
            elf = ELFFile(file)
        except ELFError:
            return []
        section = elf.get_section_by_name(".dynamic")
        tags = section.iter_tags() if isinstance(section, DynamicSection) else ()
        libraries = [str(getattr(tag, "needed", "")) for tag in tags]
        return [*filter(None, libraries), "ld-linux-x86-64.so.2"]
