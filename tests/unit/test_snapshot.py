"""What a snapshot says and pins, and what stays in the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proa.factory import build, cache, sdk, snapshot, tree
from proa.factory.snapshot import MovedOn, Snapshot
from proa.wire.errors import UserError

RELEASE = """\
-----BEGIN PGP SIGNED MESSAGE-----
Origin: Debian
Date: Sat, 14 Nov 2026 09:44:11 UTC
MD5Sum:
 0123456789abcdef0123456789abcdef 5 main/binary-amd64/Packages.xz
SHA256:
 {a}   1484264 contrib/Contents-all
 {b}   9561360 main/binary-amd64/Packages.xz
"""


def test_a_release_file_gives_the_index_hash_and_the_date() -> None:
    text = RELEASE.format(a="a" * 64, b="b" * 64)
    digest, date = snapshot.parse_release(text, "main/binary-amd64/Packages.xz")
    assert digest == "b" * 64
    assert date == 1794649451


def test_a_captive_portal_is_no_release_file() -> None:
    with pytest.raises(ValueError, match="Release file"):
        snapshot.parse_release("<html>log in</html>", "main/binary-amd64/Packages.xz")


def test_a_snapshot_is_known_by_what_it_holds() -> None:
    one = Snapshot({"trixie": "1", "trixie-security": "2"}, 5, Path("a"))
    assert one.key == Snapshot({"trixie-security": "2", "trixie": "1"}, 5, Path("b")).key
    assert one.key != Snapshot({"trixie": "1", "trixie-security": "3"}, 5, Path("a")).key
    # The date is in every time stamp of a build.
    assert one.key != Snapshot({"trixie": "1", "trixie-security": "2"}, 6, Path("a")).key


@pytest.mark.parametrize(
    ("command", "lists"),
    [
        (
            sdk.bootstrap_command(Path("/c/tree"), Path("/c/s p"), Path("/c/downloads")),
            "'/c/s p'/lists",
        ),
        (tree.options(), "/snapshot/lists"),
    ],
)
def test_nothing_is_installed_from_the_mirrors_own_newer_state(
    command: list[str], lists: str
) -> None:
    assert "--skip=update" in command
    assert any(f"cp {lists}/* " in option for option in command)


def test_an_error_of_apt_says_whether_the_archive_moved_on() -> None:
    gone = "E: Failed to fetch http://m.example/pool/x_1_all.deb  404  Not Found [IP: ::1 80]"
    away = "E: Failed to fetch http://m.example/pool/x_1_all.deb  Could not connect to m.example"
    assert isinstance(snapshot.failure("no SDK", f"Get:1\n{gone}\nE: Unable"), MovedOn)
    other = snapshot.failure("no SDK", f"Get:1\n{away}\nE: Unable")
    assert not isinstance(other, MovedOn)
    assert "Could not connect" in other.message


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_build_takes_the_newer_state_once_when_the_archive_moved_on(
    gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Snapshot({"trixie": "1"}, 5, tmp_path), Snapshot({"trixie": "2"}, 6, tmp_path)
    states = [old, new]
    broken = {state.key for state in states[:gone]}

    def current(mirrors: object, caches: Path, *, refresh: bool = False) -> Snapshot:
        return new if refresh else old

    def install(caches: Path, state: Snapshot, report: object) -> sdk.Sdk:
        if state.key in broken:
            raise MovedOn(f"{state.key} is gone")
        return sdk.Sdk(caches, state.key)

    monkeypatch.setattr(snapshot, "current", current)
    monkeypatch.setattr(sdk, "ensure", install)
    monkeypatch.setattr(tree, "ensure", lambda *_: tmp_path / "tree.tar")
    monkeypatch.setenv("PROA_MIRROR", "http://m.example/debian")
    said: list[str] = []
    if gone == 2:
        with pytest.raises(UserError, match=f"{new.key} is gone"):
            build.prepare(["jq"], tmp_path, said.append)
        return
    state, tools, packages = build.prepare(["jq"], tmp_path, said.append)
    assert (state, tools.key) == ((new, new.key) if gone else (old, old.key))
    assert packages == tmp_path / "tree.tar"
    assert any("moved on" in line for line in said) == bool(gone)


def test_the_cache_keeps_what_was_used_last_and_what_may_be_in_use(tmp_path: Path) -> None:
    day = 24 * 3600
    now = 100 * day
    for name, age in (("new", 0), ("a", 2 * day), ("b", 3 * day), ("c", 4 * day)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now - age, now - age))
    assert cache.surplus(tmp_path, 2, now) == [tmp_path / "b", tmp_path / "c"]
    # Four used within a day: each may be a build's that still goes on.
    assert cache.surplus(tmp_path, 2, now - 4 * day + 1) == []
    assert cache.surplus(tmp_path / "never", 2, now) == []


def test_pruning_leaves_the_lasting_things_alone(tmp_path: Path) -> None:
    kept = ["venv-1/bin/python", "probe", "downloads/apt/x_1_all.deb", "trees/new.tar"]
    old = ["work-abc/tree/usr/bin/x", *(f"initrds/{number:02}.zst" for number in range(25))]
    for name in [*kept, *old]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for entry in [tmp_path / "work-abc", *(tmp_path / "initrds").iterdir()]:
        os.utime(entry, (0, 0))
    cache.prune(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {*kept} < left
    assert len(left) == len(kept) + cache.KEEP["initrds"]


def test_a_store_of_patches_keeps_to_its_size_and_leaves_other_files_alone(tmp_path: Path) -> None:
    day = 24 * 3600
    now = 100 * day
    patches = {}
    for age in (0, 2, 3, 4):
        name = f"a{age}".ljust(64, "0")
        patches[age] = tmp_path / name[:2] / name
    left_over = patches[4].with_name(f".{'a4'.ljust(64, '1')}.123")
    others = [tmp_path / "a4/my.txt", tmp_path / "b0" / patches[4].name, tmp_path / "notes"]
    ages = {patch: age for age, patch in patches.items()}
    for file in [*ages, left_over, *others]:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        used = now - ages.get(file, 50) * day
        os.utime(file, (used, used))
    cache.prune_patches(tmp_path, now, 250)
    left = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {patches[0], patches[2], *others}
    cache.prune_patches(tmp_path, now - 2 * day, 0)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == left
    cache.prune_patches(tmp_path / "never", now)


def test_a_downloaded_package_is_known_by_the_name_that_apt_gives_it() -> None:
    index = (
        "Package: less\nArchitecture: amd64\nVersion: 668-1\n\n"
        "Package: bind9-host\nSource: bind9\nVersion: 1:9.20.15-1~deb13u1\nArchitecture: amd64\n"
    )
    assert snapshot.file_names(index.splitlines(keepends=True)) == {
        "less_668-1_amd64.deb",
        "bind9-host_1%3a9.20.15-1~deb13u1_amd64.deb",
    }
