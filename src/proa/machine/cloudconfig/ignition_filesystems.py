"""``storage.filesystems`` of Ignition and Butane, as what ``fs_setup`` and ``mounts`` ask for.

Ignition mounts them at ``path`` while it runs, so that files can be put there, and leaves it to a
unit to mount them later. Here ``path`` is a line of /etc/fstab, which does both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.dialect import Dialect
from proa.machine.cloudconfig.keys.disks import IN_USE, LABEL_BYTES, Disks, FileSystem, MountLine
from proa.machine.cloudconfig.parse import Node, printable

_KINDS = ("ext4", "vfat", "swap")
_DEVICE = re.compile(r"/dev(/(?!\.\.?(/|$))[A-Za-z0-9_+@=,:%#.\\-]{1,255}){1,8}")
_LABEL = re.compile(r"[A-Za-z0-9_.:@+-]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UUID_OPTION = {"ext4": "-U", "swap": "--uuid"}
_OPTION = re.compile(r"[^\s#\"',]{1,255}")


def read_file_systems(d: Dialect, node: Node, key: str) -> Disks:
    found = d.each(node, key, _file_system)
    lines = [line for _, line in found if line is not None]
    return Disks(
        file_systems=tuple(made for made, _ in found),
        mounts=tuple(sorted(lines, key=lambda line: line.where)) or None,
    )


def _file_system(d: Dialect, node: Node, key: str) -> tuple[FileSystem, MountLine | None] | None:
    sugar = ("with_mount_unit",) if d.butane else ()
    known = ("device", "format", "path", "wipe_filesystem", "label", "uuid", "options")
    entries = d.table(node, key, (*known, "mount_options", *sugar))
    device, kind = d.text(entries, key, "device"), d.text(entries, key, "format")
    if not device or not kind:
        d.error(node, key, "has no device or no format")
        return None
    if not _DEVICE.fullmatch(device):
        what = f'"{printable(device)}" is not a device like /dev/disk/by-id/…'
        d.error(entries["device"], d.at(key, "device"), what)
    if kind not in _KINDS:
        what = f'"{printable(kind)}" is not taken: Proa makes {", ".join(_KINDS)}'
        d.error(entries["format"], d.at(key, "format"), what)
        return None
    label = d.text(entries, key, "label") or ""
    if label and (not _LABEL.fullmatch(label) or len(label) > LABEL_BYTES[kind]):
        what = f'"{printable(label)}" is not a label of at most {LABEL_BYTES[kind]} letters, digits'
        d.error(entries["label"], d.at(key, "label"), f"{what} and _.:@+-")
    options = d.texts(entries, key, "options") + _uuid(d, entries, key, kind)
    # A device that is named is meant itself, not a partition of it.
    overwrite = d.flag(entries, key, "wipe_filesystem") or False
    made = FileSystem(device, kind, label, "none", overwrite, options=options)
    return made, _line(d, entries, node, key, made)


def _uuid(d: Dialect, entries: Mapping[str, Node], key: str, kind: str) -> tuple[str, ...]:
    uuid = d.text(entries, key, "uuid")
    if not uuid:
        return ()
    if kind not in _UUID_OPTION or not _UUID.fullmatch(uuid):
        what = f'"{printable(uuid)}" is not a uuid that {kind} can have'
        d.error(entries["uuid"], d.at(key, "uuid"), what)
        return ()
    return (_UUID_OPTION[kind], uuid)


def _line(
    d: Dialect, entries: Mapping[str, Node], node: Node, key: str, made: FileSystem
) -> MountLine | None:
    options = d.texts(entries, key, "mount_options")
    if not all(map(_OPTION.fullmatch, options)):
        what = "has an option that fstab does not take"
        d.error(entries["mount_options"], d.at(key, "mount_options"), what)
    unit = d.flag(entries, key, "with_mount_unit") if d.butane else None
    # A disk that is not there must not stop the boot.
    words = ",".join((*(options or ("sw" if made.kind == "swap" else "defaults",)), "nofail"))
    if made.kind == "swap":
        if "path" in entries:
            d.error(entries["path"], d.at(key, "path"), "has no meaning for swap")
        return MountLine(made.device, "none", "swap", words, "0", "0") if unit else None
    if "path" not in entries:
        if unit:
            d.error(node, key, "wants a path, because it is to be mounted")
        return None
    path = d.path(entries, node, key)
    if path in IN_USE:
        what = f"{path} is in use from the start of the boot; mount what is below it"
        d.error(entries["path"], d.at(key, "path"), what)
    return None if path is None else MountLine(made.device, path, made.kind, words)
