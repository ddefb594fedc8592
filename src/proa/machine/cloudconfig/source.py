"""Find the document and the metadata that a cloud, or the lab, gives to this machine.

Two kinds of disk are known, by the label of their file system:

    config-2   OpenStack's config drive: openstack/latest/meta_data.json, …/user_data
    cidata     NoCloud (cloud-init): meta-data, user-data

The disk is mounted read-only in a private place, read without following links, and let go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.apply import CommandFailed, Run
from proa.machine.cloudconfig.changes import Metadata
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Items,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    decode,
    load,
)

_LABELS = {
    "config-2": "config drive",
    "CONFIG-2": "config drive",
    "cidata": "NoCloud disk",
    "CIDATA": "NoCloud disk",
}
SETTLE_SECONDS = 10
MOUNT_POINT = "run/proa/configdrive"


@dataclass(frozen=True)
class Source:
    """What was found, and where."""

    name: str
    metadata: Metadata
    user_data: bytes | None
    problems: tuple[Problem, ...] = ()

    @property
    def unread(self) -> bool:
        """Something that is there could not be read: what it would have said is not known."""
        return any(problem.level == "error" for problem in self.problems)


def find(root: Path, run: Run) -> Source | None:
    """The first source that this machine has, or ``None``. An unreadable disk is a problem in it.

    ``root`` is / on a machine; ``run`` runs udevadm, mount and umount.
    """
    labels = root / "dev/disk/by-label"
    found = _labelled(labels)
    if found is None:
        # The disk may be there and udev not done with it. Costs nothing once udev is idle.
        command = ("udevadm", "settle", f"--timeout={SETTLE_SECONDS}")
        with contextlib.suppress(CommandFailed):  # a busy udev is not a reason to give up
            run((*command, f"--exit-if-exists={labels / 'config-2'}"), b"")
        found = _labelled(labels)
    if found is None:
        return None
    device, kind = found
    name = f"{kind} {device}"
    try:
        with _mounted(root, device, run) as place:
            return (
                _read_drive(place, name) if kind == "config drive" else _read_nocloud(place, name)
            )
    except (CommandFailed, OSError) as error:
        return Source(name, Metadata(), None, (Problem("error", f"{name}: {error}"),))


def _labelled(labels: Path) -> tuple[Path, str] | None:
    return next(((labels / n, kind) for n, kind in _LABELS.items() if (labels / n).exists()), None)


@contextlib.contextmanager
def _mounted(root: Path, device: Path, run: Run) -> Iterator[Path]:
    place = root / MOUNT_POINT
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = "ro,nosuid,nodev,noexec"
    run(("mount", "-t", "iso9660,vfat", "-o", options, "--", str(device), str(place)), b"")
    try:
        yield place
    finally:
        with contextlib.suppress(CommandFailed):
            run(("umount", "--", str(place)), b"")
        with contextlib.suppress(OSError):
            place.rmdir()


def _read(place: Path, path: str, problems: list[Problem]) -> bytes:
    try:
        found = files.read(place, path, MAX_BYTES)
    except (FileProblem, OSError) as error:
        problems.append(Problem("error", str(error)))
        return b""
    return found.content if found else b""


def _read_drive(place: Path, name: str) -> Source:
    """docs.openstack.org, "Metadata service": the layout of a config drive."""
    problems: list[Problem] = []
    metadata = drive_metadata(_read(place, "/openstack/latest/meta_data.json", problems), problems)
    user_data = _read(place, "/openstack/latest/user_data", problems)
    return Source(name, metadata, user_data, tuple(problems))


def _read_nocloud(place: Path, name: str) -> Source:
    """cloudinit.readthedocs.io, "NoCloud"; vendor-data and network-config are not taken yet."""
    problems: list[Problem] = []
    metadata = nocloud_metadata(_read(place, "/meta-data", problems), problems)
    user_data = _read(place, "/user-data", problems)
    for path in ("/vendor-data", "/network-config"):
        with contextlib.suppress(FileProblem, OSError):
            if (found := files.read(place, path, MAX_BYTES)) and found.content.strip():
                problems.append(Problem("warning", f"{path[1:]} is not taken yet; ignored"))
    return Source(name, metadata, user_data, tuple(problems))


def drive_metadata(data: bytes, problems: list[Problem]) -> Metadata:
    """``meta_data.json``; what is not as it should be becomes a problem, never an exception."""
    import json

    if not data.strip():
        return Metadata()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        problems.append(Problem("error", "meta_data.json is not JSON; ignored"))
        return Metadata()
    if not isinstance(content, dict):
        problems.append(Problem("error", "meta_data.json is not a JSON object; ignored"))
        return Metadata()
    keys = content.get("public_keys") or {}
    texts = keys.values() if isinstance(keys, dict) else keys if isinstance(keys, list) else ()
    hostname, instance = content.get("hostname"), content.get("uuid")
    return Metadata(
        instance_id=instance if isinstance(instance, str) else "",
        hostname=hostname if isinstance(hostname, str) else "",
        ssh_keys=tuple(key for key in texts if isinstance(key, str)),
    )


def nocloud_metadata(data: bytes, problems: list[Problem]) -> Metadata:
    """``meta-data``: YAML; what is not as it should be becomes a problem, never an exception."""
    try:
        if len(data) > MAX_BYTES:
            raise Refused(f"larger than {MAX_BYTES // 1024} KiB")
        root = load(decode(data))
    except Refused as refused:
        problem = refused.problem
        message = f"meta-data: {problem.message}; ignored"
        problems.append(Problem("error", message, problem.line, problem.column))
        return Metadata()
    if root is None:
        return Metadata()
    if not isinstance(root, Table):
        problems.append(Problem("error", "meta-data is not a mapping; ignored", root.line))
        return Metadata()
    entries = {canonical(key.text): value for key, value in root.entries}
    return Metadata(
        instance_id=_text(entries.get("instance_id")),
        hostname=_text(entries.get("local_hostname")) or _text(entries.get("hostname")),
        ssh_keys=tuple(_texts(entries.get("public_keys"))),
    )


def _text(node: Node | None) -> str:
    return node.text if isinstance(node, Text) and not node.null else ""


def _texts(node: Node | None) -> Iterator[str]:
    """Every text in a list, or among the values of a mapping (the EC2 form nests them)."""
    if isinstance(node, Text) and not node.null:
        yield node.text
    elif isinstance(node, Items):
        for item in node.items:
            yield from _texts(item)
    elif isinstance(node, Table):
        for _, value in node.entries:
            yield from _texts(value)
