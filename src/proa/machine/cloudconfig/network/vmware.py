"""VMware's guestinfo variables: ``interface.0.name``, ``dns.server.0`` and their kin.

Source: coreos-cloudinit 1.14 (``-convert-netconf vmware``) and its documentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import (
    Addressing,
    Assigned,
    Description,
    Link,
    Match,
    Route,
    join,
)
from proa.machine.cloudconfig.network.reading import finish, named, place, value
from proa.machine.cloudconfig.parse import Node, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import replace

_INDEX = r"(0|[1-9][0-9]{0,2})"
_OF_INTERFACE = re.compile(
    rf"interface\.{_INDEX}\.(name|mac|dhcp|role|ip\.{_INDEX}\.address"
    rf"|route\.{_INDEX}\.(?:gateway|destination))"
)
_OF_DNS = re.compile(rf"dns\.(server|domain)\.{_INDEX}")
# Read elsewhere: the host name and where the cloud-config is.
_ELSEWHERE = re.compile(r"hostname|coreos\.config\.(data|data\.encoding|url)|userdata.*|metadata.*")

Variables = Mapping[str, Node]


def read(r: Reader, root: Node) -> Description:
    interfaces: dict[int, dict[str, Node]] = {}
    dns: dict[str, dict[int, Node]] = {"server": {}, "domain": {}}
    for word, node in named(r, root, ""):
        name = word.text.removeprefix("guestinfo.")
        if match := _OF_INTERFACE.fullmatch(name):
            interfaces.setdefault(int(match[1]), {})[match[2]] = node
        elif match := _OF_DNS.fullmatch(name):
            dns[match[1]][int(match[2])] = node
        elif not _ELSEWHERE.fullmatch(name):
            shown = printable(name)
            r.warn(word, shown, f"{shown} is not a known variable; ignored")
    servers = [
        value(r, node, f"dns.server.{number}", values.address)
        for number, node in sorted(dns["server"].items())
    ]
    domains = [
        value(r, node, f"dns.domain.{number}", values.domain)
        for number, node in sorted(dns["domain"].items())
    ]
    names = Addressing(
        nameservers=tuple(server for server in servers if server is not None),
        search=tuple(domain for domain in domains if domain is not None),
    )
    links = [_link(r, interfaces[number], number) for number in sorted(interfaces)]
    if any(link is not None and link.addressing.addresses for link in links):
        return finish(r, [_with_names(link, names) for link in links])
    return finish(r, links, names.nameservers, names.search)


def _with_names(link: Link | None, names: Addressing) -> Link | None:
    """As CoreOS had it: name servers belong to the interfaces with addresses of their own."""
    if link is None or not link.addressing.addresses:
        return link
    return replace(link, addressing=join((link.addressing, names)))


def _link(r: Reader, e: Variables, number: int) -> Link | None:
    key = f"interface.{number}"
    name = value(r, e.get("name"), f"{key}.name", values.name) or ""
    mac = value(r, e.get("mac"), f"{key}.mac", values.mac) or ""
    dhcp = value(r, e.get("dhcp"), f"{key}.dhcp", values.choice("yes", "no")) == "yes"
    addresses = _addresses(r, e, key)
    routes = _routes(r, e, key)
    node = next(iter(e.values()))
    if dhcp and (addresses or routes):
        r.warn(e["dhcp"], f"{key}.dhcp", f"{key}.dhcp is ignored: there are addresses or routes")
    elif not dhcp and not addresses and not routes:
        r.warn(node, key, f"{key} has no addresses and no dhcp; ignored")
        return None
    return Link(
        name or (f"mac-{mac.replace(':', '')}" if mac else "any"),
        # Without both it is every card, as in CoreOS.
        match=Match(name, mac),
        addressing=Addressing(
            dhcp4=dhcp and not addresses and not routes,
            dhcp6=dhcp and not addresses and not routes,
            addresses=addresses,
            routes=routes,
        ),
        at=place(node),
    )


def _numbers(e: Variables, kind: str) -> list[int]:
    """The indices that there are of ``ip`` or ``route``."""
    found = (name.split(".") for name in e)
    return sorted({int(parts[1]) for parts in found if parts[0] == kind})


def _addresses(r: Reader, e: Variables, key: str) -> tuple[Assigned, ...]:
    found = (
        value(r, e[f"ip.{i}.address"], f"{key}.ip.{i}.address", values.interface)
        for i in _numbers(e, "ip")
    )
    return tuple(Assigned(interface) for interface in found if interface is not None)


def _routes(r: Reader, e: Variables, key: str) -> tuple[Route, ...]:
    routes: list[Route] = []
    for i in _numbers(e, "route"):
        full = f"{key}.route.{i}"
        gateway, destination = e.get(f"route.{i}.gateway"), e.get(f"route.{i}.destination")
        if gateway is None or destination is None:
            there = "destination" if gateway is None else "gateway"
            lacking = "gateway" if gateway is None else "destination"
            r.error(e[f"route.{i}.{there}"], full, f"{full} has no {lacking}")
            continue
        via = value(r, gateway, f"{full}.gateway", values.address)
        to = value(r, destination, f"{full}.destination", values.network)
        if via is None or to is None:
            continue
        if via.version != to.version:
            r.error(gateway, full, f"{full} goes to IPv{to.version} by way of IPv{via.version}")
        routes.append(Route(to, via))
    return tuple(routes)
