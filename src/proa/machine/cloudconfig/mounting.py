"""Mounts and swap: lines of /etc/fstab, from which systemd makes its units at every boot."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.blocks import (
    find,
    link_of,
    mounted,
    partition_of,
    partitions,
    probe,
    settle,
    swaps,
)
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.disks import MountLine, SwapFile
from proa.machine.cloudconfig.machine import MAX_FILE, CommandFailed, Machine, Status, root_ids
from proa.machine.cloudconfig.parse import printable

MIB = 1024 * 1024
GIB = 1024 * MIB

# swap.


def make_swap_file(machine: Machine, swap: SwapFile) -> tuple[Status, str]:
    """Make the file if there is none; one that is there stays as it is (as cloud-init)."""
    if files.exists(machine.root, swap.path):
        return "unchanged", ""
    free = _free_bytes(machine, swap.path)
    size = swap.size
    if size is None:
        size = suggested_swap(_memory(machine), free, swap.most)
    size -= size % MIB
    if size < MIB:
        return "skipped", "there is no room that suits a swap file"
    if size > free * 0.95:
        raise FileProblem(f"{size // MIB} MiB are wanted and {free // MIB} are free")
    files.reserve(machine.root, swap.path, size, swap_header(size), *root_ids())
    return "done", f"{size // MIB} MiB"


def _free_bytes(machine: Machine, path: str) -> int:
    folder = (machine.root / path.lstrip("/")).parent
    while not folder.is_dir() and folder != machine.root:
        folder = folder.parent
    what = os.statvfs(folder)
    return what.f_frsize * what.f_bavail


def _memory(machine: Machine) -> int:
    """Bytes of memory (proc_meminfo(5))."""
    text = (machine.root / "proc/meminfo").read_text("ascii", "replace")
    match = re.search(r"^MemTotal:\s+(\d{1,15}) kB", text, re.MULTILINE)
    if match is None:
        raise FileProblem("/proc/meminfo does not say how much memory there is")
    return int(match[1]) * 1024


def suggested_swap(memory: int, free: int, most: int | None) -> int:
    """The size in bytes that ``auto`` means (cloud-init: cc_mounts.suggested_swapsize)."""
    limit = min(free // 4, memory * 2) if most is None else min(most, free * 9 // 10)
    if memory < 4 * GIB:
        wanted = memory
    elif memory < 16 * GIB:
        wanted = 4 * GIB
    else:
        wanted = round(math.sqrt(memory / GIB)) * GIB
    return min(wanted, limit)


def swap_header(size: int) -> bytes:
    """The first page of a swap area (include/linux/swap.h: union swap_header)."""
    page = os.sysconf("SC_PAGE_SIZE")
    info = struct.pack("=III16s16s", 1, size // page - 1, 0, os.urandom(16), b"")
    return b"\0" * 1024 + info + b"\0" * (page - 1024 - len(info) - 10) + b"SWAPSPACE2"


# mounts.

FSTAB = "/etc/fstab"
_BEGIN = "# proa cloud-config: begin (written at boot; put your own lines outside)"
_END = "# proa cloud-config: end"


def set_mounts(machine: Machine, lines: Iterable[MountLine], same_wish: bool) -> tuple[Status, str]:
    found = files.read(machine.root, FSTAB, MAX_FILE)
    before = found.content.decode("utf-8", "surrogateescape") if found else ""
    if same_wish and _BEGIN in before.split("\n"):
        return "unchanged", ""
    after = with_lines(before, [_fstab_line(machine, line) for line in lines])
    if after == before:
        return "unchanged", ""
    content = after.encode("utf-8", "surrogateescape")
    mode = found.mode if found else 0o644
    files.write(machine.root, FSTAB, content, mode, *root_ids())
    machine.run(("systemctl", "daemon-reload"), b"")  # systemd makes units of the lines
    return "done", ""


def with_lines(text: str, lines: list[str]) -> str:
    """An fstab with our part replaced by these lines; other lines stay as they are."""
    old = text.removesuffix("\n").split("\n") if text else []
    before, after = old, []
    if _BEGIN in old and _END in old[old.index(_BEGIN) :]:
        begin = old.index(_BEGIN)
        end = old.index(_END, begin)
        before, after = old[:begin], old[end + 1 :]
    block = [_BEGIN, *lines, _END] if lines else []
    return "".join(f"{line}\n" for line in (*before, *block, *after))


def _fstab_line(machine: Machine, line: MountLine) -> str:
    device = stable_name(machine, line)
    fields = (device, line.where, line.kind, line.options, line.dump, line.check)
    return " ".join(_escaped(field) for field in fields)


def _escaped(text: str) -> str:
    """fstab(5): white space and backslash as octal numbers."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in text)


def stable_name(machine: Machine, line: MountLine) -> str:
    """How fstab names the device: a name like /dev/vdb may mean another disk at the next boot.

    As cloud-init, a disk with partitions and no file system means its first partition.
    """
    text = line.device
    if not text.startswith("/dev/"):
        return text
    try:
        block = find(machine, text)
        found = probe(machine, block)
        if block.number is None and "TYPE" not in found and partitions(machine, block):
            block = partition_of(machine, block, 1)
            found = probe(machine, block)
    except (FileProblem, OSError, CommandFailed):
        return _guessed(text)
    uuid = found.get("UUID", "")
    if re.fullmatch(r"[0-9A-Za-z-]{4,64}", uuid):
        return f"UUID={uuid}"
    return _guessed(text)


def _guessed(text: str) -> str:
    """The path of ``/dev/vdb.1``, when no such disk is there to ask (udev's rules for names)."""
    stem, dot, number = text.rpartition(".")
    if not dot or not re.fullmatch(r"[0-9]{1,3}", number) or "/by-path/" in text:
        return text
    if stem.startswith("/dev/disk/"):
        return f"{stem}-part{number}"
    return f"{stem}p{number}" if stem[-1:].isdigit() else f"{stem}{number}"


# Options that make systemd wait for something that may wait for us.
_WAITS = ("_netdev", "x-systemd.after=", "x-systemd.requires", "x-systemd.automount", "noauto")


def mount(machine: Machine, line: MountLine) -> tuple[Status, str]:
    """Mount now what the next boots mount by themselves, or swap to it."""
    options = line.options.split(",")
    if "noauto" in options:
        return "skipped", "noauto"
    there = _is_there(machine, line)
    if line.swap:
        path = _swap_path(machine, line)
        if _is_swap(machine, path):
            return "unchanged", ""
        unit, used = f"{escaped_path(path)}.swap", "switched on"
    else:
        if line.where in (where for where, _ in mounted(machine)):
            return "unchanged", ""
        files.make_directory(machine.root, line.where, 0o755, *root_ids())
        unit, used = f"{escaped_path(line.where)}.mount", "mounted"
    # By way of systemd, which may be about to do it itself: that makes one job of the two.
    patient = there and not any(option.startswith(_WAITS) for option in options)
    now = () if patient else ("--no-block",)
    machine.run(("systemctl", *now, "start", "--", unit), b"")
    if not there:
        raise FileProblem(f"{printable(line.device, 200)} is not there; {used} if it comes soon")
    return "done", "" if patient else f"it is {used} as soon as what it waits for is there"


def _swap_path(machine: Machine, line: MountLine) -> str:
    """The path by which systemd knows what our line of fstab swaps to."""
    device = stable_name(machine, line)
    return link_of(device) or device


def _is_swap(machine: Machine, path: str) -> bool:
    active = {os.path.realpath(machine.root / other.lstrip("/")) for other in swaps(machine)}
    return os.path.realpath(machine.root / path.lstrip("/")) in active


def _is_there(machine: Machine, line: MountLine) -> bool:
    path = link_of(line.device)
    if path is not None:
        if not (machine.root / path.lstrip("/")).exists():
            settle(machine, path)
        return (machine.root / path.lstrip("/")).exists()
    if not line.device.startswith("/dev/"):
        return True
    try:
        find(machine, line.device)
    except (FileProblem, CommandFailed):
        return False
    return True


_PLAIN = re.compile(r"[A-Za-z0-9:_.]")


def escaped_path(path: str) -> str:
    """A path as the name of a unit, without its suffix (systemd.unit(5), "escaping")."""
    text = "/".join(part for part in path.split("/") if part)
    if not text:
        return "-"
    shown = [
        "-" if c == "/" else c if _PLAIN.match(c) and (i or c != ".") else f"\\x{ord(c):02x}"
        for i, c in enumerate(text.encode().decode("latin-1"))
    ]
    return "".join(shown)
