"""Recipes: an operating system as data (TOML).

A recipe says which packages are in ``/usr``, what is left out, which units start, and how the
kernel is called. ``[os] extends`` names another recipe to start from: single values replace the
base's, lists are added to it.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from proa.wire.errors import UserError
from proa.wire.manifest import CHANNEL_NAME
from proa.wire.version import VersionError, parse

# Beside the recipe that Proa itself is made from lie its files: rootfs/, initrd/, boot/.
DEFAULT = Path(__file__).parents[3] / "os" / "recipe.toml"

FLAVOURS = ("cloud", "generic")
COMPRESSIONS = ("zstd", "lz4")


class RecipeError(UserError):
    """A recipe that cannot be used; says the file, the line and the key."""


@dataclass(frozen=True)
class ExtraFile:
    """One file that a recipe puts in the image. ``mode`` is the octal permission bits."""

    path: str
    content: str
    mode: int = 0o644


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, with everything that it extends folded in.

    ``version`` is "" where the recipe leaves it to the command line; with no ``channels`` its
    releases may go to any.
    """

    name: str = ""
    version: str = ""
    channels: tuple[str, ...] = ()
    id: str = ""
    home_url: str = ""
    group: str = ""
    server: str = ""
    kernel: str = "cloud"
    cmdline: tuple[str, ...] = ()
    compression: str = "zstd"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    files: tuple[ExtraFile, ...] = ()

    @property
    def kernel_package(self) -> str:
        """The Debian package of the kernel flavour."""
        return "linux-image-cloud-amd64" if self.kernel == "cloud" else "linux-image-amd64"

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages to install, the kernel's among them, sorted."""
        return tuple(sorted({*self.include, self.kernel_package} - {*self.exclude}))


_Rule = tuple[str, str]  # (field of Recipe, "text" or "list")

_KEYS: Mapping[str, Mapping[str, _Rule]] = {
    "os": {
        "extends": ("", "text"),
        "name": ("name", "text"),
        "id": ("id", "text"),
        "home_url": ("home_url", "text"),
        "version": ("version", "text"),
        "channels": ("channels", "list"),
        "group": ("group", "text"),
        "server": ("server", "text"),
    },
    "kernel": {
        "flavour": ("kernel", "text"),
        "cmdline": ("cmdline", "list"),
        "cmdline_extra": ("cmdline", "list"),
    },
    "image": {"compression": ("compression", "text")},
    "packages": {"include": ("include", "list"), "exclude": ("exclude", "list")},
    "remove": {"paths": ("remove", "list")},
    "units": {
        "enable": ("enable", "list"),
        "mask": ("mask", "list"),
    },
}
_FILE_KEYS = ("path", "content", "mode")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|target|mount|automount|path)")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def load(path: Path) -> Recipe:
    """Read a recipe and everything that it extends, or raise :class:`RecipeError`."""
    return _load(path.absolute(), ())


def _load(path: Path, above: tuple[Path, ...]) -> Recipe:
    if path in above:
        raise RecipeError(f"{path} extends itself")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib's message ends with "(at line N, column M)".
        raise RecipeError(f"{path}: {error}") from None
    source = _Source(path, text)
    base = Recipe()
    extends = document.get("os", {}) if isinstance(document.get("os"), dict) else {}
    if isinstance(parent := extends.get("extends"), str):
        base = _load((path.parent / parent).absolute(), (*above, path))
    recipe = _merge(base, document, source)
    _check(recipe, source)
    return recipe


@dataclass(frozen=True)
class _Source:
    """The text of one recipe, to say where in it something is wrong."""

    path: Path
    text: str

    def error(self, table: str, key: str, what: str) -> RecipeError:
        line = _line_of(self.text, table, key)
        where = f"{table}.{key}" if table and key else (table or key)
        return RecipeError(f"{self.path}, line {line}: {where}: {what}")


def _line_of(text: str, table: str, key: str) -> int:
    """Return the line of ``key`` in ``[table]``; of the table, or 1, if there is no such line."""
    current, table_line = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]\]?", line):
            current = header.group(1)
            table_line = number if current == table else table_line
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return table_line


def _merge(base: Recipe, document: Mapping[str, Any], source: _Source) -> Recipe:
    changes: dict[str, Any] = {}
    for table, content in document.items():
        if table == "files":
            changes["files"] = base.files + _files(content, source)
            continue
        rules = _KEYS.get(table)
        if rules is None:
            raise source.error(table, "", _unknown("table", table, [*_KEYS, "files"]))
        if not isinstance(content, dict):
            raise source.error("", table, "must be a table")
        for key, value in content.items():
            if key not in rules:
                raise source.error(table, key, _unknown("key", key, list(rules)))
            field, kind = rules[key]
            if not field:
                continue
            if kind == "text":
                if not isinstance(value, str):
                    raise source.error(table, key, "must be a string")
                changes[field] = value
                continue
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise source.error(table, key, "must be a list of strings")
            start = changes.get(field, getattr(base, field))
            changes[field] = tuple(dict.fromkeys((*start, *value)))
    return dataclasses.replace(base, **changes)


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
    return f"no such {kind}{meant}"


def _files(content: Any, source: _Source) -> tuple[ExtraFile, ...]:
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise source.error("files", "", "write each file as [[files]]")
    result = []
    for item in content:
        for key in item:
            if key not in _FILE_KEYS:
                raise source.error("files", key, _unknown("key", key, list(_FILE_KEYS)))
        path, text, mode = item.get("path"), item.get("content"), item.get("mode", "0644")
        if not isinstance(path, str) or not _is_clean(path):
            raise source.error("files", "path", "must be an absolute path below /usr or /etc")
        if f"{path}/".startswith("/usr/local/"):
            what = f"{path} is the owner's, on each machine's /var; put it elsewhere below /usr"
            raise source.error("files", "path", what)
        if not isinstance(text, str):
            raise source.error("files", "content", f"must be a string (file {path})")
        if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):
            raise source.error("files", "mode", f'must be like "0644", not {mode!r}')
        result.append(ExtraFile(path, text, int(mode, 8)))
    return tuple(result)


def _is_clean(path: str) -> bool:
    return path.startswith(("/usr/", "/etc/")) and not {"", ".", ".."} & {*path.split("/")[1:]}


def _check(recipe: Recipe, source: _Source) -> None:
    if recipe.kernel not in FLAVOURS:
        raise source.error("kernel", "flavour", f"must be one of {', '.join(FLAVOURS)}")
    if recipe.compression not in COMPRESSIONS:
        raise source.error("image", "compression", f"must be one of {', '.join(COMPRESSIONS)}")
    if not _NAME.fullmatch(recipe.id):
        raise source.error("os", "id", "must be a short lower-case word")
    if recipe.version:
        try:
            parse(recipe.version)
        except VersionError as error:
            raise source.error("os", "version", str(error)) from None
    for name in recipe.channels:
        if not CHANNEL_NAME.fullmatch(name):
            raise source.error("os", "channels", f"{name!r} cannot name a channel")
    for key in ("include", "exclude"):
        for name in getattr(recipe, key):
            if not _PACKAGE.fullmatch(name):
                raise source.error("packages", key, f"{name!r} is not a Debian package name")
    for key in ("enable", "mask"):
        for name in getattr(recipe, key):
            if not _UNIT.fullmatch(name):
                raise source.error("units", key, f"{name!r} is not a unit name")
    for pattern in recipe.remove:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise source.error("remove", "paths", f"{pattern!r} must be a path below / without it")
    for option in recipe.cmdline:
        if not option.isprintable() or '"' in option:
            raise source.error("kernel", "cmdline", f"{option!r} cannot be a kernel option")
