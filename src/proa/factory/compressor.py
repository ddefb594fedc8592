"""The compressor of a release: the very libraries that its machines have.

A machine makes clusters anew with its own libzstd, and another version makes other bytes. So a
payload is made, and tried, with the libraries out of the image that the machine will run while it
applies it: those of the release that it starts from. They are files of the image, taken out by
Proa's own reader; only that reading needs a libzstd of this host, of any version.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import atomic
from proa.factory.cache import used
from proa.wire.codec import Codec, CodecError, Lz4, Zstd
from proa.wire.erofs import ErofsError, Image, PlainFile
from proa.wire.errors import UserError
from proa.wire.manifest import Manifest
from proa.wire.payload import Head

# usr/lib/<architecture>/libzstd.so.1.5.7, by the name that lies in the image.
_ZSTD = re.compile(r"lib/[^/]+/libzstd\.so\.1\.[0-9.]+")
_LZ4 = re.compile(r"lib/[^/]+/liblz4\.so\.1\.[0-9.]+")
_UPSTREAM = re.compile(r"[0-9]+(\.[0-9]+)*")
_MOST = 16 << 20


@dataclass(frozen=True)
class Compressor:
    """A release's libraries; ``None`` is the host's. ``name`` is how a payload's head says it."""

    zstd: Path | None
    lz4: Path | None
    name: str

    def codec(self) -> Codec:
        return Codec(
            str(self.zstd) if self.zstd else None,
            str(self.lz4) if self.lz4 else None,
        )


def of_image(usr: Path, content: Manifest, cache: Path) -> Compressor:
    """Return the compressor of the release whose /usr image is ``usr``.

    The libraries are put into ``cache`` under their hashes. An image that has none (not one of
    Proa's own) is taken to fit this host's, unless its package list says otherwise. Raises
    :class:`UserError` where they cannot be loaded here.
    """
    found = _take_out(usr, cache)
    zstd, lz4 = found.get("libzstd"), found.get("liblz4")
    try:
        version = Zstd(str(zstd) if zstd else None).version
        if lz4:
            Lz4(str(lz4))
    except CodecError as error:
        raise UserError(
            f"{content.version}: its compressor does not run on this host: {error}",
            hint="make the payload on a newer Debian; the release works without it",
        ) from None
    wanted = _upstream(content)
    if wanted not in (None, version):
        raise UserError(
            f"{content.version} has libzstd {wanted}, and this host {version}: a machine would "
            "make other bytes",
            hint="the release's image has no libzstd of its own that could be used",
        )
    return Compressor(zstd, lz4, f"zstd {version}")


def for_head(head: Head, images: Sequence[Path], cache: Path) -> Compressor:
    """Return a compressor that can apply a payload on this host.

    It is looked for in ``images`` (of /usr), among those taken out earlier, and on this host.
    Raises :class:`UserError` if none is the one that the payload needs.
    """
    for image in images:
        found = _take_out(image, cache)
        zstd, lz4 = found.get("libzstd"), found.get("liblz4")
        if zstd and head.encoder in ("", _name(zstd)):
            return Compressor(zstd, lz4, _name(zstd))
    for path in (None, *sorted((cache / "libraries").glob("libzstd-*.so"))):
        if head.encoder in ("", _name(path)):
            if path:
                used(path)
            return Compressor(path, None, _name(path))
    raise UserError(
        f"the payload needs {head.encoder}; this host has {_name(None) or 'none'}",
        hint="give the image of a release that has it with --source",
    )


def _name(zstd: Path | None) -> str:
    try:
        return f"zstd {Zstd(str(zstd) if zstd else None).version}"
    except CodecError:
        return ""


def _upstream(content: Manifest) -> str | None:
    """Return the upstream version of the package libzstd1 ("1.5.7+dfsg-1" is 1.5.7)."""
    for package in content.packages:
        if package.name == "libzstd1" and (found := _UPSTREAM.match(package.version)):
            return found[0]
    return None


def _take_out(usr: Path, cache: Path) -> dict[str, Path]:
    found = {}
    with usr.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def read(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        try:
            image = Image(read, len(data))
            with Codec() as codec:
                for entry in image.walk():
                    size = entry.inode.size
                    for name, pattern in (("libzstd", _ZSTD), ("liblz4", _LZ4)):
                        if entry.is_file and pattern.fullmatch(entry.path) and size <= _MOST:
                            plain = PlainFile(read, image.extents(entry.inode), codec)
                            found[name] = _kept(cache, name, plain.read(0, size))
        except (ErofsError, CodecError) as error:
            raise UserError(
                f"{usr}: {error}", hint="payloads are made between images that `proa build` made"
            ) from None
    return found


def _kept(cache: Path, name: str, content: bytes) -> Path:
    path = cache / "libraries" / f"{name}-{hashlib.sha256(content).hexdigest()[:32]}.so"
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, content, mode=0o755)
    return used(path)
