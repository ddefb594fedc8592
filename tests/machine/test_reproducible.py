"""The same packages and recipe give the same bytes, in another directory and at another time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa import paths
from proa.factory import build, cache
from proa.wire import manifest
from proa.wire.version import parse

pytestmark = pytest.mark.machine


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory on the cache's file system: releases are moved to their place."""
    with cache.scratch(paths.cache_dir()) as directory:
        yield directory


def release(caches: Path, out: Path, root: Path) -> Path:
    """Build 7.0.0 from what ``caches`` knows of Debian's archive."""
    options = build.BuildOptions(
        version=parse("7.0.0"), root_json=root, out=out, cache=caches, compression="lz4"
    )
    return build.build(options, print)


def another_cache(first: Path, second: Path) -> Path:
    """A second cache, for an SDK and an installation of the packages of its own.

    Only the downloaded .debs and the state of the archive are taken from the first one, so that
    both builds mean the same packages.
    """
    second.mkdir(parents=True)
    # With a time of its own, so that it is not asked for anew in the middle of this test.
    shutil.copyfile(first / "snapshot", second / "snapshot")
    for name in ("snapshots", "downloads"):
        shutil.copytree(first / name, second / name)
    return second


def test_two_builds_are_the_same_byte_for_byte(work: Path) -> None:
    # Any file will do as trusted root, as long as both builds have the same.
    root = work / "root.json"
    root.write_text("{}")
    one = release(paths.cache_dir(), work / "one", root)
    elsewhere = another_cache(paths.cache_dir(), work / "another" / "cache")
    two = release(elsewhere, work / "another" / "two", root)
    first, second = (manifest.load((out / manifest.MANIFEST).read_bytes()) for out in (one, two))
    assert {*first.files} == {
        *manifest.PAYLOAD_FILES,
        "vmlinuz",
        "initrd",
        "disk.raw",
        "sbom.cdx.json",
        "sizes.txt",
        "sizes.json",
        "files.json",
    }
    different = [name for name in first.files if first.files[name] != second.files[name]]
    assert different == []
    assert first == second
