"""The sources that need no network: one reader for each kind, asked in a fixed order.

They are not raced: each takes milliseconds, disks share one place to be mounted, and the same
machine must find the same source at every boot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem
from proa.machine.cloudconfig.sources import facts, nocloud
from proa.machine.cloudconfig.sources.detect import Candidate
from proa.machine.cloudconfig.sources.source import Edge, Source
from proa.machine.record import replace


def look(candidate: Candidate, edge: Edge) -> Source | None:
    """What is there; ``None`` if nothing is. One that cannot be read is a source with an error."""
    try:
        return _READERS[candidate.kind](candidate, edge)
    except (CommandFailed, OSError) as error:
        name = f"{_NAMES.get(candidate.kind, candidate.kind)} {candidate.at}".rstrip()
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Source(name, Metadata(), None, (Problem("error", f"{name}: {message}"),))


def _credentials(candidate: Candidate, edge: Edge) -> Source | None:
    """systemd.io/CREDENTIALS: from the hypervisor or the boot loader; the folder is root's own."""
    folder = facts.credentials(edge)

    def get(name: str) -> bytes | None:
        return _kernel_file(folder / name)

    content = nocloud.Content(
        get("meta-data"), get(candidate.at), get("vendor-data"), get("network-config")
    )
    return nocloud.source(f'systemd credential "{candidate.at}"', content, {}, [])


def _fw_cfg(candidate: Candidate, edge: Edge) -> Source | None:
    """docs/specs/fw_cfg of QEMU: names below ``opt/`` are the operator's."""
    folder = edge.root / facts.FW_CFG.lstrip("/")
    beside = (folder / candidate.at).parent

    def get(path: Path) -> bytes | None:
        return _kernel_file(path / "raw")

    alone = candidate.at == "opt/com.coreos/config"
    content = nocloud.Content(
        None if alone else get(beside / "meta-data"),
        get(folder / candidate.at),
        None if alone else get(beside / "vendor-data"),
        None if alone else get(beside / "network-config"),
    )
    return nocloud.source(f"QEMU fw_cfg {candidate.at}", content, {}, [])


def _kernel_file(path: Path) -> bytes | None:
    """A file in a folder of the kernel's or systemd's making, where links are part of the form."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        # One byte more than is taken: then the reader of the document says that it is too large.
        return file.read(MAX_BYTES + 1)
    return None


def _nocloud(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import disk

    if candidate.at.startswith("/dev/"):
        return disk.nocloud_disk(candidate, edge)
    if not candidate.at:  # ds=nocloud;h=…;i=… and nothing else
        if not any(name in candidate.seed for name in ("local-hostname", "instance-id")):
            return None
        return nocloud.source(f"NoCloud, {candidate.why}", nocloud.Content(), candidate.seed, [])
    folder = candidate.at.removesuffix("user-data")
    return disk.read_nocloud(edge.root, folder, f"NoCloud directory {folder}", candidate)


def _config_drive(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import disk

    return disk.config_drive(candidate, edge)


def _ovf(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import vmware

    return vmware.ovf_disc(candidate, edge)


def _vmware(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import vmware

    return vmware.guestinfo(candidate, edge)


def _xen(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import xen

    return xen.xenstore(candidate, edge)


def _file(candidate: Candidate, edge: Edge) -> Source | None:
    from proa.machine.cloudconfig.sources import disk

    problems: list[Problem] = []
    name = f"{_NAMES[candidate.kind]} {candidate.at}"
    data = disk.read(edge.root, candidate.at, problems)
    if data is None and not problems:
        return None
    return Source(name, Metadata(), data, tuple(problems))


def _oem(candidate: Candidate, edge: Edge) -> Source | None:
    """What the maker of the image put there; a file in the image goes before the partition's."""
    from proa.machine.cloudconfig.sources import disk

    if not candidate.at.startswith("/dev/"):
        return _file(candidate, edge)
    device = str(edge.root / candidate.at.lstrip("/"))
    problems: list[Problem] = []
    with disk.mounted(edge.root, device, edge.run, "ext4,vfat,btrfs") as place:
        data = disk.read(place, "/cloud-config.yml", problems)
    if data is None and not problems:
        return None
    return Source(f"OEM partition {device}", Metadata(), data, tuple(problems))


_READERS: Mapping[str, Callable[[Candidate, Edge], Source | None]] = {
    "nocloud": _nocloud,
    "credentials": _credentials,
    "fw-cfg": _fw_cfg,
    "config-drive": _config_drive,
    "ovf": _ovf,
    "vmware": _vmware,
    "xen": _xen,
    "vagrant": _file,
    "file": _file,
    "oem": _oem,
}

_NAMES = {
    "nocloud": "NoCloud",
    "credentials": "systemd credential",
    "fw-cfg": "QEMU fw_cfg",
    "config-drive": "config drive",
    "ovf": "OVF environment",
    "vmware": "VMware guestinfo",
    "xen": "Xen, vm-data in xenstore",
    "vagrant": "Vagrant's file",
    "file": "file",
    "oem": "OEM",
}


def with_oem(source: Source, oem: Source | None) -> Source:
    """As in CoreOS, what the maker of the image says holds where the owner says nothing."""
    if oem is None:
        return source
    problems = (*source.problems, *as_warnings(oem.problems))
    vendor_data = source.vendor_data if source.vendor_data is not None else oem.user_data
    return replace(source, vendor_data=vendor_data, problems=problems)


def as_warnings(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Of a source beside the one that is taken, whose document they must not refuse."""
    return tuple(replace(problem, level="warning") for problem in problems)
