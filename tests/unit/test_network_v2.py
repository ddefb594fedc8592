"""Version 2 (netplan's format): what each key becomes, and what is refused by name."""

from __future__ import annotations

import pytest

from support.networks import file, link, names, problems_of, said


def ethernet(options: str, form: str = "ethernets: {eth0: {%s}}") -> str:
    return "{version: 2, " + form % options + "}"


def network_file(options: str) -> str:
    return file(said("v2", ethernet(options)), "10-proa-eth0.network")


def problems(options: str) -> list[str]:
    return problems_of("v2", ethernet(options))


def test_dhcp_asks_as_an_interface_that_nobody_described() -> None:
    assert network_file("dhcp4: true, dhcp6: yes") == (
        "[Match]\nName=eth0\n\n[Network]\nDHCP=yes\n\n"
        "[DHCPv4]\nUseDomains=yes\nUseMTU=yes\n\n[DHCPv6]\nUseDomains=yes\n"
    )


def test_the_mtu_that_is_given_is_stronger_than_that_of_dhcp() -> None:
    content = network_file("dhcp4: true, mtu: 1400")
    assert "[Link]\nMTUBytes=1400\n" in content
    assert "UseMTU=no\n" in content


def test_network_may_be_the_top_key_or_not() -> None:
    bare = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
    wrapped = "network:\n  version: 2\n  ethernets: {eth0: {dhcp4: true}}\n"
    assert said("cloud-init", bare) == said("cloud-init", wrapped)


def test_dashes_and_underscores_are_alike() -> None:
    assert network_file("accept-ra: no") == network_file("accept_ra: no")


def test_a_card_is_found_by_its_permanent_mac_address() -> None:
    # Bonds, VLANs and bridges take the address of a port over: MACAddress= would match them too.
    network = said("v2", ethernet("match: {macaddress: '52:54:00:AA:BB:CC'}"))
    assert file(network, "10-proa-eth0.network") == (
        "[Match]\nPermanentMACAddress=52:54:00:aa:bb:cc\n"
    )


def test_a_card_that_gets_a_name_is_configured_even_if_renaming_fails() -> None:
    network = said("v2", ethernet("match: {macaddress: '52:54:00:aa:bb:cc'}, set-name: lan0"))
    assert names(network) == ["10-proa-eth0.link", "10-proa-eth0.network"]
    assert "Name=lan0\n" in file(network, "10-proa-eth0.link")
    assert "Name=" not in file(network, "10-proa-eth0.network")


def test_a_pattern_comes_after_every_exact_name() -> None:
    network = said("v2", "{version: 2, ethernets: {a: {match: {name: 'en*'}}, enp1s0: {}}}")
    assert names(network) == ["10-proa-enp1s0.network", "15-proa-a.network"]


def test_an_empty_match_is_every_card_and_nothing_that_is_made() -> None:
    content = file(said("v2", ethernet("match: {}")), "15-proa-eth0.network")
    assert content == "[Match]\nType=ether\nKind=!*\n"


def test_renaming_by_name_is_told_of_because_udev_may_not_find_it() -> None:
    (told,) = problems("match: {name: ens3}, set-name: lan0")
    assert "warning: ethernets.eth0.set_name without match.macaddress" in told


def test_a_file_for_udev_keeps_what_udev_does_without_it() -> None:
    network = said("v2", ethernet("match: {macaddress: '52:54:00:aa:bb:cc'}, wakeonlan: true"))
    content = file(network, "10-proa-eth0.link")
    assert "NamePolicy=keep kernel database onboard slot path\n" in content
    assert "WakeOnLan=magic\n" in content


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("link-local: []", "LinkLocalAddressing=no\n"),
        ("link-local: [ipv4]", "LinkLocalAddressing=ipv4\n"),
        ("link-local: [ipv4, ipv6]", "LinkLocalAddressing=yes\n"),
        ("accept-ra: false", "IPv6AcceptRA=no\n"),
        ("optional: true", "RequiredForOnline=no\n"),
        ("critical: true", "KeepConfiguration=yes\n"),
        ("ignore-carrier: true", "ConfigureWithoutCarrier=yes\n"),
        ("activation-mode: 'off'", "ActivationPolicy=always-down\n"),
        ("gateway4: 192.0.2.1, addresses: [192.0.2.2/24]", "Gateway=192.0.2.1\n"),
        ("nameservers: {addresses: [192.0.2.53], search: [lab]}", "DNS=192.0.2.53\nDomains=lab\n"),
    ],
)
def test_an_option_becomes_a_line(option: str, line: str) -> None:
    assert line in network_file(option)


def test_a_boot_does_not_wait_for_an_address_that_will_never_come() -> None:
    assert "RequiredForOnline=carrier\n" in network_file("link-local: []")
    assert "RequiredForOnline" not in network_file("link-local: [], dhcp4: true")


def test_default_is_of_the_version_of_its_gateway() -> None:
    content = network_file("accept-ra: true, routes: [{to: default, via: '2001:db8::1'}]")
    assert "[Route]\nDestination=::/0\nGateway=2001:db8::1\n" in content


def test_a_gateway_in_no_network_of_the_link_is_told_of_and_taken() -> None:
    options = "addresses: [192.0.2.2/24], gateway4: 198.51.100.1"
    (told,) = problems(options)
    assert 'the gateway 198.51.100.1 lies in no network of "eth0"' in told


def test_a_cloud_that_gives_single_addresses_needs_no_on_link() -> None:
    content = network_file("addresses: [198.51.100.7/32], gateway4: 172.31.1.1")
    assert "Gateway=172.31.1.1\nGatewayOnLink=yes\n" in content


def test_a_port_is_named_once_and_its_own_addresses_are_told_to_mean_nothing() -> None:
    text = """
version: 2
ethernets: {eth0: {dhcp4: true}, eth1: {}}
bonds: {bond0: {interfaces: [eth0, eth1], parameters: {primary: eth1}}}
"""
    told = problems_of("v2", text)
    assert [line for line in told if "error" in line] == []
    assert 'line 3: warning: "eth0" is a port of "bond0"' in told[0]
    network = said("v2", text.replace("dhcp4: true", ""))
    assert file(network, "10-proa-eth1.network") == (
        "[Match]\nName=eth1\n\n[Network]\nBond=bond0\nPrimarySlave=yes\nLinkLocalAddressing=no\n"
    )


def test_a_port_that_nobody_described_is_the_interface_of_that_name() -> None:
    network = said("v2", "{version: 2, bridges: {br0: {interfaces: [eth7]}}}")
    assert file(network, "10-proa-eth7.network").startswith("[Match]\nName=eth7\n")


def test_bond_times_count_in_milliseconds_and_bridge_times_in_seconds() -> None:
    network = said(
        "v2",
        """
version: 2
bonds: {bond0: {interfaces: [a], parameters: {mii-monitor-interval: 100, up-delay: 2s}}}
bridges: {br0: {interfaces: [b], parameters: {forward-delay: 4}}}
""",
    )
    assert "MIIMonitorSec=100ms\nUpDelaySec=2s\n" in file(network, "10-proa-bond0.netdev")
    assert "ForwardDelaySec=4s\n" in file(network, "10-proa-br0.netdev")


def test_a_bridge_has_spanning_tree_unless_it_says_no() -> None:
    text = "{version: 2, bridges: {br0: {interfaces: [], parameters: {%s}}}}"
    assert "STP=yes" in file(said("v2", text % ""), "10-proa-br0.netdev")
    assert "STP=no" in file(said("v2", text % "stp: false"), "10-proa-br0.netdev")


def test_a_vlan_names_the_link_below_and_its_number() -> None:
    network = said("v2", "{version: 2, ethernets: {e: {}}, vlans: {v5: {id: 5, link: e}}}")
    assert "[VLAN]\nId=5\n" in file(network, "10-proa-v5.netdev")
    assert "VLAN=v5\n" in file(network, "10-proa-e.network")


def test_networkd_is_the_renderer_whatever_is_asked_for() -> None:
    assert problems_of("v2", "{version: 2, renderer: networkd}") == []
    (told,) = problems_of("v2", "{version: 2, renderer: NetworkManager}")
    assert 'warning: renderer "NetworkManager" is ignored' in told


@pytest.mark.parametrize("kind", ["wifis", "modems", "tunnels", "vrfs", "openvswitch"])
def test_a_kind_of_device_that_is_not_taken_is_refused_by_name(kind: str) -> None:
    (told,) = problems_of("v2", f"version: 2\n{kind}: {{x: {{dhcp4: true}}}}\n")
    assert told.startswith(f"line 2: error: {kind} is not taken")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "dchp4: true",
            'warning: ethernets.eth0.dchp4 is not a known key; ignored; did you mean "d',
        ),
        ("hairpin: true", "warning: ethernets.eth0.hairpin is not taken; ignored"),
        ("addresses: [10.0.0.1]", 'addresses[0] "10.0.0.1" has no prefix length'),
        ("addresses: 10.0.0.1/8, mtu: 20", 'ethernets.eth0.mtu "20" is not a number from 68'),
        ("dhcp4: maybe", 'ethernets.eth0.dhcp4 "maybe" is not true or false'),
        ("routes: [{via: 10.0.0.1}]", "ethernets.eth0.routes[0] has no to"),
        ("routes: [{to: '::/0', via: 10.0.0.1}]", "goes to IPv6 by way of IPv4"),
        ("routing-policy: [{from: 10.0.0.1}]", "ethernets.eth0.routing_policy[0] has no table"),
        ("match: {macaddress: 52:54}", 'match.macaddress "52:54" is not a MAC address'),
        ("dhcp6-overrides: {use-mtu: false}", "dhcp6_overrides.use_mtu does not exist in IPv6"),
        ("accept-ra: [1]", "ethernets.eth0.accept_ra wants a text"),
    ],
)
def test_what_is_wrong_is_told_by_key(options: str, told: str) -> None:
    assert any(told in problem for problem in problems(options)), problems(options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vlans: {v: {id: 5}}", "vlans.v has no link"),
        ("vlans: {v: {id: 4095, link: e}}", 'vlans.v.id "4095" is not a number from 0 to 4094'),
        ("vlans: {a: {id: 5, link: e}, b: {id: 5, link: e}}", '"e" has VLAN 5 twice'),
        ("vlans: {a: {id: 5, link: b}, b: {id: 6, link: a}}", '"a" would lie on itself'),
        ("bonds: {b: {interfaces: [b]}}", '"b" would lie on itself'),
        ("bonds: {a: {interfaces: [e]}, b: {interfaces: [e]}}", '"e" cannot be a port of "a" and'),
        ("bonds: {a: {interfaces: [e], parameters: {primary: f}}}", 'port "f" is not one of'),
        ("ethernets: {x: {}}, bonds: {x: {}}", '"x" is described twice'),
        (
            "ethernets: {a: {match: {macaddress: '52:54:00:00:00:01'}, set-name: b}, b: {}}",
            'two links would have the name "b"',
        ),
        ("bonds: {b: {parameters: {mode: fast}}}", 'parameters.mode "fast" is not one of'),
        ("ethernets: [eth0]", "ethernets wants a mapping"),
        ("ethernets: {'a/b': {}}", 'ethernets.a/b "a/b" is not the name of an interface'),
    ],
)
def test_a_network_that_cannot_be_is_refused(text: str, told: str) -> None:
    problems = problems_of("v2", "{version: 2, " + text + "}")
    assert any("error" in one and told in one for one in problems), problems


def test_with_an_error_nothing_is_applied() -> None:
    from proa.machine.cloudconfig.network.forms import read
    from proa.machine.cloudconfig.network.model import Description

    network, problems = read("v2", b"version: 2\nethernets: {eth0: {dhcp4: true}, eth1: {mtu: x}}")
    assert network == Description()
    assert [(p.level, p.line, p.key) for p in problems] == [("error", 2, "ethernets.eth1.mtu")]


def test_the_vlan_of_a_link_that_is_found_by_its_address_knows_it_by_its_id() -> None:
    network = said(
        "v2",
        "{version: 2, ethernets: {card: {match: {macaddress: '52:54:00:00:00:01'}}},"
        " vlans: {v5: {id: 5, link: card}}}",
    )
    assert link(network, "v5").parent == "card"
    assert "VLAN=v5\n" in file(network, "10-proa-card.network")
