"""The partition table is changed as sfdisk would change it, and one copy of it is always whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import gpt
from support.machine import LABELS, load_gpt, write_gpt

NEW = UUID("12345678-9abc-4def-8123-456789abcdef")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    write_gpt(path)
    return path


def apply(disk: Path, writes: list[tuple[int, bytes]]) -> None:
    with disk.open("r+b") as file:
        for offset, data in writes:
            file.seek(offset)
            file.write(data)


def ids(disk: Path) -> list[UUID]:
    return [entry.uuid for entry in load_gpt(disk).table.entries()]


def test_partitions_are_read_with_their_names(disk: Path) -> None:
    assert tuple(entry.name for entry in load_gpt(disk).table.entries()) == LABELS


def test_a_change_keeps_all_but_the_ids(disk: Path) -> None:
    before = load_gpt(disk).table
    after = before.with_uuids({5: NEW})
    apply(disk, after.backup_writes() + after.primary_writes())
    found = load_gpt(disk)
    assert found.whole
    for old, new in zip(before.entries(), found.table.entries(), strict=True):
        assert new.uuid == (NEW if new.index == 5 else old.uuid)
        assert (new.type, new.name, new.first_lba, new.last_lba) == (
            old.type,
            old.name,
            old.first_lba,
            old.last_lba,
        )


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="needs sfdisk (Debian: fdisk)")
@pytest.mark.parametrize("label", ["gpt"])
def test_sfdisk_and_we_write_the_same_bytes(tmp_path: Path, label: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with ours.open("wb") as file:
        file.truncate(64 << 20)
    script = f"label: {label}\n" + "".join(f"size=4MiB, name={name}\n" for name in LABELS)
    subprocess.run(["sfdisk", "-q", str(ours)], input=script.encode(), check=True)
    shutil.copy(ours, theirs)
    table = load_gpt(ours).table.with_uuids({3: NEW})
    apply(ours, table.backup_writes() + table.primary_writes())
    subprocess.run(["sfdisk", "-q", "--part-uuid", str(theirs), "3", str(NEW)], check=True)
    assert ours.read_bytes() == theirs.read_bytes()
    told = subprocess.run(["sfdisk", "--json", str(ours)], check=True, capture_output=True).stdout
    partitions = json.loads(told)["partitiontable"]["partitions"]
    assert UUID(partitions[2]["uuid"]) == NEW


@given(cut=st.integers(0, 40_000), garbage=st.binary(min_size=1, max_size=16))
def test_a_change_that_is_cut_anywhere_leaves_the_old_or_the_new(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    disk = tmp_path_factory.mktemp("cut") / "disk"
    write_gpt(disk)
    table, old = load_gpt(disk).table.with_uuids({4: NEW}), ids(disk)
    left = cut
    # The copies are flushed one after the other: when one is cut, the other is whole.
    for offset, data in table.backup_writes() + table.primary_writes():
        apply(disk, [(offset, data[:left])])
        if left < len(data):
            # What was being written when the power went may be anything.
            apply(disk, [(offset + left, garbage[: len(data) - left])])
            break
        left -= len(data)
    assert ids(disk) in (old, [NEW if i == 3 else uuid for i, uuid in enumerate(old)])


@pytest.mark.parametrize("broken", ["primary", "backup"])
def test_one_broken_copy_is_noticed_and_mended_by_the_next_change(disk: Path, broken: str) -> None:
    table, size = load_gpt(disk).table, disk.stat().st_size
    apply(disk, [(512 if broken == "primary" else size - 512, b"no table")])
    found = load_gpt(disk)
    assert not found.whole
    assert found.table.entries() == table.entries()
    apply(disk, found.table.backup_writes() + found.table.primary_writes())
    assert load_gpt(disk).whole
    assert load_gpt(disk).table == table


def test_no_whole_copy_is_an_error(disk: Path) -> None:
    size = disk.stat().st_size
    apply(disk, [(512 + 60, b"x"), (size - 512 + 60, b"x")])
    with pytest.raises(gpt.GptError, match="neither copy"):
        load_gpt(disk)


@given(st.binary(max_size=4096))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    disk = bytes(512) + b"EFI PART" + data
    with pytest.raises(gpt.GptError):
        gpt.load(lambda offset, size: disk[offset : offset + size], len(disk))
