"""OpenStack: the same JSON documents from a config drive and from the metadata service.

Format: docs.openstack.org, "Metadata service". Rackspace's config drive is this too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources.reading import addresses, at, json_object, keys, text
from proa.machine.cloudconfig.sources.source import Source
from proa.machine.hints import TYPE_CHECKING, Any, TypeGuard
from proa.machine.record import dataclass, field, replace

if TYPE_CHECKING:  # a config drive needs no HTTP
    from proa.machine.cloudconfig.sources.http import Client

_CONTENT = re.compile(r"/?[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,4}")


@dataclass(frozen=True)
class Content:
    """The documents as they were read, empty where there is none.

    ``interfaces`` gets the file that ``network_config.content_path`` names, below ``openstack/``.
    """

    meta_data: bytes = field(repr=False)
    network_data: bytes = field(repr=False)
    vendor_data: tuple[bytes, bytes] = field(repr=False)
    ec2_meta_data: bytes = field(repr=False)
    interfaces: Callable[[str], bytes]


def understand(content: Content, problems: list[Problem]) -> tuple[Metadata, bytes | None]:
    """The metadata and the vendor-data."""
    raw = json_object(content.meta_data, "meta_data.json", problems)
    network: tuple[str, bytes] | None = None
    path = at(raw, "network_config", "content_path")
    if content.network_data.strip():
        network = ("openstack", content.network_data)
    elif _is_content(path) and (found := content.interfaces(path.strip("/"))):
        network = ("eni", found)  # older clouds have Debian's file of interfaces
    doubts: list[Problem] = []  # of a document that this one does without
    ec2 = json_object(content.ec2_meta_data, "ec2/latest/meta-data.json", doubts)
    metadata = Metadata(
        instance_id=text(at(raw, "uuid")),
        hostname=text(at(raw, "hostname")),
        ssh_keys=keys(at(raw, "public_keys")),
        addresses=addresses(
            {"private_ipv4": at(ec2, "local-ipv4"), "public_ipv4": at(ec2, "public-ipv4")}
        ),
        cloud="openstack" if raw else "",
        zone=text(at(raw, "availability_zone")),
        region=text(at(raw, "region_name")),
        instance_type=text(at(raw, "meta", "instance_type")) or text(at(ec2, "instance-type")),
        raw=raw,
        network=network,
    )
    return metadata, _vendor_data(content.vendor_data, problems)


def _is_content(path: Any) -> TypeGuard[str]:
    """It becomes a path below a disk that was mounted, and must not lead out of there."""
    return isinstance(path, str) and bool(_CONTENT.fullmatch(path)) and ".." not in path


def drive_metadata(data: bytes, problems: list[Problem]) -> Metadata:
    """``meta_data.json`` alone."""
    return understand(Content(data, b"", (b"", b""), b"", lambda _: b""), problems)[0]


def _vendor_data(documents: tuple[bytes, bytes], problems: list[Problem]) -> bytes | None:
    """The part for cloud-init of vendor_data.json, or else of vendor_data2.json."""
    for data, name in zip(documents, ("vendor_data.json", "vendor_data2.json"), strict=True):
        doubts: list[Problem] = []
        found: Any = json_object(data, name, doubts).get("cloud-init")
        if name == "vendor_data2.json" and isinstance(found, dict):
            found = found.get("cloud-init")
        # Vendor-data is an extra: an unreadable one must not refuse the owner's document.
        problems += [Problem("warning", problem.message) for problem in doubts]
        if isinstance(found, str) and found.strip():
            return found.encode()
    return None


def fetch(client: Client, base: str) -> Source:
    root = f"{base}/openstack/latest"
    problems: list[Problem] = []
    meta_data = client.get(f"{root}/meta_data.json")
    network, vendor, vendor2, ec2_private, ec2_public, user = client.together(
        lambda: client.soon(f"{root}/network_data.json"),
        lambda: client.soon(f"{root}/vendor_data.json"),
        lambda: client.soon(f"{root}/vendor_data2.json"),
        lambda: client.soon(f"{base}/latest/meta-data/local-ipv4"),
        lambda: client.soon(f"{base}/latest/meta-data/public-ipv4"),
        lambda: client.user_data(f"{root}/user_data", problems),
    )
    content = Content(
        meta_data=meta_data,
        network_data=network or b"",
        vendor_data=(vendor or b"", vendor2 or b""),
        ec2_meta_data=b"",
        interfaces=lambda path: client.soon(f"{base}/openstack/{path}") or b"",
    )
    metadata, vendor_data = understand(content, problems)
    if not metadata.raw:
        client.refuse(f"{root}/meta_data.json", "is not a JSON object")
    found = {"private_ipv4": ec2_private, "public_ipv4": ec2_public}
    decoded = {name: (value or b"").decode("utf-8", "replace") for name, value in found.items()}
    metadata = replace(metadata, addresses=addresses(decoded))
    return Source(
        f"OpenStack metadata service ({client.place(base)})",
        metadata,
        user,
        tuple(problems),
        vendor_data,
    )
