"""What `wire` knows of a /usr image and its verity tree holds for a whole one, to the last byte."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proa import paths
from proa.factory import build, image, recipe
from proa.factory import cache as caches
from proa.wire import codec, verity
from proa.wire.codec import Algorithm, Codec, Encoding
from proa.wire.erofs import Image, PlainFile
from proa.wire.version import parse

pytestmark = pytest.mark.machine

# Where the SDK's mkfs.erofs has its libraries from.
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Packed:
    """A packed /usr, what it was packed from, and a codec with the libraries that packed it."""

    usr: image.Usr
    tree: Path
    image: Image
    codec: Codec
    encoding: Encoding


@pytest.fixture(scope="module", params=["zstd", "lz4"])
def packed(request: pytest.FixtureRequest) -> Iterator[Packed]:
    cache = paths.cache_dir()
    _, tools, tar = build.prepare(recipe.load(recipe.DEFAULT).packages, cache, print)
    with caches.scratch(cache) as work:
        out = work / "out"
        out.mkdir()
        (work / "tree").mkdir()
        subprocess.run(
            ["tar", "-C", work / "tree", "--numeric-owner", "--xattrs", "-xpf", tar], check=True
        )
        usr = image.make_usr(work, out, tools, parse("7.0.0"), 1_700_000_000, request.param)
        libraries = tools.path / _LIBRARIES
        algorithm: Algorithm = request.param
        with (
            usr.image.open("rb") as file,
            Codec(str(libraries / "libzstd.so.1"), str(libraries / "liblz4.so.1")) as made,
        ):
            yield Packed(
                usr,
                work / "tree/usr",
                Image(
                    lambda offset, size: os.pread(file.fileno(), size, offset),
                    usr.image.stat().st_size,
                ),
                made,
                Encoding(algorithm),
            )


def test_every_entry_is_as_in_the_tree(packed: Packed) -> None:
    seen = set()
    numbers: dict[int, tuple[int, int]] = {}
    for entry in packed.image.walk():
        path = packed.tree / entry.path
        info = path.lstat()
        inode = entry.inode
        seen.add(path)
        assert (inode.mode, inode.uid, inode.gid) == (info.st_mode, info.st_uid, info.st_gid), path
        # Names that share an inode in the tree share one in the image.
        assert numbers.setdefault(inode.nid, (info.st_dev, info.st_ino)) == (
            info.st_dev,
            info.st_ino,
        )
        if entry.is_symlink:
            assert packed.image.target(inode, packed.codec) == str(path.readlink())
        elif entry.is_file:
            plain = PlainFile(packed.image._read, packed.image.extents(inode), packed.codec)
            assert plain.size == info.st_size
            with path.open("rb") as file:
                for offset in range(0, info.st_size, 1 << 20):
                    assert plain.read(offset, 1 << 20) == file.read(1 << 20), path
    assert seen == {packed.tree, *packed.tree.rglob("*")}


def test_every_cluster_comes_out_as_mkfs_made_it(packed: Packed) -> None:
    done: set[int] = set()
    clusters = 0
    different = []
    for entry in packed.image.walk():
        inode = entry.inode
        if not stat.S_ISREG(inode.mode) or inode.nid in done:
            continue
        done.add(inode.nid)
        extents = packed.image.extents(inode)
        plain = PlainFile(packed.image._read, extents, packed.codec)
        for extent in extents:
            if extent.algorithm == "raw":
                continue
            end = extent.logical + extent.plain
            stop = min(codec.ahead_end(extent.logical, inode.size), end + codec.LZ4_AHEAD)
            ahead = plain.read(end, stop - end) if packed.encoding.algorithm == "lz4" else b""
            made = packed.codec.encode(
                packed.encoding, plain.read(extent.logical, extent.plain), extent.stored, ahead
            )
            clusters += 1
            if made != packed.image.stored(extent):
                different.append((entry.path, extent))
    print(f"{clusters} clusters of {packed.encoding.algorithm}")
    assert clusters > 5000
    assert different == []


def test_the_verity_tree_is_that_of_veritysetup(packed: Packed) -> None:
    device = packed.usr.verity.read_bytes()
    salt, uuid, blocks = verity.read_superblock(device)
    made = verity.Tree(salt)
    with packed.usr.image.open("rb") as file:
        while piece := file.read(1 << 20):
            made.update(piece)
    assert made.finish() == packed.usr.root_hash
    assert made.data_blocks == blocks
    assert b"".join(made.device(uuid)) == device
