"""What systemd-networkd, udev and resolved read, from a description. Pure.

Names of the files come from the ids of the links, so a description that did not change makes the
same files. An exact match comes before a pattern: networkd takes the first file that matches.

Format: systemd.network(5), systemd.netdev(5), systemd.link(5), resolved.conf(5) of systemd 257.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proa.machine.cloudconfig.network.model import (
    Addressing,
    Assigned,
    Description,
    DhcpOptions,
    Link,
    Match,
    Route,
    Rule,
    beyond,
)
from proa.machine.record import dataclass

Setting = tuple[str, object]
Section = tuple[str, list[Setting]]

_HEAD = (
    "# From this machine's network description (docs/network.md), written anew when it changes.\n"
)

# What udev would do without a file of ours (systemd's 99-default.link), but for the name.
_DEFAULT_LINK: list[Setting] = [
    ("AlternativeNamesPolicy", "database onboard slot path mac"),
    ("MACAddressPolicy", "persistent"),
]
_DEFAULT_NAMES: Setting = ("NamePolicy", "keep kernel database onboard slot path")


@dataclass(frozen=True)
class NetworkFile:
    """A file below ``/etc`` or ``/run``: ``path`` has the directory, like ``systemd/network/…``."""

    path: str
    content: str


def render(network: Description) -> tuple[NetworkFile, ...]:
    """The files that make a machine's network be what ``network`` says, sorted by path."""
    files = [file for link in network.links for file in _files(link, network)]
    if network.nameservers or network.search:
        resolve = ("Resolve", [*_names(network.nameservers, network.search)])
        files.append(NetworkFile("systemd/resolved.conf.d/10-proa.conf", _text([resolve])))
    return tuple(sorted(files, key=lambda file: file.path))


def _files(link: Link, network: Description) -> Iterator[NetworkFile]:
    exact = link.match is None or link.match.exact
    stem = f"systemd/network/{10 if exact else 15}-proa-{link.id}"
    if link.kind == "loopback" and link.addressing == Addressing():
        return  # it is what it always is
    if link.rename or link.card or link.wake_on_lan:
        yield NetworkFile(f"{stem}.link", _text(_link(link)))
    if not link.found:
        yield NetworkFile(f"{stem}.netdev", _text(_netdev(link)))
    yield NetworkFile(f"{stem}.network", _text(_network(link, network)))


# The device before networkd sees it.


def _link(link: Link) -> list[Section]:
    """For udev: it takes one file for an interface, so the default's lines are in it too."""
    name = link.id if link.card else link.rename
    settings = [("Name", name) if name else _DEFAULT_NAMES, *_DEFAULT_LINK]
    if link.wake_on_lan:
        settings.append(("WakeOnLan", "magic"))
    match = Match(mac=link.card) if link.card else link.match or Match(link.id)
    return [("Match", _match(match, "OriginalName", match.name)), ("Link", settings)]


def _netdev(link: Link) -> list[Section]:
    settings: list[Setting] = [("Name", link.id), ("Kind", link.kind)]
    if link.mac:
        settings.append(("MACAddress", link.mac))
    sections: list[Section] = [("NetDev", settings)]
    if link.kind == "vlan":
        sections.append(("VLAN", [("Id", link.vlan_id)]))
    if link.parameters:
        sections.append((link.kind.title(), list(link.parameters)))
    return sections


# The network on it.


def _network(link: Link, network: Description) -> list[Section]:
    masters = [other for other in network.links if link.id in other.members]
    vlans = [other for other in network.links if other.parent == link.id]
    addressing = link.addressing
    settings: list[Setting] = [
        *((other.kind.title(), other.id) for other in masters),
        *(("PrimarySlave", True) for other in masters if other.primary == link.id),
        *(("VLAN", other.id) for other in vlans),
    ]
    if addressing.dhcp4 or addressing.dhcp6:
        word = "yes" if addressing.dhcp6 else "ipv4"
        settings.append(("DHCP", word if addressing.dhcp4 else "ipv6"))
    if masters:  # its master has the addresses
        settings.append(("LinkLocalAddressing", False))
    elif addressing.link_local is not None:
        settings.append(("LinkLocalAddressing", _link_local(addressing.link_local)))
    if addressing.accept_ra is not None:
        settings.append(("IPv6AcceptRA", addressing.accept_ra))
    if addressing.ipv6_privacy is not None:
        settings.append(("IPv6PrivacyExtensions", addressing.ipv6_privacy))
    if addressing.ipv6_mtu is not None:
        settings.append(("IPv6MTUBytes", addressing.ipv6_mtu))
    if addressing.critical:
        settings.append(("KeepConfiguration", True))
    if link.ignore_carrier or link.kind in ("bridge", "dummy"):
        # A bridge has a carrier only when a port has: what listens on it must not wait for that.
        settings.append(("ConfigureWithoutCarrier", True))
    settings += _names(addressing.nameservers, addressing.search)
    of_ports = [setting for other in masters for setting in other.ports]
    port: list[Setting] = [(key, value) for id, key, value in of_ports if id == link.id]
    return [
        ("Match", _network_match(link)),
        ("Link", _link_of_network(link, bool(masters))),
        ("Network", settings),
        *_dhcp(link),
        *(("Address", _address(assigned)) for assigned in addressing.addresses),
        *(("Route", _route(route, addressing)) for route in addressing.routes),
        *(("RoutingPolicyRule", _rule(rule)) for rule in addressing.rules),
        ("Bridge", port),
    ]


def _network_match(link: Link) -> list[Setting]:
    if link.match is None:
        return [("Name", link.id)]
    if not link.rename:
        return _match(link.match, "Name", link.match.name)
    # A MAC address is enough, even where renaming failed. Without one the new name tells which.
    return _match(link.match, "Name", "" if link.match.mac else link.rename)


def _match(match: Match, name_key: str, name: str) -> list[Setting]:
    settings: list[Setting] = []
    if match.mac:
        # The permanent one: VLANs, bonds and bridges take over the MAC address of a port, and a
        # bond changes those of its ports.
        settings.append(("PermanentMACAddress", match.mac))
    if match.driver:
        settings.append(("Driver", " ".join(match.driver)))
    if name:
        settings.append((name_key, name))
    return settings or [("Type", "ether"), ("Kind", "!*")]


def _link_of_network(link: Link, is_port: bool) -> list[Setting]:
    settings: list[Setting] = []
    if link.mtu is not None:
        settings.append(("MTUBytes", link.mtu))
    if link.mac and link.found:
        settings.append(("MACAddress", link.mac))
    if link.activation:
        settings.append(("ActivationPolicy", link.activation))
    if link.optional or (link.kind == "bridge" and not link.members):
        settings.append(("RequiredForOnline", False))
    elif not is_port and link.addressing.link_local == () and not _has_address(link.addressing):
        # It will never have an address; the boot must not wait for one.
        settings.append(("RequiredForOnline", "carrier"))
    return settings


def _has_address(addressing: Addressing) -> bool:
    return addressing.asks or bool(addressing.addresses)


def _link_local(families: tuple[str, ...]) -> object:
    return len(families) == 2 or next(iter(families), False)


def _dhcp(link: Link) -> Iterator[Section]:
    addressing = link.addressing
    for version, asked, given in (
        (4, addressing.dhcp4, addressing.dhcp4_options),
        (6, addressing.dhcp6, addressing.dhcp6_options),
    ):
        if not asked:
            continue
        options = given or DhcpOptions()
        # As for an interface that nobody described (80-proa-dhcp.network).
        settings: list[Setting] = [("UseDomains", options.use_domains or "yes")]
        if version == 4:
            settings.append(("UseMTU", link.mtu is None and options.use_mtu is not False))
            if options.use_routes is not None:
                settings.append(("UseRoutes", options.use_routes))
            if addressing.dhcp_by_mac:
                settings.append(("ClientIdentifier", "mac"))
        for key, value in (
            ("UseDNS", options.use_dns),
            ("UseNTP", options.use_ntp),
            ("UseHostname", options.use_hostname),
            ("SendHostname", options.send_hostname),
            ("Hostname", options.hostname),
            ("RouteMetric", options.route_metric),
        ):
            if value is not None:
                settings.append((key, value))
        yield f"DHCPv{version}", settings


def _address(assigned: Assigned) -> list[Setting]:
    settings: list[Setting] = [("Address", assigned.interface)]
    if assigned.peer is not None:
        settings.append(("Peer", f"{assigned.peer}/{assigned.interface.network.prefixlen}"))
    if assigned.broadcast is not None:
        settings.append(("Broadcast", assigned.broadcast))
    if assigned.label:
        settings.append(("Label", assigned.label))
    if assigned.deprecated:
        settings.append(("PreferredLifetime", 0))
    return settings


def _route(route: Route, addressing: Addressing) -> list[Setting]:
    settings: list[Setting] = [("Destination", route.to)]
    if route.via is not None:
        settings.append(("Gateway", route.via))
        if route.on_link or beyond(route, addressing):
            settings.append(("GatewayOnLink", True))
    for key, value in (
        ("Metric", route.metric),
        ("Table", route.table),
        ("Scope", route.scope or None),
        ("Type", route.type or None),
        ("MTUBytes", route.mtu),
        ("PreferredSource", route.source),
        ("InitialCongestionWindow", route.congestion_window),
        ("InitialAdvertisedReceiveWindow", route.receive_window),
    ):
        if value is not None:
            settings.append((key, value))
    return settings


def _rule(rule: Rule) -> list[Setting]:
    settings: list[Setting] = []
    for key, value in (
        ("From", rule.source),
        ("To", rule.to),
        ("Table", rule.table),
        ("Priority", rule.priority),
        ("FirewallMark", rule.mark),
        ("TypeOfService", rule.type_of_service),
    ):
        if value is not None:
            settings.append((key, value))
    if rule.source is None and rule.to is None:
        settings.append(("Family", "both"))
    return settings


def _names(nameservers: Iterable[object], search: Iterable[str]) -> Iterator[Setting]:
    yield from (("DNS", server) for server in nameservers)
    if domains := " ".join(search):
        yield "Domains", domains


# The text.


def _text(sections: Iterable[Section]) -> str:
    blocks = [
        f"[{name}]\n" + "".join(_line(key, value) for key, value in settings)
        for name, settings in sections
        if settings
    ]
    return _HEAD + "\n".join(blocks)


def _line(key: str, value: object) -> str:
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    if not text.isprintable() or not text.isascii() or text.endswith("\\"):
        raise ValueError("a value that was not checked")  # a fault in a reader; see values
    return f"{key}={text}\n"
