"""OpenStack's ``network_data.json``: links, the networks on them, and services.

Source: nova's JSON schema of it, and what cloud-init makes of it. Interfaces are found by their
MAC addresses; the ids in the file are names of the host's devices and mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import Addressing, Description, Link, Match, Route, join
from proa.machine.cloudconfig.network.parameters import BOND, NOT_TAKEN_BOND
from proa.machine.cloudconfig.network.reading import (
    Entries,
    each,
    entry,
    few,
    finish,
    parameters,
    place,
    value,
)
from proa.machine.cloudconfig.network.v1 import read_route, with_netmask
from proa.machine.cloudconfig.network.values import Address
from proa.machine.cloudconfig.parse import Node, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass, replace

# With what the schema has that says nothing about the machine's own network.
_LINK = ("id", "type", "name", "mtu", "ethernet_mac_address", "vif_id", "neutron_port_id")
_OWN: Mapping[str, tuple[str, ...]] = {
    "bond": tuple(f"bond_{name}" for name in (*BOND, "links", "primary")),
    "vlan": ("vlan_link", "vlan_id", "vlan_mac_address"),
}
_NOT_TAKEN = {f"bond_{name}": why for name, why in NOT_TAKEN_BOND.items()}
_NETWORK = (
    *("id", "network_id", "neutron_network_id", "link", "type", "ip_address", "netmask"),
    *("gateway", "routes", "services", "dns_nameservers", "metadata"),
)
_TYPES: Mapping[str, Addressing] = {
    "ipv4": Addressing(),
    "static": Addressing(),
    # A static address means that the router's word is not wanted, unless another network wants it.
    "ipv6": Addressing(accept_ra=False),
    "static6": Addressing(accept_ra=False),
    "ipv4_dhcp": Addressing(dhcp4=True),
    "ipv6_dhcp": Addressing(dhcp6=True, accept_ra=True),
    "ipv6_dhcpv6-stateful": Addressing(dhcp6=True, accept_ra=True),
    "ipv6_dhcpv6-stateless": Addressing(accept_ra=True),
    "ipv6_slaac": Addressing(accept_ra=True),
}


def read(r: Reader, root: Node) -> Description:
    top = r.table(root, "", ("links", "networks", "services"))
    nodes = r.items(few(r, top.get("links"), "links"), "links")
    names = _names(nodes)
    networks = r.each(few(r, top.get("networks"), "networks"), "networks", _network)
    links = [_link(r, node, f"links[{i}]", names, networks) for i, node in enumerate(nodes)]
    for network in networks:
        if network.link not in names:
            message = f'a network is on the link "{printable(network.link)}", which is not there'
            r.warn(network.node, "networks", f"{message}; ignored")
    return finish(r, links, r.each(top.get("services"), "services", _service))


def _names(nodes: Sequence[Node]) -> dict[str, str]:
    """What the link of each id is called: a card by its id, bonds and VLANs by what they are."""
    names = {_text(node, "id"): _text(node, "id") for node in nodes}
    taken: set[str] = set()
    for kind in ("bond", "vlan"):
        for number, node in enumerate(node for node in nodes if _text(node, "type") == kind):
            wanted = _text(node, "name") or f"bond{number}"
            if kind == "vlan" and not _text(node, "name"):
                below, tag = names.get(_text(node, "vlan_link"), ""), _text(node, "vlan_id")
                wanted = f"{below}.{tag}" if below.startswith("bond") else f"vlan{tag}"
            if wanted in taken:  # the same VLAN on another card
                wanted = f"{wanted}.{number}"
            taken.add(wanted)
            names[_text(node, "id")] = wanted
    return names


def _text(node: Node, name: str) -> str:
    found = entry(node, name)
    return found.text if isinstance(found, Text) else ""


def _link(
    r: Reader, node: Node, key: str, names: Mapping[str, str], networks: Sequence[_Network]
) -> Link | None:
    kind = _text(node, "type")
    e = r.table(node, key, (*_LINK, *_OWN.get(kind, ())), _NOT_TAKEN if kind == "bond" else None)
    for needed in ("id", "type"):
        if needed not in e:
            r.error(node, f"{key}.{needed}", f"{key} has no {needed}")
    id = value(r, e.get("id"), f"{key}.id", values.identifier)
    mac = value(r, e.get("ethernet_mac_address"), f"{key}.ethernet_mac_address", values.mac) or ""
    if id is None:
        return None
    link = Link(
        names[id],
        mtu=value(r, e.get("mtu"), f"{key}.mtu", values.mtu),
        addressing=join(one.addressing for one in networks if one.link == id),
        at=place(node),
    )
    if kind == "bond":
        return _bond(r, e, key, replace(link, kind="bond", mac=mac), names)
    if kind == "vlan":
        return _vlan(r, node, e, key, replace(link, kind="vlan", mac=mac), names)
    name = value(r, e.get("name"), f"{key}.name", values.name) or ""
    if not mac and not name:
        message = f"{key} has no ethernet_mac_address to find it by"
        r.error(node, f"{key}.ethernet_mac_address", message)
    match = Match(mac=mac) if mac else Match(name=name)
    return replace(link, match=match, rename=name if mac else "")


def _bond(r: Reader, e: Entries, key: str, link: Link, names: Mapping[str, str]) -> Link:
    _made_name(r, e, key, link)
    ports = each(r, e.get("bond_links"), f"{key}.bond_links", values.identifier)
    for port in ports:
        if port not in names:
            message = f'{key}.bond_links: there is no link "{port}"'
            r.error(e["bond_links"], f"{key}.bond_links", message)
    primary = value(r, e.get("bond_primary"), f"{key}.bond_primary", values.identifier) or ""
    settings = {name.removeprefix("bond_"): node for name, node in e.items()}
    return replace(
        link,
        members=tuple(names.get(port, port) for port in ports),
        primary=names.get(primary, primary),
        parameters=parameters(r, settings, key, BOND),
    )


def _vlan(
    r: Reader, node: Node, e: Entries, key: str, link: Link, names: Mapping[str, str]
) -> Link:
    for needed in ("vlan_link", "vlan_id"):
        if needed not in e:
            r.error(node, f"{key}.{needed}", f"{key} has no {needed}")
    number = value(r, e.get("vlan_id"), f"{key}.vlan_id", values.vlan_id)
    if number is not None:
        _made_name(r, e, key, link)
    parent = value(r, e.get("vlan_link"), f"{key}.vlan_link", values.identifier) or ""
    if parent and parent not in names:
        message = f'{key}.vlan_link: there is no link "{parent}"'
        r.error(e["vlan_link"], f"{key}.vlan_link", message)
    mac = value(r, e.get("vlan_mac_address"), f"{key}.vlan_mac_address", values.mac)
    return replace(link, mac=mac or link.mac, parent=names.get(parent, parent), vlan_id=number or 0)


def _made_name(r: Reader, e: Entries, key: str, link: Link) -> None:
    """A bond's or VLAN's name is that of an interface."""
    node = e.get("name", e["id"])
    value(r, Text(link.id, node.line, node.column), f"{key}.name", values.name)


# Networks.


@dataclass(frozen=True)
class _Network:
    """One network, and the id of the link that it is on."""

    link: str
    addressing: Addressing
    node: Node


def _network(r: Reader, node: Node, key: str) -> _Network | None:
    e = r.table(node, key, _NETWORK)
    for needed in ("link", "type"):
        if needed not in e:
            r.error(node, f"{key}.{needed}", f"{key} has no {needed}")
    link = r.text(e.get("link"), f"{key}.link") or ""
    kind = value(r, e.get("type"), f"{key}.type", values.choice(*_TYPES)) or "ipv4_dhcp"
    static = kind in ("ipv4", "static", "ipv6", "static6")
    if static and "ip_address" not in e:
        r.error(node, f"{key}.ip_address", f"{key} is {kind} and has no ip_address")
    with_address = {**e, "address": e["ip_address"]} if static and "ip_address" in e else {}
    assigned = with_netmask(r, with_address, key) if with_address else None
    via = value(r, e.get("gateway"), f"{key}.gateway", values.address)
    gateway = () if via is None else (Route(values.everywhere(via.version), via),)
    servers = list(each(r, e.get("dns_nameservers"), f"{key}.dns_nameservers", values.address))
    servers += r.each(e.get("services"), f"{key}.services", _service)
    own = Addressing(
        addresses=() if assigned is None else (assigned,),
        routes=(*gateway, *r.each(e.get("routes"), f"{key}.routes", read_route)),
        nameservers=tuple(servers),
    )
    return _Network(link, join((_TYPES[kind], own)), node)


def _service(r: Reader, node: Node, key: str) -> Address | None:
    e = r.table(node, key, ("type", "address"))
    kind = r.text(e.get("type"), f"{key}.type")
    if kind != "dns":
        r.warn(node, f"{key}.type", f'{key} is of the type "{printable(kind or "")}"; ignored')
        return None
    return value(r, e.get("address"), f"{key}.address", values.address)
