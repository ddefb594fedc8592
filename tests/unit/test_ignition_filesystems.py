"""File systems of Ignition and Butane are made and mounted as those of a cloud-config are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proa.machine.cloudconfig.changes import MakeDirectory, MakeFileSystem, Mount, SetMounts
from proa.machine.cloudconfig.keys.disks import FileSystem, MountLine
from proa.machine.cloudconfig.keys.storage import Directory
from proa.machine.cloudconfig.plan import plan

DATA = "/dev/disk/by-partlabel/data"
HEAD = "variant: fcos\nversion: 1.4.0\n"


def changes(*file_systems: Any, **storage: Any) -> list[Any]:
    document = {
        "ignition": {"version": "3.4.0"},
        "storage": {"filesystems": file_systems, **storage},
    }
    result = plan(json.dumps(document).encode())
    assert [str(problem) for problem in result.problems] == []
    return list(result.changes)


def problems(*file_systems: Any) -> list[str]:
    document = {"ignition": {"version": "3.4.0"}, "storage": {"filesystems": file_systems}}
    return [
        str(problem).partition(": ")[2] for problem in plan(json.dumps(document).encode()).problems
    ]


def butane(body: str) -> list[Any]:
    result = plan(f"{HEAD}{body}".encode())
    assert [str(problem) for problem in result.problems] == []
    return list(result.changes)


def test_a_file_system_with_everything_is_made_mounted_and_there_before_what_is_on_it() -> None:
    made = {
        "device": DATA,
        "format": "ext4",
        "path": "/srv/data",
        "wipeFilesystem": True,
        "label": "DATA",
        "uuid": "8b1bd4ee-9a2b-4a5a-a5b7-6ac1e5a0c1d2",
        "options": ["-m", "0"],
        "mountOptions": ["noatime", "discard"],
    }
    line = MountLine(DATA, "/srv/data", "ext4", "noatime,discard,nofail", "0", "2")
    options = ("-m", "0", "-U", "8b1bd4ee-9a2b-4a5a-a5b7-6ac1e5a0c1d2")
    assert changes(made, directories=[{"path": "/srv/data/web"}]) == [
        MakeFileSystem(FileSystem(DATA, "ext4", "DATA", "none", overwrite=True, options=options)),
        SetMounts((line,)),
        Mount(line),
        MakeDirectory(Directory("/srv/data/web")),
    ]


def test_without_a_path_it_is_only_made_and_what_is_there_is_not_wiped() -> None:
    assert changes({"device": DATA, "format": "vfat"}) == [
        MakeFileSystem(FileSystem(DATA, "vfat", partition="none"))
    ]
    assert changes({"device": DATA, "format": "swap", "label": "swap"}) == [
        MakeFileSystem(FileSystem(DATA, "swap", "swap", "none"))
    ]


def test_a_mount_comes_after_the_one_that_it_is_in() -> None:
    inner = {"device": "/dev/vdc", "format": "ext4", "path": "/srv/a/b"}
    outer = {"device": "/dev/vdb", "format": "ext4", "path": "/srv/a"}
    mounts = [change.line.where for change in changes(inner, outer) if isinstance(change, Mount)]
    assert mounts == ["/srv/a", "/srv/a/b"]


def test_butane_mounts_with_a_unit_and_swaps_too() -> None:
    body = f"""
storage:
  filesystems:
    - {{device: {DATA}, format: ext4, path: /srv/data, with_mount_unit: true}}
    - {{device: /dev/disk/by-partlabel/swap, format: swap, with_mount_unit: true}}
"""
    swap = MountLine("/dev/disk/by-partlabel/swap", "none", "swap", "sw,nofail", "0", "0")
    data = MountLine(DATA, "/srv/data", "ext4", "defaults,nofail")
    assert butane(body)[2:] == [SetMounts((data, swap)), Mount(data), Mount(swap)]


def test_a_cloud_config_beside_it_may_make_the_partitions() -> None:
    config = json.dumps(
        {
            "ignition": {"version": "3.4.0"},
            "storage": {"filesystems": [{"device": "/dev/vdb1", "format": "ext4"}]},
        }
    )
    message = (
        "Content-Type: multipart/mixed; boundary=b\n\n--b\n\n#cloud-config\n"
        "disk_setup: {/dev/vdb: {table_type: gpt, layout: true}}\nmounts: [[/dev/vdc, /srv/c]]\n"
        f"--b\n\n{config}\n--b--\n"
    )
    result = plan(message.encode())
    assert result.problems == ()
    assert [type(change).__name__ for change in result.changes] == [
        *("PartitionDisk", "MakeFileSystem", "SetMounts", "Mount")
    ]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"device": "/dev/../etc"}, '.device "/dev/../etc" is not a device like /dev/disk/by-id/…'),
        ({"device": "vdb"}, '.device "vdb" is not a device like /dev/disk/by-id/…'),
        ({"device": None}, " has no device or no format"),
        ({"format": "xfs"}, '.format "xfs" is not taken: Proa makes ext4, vfat, swap'),
        ({"format": "none"}, '.format "none" is not taken: Proa makes ext4, vfat, swap'),
        ({"label": "a b"}, '.label "a b" is not a label of at most 16 letters, digits and _.:@+-'),
        ({"uuid": "1234"}, '.uuid "1234" is not a uuid that ext4 can have'),
        (
            {"path": "/var"},
            ".path /var is in use from the start of the boot; mount what is below it",
        ),
        (
            {"path": "/usr/x"},
            '.path "/usr/x" is part of the read-only system; put it under /usr/local',
        ),
        ({"mountOptions": ["a b"]}, ".mountOptions has an option that fstab does not take"),
        ({"format": "swap", "path": "/srv/a"}, ".path has no meaning for swap"),
        ({"with_mount_unit": True}, ".with_mount_unit is not a known key; ignored"),
    ],
)
def test_what_is_wrong_with_a_file_system_is_told_by_its_name(wrong: Any, expected: str) -> None:
    (problem,) = problems({"device": DATA, "format": "ext4", **wrong})
    assert problem.partition(": ")[2].startswith(f"storage.filesystems[0]{expected}")


def test_a_device_is_made_a_file_system_once() -> None:
    one = {"device": DATA, "format": "ext4"}
    assert problems(one, one) == [
        "error: storage.filesystems[1].device is that of storage.filesystems[0] already"
    ]


def test_a_mount_unit_wants_a_path() -> None:
    body = f"storage: {{filesystems: [{{device: {DATA}, format: ext4, with_mount_unit: true}}]}}"
    (problem,) = plan(f"{HEAD}{body}".encode()).problems
    assert problem.message == "storage.filesystems[0] wants a path, because it is to be mounted"
