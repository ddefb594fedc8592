"""Debian's interfaces file: all that coreos-cloudinit took, and what people write besides."""

from __future__ import annotations

import pytest

from proa.machine.cloudconfig.network.render import render
from support.networks import file, link, names, problems_of, said

STATIC = "iface eth0 inet static\n address 10.0.0.2\n netmask 255.255.255.0\n"


def test_static_as_in_coreos() -> None:
    network = said("eni", STATIC + " gateway 10.0.0.1\n dns-nameservers 8.8.8.8 8.8.4.4\n")
    assert file(network, "10-proa-eth0.network") == (
        "[Match]\nName=eth0\n\n[Network]\nDNS=8.8.8.8\nDNS=8.8.4.4\n\n"
        "[Address]\nAddress=10.0.0.2/24\n\n[Route]\nDestination=0.0.0.0/0\nGateway=10.0.0.1\n"
    )


def test_an_interface_comes_up_with_auto_and_without() -> None:
    assert said("eni", STATIC) == said("eni", "auto eth0\nallow-hotplug eth0\n" + STATIC)


def test_the_loopback_is_what_it_always_is() -> None:
    assert render(said("eni", "auto lo\niface lo inet loopback\n")) == ()


def test_name_servers_with_the_loopback_are_those_of_the_machine() -> None:
    (resolved,) = render(said("eni", "iface lo inet loopback\n dns-nameservers 1.1.1.1\n"))
    assert resolved.path == "systemd/resolved.conf.d/10-proa.conf"


@pytest.mark.parametrize(
    ("stanza", "line"),
    [
        ("inet dhcp", "DHCP=ipv4\n"),
        ("inet6 dhcp", "DHCP=ipv6\n"),
        ("inet6 auto", "IPv6AcceptRA=yes\n"),
        ("inet manual", "[Match]\nName=eth0\n"),
        ("inet static\n address 10.0.0.2/24", "Address=10.0.0.2/24\n"),
        ("inet static\n address 10.0.0.2\n netmask 24", "Address=10.0.0.2/24\n"),
        ("inet6 static\n address 2001:db8::2\n netmask 64", "Address=2001:db8::2/64\n"),
        ("inet dhcp\n mtu 1400", "MTUBytes=1400\n"),
        ("inet dhcp\n metric 7", "RouteMetric=7\n"),
        ("inet dhcp\n hostname hal", "Hostname=hal\n"),
        ("inet6 auto\n privext 2", "IPv6PrivacyExtensions=yes\n"),
        ("inet6 auto\n accept_ra 0", "IPv6AcceptRA=no\n"),
        ("inet dhcp\n dns-search a.example b.example", "Domains=a.example b.example\n"),
        ("inet manual\n hwaddress 52:54:00:aa:bb:cc", "MACAddress=52:54:00:aa:bb:cc\n"),
    ],
)
def test_a_stanza_becomes_lines(stanza: str, line: str) -> None:
    assert line in file(said("eni", f"iface eth0 {stanza}\n"), "10-proa-eth0.network")


def test_the_stanzas_of_one_interface_are_one_file() -> None:
    text = STATIC + "iface eth0 inet6 auto\niface eth0:1 inet static\n address 10.0.0.3/24\n"
    content = file(said("eni", text), "10-proa-eth0.network")
    assert "IPv6AcceptRA=yes\n" in content
    assert "Address=10.0.0.2/24\n" in content
    assert "Address=10.0.0.3/24\nLabel=eth0:1\n" in content


@pytest.mark.parametrize(
    ("command", "route"),
    [
        ("route add -net 10.1.0.0 netmask 255.255.0.0 gw 10.0.0.9", "10.1.0.0/16"),
        ("/sbin/route add -net 10.1.0.0/16 gw 10.0.0.9 || true", "10.1.0.0/16"),
        ("route add gw 10.0.0.9 -net 10.1.0.0 netmask 255.255.0.0", "10.1.0.0/16"),
        ("route add -host 10.1.2.3 gw 10.0.0.9 metric 1", "10.1.2.3/32"),
        ("route add default gw 10.0.0.9", "0.0.0.0/0"),
        ("ip route add 10.1.0.0/16 via 10.0.0.9 dev eth0", "10.1.0.0/16"),
        ("ip -4 route replace default via 10.0.0.9 metric 4", "0.0.0.0/0"),
    ],
)
def test_a_command_that_adds_a_route_is_understood(command: str, route: str) -> None:
    for hook in ("up", "post-up"):
        network = said("eni", f"{STATIC} {hook} {command}\n")
        content = file(network, "10-proa-eth0.network")
        assert f"[Route]\nDestination={route}\nGateway=10.0.0.9\n" in content


def test_of_a_longer_command_the_route_is_taken_and_the_rest_told_of() -> None:
    text = f"{STATIC} up route add -net 10.1.0.0/16 gw 10.0.0.9 ; iptables -F\n"
    (told,) = problems_of("eni", text)
    assert "warning: eth0: of the command of up only the route is taken" in told


def test_a_command_that_takes_the_route_away_needs_no_word() -> None:
    for command in ("route del -net 10.0.0.0/8 gw 10.0.0.9", "ip route del default"):
        assert problems_of("eni", f"{STATIC} pre-down {command}\n") == []


@pytest.mark.parametrize(
    "command", ["iptables -A INPUT", "route add", "ip route add x via 10.0.0.9"]
)
def test_any_other_command_is_told_to_be_not_run(command: str) -> None:
    (told,) = problems_of("eni", f"{STATIC} post-up {command}\n")
    assert told.startswith("line 4: warning: eth0: the command of post-up is not run")


def test_a_vlan_by_its_name_or_with_the_device_below() -> None:
    network = said("eni", "iface eth0.5 inet dhcp\niface vlan6 inet dhcp\n vlan_raw_device eth0\n")
    assert names(network)[-1] == "10-proa-vlan6.network"
    assert [(link(network, name).parent, link(network, name).vlan_id) for name in
            ("eth0.5", "vlan6")] == [("eth0", 5), ("eth0", 6)]  # fmt: skip
    assert "VLAN=eth0.5\nVLAN=vlan6\n" in file(network, "10-proa-eth0.network")


def test_the_mac_address_of_a_vlan_is_that_of_the_made_device() -> None:
    text = "iface eth0.5 inet dhcp\n hwaddress ether 52:54:00:aa:bb:cc\n"
    assert "MACAddress=52:54:00:aa:bb:cc\n" in file(said("eni", text), "10-proa-eth0.5.netdev")


def test_a_card_whose_address_is_known_gets_the_name_of_its_stanza() -> None:
    # Clouds write eth0 with the address of the card, and the kernel may call it enX0 today.
    text = "iface eth0 inet dhcp\n hwaddress ether 52:54:00:aa:bb:cc\n"
    content = file(said("eni", text), "10-proa-eth0.link")
    assert content.startswith(
        "[Match]\nPermanentMACAddress=52:54:00:aa:bb:cc\n\n[Link]\nName=eth0\n"
    )


def test_a_bond_is_known_by_its_ports_or_its_ports_by_their_bond() -> None:
    from_above = "iface bond0 inet dhcp\n bond-slaves eth0 eth1\n bond-mode 802.3ad\n"
    from_below = (
        "iface eth0 inet manual\n bond-master bond0\niface eth1 inet manual\n bond-master bond0\n"
        "iface bond0 inet dhcp\n bond-slaves none\n bond-mode 4\n"
    )
    for text in (from_above, from_below):
        network = said("eni", text)
        assert link(network, "bond0").members == ("eth0", "eth1")
        assert "Mode=802.3ad\n" in file(network, "10-proa-bond0.netdev")


def test_a_bridge_with_its_ports() -> None:
    text = "iface br0 inet dhcp\n bridge_ports eth0 eth1\n bridge_stp off\n bridge-fd 0\n"
    network = said("eni", text)
    assert "[Bridge]\nForwardDelaySec=0s\nSTP=no\n" in file(network, "10-proa-br0.netdev")
    assert "Bridge=br0\n" in file(network, "10-proa-eth1.network")


def test_a_line_may_go_on_in_the_next_and_comments_are_passed_over() -> None:
    assert said("eni", "# hello\niface eth0 inet \\\n  dhcp\n\n # end\n") == said(
        "eni", "iface eth0 inet dhcp"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("address 10.0.0.1\n", 'line 1: error: "address" stands before the first iface or auto'),
        ("iface eth0 inet\n", "line 1: error: iface wants a name, a family and a method"),
        ("iface eth0 inet static inherits x\n", "line 1: error: iface wants a name"),
        ("iface eth0 inet ppp\n", 'line 1: error: invalid config method "ppp"'),
        ("iface eth0 ipx static\n", 'line 1: error: the family "ipx" is not taken'),
        ("mapping eth0\n script x\n", 'line 1: error: unknown stanza "mapping"'),
        ("\nsource /etc/network/interfaces.d/*\n", 'line 2: error: unknown stanza "source"'),
        ("allow-other eth0\n", 'line 1: error: unknown stanza "allow-other"'),
        ("iface eth0 inet static\n", "line 1: error: eth0 is static and has no address"),
        (
            "iface eth0 inet static\n address 10.0.0.1\n",
            'line 2: error: eth0.address "10.0.0.1" has',
        ),
        (STATIC.replace("255.255.255.0", "255.0.255.0"), "is not a net mask"),
        (STATIC + " hwaddress ether 1\n", 'line 4: error: eth0.hwaddress "1" is not a MAC address'),
        (
            STATIC + " gatewy 10.0.0.1\n",
            "line 4: warning: eth0.gatewy is not a known key; ignored;",
        ),
        (STATIC + " mtu 1400\n mtu 1500\n", "line 5: warning: eth0.mtu stands twice"),
        (STATIC + " gateway\n", "line 4: warning: eth0.gateway has no value; ignored"),
        (STATIC + " gateway ::1\n iface eth1", "error: iface wants a name"),
        ("iface foo inet dhcp\n vlan_raw_device eth0\n", 'the name "foo" has no VLAN in it'),
        ("iface eth0.9999 inet dhcp\n", 'eth0.9999.vlan_id "9999" is not a number from 0 to 4094'),
        ("iface br0 inet dhcp\n bridge_ports all\n", "wants the names of the ports; all is not"),
        ("iface e inet manual\n bond-master b\n", 'e.bond_master: there is no bond "b"'),
    ],
)
def test_what_is_wrong_is_told_by_line(text: str, told: str) -> None:
    assert any(told in problem for problem in problems_of("eni", text)), problems_of("eni", text)
