"""Whatever the bytes: a network or problems, never an exception, and never a line injected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig.network.forms import FORMS, Form, read
from proa.machine.cloudconfig.network.model import MAX_ITEMS, MAX_LINKS, Description
from proa.machine.cloudconfig.network.render import render
from support.network_examples import examples, form_of

# All that a file may hold, by its kind (man systemd.network, systemd.netdev, systemd.link).
SECTIONS = {
    "network": {"Match", "Link", "Network", "DHCPv4", "DHCPv6", "Address", "Route", "Bridge"}
    | {"RoutingPolicyRule"},
    "netdev": {"NetDev", "VLAN", "Bond", "Bridge"},
    "link": {"Match", "Link"},
    "conf": {"Resolve"},
}
PATH = re.compile(
    r"systemd/network/1[05]-proa-[A-Za-z0-9._+@-]{1,64}\.(network|netdev|link)"
    r"|systemd/resolved\.conf\.d/10-proa\.(conf)"
)


def checked(form: Form, data: bytes) -> Description:
    """Read and render; every file must be what this code writes, and nothing more."""
    network, problems = read(form, data)
    if any(problem.level == "error" for problem in problems):
        assert network == Description()
    for problem in problems:
        assert str(problem).isprintable()
    paths = set()
    for file in render(network):
        match = PATH.fullmatch(file.path)
        assert match and file.path not in paths
        paths.add(file.path)
        kind = match[1] or match[2]
        head, *lines = file.content.removesuffix("\n").split("\n")
        assert head.startswith("# ") and "docs/network.md" in head
        section = ""
        for line in lines:
            if line.startswith("["):
                section = line[1:-1]
                assert line == f"[{section}]" and section in SECTIONS[kind]
            elif line:
                assert section and re.fullmatch(r"[A-Za-z0-9]+=[ -~]+(?<!\\)", line), line
    return network


@pytest.mark.parametrize("form", FORMS)
@given(st.binary(max_size=300))
def test_any_bytes(form: Form, data: bytes) -> None:
    checked(form, data)


@pytest.mark.parametrize("form", FORMS)
@given(st.text(max_size=300))
def test_any_text(form: Form, text: str) -> None:
    checked(form, text.encode("utf-8", "surrogatepass"))


# Trees that are nearly right: known keys at any place, good values and hostile ones.


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


KEYS = words(
    """
    network version renderer ethernets bonds bridges vlans dummy-devices wifis config type name
    mac_address mtu subnets address netmask gateway dns_nameservers dns_search routes destination
    metric control params bond-mode bond_miimon bond_interfaces bridge_interfaces bridge_pathcost
    vlan_link vlan_id search interface match macaddress driver set-name wakeonlan dhcp4 dhcp6
    dhcp4-overrides use-dns use-domains route-metric hostname addresses gateway4 gateway6
    nameservers to via on-link scope table routing-policy from priority mark optional link-local
    accept-ra interfaces parameters mode mii-monitor-interval arp-ip-targets path-cost primary id
    link links networks services ethernet_mac_address bond_links vlan_mac_address ip_address public
    mac dns address_family eth0 eth1 br0 bond0 interface.0.name interface.0.mac interface.0.dhcp
    interface.0.ip.0.address interface.0.route.0.gateway interface.0.route.0.destination
    dns.server.0 lo label lifetime guestinfo.dns.domain.0
    """
)
GOOD = words(
    """
    1 2 5 true no eth0 eth1 eth* bond0 br0 lo physical bond bridge vlan nameserver route loopback
    dhcp static static6 manual ipv6_slaac ipv4 ipv6 ipv4_dhcp phy dns 10.0.0.2/24 10.0.0.1
    2001:db8::1/64 fe80::1 255.255.255.0 default 0.0.0.0/0 ::/0 52:54:00:12:34:56 802.3ad 100 1500
    lab.example ~. yes off mac auto eth0.5 e1000*
    """
)
HOSTILE = st.sampled_from(
    [
        "eth0\n[Match]\nName=x",
        "a\\",
        "a=b",
        "[Route]",
        "#x",
        ";x",
        "%n",
        "../../etc/x",
        "a b",
        "\x00",
        "",
        "fe80::1%\n[Route]",
        "9" * 5000,
        "-1",
        "1e9",
        "é",
        "\u2028x",
    ]
)
LEAVES = GOOD | GOOD | HOSTILE | st.integers() | st.booleans() | st.none() | st.text(max_size=20)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | KEYS | HOSTILE, inner, max_size=6)
    ),
    max_leaves=25,
)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "eni"])
@settings(max_examples=100)
@given(TREES)
def test_any_tree(form: Form, tree: object) -> None:
    checked(form, json.dumps(tree).encode())


# Good descriptions with one thing in them made hostile: an error anywhere voids the whole, so only
# these reach the files.


def leaves(tree: object) -> Iterator[tuple[object, ...]]:
    """The way to each scalar and each key of a tree."""
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield (key, "key")
            yield from ((key, *rest) for rest in leaves(inner))
    elif isinstance(tree, list):
        for index, inner in enumerate(tree):
            yield from ((index, *rest) for rest in leaves(inner))
    else:
        yield ()


def changed(tree: object, way: tuple[object, ...], text: str) -> object:
    if not way:
        return text
    first, *rest = way
    if isinstance(tree, dict) and rest == ["key"]:
        return {text if key == first else key: inner for key, inner in tree.items()}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)  # type: ignore[arg-type]
    new = {
        key: changed(inner, tuple(rest), text) if key == first else inner for key, inner in items
    }
    return new if isinstance(tree, dict) else list(new.values())


@pytest.mark.parametrize(
    "example", [one for one in examples() if one.suffix != ".interfaces"], ids=lambda one: one.name
)
@pytest.mark.parametrize(
    "text", ["x\n[Match]\nName=x", "x y=z", "a\\", "../x", "é", "fe80::1%\n[Route]"]
)
def test_no_value_of_a_description_becomes_more_than_a_value(example: Path, text: str) -> None:
    tree = yaml.load(example.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 (only texts)
    ways = list(leaves(tree))
    assert len(ways) > 20 and checked(form_of(example), json.dumps(tree).encode()).links
    for way in ways:
        checked(form_of(example), json.dumps(changed(tree, way, text)).encode())


@pytest.mark.parametrize(
    "example", [one for one in examples() if one.suffix == ".interfaces"], ids=lambda one: one.name
)
@pytest.mark.parametrize("text", ["[Match]", "x=z", "a\\b", "\u2028", "../x", "%n", "é", "#x"])
def test_no_word_of_an_interfaces_file_becomes_more_than_a_value(example: Path, text: str) -> None:
    content = example.read_text()
    for match in re.finditer(r"\S+", content):
        broken = content[: match.start()] + text + content[match.end() :]
        checked("eni", broken.encode())


# Descriptions of the right shape, with whatever values.


def mappings(*keys: str, **fixed: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    optional: dict[str, st.SearchStrategy[object]] = dict.fromkeys(keys, LEAVES)
    return st.fixed_dictionaries(fixed, optional=optional)


NAMES = st.sampled_from(["eth0", "eth1", "bond0", "br0", "v5"]) | HOSTILE
ROUTES = st.lists(mappings("to", "via", "metric", "table", "scope", "type", "from"), max_size=2)
LINKS = st.fixed_dictionaries(
    {},
    optional={
        "match": mappings("name", "macaddress", "driver"),
        "set-name": LEAVES,
        "addresses": st.lists(LEAVES | mappings("10.0.0.3/8", "label"), max_size=2),
        "routes": ROUTES,
        "routing-policy": st.lists(mappings("from", "to", "table", "mark"), max_size=2),
        "nameservers": mappings("addresses", "search"),
        "dhcp4": LEAVES,
        "dhcp4-overrides": mappings("hostname", "use-domains", "route-metric"),
        "macaddress": LEAVES,
        "interfaces": st.lists(NAMES, max_size=3),
        "parameters": mappings("mode", "path-cost", "arp-ip-targets", "primary", "ageing-time"),
        "id": LEAVES,
        "link": NAMES,
        "link-local": st.lists(LEAVES, max_size=2),
    },
)
KINDS = ("ethernets", "bonds", "bridges", "vlans")
V2 = st.fixed_dictionaries(
    {"version": st.just(2)},
    optional=dict.fromkeys(KINDS, st.dictionaries(NAMES, LINKS, max_size=3)),
)
SUBNETS = st.lists(
    mappings("type", "address", "netmask", "gateway", "dns_search", "control", routes=ROUTES),
    max_size=2,
)
V1 = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "config": st.lists(
            mappings(
                *("mac_address", "mtu", "bond_interfaces", "vlan_link", "vlan_id", "address"),
                *("destination", "gateway", "search", "interface", "bridge_interfaces"),
                type=GOOD | HOSTILE,
                name=NAMES,
                subnets=SUBNETS,
                params=mappings("bond-mode", "bond_miimon", "bridge_pathcost", "bridge_hw"),
            ),
            max_size=4,
        ),
    }
)
OPENSTACK = st.fixed_dictionaries(
    {
        "links": st.lists(
            mappings(
                *("ethernet_mac_address", "mtu", "bond_links", "bond_mode", "vlan_link", "vlan_id"),
                *("vlan_mac_address", "name"),
                id=NAMES,
                type=GOOD | HOSTILE,
            ),
            max_size=4,
        ),
        "networks": st.lists(
            mappings("ip_address", "netmask", "gateway", "services", link=NAMES, type=GOOD),
            max_size=3,
        ),
    }
)


@settings(max_examples=150)
@given(V2)
def test_any_version_2(tree: object) -> None:
    checked("v2", json.dumps(tree).encode())


@settings(max_examples=150)
@given(V1)
def test_any_version_1(tree: object) -> None:
    checked("v1", json.dumps(tree).encode())


@settings(max_examples=150)
@given(OPENSTACK)
def test_any_openstack(tree: object) -> None:
    checked("openstack", json.dumps(tree).encode())


WORDS = words(
    """
    auto iface eth0 eth0:1 eth0.5 bond0 vlan6 lo inet inet6 static dhcp manual auto loopback address
    netmask gateway hwaddress ether dns-nameservers dns-search post-up up pre-down route add del
    -net -host gw metric ip via dev default bond-slaves bond-mode bond-master bridge_ports
    vlan_raw_device mtu source mapping allow-hotplug none all
    """
)
LINES = st.lists(st.lists(WORDS | WORDS | GOOD | HOSTILE, max_size=6), max_size=12)


@settings(max_examples=150)
@given(LINES)
def test_any_interfaces_file(lines: list[list[str]]) -> None:
    checked("eni", "\n".join(" ".join(line) for line in lines).encode())


# Sizes.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "a: " * 50_000, "\\\n" * 100_000])
def test_depth_is_refused(form: Form, text: str) -> None:
    assert checked(form, text.encode()) == Description()


def test_too_large_is_refused_and_said() -> None:
    _, (problem,) = read("v2", b"#" * (3 << 20))
    assert "larger than 2048 KiB" in problem.message


def test_more_links_than_any_machine_has_are_refused() -> None:
    vlans = {f"v{n}": {"id": n, "link": "eth0"} for n in range(MAX_LINKS + 1)}
    _, problems = read("v2", json.dumps({"version": 2, "vlans": vlans}).encode())
    assert any(f"more than {MAX_LINKS} links" in problem.message for problem in problems)


def test_more_addresses_than_any_machine_has_are_refused() -> None:
    addresses = ", ".join(f"10.0.{n // 250}.{n % 250}/8" for n in range(MAX_ITEMS + 1))
    for count in (1, 30):
        text = f"version: 2\nethernets: {{eth0: {{addresses: [{addresses * count}]}}}}"
        _, problems = read("v2", text.encode())
        assert any("more" in problem.message for problem in problems)


def test_a_tower_of_as_many_vlans_as_may_be_is_no_recursion() -> None:
    tower = {f"v{n}": {"id": 5, "link": f"v{n - 1}"} for n in range(1, MAX_LINKS)}
    assert (
        len(checked("v2", json.dumps({"version": 2, "vlans": tower}).encode()).links) == MAX_LINKS
    )


def test_a_very_long_list_of_words_is_bounded() -> None:
    text = "version: 2\nethernets: {eth0: {nameservers: {search: '" + "1 " * 900_000 + "'}}}"
    _, problems = read("v2", text.encode())
    assert len(problems) == 1


def test_an_interfaces_file_that_is_none_is_refused() -> None:
    _, (problem,) = read("eni", b"iface eth0 inet dhcp\n" + b"a " * 900_000)
    assert "larger than 128 KiB" in problem.message


def test_an_alias_that_multiplies_is_refused() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    _, (problem,) = read("cloud-init", bomb.encode())
    assert "too much content" in problem.message
