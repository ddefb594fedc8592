"""What a network is, whatever form described it. Plain data: texts in it have been checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from proa.machine.cloudconfig.network.values import Address, Interface, Network, is_glob
from proa.machine.record import dataclass, field, fields

MAX_LINKS = 512
"""Most links of one description."""

MAX_ITEMS = 1000
"""Most addresses, routes and rules of one description, together."""

Kind = Literal["physical", "loopback", "dummy", "vlan", "bond", "bridge"]
Activation = Literal["", "manual", "always-down"]


@dataclass(frozen=True)
class Match:
    """How an interface that exists is found; what is set must all be so, nothing is any."""

    name: str = ""
    mac: str = ""
    driver: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """It finds one interface."""
        return bool(self.mac or (self.name and not is_glob(self.name)))


@dataclass(frozen=True)
class Assigned:
    """An address of a link."""

    interface: Interface
    label: str = ""
    broadcast: Address | None = None
    peer: Address | None = None
    deprecated: bool = False
    """The preferred lifetime is over from the start (netplan: ``lifetime: 0``)."""


@dataclass(frozen=True)
class Route:
    """A way to ``to``. Without ``via`` it lies on the link itself."""

    to: Network
    via: Address | None = None
    metric: int | None = None
    table: int | None = None
    on_link: bool = False
    scope: str = ""
    type: str = ""
    mtu: int | None = None
    source: Address | None = None
    congestion_window: int | None = None
    receive_window: int | None = None


@dataclass(frozen=True)
class Rule:
    """A rule of which routing table is asked (man ip-rule)."""

    table: int
    source: Network | None = None
    to: Network | None = None
    priority: int | None = None
    mark: int | None = None
    type_of_service: int | None = None


@dataclass(frozen=True)
class DhcpOptions:
    """What differs from the default of asking by DHCP; ``None`` is the default."""

    hostname: str | None = None
    route_metric: int | None = None
    send_hostname: bool | None = None
    use_dns: bool | None = None
    use_domains: str | None = None
    use_hostname: bool | None = None
    use_mtu: bool | None = None
    use_ntp: bool | None = None
    use_routes: bool | None = None


@dataclass(frozen=True)
class Addressing:
    """How a link gets addresses, routes and names. Several of them may be joined to one."""

    dhcp4: bool = False
    dhcp6: bool = False
    dhcp4_options: DhcpOptions | None = None
    dhcp6_options: DhcpOptions | None = None
    dhcp_by_mac: bool = False
    accept_ra: bool | None = None
    link_local: tuple[str, ...] | None = None
    addresses: tuple[Assigned, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    nameservers: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    ipv6_privacy: bool | None = None
    ipv6_mtu: int | None = None
    critical: bool = False
    """What DHCP gave is kept, whatever becomes of networkd."""

    @property
    def asks(self) -> bool:
        """An address may come from outside."""
        return self.dhcp4 or self.dhcp6 or bool(self.accept_ra)

    @property
    def items(self) -> int:
        return len(self.addresses) + len(self.routes) + len(self.rules)


@dataclass(frozen=True)
class Link:
    """One interface, found (``match``) or made. ``id`` is what others call it."""

    id: str
    kind: Kind = "physical"
    match: Match | None = None
    rename: str = ""
    card: str = ""
    """MAC address of the card that is to be called ``id``, if there is such a card."""
    mac: str = ""
    """The MAC address that it is given."""
    mtu: int | None = None
    wake_on_lan: bool = False
    optional: bool = False
    activation: Activation = ""
    ignore_carrier: bool = False
    members: tuple[str, ...] = ()
    """Ids of the ports of a bond or bridge."""
    primary: str = ""
    """Id of the port that a bond prefers."""
    parameters: tuple[tuple[str, str], ...] = ()
    """Settings of a bond or bridge by their names in systemd.netdev(5)."""
    ports: tuple[tuple[str, str, str], ...] = ()
    """Settings of a port of a bridge: its id, name in systemd.network(5), value."""
    parent: str = ""
    """Id of the link that a VLAN lies on."""
    vlan_id: int = 0
    addressing: Addressing = Addressing()
    at: tuple[int, int] = field(default=(0, 0), compare=False)
    """Line and column of the description."""

    @property
    def found(self) -> bool:
        """The interface is there by itself, and not made by us."""
        return self.kind in ("physical", "loopback")

    @property
    def name(self) -> str:
        """The name that the interface has in the end; empty if it cannot be known."""
        if self.rename:
            return self.rename
        if self.match is not None:
            return "" if is_glob(self.match.name) else self.match.name
        return self.id


@dataclass(frozen=True)
class Description:
    """A whole network."""

    links: tuple[Link, ...] = ()
    nameservers: tuple[Address, ...] = ()
    """Asked whatever link they are reached by."""
    search: tuple[str, ...] = ()


def join(parts: Iterable[Addressing]) -> Addressing:
    """Several ways to get addresses as one: lists follow one another, the last other word counts.

    That a router may give an address (``accept_ra``) is stronger than that none may.
    """
    values: dict[str, object] = {}
    for part in parts:
        for one in fields(Addressing):
            value = getattr(part, one.name)
            if value is None or (value is False and one.name != "accept_ra"):
                continue
            before = values.get(one.name)
            if isinstance(value, tuple) and isinstance(before, tuple):
                value = tuple(dict.fromkeys((*before, *value)))
            elif isinstance(value, bool) and isinstance(before, bool):
                value = value or before
            values[one.name] = value
    return Addressing(**values)  # type: ignore[arg-type]


def beyond(route: Route, addressing: Addressing) -> bool:
    """The gateway lies in no network of the link, as where a cloud's address is a /32.

    The kernel refuses such a route unless it is told that the gateway is on the link all the same.
    """
    via = route.via
    if via is None or via.is_link_local:
        return False
    asks = addressing.dhcp4 if via.version == 4 else addressing.dhcp6 or addressing.accept_ra
    return not asks and not any(
        via in one.interface.network or via == one.peer for one in addressing.addresses
    )


def with_implied(links: Sequence[Link]) -> tuple[Link, ...]:
    """The links, and a physical one for each port or parent that only another names."""
    known = {link.id for link in links}
    implied: dict[str, Link] = {}
    for link in links:
        for other in (*link.members, *((link.parent,) if link.parent else ())):
            if other not in known:
                implied.setdefault(other, Link(other, at=link.at))
    return (*links, *implied.values())


def faults(links: Sequence[Link]) -> Iterator[tuple[Link, str]]:
    """What no machine can be: the link where it shows, and what it is."""
    if len(links) > MAX_LINKS:
        yield links[MAX_LINKS], f"there are more than {MAX_LINKS} links"
        return
    if sum(link.addressing.items for link in links) > MAX_ITEMS:
        yield links[-1], f"there are more than {MAX_ITEMS} addresses, routes and rules"
        return
    by_id: dict[str, Link] = {}
    names: set[str] = set()
    for link in links:
        if link.id in by_id:
            yield link, f'"{link.id}" is described twice'
        elif link.name and link.name in names:
            yield link, f'two links would have the name "{link.name}"'
        by_id[link.id] = link
        names.add(link.name)
    masters: dict[str, str] = {}
    vlans: set[tuple[str, int]] = set()
    for link in links:
        for member in link.members:
            if masters.setdefault(member, link.id) != link.id:
                yield link, f'"{member}" cannot be a port of "{masters[member]}" and "{link.id}"'
            elif member in by_id and by_id[member].kind == "loopback":
                yield link, f'"{member}" is the loopback and cannot be a port'
        if link.primary and link.primary not in link.members:
            yield link, f'the primary port "{link.primary}" is not one of the ports'
        if link.kind == "vlan":
            if (link.parent, link.vlan_id) in vlans:
                yield link, f'"{link.parent}" has VLAN {link.vlan_id} twice'
            vlans.add((link.parent, link.vlan_id))
    for link in _in_circle(links, by_id):
        yield link, f'"{link.id}" would lie on itself'


def _in_circle(links: Sequence[Link], by_id: Mapping[str, Link]) -> Iterator[Link]:
    """The links that are made from others in a circle: those left when all that can be is built."""
    waiting = list(links)
    built: set[str] = set()
    while waiting:
        rest = [
            link
            for link in waiting
            if any(i in by_id and i not in built for i in (*link.members, link.parent))
        ]
        if len(rest) == len(waiting):
            yield from rest
            return
        left = {link.id for link in rest}
        built.update(link.id for link in waiting if link.id not in left)
        waiting = rest
