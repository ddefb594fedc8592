"""DigitalOcean: one JSON document.

Format: docs.digitalocean.com, "Droplet metadata API", /metadata/v1.json.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources.http import Client
from proa.machine.cloudconfig.sources.reading import addresses, at, json_object, keys, text
from proa.machine.cloudconfig.sources.source import Source


def fetch(client: Client, base: str) -> Source:
    url = f"{base}/metadata/v1.json"
    problems: list[Problem] = []
    raw = json_object(client.get(url), "v1.json", problems)
    if "droplet_id" not in raw:
        client.refuse(url, "is not the description of a droplet")
    given = raw.get("user_data")
    if isinstance(given, str):
        user_data: bytes | None = given.encode()
    else:
        user_data = client.user_data(f"{base}/metadata/v1/user-data", problems)
    vendor = raw.get("vendor_data")
    vendor_data = vendor.encode() if isinstance(vendor, str) and vendor.strip() else None
    name = f"DigitalOcean metadata service ({client.place(base)})"
    return Source(name, metadata(raw), user_data, tuple(problems), vendor_data)


def metadata(raw: dict[str, Any]) -> Metadata:
    public, private = (at(raw, "interfaces", kind, 0) for kind in ("public", "private"))
    network = _network(raw)
    return Metadata(
        instance_id=text(at(raw, "droplet_id")),
        hostname=text(at(raw, "hostname")),
        ssh_keys=keys(at(raw, "public_keys")),
        addresses=addresses(
            {
                "public_ipv4": at(public, "ipv4", "ip_address"),
                "private_ipv4": at(private, "ipv4", "ip_address"),
                "public_ipv6": at(public, "ipv6", "ip_address"),
                "private_ipv6": at(private, "ipv6", "ip_address"),
            }
        ),
        cloud="digitalocean",
        region=text(at(raw, "region")),
        raw=raw,
        network=("v2", json.dumps(network).encode()) if network else None,
    )


def _network(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The interfaces as network-config version 2: there is no DHCP for them all."""
    servers = at(raw, "dns", "nameservers")
    servers = [text(s) for s in servers if text(s)] if isinstance(servers, list) else []
    ethernets: dict[str, Any] = {}
    for kind in ("public", "private"):
        interface = at(raw, "interfaces", kind, 0)
        mac = text(at(interface, "mac"))
        if not mac:
            continue
        own: dict[str, Any] = {"match": {"macaddress": mac.lower()}, "addresses": []}
        routes = []
        for name in ("ipv4", "ipv6", "anchor_ipv4"):
            address = text(at(interface, name, "ip_address"))
            length = _length(at(interface, name))
            if not address or length is None:
                continue
            own["addresses"].append(f"{address}/{length}")
            gateway = text(at(interface, name, "gateway"))
            if gateway and kind == "public" and name != "anchor_ipv4":
                routes.append({"to": "default", "via": gateway})
        if not own["addresses"]:
            continue
        if routes:
            own["routes"] = routes
        if kind == "public" and servers:
            own["nameservers"] = {"addresses": servers}
        ethernets[kind] = own
    return {"version": 2, "ethernets": ethernets} if ethernets else None


def _length(part: Any) -> int | None:
    """The length of the prefix, from ``cidr`` or from a dotted ``netmask``."""
    cidr = at(part, "cidr")
    if isinstance(cidr, int) and not isinstance(cidr, bool) and 0 <= cidr <= 128:
        return cidr
    try:
        mask = int.from_bytes(socket.inet_pton(socket.AF_INET, text(at(part, "netmask"))), "big")
    except (OSError, ValueError):
        return None
    inverted = mask ^ 0xFFFFFFFF
    return None if inverted & (inverted + 1) else mask.bit_count()
