"""CoreOS's words for the addresses of a machine, put into the text before it is read.

``$public_ipv4``, ``$private_ipv4``, ``$public_ipv6`` and ``$private_ipv6``, as coreos-cloudinit
1.14 does it: in the raw text, wherever they stand; ``\\$private_ipv4`` leaves ``$private_ipv4``;
there is no ``${…}``. A value is what the cloud says, else ``COREOS_PRIVATE_IPV4`` and its kin from
the environment, else nothing: then the word becomes the empty string, with a warning.

A value that is not an address is not put in, whoever gave it: a service that lies about an address
must not be able to write a line of the document. So no line ever moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.parse import Problem

NAMES = ("public_ipv4", "private_ipv4", "public_ipv6", "private_ipv6")

_WORD = re.compile(r"\\?\$(" + "|".join(NAMES) + ")")


def substitute(
    text: str, addresses: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, tuple[Problem, ...]]:
    """``text`` with addresses for words, and a warning for each word that has none, at the first
    place that is not in a remark.

    ``addresses`` are by name (``public_ipv4``), ``environment`` by variable
    (``COREOS_PUBLIC_IPV4``). The text has as many lines as before.
    """
    values: dict[str, str] = {}
    doubts: dict[str, list[str]] = {}  # what is still to be told
    problems: list[Problem] = []

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("\\"):
            return match[0][1:]
        name = match[1]
        if name not in values:
            values[name], doubts[name] = _value(name, addresses, environment)
        if doubts[name]:
            before = text.rfind("\n", 0, match.start()) + 1
            if not text[before : match.start()].lstrip().startswith("#"):  # not for a remark
                line = text.count("\n", 0, before) + 1
                column = match.start() - before + 1
                problems.extend(Problem("warning", d, line, column) for d in doubts[name])
                doubts[name] = []
        return values[name]

    return _WORD.sub(value, text), tuple(problems)


def _value(
    name: str, addresses: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, list[str]]:
    """The address of that name, or "", and what is to be said about it."""
    variable = f"COREOS_{name.upper()}"
    doubts: list[str] = []
    for giver, found in (
        ("the cloud", addresses.get(name, "")),
        (variable, environment.get(variable, "")),
    ):
        if found and _is_address(found, name):
            return found, doubts
        if found:
            doubts.append(f"${name}: what {giver} gives is not such an address; not taken")
    doubts.append(f"${name} has no value on this machine; the empty text stands in its place")
    return "", doubts


def _is_address(text: str, name: str) -> bool:
    """Whether it is one, and one text in YAML: ``a::`` names no machine, and would be a key."""
    import socket  # few documents have such a variable

    family = socket.AF_INET6 if name.endswith("ipv6") else socket.AF_INET
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: NUL, or not ASCII
        return False
    return not text.endswith(":")
