"""Packet's (Equinix Metal's) ``network``: all cards in one bond, with what addresses it has.

Source: coreos-cloudinit 1.14 (``-convert-netconf packet``), which the result is like, but for one
thing: a port is found by its MAC address, because Proa does not call cards eth0 and eth1.
"""

from __future__ import annotations

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
from proa.machine.cloudconfig.network.reading import each, entry, few, finish, flag, place, value
from proa.machine.cloudconfig.network.v1 import with_netmask
from proa.machine.cloudconfig.parse import Node
from proa.machine.cloudconfig.reader import Reader

BOND = "bond0"
PARAMETERS = (
    ("Mode", "802.3ad"),
    ("LACPTransmitRate", "fast"),
    ("MIIMonitorSec", "200ms"),
    ("UpDelaySec", "200ms"),
    ("DownDelaySec", "200ms"),
)
NAMESERVERS = ("8.8.8.8", "8.8.4.4")
"""Asked where the metadata name none."""
PRIVATE = values.network("10.0.0.0/8")
"""What lies behind the gateway of a private address."""

# What else the metadata have of an address or a card; it says nothing that is needed.
_BLOCK = ("address", "netmask", "gateway", "address_family", "public")
_BLOCK_QUIET = (
    *("id", "cidr", "network", "enabled", "management", "created_at", "parent_block", "tags"),
    *("manageable", "href", "customdata", "metro", "facility", "global_ip", "state"),
)
_CARD_QUIET = ("bond", "id")


def read(r: Reader, root: Node) -> Description:
    """``root`` is the ``network`` of the metadata, or the metadata."""
    inner = entry(root, "network")
    key = "" if inner is None else "network."
    e = r.table(inner or root, key.rstrip("."), ("interfaces", "addresses", "dns", "bonding"))
    blocks = r.each(e.get("addresses"), f"{key}addresses", _block)
    servers = each(r, e.get("dns"), f"{key}dns", values.address)
    cards = r.each(few(r, e.get("interfaces"), f"{key}interfaces"), f"{key}interfaces", _card)
    if not cards:
        r.error(e.get("interfaces", root), f"{key}interfaces", "there are no interfaces")
        return Description()
    own = Addressing(nameservers=servers or tuple(map(values.address, NAMESERVERS)))
    bond = Link(
        BOND,
        "bond",
        mac=next((card.match.mac for card in cards if card.match and card.match.mac), ""),
        members=tuple(card.id for card in cards),
        parameters=PARAMETERS,
        addressing=join((*blocks, own)),
        at=place(root),
    )
    return finish(r, [*cards, bond])


def _card(r: Reader, node: Node, key: str) -> Link | None:
    e = r.table(node, key, ("name", "mac", *_CARD_QUIET))
    name = value(r, e.get("name"), f"{key}.name", values.name)
    mac = value(r, e.get("mac"), f"{key}.mac", values.mac)
    if name is None and "name" not in e:
        r.error(node, f"{key}.name", f"{key} has no name")
    if name is None:
        return None
    return Link(name, match=Match(mac=mac) if mac else None, at=place(node))


def _block(r: Reader, node: Node, key: str) -> Addressing | None:
    """One address: a public one has the default route, a private one the way to 10.0.0.0/8."""
    e = r.table(node, key, (*_BLOCK, *_BLOCK_QUIET))
    if "address" not in e:
        r.error(node, f"{key}.address", f"{key} has no address")
        return None
    assigned: Assigned | None = with_netmask(r, e, key)
    via = value(r, e.get("gateway"), f"{key}.gateway", values.address)
    public = flag(r, e.get("public"), f"{key}.public")
    if assigned is None:
        return None
    routes: tuple[Route, ...] = ()
    if via is not None and via.version == assigned.interface.version:
        if public:
            routes = (Route(values.everywhere(via.version), via),)
        elif via.version == PRIVATE.version:
            routes = (Route(PRIVATE, via),)
    elif via is not None:
        r.error(e["gateway"], f"{key}.gateway", f"{key}.gateway is of another IP")
    return Addressing(addresses=(assigned,), routes=routes)
