"""Block devices: which there are, what is on them, and which must not be touched."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import CommandFailed, Machine
from proa.machine.cloudconfig.parse import printable
from proa.machine.record import dataclass

SETTLE_SECONDS = 10

# As sysfs tells of them.


@dataclass(frozen=True)
class Block:
    """A block device. ``name`` is the kernel's, ``disk`` the name of the disk that it is on."""

    path: Path
    name: str
    disk: str
    number: int | None = None
    """Of a partition; ``None`` for a whole disk."""


def find(machine: Machine, text: str) -> Block:
    """The device of this path, or, with ``.N`` behind it, its partition N."""
    block = _look(machine, text)
    stem, dot, number = text.rpartition(".")
    if block is None and dot and re.fullmatch(r"[0-9]{1,3}", number):
        disk = _look(machine, stem)
        if disk is None:
            settle(machine, stem)
            disk = _look(machine, stem)
        if disk is not None:
            return partition_of(machine, disk, int(number))
    if block is None:
        settle(machine, text)
        block = _look(machine, text)
    if block is None:
        raise FileProblem(f"there is no disk {printable(text, 200)}")
    return block


def _look(machine: Machine, text: str) -> Block | None:
    devices = os.path.realpath(machine.root / "dev")
    path = os.path.realpath(machine.root / text.lstrip("/"))
    if not path.startswith(f"{devices}/"):
        return None
    return _named(machine, Path(path).name, Path(path))


def _named(machine: Machine, name: str, path: Path | None = None) -> Block | None:
    place = _sysfs(machine, name)
    if place is None:
        return None
    number = _number(place / "partition")
    disk = place.parent.name if number is not None else name
    return Block(path or machine.root / "dev" / name, name, disk, number)


def _sysfs(machine: Machine, name: str) -> Path | None:
    path = machine.root / "sys/class/block" / name
    return Path(os.path.realpath(path)) if path.exists() else None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) else None


def settle(machine: Machine, text: str | None = None) -> None:
    """Wait until udev has seen what changed, or (with ``text``) until this device is there."""
    command = ("udevadm", "settle", f"--timeout={SETTLE_SECONDS}")
    until = (f"--exit-if-exists={machine.root / text.lstrip('/')}",) if text else ()
    with contextlib.suppress(CommandFailed):  # a busy udev is not a reason to give up
        machine.run((*command, *until), b"")


def announce(machine: Machine, block: Block) -> None:
    """Have udev look at a device anew, and wait until it has.

    By itself it looks when a program that wrote there closes it, but not while it is looking: what
    e2label writes a moment after mkfs is then never seen. So once it is done, the device is opened
    and closed again. ``udevadm trigger`` writes below /sys, which the service at boot may not.
    """
    settle(machine)
    with contextlib.suppress(OSError):
        os.close(os.open(block.path, os.O_WRONLY | os.O_CLOEXEC))
    settle(machine)


def await_label(machine: Machine, label: str) -> None:
    """Wait until udev knows a label: when asked whether it is done it may not have begun."""
    path = machine.root / "dev/disk/by-label" / label
    with contextlib.suppress(CommandFailed):
        machine.run(("udevadm", "wait", f"--timeout={SETTLE_SECONDS}", "--", str(path)), b"")


_TAGS = {
    "UUID": "by-uuid",
    "LABEL": "by-label",
    "PARTUUID": "by-partuuid",
    "PARTLABEL": "by-partlabel",
}


def link_of(device: str) -> str | None:
    """Where udev links what fstab(5) names by a tag (``LABEL=data``); ``None`` if it names no tag.

    What a label has besides letters, digits, ``#+-.:=@_`` and what is not ASCII, udev writes as
    ``\\x`` and two digits (``encode_devnode_name`` in systemd).
    """
    tag, equals, value = device.partition("=")
    if not equals or tag not in _TAGS:
        return None
    shown = re.sub(
        r"[^0-9A-Za-z#+\-.:=@_\x80-\U0010ffff]", lambda found: f"\\x{ord(found[0]):02x}", value
    )
    return f"/dev/disk/{_TAGS[tag]}/{shown}"


def partitions(machine: Machine, disk: Block) -> list[Block]:
    """The partitions of a disk, by number."""
    place = _sysfs(machine, disk.name)
    names = sorted(p.name for p in place.iterdir()) if place is not None else []
    found = [
        _named(machine, name)
        for name in names
        if (machine.root / "sys/class/block" / name).exists()
    ]
    mine = [b for b in found if b is not None and b.number is not None and b.disk == disk.name]
    return sorted(mine, key=lambda block: block.number or 0)


def partition_of(machine: Machine, disk: Block, number: int) -> Block:
    for attempt in range(2):
        for block in partitions(machine, disk):
            if block.number == number:
                return block
        if attempt == 0:
            settle(machine)
    raise FileProblem(f"{disk.name} has no partition {number}")


# What must not be touched.


def refuse_if_used(machine: Machine, block: Block) -> None:
    """Raise :class:`FileProblem` for a device of Proa's own disk, or one that is in use."""
    system = {
        name
        for where, number in mounted(machine)
        if where in ("/", "/usr", "/boot")
        for name in _below(machine, _by_number(machine, number))
    }
    if not system:
        raise FileProblem("it cannot be told which disk Proa runs from, so none is written to")
    if _below(machine, block.name) & system:
        raise FileProblem(f"{block.name} is on the disk that Proa runs from")
    used = {
        name
        for _, number in mounted(machine)
        for name in _below(machine, _by_number(machine, number))
    }
    used |= {name for path in swaps(machine) for name in _below(machine, Path(path).name)}
    inside = [block] if block.number is not None else [block, *partitions(machine, block)]
    for part in inside:
        place = _sysfs(machine, part.name)
        if part.name in used or (place is not None and _entries(place / "holders")):
            raise FileProblem(f"{part.name} is in use")


def mounted(machine: Machine) -> list[tuple[str, str]]:
    """(mount point, major:minor) of everything that is mounted (proc_pid_mountinfo(5))."""
    try:
        text = (machine.root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise FileProblem(f"/proc/self/mountinfo: {error.strerror}") from None
    lines = [line.split(" ") for line in text.split("\n")]
    return [(_unescaped(words[4]), words[2]) for words in lines if len(words) > 5]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def swaps(machine: Machine) -> list[str]:
    try:
        text = (machine.root / "proc/swaps").read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    return [_unescaped(line.split()[0]) for line in text.split("\n")[1:] if line.split()]


def _by_number(machine: Machine, number: str) -> str:
    return Path(os.path.realpath(machine.root / "sys/dev/block" / number)).name


def _below(machine: Machine, name: str) -> set[str]:
    """The device, its disk, and all that lies below them (dm-verity, RAID, LVM)."""
    found: set[str] = set()
    left = [name]
    while left:
        block = _named(machine, left.pop())
        if block is None or block.name in found:
            continue
        found |= {block.name, block.disk}
        for place in (_sysfs(machine, block.name), _sysfs(machine, block.disk)):
            left += _entries(place / "slaves") if place is not None else ()
    return found


def _entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


_OF_THE_TABLE = ("DEVNAME", "PART_ENTRY_")
"""What blkid says of a partition with nothing on it: where it stands in the table of its disk."""


def probe(machine: Machine, block: Block) -> dict[str, str]:
    """What is on the device (``TYPE``, ``LABEL``, ``UUID``, ``PTTYPE``); empty for nothing."""
    with block.path.open("rb") as file:  # blkid says the same of nothing and of not readable
        file.read(4096)
    code, output = machine.ask(("blkid", "-p", "-o", "export", "--", str(block.path)), b"")
    if code == 2:
        return {}
    if code != 0:  # several things at once: whatever it is, it is something
        return {"TYPE": "unknown"}
    pairs = [line.split("=", 1) for line in output.splitlines() if "=" in line]
    return {name: value for name, value in pairs if not name.startswith(_OF_THE_TABLE)}


def name_of(found: dict[str, str]) -> str:
    label = f' "{printable(found["LABEL"])}"' if "LABEL" in found else ""
    if "TYPE" in found:
        return f"{printable(found['TYPE'])}{label}"
    return f"a partition table ({printable(found.get('PTTYPE', 'unknown'))})"
