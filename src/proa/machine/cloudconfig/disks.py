"""Partition tables and file systems: with care for what is on a disk already.

What a disk holds is never destroyed unless the document says ``overwrite`` (or names, with
``replace_fs``, the kind of file system that may go), and the disk that Proa runs from never at all.
What the document asks for once stays as it is from then on, whatever becomes of it.
"""

from __future__ import annotations

import json
import os

from proa.machine.cloudconfig.blocks import (
    Block,
    announce,
    await_label,
    find,
    name_of,
    partition_of,
    partitions,
    probe,
    refuse_if_used,
    settle,
)
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.disks import WHOLE, Disk, FileSystem
from proa.machine.cloudconfig.machine import Machine, Status

MIB = 1024 * 1024

# disk_setup.

_GPT_TYPES = {
    "L": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "S": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
    "U": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "V": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
    "R": "A19D880F-05FC-4D3B-A006-743F0F84911E",
}


def partition(machine: Machine, disk: Disk, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    block = find(machine, disk.device)
    if block.number is not None:
        raise FileProblem(f"{disk.device} is a partition, not a disk")
    found = probe(machine, block)
    if disk.layout and _is_laid_out(machine, block, disk, found):
        return "unchanged", ""
    parts = partitions(machine, block)
    if not (found or parts) and not disk.layout:
        return "unchanged", ""
    if (found or parts) and not disk.overwrite:
        what = name_of(found) if found else "a partition table"
        return "kept", f"there is {what} on it; overwrite: true would destroy it"
    refuse_if_used(machine, block)
    if disk.layout:
        wipe = ("--wipe=always", f"--wipe-partitions={'always' if disk.overwrite else 'never'}")
        script = sfdisk_script(disk, _size_of(block)).encode()
        machine.run(("sfdisk", "--quiet", *wipe, "--", str(block.path)), script)
    else:
        machine.run(("wipefs", "--all", "--", *(str(b.path) for b in (*parts, block))), b"")
    settle(machine)
    return "done", ""


def sfdisk_script(disk: Disk, size: int) -> str:
    """What sfdisk(8) reads: sizes in MiB, the last partition to the end. ``size`` in bytes."""
    lines = [f"label: {'dos' if disk.table == 'mbr' else 'gpt'}"]
    for share, kind in disk.layout[:-1]:
        whole = size * share // WHOLE // MIB
        if whole < 1:
            raise FileProblem(f"{share / 1000:g} percent of the disk is less than 1 MiB")
        lines.append(f"size={whole}MiB, type={kind}")
    lines.append(f"type={disk.layout[-1][1]}")
    return "".join(f"{line}\n" for line in lines)


def _size_of(block: Block) -> int:
    with block.path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def _is_laid_out(machine: Machine, block: Block, disk: Disk, found: dict[str, str]) -> bool:
    """As cloud-init: the same kind of table, as many partitions, of the types that are named."""
    if found.get("PTTYPE") != ("dos" if disk.table == "mbr" else "gpt"):
        return False
    code, output = machine.ask(("sfdisk", "--json", "--", str(block.path)), b"")
    try:
        types = [part["type"] for part in json.loads(output)["partitiontable"]["partitions"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    if code or not all(isinstance(kind, str) for kind in types):
        return False
    if len(disk.layout) == 1 and disk.layout[0][0] == WHOLE:
        return len(types) >= 1
    wanted = [kind for _, kind in disk.layout]
    return len(types) == len(wanted) and all(
        asked in ("L", "83") or _GPT_TYPES.get(asked, asked).lower() == kind.lower()
        for asked, kind in zip(wanted, types, strict=True)
    )


# fs_setup.

UNFINISHED = "proa-unfinished"
_UNFINISHED_FAT = "PROA-UNDONE"
"""The label of a file system until it is whole: one that a power cut left behind is made again."""


def make_file_system(machine: Machine, wanted: FileSystem, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    block = find(machine, wanted.device)
    places = [(place, probe(machine, place)) for place in _places(machine, wanted, block)]
    # Of several partitions none was named, so none was meant.
    overwrite = wanted.overwrite and not _is_choice(wanted, block, places[0][0])
    if not overwrite and any(_is_wanted(wanted, found) for _, found in places):
        return "unchanged", ""
    for place, found in places:
        if overwrite or _may_go(wanted, found):
            refuse_if_used(machine, place)
            _make(machine, wanted, place)
            return "done", f"on {place.name}"
    held = ", ".join(f"{name_of(found)} on {place.name}" for place, found in places[:5])
    hint = "overwrite: true would destroy it" if len(places) == 1 else "no partition is free"
    return "kept", f"there is {held}; {hint}"


def _places(machine: Machine, wanted: FileSystem, block: Block) -> list[Block]:
    """Where it may go, in the order in which a free one is looked for."""
    if block.number is not None or wanted.partition == "none":
        return [block]
    if wanted.partition.isdigit():
        return [partition_of(machine, block, int(wanted.partition))]
    return partitions(machine, block) or [block]


def _is_choice(wanted: FileSystem, block: Block, place: Block) -> bool:
    """Whether ``auto`` or ``any`` leaves open which partition of the disk is meant."""
    return wanted.partition in ("auto", "any") and place.name != block.name


def _is_wanted(wanted: FileSystem, found: dict[str, str]) -> bool:
    """Whether it is there already; ``any`` takes every label, as in cloud-init."""
    named = wanted.partition == "any" or found.get("LABEL", "") == wanted.label
    return _is_whole(found) and found.get("TYPE") == wanted.kind and named


def _may_go(wanted: FileSystem, found: dict[str, str]) -> bool:
    replaced = bool(wanted.replace) and found.get("TYPE") == wanted.replace
    return not found or not _is_whole(found) or replaced


def _is_whole(found: dict[str, str]) -> bool:
    return found.get("LABEL") not in (UNFINISHED, _UNFINISHED_FAT)


def _make(machine: Machine, wanted: FileSystem, target: Block) -> None:
    path, options = str(target.path), wanted.options
    if wanted.kind == "swap":
        machine.run(("mkswap", "--force", *options, "--label", UNFINISHED, "--", path), b"")
        machine.run(("swaplabel", "--label", wanted.label, "--", path), b"")
    elif wanted.kind == "vfat":
        machine.run(("mkfs.vfat", "-I", *options, "-n", _UNFINISHED_FAT, "--", path), b"")
        label = (path, wanted.label) if wanted.label else ("--reset", path)
        machine.run(("fatlabel", *label), b"")
    else:
        program = f"mkfs.{wanted.kind}"
        machine.run((program, "-q", "-F", *options, "-L", UNFINISHED, "--", path), b"")
        machine.run(("e2label", path, wanted.label), b"")
    announce(machine, target)
    if wanted.label:  # a mount may name it
        await_label(machine, wanted.label)
