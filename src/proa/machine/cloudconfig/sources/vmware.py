"""VMware: ``guestinfo`` values, asked of the hypervisor or handed over as an OVF environment.

Names: those of coreos-cloudinit (``coreos.config.data``, ``interface.0.ip.0.address``, …), of
cloud-init (``userdata``, ``metadata``, …) and of Ignition, and cloud-init's names for OVF.
The hypervisor is asked by ``vmware-rpctool`` or ``vmtoolsd``, programs of open-vm-tools.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem, Refused, Table, Text
from proa.machine.cloudconfig.sources import azure, ovf
from proa.machine.cloudconfig.sources.detect import Candidate
from proa.machine.cloudconfig.sources.disk import mounted, read
from proa.machine.cloudconfig.sources.nocloud import from_table
from proa.machine.cloudconfig.sources.reading import (
    flow,
    keys,
    members,
    node_text,
    text,
    unpack,
    yaml_table,
)
from proa.machine.cloudconfig.sources.source import Edge, Source
from proa.machine.record import replace

Get = Callable[[str], str]
"""The value of a name without its ``guestinfo.``; empty if it has none."""

MAX_INTERFACES = 8
MAX_OF_EACH = 8
"""Interfaces, and addresses and routes of each, that are asked for: each is a program run."""

_TOOLS = (("vmware-rpctool",), ("vmtoolsd", "--cmd"))


def guestinfo(candidate: Candidate, edge: Edge) -> Source | None:
    tool = _tool(edge)
    if tool is None:
        message = (
            "this is a VMware guest without vmware-rpctool (open-vm-tools): guestinfo is not read"
        )
        return Source("VMware guestinfo", Metadata(), None, (Problem("warning", message),))

    def get(name: str) -> str:
        try:
            answer = edge.capture((*tool, f"info-get guestinfo.{name}"))
        except CommandFailed:  # how it says that there is no such value
            return ""
        value = (answer or b"")[:MAX_BYTES].decode("utf-8", "replace").strip()
        return "" if value == "---" else value  # cloud-init's mark for a value that was taken away

    return understand("VMware guestinfo", get)


def _tool(edge: Edge) -> tuple[str, ...] | None:
    for tool in _TOOLS:
        try:
            if edge.capture((*tool, "info-get guestinfo.hostname")) is not None:
                return tool
        except CommandFailed:
            return tool  # it is there and says that there is no such value
    return None


def ovf_disc(candidate: Candidate, edge: Edge) -> Source | None:
    device = edge.root / candidate.at.lstrip("/")
    name = f"OVF environment {device}"
    problems: list[Problem] = []
    with mounted(edge.root, str(device), edge.run, "iso9660,udf,vfat") as place:
        data = read(place, "/ovf-env.xml", problems)
    return from_environment(name, data, problems)


def from_environment(name: str, data: bytes | None, problems: list[Problem]) -> Source | None:
    if data is None:
        return Source(name, Metadata(), None, tuple(problems)) if problems else None
    try:
        environment = ovf.parse(data)
    except Refused as refused:
        problem = refused.problem
        message = f"ovf-env.xml: {problem.message}"
        problems.append(Problem("error", message, problem.line, problem.column))
        return Source(name, Metadata(), None, tuple(problems))
    if environment.azure:
        return azure.from_disc(name, environment)
    values = {
        key.removeprefix("guestinfo."): value for key, value in environment.properties.items()
    }
    return understand(name, lambda key: values.get(key, ""))


def understand(name: str, get: Get) -> Source | None:
    """``None`` where no value that we know is set."""
    problems: list[Problem] = []
    user_data = None
    for key in ("coreos.config.data", "ignition.config.data", "userdata"):
        if value := get(key):
            encoding = get(f"{key}.encoding")
            user_data = unpack(value.encode(), encoding, f"guestinfo.{key}", problems)
            break
    else:
        if value := get("user-data"):
            # OVF's is base64 by convention; one that is not is taken as it is.
            user_data = unpack(value.encode(), "base64", "user-data", []) or value.encode()
    vendor_data = None
    if value := get("vendordata"):
        encoding = get("vendordata.encoding")
        vendor_data = unpack(value.encode(), encoding, "guestinfo.vendordata", problems)
    metadata = _metadata(get, problems)
    follow = ""
    if user_data is None and not problems:
        follow = get("coreos.config.url") or get("seedfrom")
        if follow and not get("coreos.config.url"):
            follow = f"{follow.rstrip('/')}/user-data"
    nothing = user_data is None and vendor_data is None and metadata == Metadata()
    if nothing and not follow and not problems:
        return None
    return Source(name, metadata, user_data, tuple(problems), vendor_data, follow=follow)


def _metadata(get: Get, problems: list[Problem]) -> Metadata:
    metadata = Metadata()
    if value := get("metadata"):
        encoding = get("metadata.encoding")
        data = unpack(value.encode(), encoding, "guestinfo.metadata", problems) or b""
        if root := yaml_table(data, "guestinfo.metadata", problems):
            metadata = replace(from_table(root), network=_network(root, problems))
    own = _interfaces(get)
    if own and metadata.network is None:
        import json

        metadata = replace(metadata, network=("vmware", json.dumps(own).encode()))
    return replace(
        metadata,
        instance_id=metadata.instance_id or text(get("instance-id")),
        hostname=metadata.hostname or text(get("hostname")),
        ssh_keys=metadata.ssh_keys or keys(get("public-keys")),
    )


def _network(root: Table, problems: list[Problem]) -> tuple[str, bytes] | None:
    """``network`` of the metadata: a mapping, or one that is packed into a text."""
    entries = members(root)
    node = entries.get("network")
    if isinstance(node, Table):
        return "cloud-init", flow(node)
    if isinstance(node, Text) and node.text.strip():
        encoding = node_text(entries.get("network.encoding"))
        data = unpack(node.text.encode(), encoding, "guestinfo.metadata: network", problems)
        return ("cloud-init", data) if data else None
    return None


def _interfaces(get: Get) -> dict[str, str]:
    """CoreOS's own names for interfaces and DNS (reference/coreos/cloudinit.md 3.6)."""
    found: dict[str, str] = {}

    def take(*names: str) -> bool:
        values = {name: value for name in names if (value := get(name))}
        found.update(values)
        return bool(values)

    for number in range(MAX_INTERFACES):
        base = f"interface.{number}"
        if not take(*(f"{base}.{name}" for name in ("name", "mac", "dhcp", "role"))):
            break
        for address in range(MAX_OF_EACH):
            if not take(f"{base}.ip.{address}.address"):
                break
        for route in range(MAX_OF_EACH):
            names = (f"{base}.route.{route}.{name}" for name in ("gateway", "destination"))
            if not take(*names):
                break
    for name in ("server", "domain"):
        for number in range(MAX_OF_EACH):
            if not take(f"dns.{name}.{number}"):
                break
    return found
