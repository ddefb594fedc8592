"""Texts of a network description made values, or ``ValueError`` that says what they are not.

What comes out has no white space, no control character and no character that means something to
systemd in a unit file: ``render`` may write it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from proa.machine.cloudconfig.values import is_hostname

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

NAME_MAX = 15
"""Longest name of an interface in bytes (Linux: IFNAMSIZ, less the NUL)."""

# Narrower than the kernel's rule (no "/", ":" or white space): also without what systemd refuses
# (man systemd.netdev: no "%", no number alone) and without what is a pattern.
_NAME = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_][A-Za-z0-9._+@-]*")
_GLOB = re.compile(r"[A-Za-z0-9_*?\[][A-Za-z0-9._+@*?\[\]^-]*")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:+@-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}")
_NUMBER = re.compile(r"[0-9]{1,10}")
_SPAN = re.compile(r"([0-9]{1,9})(us|ms|s|sec|m|min|h)?|(\.[0-9]{1,6}|[0-9]{1,9}\.[0-9]{1,6})(s)?")
_DOMAIN_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def name(text: str) -> str:
    """The name of an interface."""
    if not _NAME.fullmatch(text) or len(text) > NAME_MAX or text in ("all", "default"):
        raise ValueError(f"is not the name of an interface (at most {NAME_MAX} letters)")
    return text


def identifier(text: str) -> str:
    """The name of a description, which becomes part of a file name."""
    if not _NAME.fullmatch(text) or len(text) > 64:
        raise ValueError("is not usable as a name: letters, digits and . _ + @ - only")
    return text


def glob(text: str) -> str:
    """A pattern of interface names or drivers (man glob(7))."""
    if not _GLOB.fullmatch(text) or len(text) > 64:
        raise ValueError("is not a pattern of names like enp2*")
    return text


def is_glob(text: str) -> bool:
    return any(c in text for c in "*?[")


def label(text: str) -> str:
    """The label of an address."""
    if not _LABEL.fullmatch(text):
        raise ValueError("is not a label of at most 15 letters")
    return text


def mac(text: str) -> str:
    """An Ethernet address, in small letters with colons."""
    lower = text.lower()
    if not _MAC.fullmatch(lower):
        raise ValueError("is not a MAC address like 52:54:00:12:34:56")
    return lower.replace("-", ":")


def address(text: str) -> Address:
    """An IPv4 or IPv6 address without a zone."""
    # A zone ("%eth0") may be any text, even a line end, for ipaddress.
    try:
        if "%" in text:
            raise ValueError
        return ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address") from None


def address4(text: str) -> IPv4Address:
    found = address(text)
    if not isinstance(found, IPv4Address):
        raise ValueError("is not an IPv4 address")
    return found


def address6(text: str) -> IPv6Address:
    found = address(text)
    if not isinstance(found, IPv6Address):
        raise ValueError("is not an IPv6 address")
    return found


def interface(text: str) -> Interface:
    """An address of an interface with its prefix length: ``192.0.2.5/24``."""
    host, slash, prefix = text.partition("/")
    if not slash:
        raise ValueError("has no prefix length; write it like 192.0.2.5/24")
    found = address(host)
    return ip_interface((found, prefix_length(prefix, found.version)))


def prefix_length(text: str, version: int) -> int:
    """A prefix length as a number or as a net mask (``255.255.255.0``, ``ffff:ffff::``)."""
    bits = 32 if version == 4 else 128
    if _NUMBER.fullmatch(text):
        length = int(text)
        if length <= bits:
            return length
        raise ValueError(f"has a prefix longer than {bits}")
    mask = address(text)
    ones = int(mask).bit_count()
    if mask.version != version or int(mask) != (1 << bits) - (1 << (bits - ones)):
        raise ValueError("is not a net mask")
    return ones


def network(text: str) -> Network:
    """Where a route goes: a network or a single address. Bits of a host are cleared."""
    host, slash, prefix = text.partition("/")
    found = address(host)
    length = prefix_length(prefix, found.version) if slash else found.max_prefixlen
    return ip_network((found, length), strict=False)


def destination(version: int) -> Callable[[str], Network]:
    """A reader of a network or the word ``default``, which is everywhere in IP ``version``."""
    return lambda text: everywhere(version) if text == "default" else network(text)


def everywhere(version: int) -> Network:
    """The destination of a default route."""
    return ip_network("0.0.0.0/0" if version == 4 else "::/0")


def domain(text: str) -> str:
    """A search domain; with ``~`` in front one that only routes names (man resolved.conf)."""
    bare = text.removeprefix("~")
    labels = bare.removesuffix(".").split(".")
    good = bare == "." or all(_DOMAIN_LABEL.fullmatch(part) for part in labels)
    if not good or len(bare) > 253:
        raise ValueError("is not a domain")
    return text


def hostname(text: str) -> str:
    if not is_hostname(text):
        raise ValueError("is not a host name")
    return text


def number(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``low`` to ``high``."""

    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(f"is not a number from {low} to {high}")
        return int(text)

    return read


mtu = number(68, 65535)  # the smallest of IPv4 (RFC 791) to the largest of the loopback's kind
metric = number(0, 2**32 - 1)
table = number(1, 2**32 - 1)
vlan_id = number(0, 4094)  # IEEE 802.1Q; 4095 is reserved


def flag(text: str) -> bool:
    """A truth value as YAML 1.1 and the kernel's module options write it."""
    word = text.lower()
    if word in ("true", "yes", "on", "1", "y"):
        return True
    if word in ("false", "no", "off", "0", "n"):
        return False
    raise ValueError("is not true or false")


def choice(*words: str) -> Callable[[str], str]:
    """A reader of one of ``words``."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return text

    return read


def span(unit: str) -> Callable[[str], str]:
    """A reader of lengths of time (man systemd.time); a bare number counts in ``unit``."""

    def read(text: str) -> str:
        match = _SPAN.fullmatch(text)
        if match is None:
            raise ValueError("is not a length of time like 100ms")
        return text if match[2] or match[4] else f"{text}{unit}"

    return read
