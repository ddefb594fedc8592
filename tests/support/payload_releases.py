"""Two small releases with real /usr images, between which payloads can be made.

The images are kept in tests/unit/data, as Debian 13's mkfs.erofs 1.8.6 made them, so that tests do
not depend on the host's. They are made anew in a Debian 13 with erofs-utils, as root, from the
checkout, by ``python3 tests/support/payload_releases.py``.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import subprocess
import sys
import tempfile
import uuid
from hashlib import shake_256
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from proa.factory import frames
from proa.wire import manifest, verity, version
from proa.wire.codec import Zstd
from proa.wire.manifest import File, Manifest
from support import cpio as cpio_archive
from support.erofs_samples import DATA, text

_SALT = bytes(range(32))
# As os/recipe.toml has it for releases.
_OPTIONS = ["-zzstd,level=3", "-C65536", "-Eztailpacking", "--all-time", "-T1700000000"]


def _noise(name: str, size: int) -> bytes:
    return shake_256(name.encode()).digest(size)


def _patched(data: bytes, every: int) -> bytes:
    """Return ``data`` with a byte changed here and there, as a rebuilt program has."""
    changed = bytearray(data)
    for offset in range(every // 2, len(data), every):
        changed[offset] ^= 0x15
    return bytes(changed)


_LIBRARY = _noise("library", 20_000) + text("library", 120_000)
_KERNEL = _noise("kernel", 50_000)
_SAME = {f"share/doc/{n:02}": text(f"doc {n}", 500 * n) for n in range(1, 17)}

TREES: dict[str, dict[str, bytes]] = {
    "1.0.0": {
        **_SAME,
        "lib/os-release": b"VERSION_ID=1.0.0\n",
        "lib/libthing.so.1.0": _LIBRARY,
        "lib/modules/6.1.0/vmlinuz": _KERNEL,
        "bin/gone": text("gone", 9000),
        "bin/tool": text("tool", 20_000),
    },
    "1.1.0": {
        **_SAME,
        "lib/os-release": b"VERSION_ID=1.1.0\n",
        "lib/libthing.so.1.1": _patched(_LIBRARY, 3000),
        "lib/modules/6.1.1/vmlinuz": _patched(_KERNEL, 300),
        "bin/new": text("new", 9000),
        "bin/tool": text("tool", 10_000) + b"a line more\n" + text("tool", 20_000)[10_000:],
    },
}


def image(name: str) -> bytes:
    """Return the /usr image of version ``name``."""
    return lzma.decompress((DATA / f"usr-{name}.erofs.xz").read_bytes())


def make_release(directory: Path, name: str) -> Path:
    """Write the release of version ``name``, one of :data:`TREES`, as ``proa build`` does."""
    directory.mkdir(parents=True, exist_ok=True)
    usr = image(name)
    tree = verity.Tree(_SALT)
    tree.update(usr)
    root_hash = tree.finish()
    contents = {
        manifest.USR: usr,
        manifest.USR_VERITY: b"".join(tree.device(uuid.UUID(int=1))),
        manifest.UKI: _uki(name, root_hash),
    }
    for file, data in contents.items():
        (directory / file).write_bytes(data)
    content = Manifest(
        version=version.parse(name),
        architecture="amd64",
        source_date_epoch=1_700_000_000,
        root_hash=root_hash,
        kernel="6.1.0",
        files={
            file: File(len(data), hashlib.sha256(data).hexdigest())
            for file, data in contents.items()
        },
        inputs={"compression": "zstd"},
    )
    (directory / manifest.MANIFEST).write_bytes(manifest.dump(content))
    return directory


def _uki(name: str, root_hash: str) -> bytes:
    """Return a PE image of what counts: version, command line, kernel and initrd."""
    files = TREES[name]
    kernel = next(data for path, data in files.items() if path.endswith("vmlinuz"))
    library = next(data for path, data in files.items() if "libthing" in path)
    archive = _cpio({"init": _noise("init", 3000), "usr/lib/libthing.so.1": library})
    initrd = b"".join(Zstd().encode_with([archive], frames.PARAMETERS, len(archive)))
    sections = {
        ".osrel": f"ID=proa\nIMAGE_VERSION={name}\n".encode(),
        ".cmdline": f"usrhash={root_hash}".encode(),
        ".linux": kernel,
        ".initrd": initrd,
    }
    headers = bytearray(512)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, 64)
    struct.pack_into("<4s2xH12xH", headers, 64, b"PE\0\0", len(sections), 0)
    body = b""
    for number, (section, data) in enumerate(sections.items()):
        at = 88 + 40 * number
        sizes = (len(data), 0, len(data) + 100, 512 + len(body))
        struct.pack_into("<8sIIII", headers, at, section.encode(), *sizes)
        body += data + bytes(100)
    return bytes(headers) + body


def _cpio(files: dict[str, bytes]) -> bytes:
    """Return what ``cpio -H newc`` writes, as far as sizes and places go."""
    return cpio_archive.newc(files).ljust(512, b"\0")


def main() -> None:
    for name, files in TREES.items():
        with tempfile.TemporaryDirectory() as directory:
            tree, target = Path(directory, "tree"), Path(directory, "image")
            for path, data in files.items():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(data)
            options = [*_OPTIONS, "-Uc0ffee00-0000-4000-8000-000000000002"]
            subprocess.run(["mkfs.erofs", "--quiet", *options, target, tree], check=True)
            made = target.read_bytes()
            made += bytes(-len(made) % 4096)
            packed = lzma.compress(made, preset=9 | lzma.PRESET_EXTREME)
            (DATA / f"usr-{name}.erofs.xz").write_bytes(packed)
            print(name, len(made), len(packed), file=sys.stderr)


if __name__ == "__main__":
    main()
