"""What the repository offers, read from its metadata.

Nothing is verified here: machines trust the signatures and not this server, so a server that reads
forged metadata can only offer what no machine will take.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proa.server.errors import ServerError
from proa.wire import manifest
from proa.wire.manifest import MANIFEST, PAYLOAD_FILES, ManifestError

REPOSITORY_EXIT = 8


@dataclass(frozen=True)
class File:
    """A file of a release: its name in the repository, size in bytes, hashes in base64."""

    name: str
    size: int
    sha256_b64: str
    sha1_b64: str


@dataclass(frozen=True)
class Release:
    """A published version; ``files`` has what a machine installs, the usr image first.

    ``channels`` are those that its maker meant it for; none named means any.
    """

    version: str
    architecture: str
    files: tuple[File, ...]
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All versions, and those that were withdrawn."""

    releases: Mapping[str, Release] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()


class Reader:
    """Reads the catalogue of ``repository`` again only when its timestamp has changed."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._seen: tuple[int, int, int] | None = None
        self._catalogue = Catalogue()

    def read(self) -> Catalogue:
        """Return the current catalogue; it is empty before the first publish."""
        try:
            found = (self._repository / "metadata" / "timestamp.json").stat()
        except FileNotFoundError:
            return Catalogue()
        # Every change replaces the file by another one.
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._catalogue = load(self._repository)
            self._seen = seen
        return self._catalogue


def load(repository: Path) -> Catalogue:
    """Read the catalogue from the metadata files, or raise :class:`ServerError`."""
    folder = repository / "metadata"
    try:
        timestamp = _signed(folder / "timestamp.json")
        number = timestamp["meta"]["snapshot.json"]["version"]
        snapshot = _signed(folder / f"{number}.snapshot.json")
        number = snapshot["meta"]["targets.json"]["version"]
        targets = _signed(folder / f"{number}.targets.json")
        names = {path.partition("/")[0] for path in targets["targets"]}
        releases = {name: _release(repository, name, targets["targets"]) for name in names}
        return Catalogue(releases, frozenset(targets.get("x-proa-withdrawn", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            f"the repository {repository} cannot be read: {error!r}",
            hint="Is it the directory that was given to `proa publish --repo`?",
            code=REPOSITORY_EXIT,
        ) from None


def _signed(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())["signed"]
    return document


def _release(repository: Path, name: str, targets: Mapping[str, Any]) -> Release:
    # usr.erofs comes first: it is the one that Omaha's postinstall action gives the hash of.
    files = tuple(_file(file, targets[f"{name}/{file}"]) for file in (*PAYLOAD_FILES, MANIFEST))
    contents = _manifest(repository / "targets" / name / files[-1].name)
    return Release(name, contents.architecture, files, contents.channels)


def _file(name: str, target: Mapping[str, Any]) -> File:
    sha256 = target["hashes"]["sha256"]
    sha1 = target.get("custom", {}).get("sha1", "")
    return File(f"{sha256}.{name}", target["length"], _base64(sha256), _base64(sha1))


@dataclass(frozen=True)
class _Contents:
    """What a server wants of a manifest, which is 60 kB and is not kept."""

    architecture: str
    channels: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def _manifest(path: Path) -> _Contents:
    """Read a published manifest, whose path has its hash in it."""
    try:
        contents = manifest.load(path.read_bytes())
        return _Contents(contents.architecture, contents.channels)
    except ManifestError as error:
        raise ValueError(f"{path}: {error}") from None


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()
