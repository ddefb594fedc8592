"""NoCloud: meta-data, user-data, vendor-data and network-config, from wherever they are.

Format: cloudinit.readthedocs.io, "NoCloud". A disk, a seed directory, systemd credentials, QEMU's
fw_cfg and an address on the network all bring these four.
"""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem, Table
from proa.machine.cloudconfig.sources.reading import (
    MAX_KEYS,
    addresses,
    members,
    node_text,
    node_texts,
    plain,
    text,
    yaml_table,
)
from proa.machine.cloudconfig.sources.source import Source
from proa.machine.record import dataclass, field, replace


@dataclass(frozen=True)
class Content:
    """The four as they were read; ``None`` for one that is not there."""

    meta_data: bytes | None = field(default=None, repr=False)
    user_data: bytes | None = field(default=None, repr=False)
    vendor_data: bytes | None = field(default=None, repr=False)
    network_config: bytes | None = field(default=None, repr=False)


def source(name: str, content: Content, seed: Mapping[str, str], problems: list[Problem]) -> Source:
    """``seed`` (from ``ds=nocloud;…``) goes before what the meta-data says."""
    metadata = nocloud_metadata(content.meta_data or b"", problems)
    if content.network_config and content.network_config.strip():
        metadata = replace(metadata, network=("cloud-init", content.network_config))
    metadata = with_seed(metadata, seed)
    follow = text(metadata.raw.get("seedfrom")) if content.user_data is None else ""
    if follow:
        follow = f"{follow.rstrip('/')}/user-data"
    user_data = content.user_data if content.user_data is not None else b""
    vendor_data = content.vendor_data or None
    return Source(name, metadata, user_data, tuple(problems), vendor_data, follow=follow)


def with_seed(metadata: Metadata, seed: Mapping[str, str]) -> Metadata:
    given = {name: value for name, value in seed.items() if name != "seedfrom"}
    if not given:
        return metadata
    return replace(
        metadata,
        instance_id=text(given.get("instance-id")) or metadata.instance_id,
        hostname=text(given.get("local-hostname")) or metadata.hostname,
        raw={**metadata.raw, **given},
    )


def nocloud_metadata(data: bytes, problems: list[Problem], what: str = "meta-data") -> Metadata:
    """``meta-data``: YAML; what is not as it should be becomes a problem, never an exception."""
    root = yaml_table(data, what, problems)
    return from_table(root) if root is not None else Metadata()


def from_table(root: Table) -> Metadata:
    """The names that NoCloud, VMware's guestinfo and Hetzner have in common."""
    entries = members(root)

    def one(*names: str) -> str:
        return next((value for n in names if (value := text(node_text(entries.get(n))))), "")

    interfaces = node_text(entries.get("network_interfaces"))
    return Metadata(
        instance_id=one("instance_id"),
        hostname=one("local_hostname", "hostname"),
        ssh_keys=tuple(node_texts(entries.get("public_keys_data") or entries.get("public_keys")))[
            :MAX_KEYS
        ],
        addresses=addresses(
            {
                "private_ipv4": one("local_ipv4"),
                "public_ipv4": one("public_ipv4"),
                "private_ipv6": one("local_ipv6"),
                "public_ipv6": one("public_ipv6"),
            }
        ),
        cloud=one("cloud_name"),
        region=one("region"),
        zone=one("availability_zone"),
        instance_type=one("instance_type"),
        raw=plain(root),
        network=("eni", interfaces.encode()) if interfaces.strip() else None,
    )
