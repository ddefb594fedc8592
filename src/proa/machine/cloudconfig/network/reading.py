"""What the readers of the forms share: values out of nodes, and the end of a description."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from proa.machine.cloudconfig.network import values
from proa.machine.cloudconfig.network.model import (
    MAX_LINKS,
    Addressing,
    Description,
    Link,
    beyond,
    faults,
    with_implied,
)
from proa.machine.cloudconfig.network.parameters import Parameter
from proa.machine.cloudconfig.network.values import Address
from proa.machine.cloudconfig.parse import Items, Node, Table, Text, canonical, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import replace

T = TypeVar("T")

Entries = Mapping[str, Node]

MAX_WORDS = 1000
"""Most words of one text."""

REFUSED = "is not taken: a machine's network is Ethernet, bonds, bridges and VLANs"


def value(r: Reader, node: Node | None, key: str, read: Callable[[str], T]) -> T | None:
    """What ``read`` makes of a text; ``None`` if there is none, or an error if it is no such."""
    text = r.text(node, key)
    if node is None or not text:
        return None
    try:
        return read(text)
    except ValueError as error:
        r.error(node, key, f'{key} "{printable(text)}" {error}')
        return None


def each(r: Reader, node: Node | None, key: str, read: Callable[[str], T]) -> tuple[T, ...]:
    """What ``read`` makes of each text of a list, or of the words of one text."""
    items = words(node) if isinstance(node, Text) else r.items(node, key)
    found = (value(r, item, f"{key}[{i}]", read) for i, item in enumerate(items))
    return tuple(one for one in found if one is not None)


def words(node: Text) -> tuple[Text, ...]:
    """The words of a text, apart by white space or commas, each where it stands."""
    if node.null:
        return ()
    found = node.text.replace(",", " ").split(None, MAX_WORDS)  # the last one has what is over
    return tuple(Text(word, node.line, node.column) for word in found)


def few(r: Reader, node: Node | None, key: str, most: int = MAX_LINKS) -> Node | None:
    """The node, unless it is a longer list than any machine needs."""
    if isinstance(node, Items) and len(node.items) > most:
        r.error(node, key, f"{key} has more than {most} items")
        return None
    return node


def named(r: Reader, node: Node | None, key: str) -> tuple[tuple[Text, Node], ...]:
    """The entries of a mapping whose keys are names that the author chose."""
    if isinstance(node, Table):
        return node.entries
    r.table(node, key, ())  # says what is wrong with it
    return ()


def entry(node: Node | None, name: str) -> Node | None:
    """What a mapping has under ``name``, before it is known which keys it may have."""
    entries = node.entries if isinstance(node, Table) else ()
    return next((inner for word, inner in entries if canonical(word.text) == name), None)


def flag(r: Reader, node: Node | None, key: str) -> bool | None:
    """A truth value that may also be left open."""
    return value(r, node, key, values.flag)


def parameters(
    r: Reader, entries: Entries, key: str, known: Mapping[str, Parameter]
) -> tuple[tuple[str, str], ...]:
    """Settings of a bond, bridge or port, by their names in systemd."""
    settings: list[tuple[str, str]] = []
    for name, parameter in known.items():
        node = entries.get(name)
        if node is None:
            continue
        if parameter.many:
            text = " ".join(each(r, node, f"{key}.{name}", parameter.read))
        else:
            text = value(r, node, f"{key}.{name}", parameter.read) or ""
        if text:
            settings.append((parameter.setting, text))
    return tuple(settings)


def without_prefix(node: Node | None, *prefixes: str) -> Node | None:
    """A mapping whose keys have lost ``bond_`` or the like, which some forms write and some not."""
    if not isinstance(node, Table):
        return node
    entries = []
    for word, inner in node.entries:
        bare = canonical(word.text)
        for prefix in prefixes:
            bare = bare.removeprefix(prefix)
        entries.append((Text(bare, word.line, word.column), inner))
    return Table(tuple(entries), node.line, node.column)


def place(node: Node) -> tuple[int, int]:
    return node.line, node.column


def finish(
    r: Reader,
    links: Iterable[Link | None],
    nameservers: Sequence[Address] = (),
    search: Sequence[str] = (),
) -> Description:
    """The whole network, with what cannot be told of as errors."""
    whole = with_implied([link for link in links if link is not None])
    faulty = False
    for link, message in faults(whole):
        r.error(_at(link), "", message)
        faulty = True
    if faulty:
        return Description()
    masters = {port: link.id for link in whole for port in link.members}
    whole = tuple(_without_addresses(r, link, masters.get(link.id)) for link in whole)
    for link in whole:
        for route in link.addressing.routes:
            if beyond(route, link.addressing) and not _alone(link.addressing):
                message = f'the gateway {route.via} lies in no network of "{link.id}"'
                r.warn(_at(link), "", f"{message}; it is taken to be on its link all the same")
    return Description(whole, tuple(dict.fromkeys(nameservers)), tuple(dict.fromkeys(search)))


def _at(link: Link) -> Node:
    return Items((), *link.at)


def _without_addresses(r: Reader, link: Link, master: str | None) -> Link:
    """A port of a bond or bridge has no addresses: the kernel gives its packets to the master."""
    if master is None or link.addressing == Addressing():
        return link
    message = f'"{link.id}" is a port of "{master}": addresses, routes and DNS of its own'
    r.warn(_at(link), "", f"{message} mean nothing; ignored")
    return replace(link, addressing=Addressing())


def _alone(addressing: Addressing) -> bool:
    """An address is the only one of its network, so that any gateway lies beyond it."""
    return any(
        one.interface.network.prefixlen == one.interface.max_prefixlen
        for one in addressing.addresses
    )
