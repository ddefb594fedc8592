"""Sources on the network: which function asks which, and those that are small.

Hetzner: docs.hetzner.cloud, "Server metadata". Oracle: docs.oracle.com, "Instance metadata",
version 2. Equinix Metal (Packet): deploy.equinix.com, "Metadata".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem, Table
from proa.machine.cloudconfig.sources import nocloud
from proa.machine.cloudconfig.sources.detect import Candidate
from proa.machine.cloudconfig.sources.http import Client, shown
from proa.machine.cloudconfig.sources.race import Racer
from proa.machine.cloudconfig.sources.reading import (
    addresses,
    at,
    flow,
    json_object,
    keys,
    members,
    text,
    unpack,
    yaml_table,
)
from proa.machine.cloudconfig.sources.source import Edge, Source
from proa.machine.record import replace


def racer(candidate: Candidate, edge: Edge) -> Racer:
    """Who asks this candidate; the name is for people."""
    base = candidate.at.rstrip("/")
    if candidate.kind == "url":
        return Racer(f"cloud-config-url {shown(candidate.at)}", _url(candidate.at), True)
    if candidate.kind == "nocloud":
        return Racer(f"NoCloud {shown(base)}", _nocloud(candidate), candidate.explicit)
    fetch = _FETCHERS[candidate.kind]
    name = f"{_NAMES[candidate.kind]} metadata service ({Client.place(base)})"
    return Racer(name, lambda client: fetch(client, base, edge), candidate.explicit)


def _ec2(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import ec2

    return ec2.fetch(client, base)


def _aliyun(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import ec2

    return ec2.fetch(client, base, "Aliyun")


def _gce(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import gce

    return gce.fetch(client, base)


def _azure(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import azure

    return azure.fetch(client, base, edge)


def _openstack(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import openstack

    return openstack.fetch(client, base)


def _digitalocean(client: Client, base: str, edge: Edge) -> Source:
    from proa.machine.cloudconfig.sources import digitalocean

    return digitalocean.fetch(client, base)


def _url(url: str) -> Callable[[Client], Source]:
    def fetch(client: Client) -> Source:
        return Source(f"cloud-config-url {shown(url)}", Metadata(), client.get(url))

    return fetch


def _nocloud(candidate: Candidate) -> Callable[[Client], Source]:
    base = candidate.at.rstrip("/")

    def fetch(client: Client) -> Source:
        problems: list[Problem] = []
        # A missing meta-data is as good as an empty one; a missing user-data too. One of the two
        # must be there, or the address is wrong.
        meta, user, vendor, network = client.together(
            lambda: client.optional(f"{base}/meta-data"),
            lambda: client.user_data(f"{base}/user-data", problems),
            lambda: client.soon(f"{base}/vendor-data"),
            lambda: client.soon(f"{base}/network-config"),
        )
        if meta is None and user is None and not problems:
            client.refuse(base, "has neither meta-data nor user-data")
        content = nocloud.Content(meta, user, vendor, network)
        return nocloud.source(f"NoCloud {shown(base)}", content, candidate.seed, problems)

    return fetch


def _hetzner(client: Client, base: str, edge: Edge) -> Source:
    problems: list[Problem] = []
    root = f"{base}/hetzner/v1"
    table = yaml_table(client.get(f"{root}/metadata"), "metadata", problems)
    metadata = nocloud.from_table(table) if table else Metadata()
    if table is None or not metadata.instance_id:
        client.refuse(f"{root}/metadata", "is not the description of a server")
    user_data = client.user_data(f"{root}/userdata", problems)
    if isinstance(network := members(table).get("network_config"), Table):
        metadata = replace(metadata, network=("v1", flow(network)))
    vendor = metadata.raw.get("vendor_data")
    vendor_data = vendor.encode() if isinstance(vendor, str) and vendor.strip() else None
    name = f"Hetzner metadata service ({client.place(base)})"
    metadata = replace(metadata, cloud="hetzner")
    return Source(name, metadata, user_data, tuple(problems), vendor_data)


def _oracle(client: Client, base: str, edge: Edge) -> Source:
    url = f"{base}/opc/v2/instance/"
    problems: list[Problem] = []
    raw = json_object(client.get(url, {"Authorization": "Bearer Oracle"}), "instance", problems)
    if not isinstance(raw.get("id"), str):
        client.refuse(url, "is not Oracle's description of an instance")
    user_data = None
    if isinstance(packed := at(raw, "metadata", "user_data"), str):
        user_data = unpack(packed.encode(), "base64", "user_data", problems)
    metadata = Metadata(
        instance_id=text(raw["id"]),
        hostname=text(at(raw, "hostname")) or text(at(raw, "displayName")),
        ssh_keys=keys(at(raw, "metadata", "ssh_authorized_keys")),
        cloud="oracle",
        region=text(at(raw, "canonicalRegionName")) or text(at(raw, "region")),
        zone=text(at(raw, "availabilityDomain")),
        instance_type=text(at(raw, "shape")),
        raw=raw,
    )
    name = f"Oracle metadata service ({client.place(base)})"
    return Source(name, metadata, user_data, tuple(problems))


def _packet(client: Client, base: str, edge: Edge) -> Source:
    problems: list[Problem] = []
    raw = json_object(client.get(f"{base}/metadata"), "metadata", problems)
    if not isinstance(raw.get("id"), str):
        client.refuse(f"{base}/metadata", "is not the description of a machine")
    user_data = client.user_data(f"{base}/userdata", problems)
    given: dict[str, object] = {}
    listed = at(raw, "network", "addresses")
    for address in listed if isinstance(listed, list) else ():
        family = at(address, "address_family")
        if family in (4, 6) and isinstance(at(address, "public"), bool):
            kind = "public" if at(address, "public") else "private"
            given.setdefault(f"{kind}_ipv{family}", at(address, "address"))
    network = None
    if isinstance(raw.get("network"), dict):
        import json

        network = ("packet", json.dumps(raw["network"]).encode())
    metadata = Metadata(
        instance_id=text(raw["id"]),
        hostname=text(at(raw, "hostname")),
        ssh_keys=keys(at(raw, "ssh_keys")),
        addresses=addresses(given),
        cloud="packet",
        region=text(at(raw, "metro")),
        zone=text(at(raw, "facility")),
        instance_type=text(at(raw, "plan")),
        raw=raw,
        network=network,
    )
    name = f"Equinix Metal metadata service ({client.place(base)})"
    return Source(name, metadata, user_data, tuple(problems))


_FETCHERS: Mapping[str, Callable[[Client, str, Edge], Source]] = {
    "ec2": _ec2,
    "gce": _gce,
    "azure": _azure,
    "openstack": _openstack,
    "digitalocean": _digitalocean,
    "packet": _packet,
    "hetzner": _hetzner,
    "oracle": _oracle,
    "aliyun": _aliyun,
}

_NAMES = {
    "ec2": "EC2",
    "gce": "GCE",
    "azure": "Azure",
    "openstack": "OpenStack",
    "digitalocean": "DigitalOcean",
    "packet": "Equinix Metal",
    "hetzner": "Hetzner",
    "oracle": "Oracle",
    "aliyun": "Aliyun",
}
