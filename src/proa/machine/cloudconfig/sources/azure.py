"""Azure: the provisioning disc with the custom data, and the instance metadata service (IMDS).

Formats: learn.microsoft.com, "Azure Instance Metadata Service"; ovf-env.xml as in :mod:`ovf`.
Custom data is on the disc only, and the ssh keys are in the service only: both are read together.
The disc is there at the first boot and stays away later, so its file is kept where Azure's own
agent keeps it, without the password, and read from there.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem, Refused
from proa.machine.cloudconfig.sources import ovf
from proa.machine.cloudconfig.sources.disk import mounted, read
from proa.machine.cloudconfig.sources.reading import (
    addresses,
    at,
    json_object,
    keys,
    text,
    unpack,
)
from proa.machine.cloudconfig.sources.source import Edge, Source
from proa.machine.hints import TYPE_CHECKING
from proa.machine.record import replace

if TYPE_CHECKING:  # a disc needs no HTTP
    from proa.machine.cloudconfig.sources.http import Client

WIRE_SERVER = "http://168.63.129.16"
"""Where the host listens for the state of its machines."""

KEPT = "/var/lib/waagent/ovf-env.xml"
DEVICES = ("/dev/sr0", "/dev/sr1")

_QUERIES = ("api-version=2021-08-01&extended=true", "api-version=2019-06-01")
_NOT_READY = frozenset({404, 410})
"""What the service answers while it does not know the machine yet."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_PASSWORD = re.compile(rb"(<(?:\w+:)?UserPassword>).*?(</)", re.DOTALL)


def from_disc(name: str, environment: ovf.Environment) -> Source:
    problems: list[Problem] = []
    user_data = None
    if custom := environment.azure.get("CustomData", ""):
        user_data = unpack(custom.encode(), "base64", "CustomData", problems)
    metadata = Metadata(
        hostname=text(environment.azure.get("HostName")), ssh_keys=environment.keys, cloud="azure"
    )
    return Source(name, metadata, user_data, tuple(problems))


def fetch(client: Client, base: str, edge: Edge) -> Source:
    """Both together; what cannot be read of one is a problem beside what the other says."""
    from proa.machine.cloudconfig.sources.http import Failed

    disc = provisioning_disc(edge)
    try:
        raw, problems = _instance(client, base)
    except Failed as failed:
        if disc is None:
            raise
        problem = Problem("warning", f"Azure metadata service: {failed}; only its disc was read")
        return replace(disc, problems=(*disc.problems, problem))
    name = f"Azure metadata service ({client.place(base)})"
    metadata = _metadata(raw)
    user_data = None
    if packed := text_of_any_length(at(raw, "compute", "userData")):
        user_data = unpack(packed.encode(), "base64", "userData", problems)
    if disc is not None:
        name += " and provisioning disc"
        problems = [*disc.problems, *problems]
        user_data = disc.user_data if disc.user_data is not None else user_data
        metadata = replace(
            metadata,
            hostname=metadata.hostname or disc.metadata.hostname,
            ssh_keys=metadata.ssh_keys or disc.metadata.ssh_keys,
        )
    return Source(name, metadata, user_data, tuple(problems))


def text_of_any_length(value: object) -> str:
    return value if isinstance(value, str) else ""


def _instance(client: Client, base: str) -> tuple[dict[str, object], list[Problem]]:
    from proa.machine.cloudconfig.sources.http import Failed

    url = f"{base}/metadata/instance"
    headers = {"Metadata": "true"}
    try:
        data = client.get(f"{url}?{_QUERIES[0]}", headers, not_ready=_NOT_READY)
    except Failed as failed:
        if failed.status != 400:  # a version that this region does not know
            raise
        data = client.get(f"{url}?{_QUERIES[1]}", headers, not_ready=_NOT_READY)
    problems: list[Problem] = []
    raw = json_object(data, "instance", problems)
    if not isinstance(raw.get("compute"), dict):
        client.refuse(url, "is not Azure's description of an instance")
    return raw, problems


def _metadata(raw: dict[str, object]) -> Metadata:
    compute = at(raw, "compute")
    network = at(raw, "network", "interface", 0)
    return Metadata(
        instance_id=text(at(compute, "vmId")).lower(),
        hostname=text(at(compute, "osProfile", "computerName")) or text(at(compute, "name")),
        ssh_keys=tuple(
            # They come with line ends inside.
            "".join(key.splitlines())
            for key in keys(at(compute, "publicKeys"), inside="keyData")
        ),
        addresses=addresses(
            {
                "private_ipv4": at(network, "ipv4", "ipAddress", 0, "privateIpAddress"),
                "public_ipv4": at(network, "ipv4", "ipAddress", 0, "publicIpAddress"),
                "private_ipv6": at(network, "ipv6", "ipAddress", 0, "privateIpAddress"),
                "public_ipv6": at(network, "ipv6", "ipAddress", 0, "publicIpAddress"),
            }
        ),
        cloud="azure",
        region=text(at(compute, "location")),
        zone=text(at(compute, "zone")),
        instance_type=text(at(compute, "vmSize")),
        raw=raw,
    )


def provisioning_disc(edge: Edge) -> Source | None:
    """The disc, or what was kept of it; ``None`` if it never was here."""
    problems: list[Problem] = []
    for device in DEVICES:
        path = edge.root / device.lstrip("/")
        if not path.exists():
            continue
        with (
            contextlib.suppress(CommandFailed, OSError),
            mounted(edge.root, str(path), edge.run, "udf,iso9660") as place,
        ):
            if data := read(place, "/ovf-env.xml", problems):
                return _taken(f"Azure provisioning disc {path}", data, edge, keep=True)
    kept = read(edge.root, KEPT, problems)
    return _taken(f"Azure provisioning disc, kept in {KEPT}", kept, edge) if kept else None


def _taken(name: str, data: bytes, edge: Edge, keep: bool = False) -> Source:
    try:
        source = from_disc(name, ovf.parse(data))
    except Refused as refused:
        problem = refused.problem
        message = f"ovf-env.xml: {problem.message}"
        told = Problem("error", message, problem.line, problem.column)
        return Source(name, Metadata(cloud="azure"), None, (told,))
    if keep:
        data = _PASSWORD.sub(rb"\1\2", data)
        with contextlib.suppress(files.FileProblem, OSError):
            files.make_directory(
                edge.root, KEPT.rpartition("/")[0], 0o700, os.geteuid(), os.getegid()
            )
            files.write(edge.root, KEPT, data, 0o600, os.geteuid(), os.getegid())
    return source


def waagent(folder: Path) -> Source | None:
    """What Azure's agent wrote into its folder, as CoreOS read it; ``None`` if it has not yet.

    ``CustomData`` is the document; SharedConfig.xml has the addresses.
    """
    if not (folder / "provisioned").exists():
        return None
    problems: list[Problem] = []
    user_data = read(folder, "/CustomData", problems) or b""
    given: dict[str, str] = {}
    chosen: list[str] = []

    def start(path: list[str], attributes: dict[str, str]) -> None:
        if path[-1] == "Incarnation":
            chosen[:] = [attributes.get("instance", "")]
        elif path[-1] == "Instance":
            chosen[1:] = [attributes.get("id", "")]
            if chosen[:1] == chosen[1:]:
                given["private_ipv4"] = attributes.get("address", "")
        elif path[-1] == "Endpoint" and chosen[:1] == chosen[1:]:
            public = attributes.get("loadBalancedPublicAddress", "").partition(":")[0]
            given.setdefault("public_ipv4", public)

    if shared := read(folder, "/SharedConfig.xml", problems):
        try:
            ovf.walk(shared, start)
        except Refused as refused:
            message = f"SharedConfig.xml: {refused.problem.message}"
            problems.append(Problem("warning", message, refused.problem.line))
    metadata = Metadata(addresses=addresses(given), cloud="azure")
    return Source(f"waagent {folder}", metadata, user_data, tuple(problems))


# Saying that the machine is there.

_HEALTH = """<?xml version="1.0" encoding="utf-8"?>
<Health xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xmlns:xsd="http://www.w3.org/2001/XMLSchema">
<GoalStateIncarnation>{incarnation}</GoalStateIncarnation>
<Container><ContainerId>{container}</ContainerId>
<RoleInstanceList><Role><InstanceId>{instance}</InstanceId>
<Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>
"""


def report_ready(client: Client, base: str) -> None:
    """Tell Azure that the machine is set up; without that it takes it for failed after a while.

    The exchange is that of Azure's agent (github.com/Azure/WALinuxAgent, wire protocol 2012-11-30):
    who am I, by the host's "goal state", and then my health. Raises :class:`Failed`.
    """
    headers = {"x-ms-agent-name": "proa", "x-ms-version": "2012-11-30"}
    url = f"{base}/machine/?comp=goalstate"
    names = {
        ("GoalState", "Incarnation"): "incarnation",
        ("Container", "ContainerId"): "container",
        ("RoleInstance", "InstanceId"): "instance",
    }
    found: dict[str, str] = {}

    def end(path: list[str], content: str) -> None:
        name = names.get((path[-2], path[-1])) if len(path) > 1 else None
        if name and _IDENTIFIER.fullmatch(content):
            found.setdefault(name, content)

    try:
        ovf.walk(client.get(url, headers, not_ready=_NOT_READY), lambda path, attributes: None, end)
    except Refused:
        client.refuse(url, "is not a goal state")
    if len(found) < len(names):
        client.refuse(url, "is not a goal state")
    health = _HEALTH.format(**found).encode()
    typed = {**headers, "Content-Type": "text/xml; charset=utf-8"}
    place = f"{base}/machine?comp=health"
    client.until(lambda: client.once(place, typed, method="POST", content=health))
