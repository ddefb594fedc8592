"""How Ignition (JSON) and Butane (YAML) write the same things.

Names are given here in snake_case. Butane writes them so; Ignition writes camelCase. Ignition has
typed values and numbers in decimal; in Butane a number is what YAML makes of it (``0644`` is
octal). Beyond that, Butane has sugar, for which see :mod:`butane`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from proa.machine.cloudconfig.parse import Items, Node, Refused, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.resource import DIGEST, Resource, data_url
from proa.machine.cloudconfig.values import NAME, clean_path, is_url
from proa.machine.hints import TypeVar

T = TypeVar("T")

MAX_ID = 2**32 - 2
"""Largest user or group id; the one above means "leave it" (chown(2))."""
MAX_CONTENT = 8 * 1024 * 1024
"""Most bytes that the compressed content of one document may unpack to, together."""

# yaml.org/type/int.html (YAML 1.1), and 0o644 of YAML 1.2.
_YAML_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,9}|0b[01]{1,33}|0o?[0-7]{1,12}|0|[1-9][0-9]{0,9}")
_JSON_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # a token of RFC 9110, §5.6.2
_ELSEWHERE_SCHEMES = ("s3", "arn", "gs", "tftp")


class Dialect:
    """Reads values as one of the two writes them; problems name keys as the author wrote them."""

    def __init__(self, reader: Reader, *, butane: bool) -> None:
        self.reader = reader
        self.butane = butane
        self.remote = False
        """Something has to be fetched from the network."""

    def spell(self, name: str) -> str:
        return name if self.butane else re.sub("_(.)", lambda found: found[1].upper(), name)

    def at(self, key: str, name: str) -> str:
        if name.isdigit():
            return f"{key}[{name}]"
        return f"{key}.{self.spell(name)}" if key else self.spell(name)

    def error(self, node: Node, key: str, message: str) -> None:
        self.reader.error(node, key, f"{key} {message}")

    def warn(self, node: Node, key: str, message: str) -> None:
        self.reader.warn(node, key, f"{key} {message}")

    def table(self, node: Node | None, key: str, known: Collection[str]) -> dict[str, Node]:
        """The entries under known keys by their snake_case names; nulls are absent."""
        names = {self.spell(name): name for name in known}
        entries = self.reader.table(node, key, tuple(names))
        return {names[word]: value for word, value in entries.items() if not _null(value)}

    def each(
        self, node: Node | None, key: str, one: Callable[[Dialect, Node, str], T | None]
    ) -> tuple[T, ...]:
        return self.reader.each(node, key, lambda _, item, name: one(self, item, name))

    # Quiet looks into the tree: what is wrong there is told where it is read.

    def entry(self, node: Node | None, name: str) -> Text | None:
        """The text under a name, if there is one."""
        found = self._under(node, name)
        return found if isinstance(found, Text) and not found.null else None

    def entry_table(self, node: Node | None, name: str) -> Table | None:
        found = self._under(node, name)
        return found if isinstance(found, Table) else None

    def entry_items(self, node: Node | None, name: str) -> Items | None:
        found = self._under(node, name)
        return found if isinstance(found, Items) else None

    def items(self, node: Node | None) -> tuple[Node, ...]:
        return node.items if isinstance(node, Items) else ()

    def _under(self, node: Node | None, name: str) -> Node | None:
        entries = node.entries if isinstance(node, Table) else ()
        return next((value for key, value in entries if key.text == self.spell(name)), None)

    def refuse(self, entries: Mapping[str, Node], key: str, reasons: Mapping[str, str]) -> None:
        """An error for each of these that is there and not empty."""
        for name, reason in reasons.items():
            node = entries.get(name)
            if node is not None and not is_empty(node):
                self.error(node, self.at(key, name), reason)

    # Values. Each is None where there is none, or where it is wrong and that has been told.

    def text(self, entries: Mapping[str, Node], key: str, name: str) -> str | None:
        node = entries.get(name)
        if isinstance(node, Text) and node.plain and not self.butane:
            self.error(node, self.at(key, name), "wants a text in quotes")
            return None
        return self.reader.text(node, self.at(key, name))

    def flag(self, entries: Mapping[str, Node], key: str, name: str) -> bool | None:
        node = entries.get(name)
        if node is None:
            return None
        words = {"true": True, "false": False}
        if self.butane:
            words |= {"yes": True, "on": True, "no": False, "off": False}
        word = node.text.lower() if isinstance(node, Text) and node.plain else ""
        if word not in words:
            self.error(node, self.at(key, name), "wants true or false, without quotes")
            return None
        return words[word]

    def number(
        self, entries: Mapping[str, Node], key: str, name: str, maximum: int = MAX_ID
    ) -> int | None:
        node = entries.get(name)
        if node is None:
            return None
        number = self._number(node)
        if number is None:
            quotes = ", without quotes" if isinstance(node, Text) and not node.plain else ""
            self.error(node, self.at(key, name), f"wants a whole number{quotes}")
        elif number > maximum:
            self.error(node, self.at(key, name), f"is larger than {maximum}")
            return None
        return number

    def _number(self, node: Node) -> int | None:
        if not isinstance(node, Text) or not node.plain or len(node.text) > 50:
            return None
        if not self.butane:
            return int(node.text) if _JSON_NUMBER.fullmatch(node.text) else None
        text = node.text.replace("_", "")
        if not _YAML_NUMBER.fullmatch(text):
            return None
        if text[:2] in ("0x", "0b", "0o"):
            return int(text[2:], {"x": 16, "b": 2, "o": 8}[text[1]])
        return int(text, 8 if text.startswith("0") else 10)

    def mode(self, entries: Mapping[str, Node], key: str) -> int | None:
        """A mode; one that only makes sense if its digits were octal is doubted aloud."""
        mode = self.number(entries, key, "mode", 0o7777)
        if mode is None or _usual(mode):
            return mode
        digits = str(mode)
        if set(digits) <= set("01234567") and len(digits) in (3, 4) and _usual(int(digits, 8)):
            meant = int(digits, 8)
            instead = f"0{digits}" if self.butane else str(meant)
            message = f"{digits} is a decimal number and makes 0{mode:o}; for 0{digits} write "
            self.warn(entries["mode"], self.at(key, "mode"), message + instead)
        return mode

    def name(self, entries: Mapping[str, Node], key: str, name: str = "name") -> str | None:
        """The name of a user or group."""
        text = self.text(entries, key, name)
        if text and not NAME.fullmatch(text):
            what = f'"{printable(text)}" is not a valid name'
            self.error(entries[name], self.at(key, name), what)
            return None
        return text or None

    def texts(self, entries: Mapping[str, Node], key: str, name: str) -> tuple[str, ...]:
        place = self.at(key, name)
        items = {f"{i}": item for i, item in enumerate(self.reader.items(entries.get(name), place))}
        found = [self.text(items, place, index) for index in items]
        return tuple(text for text in found if text)

    def names(self, entries: Mapping[str, Node], key: str, name: str) -> tuple[str, ...]:
        """The names in a list, each once."""
        place = self.at(key, name)
        items = {f"{i}": item for i, item in enumerate(self.reader.items(entries.get(name), place))}
        found = [self.name(items, place, index) for index in items]
        return tuple(dict.fromkeys(text for text in found if text))

    def path(self, entries: Mapping[str, Node], node: Node, key: str) -> str | None:
        text = self.text(entries, key, "path")
        if not text:
            if "path" not in entries or text is not None:
                self.error(node, key, "has no path")
            return None
        try:
            return clean_path(text)
        except ValueError as error:
            message = f'"{printable(text)}" {error}'
            self.error(entries["path"], self.at(key, "path"), message)
            return None

    def owner(self, entries: Mapping[str, Node], key: str) -> str | None:
        """``user:group`` by name or number; ``None`` if neither is given."""
        if "user" not in entries and "group" not in entries:
            return None
        user = self._principal(entries.get("user"), self.at(key, "user"))
        group = self._principal(entries.get("group"), self.at(key, "group"))
        return "root:root" if (user, group) == ("0", "0") else f"{user}:{group}"

    def _principal(self, node: Node | None, key: str) -> str:
        entries = self.table(node, key, ("id", "name"))
        number = self.number(entries, key, "id")
        name = self.name(entries, key)
        if "id" in entries and "name" in entries:
            self.error(entries["name"], key, "wants an id or a name, not both")
        return name if name not in (None, "root") else str(number or 0)

    # Content.

    def resource(self, node: Node | None, key: str) -> bytes | Resource | None:
        """The content that a table with ``source`` (or Butane's ``inline``) stands for."""
        sugar = ("inline", "local") if self.butane else ()
        known = ("source", "compression", "http_headers", "verification", *sugar)
        entries = self.table(node, key, known)
        self.refuse(entries, key, {"local": NO_LOCAL})
        if node is None or not entries.keys() & {"source", "inline"}:
            return None
        compression = self.text(entries, key, "compression") or None
        if compression not in (None, "gzip"):
            message = f'"{printable(compression)}" is not known; take gzip'
            self.error(entries["compression"], self.at(key, "compression"), message)
            return None
        source = Resource(
            url=self.text(entries, key, "source") or "",
            headers=self._headers(entries, key),
            verification=self._verification(entries, key),
            compression=compression,
        )
        if "inline" in entries:
            if "source" in entries:
                self.error(entries["inline"], key, "wants one of source and inline, not both")
            node, place = entries["inline"], self.at(key, "inline")
            data = (self.text(entries, key, "inline") or "").encode()
            if isinstance(node, Text) and node.binary is not None:
                data = node.binary
            return self._opened(node, place, data, source)
        return self._located(entries["source"], self.at(key, "source"), source)

    def _located(self, node: Node, key: str, source: Resource) -> bytes | Resource | None:
        scheme, colon, _ = source.url.partition(":")
        scheme = scheme.lower()
        if not source.url:
            return self._opened(node, key, b"", source)
        if colon and scheme == "data":
            try:
                return self._opened(node, key, data_url(source.url), source)
            except Refused as refused:
                self.error(node, key, f"is not good: {refused.problem.message}")
                return None
        if colon and scheme in _ELSEWHERE_SCHEMES:
            self.error(
                node, key, f'is not taken: "{scheme}" addresses are never fetched; use https'
            )
            return None
        if not is_url(source.url):  # and never say what it was
            self.error(node, key, "is not an address that begins with https:, http: or data:")
            return None
        if scheme == "http" and source.verification is None:
            self.warn(node, key, "can be changed on its way; add a verification or use https")
        self.remote = True
        return source

    def _opened(self, node: Node, key: str, data: bytes, source: Resource) -> bytes | None:
        packed = source.compression is not None
        limit = MAX_CONTENT - self.reader.unpacked if packed else len(data)
        try:
            data = source.content(data, limit)
        except Refused as refused:
            self.error(node, key, f"is not good: {refused.problem.message}")
            return None
        self.reader.unpacked += len(data) if packed else 0
        return data

    def _headers(self, entries: Mapping[str, Node], key: str) -> tuple[tuple[str, str], ...]:
        def one(d: Dialect, node: Node, place: str) -> tuple[str, str] | None:
            header = d.table(node, place, ("name", "value"))
            name, value = d.text(header, place, "name"), d.text(header, place, "value")
            plain = (value or "").isascii() and (value or "").isprintable()
            if not name or not _HEADER.fullmatch(name) or not plain:
                d.error(node, place, "is not the name and value of a header")
                return None
            return (name, value) if value else None

        return self.each(entries.get("http_headers"), self.at(key, "http_headers"), one)

    def _verification(self, entries: Mapping[str, Node], key: str) -> str | None:
        key = self.at(key, "verification")
        table = self.table(entries.get("verification"), key, ("hash",))
        text = self.text(table, key, "hash")
        if not text:
            return None
        if not DIGEST.fullmatch(text.lower()):
            wanted = "is not sha512- and 128, or sha256- and 64 hexadecimal digits"
            self.error(table["hash"], self.at(key, "hash"), wanted)
            return None
        return text.lower()


NO_LOCAL = (
    "names a file beside the document, which the machine does not have; write it inline, or run "
    "butane --files-dir and give the machine what that makes"
)


def _null(node: Node) -> bool:
    return isinstance(node, Text) and node.null


def is_empty(node: Node) -> bool:
    """Whether nothing is said, however deep: what Go writes for what is not there."""
    match node:
        case Table(entries):
            return all(is_empty(value) for _, value in entries)
        case Items(items):
            return not items
        case _:
            return node.null


def _usual(mode: int) -> bool:
    """The owner may read, the group no more than the owner, and others no more than the group."""
    owner, group, others = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    return bool(owner & 4) and group & ~owner == 0 and others & ~group == 0
