"""Debian's ``/etc/network/interfaces``, as coreos-cloudinit and ifupdown read it.

Source: interfaces(5), and what coreos-cloudinit 1.14 took (``-convert-netconf debian``): every
route and address that it took is the same here, and what it passed over in silence is told. As
there, an interface without ``auto`` comes up too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import (
    Addressing,
    Description,
    DhcpOptions,
    Kind,
    Link,
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
    Entries,
    each,
    finish,
    parameters,
    value,
    words,
)
from proa.machine.cloudconfig.network.v1 import read_ports, with_netmask
from proa.machine.cloudconfig.parse import Node, Refused, Table, Text, canonical, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass, replace

MAX_SIZE = 128 * 1024
"""Longest file in characters. Every word of it is kept with its place."""

Line = tuple[Text, ...]
"""The words of a line, each where it stands."""

_METHODS = {
    "inet": ("static", "dhcp", "manual", "loopback"),
    "inet6": ("static", "dhcp", "auto", "manual", "loopback"),
}
_QUIET = ("auto", "allow-auto", "allow-hotplug", "no-auto-down", "no-scripts")
_REFUSED = ("mapping", "source", "source-directory", "rename", "template")
_HOOKS = ("pre-up", "up", "post-up", "down", "pre-down", "post-down")
_VLAN_NAME = re.compile(r"(?:.*\.|vlan)([0-9]{1,4})")


@dataclass(frozen=True)
class _Stanza:
    """``iface NAME FAMILY METHOD`` with its options and the commands of its hooks."""

    name: Text
    family: str
    method: str
    options: Table
    hooks: tuple[Line, ...]


def read(r: Reader, text: str) -> Description:
    if len(text) > MAX_SIZE:
        raise Refused(f"the interfaces file is larger than {MAX_SIZE // 1024} KiB")
    stanzas = tuple(_stanzas(r, _lines(text)))
    shapes: dict[str, dict[str, Node]] = {}
    parts: dict[str, list[Addressing]] = {}
    first: dict[str, Text] = {}
    for stanza in stanzas:
        name = value(r, _base(stanza.name), "iface", values.name)
        if name is None:
            continue
        options = _options(r, stanza)
        first.setdefault(name, stanza.name)
        shapes[name] = {**shapes.get(name, {}), **options}
        parts.setdefault(name, []).append(_addressing(r, stanza, options))
    links = [
        _link(r, name, join(parts[name]), options, first[name]) for name, options in shapes.items()
    ]
    rest = _with_masters(r, [link for link in links if link and link.id != "lo"], shapes)
    # Ubuntu's images have the name servers of all interfaces with the loopback.
    loopback = next((link for link in links if link and link.id == "lo"), Link("lo", "loopback"))
    names = loopback.addressing
    loopback = replace(loopback, addressing=replace(names, nameservers=(), search=()))
    return finish(r, (loopback, *rest), names.nameservers, names.search)


# From text to stanzas.


def _lines(text: str) -> Iterator[Line]:
    """The lines that say something; one that ends in a backslash goes on in the next."""
    start, whole = 1, ""
    for number, raw in enumerate(text.split("\n"), start=1):
        if raw.endswith("\\"):
            whole += raw[:-1]
            continue
        yield from _words(whole + raw, start)
        start, whole = number + 1, ""
    yield from _words(whole, start)


def _words(text: str, line: int) -> Iterator[Line]:
    found = tuple(
        Text(match[0], line, match.start() + 1) for match in re.finditer(r"[^ \t]+", text)
    )
    if found and not found[0].text.startswith("#"):
        yield found


def _stanzas(r: Reader, lines: Iterator[Line]) -> Iterator[_Stanza]:
    head: Line = ()
    body: list[Line] = []
    begun = False
    for line in lines:
        word = line[0].text
        if word not in ("iface", *_QUIET, *_REFUSED) and not word.startswith("allow-"):
            if begun:
                body.append(line)
            else:
                message = f'"{printable(word)}" stands before the first iface or auto'
                r.error(line[0], "", message)
                begun = True
            continue
        yield from _stanza(r, head, body)
        head, body, begun = line, [], True
    yield from _stanza(r, head, body)


def _stanza(r: Reader, head: Line, body: Sequence[Line]) -> Iterator[_Stanza]:
    if not head or head[0].text in _QUIET:
        return
    kind = head[0].text
    if kind != "iface":
        r.error(head[0], kind, f'unknown stanza "{printable(kind)}"')
    elif len(head) != 4:
        message = "iface wants a name, a family and a method, like: iface eth0 inet dhcp"
        r.error(head[0], kind, message)
    elif head[2].text not in _METHODS:
        shown = printable(head[2].text)
        r.error(head[2], kind, f'the family "{shown}" is not taken: only inet and inet6')
    elif head[3].text not in _METHODS[head[2].text]:
        shown = printable(head[3].text)
        methods = ", ".join(_METHODS[head[2].text])
        r.error(head[3], kind, f'invalid config method "{shown}": not one of {methods}')
    else:
        hooks = tuple(line for line in body if line[0].text in _HOOKS)
        options = [line for line in body if line[0].text not in _HOOKS]
        table = _table(r, head, options)
        yield _Stanza(head[1], head[2].text, head[3].text, table, hooks)


# Options that may stand on several lines.
_MANY = ("dns_nameservers", "dns_search")


def _table(r: Reader, head: Line, lines: Sequence[Line]) -> Table:
    """The options of a stanza as a mapping from a name to the rest of its line."""
    entries: dict[str, tuple[Text, Text]] = {}
    for word, *rest in lines:
        name = canonical(word.text)
        name = {"dns_nameserver": "dns_nameservers"}.get(name, name)
        text = " ".join(part.text for part in rest)
        place = rest[0] if rest else word
        key = f"{printable(head[1].text)}.{printable(name)}"
        if not rest:
            r.warn(word, key, f"{key} has no value; ignored")
            continue
        if name in entries and name in _MANY:
            text = f"{entries[name][1].text} {text}"
        elif name in entries:
            r.warn(word, key, f"{key} stands twice; the last is taken")
        entries[name] = (Text(name, word.line, word.column), Text(text, place.line, place.column))
    return Table(tuple(entries.values()), head[0].line, head[0].column)


def _base(name: Text) -> Text:
    """The interface of an alias like ``eth0:1``."""
    return Text(name.text.partition(":")[0], name.line, name.column)


# What a stanza says.

_DEVICE: Mapping[str, str] = {
    **{f"bond_{name}": name for name in (*BOND, "slaves", "master", "primary")},
    **{f"bridge_{name}": name for name in (*BRIDGE, *PORT, "ports", "hw")},
}
_KNOWN = (
    *("address", "netmask", "gateway", "broadcast", "network", "metric", "pointopoint"),
    *("hwaddress", "mtu", "dns_nameservers", "dns_search", "dns_domain", "hostname"),
    *("accept_ra", "privext", "vlan_raw_device", "vlan_id", *_DEVICE, "slaves"),
)
_NOT_TAKEN = {
    **{f"bond_{name}": why for name, why in NOT_TAKEN_BOND.items() if name != "slaves"},
    **{f"bridge_{name}": why for name, why in NOT_TAKEN_BRIDGE.items()},
    **dict.fromkeys(
        (
            *("scope", "autoconf", "dad_attempts", "dad_interval", "preferred_lifetime"),
            *("leasehours", "leasetime", "vendor", "client", "media", "request_prefix", "dhcp"),
            *("ll_attempts", "ll_interval", "wpa_ssid", "wpa_psk", "ethernet_wol"),
        ),
        "is not taken; ignored",
    ),
}


def _options(r: Reader, stanza: _Stanza) -> dict[str, Node]:
    key = printable(stanza.name.text)
    options = r.table(stanza.options, key, _KNOWN, _NOT_TAKEN)
    if "slaves" in options:
        options.setdefault("bond_slaves", options.pop("slaves"))
    return options


def _addressing(r: Reader, stanza: _Stanza, e: Entries) -> Addressing:
    key = printable(stanza.name.text)
    six = stanza.family == "inet6"
    metric = value(r, e.get("metric"), f"{key}.metric", values.metric)
    search = each(r, e.get("dns_search"), f"{key}.dns_search", values.domain)
    domain = each(r, e.get("dns_domain"), f"{key}.dns_domain", values.domain)
    accept = value(r, e.get("accept_ra"), f"{key}.accept_ra", values.number(0, 2))
    privacy = value(r, e.get("privext"), f"{key}.privext", values.number(0, 2))
    hostname = value(r, e.get("hostname"), f"{key}.hostname", values.hostname)
    asked = DhcpOptions(hostname=hostname, route_metric=metric)
    by_dhcp = stanza.method == "dhcp"
    common = Addressing(
        dhcp4=by_dhcp and not six,
        dhcp6=by_dhcp and six,
        dhcp4_options=asked if by_dhcp and not six and asked != DhcpOptions() else None,
        dhcp6_options=asked if by_dhcp and six and asked != DhcpOptions() else None,
        accept_ra=(stanza.method == "auto" or None) if accept is None else accept > 0,
        routes=tuple(_hook_routes(r, stanza.hooks, key)),
        nameservers=each(r, e.get("dns_nameservers"), f"{key}.dns_nameservers", values.address),
        search=tuple(dict.fromkeys((*domain, *search))),
        ipv6_privacy=None if privacy is None else privacy > 0,
    )
    if stanza.method != "static":
        return common
    return join((_static(r, stanza, e, key, metric), common))


def _static(r: Reader, stanza: _Stanza, e: Entries, key: str, metric: int | None) -> Addressing:
    assigned = with_netmask(r, e, key) if "address" in e else None
    version = 6 if stanza.family == "inet6" else 4
    if "address" not in e:
        r.error(stanza.name, f"{key}.address", f"{key} is static and has no address")
    elif assigned is not None and assigned.interface.version != version:
        message = f"{key} is {stanza.family} and its address is of IPv{assigned.interface.version}"
        r.error(e["address"], f"{key}.address", message)
    if assigned is not None and ":" in stanza.name.text:
        label = value(r, stanza.name, key, values.label) or ""
        assigned = replace(assigned, label=label)
    via = value(r, e.get("gateway"), f"{key}.gateway", values.address)
    return Addressing(
        addresses=() if assigned is None else (assigned,),
        routes=() if via is None else (Route(values.everywhere(via.version), via, metric=metric),),
    )


def _hook_routes(r: Reader, hooks: Sequence[Line], key: str) -> Iterator[Route]:
    """The routes that commands of hooks add. The other commands are not run."""
    for line in hooks:
        hook, command = line[0], [word.text for word in line[1:]]
        route, rest = _route(command)
        if route is not None and hook.text in ("up", "post-up", "pre-up"):
            yield route
            if rest:
                message = f"{key}: of the command of {hook.text} only the route is taken"
                r.warn(hook, f"{key}.{hook.text}", message)
        elif not _takes_route_away(command):
            message = f"{key}: the command of {hook.text} is not run"
            if hook.text in ("up", "post-up", "pre-up"):
                message += "; only those that add a route are understood"
            r.warn(hook, f"{key}.{hook.text}", message)


def _takes_route_away(command: Sequence[str]) -> bool:
    """networkd does by itself what ``route del`` in a hook is for."""
    bare = [word for word in command if not word.startswith("-")]
    tool = bare[0].rpartition("/")[2] if bare else ""
    return tool in ("route", "ip") and bool({"del", "delete"} & set(bare[1:3]))


def _route(command: Sequence[str]) -> tuple[Route | None, bool]:
    """The route that ``route add …`` or ``ip route add …`` makes, and whether there is more."""
    text = list(command)
    if text[-2:] in (["||", "true"], ["||", ":"]):
        text = text[:-2]
    tool = text[0].rpartition("/")[2] if text else ""
    try:
        if tool == "route":
            return _route_of_net_tools(text[1:])
        if tool == "ip":
            return _route_of_iproute(text[1:])
    except ValueError:  # an address that is none
        pass
    return None, True


def _route_of_net_tools(text: Sequence[str]) -> tuple[Route | None, bool]:
    """``[-A inet6] add`` with ``[-net|-host] DST``, ``netmask M``, ``gw G``, … (man route).

    They may come in any order, as coreos-cloudinit had it.
    """
    if text[:2] == ["-A", "inet6"]:
        text = text[2:]
    if text[:1] != ["add"]:
        return None, True
    found, bare = _sorted_out(text[1:], ("-net", "-host", "netmask", "gw", "metric", "dev"))
    to = found.get("-net") or found.get("-host") or next(iter(bare), "")
    if mask := found.get("netmask"):
        to = f"{to.partition('/')[0]}/{mask}"
    named = "-net" in found or "-host" in found
    return _checked(to, found.get("gw", ""), found), len(bare) > (0 if named else 1)


def _route_of_iproute(text: Sequence[str]) -> tuple[Route | None, bool]:
    """``[-4|-6] route add DST via G [metric N] [dev IF] [onlink]`` (man ip-route)."""
    if text[:1] in (["-4"], ["-6"]):
        text = text[1:]
    if text[:1] not in (["route"], ["ro"], ["r"]) or text[1:2] not in (["add"], ["replace"]):
        return None, True
    found, bare = _sorted_out(text[2:], ("via", "metric", "dev"))
    route = _checked(bare[0] if bare else "", found.get("via", ""), found)
    if route is not None and "onlink" in bare[1:]:
        route = replace(route, on_link=True)
    return route, any(word != "onlink" for word in bare[1:])


def _sorted_out(text: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The words after those of ``known``, and the words that are neither."""
    found: dict[str, str] = {}
    bare: list[str] = []
    rest = iter(text)
    for word in rest:
        if word in known:
            found[word] = next(rest, "")
        else:
            bare.append(word)
    return found, bare


def _checked(to: str, gateway: str, options: Mapping[str, str]) -> Route | None:
    via = values.address(gateway)
    target = values.destination(via.version)(to)
    metric = values.metric(options["metric"]) if "metric" in options else None
    return Route(target, via, metric=metric) if target.version == via.version else None


# What all stanzas of one interface make it.


def _link(
    r: Reader, name: str, addressing: Addressing, e: dict[str, Node], place: Text
) -> Link | None:
    key = printable(name)
    device = {_DEVICE[option]: node for option, node in e.items() if option in _DEVICE}
    kind = _kind(name, e)
    link = Link(
        name,
        kind,
        mac=_hwaddress(r, e.get("hwaddress"), f"{key}.hwaddress"),
        mtu=value(r, e.get("mtu"), f"{key}.mtu", values.mtu),
        addressing=addressing,
        at=(place.line, place.column),
    )
    if kind == "bond":
        return replace(
            link,
            members=_members(r, device.get("slaves"), f"{key}.bond_slaves"),
            parameters=parameters(r, device, key, BOND),
            primary=next(
                iter(each(r, device.get("primary"), f"{key}.bond_primary", values.name)), ""
            ),
        )
    if kind == "bridge":
        return replace(
            link,
            members=_members(r, device.get("ports"), f"{key}.bridge_ports"),
            parameters=parameters(r, device, key, BRIDGE),
            ports=read_ports(r, device, key),
            mac=value(r, device.get("hw"), f"{key}.bridge_hw", values.mac) or link.mac,
        )
    if kind == "vlan":
        return _vlan(r, link, e, place)
    # Clouds write the address that the card has, to say which card they call eth0.
    return replace(link, card=link.mac) if kind == "physical" else link


def _kind(name: str, e: Entries) -> Kind:
    if name == "lo":
        return "loopback"
    if "vlan_raw_device" in e:
        return "vlan"
    if "bond_slaves" in e or "bond_mode" in e:
        return "bond"
    if "bridge_ports" in e:
        return "bridge"
    return "vlan" if "." in name else "physical"


def _vlan(r: Reader, link: Link, e: Entries, place: Text) -> Link | None:
    """A VLAN: its id is in its name, and the link below too, unless ``vlan_raw_device`` says it."""
    key = printable(link.id)
    match = _VLAN_NAME.fullmatch(link.id)
    number = value(r, e.get("vlan_id"), f"{key}.vlan_id", values.vlan_id)
    if number is None and match is not None:
        node = Text(match[1], place.line, place.column)
        number = value(r, node, f"{key}.vlan_id", values.vlan_id)
    elif number is None:
        message = f'the name "{key}" has no VLAN in it; call it like eth0.5 or vlan5'
        r.error(place, key, message)
    parent = value(r, e.get("vlan_raw_device"), f"{key}.vlan_raw_device", values.name)
    if parent is None:
        parent = link.id.rpartition(".")[0]
    return None if number is None else replace(link, parent=parent, vlan_id=number)


def _hwaddress(r: Reader, node: Node | None, key: str) -> str:
    """``ether MAC``, or the address alone."""
    if not isinstance(node, Text):
        return ""
    bare = Text(node.text.removeprefix("ether").strip(), node.line, node.column)
    return value(r, bare, key, values.mac) or ""


def _members(r: Reader, node: Node | None, key: str) -> tuple[str, ...]:
    if not isinstance(node, Text) or node.text == "none":
        return ()
    found = words(node)
    if found and found[0].text in ("all", "regex"):
        r.error(node, key, f"{key} wants the names of the ports; {found[0].text} is not taken")
        return ()
    return tuple(dict.fromkeys(each(r, node, key, values.name)))


def _with_masters(
    r: Reader, links: Sequence[Link], shapes: Mapping[str, Mapping[str, Node]]
) -> Iterator[Link]:
    """The links, with the ports that name their bond themselves (``bond-master``)."""
    ports: dict[str, list[str]] = {}
    bonds = {link.id for link in links if link.kind == "bond"}
    for name, options in shapes.items():
        node = options.get("bond_master")
        key = f"{printable(name)}.bond_master"
        master = value(r, node, key, values.name) if node else None
        if node is not None and master is not None and master != "none":
            ports.setdefault(master, []).append(name)
            if master not in bonds:
                r.error(node, key, f'{key}: there is no bond "{master}"')
    for link in links:
        members = tuple(dict.fromkeys((*link.members, *ports.get(link.id, ()))))
        yield replace(link, members=members) if link.kind == "bond" else link
