"""Disks made for one machine: the config drive of OpenStack and the NoCloud disk of cloud-init.

A disk is mounted read-only in a private place, read without following links, and let go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import CommandFailed, Run
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem
from proa.machine.cloudconfig.sources import nocloud, openstack
from proa.machine.cloudconfig.sources.detect import Candidate
from proa.machine.cloudconfig.sources.facts import SHARE
from proa.machine.cloudconfig.sources.source import Edge, Source

MOUNT_POINT = "run/proa/configdrive"

_OPTIONS = "ro,nosuid,nodev,noexec"


def config_drive(candidate: Candidate, edge: Edge) -> Source:
    name = f"config drive {candidate.at}"
    if candidate.at == "9p":
        name = f'config drive, 9p share "{SHARE}"'
        options = f"{_OPTIONS},trans=virtio,version=9p2000.L"
        with mounted(edge.root, SHARE, edge.run, "9p", options) as place:
            return read_drive(place, name)
    device = edge.root / candidate.at.lstrip("/")
    with mounted(edge.root, str(device), edge.run, "iso9660,vfat") as place:
        return read_drive(place, f"config drive {device}")


def nocloud_disk(candidate: Candidate, edge: Edge) -> Source:
    device = edge.root / candidate.at.lstrip("/")
    with mounted(edge.root, str(device), edge.run, "iso9660,vfat") as place:
        return read_nocloud(place, "/", f"NoCloud disk {device}", candidate)


@contextlib.contextmanager
def mounted(
    root: Path, device: str, run: Run, types: str, options: str = _OPTIONS
) -> Iterator[Path]:
    """The directory where ``device`` is mounted, for as long as the body runs."""
    place = root / MOUNT_POINT
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        run(("mount", "-t", types, "-o", options, "--", device, str(place)), b"")
        try:
            yield place
        finally:
            with contextlib.suppress(CommandFailed):
                run(("umount", "--", str(place)), b"")
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def read(place: Path, path: str, problems: list[Problem]) -> bytes | None:
    """A file below ``place``; ``None`` if it is not there or, with a problem, not readable."""
    try:
        found = files.read(place, path, MAX_BYTES)
    except (FileProblem, OSError) as error:
        problems.append(Problem("error", str(error)))
        return None
    return found.content if found else None


def read_drive(place: Path, name: str) -> Source:
    """docs.openstack.org, "Metadata service": the layout of a config drive, below ``place``."""
    problems: list[Problem] = []

    def get(path: str) -> bytes:
        return read(place, path, problems) or b""

    latest = "/openstack/latest"
    content = openstack.Content(
        meta_data=get(f"{latest}/meta_data.json"),
        network_data=get(f"{latest}/network_data.json"),
        vendor_data=(get(f"{latest}/vendor_data.json"), get(f"{latest}/vendor_data2.json")),
        ec2_meta_data=get("/ec2/latest/meta-data.json"),
        interfaces=lambda path: get(f"/openstack/{path}"),
    )
    metadata, vendor_data = openstack.understand(content, problems)
    user_data = get(f"{latest}/user_data")
    return Source(name, metadata, user_data, tuple(problems), vendor_data)


def read_nocloud(place: Path, folder: str, name: str, candidate: Candidate) -> Source:
    """cloudinit.readthedocs.io, "NoCloud": the files of a disk or of a seed directory."""
    problems: list[Problem] = []

    def get(file: str) -> bytes | None:
        return read(place, f"{folder.rstrip('/')}/{file}", problems)

    content = nocloud.Content(
        get("meta-data"), get("user-data"), get("vendor-data"), get("network-config")
    )
    return nocloud.source(name, content, candidate.seed, problems)


def unreadable(name: str, error: Exception) -> Source:
    """The source is there and tells nothing: its owner's document is not known."""
    return Source(name, Metadata(), None, (Problem("error", f"{name}: {error}"),))
