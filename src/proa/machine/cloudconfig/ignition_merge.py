"""One config out of a config and those that it points to, by Ignition's rules of merging.

What a child says wins over its parent, entry by entry: the entries of a list are the same if they
have the same name (or path, or device). Files, directories and links share their paths. What a
child brings gets the line of the place that names it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType

from proa.machine.cloudconfig.dialect import Dialect
from proa.machine.cloudconfig.jsontext import load_json
from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    MAX_WEIGHT,
    Items,
    Node,
    Refused,
    Table,
    Text,
    decode,
    printable,
)
from proa.machine.cloudconfig.resource import Resource

Fetched = Mapping[str, bytes | str]
"""By address what was fetched, or why it could not be."""
NOTHING_FETCHED: Fetched = MappingProxyType({})

MAX_CHILDREN = 32
"""Most configs that one may point to, with those that they point to themselves."""
MAX_GENERATIONS = 5

_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(-experimental)?")
NEWEST = (3, 5, 0)

# What tells the entries of a list apart. Entries of other lists are simply added.
_NAMES = {
    **dict.fromkeys(("users", "groups", "units", "dropins", "luks", "raid"), "name"),
    **dict.fromkeys(("files", "directories", "links"), "path"),
    **dict.fromkeys(("filesystems", "disks"), "device"),
}
_WHOLE = ("contents", "append")
"""A child that has these has them whole: half of two contents are none."""


def complete(
    d: Dialect, root: Node | None, fetched: Fetched, missing: list[Resource]
) -> Table | None:
    """The config with its children merged in; ``None`` if its version is not known.

    What would have to be fetched and is not in ``fetched`` is put into ``missing``: fetch that and
    ask again, until nothing is missing. Until then the config is what it says without that.
    """
    return _Merger(d, fetched, missing).resolved(root, "", 0)


class _Merger:
    def __init__(self, d: Dialect, fetched: Fetched, missing: list[Resource]) -> None:
        self.d = d
        self.fetched = fetched
        self.missing = missing
        self.children = 0
        self.weight = 0

    def resolved(self, root: Node | None, key: str, generation: int) -> Table | None:
        """``root`` with its children; ``key`` is the place that names it, empty for the first."""
        d = self.d
        if not isinstance(root, Table):
            if root is not None:
                d.error(root, key or "the document", "wants a JSON object")
            return None
        ignition = d.entry_table(root, "ignition")
        # A Butane config has its own version; what it points to are Ignition configs.
        if (generation or not d.butane) and not self._version(root, ignition, key):
            return None
        config = d.entry_table(ignition, "config") if ignition else None
        if config is None:
            return root
        place = d.at(key, "ignition.config") if key else "ignition.config"
        entries = d.table(config, place, ("merge", "replace"))
        if (replace := entries.get("replace")) is not None:
            missing = len(self.missing)
            child = self._child(replace, f"{place}.replace", generation)
            if child is not None or len(self.missing) > missing:
                return child  # else it names nothing, or that is told
        merged = root
        for index, item in enumerate(d.reader.items(entries.get("merge"), f"{place}.merge")):
            one = self._child(item, f"{place}.merge[{index}]", generation)
            if one is not None:
                merged = _merged(d, merged, one)
        return merged

    def _child(self, node: Node, key: str, generation: int) -> Table | None:
        d = self.d
        self.children += 1
        if generation >= MAX_GENERATIONS or self.children > MAX_CHILDREN:
            d.error(node, key, "is one config too many, one inside the other")
            return None
        content = d.resource(node, key)
        if isinstance(content, Resource):
            content = self._fetched(node, key, content)
        if content is None:
            return None
        try:
            if len(content) > MAX_BYTES:
                raise Refused(f"it is larger than {MAX_BYTES // 1024} KiB")
            tree = load_json(decode(content))
        except Refused as refused:
            found = refused.problem
            line = f"line {found.line} of it: " if found.line else ""
            d.error(node, key, f"cannot be read: {line}{found.message}")
            return None
        self.weight += tree.weight
        if self.weight > MAX_WEIGHT:
            d.error(node, key, "brings too much content")
            return None
        resolved = self.resolved(_respelt(d, tree, node), key, generation + 1)
        return None if resolved is None else _without(resolved, "ignition", ("version", "config"))

    def _fetched(self, node: Node, key: str, source: Resource) -> bytes | None:
        if source.headers:
            self.d.error(node, key, "is not taken: a config is fetched without headers of its own")
            return None
        data = self.fetched.get(source.url)
        if isinstance(data, str):
            self.d.error(node, key, f"could not be fetched: {printable(data, 200)}")
            return None
        if data is None:
            self.missing.append(source)
            return None
        try:
            return source.content(data, MAX_BYTES)
        except Refused as refused:
            self.d.error(node, key, f"is not good: {refused.problem.message}")
            return None

    def _version(self, root: Table, ignition: Table | None, key: str) -> bool:
        d = self.d
        node = d.entry(ignition, "version") if ignition else None
        place = f"{key} ignition.version".strip()
        if node is None:
            old = d.entry(root, "ignition_version")
            what = "is missing: this is no Ignition config of version 3"
            d.error(old or root, place, "1 is another format; write it anew" if old else what)
            return False
        found = _VERSION.fullmatch(node.text)
        shown = f'"{printable(node.text)}"'
        if found is None:
            d.error(node, place, f'{shown} is not a version like "3.4.0"')
            return False
        number = (int(found[1]), int(found[2]), int(found[3]))
        if number[0] < 3:
            message = "is another format than 3: convert it (ign-converter) or write it in Butane"
        elif found[4] or number > NEWEST:
            newest = ".".join(map(str, NEWEST))
            message = f"is not known: take {newest}, if nothing newer is used"
        else:
            return True
        d.error(node, place, f"{shown} {message}")
        return False


def _respelt(d: Dialect, node: Node, at: Node) -> Node:
    """The tree of a child in the parent's spelling, with the place of the node that names it."""
    line, column = at.line, at.column
    match node:
        case Text():
            return Text(node.text, line, column, node.weight, node.plain)
        case Items(items):
            return Items(tuple(_respelt(d, i, at) for i in items), line, column, node.weight)
        case Table(entries):
            respelt = tuple(
                (Text(_snake(key.text) if d.butane else key.text, line, column), _respelt(d, v, at))
                for key, v in entries
            )
            return Table(respelt, line, column, node.weight)


def _snake(word: str) -> str:
    return re.sub("[A-Z]+", lambda found: "_" + found[0].lower(), word)


def _merged(d: Dialect, parent: Table, child: Table) -> Table:
    """``parent`` with what ``child`` says."""
    entries = {key.text: (key, value) for key, value in parent.entries}
    for key, value in child.entries:
        if key.text in entries:
            value = _joined(d, key.text, entries[key.text][1], value)
        entries[key.text] = (key, value)
    weight = 1 + sum(1 + value.weight for _, value in entries.values())
    return Table(tuple(entries.values()), parent.line, parent.column, weight)


def _without(table: Table, section: str, names: Container[str]) -> Table:
    """``table`` without these entries of one of its tables."""
    entries: list[tuple[Text, Node]] = []
    for key, value in table.entries:
        if key.text == section and isinstance(value, Table):
            left = tuple(entry for entry in value.entries if entry[0].text not in names)
            value = Table(left, value.line, value.column, value.weight)
        entries.append((key, value))
    return Table(tuple(entries), table.line, table.column, table.weight)


def _joined(d: Dialect, name: str, parent: Node, child: Node) -> Node:
    if isinstance(child, Text) and child.null:
        return parent
    if isinstance(parent, Table) and isinstance(child, Table) and name not in _WHOLE:
        if name == "storage":
            parent = _without_paths(d, parent, child)
        return _merged(d, parent, child)
    if isinstance(parent, Items) and isinstance(child, Items) and name != "append":
        items = _united(d, _NAMES.get(name), parent, child)
        return Items(tuple(items), parent.line, parent.column, 1 + sum(i.weight for i in items))
    return child


def _united(d: Dialect, name: str | None, parent: Items, child: Items) -> list[Node]:
    united = list(parent.items)
    at = {key: index for index, item in enumerate(united) if (key := _identity(d, item, name))}
    for item in child.items:
        key = _identity(d, item, name)
        index = at.get(key) if key else None
        if index is None:
            united.append(item)
            continue
        old = united[index]
        if isinstance(old, Table) and isinstance(item, Table):
            united[index] = _merged(d, old, item)
    return united


def _identity(d: Dialect, item: Node, name: str | None) -> str | None:
    """What tells an item apart: itself if it is a text, as in a list of groups or ssh keys."""
    if isinstance(item, Text):
        return item.text
    found = d.entry(item, name) if name else None
    return found.text if found else None


def _without_paths(d: Dialect, parent: Table, child: Table) -> Table:
    """The parent's storage without what the child's has as another kind of thing."""
    kinds = ("files", "directories", "links")
    theirs = {kind: set(_paths(d, child, kind)) for kind in kinds}
    entries: list[tuple[Text, Node]] = []
    for key, value in parent.entries:
        if key.text in kinds and isinstance(value, Items):
            gone = set[str]().union(*(theirs[kind] for kind in kinds if kind != key.text))
            items = tuple(i for i in value.items if _identity(d, i, "path") not in gone)
            value = Items(items, value.line, value.column, value.weight)
        entries.append((key, value))
    return Table(tuple(entries), parent.line, parent.column, parent.weight)


def _paths(d: Dialect, storage: Table, kind: str) -> Iterator[str]:
    entries = {key.text: value for key, value in storage.entries}
    for item in d.items(entries.get(kind)):
        if path := _identity(d, item, "path"):
            yield path
