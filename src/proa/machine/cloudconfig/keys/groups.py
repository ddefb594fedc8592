"""``groups``: groups to have, and who is in them at least."""

from __future__ import annotations

from proa.machine.cloudconfig.parse import Items, Node, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import NAME
from proa.machine.record import dataclass


@dataclass(frozen=True)
class Group:
    name: str
    members: tuple[str, ...] = ()
    gid: int | None = None
    system: bool = False


def read_groups(r: Reader, node: Node | None, key: str) -> tuple[Group, ...]:
    """A list of names and of mappings from name to members, one such mapping, or a text."""
    members: dict[str, tuple[str, ...]] = {}
    items = (node,) if isinstance(node, Text | Table) else r.items(node, key)
    for item in items:
        if isinstance(item, Table):
            for name, value in item.entries:
                there = r.words(value, f"{key}.{printable(name.text)}")
                for member in there:
                    _check(r, value, f"{key}.{printable(name.text)}", member)
                _check(r, name, key, name.text)
                members[name.text] = tuple(dict.fromkeys((*members.get(name.text, ()), *there)))
        elif isinstance(item, Items):
            r.error(item, key, f"{key} wants names, or mappings from a name to its members")
        else:
            for word in r.words(item, key):
                _check(r, item, key, word)
                members.setdefault(word, ())
    return tuple(Group(name, its) for name, its in members.items())


def _check(r: Reader, node: Node, key: str, name: str) -> None:
    if not NAME.fullmatch(name):
        r.error(node, key, f'{key} "{printable(name)}" is not a valid name')
