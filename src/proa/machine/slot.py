"""The two slots of the disk: which one runs, and the partitions of the other.

The running slot is never guessed: ``usrhash=`` on the kernel's command line is the verity root
hash that /usr was opened with; its first half is the partition's unique id. The name of that
partition (``usr-a`` or ``usr-b``) is the slot's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from proa.machine import gpt
from proa.machine.errors import Code, MachineError
from proa.machine.system import System

SLOTS = ("a", "b")

# Unique ids that an empty slot gets: no root hash gives them (they are version 5 UUIDs of names),
# so no kernel can mount a slot that is being written.
_EMPTY = UUID("6d3b1d0f-52a1-4f6b-9d53-3c1f3b2f4c11")


def other(slot: str) -> str:
    return "b" if slot == "a" else "a"


def empty_uuids(slot: str) -> tuple[UUID, UUID]:
    """Return the ids of the usr and the verity partition of an empty slot."""
    return uuid5(_EMPTY, f"usr-{slot}"), uuid5(_EMPTY, f"usr-{slot}-verity")


def uuids_of(root_hash: str) -> tuple[UUID, UUID]:
    """Return the ids that bind partitions to a root hash (64 hex digits)."""
    return UUID(root_hash[:32]), UUID(root_hash[32:])


@dataclass(frozen=True)
class Partition:
    """A partition: its number on the disk, its device node, its room in bytes."""

    index: int
    node: Path
    size: int
    uuid: UUID
    busy: bool


@dataclass(frozen=True)
class Slot:
    """One copy of the system: a usr partition and its verity partition."""

    name: str
    usr: Partition
    verity: Partition

    @property
    def empty(self) -> bool:
        """Whether no version is in the slot (or one is only being written)."""
        return (self.usr.uuid, self.verity.uuid) == empty_uuids(self.name)


@dataclass(frozen=True)
class Disk:
    """The disk that the running system came from. ``root_hash`` is the running one's."""

    node: Path
    running: str
    slots: Mapping[str, Slot]
    root_hash: str

    @property
    def active(self) -> Slot:
        return self.slots[self.running]

    @property
    def passive(self) -> Slot:
        return self.slots[other(self.running)]


def find(system: System) -> Disk:
    """Find the disk and its slots, starting from what the kernel was told to mount."""
    root_hash = _running_root_hash(system)
    node = _partition_of(system, UUID(root_hash[:32]))
    partition_dir = system.path("/sys/class/block") / node
    disk_dir = partition_dir.resolve().parent
    running = _uevent(partition_dir).get("PARTNAME", "")
    slots_by_label = {f"usr-{slot}": slot for slot in SLOTS}
    if running not in slots_by_label:
        raise _broken(f"/usr runs from the partition {node}, whose name is {running!r}")
    disk = system.path("/dev") / disk_dir.name
    ids = {entry.index: entry.uuid for entry in _table(disk).table.entries()}
    partitions: dict[str, Partition] = {}
    for directory in sorted(disk_dir.iterdir()):
        if (directory / "partition").exists():
            uevent = _uevent(directory)
            index = int(uevent["PARTN"])
            partitions[uevent.get("PARTNAME", "")] = Partition(
                index=index,
                node=system.path("/dev") / uevent["DEVNAME"],
                size=512 * int((directory / "size").read_text()),
                uuid=ids.get(index, UUID(int=0)),
                busy=any((directory / "holders").glob("*")),
            )
    try:
        slots = {
            slot: Slot(slot, partitions[f"usr-{slot}"], partitions[f"usr-{slot}-verity"])
            for slot in SLOTS
        }
    except KeyError as error:
        raise _broken(f"the disk {disk.name} has no partition named {error}") from None
    return Disk(disk, slots_by_label[running], slots, root_hash)


def _running_root_hash(system: System) -> str:
    for word in system.text("/proc/cmdline").split():
        key, _, value = word.partition("=")
        if key == "usrhash" and len(value) == 64:
            return value.lower()
    raise _broken("the kernel command line has no usrhash=")


def _partition_of(system: System, uuid: UUID) -> str:
    link = system.path("/dev/disk/by-partuuid") / str(uuid)
    if not link.is_symlink():
        raise _broken(f"no partition has the id {uuid}, which the running /usr was opened by")
    return link.resolve().name


def _uevent(directory: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in (directory / "uevent").read_text().splitlines())
    return {key: value for key, _, value in pairs}


def _broken(message: str) -> MachineError:
    return MachineError(
        Code.SLOT_FAILED,
        f"the slots of this machine cannot be found: {message}",
        "proactl works on a machine that booted from a Proa disk",
    )


# --- Changing -----------------------------------------------------------------------------------


def set_uuids(system: System, disk: Disk, slot: Slot, uuids: tuple[UUID, UUID]) -> None:
    """Set the unique ids of a slot's two partitions, safely against a power cut.

    The kernel and udev are not told: their view of these partitions is from boot and not used.
    """
    if slot.name == disk.running:
        raise AssertionError("the running slot is never written")
    with _locked(disk.node), system.files.target(disk.node) as target:
        found = _table(disk.node)
        if not found.whole:
            # An earlier change was cut. Make both copies the same before touching either: the
            # good one must not be the one that is written first.
            for offset, data in found.table.backup_writes() + found.table.primary_writes():
                target.write(offset, data)
                target.sync()
        table = found.table.with_uuids({slot.usr.index: uuids[0], slot.verity.index: uuids[1]})
        for writes in (table.backup_writes(), table.primary_writes()):
            for offset, data in writes:
                target.write(offset, data)
            target.sync()


def _table(disk: Path) -> gpt.Found:
    try:
        with disk.open("rb", buffering=0) as device:
            size = device.seek(0, os.SEEK_END)
            return gpt.load(lambda offset, count: os.pread(device.fileno(), count, offset), size)
    except gpt.GptError as error:
        raise _broken(f"{disk.name}: {error}") from None


@contextlib.contextmanager
def _locked(disk: Path) -> Iterator[None]:
    """Hold the lock by which udev leaves a disk alone (systemd.io/BLOCK_DEVICE_LOCKING)."""
    fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
