"""Version 1 (cloud-init's own format): what each item becomes, and what is refused by name."""

from __future__ import annotations

import pytest

from proa.machine.cloudconfig.network.model import Description
from proa.machine.cloudconfig.network.render import render
from support.networks import file, names, problems_of, said


def config(*items: str) -> str:
    return "version: 1\nconfig:\n" + "".join(f"- {{{item}}}\n" for item in items)


def subnet(options: str) -> str:
    """The file of ``eth0`` with one subnet."""
    item = f"type: physical, name: eth0, subnets: [{{{options}}}]"
    return file(said("v1", config(item)), "10-proa-eth0.network")


def problems(*items: str) -> list[str]:
    return problems_of("v1", config(*items))


def test_a_card_with_an_address_is_found_by_it_and_gets_the_name() -> None:
    network = said("v1", config("type: physical, name: lan0, mac_address: '52:54:00:aa:bb:cc'"))
    assert names(network) == ["10-proa-lan0.link", "10-proa-lan0.network"]
    assert file(network, "10-proa-lan0.link").startswith(
        "[Match]\nPermanentMACAddress=52:54:00:aa:bb:cc\n\n[Link]\nName=lan0\n"
    )
    assert file(network, "10-proa-lan0.network") == (
        "[Match]\nPermanentMACAddress=52:54:00:aa:bb:cc\n"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("type: dhcp", "DHCP=ipv4\n"),
        ("type: dhcp4", "DHCP=ipv4\n"),
        ("type: dhcp6", "DHCP=ipv6\n"),
        ("type: ipv6_dhcpv6-stateful", "DHCP=ipv6\nIPv6AcceptRA=yes\n"),
        ("type: ipv6_dhcpv6-stateless", "[Network]\nIPv6AcceptRA=yes\n"),
        ("type: ipv6_slaac", "[Network]\nIPv6AcceptRA=yes\n"),
        ("type: static, address: 192.0.2.2/24", "Address=192.0.2.2/24\n"),
        ("type: static, address: 192.0.2.2, netmask: 255.255.254.0", "Address=192.0.2.2/23\n"),
        ("type: static, address: 192.0.2.2, netmask: 24", "Address=192.0.2.2/24\n"),
        ("type: static6, address: '2001:db8::2/64'", "Address=2001:db8::2/64\n"),
        ("type: manual", "[Match]\nName=eth0\n"),
        ("type: dhcp, control: manual", "ActivationPolicy=manual\n"),
        ("type: static, address: 10.0.0.2/24, broadcast: 10.0.0.9", "Broadcast=10.0.0.9\n"),
        ("type: static, address: 10.0.0.2/32, pointopoint: 10.0.0.9", "Peer=10.0.0.9/32\n"),
        ("type: static, address: 10.0.0.2/24, gateway: 10.0.0.1", "Destination=0.0.0.0/0\nGateway"),
        ("type: dhcp, dns_nameservers: [1.1.1.1], dns_search: [lab]", "DNS=1.1.1.1\nDomains=lab\n"),
        ("type: dhcp, dns_nameservers: 1.1.1.1 9.9.9.9", "DNS=1.1.1.1\nDNS=9.9.9.9\n"),
        ("type: dhcp, mtu: 1400", "MTUBytes=1400\n"),
    ],
)
def test_a_subnet_becomes_lines(options: str, line: str) -> None:
    assert line in subnet(options)


def test_a_route_may_be_written_with_a_net_mask() -> None:
    routes = "{network: 10.0.0.0, netmask: 255.0.0.0, gateway: 192.0.2.9, metric: 3}"
    content = subnet(f"type: static, address: 192.0.2.2/24, routes: [{routes}]")
    assert "[Route]\nDestination=10.0.0.0/8\nGateway=192.0.2.9\nMetric=3\n" in content


def test_a_route_of_its_own_goes_to_the_device_next_to_its_gateway() -> None:
    network = said(
        "v1",
        config(
            "type: physical, name: eth0, subnets: [{type: static, address: 192.0.2.2/24}]",
            "type: physical, name: eth1, subnets: [{type: static, address: 198.51.100.2/24}]",
            "type: route, destination: 10.0.0.0/8, gateway: 198.51.100.1",
        ),
    )
    assert "Gateway" not in file(network, "10-proa-eth0.network")
    assert "Gateway=198.51.100.1\n" in file(network, "10-proa-eth1.network")


def test_a_route_without_a_gateway_lies_on_the_first_device_with_an_address() -> None:
    network = said(
        "v1",
        config(
            "type: physical, name: eth0, subnets: [{type: dhcp}]",
            "type: route, destination: 10.0.0.0/8",
        ),
    )
    assert "[Route]\nDestination=10.0.0.0/8\n" in file(network, "10-proa-eth0.network")


def test_a_route_that_no_device_reaches_is_told_of() -> None:
    told = problems(
        "type: physical, name: eth0, subnets: [{type: static, address: 192.168.23.14/24}]",
        "type: route, destination: 192.168.24.0/24, gateway: 192.168.24.1",
    )
    assert "line 4: warning: no device has an address next to 192.168.24.1" in told[1]


def test_name_servers_of_the_whole_machine_are_for_resolved() -> None:
    network = said("v1", config("type: nameserver, address: [1.1.1.1, '::1'], search: [lab]"))
    (resolved,) = render(network)
    assert resolved.path == "systemd/resolved.conf.d/10-proa.conf"
    assert resolved.content.endswith("[Resolve]\nDNS=1.1.1.1\nDNS=::1\nDomains=lab\n")


def test_name_servers_of_a_device_stay_with_it() -> None:
    network = said(
        "v1",
        config("type: physical, name: eth0", "type: nameserver, interface: eth0, address: 1.1.1.1"),
    )
    assert file(network, "10-proa-eth0.network").endswith("[Network]\nDNS=1.1.1.1\n")


@pytest.mark.parametrize("mode", ["bond-mode: 802.3ad", "bond_mode: 4", "mode: '4'"])
def test_parameters_of_a_bond_have_three_spellings_and_numbers(mode: str) -> None:
    item = f"type: bond, name: bond0, bond_interfaces: [a, b], params: {{{mode}, bond-miimon: 100}}"
    content = file(said("v1", config(item)), "10-proa-bond0.netdev")
    assert content.endswith("[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\n")


def test_a_vlan_on_a_bond() -> None:
    network = said(
        "v1",
        config(
            "type: bond, name: bond0, bond_interfaces: [gbe0, gbe1]",
            "type: vlan, name: bond0.200, vlan_link: bond0, vlan_id: 200, subnets: [{type: dhcp}]",
        ),
    )
    assert "[VLAN]\nId=200\n" in file(network, "10-proa-bond0.200.netdev")
    assert "VLAN=bond0.200\n" in file(network, "10-proa-bond0.network")
    assert "Bond=bond0\n" in file(network, "10-proa-gbe0.network")


def test_the_loopback_is_left_alone_unless_it_has_addresses() -> None:
    lo = "type: loopback, name: lo"
    assert render(said("v1", config(f"{lo}, subnets: [{{type: manual}}]"))) == ()
    network = said("v1", config(f"{lo}, subnets: [{{type: static, address: 10.9.9.9/32}}]"))
    assert file(network, "10-proa-lo.network") == (
        "[Match]\nName=lo\n\n[Address]\nAddress=10.9.9.9/32\n"
    )


@pytest.mark.parametrize("text", ["network: {config: disabled}", "version: 1\nconfig: disabled"])
def test_a_disabled_description_leaves_the_default(text: str) -> None:
    assert said("cloud-init", text) == Description()


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("type: infiniband, name: ib0", 'error: config[0].type "infiniband" is not taken'),
        ("name: eth0", "error: config[0] wants to be a mapping with a type"),
        ("type: physical", "error: config[0] has no name"),
        ("type: physical, name: a b", 'error: config[0].name "a b" is not the name'),
        ("type: physical, name: eth0, mac: x", "config[0].mac is not a known key; ignored"),
        ("type: physical, name: e, subnets: [{type: ppp}]", 'subnets[0].type "ppp" is not one of'),
        ("type: physical, name: e, subnets: [{type: static}]", "is static and has no address"),
        ("type: physical, name: e, subnets: [{type: static, address: 10.0.0.1}]", "no prefix"),
        ("type: vlan, name: v, vlan_id: 5", "config[0] has no vlan_link"),
        ("type: bond, name: b, params: {bond-mode: 9}", 'params.mode "9" is not one of'),
        ("type: bond, name: b, params: {bond-use_carrier: 1}", "use_carrier is always on; ignored"),
        ("type: bridge, name: b, params: {bridge_maxwait: 1}", "maxwait means nothing here"),
        ("type: bridge, name: b, params: {bridge_pathcost: [eth0]}", "wants a port and a number"),
        ("type: nameserver, address: [x]", 'config[0].address[0] "x" is not an IP address'),
        ("type: nameserver, interface: e, address: 1.1.1.1", 'are for "e", which is not there'),
        ("type: route, gateway: 10.0.0.1", "config[0] has no destination"),
        ("type: route, destination: 10.0.0.0/8, gateway: 10.0.0.1", "has no device with an addr"),
    ],
)
def test_what_is_wrong_is_told_by_key(item: str, told: str) -> None:
    assert any(told in problem for problem in problems(item)), problems(item)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("config: []", "version wants to be 1 or 2"),
        ("version: 3", 'version "3" wants to be 1 or 2'),
        ("- a", "the network description wants a mapping"),
        ("network: {version: 1}\nx: 1", "x is not a known key"),
    ],
)
def test_the_version_tells_how_to_read_it(text: str, told: str) -> None:
    assert any(told in problem for problem in problems_of("cloud-init", text))
