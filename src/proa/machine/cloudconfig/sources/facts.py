"""What a machine shows of where it runs, without a mount, a program or a network.

All of it is in files of the kernel and of udev, and takes about a millisecond to read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from proa.machine import assignments
from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.sources.source import Edge
from proa.machine.record import dataclass, field

SETTINGS = ("/etc/proa/datasource.conf", "/usr/share/proa/datasource.conf")

LABELS = {
    "config-2": "config-drive",
    "CONFIG-2": "config-drive",
    "cidata": "nocloud",
    "CIDATA": "nocloud",
    "OVF ENV": "ovf",
    "OVF-TRANSPORT": "ovf",
    "ovf-transport": "ovf",
    "OVFENV": "ovf",
    "ovfenv": "ovf",
}
"""File system labels that mark a disk made for this machine → what it is."""

SHARE = "config-2"
"""The tag of a 9p share with the layout of a config drive."""


FILES = {
    "/var/lib/cloud/seed/nocloud/user-data": "nocloud",
    "/var/lib/cloud/seed/nocloud-net/user-data": "nocloud",
    "/var/lib/coreos-vagrant/vagrantfile-user-data": "vagrant",
    "/var/lib/coreos-install/user_data": "file",
    "/usr/share/oem/cloud-config.yml": "oem",
}
"""Well-known files → what they are."""

CREDENTIALS = ("proa.cloud-config", "cloud-config", "user-data")
"""Names of systemd credentials that are user-data; the first that is there is taken."""

FW_CFG = "/sys/firmware/qemu_fw_cfg/by_name"
FW_CFG_NAMES = (
    "opt/org.proa/user-data",
    "opt/io.cloud-init/cloud-init/user-data",
    "opt/com.coreos/config",
)
"""Names of QEMU's fw_cfg that are user-data; the first that is there is taken."""

XEN_DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")

_DMI = "sys/class/dmi/id"
_DMI_NAMES = (
    "sys_vendor",
    "product_name",
    "product_serial",
    "product_uuid",
    "product_version",
    "bios_vendor",
    "bios_version",
    "chassis_asset_tag",
    "chassis_vendor",
    "chassis_serial",
    "board_name",
    "board_vendor",
    "board_serial",
    "board_asset_tag",
)
_MAX_FACT = 4096
_MAX_LABELS = 1000


@dataclass(frozen=True)
class Facts:
    """``dmi`` by the names of /sys/class/dmi/id; ``labels`` by label, with the name of the link in
    /dev/disk/by-label; ``settings`` as words and numbers not yet understood."""

    dmi: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cmdline: tuple[str, ...] = field(default=(), repr=False)
    credentials: str = ""
    fw_cfg: str = ""
    files: tuple[str, ...] = ()
    share: str = ""
    hypervisor: str = ""
    hypervisor_uuid: str = ""
    xenbus: str = ""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


def gather(edge: Edge) -> Facts:
    root = edge.root
    dmi = {name: _read(root / _DMI / name) for name in _DMI_NAMES}
    credential = next((n for n in CREDENTIALS if _is_file(credentials(edge) / n)), "")
    return Facts(
        dmi={name: value for name, value in dmi.items() if value},
        labels=_labels(root / "dev/disk/by-label"),
        cmdline=words(_read(root / "proc/cmdline")),
        credentials=credential,
        fw_cfg=next((n for n in FW_CFG_NAMES if _is_file(_below(root, f"{FW_CFG}/{n}/raw"))), ""),
        files=tuple(path for path in FILES if _is_file(_below(root, path))),
        share=_share(root),
        hypervisor=_read(root / "sys/hypervisor/type"),
        hypervisor_uuid=_read(root / "sys/hypervisor/uuid"),
        xenbus=next((path for path in XEN_DEVICES if _below(root, path).exists()), ""),
        settings=_settings(root),
    )


def credentials(edge: Edge) -> Path:
    """Where systemd puts credentials (systemd.exec(5)): this service's own, or the system's."""
    given = edge.environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(given) if given else edge.root / "run/credentials/@system"


def words(cmdline: str) -> tuple[str, ...]:
    """The words of a kernel command line; double quotes hold one together."""
    return tuple(re.sub('"', "", word) for word in re.findall(r'(?:"[^"]*"?|[^\s"])+', cmdline))


def value_of(cmdline: tuple[str, ...], *names: str) -> str | None:
    """What the last ``name=value`` of any of these names says; ``None`` without one."""
    for word in reversed(cmdline):
        name, equals, value = word.partition("=")
        if equals and name in names:
            return value
    return None


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # someone else than root may ask
        return path.is_file()
    return False


def _read(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(_MAX_FACT).decode("utf-8", "replace").strip("\0 \t\r\n")
    return ""


def _labels(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for count, entry in enumerate(folder.iterdir()):
            if count == _MAX_LABELS:
                break
            found[_unescape(entry.name)] = entry.name
    return found


def _unescape(name: str) -> str:
    """A label from the name that udev gives to its link, where a space is ``\\x20``."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)


def _share(root: Path) -> str:
    """``9p`` if the share is attached and can be mounted, ``no driver`` if only attached."""
    with contextlib.suppress(OSError):
        for device in sorted((root / "sys/bus/virtio/devices").iterdir()):
            if _read(device / "device") != "0x0009":  # VIRTIO_ID_9P
                continue
            if not (device / "mount_tag").exists():
                return "no driver"  # its tag cannot be read either
            if _read(device / "mount_tag") == SHARE:
                return "9p"
    return ""


def _settings(root: Path) -> dict[str, str]:
    """``KEY=value`` lines as in update.conf: key by key, the first file that has it wins.

    A line that is none of these is a key, too, so that it can be told.
    """
    found: dict[str, str] = {}
    for path in SETTINGS:
        content = None
        with contextlib.suppress(files.FileProblem, OSError):
            content = files.read(root, path, _MAX_FACT * 4)
        text = content.content.decode("utf-8", "replace") if content else ""
        here = {key: value or "" for key, value in assignments.lines(text)}
        found = {**here, **found}
    return found
