"""Small erofs images of every shape that mkfs.erofs writes, and the tree that is in them.

The images are kept in tests/unit/data, as Debian 13's mkfs.erofs 1.8.6 made them (with zstd 1.5.7
and lz4 1.10.0), so that tests do not depend on the host's. They are made anew in a Debian 13 with
erofs-utils, as root, from the checkout, by ``python3 tests/support/erofs_samples.py``.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import tempfile
from hashlib import shake_256
from pathlib import Path

DATA = Path(__file__).parents[1] / "unit/data"

_TIME, _UUID = 1_700_000_000, "c0ffee00-0000-4000-8000-000000000001"

# Name of an image → mkfs.erofs's options. "zstd" and "lz4" are those of Proa's releases, but for
# the size of a cluster: with 8 KiB, small files have several.
CLUSTER = 8192
OPTIONS = {
    "zstd": ["-zzstd,level=3", f"-C{CLUSTER}", "-Eztailpacking", "--all-time"],
    # Inodes of 64 bytes, as files have that belong to a high user or are of another time.
    "lz4": ["-zlz4", f"-C{CLUSTER}", "-Eztailpacking,force-inode-extended", "--all-time"],
    # Clusters of one block.
    "small": ["-zlz4"],
}


_WORDS = (
    b"machine update image slot cluster block the of a is to and byte old new file root directory"
    b" hash tree level patch copy read write kernel boot debian proa erofs zstd frame"
).split()


def _noise(name: str, size: int) -> bytes:
    return shake_256(name.encode()).digest(size)


def text(name: str, size: int) -> bytes:
    """Words in an order that does not repeat: a third of the size when it is compressed."""
    return b" ".join(_WORDS[n % len(_WORDS)] for n in _noise(name, size // 3))[:size]


FILES: dict[str, bytes] = {
    "empty": b"",
    "tiny": b"a\n",
    "small": text("small", 3000),
    "block": text("block", 4096),
    "block-noise": _noise("block", 4096),
    "noise": _noise("noise", 5000),
    "text": text("text", 24_000),
    "hex": _noise("hex", 9000).hex().encode(),
    "zeros": bytes(300_000),
    "mixed": _noise("1", 12_000) + text("2", 9000) + bytes(9000) + text("3", 5000) + b"end",
    # Many indexes, few bytes.
    "lines": b"".join(b"line %d of many that are much the same\n" % n for n in range(12_000)),
    "d/e/f/deep": b"deep\n",
    "d/setuid": text("setuid", 5000),
    **{f"many/file-{n:03}": b"%d\n" % n for n in range(300)},
}
SYMLINKS = {"link": "tiny", "d/long-link": "../" + "x" * 200}
HARD_LINK = ("hard", "text")


def write(tree: Path) -> None:
    """Make the tree in the empty directory ``tree``."""
    for name, content in FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name, target in SYMLINKS.items():
        (tree / name).symlink_to(target)
    (tree / HARD_LINK[0]).hardlink_to(tree / HARD_LINK[1])
    (tree / "d/setuid").chmod(0o4755)
    os.setxattr(tree / "small", "user.note", b"an attribute moves what lies behind it")
    os.mkfifo(tree / "fifo")


def image(name: str) -> bytes:
    """Return the image called ``name``."""
    return lzma.decompress((DATA / f"{name}.erofs.xz").read_bytes())


def main() -> None:
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        tree.mkdir()
        write(tree)
        for name, options in OPTIONS.items():
            target = Path(directory, name)
            subprocess.run(
                ["mkfs.erofs", "--quiet", *options, f"-T{_TIME}", f"-U{_UUID}", target, tree],
                check=True,
            )
            packed = lzma.compress(target.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (DATA / f"{name}.erofs.xz").write_bytes(packed)
            print(name, target.stat().st_size, len(packed), file=sys.stderr)


if __name__ == "__main__":
    main()
