"""The initrd: a selection from the files of ``/usr``, so that it is no second system.

What goes in is data (``os/initrd.toml``): programs, units and kernel modules by name. The libraries
that programs need and the modules that modules need are worked out here.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from proa.wire.errors import UserError

_LIBRARY_PATHS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib64",
    "usr/lib",
)
_UNIT_DIRECTORY = "usr/lib/systemd/system"
_MODULE_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")

# The groups that udev's rules name; base-passwd's numbers, else any that are free.
_GROUPS = {
    "root": 0,
    "tty": 5,
    "disk": 6,
    "lp": 7,
    "kmem": 15,
    "dialout": 20,
    "cdrom": 24,
    "tape": 26,
    "audio": 29,
    "video": 44,
    "render": 992,
    "kvm": 993,
    "sgx": 994,
    "input": 995,
}


@dataclass(frozen=True)
class Contents:
    """What an initrd is made of: globs of files, names of units, patterns of module paths."""

    files: tuple[str, ...]
    units: tuple[str, ...]
    modules: tuple[str, ...]


def load(path: Path) -> Contents:
    """Read ``initrd.toml``."""
    try:
        document = tomllib.loads(path.read_text())
        lists = {key: tuple(document.pop(key)) for key in ("files", "units", "modules")}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    if document:
        raise UserError(f"{path}: no such key: {', '.join(document)}")
    return Contents(**lists)


def fill(target: Path, tree: Path, contents: Contents, kernel: str) -> None:
    """Copy what ``contents`` names from the package tree ``tree`` to the empty ``target``."""
    files = set(_named(tree, contents.files))
    files |= set(_units(tree, contents.units))
    files |= set(_libraries(tree, files))
    for name in sorted(files):
        _copy(tree / name, target / name)
    _modules(target, tree, contents.modules, kernel)
    _skeleton(target)


def _named(tree: Path, patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        found = sorted(tree.glob(pattern))
        if not found:
            raise UserError(f"initrd.toml: files: {pattern!r} is not in the package tree")
        for path in found:
            yield from _with_links(tree, path.relative_to(tree).as_posix())


def _with_links(tree: Path, name: str) -> Iterator[str]:
    """Yield ``name`` and, while it is a symbolic link, what it points to."""
    for _ in range(8):
        yield name
        path = tree / name
        if not path.is_symlink():
            return
        link = PurePosixPath(path.readlink().as_posix())
        joined = link if link.is_absolute() else PurePosixPath("/") / name / ".." / link
        name = _normal(joined)
    raise UserError(f"{name}: too many symbolic links")


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    # Debian's merged /usr: /lib is usr/lib.
    if parts[0] in ("bin", "sbin", "lib", "lib64"):
        parts.insert(0, "usr")
    return "/".join(parts)


def _units(tree: Path, names: Iterable[str]) -> Iterator[str]:
    chosen = set(names)
    directory = tree / _UNIT_DIRECTORY
    for name in chosen:
        if not (directory / name).exists():
            raise UserError(f"initrd.toml: units: {name!r} is not in the package tree")
        yield from _with_links(tree, f"{_UNIT_DIRECTORY}/{name}")
    for wants in sorted(directory.glob("*.wants")):
        if wants.name.removesuffix(".wants") in chosen:
            for link in sorted(wants.iterdir()):
                if link.name in chosen:
                    yield link.relative_to(tree).as_posix()


def _libraries(tree: Path, names: Iterable[str]) -> Iterator[str]:
    todo, seen = list(names), set(names)
    while todo:
        path = tree / todo.pop()
        if path.is_symlink() or not path.is_file():
            continue
        for library in needed(path):
            for name in _with_links(tree, _find_library(tree, library, path)):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
                    yield name


def needed(path: Path) -> tuple[str, ...]:
    """Return what an ELF file needs; nothing for other files.

    Libraries by name, the interpreter by its absolute path.
    """
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return ()
        file.seek(0)
        try:
            elf = ELFFile(file)
            names = []
            for segment in elf.iter_segments():
                if isinstance(segment, InterpSegment):
                    names.append(segment.get_interp_name())
            dynamic = elf.get_section_by_name(".dynamic")
            if isinstance(dynamic, DynamicSection):
                # pyelftools gives a tag the name of what it holds as an attribute.
                names += [str(getattr(tag, "needed")) for tag in dynamic.iter_tags("DT_NEEDED")]  # noqa: B009
        except ELFError as error:
            raise UserError(f"{path}: {error}") from None
    return tuple(names)


def _find_library(tree: Path, library: str, wanted_by: Path) -> str:
    if library.startswith("/"):
        return _normal(PurePosixPath(library))
    for directory in _LIBRARY_PATHS:
        if (tree / directory / library).exists():
            return f"{directory}/{library}"
    raise UserError(f"{wanted_by}: its library {library} is not in the package tree")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        if not target.is_symlink():
            target.symlink_to(source.readlink())
    elif source.is_file():
        shutil.copy2(source, target)


def _modules(target: Path, tree: Path, patterns: Iterable[str], kernel: str) -> None:
    source = tree / "usr/lib/modules" / kernel
    destination = target / "usr/lib/modules" / kernel
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    depends = read_dependencies((source / "modules.dep").read_text())
    soft = read_soft_dependencies((source / "modules.softdep").read_text())
    start = [module for module in depends if wanted.search(f"/{module}")]
    for module in closure(start, depends, soft):
        # Unpacked here, for the whole initrd is compressed once and better.
        out = destination / _MODULE_SUFFIX.sub(".ko", module)
        out.parent.mkdir(parents=True, exist_ok=True)
        data = (source / module).read_bytes()
        out.write_bytes(lzma.decompress(data) if module.endswith(".xz") else data)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy2(source / name, destination / name)


def read_dependencies(text: str) -> dict[str, list[str]]:
    """Parse ``modules.dep``: module path → paths of the modules that it needs."""
    lines = (line.partition(":") for line in text.splitlines() if line)
    return {module: rest.split() for module, _, rest in lines}


def read_soft_dependencies(text: str) -> dict[str, list[str]]:
    """Parse ``modules.softdep``: module name → names of modules that it would like to have."""
    result: dict[str, list[str]] = {}
    for line in text.splitlines():
        match line.split():
            case ["softdep", name, *rest]:
                result.setdefault(name, []).extend(w for w in rest if w not in ("pre:", "post:"))
    return result


def closure(
    start: Iterable[str], depends: Mapping[str, list[str]], soft: Mapping[str, list[str]]
) -> list[str]:
    """Return ``start`` and all modules that it needs, hard or soft, sorted by path."""
    by_name = {module_name(path): path for path in depends}
    todo, result = list(start), set()
    while todo:
        path = todo.pop()
        if path in result:
            continue
        result.add(path)
        todo += depends[path]
        wished = (name.replace("-", "_") for name in soft.get(module_name(path), []))
        todo += [by_name[name] for name in wished if name in by_name]
    return sorted(result)


def module_name(path: str) -> str:
    """Return the name by which the kernel knows a module file."""
    return _MODULE_SUFFIX.sub("", PurePosixPath(path).name).replace("-", "_")


def _skeleton(target: Path) -> None:
    """Directories, the merged /usr's links, and the few files of /etc that an initrd must have."""
    for name in ("proc", "sys", "dev", "run", "tmp", "sysroot", "root", "etc", "var/tmp"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (target / "usr" / name).mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(f"usr/{name}")
    (target / "init").symlink_to("usr/lib/systemd/systemd")
    # No version: an initrd changes only when its own files do.
    release = 'NAME="Proa"\nID=proa\nPRETTY_NAME="Proa"\nVARIANT_ID=initrd\nDEFAULT_HOSTNAME=proa\n'
    (target / "etc/initrd-release").write_text(release)
    (target / "etc/os-release").symlink_to("initrd-release")
    (target / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (target / "etc/group").write_text("".join(f"{n}:x:{gid}:\n" for n, gid in _GROUPS.items()))
    (target / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    (target / "etc/machine-id").write_text("")
