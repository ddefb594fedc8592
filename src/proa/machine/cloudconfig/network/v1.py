"""Version 1: cloud-init's own format, a list of devices with their subnets.

Source: cloud-init's "Networking config Version 1" and its JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import (
    MAX_LINKS,
    Addressing,
    Assigned,
    Description,
    Kind,
    Link,
    Match,
    Route,
    join,
)
from proa.machine.cloudconfig.network.parameters import (
    BOND,
    BRIDGE,
    NOT_TAKEN_BOND,
    NOT_TAKEN_BRIDGE,
    PORT,
)
from proa.machine.cloudconfig.network.reading import (
    REFUSED,
    Entries,
    each,
    entry,
    few,
    finish,
    flag,
    parameters,
    place,
    value,
    without_prefix,
    words,
)
from proa.machine.cloudconfig.network.values import Address, Interface
from proa.machine.cloudconfig.parse import Node, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass, replace

_DEVICE = ("type", "name", "mac_address", "mtu", "subnets", "accept_ra", "wakeonlan", "optional")
_DEVICES: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "physical": ("physical", ()),
    "loopback": ("loopback", ()),
    "bond": ("bond", ("bond_interfaces", "params")),
    "bridge": ("bridge", ("bridge_interfaces", "params")),
    "vlan": ("vlan", ("vlan_link", "vlan_id")),
}


@dataclass(frozen=True)
class _Names:
    """Name servers that an item of the list gives; ``link`` is the device that they are for."""

    nameservers: tuple[Address, ...]
    search: tuple[str, ...]
    link: str = ""


def read(r: Reader, root: Node, key: str = "") -> Description:
    top = r.table(root, key, ("version", "config"))
    config = top.get("config")
    key = f"{key}.config" if key else "config"
    if isinstance(config, Text) and config.text == "disabled":
        return Description()
    items = r.each(few(r, config, key, 2 * MAX_LINKS), key, _item)
    links = [item for item in items if isinstance(item, Link)]
    names = [item for item in items if isinstance(item, _Names)]
    ids = {link.id for link in links}
    for one in names:
        if one.link and one.link not in ids:
            r.warn(config or root, key, f'name servers are for "{one.link}", which is not there')
    links = [_with_names(link, [one for one in names if one.link == link.id]) for link in links]
    links = _with_routes(r, links, [item for item in items if isinstance(item, _Loose)], key)
    rest = [one for one in names if not one.link]
    return finish(
        r,
        links,
        [server for one in rest for server in one.nameservers],
        [domain for one in rest for domain in one.search],
    )


def _item(r: Reader, node: Node, key: str) -> Link | _Names | _Loose | None:
    where = entry(node, "type")
    kind = r.text(where, f"{key}.type")
    if kind is not None and kind in _DEVICES:
        return _device(r, node, key, *_DEVICES[kind])
    if kind == "nameserver":
        e = r.table(node, key, ("type", "address", "search", "interface"))
        return _Names(
            each(r, e.get("address"), f"{key}.address", values.address),
            each(r, e.get("search"), f"{key}.search", values.domain),
            value(r, e.get("interface"), f"{key}.interface", values.name) or "",
        )
    if kind == "route":
        route = read_route(r, node, key, ("type",))
        return None if route is None else _Loose(route, node)
    if kind:
        r.error(where or node, f"{key}.type", f'{key}.type "{printable(kind)}" {REFUSED}')
    else:
        r.error(node, f"{key}.type", f"{key} wants to be a mapping with a type")
    return None


@dataclass(frozen=True)
class _Loose:
    """A route that no device has."""

    route: Route
    node: Node


def _with_names(link: Link, names: Sequence[_Names]) -> Link:
    parts = [Addressing(nameservers=one.nameservers, search=one.search) for one in names]
    return replace(link, addressing=join((link.addressing, *parts))) if parts else link


def _with_routes(r: Reader, links: Sequence[Link], loose: Sequence[_Loose], key: str) -> list[Link]:
    """Give each route without a device to the one that reaches its gateway."""
    result = list(links)
    for one in loose:
        best = _nearest(result, one.route)
        if best is None:
            r.error(one.node, key, f"the route to {one.route.to} has no device with an address")
            continue
        if not _reaches(result[best], one.route):
            message = f"no device has an address next to {one.route.via}"
            r.warn(one.node, key, f'{message}; the route is given to "{result[best].id}"')
        part = Addressing(routes=(one.route,))
        addressing = join((result[best].addressing, part))
        result[best] = replace(result[best], addressing=addressing)
    return result


def _nearest(links: Sequence[Link], route: Route) -> int | None:
    version = route.to.version
    having = [
        index
        for index, link in enumerate(links)
        if any(one.interface.version == version for one in link.addressing.addresses)
        or (link.addressing.dhcp4 if version == 4 else link.addressing.dhcp6)
    ]
    near = [index for index in having if _reaches(links[index], route)]
    return next(iter((*near, *having)), None)


def _reaches(link: Link, route: Route) -> bool:
    """The gateway is next to the link; a route without one goes anywhere."""
    near = (one.interface.network for one in link.addressing.addresses)
    return route.via is None or any(route.via in network for network in near)


# Devices.


def _device(r: Reader, node: Node, key: str, kind: Kind, own: tuple[str, ...]) -> Link | None:
    e = r.table(node, key, (*_DEVICE, *own), {"keep_configuration": "is not taken; ignored"})
    if "name" not in e:
        r.error(node, f"{key}.name", f"{key} has no name")
    name = value(r, e.get("name"), f"{key}.name", values.name)
    mac = value(r, e.get("mac_address"), f"{key}.mac_address", values.mac) or ""
    mtu = value(r, e.get("mtu"), f"{key}.mtu", values.mtu)
    parts = r.each(e.get("subnets"), f"{key}.subnets", _subnet)
    accept = Addressing(accept_ra=flag(r, e.get("accept_ra"), f"{key}.accept_ra"))
    manual = any(subnet.manual for subnet in parts)
    link = Link(
        name or "",
        kind,
        mtu=mtu if mtu is not None else next((p.mtu for p in parts if p.mtu), None),
        wake_on_lan=flag(r, e.get("wakeonlan"), f"{key}.wakeonlan") or False,
        optional=flag(r, e.get("optional"), f"{key}.optional") or False,
        activation="manual" if manual else "",
        addressing=join((*(part.addressing for part in parts), accept)),
        at=place(node),
    )
    if kind == "physical" and mac:
        # The MAC address is known, the name is wanted.
        link = replace(link, match=Match(mac=mac), rename=link.id)
    elif kind != "physical":
        link = replace(link, mac=mac)
    if kind == "bond":
        link = _bond(r, e, key, link)
    elif kind == "bridge":
        link = _bridge(r, e, key, link)
    elif kind == "vlan":
        link = _vlan(r, node, e, key, link)
    return None if name is None else link


def _bond(r: Reader, e: Entries, key: str, link: Link) -> Link:
    params = without_prefix(e.get("params"), "bond_")
    p = r.table(params, f"{key}.params", (*BOND, "primary", "mac_address"), NOT_TAKEN_BOND)
    mac = value(r, p.get("mac_address"), f"{key}.params.mac_address", values.mac) or ""
    return replace(
        link,
        mac=link.mac or mac,
        members=each(r, e.get("bond_interfaces"), f"{key}.bond_interfaces", values.name),
        parameters=parameters(r, p, f"{key}.params", BOND),
        primary=value(r, p.get("primary"), f"{key}.params.primary", values.name) or "",
    )


def _bridge(r: Reader, e: Entries, key: str, link: Link) -> Link:
    params = without_prefix(e.get("params"), "bridge_")
    known = (*BRIDGE, *PORT, "hw", "ports")
    p = r.table(params, f"{key}.params", known, NOT_TAKEN_BRIDGE)
    members = each(r, e.get("bridge_interfaces"), f"{key}.bridge_interfaces", values.name)
    more = each(r, p.get("ports"), f"{key}.params.ports", values.name)
    mac = value(r, p.get("hw"), f"{key}.params.hw", values.mac) or ""
    return replace(
        link,
        mac=link.mac or mac,
        members=tuple(dict.fromkeys((*members, *more))),
        parameters=parameters(r, p, f"{key}.params", BRIDGE),
        ports=read_ports(r, p, f"{key}.params"),
    )


def read_ports(r: Reader, entries: Entries, key: str) -> tuple[tuple[str, str, str], ...]:
    """Settings of the ports of a bridge: texts like ``eth0 75``, one or a list of them."""
    ports: list[tuple[str, str, str]] = []
    for name, parameter in PORT.items():
        node = entries.get(name)
        full = f"{key}.{name}"
        for item in (node,) if isinstance(node, Text) else r.items(node, full):
            pair = words(item) if isinstance(item, Text) else ()
            if len(pair) != 2:
                r.error(item, full, f"{full} wants a port and a number, like eth0 75")
                continue
            port = value(r, pair[0], full, values.name)
            text = value(r, pair[1], full, parameter.read)
            if port and text:
                ports.append((port, parameter.setting, text))
    return tuple(ports)


def _vlan(r: Reader, node: Node, e: Entries, key: str, link: Link) -> Link:
    for needed in ("vlan_link", "vlan_id"):
        if needed not in e:
            r.error(node, f"{key}.{needed}", f"{key} has no {needed}")
    return replace(
        link,
        parent=value(r, e.get("vlan_link"), f"{key}.vlan_link", values.name) or "",
        vlan_id=value(r, e.get("vlan_id"), f"{key}.vlan_id", values.vlan_id) or 0,
    )


# Subnets.

_SUBNET = (
    *("type", "control", "address", "netmask", "broadcast", "gateway", "dns_nameservers"),
    *("dns_search", "routes", "ipv4", "ipv6", "metric", "pointopoint", "mtu"),
)
_TYPES: Mapping[str, Addressing] = {
    "dhcp": Addressing(dhcp4=True),
    "dhcp4": Addressing(dhcp4=True),
    "dhcp6": Addressing(dhcp6=True),
    "ipv6_dhcpv6-stateful": Addressing(dhcp6=True, accept_ra=True),
    # The router tells that there is more to ask for, and networkd asks.
    "ipv6_dhcpv6-stateless": Addressing(accept_ra=True),
    "ipv6_slaac": Addressing(accept_ra=True),
    "static": Addressing(),
    "static4": Addressing(),
    "static6": Addressing(),
    "manual": Addressing(),
}


@dataclass(frozen=True)
class _Subnet:
    addressing: Addressing
    manual: bool = False
    mtu: int | None = None


def _subnet(r: Reader, node: Node, key: str) -> _Subnet | None:
    e = r.table(node, key, _SUBNET, {"scope": "is not taken; ignored"})
    kind = value(r, e.get("type"), f"{key}.type", values.choice(*_TYPES))
    control = value(
        r, e.get("control"), f"{key}.control", values.choice("manual", "auto", "hotplug")
    )
    assigned = with_netmask(r, e, key) if "address" in e else None
    if kind in ("static", "static4", "static6") and "address" not in e:
        r.error(node, f"{key}.address", f"{key} is {kind} and has no address")
    if kind is None and "type" not in e:
        r.error(node, f"{key}.type", f"{key} has no type")
    via = value(r, e.get("gateway"), f"{key}.gateway", values.address)
    metric = value(r, e.get("metric"), f"{key}.metric", values.metric)
    gateway = () if via is None else (Route(values.everywhere(via.version), via, metric=metric),)
    routes = r.each(e.get("routes"), f"{key}.routes", read_route)
    own = Addressing(
        addresses=() if assigned is None else (assigned,),
        routes=(*gateway, *routes),
        nameservers=each(r, e.get("dns_nameservers"), f"{key}.dns_nameservers", values.address),
        search=each(r, e.get("dns_search"), f"{key}.dns_search", values.domain),
    )
    mtu = value(r, e.get("mtu"), f"{key}.mtu", values.mtu)
    return _Subnet(join((_TYPES[kind or "manual"], own)), control == "manual", mtu)


def with_netmask(r: Reader, e: Entries, key: str) -> Assigned | None:
    """``address`` with its prefix, which may stand in ``netmask``."""
    mask = r.text(e.get("netmask"), f"{key}.netmask")

    def read(text: str) -> Interface:
        return values.interface(text if "/" in text or not mask else f"{text}/{mask}")

    interface = value(r, e["address"], f"{key}.address", read)
    broadcast = value(r, e.get("broadcast"), f"{key}.broadcast", values.address4)
    peer = value(r, e.get("pointopoint"), f"{key}.pointopoint", values.address)
    if interface is None:
        return None
    if peer is not None and peer.version != interface.version:
        r.error(e["pointopoint"], f"{key}.pointopoint", f"{key}.pointopoint is of another IP")
    return Assigned(interface, broadcast=broadcast, peer=peer)


def read_route(r: Reader, node: Node, key: str, more: Sequence[str] = ()) -> Route | None:
    """``destination`` (or ``network``), ``netmask``, ``gateway``, ``metric``."""
    known = ("destination", "network", "netmask", "gateway", "metric", "mtu", *more)
    e = r.table(node, key, known, {"services": "is not taken; ignored"})
    name = "destination" if "destination" in e else "network"
    if name not in e:
        r.error(node, f"{key}.destination", f"{key} has no destination")
        return None
    via = value(r, e.get("gateway"), f"{key}.gateway", values.address)
    mask = r.text(e.get("netmask"), f"{key}.netmask")
    version = 4 if via is None else via.version

    def read(text: str) -> values.Network:
        bare = "/" not in text and text != "default"
        return values.destination(version)(f"{text}/{mask}" if mask and bare else text)

    to = value(r, e[name], f"{key}.{name}", read)
    if to is not None and via is not None and to.version != via.version:
        message = f"{key} goes to IPv{to.version} by way of IPv{via.version}"
        r.error(e["gateway"], f"{key}.gateway", message)
    metric = value(r, e.get("metric"), f"{key}.metric", values.metric)
    mtu = value(r, e.get("mtu"), f"{key}.mtu", values.mtu)
    return None if to is None else Route(to, via, metric=metric, mtu=mtu)
