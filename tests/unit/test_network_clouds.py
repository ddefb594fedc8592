"""What clouds write for machines: OpenStack's network_data.json, Packet's and VMware's metadata."""

from __future__ import annotations

import json

import pytest

from proa.machine.cloudconfig.network.render import render
from support.networks import file, link, names, problems_of, said

CARD: dict[str, object] = {"id": "tap1", "type": "ovs", "ethernet_mac_address": "FA:16:3E:00:00:01"}
VLAN: dict[str, object] = {"id": "v", "type": "vlan", "vlan_link": "tap1", "vlan_id": 5}


def openstack(*networks: dict[str, object], links: list[dict[str, object]] | None = None) -> str:
    return json.dumps({"links": links or [CARD], "networks": networks, "services": []})


def test_openstack_cards_are_found_by_their_address_and_keep_their_name() -> None:
    network = said("openstack", openstack({"link": "tap1", "type": "ipv4_dhcp"}))
    assert names(network) == ["10-proa-tap1.network"]
    assert file(network, "10-proa-tap1.network").startswith(
        "[Match]\nPermanentMACAddress=fa:16:3e:00:00:01\n\n[Network]\nDHCP=ipv4\n"
    )


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ({"type": "ipv4", "ip_address": "10.0.0.2", "netmask": "255.255.0.0"}, "10.0.0.2/16\n"),
        ({"type": "ipv6", "ip_address": "2001:db8::2", "netmask": "ffff:ffff::"}, "::2/32"),
        ({"type": "ipv6", "ip_address": "2001:db8::2/64"}, "IPv6AcceptRA=no\n"),
        ({"type": "ipv6_slaac"}, "IPv6AcceptRA=yes\n"),
        ({"type": "ipv6_dhcp"}, "DHCP=ipv6\nIPv6AcceptRA=yes\n"),
        ({"type": "ipv6_dhcpv6-stateful"}, "DHCP=ipv6\nIPv6AcceptRA=yes\n"),
        ({"type": "ipv6_dhcpv6-stateless"}, "[Network]\nIPv6AcceptRA=yes\n"),
        ({"type": "ipv4_dhcp", "services": [{"type": "dns", "address": "1.1.1.1"}]}, "DNS=1.1.1.1"),
        (
            {"type": "ipv4", "ip_address": "10.0.0.2/8", "routes": [
                {"network": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.1"}]},
            "[Route]\nDestination=10.9.0.0/16\nGateway=10.0.0.1\n",
        ),
    ],
)  # fmt: skip
def test_an_openstack_network_becomes_lines(network: dict[str, object], line: str) -> None:
    result = said("openstack", openstack({"link": "tap1", **network}))
    assert line in file(result, "10-proa-tap1.network")


def test_a_static_ipv6_address_and_a_router_that_gives_another() -> None:
    result = said(
        "openstack",
        openstack(
            {"link": "tap1", "type": "ipv6", "ip_address": "2001:db8::2/64"},
            {"link": "tap1", "type": "ipv6_slaac"},
        ),
    )
    assert "IPv6AcceptRA=yes\n" in file(result, "10-proa-tap1.network")


def test_openstack_bonds_and_vlans_get_names_that_say_what_they_are() -> None:
    bond: dict[str, object] = {
        "id": "x",
        "type": "bond",
        "bond_links": ["tap1"],
        "bond_mode": "802.3ad",
    }
    links = [{**VLAN, "vlan_link": "x"}, bond, CARD, {**VLAN, "id": "w"}]
    network = said("openstack", openstack(links=links))
    assert {one.id for one in network.links} == {"bond0.5", "bond0", "tap1", "vlan5"}
    assert link(network, "bond0.5").parent == "bond0"
    assert link(network, "bond0").members == ("tap1",)
    assert link(network, "vlan5").parent == "tap1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (openstack({"link": "tap2", "type": "ipv4_dhcp"}), 'the link "tap2", which is not there'),
        (openstack({"link": "tap1", "type": "ipv9"}), 'networks[0].type "ipv9" is not one of'),
        (openstack({"link": "tap1", "type": "ipv4"}), "networks[0] is ipv4 and has no ip_address"),
        (openstack(links=[{"id": "a", "type": "phy"}]), "no ethernet_mac_address to find it by"),
        (openstack(links=[{**VLAN, "vlan_link": "q"}]), 'vlan_link: there is no link "q"'),
        (openstack(links=[CARD, CARD]), '"tap1" is described twice'),
        ('{"links": {}}', "links wants a list"),
        (
            '{"links": [], "services": [{"type": "ntp"}]}',
            'services[0] is of the type "ntp"; ignored',
        ),
        ('{"linx": []}', "linx is not a known key"),
    ],
)
def test_what_is_wrong_in_openstacks_is_told(text: str, told: str) -> None:
    found = problems_of("openstack", text)
    assert any(told in problem for problem in found), found


# Packet.

CARDS = [{"name": "eth0", "mac": "00:25:90:00:00:01"}, {"name": "eth1", "mac": "00:25:90:00:00:02"}]


def packet(*addresses: dict[str, object], **more: object) -> str:
    return json.dumps({"interfaces": CARDS, "addresses": addresses, **more})


def test_all_cards_of_packet_are_one_bond_as_in_coreos() -> None:
    network = said("packet", packet())
    assert file(network, "10-proa-bond0.netdev") == (
        "[NetDev]\nName=bond0\nKind=bond\nMACAddress=00:25:90:00:00:01\n\n"
        "[Bond]\nMode=802.3ad\nLACPTransmitRate=fast\n"
        "MIIMonitorSec=200ms\nUpDelaySec=200ms\nDownDelaySec=200ms\n"
    )
    assert "Bond=bond0\n" in file(network, "10-proa-eth1.network")


def test_a_public_address_of_packet_has_the_default_route_and_a_private_one_10() -> None:
    block = {"netmask": "255.255.255.254", "address_family": 4}
    network = said(
        "packet",
        packet(
            {**block, "address": "147.75.193.107", "gateway": "147.75.193.106", "public": True},
            {**block, "address": "10.99.182.129", "gateway": "10.99.182.128", "public": False},
        ),
    )
    content = file(network, "10-proa-bond0.network")
    assert "Destination=0.0.0.0/0\nGateway=147.75.193.106\n" in content
    assert "Destination=10.0.0.0/8\nGateway=10.99.182.128\n" in content


def test_name_servers_of_packet_and_what_there_is_without() -> None:
    content = file(said("packet", packet()), "10-proa-bond0.network")
    assert "DNS=8.8.8.8\nDNS=8.8.4.4\n" in content
    content = file(said("packet", packet(dns=["9.9.9.9"])), "10-proa-bond0.network")
    assert "DNS=9.9.9.9\n" in content and "8.8.8.8" not in content


def test_packets_network_may_stand_in_its_metadata() -> None:
    whole = json.dumps({"id": "1", "network": json.loads(packet())})
    assert said("packet", whole) == said("packet", packet())


def test_packet_without_cards_is_refused() -> None:
    assert any("there are no interfaces" in p for p in problems_of("packet", '{"addresses": []}'))


# VMware.


def vmware(**variables: str) -> str:
    return json.dumps({name.replace("__", "."): text for name, text in variables.items()})


def test_vmware_static_as_in_coreos() -> None:
    network = said(
        "vmware",
        vmware(
            interface__0__name="ens192",
            interface__0__ip__0__address="10.0.0.2/24",
            interface__0__route__0__gateway="10.0.0.1",
            interface__0__route__0__destination="0.0.0.0/0",
            dns__server__0="8.8.8.8",
        ),
    )
    assert file(network, "10-proa-ens192.network") == (
        "[Match]\nName=ens192\n\n[Network]\nDNS=8.8.8.8\n\n"
        "[Address]\nAddress=10.0.0.2/24\n\n[Route]\nDestination=0.0.0.0/0\nGateway=10.0.0.1\n"
    )


def test_vmware_dhcp_by_mac_address() -> None:
    network = said(
        "vmware", vmware(interface__0__mac="00:50:56:00:00:01", interface__0__dhcp="yes")
    )
    content = file(network, "10-proa-mac-005056000001.network")
    assert content.startswith(
        "[Match]\nPermanentMACAddress=00:50:56:00:00:01\n\n[Network]\nDHCP=yes"
    )


def test_vmware_without_name_and_address_is_every_card_as_in_coreos() -> None:
    network = said("vmware", vmware(interface__0__dhcp="yes"))
    assert file(network, "15-proa-any.network").startswith("[Match]\nType=ether\nKind=!*\n")


def test_vmware_variables_may_have_their_prefix() -> None:
    text = '{"guestinfo.interface.0.dhcp": "yes", "guestinfo.hostname": "web"}'
    assert said("vmware", text) == said("vmware", vmware(interface__0__dhcp="yes"))


def test_vmware_name_servers_without_a_static_address_are_those_of_the_machine() -> None:
    network = said("vmware", vmware(interface__0__dhcp="yes", dns__server__0="8.8.8.8"))
    assert "systemd/resolved.conf.d/10-proa.conf" in {one.path for one in render(network)}


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"interface__0__dhcp": "maybe"}, 'interface.0.dhcp "maybe" is not one of yes, no'),
        ({"interface__0__name": "a"}, "interface.0 has no addresses and no dhcp; ignored"),
        ({"interface__0__ip__0__address": "10.0.0.1"}, 'ip.0.address "10.0.0.1" has no prefix'),
        ({"interface__0__route__0__gateway": "10.0.0.1"}, "route.0 has no destination"),
        ({"interface__0__route__0__destination": "10.0.0.0/8"}, "route.0 has no gateway"),
        ({"interface__0__mac": "x", "interface__0__dhcp": "yes"}, 'interface.0.mac "x" is not a'),
        ({"dns__server__0": "x"}, 'dns.server.0 "x" is not an IP address'),
        ({"interface__0__ipv7": "x"}, "interface.0.ipv7 is not a known variable; ignored"),
        (
            {"interface__0__dhcp": "yes", "interface__0__ip__0__address": "10.0.0.1/8"},
            "interface.0.dhcp is ignored: there are addresses or routes",
        ),
    ],
)
def test_what_is_wrong_in_vmwares_is_told(variables: dict[str, str], told: str) -> None:
    found = problems_of("vmware", vmware(**variables))
    assert any(told in problem for problem in found), found
