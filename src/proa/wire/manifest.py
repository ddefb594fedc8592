"""The release manifest: what a release is made of (``manifest.json``).

A manifest names every file of a release with its size and sha256, says which architecture it is
for, and gives the verity root hash from which the partition UUIDs derive. It is a TUF target like
the files that it names, so a machine trusts it only through the repository's signatures.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proa.wire.version import Version, VersionError, parse

FORMAT = "proa-release/1"

# The files of a release that a machine installs. Everything else in a release is for people
# and for the making of disks.
USR = "usr.erofs"
USR_VERITY = "usr.verity"
UKI = "proa.efi"
PAYLOAD_FILES = (USR, USR_VERITY, UKI)
MANIFEST = "manifest.json"

# A manifest with 300 packages is about 60 kB; anything over this bound is refused unread.
MAX_BYTES = 4 << 20

# What a channel can be called.
CHANNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class ManifestError(ValueError):
    """The manifest cannot be used; the message says which field and why."""


@dataclass(frozen=True)
class File:
    """One file of a release: ``size`` in bytes, ``sha256`` as 64 lower-case hex digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """One Debian package that went into ``/usr``."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str


@dataclass(frozen=True)
class Manifest:
    """A whole release. ``root_hash`` is the dm-verity root hash of ``usr.erofs`` (sha256).

    ``channels`` are those that its maker meant it for; none named means any.
    """

    version: Version
    architecture: str
    source_date_epoch: int
    root_hash: str
    kernel: str
    files: Mapping[str, File]
    packages: tuple[Package, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    @property
    def usr_uuid(self) -> uuid.UUID:
        """Partition UUID of the usr partition: the first half of the root hash.

        Source: the Discoverable Partitions Specification, as systemd-veritysetup-generator uses it.
        """
        return uuid.UUID(self.root_hash[:32])

    @property
    def verity_uuid(self) -> uuid.UUID:
        """Partition UUID of the usr-verity partition: the second half of the root hash."""
        return uuid.UUID(self.root_hash[32:])


def dump(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON: sorted keys, indented, one final newline."""
    document = {
        "format": FORMAT,
        "version": str(manifest.version),
        "architecture": manifest.architecture,
        "source_date_epoch": manifest.source_date_epoch,
        "usr": {"root_hash": manifest.root_hash},
        "kernel": manifest.kernel,
        "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in manifest.files.items()},
        "packages": [
            {
                "name": p.name,
                "version": p.version,
                "architecture": p.architecture,
                "source": p.source,
                "source_version": p.source_version,
            }
            for p in manifest.packages
        ],
        "inputs": dict(manifest.inputs),
        "channels": list(manifest.channels),
    }
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def load(data: bytes) -> Manifest:
    """Parse a manifest, or raise :class:`ManifestError` naming the field that is wrong."""
    if len(data) > MAX_BYTES:
        raise ManifestError(f"the manifest has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest is not JSON: {error}") from None
    top = _Object(document, "manifest")
    if (got := top.text("format")) != FORMAT:
        raise ManifestError(f"format is {got!r}; this program reads {FORMAT!r}")
    try:
        version = parse(top.text("version"))
    except VersionError as error:
        raise ManifestError(f"version: {error}") from None
    root_hash = _sha256(top.object("usr").text("root_hash"), "usr.root_hash")
    files = top.object("files")
    packages = top.list("packages")
    return Manifest(
        version=version,
        architecture=top.text("architecture"),
        source_date_epoch=top.number("source_date_epoch"),
        root_hash=root_hash,
        kernel=top.text("kernel"),
        files={name: _file(files, name) for name in files.names()},
        packages=tuple(_package(p, f"packages[{i}]") for i, p in enumerate(packages)),
        inputs={name: top.object("inputs").text(name) for name in top.object("inputs").names()},
        channels=_channels(top),
    )


class _Object:
    """A JSON object whose members are read with a type check and a named error."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{where} is not an object")
        self._value: dict[str, Any] = value
        self._where = where

    def names(self) -> list[str]:
        return sorted(self._value)

    def _get(self, key: str, kind: type, what: str) -> Any:
        value = self._value.get(key)
        # bool is an int in Python; in JSON it is not a number.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ManifestError(f"{self._where}.{key} is not {what}")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, str, "a string"))

    def number(self, key: str) -> int:
        value = int(self._get(key, int, "a whole number"))
        if not 0 <= value < 1 << 63:
            raise ManifestError(f"{self._where}.{key} is out of range")
        return value

    def object(self, key: str) -> _Object:
        return _Object(self._get(key, dict, "an object"), f"{self._where}.{key}")

    def list(self, key: str) -> list[Any]:
        value: list[Any] = self._get(key, list, "a list")
        return value


def _sha256(text: str, where: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ManifestError(f"{where} is not 64 lower-case hex digits")
    return text


def _file(files: _Object, name: str) -> File:
    if not _FILE_NAME.fullmatch(name):
        raise ManifestError(f"files: {name!r} is not a plain file name")
    entry = files.object(name)
    return File(entry.number("size"), _sha256(entry.text("sha256"), f"files.{name}.sha256"))


def _channels(top: _Object) -> tuple[str, ...]:
    # Releases of before there were any have no such member.
    names = top.list("channels") if "channels" in top.names() else []
    for name in names:
        if not isinstance(name, str) or not CHANNEL_NAME.fullmatch(name):
            raise ManifestError(f"channels: {name!r} cannot name a channel")
    return tuple(names)


def _package(value: Any, where: str) -> Package:
    entry = _Object(value, where)
    return Package(
        entry.text("name"),
        entry.text("version"),
        entry.text("architecture"),
        entry.text("source"),
        entry.text("source_version"),
    )
