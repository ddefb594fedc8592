"""``disk_setup``, ``fs_setup``, ``mounts`` and ``swap`` (cloud-init: cc_disk_setup, cc_mounts).

Devices stay the names that the document gives: what they mean is only known on the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.parse import Items, Node, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import clean_path
from proa.machine.hints import Literal
from proa.machine.record import dataclass

WHOLE = 100_000
MAX_PARTITIONS = 128
MAX_ITEMS = 256
"""Most entries of one list; each costs a boot some programs."""
MAX_SIZE = 2**44
"""Bytes; the largest file that ext4 holds (16 TiB)."""


@dataclass(frozen=True)
class Disk:
    """A partition table to make. ``layout`` is (share, type) per partition; empty: remove it."""

    device: str
    table: Literal["mbr", "gpt"]
    layout: tuple[tuple[int, str], ...]
    """Shares in thousandths of a percent: :data:`WHOLE` is the whole disk."""
    overwrite: bool = False


@dataclass(frozen=True)
class FileSystem:
    """A file system, or swap space, to make."""

    device: str
    kind: str
    label: str = ""
    partition: str = "any"
    """A number, or how to choose: ``auto``, ``any``, ``none`` (the device itself)."""
    overwrite: bool = False
    replace: str = ""
    """The kind of file system that may be overwritten without ``overwrite``."""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class MountLine:
    """A line of fstab(5). ``where`` is ``none`` for swap."""

    device: str
    where: str
    kind: str
    options: str
    dump: str = "0"
    check: str = "2"

    @property
    def swap(self) -> bool:
        return self.kind == "swap"


@dataclass(frozen=True)
class SwapFile:
    """A file to swap to; sizes in bytes."""

    path: str
    size: int | None
    """``None``: what suits the machine (``auto``)."""
    most: int | None = None
    """The limit for ``auto``."""


@dataclass(frozen=True)
class Disks:
    tables: tuple[Disk, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    mounts: tuple[MountLine, ...] | None = None
    """``None``: the document says nothing of mounts; empty: there are to be none."""
    swap: SwapFile | None = None


def read_disks(r: Reader, top: Mapping[str, Node]) -> Disks:
    aliases = _aliases(r, top.get("device_aliases"))
    defaults = _default_fields(r, top.get("mount_default_fields"))
    mounts = _mounts(r, top["mounts"], defaults, aliases) if "mounts" in top else None
    return Disks(
        tables=_tables(r, top.get("disk_setup"), aliases),
        file_systems=tuple(
            made
            for index, item in enumerate(_items(r, top.get("fs_setup"), "fs_setup"))
            if (made := _file_system(r, item, f"fs_setup[{index}]", aliases)) is not None
        ),
        mounts=mounts,
        swap=_swap(r, top.get("swap")),
    )


# Names of devices.

_PATH = re.compile(r"/dev(/[A-Za-z0-9_+@=,:%#.\\-]+)+")
_SHORT = re.compile(
    r"(x?[shv]d[a-z]{1,3}[0-9]*|nvme[0-9]+n[0-9]+(p[0-9]+)?|mmcblk[0-9]+(p[0-9]+)?|sr[0-9]+)(\.[0-9]+)?"
)
_TAG = re.compile(r"(LABEL|UUID|PARTLABEL|PARTUUID)=([^\s\"'=]{1,128})")
_FROM_CLOUD = re.compile(r"(ephemeral[0-9]*|ebs[0-9]+|ami|root|swap)(\.[0-9]+)?")
_STABLE = "/dev/disk/by-id/… names the same disk at every boot"


def _aliases(r: Reader, node: Node | None) -> dict[str, str]:
    """alias → device. Not read as keys: ``-`` and ``_`` are two letters in a name."""
    found: dict[str, str] = {}
    for word, value in _entries(r, node, "device_aliases"):
        key = f"device_aliases.{printable(word.text)}"
        device = _device(r, value, r.text(value, key), key, {})
        if device:
            found[word.text] = device
    return found


def _entries(r: Reader, node: Node | None, key: str) -> tuple[tuple[Text, Node], ...]:
    if node is None or (isinstance(node, Text) and node.null):
        return ()
    if not isinstance(node, Table):
        r.error(node, key, f"{key} wants a mapping (device: …)")
        return ()
    if len(node.entries) > MAX_ITEMS:
        r.error(node, key, f"{key} has more than {MAX_ITEMS} entries")
    return node.entries[:MAX_ITEMS]


def _items(r: Reader, node: Node | None, key: str) -> tuple[Node, ...]:
    items = r.items(node, key)
    if len(items) > MAX_ITEMS and node is not None:
        r.error(node, key, f"{key} has more than {MAX_ITEMS} entries")
    return items[:MAX_ITEMS]


def _device(
    r: Reader, node: Node, name: str | None, key: str, aliases: Mapping[str, str]
) -> str | None:
    """The path of a device of that name, perhaps with ``.N`` for its partition N."""
    text = name or ""
    stem, dot, number = text.rpartition(".")
    if text in aliases:
        return aliases[text]
    if dot and re.fullmatch(r"[0-9]{1,3}", number) and stem in aliases:
        return f"{aliases[stem]}.{number}"
    if _SHORT.fullmatch(text):
        return f"/dev/{text}"
    if _PATH.fullmatch(text) and ".." not in text.split("/") and "." not in text.split("/"):
        return text
    if _FROM_CLOUD.fullmatch(text):
        message = f'{key} "{text}" is a name that a cloud gives to a disk, which Proa does not know'
        r.warn(node, key, f"{message}; left out; {_STABLE}")
    else:
        message = f'{key} "{printable(text)}" is not a device like /dev/disk/by-id/…'
        r.error(node, key, message)
    return None


# disk_setup.

_MBR_TYPE = re.compile(r"[0-9a-fA-F]{1,2}")
_GPT_TYPE = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# sgdisk's codes, which cloud-init takes, as sfdisk's shortcuts (sfdisk(8)).
_SGDISK = {"8300": "L", "8200": "S", "EF00": "U", "8E00": "V", "FD00": "R"}


def _tables(r: Reader, node: Node | None, aliases: Mapping[str, str]) -> tuple[Disk, ...]:
    found: dict[str, Disk] = {}
    for word, value in _entries(r, node, "disk_setup"):
        key = f"disk_setup.{printable(word.text)}"
        device = _device(r, word, word.text, key, aliases)
        entries = r.table(value, key, ("table_type", "layout", "overwrite"))
        table = (r.text(entries.get("table_type"), f"{key}.table_type") or "mbr").lower()
        if table not in ("mbr", "gpt"):
            message = f'{key}.table_type "{printable(table)}" is not mbr or gpt'
            r.error(entries["table_type"], f"{key}.table_type", message)
        kind: Literal["mbr", "gpt"] = "gpt" if table == "gpt" else "mbr"
        overwrite = r.flag(entries.get("overwrite"), f"{key}.overwrite")
        layout = _layout(r, entries.get("layout"), f"{key}.layout", kind, overwrite)
        if device is None or layout is None:
            continue
        if overwrite and not device.startswith("/dev/disk/"):
            message = f"{key}.overwrite: {printable(device)} may be another disk at the next boot"
            r.warn(entries["overwrite"], f"{key}.overwrite", f"{message}; {_STABLE}")
        if device in found:
            r.error(word, key, f"{key}: {printable(device)} stands in disk_setup already")
        found[device] = Disk(device, kind, layout, overwrite)
    return tuple(found.values())


def _layout(
    r: Reader, node: Node | None, key: str, table: Literal["mbr", "gpt"], overwrite: bool
) -> tuple[tuple[int, str], ...] | None:
    """(share, type as sfdisk knows it) per partition; the last takes what is left."""
    linux = "L" if table == "gpt" else "83"
    if node is None:
        return None
    if isinstance(node, Text):
        if node.text == "remove":
            if not overwrite:
                r.error(node, key, f'{key} "remove" wants "overwrite: true" beside it')
            return ()
        return ((WHOLE, linux),) if r.flag(node, key) else None
    parts: list[tuple[int, str]] = []
    items = r.items(node, key)
    for index, item in enumerate(items):
        place = f"{key}[{index}]"
        pair = r.items(item, place) if isinstance(item, Items) else (item,)
        if len(pair) not in (1, 2):
            r.error(item, place, f"{place} wants a percentage, or a percentage and a type")
            continue
        share = _share(r.text(pair[0], place))
        if not 0 < share <= WHOLE:
            r.error(item, place, f"{place} wants a percentage from 1 to 100")
            continue
        kind = linux if len(pair) == 1 else _partition_type(r, pair[1], place, table)
        parts.append((share, kind))
    if not items and isinstance(node, Items):
        r.error(node, key, f"{key} is empty; true makes one partition of the whole disk")
    elif len(parts) > (4 if table == "mbr" else MAX_PARTITIONS):
        r.error(node, key, f"{key} has {len(parts)} partitions; a table of type {table} takes less")
    elif sum(s for s, _ in parts[:-1]) >= WHOLE or sum(s for s, _ in parts) > WHOLE * 1.005:
        r.error(node, key, f"{key} comes to more than 100 percent")
    return tuple(parts)


def _share(text: str | None) -> int:
    """A percentage in thousandths; 0 if it is none."""
    match = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{0,9})?|\.[0-9]{1,9}", text or "")
    return round(float(match[0]) * 1000) if match else 0


def _partition_type(r: Reader, node: Node, key: str, table: Literal["mbr", "gpt"]) -> str:
    text = r.text(node, key) or ""
    if table == "mbr":
        if not _MBR_TYPE.fullmatch(text):
            r.error(node, key, f'{key} "{printable(text)}" is not a type of mbr like 83 or 82')
        return text.lower()
    if _GPT_TYPE.fullmatch(text):
        return text.upper()
    code = _SGDISK.get(text.upper().ljust(4, "0"))
    if code is None:
        message = f'{key} "{printable(text)}" is not 8300, 8200, EF00, 8E00, FD00 or a type\'s GUID'
        r.error(node, key, message)
    return code or "L"


# fs_setup.

KINDS = ("ext4", "ext3", "ext2", "vfat", "swap")
LABEL_BYTES = {"ext4": 16, "ext3": 16, "ext2": 16, "vfat": 11, "swap": 15}
_NOT_HERE = ("xfs", "btrfs", "ntfs", "exfat", "f2fs", "zfs", "reiserfs", "jfs")
_LABEL = re.compile(r"[A-Za-z0-9_.:@+-]{1,16}")
_PARTITION = re.compile(r"auto|any|none|[1-9][0-9]{0,2}")


def _file_system(r: Reader, node: Node, key: str, aliases: Mapping[str, str]) -> FileSystem | None:
    known = ("label", "filesystem", "device", "partition", "overwrite", "replace_fs", "extra_opts")
    entries = r.table(node, key, (*known, "cmd"))
    if "cmd" in entries:
        message = f"{key}.cmd is not taken, because nothing could keep it from a disk in use"
        r.error(entries["cmd"], f"{key}.cmd", f"{message}; say filesystem and extra_opts")
    words = {name: r.text(entries.get(name), f"{key}.{name}") for name in known[:4]}
    overwrite = r.flag(entries.get("overwrite"), f"{key}.overwrite")
    replace = (r.text(entries.get("replace_fs"), f"{key}.replace_fs") or "").lower()
    options = _extra(r, entries.get("extra_opts"), f"{key}.extra_opts")
    kind = (words["filesystem"] or "").lower()
    kind = "vfat" if kind in ("fat", "fat32") else kind
    if kind not in KINDS:
        what = f'{key}.filesystem "{printable(kind)}"'
        message = f"{what} is not one of {', '.join(KINDS)}"
        if kind in _NOT_HERE:
            message = f"{what} is not taken: Proa has no program for it; take {', '.join(KINDS)}"
        r.error(entries.get("filesystem", node), f"{key}.filesystem", message)
    label, longest = words["label"] or "", LABEL_BYTES.get(kind, 16)
    if label and not (_LABEL.fullmatch(label) and len(label) <= longest):
        message = f'{key}.label "{printable(label)}" is not a label of at most {longest}'
        r.error(entries["label"], f"{key}.label", f"{message} letters, digits and _.:@+-")
    partition = (words["partition"] or "any").lower()
    if not _PARTITION.fullmatch(partition):
        message = f'{key}.partition "{printable(partition)}" is not a number, auto, any or none'
        r.error(entries["partition"], f"{key}.partition", message)
    if "device" not in entries:
        r.error(node, key, f"{key} has no device")
        return None
    device = _device(r, entries["device"], words["device"], f"{key}.device", aliases)
    if device is None:
        return None
    if overwrite and not device.startswith("/dev/disk/"):
        message = f"{key}.overwrite: {printable(device)} may be another disk at the next boot"
        r.warn(entries["overwrite"], f"{key}.overwrite", f"{message}; {_STABLE}")
    replace = "" if replace in ("false", "no", "off") else replace
    return FileSystem(device, kind, label, partition, overwrite, replace, options)


def _extra(r: Reader, node: Node | None, key: str) -> tuple[str, ...]:
    if isinstance(node, Text):
        return tuple((r.text(node, key) or "").split())
    return r.texts(node, key)


# mounts.

DEFAULTS = (None, None, "auto", "defaults,nofail", "0", "2")
"""cloud-init's, without ``_netdev`` and the wait for its own service."""

_KIND = re.compile(r"[A-Za-z0-9._-]{1,32}")
_OPTIONS = re.compile(r"[^\s#\"']{1,1024}")
_NETWORK = re.compile(r"(//[^\s#\"']{1,255}|[A-Za-z0-9_.\[\]:-]{1,255}:/[^\s#\"']{0,255})")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_BIND = re.compile(r"/[^\s#\"'\\]{0,255}")
IN_USE = ("/", "/etc", "/var", "/run", "/tmp", "/var/tmp", "/var/log")  # noqa: S108 (names)


def _default_fields(r: Reader, node: Node | None) -> list[str | None]:
    defaults = list(DEFAULTS)
    for index, field in enumerate(r.items(node, "mount_default_fields")[:6]):
        defaults[index] = r.text(field, f"mount_default_fields[{index}]")
    return defaults


def _mounts(
    r: Reader, node: Node, defaults: list[str | None], aliases: Mapping[str, str]
) -> tuple[MountLine, ...]:
    found: list[MountLine] = []
    for index, item in enumerate(_items(r, node, "mounts")):
        key = f"mounts[{index}]"
        words = [r.text(word, f"{key}[{i}]") for i, word in enumerate(r.items(item, key))]
        if not words or not words[0] or len(words) > 6:
            r.error(item, key, f"{key} wants a list of a device, a place, and up to 4 fields more")
            continue
        words += [None] * (6 - len(words))
        filled = [word if word is not None else defaults[i] for i, word in enumerate(words)]
        if filled[1] is None:  # cloud-init: no line for this device, nor any before
            device = _mounted(r, item, key, words[0], aliases, quiet=True)
            found = [line for line in found if line.device != device]
            continue
        device = _mounted(r, item, key, words[0], aliases)
        if device and (line := _line(r, item, key, [device, *(f or "" for f in filled[1:])])):
            found.append(line)
    places = [line.where for line in found if not line.swap]
    for place in sorted({place for place in places if places.count(place) > 1}):
        r.error(node, "mounts", f"mounts: {printable(place)} is named twice")
    return tuple(found)


def _mounted(
    r: Reader, item: Node, key: str, text: str, aliases: Mapping[str, str], quiet: bool = False
) -> str | None:
    """The first field: a device, a tag, a share in the network, or a word like tmpfs."""
    node = item.items[0] if isinstance(item, Items) else item
    network = _NETWORK.fullmatch(text) is not None and not text.startswith("/dev/")
    if text not in aliases and (_TAG.fullmatch(text) or network):
        return text
    if quiet and _FROM_CLOUD.fullmatch(text):
        return None  # it turns off what cloud-init would mount by itself; Proa would not
    known = text in aliases or text.rpartition(".")[0] in aliases or _SHORT.fullmatch(text)
    if not known and not _FROM_CLOUD.fullmatch(text) and _WORD.fullmatch(text):
        return text
    if not known and not text.startswith("/dev/") and _BIND.fullmatch(text):
        return text
    return _device(r, node, text, key, aliases)


def _line(r: Reader, item: Node, key: str, fields: list[str]) -> MountLine | None:
    device, where, kind, options, dump, check = fields
    good = _KIND.fullmatch(kind) and _OPTIONS.fullmatch(options)
    if not good or not re.fullmatch(r"[0-9]", dump) or not re.fullmatch(r"[0-9]", check):
        r.error(item, key, f"{key} has a type, options or numbers that fstab does not take")
        return None
    if kind == "swap":
        where = "none"
    else:
        try:
            where = clean_path(where)
        except ValueError as error:
            r.error(item, key, f'{key} "{printable(where)}" {error}')
            return None
        if where in IN_USE:
            message = f"{key}: {where} is in use from the start of the boot; mount what is below it"
            r.error(item, key, message)
            return None
    names = options.split(",")
    if "nofail" not in names:  # a disk that is not there must not stop the boot
        options = ",".join((*names, "nofail"))
    if kind in ("nfs", "nfs4", "cifs", "smb3", "glusterfs", "ceph", "fuse.sshfs"):
        message = f"{key}: Proa has no program that mounts {kind}"
        r.warn(item, key, f"{message}; a container's volume driver may bring one")
    return MountLine(device, where, kind, options, dump, check)


# swap.

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})([KMGT]?)B?")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _swap(r: Reader, node: Node | None) -> SwapFile | None:
    entries = r.table(node, "swap", ("filename", "size", "maxsize"))
    words = {name: r.text(value, f"swap.{name}") for name, value in entries.items()}
    text = words.get("size")
    size = None if text == "auto" else _size(r, entries.get("size"), "swap.size")
    most = _size(r, entries.get("maxsize"), "swap.maxsize") or None
    if text is None or size == 0:
        return None  # as cloud-init: without a size there is none
    name = words.get("filename") or "/swap.img"
    try:
        path = clean_path(name)
    except ValueError as error:
        r.error(entries["filename"], "swap.filename", f'swap.filename "{printable(name)}" {error}')
        return None
    return SwapFile(path, size, most)


def _size(r: Reader, node: Node | None, key: str) -> int:
    """Bytes of ``512M``, ``.5G`` or a plain number; 0 for what is not there."""
    text = r.text(node, key)
    if node is None or text is None:
        return 0
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2]]) if match else -1
    if not 0 <= size <= MAX_SIZE:
        r.error(node, key, f'{key} "{printable(text)}" is not a size like 512M or 2G')
        return 0
    return size
