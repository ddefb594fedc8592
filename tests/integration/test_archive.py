"""A snapshot is a state of the archive, and stays it: with real apt, mmdebstrap and a real archive.

The archive is a small one, served here by HTTP, which changes as Debian's does.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.factory import snapshot
from proa.factory.snapshot import Snapshot
from proa.wire.errors import UserError
from support import mirror
from support.mirror import Mirror

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("apt-get", "dpkg-deb", "gpg", "mmdebstrap"))),
    reason="needs root, apt, dpkg, gpg and mmdebstrap",
)

MONDAY = "Mon, 23 Nov 2026 08:00:00 UTC"
TUESDAY = "Tue, 24 Nov 2026 08:00:00 UTC"


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Mirror]:
    with mirror.made(tmp_path / "mirror") as made:
        made.publish("1.0", MONDAY)
        yield made


def current(debian: Mirror, cache: Path, *, refresh: bool = False) -> Snapshot:
    return snapshot.current(debian.mirrors, cache, refresh=refresh, keyring=debian.keyring)


def install(state: Snapshot, work: Path, *, pinned: bool = True) -> str:
    """Install ``tiny`` as builds install packages; return the version that came."""
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (work / "packages").mkdir(exist_ok=True)
    sources = (state.directory / "sources.list").read_text()
    (work / "trusted.list").write_text(sources.replace("deb ", "deb [trusted=yes] "))
    source = state.directory / "sources.list" if pinned else work / "trusted.list"
    command = ["unshare", "--mount", "--propagation=private", "mmdebstrap", "--mode=root"]
    command += ["--variant=extract", "--format=directory", "--include=tiny"]
    command += [*(snapshot.pinned(state.directory) if pinned else ())]
    command += [o for o in snapshot.kept_downloads(work / "packages") if "customize" not in o]
    command += ['--extract-hook=umount "$1"/var/cache/apt/archives']
    result = subprocess.run(
        [*command, "", str(tree), str(source)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise snapshot.failure("tiny could not be installed", result.stderr)
    return (tree / "usr/share/tiny/version").read_text()


def test_what_a_snapshot_installs_does_not_change_with_the_mirror(
    debian: Mirror, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    before = current(debian, cache)
    debian.publish("2.0", TUESDAY)
    assert current(debian, cache) == before
    assert install(before, tmp_path) == "1.0"
    # So would it be without the snapshot:
    assert install(before, tmp_path, pinned=False) == "2.0"


def test_a_refreshed_snapshot_is_another_one(debian: Mirror, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = current(debian, cache)
    debian.publish("2.0", TUESDAY)
    after = current(debian, cache, refresh=True)
    assert after.key != before.key
    assert after.date == before.date + 24 * 3600
    assert install(after, tmp_path) == "2.0"
    # Another build may still be using the first one.
    assert install(before, tmp_path) == "1.0"


def test_a_package_that_the_mirror_has_dropped_is_said_to_be_gone(
    debian: Mirror, tmp_path: Path
) -> None:
    before = current(debian, tmp_path / "cache")
    debian.publish("2.0", TUESDAY)
    debian.drop("1.0")
    with pytest.raises(snapshot.MovedOn, match="no longer has packages"):
        install(before, tmp_path)


def test_an_archive_that_another_key_has_signed_is_refused(debian: Mirror, tmp_path: Path) -> None:
    with (
        mirror.made(tmp_path / "stranger") as stranger,
        pytest.raises(UserError, match="could not be read"),
    ):
        snapshot.current(debian.mirrors, tmp_path / "cache", keyring=stranger.keyring)
    assert not list((tmp_path / "cache" / "snapshots").glob("*"))


def test_an_older_snapshot_serves_while_the_mirror_is_away(debian: Mirror, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = current(debian, cache)
    os.utime(cache / "snapshot", (0, 0))
    debian.root.rename(tmp_path / "away")
    assert current(debian, cache) == before
    with pytest.raises(UserError, match="could not be read"):
        current(debian, cache, refresh=True)


def test_an_altered_snapshot_is_fetched_again(debian: Mirror, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = current(debian, cache)
    (index,) = (before.directory / "lists").glob("*_trixie_main_binary-amd64_Packages")
    index.write_text(index.read_text().replace("1.0", "6.6"))
    assert current(debian, cache) == before
    assert install(before, tmp_path) == "1.0"


def test_the_snapshot_of_another_mirror_is_not_used(debian: Mirror, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = current(debian, cache)
    with mirror.served(debian.root) as url:
        after = current(dataclasses.replace(debian, url=url), cache)
        assert after.directory != before.directory
        # It says the same, so it stands for the same SDK and the same packages.
        assert after.key == before.key
        assert install(after, tmp_path) == "1.0"
