"""The same packages and recipe give the same bytes, in another directory and at another time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa import paths
from proa.factory import build, sdk
from proa.wire import manifest
from proa.wire.version import parse

pytestmark = pytest.mark.machine


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A second cache: its own SDK and its own installation of the packages.

    Only the downloaded .debs and the state of the archive are taken from the first one, so that
    both builds mean the same packages.
    """
    first = paths.cache_dir()
    with sdk.scratch(first) as work:
        second = work / "another" / "cache"
        second.mkdir(parents=True)
        shutil.copy2(first / "snapshot.json", second)
        shutil.copytree(first / "downloads", second / "downloads")
        yield second


def test_two_builds_are_the_same_byte_for_byte(elsewhere: Path, tmp_path: Path) -> None:
    root = tmp_path / "keys" / "root.json"
    # Any file will do as trusted root, as long as both builds have the same.
    root.parent.mkdir()
    root.write_text("{}")
    made = []
    for name, cache in (("one", elsewhere), ("two", paths.cache_dir())):
        options = build.BuildOptions(
            version=parse("7.0.0"),
            root_json=root,
            out=elsewhere.parent / f"release-{name}",
            cache=cache,
            compression="lz4",
        )
        made.append(build.build(options, print))
    first, second = (manifest.load((out / manifest.MANIFEST).read_bytes()) for out in made)
    assert {*first.files} == {
        *manifest.PAYLOAD_FILES,
        "vmlinuz",
        "initrd",
        "disk.raw",
        "sbom.cdx.json",
        "sizes.txt",
        "sizes.json",
    }
    different = [name for name in first.files if first.files[name] != second.files[name]]
    assert different == []
    assert first == second
