"""What a power cut has left of a write goes with the next one, and nothing else goes with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proa.machine.cloudconfig import files

ME = (os.geteuid(), os.getegid())
LEFT = ".a.0123456789ab"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "srv").mkdir()
    return tmp_path / "srv"


def left(path: Path, when: float = 1.0) -> Path:
    """A file that a write began at ``when`` (seconds since 1970) and did not end."""
    path.write_text("half")
    os.utime(path, (when, when))
    return path


def write(folder: Path, name: str = "a", uid: int = ME[0]) -> None:
    files.write(folder.parent, f"/srv/{name}", b"whole", 0o644, uid, ME[1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_cut_left_of_a_write_goes_with_the_next_write_of_that_file(folder: Path) -> None:
    left(folder / LEFT)
    write(folder, "b")
    assert names(folder) == [LEFT, "b"]
    write(folder)
    assert names(folder) == ["a", "b"]


def test_it_goes_with_the_next_link_in_its_place_too(folder: Path) -> None:
    (folder / LEFT).symlink_to("/etc")
    os.utime(folder / LEFT, (1, 1), follow_symlinks=False)
    files.link(folder.parent, "/srv/a", "b")
    assert names(folder) == ["a"]


def test_a_link_of_such_a_name_is_removed_and_not_followed(folder: Path) -> None:
    (folder / "kept").write_text("kept")
    (folder / LEFT).symlink_to("kept")
    os.utime(folder / LEFT, (1, 1), follow_symlinks=False)
    write(folder)
    assert names(folder) == ["a", "kept"]
    assert (folder / "kept").read_text() == "kept"


@pytest.mark.parametrize(
    "name",
    [
        *("a.0123456789ab", ".b.0123456789ab", ".a.0123456789a", ".a.0123456789abc"),
        *(".a.0123456789AB", ".a.0123456789a٣", ".a.new", ".a.b.0123456789ab", ".a.bak"),
    ],
)
def test_a_file_of_any_other_name_stays(folder: Path, name: str) -> None:
    left(folder / name)
    write(folder)
    assert names(folder) == sorted(["a", name])


def test_what_was_begun_since_this_boot_stays_for_somebody_may_be_at_it(folder: Path) -> None:
    path = folder / LEFT
    path.write_text("half")
    write(folder)
    assert path.exists()


def test_a_file_with_another_name_of_its_own_stays(folder: Path) -> None:
    (folder / "theirs").hardlink_to(left(folder / LEFT))
    write(folder)
    assert (folder / LEFT).exists()


def test_a_directory_or_a_fifo_of_such_a_name_stays(folder: Path) -> None:
    (folder / LEFT).mkdir()
    os.mkfifo(folder / ".a.ba9876543210")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    write(folder)
    assert len(names(folder)) == 3


@pytest.mark.skipif(ME[0] != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_than_root_and_the_files_owner_stays(folder: Path) -> None:
    for number, uid in enumerate((0, 1000, 1001)):
        os.chown(left(folder / f".a.{number:012x}"), uid, 0)
    write(folder, uid=1000)
    assert names(folder) == [".a.000000000002", "a"]


def test_a_name_as_long_as_names_may_be_is_written(folder: Path) -> None:
    for name in ("a" * 255, "é" * 127, "日" * 85):
        write(folder, name)
        assert (folder / name).read_text() == "whole"
