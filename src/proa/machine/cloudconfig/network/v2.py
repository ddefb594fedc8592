"""Version 2: netplan's format, as far as cloud-init takes it and somewhat further.

Source: cloud-init's "Networking config Version 2", netplan's reference of its YAML.
"""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import (
    Activation,
    Addressing,
    Assigned,
    Description,
    DhcpOptions,
    Kind,
    Link,
    Match,
    Route,
    Rule,
)
from proa.machine.cloudconfig.network.parameters import (
    BOND,
    BRIDGE,
    NETPLAN_BOND,
    NETPLAN_BRIDGE,
    NETPLAN_PORT,
    PORT,
    Parameter,
)
from proa.machine.cloudconfig.network.reading import (
    REFUSED,
    Entries,
    each,
    finish,
    flag,
    named,
    parameters,
    place,
    value,
)
from proa.machine.cloudconfig.parse import Node, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader

_KINDS: Mapping[str, Kind] = {
    "ethernets": "physical",
    "bonds": "bond",
    "bridges": "bridge",
    "vlans": "vlan",
    "dummy_devices": "dummy",
}
_REFUSED_KINDS = (
    *("wifis", "modems", "tunnels", "vrfs", "virtual_ethernets", "nm_devices", "openvswitch"),
)

_COMMON = (
    *("renderer", "dhcp4", "dhcp6", "dhcp4_overrides", "dhcp6_overrides", "dhcp_identifier"),
    *("addresses", "gateway4", "gateway6", "nameservers", "routes", "routing_policy", "mtu"),
    *("macaddress", "optional", "link_local", "accept_ra", "critical", "ipv6_privacy"),
    *("ipv6_mtu", "ignore_carrier", "activation_mode"),
)
_OWN: Mapping[Kind, tuple[str, ...]] = {
    "physical": ("match", "set_name", "wakeonlan"),
    "bond": ("interfaces", "parameters"),
    "bridge": ("interfaces", "parameters"),
    "vlan": ("id", "link"),
    "dummy": (),
}

_NOT_TAKEN = "is not taken; ignored"
_ELSEWHERE: Mapping[str, str] = dict.fromkeys(
    (
        *("optional_addresses", "emit_lldp", "ipv6_address_generation", "ra_overrides", "auth"),
        *("ipv6_address_token", "networkmanager", "openvswitch", "hairpin", "port_mac_learning"),
        *("neigh_suppress", "virtual_function_count", "embedded_switch_mode", "infiniband_mode"),
        *("receive_checksum_offload", "transmit_checksum_offload", "tcp_segmentation_offload"),
        *("tcp6_segmentation_offload", "generic_segmentation_offload", "regulatory_domain"),
        *("generic_receive_offload", "large_receive_offload", "delay_virtual_functions_rebind"),
    ),
    _NOT_TAKEN,
)


def read(r: Reader, root: Node, key: str = "") -> Description:
    entries = r.table(root, key, ("version", "renderer", *_KINDS, *_REFUSED_KINDS))
    _renderer(r, entries, key)
    for name in _REFUSED_KINDS:
        if name in entries:
            full = _under(key, name)
            r.error(entries[name], full, f"{full} {REFUSED}")
    links: list[Link | None] = []
    for name, kind in _KINDS.items():
        full = _under(key, name)
        for word, inner in named(r, entries.get(name), full):
            if word.text == "renderer":
                _renderer(r, {"renderer": inner}, full)
            else:
                links.append(_link(r, word, inner, full, kind))
    return finish(r, links)


def _under(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _renderer(r: Reader, entries: Entries, key: str) -> None:
    name = r.text(entries.get("renderer"), _under(key, "renderer"))
    if name and name != "networkd":
        full = _under(key, "renderer")
        message = f'{full} "{printable(name)}" is ignored: networkd does it here'
        r.warn(entries["renderer"], full, message)


def _link(r: Reader, word: Text, node: Node, parent: str, kind: Kind) -> Link | None:
    key = f"{parent}.{printable(word.text)}"
    e = r.table(node, key, (*_COMMON, *_OWN[kind]), _ELSEWHERE)
    _renderer(r, e, key)
    matched = "match" in e
    found = value(r, word, key, values.identifier if matched else values.name)
    if found is None:
        return None
    match = _match(r, e["match"], f"{key}.match") if matched else None
    rename = value(r, e.get("set_name"), f"{key}.set_name", values.name) or ""
    for option in ("set_name", "wakeonlan"):
        if option in e and not (match and (match.mac or match.driver)):
            message = f"{key}.{option} without match.macaddress: udev names interfaces before it"
            r.warn(e[option], f"{key}.{option}", f"{message} is sure to find one by its name")
    members = each(r, e.get("interfaces"), f"{key}.interfaces", values.identifier)
    settings, ports, primary = _parameters(r, e.get("parameters"), f"{key}.parameters", kind)
    lower = ""
    if kind == "vlan":
        lower = value(r, e.get("link"), f"{key}.link", values.identifier) or ""
        for needed in ("id", "link"):
            if needed not in e:
                r.error(word, f"{key}.{needed}", f"{key} has no {needed}")
    return Link(
        found,
        kind,
        match=match,
        rename=rename,
        mac=value(r, e.get("macaddress"), f"{key}.macaddress", values.mac) or "",
        mtu=value(r, e.get("mtu"), f"{key}.mtu", values.mtu),
        wake_on_lan=flag(r, e.get("wakeonlan"), f"{key}.wakeonlan") or False,
        optional=flag(r, e.get("optional"), f"{key}.optional") or False,
        activation=_activation(r, e.get("activation_mode"), f"{key}.activation_mode"),
        ignore_carrier=flag(r, e.get("ignore_carrier"), f"{key}.ignore_carrier") or False,
        members=members,
        primary=primary,
        parameters=settings,
        ports=ports,
        parent=lower,
        vlan_id=value(r, e.get("id"), f"{key}.id", values.vlan_id) or 0,
        addressing=_addressing(r, e, key),
        at=place(word),
    )


def _match(r: Reader, node: Node, key: str) -> Match:
    e = r.table(node, key, ("name", "macaddress", "driver"))
    return Match(
        name=value(r, e.get("name"), f"{key}.name", values.glob) or "",
        mac=value(r, e.get("macaddress"), f"{key}.macaddress", values.mac) or "",
        driver=each(r, e.get("driver"), f"{key}.driver", values.glob),
    )


def _activation(r: Reader, node: Node | None, key: str) -> Activation:
    mode = value(r, node, key, values.choice("manual", "off"))
    if mode == "off":
        return "always-down"
    return "manual" if mode else ""


def _parameters(
    r: Reader, node: Node | None, key: str, kind: Kind
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, str], ...], str]:
    """Settings of the bond or bridge, those of its ports, and the port that comes first."""
    if kind == "bond":
        own = {name: BOND[kernels] for name, kernels in NETPLAN_BOND.items()}
        e = r.table(node, key, (*own, "primary"))
        primary = value(r, e.get("primary"), f"{key}.primary", values.identifier) or ""
        return parameters(r, e, key, own), (), primary
    if kind != "bridge":
        return (), (), ""
    own = {name: BRIDGE[kernels] for name, kernels in NETPLAN_BRIDGE.items()}
    e = r.table(node, key, (*own, *NETPLAN_PORT))
    ports: list[tuple[str, str, str]] = []
    for name, kernels in NETPLAN_PORT.items():
        ports += _ports(r, e.get(name), f"{key}.{name}", PORT[kernels])
    settings = dict(parameters(r, e, key, own))
    settings.setdefault("STP", "yes")  # netplan's default; the kernel's is off
    return tuple(settings.items()), tuple(ports), ""


def _ports(
    r: Reader, node: Node | None, key: str, parameter: Parameter
) -> list[tuple[str, str, str]]:
    ports: list[tuple[str, str, str]] = []
    for word, inner in named(r, node, key):
        full = f"{key}.{printable(word.text)}"
        port = value(r, word, full, values.identifier)
        text = value(r, inner, full, parameter.read)
        if port and text:
            ports.append((port, parameter.setting, text))
    return ports


# Addresses and what goes with them.


def _addressing(r: Reader, e: Entries, key: str) -> Addressing:
    names = r.table(e.get("nameservers"), f"{key}.nameservers", ("addresses", "search"))
    routes = [*_gateways(r, e, key), *r.each(e.get("routes"), f"{key}.routes", _route)]
    by_mac = value(r, e.get("dhcp_identifier"), f"{key}.dhcp_identifier", _identifier)
    return Addressing(
        dhcp4=flag(r, e.get("dhcp4"), f"{key}.dhcp4") or False,
        dhcp6=flag(r, e.get("dhcp6"), f"{key}.dhcp6") or False,
        dhcp4_options=_overrides(r, e.get("dhcp4_overrides"), f"{key}.dhcp4_overrides", 4),
        dhcp6_options=_overrides(r, e.get("dhcp6_overrides"), f"{key}.dhcp6_overrides", 6),
        dhcp_by_mac=by_mac == "mac",
        accept_ra=flag(r, e.get("accept_ra"), f"{key}.accept_ra"),
        link_local=_link_local(r, e.get("link_local"), f"{key}.link_local"),
        addresses=r.each(e.get("addresses"), f"{key}.addresses", _address),
        routes=tuple(routes),
        rules=r.each(e.get("routing_policy"), f"{key}.routing_policy", _rule),
        nameservers=each(r, names.get("addresses"), f"{key}.nameservers.addresses", values.address),
        search=each(r, names.get("search"), f"{key}.nameservers.search", values.domain),
        ipv6_privacy=flag(r, e.get("ipv6_privacy"), f"{key}.ipv6_privacy"),
        ipv6_mtu=value(r, e.get("ipv6_mtu"), f"{key}.ipv6_mtu", values.number(1280, 65535)),
        critical=flag(r, e.get("critical"), f"{key}.critical") or False,
    )


_identifier = values.choice("mac", "duid")


def _link_local(r: Reader, node: Node | None, key: str) -> tuple[str, ...] | None:
    if node is None:
        return None
    return tuple(dict.fromkeys(each(r, node, key, values.choice("ipv4", "ipv6"))))


def _address(r: Reader, node: Node, key: str) -> Assigned | None:
    """``192.0.2.5/24``, or that as the key of a mapping with options."""
    if not isinstance(node, Table):
        interface = value(r, node, key, values.interface)
        return None if interface is None else Assigned(interface)
    if len(node.entries) != 1:
        r.error(node, key, f"{key} wants one address with its options")
        return None
    word, inner = node.entries[0]
    interface = value(r, word, key, values.interface)
    options = r.table(inner, f"{key}.options", ("label", "lifetime"))
    lifetime = value(r, options.get("lifetime"), f"{key}.lifetime", values.choice("forever", "0"))
    label = value(r, options.get("label"), f"{key}.label", values.label) or ""
    return None if interface is None else Assigned(interface, label, deprecated=lifetime == "0")


def _gateways(r: Reader, e: Entries, key: str) -> list[Route]:
    routes: list[Route] = []
    via4 = value(r, e.get("gateway4"), f"{key}.gateway4", values.address4)
    via6 = value(r, e.get("gateway6"), f"{key}.gateway6", values.address6)
    for via in (via4, via6):
        if via is not None:
            routes.append(Route(values.everywhere(via.version), via))
    return routes


_ROUTE = (
    *("to", "via", "from", "metric", "table", "on_link", "scope", "type", "mtu"),
    *("congestion_window", "advertised_receive_window"),
)
_ROUTE_TYPES = (
    *("unicast", "local", "broadcast", "multicast", "anycast", "blackhole", "unreachable"),
    *("prohibit", "throw", "nat"),
)


def _route(r: Reader, node: Node, key: str) -> Route | None:
    e = r.table(node, key, _ROUTE, {"advertised_mss": _NOT_TAKEN})
    if "to" not in e:
        r.error(node, f"{key}.to", f"{key} has no to")
        return None
    via = value(r, e.get("via"), f"{key}.via", values.address)
    to = value(r, e["to"], f"{key}.to", values.destination(4 if via is None else via.version))
    if to is not None and via is not None and to.version != via.version:
        r.error(e["via"], f"{key}.via", f"{key} goes to IPv{to.version} by way of IPv{via.version}")
    window = values.number(1, 2**32 - 1)
    scope = value(r, e.get("scope"), f"{key}.scope", values.choice("global", "link", "host"))
    if to is None:
        return None
    return Route(
        to,
        via,
        metric=value(r, e.get("metric"), f"{key}.metric", values.metric),
        table=value(r, e.get("table"), f"{key}.table", values.table),
        on_link=flag(r, e.get("on_link"), f"{key}.on_link") or False,
        scope=(scope or "") if to.version == 4 else "",  # the kernel's IPv6 routes have none
        type=value(r, e.get("type"), f"{key}.type", values.choice(*_ROUTE_TYPES)) or "",
        mtu=value(r, e.get("mtu"), f"{key}.mtu", values.mtu),
        source=value(r, e.get("from"), f"{key}.from", values.address),
        congestion_window=value(r, e.get("congestion_window"), f"{key}.congestion_window", window),
        receive_window=value(
            r, e.get("advertised_receive_window"), f"{key}.advertised_receive_window", window
        ),
    )


def _rule(r: Reader, node: Node, key: str) -> Rule | None:
    e = r.table(node, key, ("from", "to", "table", "priority", "mark", "type_of_service"))
    table = value(r, e.get("table"), f"{key}.table", values.table)
    source = value(r, e.get("from"), f"{key}.from", values.network)
    to = value(r, e.get("to"), f"{key}.to", values.network)
    if "table" not in e:
        r.error(node, f"{key}.table", f"{key} has no table")
    if source is not None and to is not None and source.version != to.version:
        r.error(node, key, f"{key} is of IPv{source.version} and IPv{to.version}")
    number = values.number(0, 2**32 - 1)
    return (
        None
        if table is None
        else Rule(
            table,
            source,
            to,
            priority=value(r, e.get("priority"), f"{key}.priority", number),
            mark=value(r, e.get("mark"), f"{key}.mark", number),
            type_of_service=value(
                r, e.get("type_of_service"), f"{key}.type_of_service", values.number(0, 255)
            ),
        )
    )


_OVERRIDES = (
    *("hostname", "route_metric", "send_hostname", "use_dns", "use_domains", "use_hostname"),
    *("use_mtu", "use_ntp", "use_routes"),
)


def _overrides(r: Reader, node: Node | None, key: str, version: int) -> DhcpOptions | None:
    if node is None:
        return None
    only4 = ("use_mtu", "use_routes")
    known = _OVERRIDES if version == 4 else tuple(k for k in _OVERRIDES if k not in only4)
    no_such = "does not exist in IPv6, where routers tell it; ignored"
    e = r.table(node, key, known, dict.fromkeys(only4, no_such) if version == 6 else None)
    return DhcpOptions(
        hostname=value(r, e.get("hostname"), f"{key}.hostname", values.hostname),
        route_metric=value(r, e.get("route_metric"), f"{key}.route_metric", values.metric),
        send_hostname=flag(r, e.get("send_hostname"), f"{key}.send_hostname"),
        use_dns=flag(r, e.get("use_dns"), f"{key}.use_dns"),
        use_domains=value(r, e.get("use_domains"), f"{key}.use_domains", _domains),
        use_hostname=flag(r, e.get("use_hostname"), f"{key}.use_hostname"),
        use_mtu=flag(r, e.get("use_mtu"), f"{key}.use_mtu"),
        use_ntp=flag(r, e.get("use_ntp"), f"{key}.use_ntp"),
        use_routes=flag(r, e.get("use_routes"), f"{key}.use_routes"),
    )


def _domains(text: str) -> str:
    if text == "route":
        return text
    return "yes" if values.flag(text) else "no"
