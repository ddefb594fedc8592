"""Several cloud-configs to one tree, as cloud-init merges them ("Merging user data sections").

How a part is merged into those before it stands in the part itself, ``merge_how`` or
``merge_type``, or in the head of its MIME part; as a text or as a list:

    merge_how: "list(append)+dict(no_replace,recurse_list)+str()"
    merge_how: [{name: list, settings: [append]}, {name: dict, settings: [no_replace]}]

Without any, a part's top-level keys take the place of those before it. The rules are those of
cloud-init's code where that and its documentation are not of one mind: the way that a part names
is used for that part, and ``list()`` exchanges items one by one without making the list longer.
Compared with cloud-init 22.4 on 40,000 random pairs: the same, but where a list or a text is to be
joined with what is none. There cloud-init fails or joins letters, and here the old value stays.

A key is the same key with ``-`` and ``_``. Nodes are moved, never copied, so each keeps its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from proa.machine.cloudconfig.parse import (
    MAX_WEIGHT,
    Items,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    printable,
)
from proa.machine.record import dataclass, replace

MAX_COMPLAINTS = 10
"""How many are told of one way to merge."""

_KEYS = ("merge_how", "merge_type")
_SETTINGS = {
    "dict": ("replace", "no_replace", "allow_delete"),
    "list": ("append", "prepend", "replace", "no_replace"),
    "str": ("append",),
}
_RECURSING = ("recurse_dict", "recurse_list", "recurse_array", "recurse_str")
_WAY = re.compile(r"([a-z_][a-z0-9_]*)\(([^()]*)\)")


@dataclass(frozen=True)
class How:
    """The settings for mappings, lists and texts; ``None`` leaves what is there already."""

    tables: frozenset[str]
    lists: frozenset[str] | None = frozenset()
    texts: frozenset[str] | None = frozenset()


REPLACING = How(tables=frozenset({"replace"}))
"""What cloud-init does with a part that says nothing."""
FIRST_WINS = How(tables=frozenset({"no_replace"}))
"""How vendor-data goes under user-data: mappings are joined, all else stays as the user has it."""


def taken_out(root: Table, header: str = "") -> tuple[Table, How, tuple[Problem, ...]]:
    """A part without the keys that say how it is merged; how that is; and what is wrong with it.

    ``header`` is ``Merge-Type`` from the head of a MIME part; the part's own keys go before it.
    """
    found = {canonical(key.text): (key, value) for key, value in root.entries}
    said = next((found[name] for name in _KEYS if name in found), None)
    rest = [(key, value) for key, value in root.entries if canonical(key.text) not in _KEYS]
    key, value = said or (Text("Merge-Type", 0, 0), Text(header, 0, 0))
    if said is None and not header:
        return root, REPLACING, ()
    how, complaints = _how(value)
    if len(complaints) > MAX_COMPLAINTS:
        complaints[MAX_COMPLAINTS:] = ["and more of the kind"]
    problems = tuple(
        Problem("warning", f"{key.text}: {complaint}", key.line, key.column, canonical(key.text))
        for complaint in complaints
    )
    return table(rest, root), how, problems


def table(entries: list[tuple[Text, Node]], like: Table) -> Table:
    """A mapping of these entries, where ``like`` stands."""
    return Table(tuple(entries), like.line, like.column, _weight(n for e in entries for n in e))


def _how(value: Node) -> tuple[How, list[str]]:
    """From either form; what is not understood is named and left out."""
    complaints: list[str] = []
    ways: dict[str, frozenset[str]] = {}
    for name, settings in _ways(value, complaints):
        if name not in _SETTINGS:
            complaints.append(f'"{printable(name)}" is not a way to merge: dict, list and str are')
            continue
        known = (*_SETTINGS[name], *_RECURSING)
        for setting in settings:
            if setting not in known:
                complaints.append(f'{name} has no setting "{printable(setting)}"; ignored')
        ways.setdefault(name, frozenset(settings) & frozenset(known))
    if not ways:
        return REPLACING, complaints
    if "dict" not in ways:
        # cloud-init then has nothing that can merge the part itself, and drops it.
        complaints.append('no "dict" is named; taken as dict()')
    return How(ways.get("dict", frozenset()), ways.get("list"), ways.get("str")), complaints


def _ways(value: Node, complaints: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(value, Text):
        for way in value.text.lower().split("+"):
            match = _WAY.fullmatch(way.strip().replace("-", "_"))
            if match:
                yield match[1], tuple(word.strip() for word in match[2].split(",") if word.strip())
            elif way.strip():
                complaints.append(f'"{printable(way.strip())}" is not of the form name(setting,…)')
        return
    for item in value.items if isinstance(value, Items) else ():
        match item:
            case Table():
                entries = {key.text: node for key, node in item.entries}
                name, settings = entries.get("name"), entries.get("settings")
                words = settings.items if isinstance(settings, Items) else ()
            case Items(items=(name, *words)):
                pass
            case _:
                name, words = None, ()
        if isinstance(name, Text):
            texts = tuple(word.text for word in words if isinstance(word, Text))
            yield name.text.replace("-", "_").strip(), texts
        else:
            complaints.append("an item has no name; ignored")
    if isinstance(value, Table):
        complaints.append("wants a text or a list")


# Merging.


def merge(old: Node, new: Node, how: How) -> Node:
    """``new`` merged into ``old``. :class:`Refused` if the whole becomes too much."""
    merged = _merge(old, new, how)
    if merged.weight > MAX_WEIGHT:
        raise Refused("too much content in all the parts together")
    return merged


def _merge(old: Node, new: Node, how: How) -> Node:
    """Goes as deep as both trees do, which :data:`parse.MAX_DEPTH` bounds."""
    match old:
        case Table():
            return _tables(old, new, how) if isinstance(new, Table) else old
        case Items() if how.lists is not None:
            return _lists(old, new, how, how.lists)
        case Text() if how.texts is not None and not old.null:
            return _texts(old, new, how.texts)
    return old


def _tables(old: Table, new: Table, how: How) -> Table:
    entries = {canonical(key.text): (key, value) for key, value in old.entries}
    for key, value in new.entries:
        name = canonical(key.text)
        if name not in entries:
            entries[name] = (key, value)
        elif isinstance(value, Text) and value.null and "allow_delete" in how.tables:
            del entries[name]
        elif "replace" in how.tables:
            entries[name] = (key, value)
        elif _goes_into(value, how.tables | {"recurse_dict"}):  # cloud-init always goes into these
            before, there = entries[name]
            entries[name] = (before, _merge(there, value, how))
    return table(list(entries.values()), old)


def _lists(old: Items, new: Node, how: How, settings: frozenset[str]) -> Node:
    method = next((m for m in ("append", "prepend", "replace", "no_replace") if m in settings), "")
    if not isinstance(new, Items):
        return new if method in ("", "replace") else old
    match method:
        case "append":
            items = (*old.items, *new.items)
        case "prepend":
            items = (*new.items, *old.items)
        case "no_replace":
            return old
        case _:
            common = [
                _merge(one, other, how) if _goes_into(other, settings) else other
                for one, other in zip(old.items, new.items, strict=False)
            ]
            items = (*common, *old.items[len(common) :])
    return Items(items, old.line, old.column, _weight(items))


def _texts(old: Text, new: Node, settings: frozenset[str]) -> Node:
    if "append" not in settings:
        return new
    if not isinstance(new, Text) or new.null:
        return old
    text = old.text + new.text
    return replace(old, text=text, weight=old.weight + new.weight, binary=None)


def _goes_into(value: Node, settings: frozenset[str]) -> bool:
    match value:
        case Table():
            return "recurse_dict" in settings
        case Items():
            return "recurse_list" in settings or "recurse_array" in settings
        case Text():
            return "recurse_str" in settings and not value.null


def _weight(nodes: Iterator[Node] | tuple[Node, ...]) -> int:
    return 1 + sum(node.weight for node in nodes)


def moved(node: Node, lines: int) -> Node:
    """The same tree, every node that many lines further down."""
    done: dict[int, Node] = {}  # what aliases repeat is moved once

    def move(node: Node) -> Node:
        if id(node) not in done:
            line = node.line + lines
            match node:
                case Text():
                    done[id(node)] = replace(node, line=line)
                case Items():
                    done[id(node)] = replace(node, line=line, items=tuple(map(move, node.items)))
                case Table():
                    pairs = [
                        (replace(key, line=key.line + lines), move(n)) for key, n in node.entries
                    ]
                    done[id(node)] = replace(node, line=line, entries=tuple(pairs))
        return done[id(node)]

    return move(node) if lines else node
