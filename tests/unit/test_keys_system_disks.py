"""Disks are made as the document says, and what is on them already is not destroyed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig.apply import apply
from proa.machine.cloudconfig.changes import MakeFileSystem, PartitionDisk
from proa.machine.cloudconfig.keys.disks import Disk, FileSystem
from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.mounting import (
    GIB,
    MIB,
    escaped_path,
    suggested_swap,
    with_lines,
)
from support.cloudconfig import statuses
from support.cloudconfig_disks import FakeMachine, notes


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


EXT4 = {"TYPE": "ext4", "LABEL": "data", "UUID": "0000-aaaa"}
GPT = {"PTTYPE": "gpt", "PTUUID": "1"}


def made(fake: FakeMachine) -> list[str]:
    """The commands that write to a disk."""
    writing = ("sfdisk", "wipefs", "mkfs", "mkswap")
    return [command for command in fake.commands if command.startswith(writing)]


# disk_setup.


def test_an_empty_disk_gets_its_table_and_the_last_partition_takes_the_rest(
    fake: FakeMachine,
) -> None:
    fake.disk("vdb", size=100 * MIB)
    body = "disk_setup: {/dev/vdb: {table_type: gpt, layout: [25, [25, 82], 50]}}\n"
    assert statuses(fake.boot(body)) == {"partition table on /dev/vdb": "done"}
    assert made(fake) == ["sfdisk --quiet --wipe=always --wipe-partitions=never -- /dev/vdb"]
    assert fake.stdin["sfdisk"] == (b"label: gpt\nsize=25MiB, type=L\nsize=25MiB, type=S\ntype=L\n")
    fake.contents["vdb"] = GPT
    assert statuses(fake.boot(body)) == {"partition table on /dev/vdb": "unchanged"}
    assert made(fake) == []


@pytest.mark.parametrize("held", [EXT4, GPT, {"TYPE": "LVM2_member"}, {"TYPE": "crypto_LUKS"}])
def test_a_disk_that_holds_anything_is_left_and_that_is_told(
    fake: FakeMachine, held: dict[str, str]
) -> None:
    fake.disk("vdb", size=100 * MIB)
    fake.contents["vdb"] = held
    outcome = fake.boot("disk_setup: {/dev/vdb: {layout: true}}\n")
    assert statuses(outcome) == {"partition table on /dev/vdb": "kept"}
    assert "overwrite: true would destroy it" in notes(outcome)["partition table on /dev/vdb"]
    assert made(fake) == []


def test_partitions_that_the_kernel_knows_are_something_too(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1, size=100 * MIB)
    assert list(statuses(fake.boot("disk_setup: {vdb: {layout: true}}\n")).values()) == ["kept"]
    assert made(fake) == []


def test_overwrite_is_done_once(fake: FakeMachine) -> None:
    fake.disk("vdb", size=100 * MIB)
    fake.contents["vdb"] = EXT4
    body = "disk_setup: {/dev/vdb: {layout: true, overwrite: true}}\n"
    fake.boot(body)
    assert made(fake) == ["sfdisk --quiet --wipe=always --wipe-partitions=always -- /dev/vdb"]
    assert fake.stdin["sfdisk"] == b"label: dos\ntype=83\n"
    assert "disk:/dev/vdb" in fake.saved[0]
    fake.boot(body)
    assert made(fake) == []


def test_a_table_that_is_as_it_should_be_stays_even_with_overwrite(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=2, size=100 * MIB)
    fake.contents["vdb"] = GPT
    swap, linux = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
    table = '{{"partitiontable": {{"label": "gpt", "partitions": [{}]}}}}'
    types = [f'{{"node": "x", "type": "{kind}"}}' for kind in (linux, swap)]
    fake.answers["sfdisk"] = (0, table.format(", ".join(types)))
    body = "disk_setup: {vdb: {table_type: gpt, layout: [50, [50, 82]], overwrite: true}}\n"
    assert list(statuses(fake.boot(body)).values()) == ["unchanged"]
    assert made(fake) == []
    fake.remembered = {}
    other = "disk_setup: {vdb: {table_type: gpt, layout: [[50, 82], 50], overwrite: true}}\n"
    fake.boot(other)
    assert made(fake) != []


@pytest.mark.parametrize("answer", ["", "[]", "{", '{"partitiontable": []}', "[" * 100_000])
def test_an_answer_of_sfdisk_that_makes_no_sense_is_no_match(
    fake: FakeMachine, answer: str
) -> None:
    fake.disk("vdb", size=100 * MIB)
    fake.contents["vdb"] = GPT
    fake.answers["sfdisk"] = (0, answer)
    outcome = fake.boot("disk_setup: {vdb: {table_type: gpt, layout: true}}\n")
    assert list(statuses(outcome).values()) == ["kept"]


def test_a_table_is_removed_only_with_overwrite(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    fake.contents["vdb"] = GPT
    fake.boot("disk_setup: {vdb: {layout: remove, overwrite: true}}\n")
    assert made(fake) == ["wipefs --all -- /dev/vdb1 /dev/vdb"]


def test_a_partition_is_not_a_disk(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    outcome = fake.boot("disk_setup: {vdb1: {layout: true, overwrite: true}}\n")
    assert "is a partition, not a disk" in "".join(notes(outcome).values())


def test_a_disk_that_is_not_there_fails_that_change_alone(fake: FakeMachine) -> None:
    outcome = fake.boot("disk_setup: {/dev/vdx: {layout: true}}\nhostname: web\n")
    assert notes(outcome)["partition table on /dev/vdx"] == "there is no disk /dev/vdx"
    assert statuses(outcome)["host name web"] == "done"
    assert fake.commands == ["udevadm settle --timeout=10 --exit-if-exists=/dev/vdx"]


def test_a_share_below_a_mebibyte_is_told(fake: FakeMachine) -> None:
    fake.disk("vdb", size=4 * MIB)
    outcome = fake.boot("disk_setup: {vdb: {layout: [1, 99]}}\n")
    assert "less than 1 MiB" in "".join(notes(outcome).values())


# The disk that Proa runs from.


@pytest.mark.parametrize("name", ["vda", "vda1", "vda2", "/dev/disk/by-id/root"])
def test_the_disk_that_proa_runs_from_is_never_written_to(fake: FakeMachine, name: str) -> None:
    (fake.root / "dev/disk/by-id").mkdir()
    (fake.root / "dev/disk/by-id/root").symlink_to("../../vda")
    outcome = fake.boot(
        f"disk_setup: {{{name}: {{layout: true, overwrite: true}}}}\n"
        f"fs_setup: [{{device: {name}, partition: none, filesystem: ext4, overwrite: true}}]\n"
    )
    assert set(statuses(outcome).values()) == {"failed"}
    assert made(fake) == []


def test_what_lies_below_verity_is_the_disk_that_proa_runs_from(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    (fake.root / "sys/devices/virtual/dm-0/slaves/vdb1").touch()
    outcome = fake.boot("disk_setup: {vdb: {layout: true, overwrite: true}}\n")
    assert notes(outcome)["partition table on /dev/vdb"] == (
        "vdb is on the disk that Proa runs from"
    )


def test_a_volume_on_the_disk_that_proa_runs_from_is_on_that_disk(fake: FakeMachine) -> None:
    fake.device("dm-1", "sys/devices/virtual/dm-1", "253:1")
    slaves = fake.root / "sys/devices/virtual/dm-1/slaves"
    slaves.mkdir()
    (slaves / "vda1").touch()
    fake.boot("fs_setup: [{device: /dev/dm-1, filesystem: ext4, overwrite: true}]\n")
    assert made(fake) == []


def test_a_disk_in_use_is_not_written_to(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=2)
    fake.mount("/data", "268:1")
    outcome = fake.boot("disk_setup: {vdb: {layout: true, overwrite: true}}\n")
    assert notes(outcome) == {"partition table on /dev/vdb": "vdb is in use"}
    fs = "fs_setup: [{device: vdb, partition: %d, filesystem: ext4, overwrite: true}]\n"
    assert notes(fake.boot(fs % 1))["file system ext4 on /dev/vdb"] == "vdb1 is in use"
    fake.boot(fs % 2)
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/vdb2"]


def test_swap_and_raid_are_use_too(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    (fake.root / "proc/swaps").write_text("Filename Type\n/dev/vdb1 partition 1 0 -2\n")
    body = "fs_setup: [{device: vdb1, filesystem: ext4, overwrite: true}]\n"
    assert "".join(notes(fake.boot(body)).values()) == "vdb1 is in use"
    fake.disk("vdc")
    (fake.root / "sys/devices/vdc/holders").mkdir()
    (fake.root / "sys/devices/vdc/holders/md0").touch()
    body = "fs_setup: [{device: vdc, filesystem: ext4, overwrite: true}]\n"
    assert "".join(notes(fake.boot(body)).values()) == "vdc is in use"


def test_without_knowing_its_own_disk_proa_writes_to_none(fake: FakeMachine) -> None:
    fake.disk("vdb")
    (fake.root / "proc/self/mountinfo").write_text("")
    outcome = fake.boot("fs_setup: [{device: vdb, filesystem: ext4}]\n")
    assert "it cannot be told" in "".join(notes(outcome).values())
    (fake.root / "proc/self/mountinfo").unlink()
    fake.boot("fs_setup: [{device: vdb, filesystem: ext4}]\n")
    assert made(fake) == []


# fs_setup.


def test_a_file_system_is_made_under_a_name_that_says_unfinished(fake: FakeMachine) -> None:
    fake.disk("vdb")
    body = "fs_setup: [{device: vdb, filesystem: ext4, label: data, extra_opts: [-m, 0]}]\n"
    assert list(statuses(fake.boot(body)).values()) == ["done"]
    assert fake.commands[:2] == [
        "mkfs.ext4 -q -F -m 0 -L proa-unfinished -- /dev/vdb",
        "e2label /dev/vdb data",
    ]
    fake.boot(body)
    assert fake.commands == []


@pytest.mark.parametrize(
    ("kind", "label", "commands"),
    [
        (
            "vfat",
            "DATA",
            ["mkfs.vfat -I -n PROA-UNDONE -- /dev/vdb", "fatlabel /dev/vdb DATA"],
        ),
        ("vfat", "", ["mkfs.vfat -I -n PROA-UNDONE -- /dev/vdb", "fatlabel --reset /dev/vdb"]),
        (
            "swap",
            "s",
            [
                "mkswap --force --label proa-unfinished -- /dev/vdb",
                "swaplabel --label s -- /dev/vdb",
            ],
        ),
    ],
)
def test_other_kinds_likewise(
    fake: FakeMachine, kind: str, label: str, commands: list[str]
) -> None:
    fake.disk("vdb")
    fake.boot(f"fs_setup: [{{device: vdb, filesystem: {kind}, label: '{label}'}}]\n")
    assert fake.commands[:2] == commands


@pytest.mark.parametrize("label", ["proa-unfinished", "PROA-UNDONE"])
def test_a_file_system_that_the_power_cut_is_made_again(fake: FakeMachine, label: str) -> None:
    fake.disk("vdb")
    fake.contents["vdb"] = {"TYPE": "ext4", "LABEL": label}
    outcome = fake.boot("fs_setup: [{device: vdb, filesystem: ext4, label: data}]\n")
    assert list(statuses(outcome).values()) == ["done"]


@pytest.mark.parametrize("partition", ["none", "any", "auto", "1"])
def test_what_is_there_already_stays(fake: FakeMachine, partition: str) -> None:
    fake.disk("vdb", partitions=1)
    other = {"TYPE": "xfs", "LABEL": "theirs"}
    fake.contents |= {"vdb": GPT, "vdb1": other}
    body = f"fs_setup: [{{device: vdb, filesystem: ext4, label: a, partition: {partition}}}]\n"
    outcome = fake.boot(body)
    assert list(statuses(outcome).values()) == ["kept"]
    assert made(fake) == []
    assert partition == "none" or 'xfs "theirs"' in "".join(notes(outcome).values())


def test_a_file_system_that_is_as_wanted_is_found(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=2)
    fake.contents |= {"vdb": GPT, "vdb1": {"TYPE": "xfs"}, "vdb2": EXT4}
    for partition in ("auto", "any", "2"):
        fake.remembered = {}
        body = f"[{{device: vdb, filesystem: ext4, label: data, partition: {partition}}}]"
        assert list(statuses(fake.boot(f"fs_setup: {body}\n")).values()) == ["unchanged"]
    other = "fs_setup: [{device: vdb, filesystem: ext4, label: other, partition: auto}]\n"
    assert list(statuses(fake.boot(other)).values()) == ["kept"]
    assert made(fake) == []


def test_auto_takes_the_first_partition_that_is_free(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=3)
    fake.contents |= {"vdb": GPT, "vdb1": {"TYPE": "xfs"}}
    fake.boot("fs_setup: [{device: vdb, filesystem: ext4, partition: auto, overwrite: true}]\n")
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/vdb2"]


def test_a_match_further_on_is_found_before_a_free_one_is_taken(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=2)
    fake.contents |= {"vdb": GPT, "vdb2": EXT4}
    body = "fs_setup: [{device: vdb, filesystem: ext4, label: data, partition: auto}]\n"
    assert list(statuses(fake.boot(body)).values()) == ["unchanged"]
    assert made(fake) == []


def test_overwrite_and_replace_fs_say_what_may_go(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    fake.contents |= {"vdb": GPT, "vdb1": {"TYPE": "ntfs", "LABEL": "Temporary Storage"}}
    body = "fs_setup: [{device: vdb, partition: 1, filesystem: ext4, replace_fs: %s}]\n"
    fake.boot(body % "xfs")
    assert made(fake) == []
    fake.boot(body % "ntfs")
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/vdb1"]
    fake.remembered = {}
    fake.boot("fs_setup: [{device: vdb.1, filesystem: ext4, overwrite: true}]\n")
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/vdb1"]


def test_overwrite_picks_no_partition_for_whoever_named_none(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    fake.contents |= {"vdb": GPT, "vdb1": {"TYPE": "xfs"}}
    body = "fs_setup: [{device: vdb, filesystem: ext4, overwrite: true}]\n"
    assert list(statuses(fake.boot(body)).values()) == ["kept"]
    assert made(fake) == []
    fake.disk("vdc")
    fake.contents["vdc"] = {"TYPE": "xfs"}
    fake.boot("fs_setup: [{device: vdc, filesystem: ext4, overwrite: true}]\n")
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/vdc"]


def test_names_of_partitions_follow_the_disk(fake: FakeMachine) -> None:
    fake.disk("nvme0n1", partitions=2)
    (fake.root / "dev/disk/by-id").mkdir()
    (fake.root / "dev/disk/by-id/nvme-x.1").symlink_to("../../nvme0n1")
    fake.boot("fs_setup: [{device: /dev/disk/by-id/nvme-x.1.2, filesystem: ext4}]\n")
    assert made(fake) == ["mkfs.ext4 -q -F -L proa-unfinished -- /dev/nvme0n1p2"]


def test_a_partition_that_is_not_there_is_told(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    outcome = fake.boot("fs_setup: [{device: vdb, partition: 4, filesystem: ext4}]\n")
    assert "".join(notes(outcome).values()) == "vdb has no partition 4"


def test_a_name_that_leads_out_of_dev_is_no_disk(fake: FakeMachine) -> None:
    (fake.root / "dev/disk/by-id").mkdir()
    (fake.root / "dev/disk/by-id/trap").symlink_to(fake.root / "etc/passwd")
    outcome = fake.boot("fs_setup: [{device: /dev/disk/by-id/trap, filesystem: ext4}]\n")
    assert "there is no disk" in "".join(notes(outcome).values())
    assert made(fake) == []


def test_a_label_is_known_to_udev_before_a_mount_looks_for_it(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    fake.boot("fs_setup: [{device: /dev/vdb, partition: 1, filesystem: ext4, label: data}]\n")
    known = fake.commands.index("udevadm wait --timeout=10 -- /dev/disk/by-label/data")
    assert known > fake.commands.index("e2label /dev/vdb1 data")


@pytest.mark.parametrize("kind", ["ext4", "swap", "vfat"])
def test_udev_looks_again_for_it_may_miss_what_is_written_while_it_looks(
    fake: FakeMachine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """udev looks at a device when one who could write to it closes it, and not while it looks."""
    fake.disk("vdb", partitions=1)
    opened, really = list[int](), os.open

    def spy(path: Path | str, flags: int, *rest: Any, **more: Any) -> int:
        if path == fake.root / "dev/vdb1" and flags & os.O_WRONLY:
            opened.append(len(fake.commands))
        return really(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", spy)
    fake.boot(f"fs_setup: [{{device: /dev/vdb, partition: 1, filesystem: {kind}}}]\n")
    (when,) = opened
    assert fake.commands[when - 2].startswith(("e2label", "swaplabel", "fatlabel"))
    assert fake.commands[when - 1] == fake.commands[when] == "udevadm settle --timeout=10"


def test_a_program_that_fails_is_told_and_tried_again_on_the_next_boot(fake: FakeMachine) -> None:
    def broken(command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "mkfs.ext4":
            raise CommandFailed("mkfs.ext4: I/O error (1)")

    fake.disk("vdb")
    fake.react = broken
    body = "fs_setup: [{device: vdb, filesystem: ext4}]\n"
    assert list(notes(fake.boot(body)).values()) == ["mkfs.ext4: I/O error (1)"]
    fake.react = lambda command, stdin: None
    assert list(statuses(fake.boot(body)).values()) == ["done"]


_HELD = st.sampled_from([{}, EXT4, GPT, {"TYPE": "xfs"}, {"TYPE": "swap"}, {"PTTYPE": "dos"}])
_DISKS = st.builds(
    Disk,
    st.sampled_from(["/dev/vda", "/dev/vdb", "/dev/vdb1"]),
    st.sampled_from(["mbr", "gpt"]),
    st.sampled_from([(), ((100_000, "L"),), ((50_000, "L"), (50_000, "S"))]),
    st.booleans(),
)
_FILE_SYSTEMS = st.builds(
    FileSystem,
    st.sampled_from(["/dev/vda", "/dev/vda1", "/dev/vdb", "/dev/vdb1", "/dev/vdb.2", "/dev/vdb.7"]),
    st.sampled_from(["ext4", "vfat", "swap"]),
    st.sampled_from(["", "data"]),
    st.sampled_from(["any", "auto", "none", "1", "2"]),
    st.booleans(),
    st.sampled_from(["", "xfs"]),
)


@settings(max_examples=50)
@given(
    held=st.fixed_dictionaries({"vdb": _HELD, "vdb1": _HELD, "vdb2": _HELD}),
    partitions=st.integers(0, 2),
    wish=st.one_of(_DISKS, _FILE_SYSTEMS),
)
def test_nothing_that_is_on_a_disk_goes_unless_the_document_says_so(
    held: dict[str, dict[str, str]], partitions: int, wish: Disk | FileSystem
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeMachine(Path(folder))
        fake.disk("vdb", partitions=partitions, size=64 * MIB)
        fake.contents |= held
        change = PartitionDisk(wish) if isinstance(wish, Disk) else MakeFileSystem(wish)
        apply((change,), fake.machine(), {})
        for command in made(fake):
            name = Path(command.split()[-1]).name
            assert not name.startswith("vda")
            found = fake.contents.get(name, {})
            replaced = isinstance(wish, FileSystem) and found.get("TYPE") == wish.replace
            assert wish.overwrite or not found or replaced


# Swap.


def test_a_swap_file_has_no_holes_and_is_roots_alone(fake: FakeMachine) -> None:
    outcome = fake.boot("swap: {filename: /var/swap, size: 2M}\n")
    path = fake.root / "var/swap"
    what = path.stat()
    assert what.st_size == 2 * MIB
    assert what.st_blocks * 512 >= what.st_size
    assert stat.S_IMODE(what.st_mode) == 0o600
    page = os.sysconf("SC_PAGE_SIZE")
    assert path.read_bytes()[page - 10 : page] == b"SWAPSPACE2"
    assert statuses(outcome) == {
        "swap file /var/swap": "done",
        "mounts in /etc/fstab (1)": "done",
        "swap to /var/swap": "done",
    }
    assert "/var/swap none swap sw,nofail 0 0\n" in fake.text("etc/fstab")
    assert fake.commands == ["systemctl daemon-reload", "systemctl start -- var-swap.swap"]
    assert [p.name for p in path.parent.iterdir()] == ["swap"]


def test_a_file_that_is_there_is_not_made_into_swap(fake: FakeMachine) -> None:
    (fake.root / "var").mkdir()
    (fake.root / "var/swap").write_text("mine")
    fake.boot("swap: {filename: /var/swap, size: 2M}\n")
    assert fake.text("var/swap") == "mine"


def test_a_swap_file_is_not_put_through_a_link(fake: FakeMachine) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/trap").symlink_to(fake.root / "etc")
    outcome = fake.boot("swap: {filename: /srv/trap/swap, size: 2M}\n")
    assert statuses(outcome)["swap file /srv/trap/swap"] == "failed"
    assert not (fake.root / "etc/swap").exists()


def test_what_a_cut_left_of_a_swap_file_does_not_stay(fake: FakeMachine) -> None:
    (fake.root / ".swap.img.new").write_bytes(b"\0" * 100)
    fake.boot("swap: {size: 2M}\n")
    assert (fake.root / "swap.img").stat().st_size == 2 * MIB
    assert not (fake.root / ".swap.img.new").exists()


def test_more_swap_than_there_is_room_is_told(fake: FakeMachine) -> None:
    outcome = fake.boot("swap: {size: 16T}\n")
    assert "are free" in notes(outcome)["swap file /swap.img"]
    assert not (fake.root / "swap.img").exists()


def test_swap_that_is_on_is_left(fake: FakeMachine) -> None:
    body = "swap: {filename: /var/swap, size: 2M}\n"
    fake.boot(body)
    path = fake.root / "var/swap"
    (fake.root / "proc/swaps").write_text("Filename\n/var/swap file 2044 0 -2\n")
    assert set(statuses(fake.boot(body)).values()) == {"unchanged"}
    assert fake.commands == []
    assert path.exists()


def test_auto_is_what_cloud_init_suggests() -> None:
    assert suggested_swap(GIB, 100 * GIB, None) == GIB
    assert suggested_swap(8 * GIB, 100 * GIB, None) == 4 * GIB
    assert suggested_swap(64 * GIB, 100 * GIB, None) == 8 * GIB
    assert suggested_swap(GIB, 2 * GIB, None) == GIB // 2
    assert suggested_swap(GIB, 100 * GIB, 256 * MIB) == 256 * MIB
    assert suggested_swap(GIB, GIB, 10 * GIB) == GIB * 9 // 10


def test_auto_looks_at_the_memory(fake: FakeMachine) -> None:
    (fake.root / "proc/meminfo").write_text("MemTotal:       3072 kB\nMemFree: 1 kB\n")
    fake.boot("swap: {size: auto}\n")
    assert (fake.root / "swap.img").stat().st_size == 3 * MIB


# Mounts.


def test_mounts_become_lines_of_fstab_and_are_mounted_now(fake: FakeMachine) -> None:
    (fake.root / "etc/fstab").write_text("# mine\nLABEL=x /x ext4 defaults 0 0\n")
    fake.disk("vdb", partitions=1)
    fake.disk("vdc")
    fake.contents |= {"vdb": GPT, "vdb1": EXT4}
    (fake.root / "dev/disk/by-label").mkdir()
    (fake.root / "dev/disk/by-label/logs").symlink_to("../../vdc")
    body = "mounts: [[vdb1, /data/my files], [LABEL=logs, /srv/logs, ext4, noatime]]\n"
    assert set(statuses(fake.boot(body)).values()) == {"done"}
    assert fake.text("etc/fstab") == (
        "# mine\nLABEL=x /x ext4 defaults 0 0\n"
        "# proa cloud-config: begin (written at boot; put your own lines outside)\n"
        "UUID=0000-aaaa /data/my\\040files auto defaults,nofail 0 2\n"
        "LABEL=logs /srv/logs ext4 noatime,nofail 0 2\n"
        "# proa cloud-config: end\n"
    )
    assert fake.commands == [
        "systemctl daemon-reload",
        r"systemctl start -- data-my\x20files.mount",
        "systemctl start -- srv-logs.mount",
    ]
    assert (fake.root / "data/my files").is_dir()


def test_on_the_next_boot_what_is_mounted_is_left_and_what_is_not_is_mounted(
    fake: FakeMachine,
) -> None:
    fake.disk("vdb")
    body = "mounts: [[vdb, /data]]\n"
    fake.boot(body)
    fake.boot(body)
    assert fake.commands == ["systemctl start -- data.mount"]
    fake.mount("/data", "268:0")
    assert set(statuses(fake.boot(body)).values()) == {"unchanged"}
    assert fake.commands == []


def test_a_disk_that_is_not_there_holds_up_nothing_and_is_told(fake: FakeMachine) -> None:
    outcome = fake.boot("mounts: [[/dev/disk/by-id/usb-x, /data]]\n")
    assert statuses(outcome) == {
        "mounts in /etc/fstab (1)": "done",
        "mount of /dev/disk/by-id/usb-x at /data": "failed",
    }
    assert "/dev/disk/by-id/usb-x /data auto defaults,nofail 0 2\n" in fake.text("etc/fstab")
    assert fake.commands[-1] == "systemctl --no-block start -- data.mount"


def test_a_label_that_udev_is_slow_about_is_waited_for(fake: FakeMachine) -> None:
    def react(command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "udevadm":
            (fake.root / "dev/disk/by-label").mkdir()
            (fake.root / "dev/disk/by-label/data").touch()

    fake.react = react
    outcome = fake.boot("mounts: [[LABEL=data, /data]]\n")
    assert statuses(outcome)["mount of LABEL=data at /data"] == "done"


@pytest.mark.parametrize(
    ("label", "link"),
    [
        ("(data)", "\\x28data\\x29"),
        ("a/b", "a\\x2fb"),
        ("grüße", "grüße"),
        ("v1.0:x@z#+-_", "v1.0:x@z#+-_"),
    ],
)
def test_a_label_is_found_under_the_name_that_udev_gives_it(
    fake: FakeMachine, label: str, link: str
) -> None:
    (fake.root / "dev/disk/by-label").mkdir()
    (fake.root / "dev/disk/by-label" / link).touch()
    outcome = fake.boot(f"mounts: [['LABEL={label}', /data]]\n")
    assert statuses(outcome)[f"mount of LABEL={label} at /data"] == "done"


@pytest.mark.parametrize("option", ["_netdev", "x-systemd.automount", "x-systemd.after=a.service"])
def test_a_mount_that_may_wait_for_us_is_not_waited_for(fake: FakeMachine, option: str) -> None:
    fake.boot(f"mounts: [['tmpfs', /data, tmpfs, '{option}']]\n")
    assert fake.commands[-1] == "systemctl --no-block start -- data.mount"


def test_noauto_is_not_mounted(fake: FakeMachine) -> None:
    outcome = fake.boot("mounts: [[tmpfs, /data, tmpfs, noauto]]\n")
    assert statuses(outcome)["mount of tmpfs at /data"] == "skipped"
    assert fake.commands == ["systemctl daemon-reload"]


def test_a_disk_with_partitions_means_its_first(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=2)
    fake.contents |= {"vdb": GPT, "vdb1": EXT4}
    fake.boot("mounts: [[vdb, /data]]\n")
    assert "UUID=0000-aaaa /data" in fake.text("etc/fstab")


@pytest.mark.parametrize(
    ("device", "named"),
    [
        ("vdx.2", "/dev/vdx2"),
        ("nvme0n1.2", "/dev/nvme0n1p2"),
        ("/dev/disk/by-id/x.2", "/dev/disk/by-id/x-part2"),
        ("/dev/disk/by-path/pci-0000:00:04.0", "/dev/disk/by-path/pci-0000:00:04.0"),
    ],
)
def test_a_disk_that_may_come_later_is_named_as_udev_will(
    fake: FakeMachine, device: str, named: str
) -> None:
    fake.boot(f"mounts: [['{device}', /data]]\n")
    assert f"{named} /data auto" in fake.text("etc/fstab")


def test_swap_on_a_partition_is_on_at_once(fake: FakeMachine) -> None:
    fake.disk("vdb", partitions=1)
    fake.contents |= {"vdb": GPT, "vdb1": {"TYPE": "swap", "UUID": "1234-5678"}}
    body = "mounts: [[vdb.1, none, swap, 'sw,pri=5', 0, 0]]\n"
    fake.boot(body)
    assert "UUID=1234-5678 none swap sw,pri=5,nofail 0 0\n" in fake.text("etc/fstab")
    assert fake.commands[-1] == "systemctl start -- dev-disk-by\\x2duuid-1234\\x2d5678.swap"
    (fake.root / "dev/disk/by-uuid").mkdir()
    (fake.root / "dev/disk/by-uuid/1234-5678").symlink_to("../../vdb1")
    (fake.root / "proc/swaps").write_text("Filename\n/dev/vdb1 partition 1 0 -2\n")
    assert set(statuses(fake.boot(body)).values()) == {"unchanged"}


def test_swap_that_is_not_there_yet_is_not_waited_for(fake: FakeMachine) -> None:
    outcome = fake.boot("mounts: [[/dev/vdz1, none, swap]]\n")
    assert statuses(outcome)["swap to /dev/vdz1"] == "failed"
    assert "/dev/vdz1 is not there; switched on if it comes soon" in str(notes(outcome))
    assert fake.commands[-1] == "systemctl --no-block start -- dev-vdz1.swap"


def test_a_line_that_the_owner_edits_stays_until_the_document_changes(fake: FakeMachine) -> None:
    fake.boot("mounts: [[tmpfs, /data, tmpfs]]\n")
    path = fake.root / "etc/fstab"
    path.write_text(path.read_text().replace("defaults", "noexec"))
    fake.boot("mounts: [[tmpfs, /data, tmpfs]]\n")
    assert "noexec" in path.read_text()
    fake.boot("mounts: [[tmpfs, /data2, tmpfs]]\n")
    assert "noexec" not in path.read_text()
    fake.boot("mounts: []\n")
    assert path.read_text() == ""


def test_a_link_in_place_of_a_mount_point_is_not_followed(fake: FakeMachine) -> None:
    (fake.root / "data").symlink_to(fake.root / "etc")
    outcome = fake.boot("mounts: [[tmpfs, /data, tmpfs], [tmpfs, /b, tmpfs]]\n")
    assert statuses(outcome)["mount of tmpfs at /data"] == "failed"
    assert statuses(outcome)["mount of tmpfs at /b"] == "done"


def test_units_are_named_as_systemd_names_them() -> None:
    assert escaped_path("/") == "-"
    assert escaped_path("/data") == "data"
    assert escaped_path("/srv/my-files/.a b") == r"srv-my\x2dfiles-.a\x20b"
    assert escaped_path("/.hidden") == r"\x2ehidden"
    assert escaped_path("/é") == r"\xc3\xa9"


@given(st.text(), st.lists(st.sampled_from(["a /a auto", "b /b auto"]), max_size=2))
def test_our_part_is_found_again_whatever_stands_around_it(text: str, lines: list[str]) -> None:
    once = with_lines(text, lines)
    assert with_lines(once, lines) == once
    without = with_lines(once, [])
    assert "a /a auto" in text or "a /a auto" not in without
