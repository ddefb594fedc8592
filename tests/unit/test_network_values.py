"""What an address, a name or a number must look like; nothing else gets into a unit file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.network import values


def refuses(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", ["eth0", "enp3s0f1", "bond0.101", "br-lan", "a" * 15, "vlan_5"])
def test_names_of_interfaces(name: str) -> None:
    assert values.name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a b", "a:b", "a" * 16, "é" * 2, "7", "eth0\n", "eth%n", "eth*"),
        *("-x", "all", "default", "#eth0", ";eth0", "[Match]"),
    ],
)
def test_what_the_kernel_or_systemd_would_not_take_as_a_name(name: str) -> None:
    assert refuses(values.name, name)


def test_a_mac_address_is_written_in_one_way() -> None:
    assert values.mac("52-54-00-AB-CD-EF") == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize("mac", ["", "52:54:00:ab:cd", "52:54:00:ab-cd:ef", "52:54:00:ab:cd:ef\n"])
def test_half_a_mac_address_is_none(mac: str) -> None:
    assert refuses(values.mac, mac)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("192.0.2.5/24", "192.0.2.5/24"),
        ("192.0.2.5/255.255.255.0", "192.0.2.5/24"),
        ("2001:DB8::5/64", "2001:db8::5/64"),
        ("2001:db8::5/ffff:ffff::", "2001:db8::5/32"),
        ("0.0.0.0/0.0.0.0", "0.0.0.0/0"),
    ],
)
def test_addresses_with_a_prefix_or_a_mask(text: str, shown: str) -> None:
    assert str(values.interface(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("192.0.2.5", "192.0.2.5/33", "192.0.2.5/0.0.0.255", "192.0.2.5/255.0.255.0", "1.2.3/8"),
        *("192.0.2.05/24", "::1/129", "::1/255.0.0.0", "1.2.3.4/-1", "1.2.3.4/24/24", "٣.1.1.1/8"),
    ],
)
def test_what_is_no_address_with_a_prefix(text: str) -> None:
    assert refuses(values.interface, text)


def test_a_zone_is_never_taken_for_it_may_be_any_text() -> None:
    # ipaddress would take it, line end and all.
    assert refuses(values.address, "fe80::1%eth0")
    assert refuses(values.interface, "fe80::1%\n[Match]/64")


def test_where_a_route_goes_has_no_bits_of_a_host() -> None:
    assert str(values.network("10.1.2.3/8")) == "10.0.0.0/8"
    assert str(values.network("10.1.2.3")) == "10.1.2.3/32"


def test_numbers_have_bounds_and_endless_digits_are_never_counted() -> None:
    assert values.mtu("1500") == 1500
    assert values.vlan_id("4094") == 4094
    for text in ("67", "65536", "-1", "1_500", " 1500", "0x5dc", "١٥٠٠", "9" * 100_000):
        assert refuses(values.mtu, text)
    assert refuses(values.vlan_id, "4095")


def test_lengths_of_time_get_the_unit_of_the_form_that_they_are_in() -> None:
    milliseconds = values.span("ms")
    assert [milliseconds(text) for text in ("100", "1s", ".2s")] == ["100ms", "1s", ".2s"]
    for text in ("", "1 s", "s", "1y", "100\n", "-1"):
        assert refuses(milliseconds, text)


def test_domains_to_search_or_only_to_route_by() -> None:
    for text in ("lab", "lab.example.", "~corp.example", "~.", "_tcp.example"):
        assert values.domain(text) == text
    for text in ("", "a b", "-a.example", "a..b", "a" * 64, "~", "lab\nDNS=1.1.1.1", "é.example"):
        assert refuses(values.domain, text)


@given(st.text())
def test_whatever_is_taken_is_one_printable_word(text: str) -> None:
    for read in (
        *(values.name, values.identifier, values.glob, values.label, values.mac, values.address),
        *(values.interface, values.network, values.domain, values.hostname, values.span("s")),
    ):
        try:
            shown = str(read(text))
        except ValueError:
            continue
        assert shown.isascii() and shown.isprintable() and " " not in shown
        assert shown[0] not in "#;\\" and shown[-1] != "\\"
