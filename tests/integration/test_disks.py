"""Disks made by the real programs, on plain files that a made-up sysfs calls disks.

The kernel knows no partitions of a file, so each gets a file of its own when "udev" settles.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.blocks import find, probe
from proa.machine.cloudconfig.machine import CommandFailed, Machine, ask_program, run_program
from proa.machine.cloudconfig.mounting import MIB
from proa.machine.cloudconfig.plan import plan
from proa.machine.record import replace
from support.cloudconfig import statuses
from support.cloudconfig_disks import FakeMachine, notes

PROGRAMS = ("sfdisk", "blkid", "wipefs", "mkfs.ext4", "e2label", "e2fsck", "mkswap", "swaplabel")

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS), reason="no programs for disks here"
)


class RealDisks(FakeMachine):
    """Programs that work on disks run; those that talk to systemd and udev are only noted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.cut_at = ""
        self.react = self.really

    def really(self, command: Sequence[str], stdin: bytes) -> None:
        if command[0] == self.cut_at:
            raise CommandFailed(f"{command[0]}: the power went")
        if command[0] == "udevadm":
            for name in ("vdb", "vdc"):
                self.settle(name)
        elif command[0] != "systemctl":
            run_program(command, stdin)

    def settle(self, disk: str) -> None:
        path = self.root / "dev" / disk
        if not path.exists():
            return
        for number, part in enumerate(table(path), 1):
            if not (self.root / "sys/class/block" / f"{disk}{number}").exists():
                self.partition(disk, number)
                os.truncate(self.root / "dev" / f"{disk}{number}", part["size"] * 512)

    def machine(self) -> Machine:
        return replace(super().machine(), ask=ask_program)

    def apply(self, body: str) -> Outcome:
        planned = plan(f"#cloud-config\n{body}".encode())
        assert not planned.refused, planned.problems
        outcome = apply(planned.changes, self.machine(), self.remembered)
        self.remembered = outcome.remembered
        return outcome

    def on(self, device: str) -> dict[str, str]:
        machine = self.machine()
        return probe(machine, find(machine, device))


def table(path: Path) -> list[dict[str, int]]:
    """The partitions, with start and size in sectors of 512 bytes."""
    done = subprocess.run(["sfdisk", "--json", "--", str(path)], capture_output=True, text=True)
    found = json.loads(done.stdout)["partitiontable"]["partitions"] if not done.returncode else []
    assert isinstance(found, list)
    return found


@pytest.fixture
def disks(tmp_path: Path) -> RealDisks:
    return RealDisks(tmp_path)


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_a_disk_is_partitioned_formatted_and_found_again(disks: RealDisks, kind: str) -> None:
    disks.disk("vdb", size=96 * MIB)
    body = f"""
device_aliases: {{data: /dev/vdb}}
disk_setup: {{data: {{table_type: {kind}, layout: [25, [25, 82], 50]}}}}
fs_setup:
- {{device: data.1, filesystem: ext4, label: one}}
- {{device: data, partition: 2, filesystem: swap, label: two}}
- {{device: data, partition: auto, filesystem: ext4, label: three}}
mounts: [[data.1, /one], [data.2, none, swap]]
"""
    outcome = disks.apply(body)
    assert set(statuses(outcome).values()) == {"done"}, outcome.results
    sizes = [part["size"] * 512 // MIB for part in table(disks.root / "dev/vdb")]
    assert sizes[:2] == [24, 24]
    assert 46 <= sizes[2] <= 47
    found = [disks.on(f"/dev/vdb{number}") for number in (1, 2, 3)]
    assert [(on["TYPE"], on["LABEL"]) for on in found] == [
        ("ext4", "one"),
        ("swap", "two"),
        ("ext4", "three"),
    ]
    run_program(("e2fsck", "-f", "-n", str(disks.root / "dev/vdb1")))
    fstab = (disks.root / "etc/fstab").read_text()
    assert f"UUID={found[0]['UUID']} /one auto" in fstab
    assert f"UUID={found[1]['UUID']} none swap" in fstab
    # A boot that has forgotten everything finds all of it as it should be.
    before = [(disks.root / "dev" / name).read_bytes() for name in ("vdb", "vdb1", "vdb2", "vdb3")]
    disks.remembered = {}
    made = {
        w: s for w, s in statuses(disks.apply(body)).items() if not w.startswith(("mou", "swa"))
    }
    assert set(made.values()) == {"unchanged"}, made
    assert before == [
        (disks.root / "dev" / name).read_bytes() for name in ("vdb", "vdb1", "vdb2", "vdb3")
    ]


def test_what_is_there_stays_to_the_last_byte_until_overwrite_says_otherwise(
    disks: RealDisks,
) -> None:
    path = disks.disk("vdb", size=32 * MIB)
    run_program(("mkfs.ext4", "-q", "-F", "-L", "theirs", str(path)))
    before = path.read_bytes()
    layout = "disk_setup: {vdb: {layout: true%s}}\n"
    fs = "fs_setup: [{device: vdb, filesystem: ext4, label: mine, partition: none%s}]\n"
    outcome = disks.apply(layout % "" + fs % "")
    assert set(statuses(outcome).values()) == {"kept"}
    assert 'ext4 "theirs"' in notes(outcome)["partition table on /dev/vdb"]
    assert path.read_bytes() == before
    assert set(statuses(disks.apply(fs % ", overwrite: true")).values()) == {"done"}
    assert disks.on("/dev/vdb")["LABEL"] == "mine"
    assert set(statuses(disks.apply(layout % ", overwrite: true")).values()) == {"done"}
    assert len(table(path)) == 1


def test_a_table_that_is_there_stays_until_overwrite_says_otherwise(disks: RealDisks) -> None:
    path = disks.disk("vdb", size=32 * MIB)
    run_program(("sfdisk", "--quiet", "--", str(path)), b"label: gpt\nsize=4MiB\nsize=4MiB\n")
    disks.settle("vdb")
    before = path.read_bytes()
    body = "disk_setup: {vdb: {table_type: mbr, layout: [50, 50]%s}}\n"
    assert set(statuses(disks.apply(body % "")).values()) == {"kept"}
    assert path.read_bytes() == before
    assert set(statuses(disks.apply(body % ", overwrite: true")).values()) == {"done"}
    assert disks.on("/dev/vdb")["PTTYPE"] == "dos"


@pytest.mark.parametrize(
    ("kind", "cut"), [("ext4", "e2label"), ("ext2", "e2label"), ("swap", "swaplabel")]
)
def test_a_file_system_whose_making_was_cut_is_made_again(
    disks: RealDisks, kind: str, cut: str
) -> None:
    disks.disk("vdb", size=32 * MIB)
    body = f"fs_setup: [{{device: vdb, filesystem: {kind}, label: data}}]\n"
    disks.cut_at = cut
    assert set(statuses(disks.apply(body)).values()) == {"failed"}
    assert disks.on("/dev/vdb")["LABEL"] == "proa-unfinished"
    disks.cut_at = ""
    assert set(statuses(disks.apply(body)).values()) == {"done"}
    assert disks.on("/dev/vdb")["LABEL"] == "data"


@pytest.mark.skipif(shutil.which("mkfs.vfat") is None, reason="no dosfstools here")
def test_fat_is_made_too(disks: RealDisks) -> None:
    disks.disk("vdb", size=32 * MIB)
    for label in ("DATA", ""):
        disks.remembered = {}
        body = f"[{{device: vdb, filesystem: vfat, label: '{label}', overwrite: true}}]"
        assert set(statuses(disks.apply(f"fs_setup: {body}\n")).values()) == {"done"}
        assert disks.on("/dev/vdb").get("LABEL", "") == label


def test_a_swap_file_is_what_mkswap_would_make(disks: RealDisks) -> None:
    disks.apply("swap: {filename: /var/swap, size: 8M}\n")
    path = disks.root / "var/swap"
    code, output = ask_program(("blkid", "-p", "-o", "export", "--", str(path)))
    assert code == 0
    assert "TYPE=swap" in output
    run_program(("swaplabel", "--", str(path)))
    assert b"UUID" in subprocess.run(["swaplabel", str(path)], capture_output=True).stdout
