"""What a cloud says of this machine, apart from the document that the owner gave it."""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.hints import Any
from proa.machine.record import dataclass, field

NETWORK_KINDS = ("cloud-init", "v1", "v2", "eni", "openstack", "packet", "vmware")
"""How a description of the network is written: cloud-init's ``network-config`` of either version,
with or without ``network:`` around it; version 1 or 2 for certain; Debian's ``interfaces``;
OpenStack's ``network_data.json``; the ``network`` object of Equinix Metal's metadata; and the
``guestinfo`` names of CoreOS for VMware as one JSON object of texts, without ``guestinfo.``."""


@dataclass(frozen=True)
class Metadata:
    """What is not known is empty.

    ``addresses`` has the keys ``public_ipv4``, ``private_ipv4``, ``public_ipv6`` and
    ``private_ipv6``, each a valid address. ``raw`` is what the source said, as plain JSON values.
    ``network`` is a kind of :data:`NETWORK_KINDS` and the description itself.
    """

    instance_id: str = ""
    hostname: str = ""
    ssh_keys: tuple[str, ...] = field(default=(), repr=False)
    addresses: Mapping[str, str] = field(default_factory=dict)
    cloud: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    network: tuple[str, bytes] | None = field(default=None, repr=False)


NO_METADATA = Metadata()
