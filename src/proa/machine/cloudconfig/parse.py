"""From bytes to a tree of texts that know their lines, or to a clear refusal.

YAML types are not guessed here: a scalar stays the text that its author wrote, and the reader of
a key decides what it wants there. So ``permissions: 0644``, ``reboot-strategy: off`` and
``hostname: 0123`` mean what they look like, whatever YAML 1.1 would have made of them.

Everything is bounded: bytes, depth, and the weight of the tree with its aliases expanded.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterator

from proa.machine.hints import Any, Literal
from proa.machine.record import dataclass

MAX_BYTES = 2 * 1024 * 1024
"""Largest document, unpacked. Clouds allow 16 to 64 KiB; a config drive has no limit of its own."""
MAX_DEPTH = 32
MAX_MEMBERS = 100
"""Most members of gzip data; each costs a copy of all that follows it."""
MAX_WEIGHT = 100_000
"""Nodes of the expanded tree, plus one for each 100 characters of text (about 10 MB of text)."""

Level = Literal["error", "warning"]

# The characters that YAML 1.1 does not allow in a stream (§4.1), but for the surrogates, which no
# UTF-8 has. In two sets: one that holds many and reaches far takes 3 ms to compile, at each boot.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]|[\ufffe\uffff]")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document. Lines and columns count from 1; 0 means the whole.

    ``suggestion`` is the key that was probably meant, where a key is not known.
    """

    level: Level
    message: str
    line: int = 0
    column: int = 0
    key: str = ""
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.level}: {self.message}"


class Refused(Exception):
    """The document cannot be read at all."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.problem = Problem("error", message, line, column)


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar. ``plain`` means unquoted; ``binary`` holds the bytes of a ``!!binary``."""

    text: str
    line: int
    column: int
    weight: int = 1
    plain: bool = False
    binary: bytes | None = None

    @property
    def null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    items: tuple[Node, ...]
    line: int
    column: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping. Keys are as written; :func:`canonical` gives the name they are looked up by."""

    entries: tuple[tuple[Text, Node], ...]
    line: int
    column: int
    weight: int = 1


Node = Text | Items | Table


def canonical(key: str) -> str:
    """The name of a key: ``-`` and ``_`` are alike."""
    return key.replace("-", "_")


def printable(text: str, limit: int = 60) -> str:
    """``text`` made fit for a console and a log line: no control characters, not too long."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


# Bytes.


def decode(data: bytes) -> str:
    """UTF-8 to text with ``\\n`` line ends, or :class:`Refused` with the line that is not text."""
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused("this is not UTF-8 text", line) from None
    text = text.replace("\r\n", "\n")
    if found := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        raise Refused(f"the character U+{ord(found[0]):04X} may not stand in YAML", line, column)
    return text


def gunzip(data: bytes, limit: int) -> bytes:
    """Unpack gzip data (RFC 1952) of at most ``limit`` bytes, or raise :class:`Refused`."""
    unpacked = b""
    members = 0
    while data:  # a gzip file may be several members, one after another
        members += 1
        if members > MAX_MEMBERS:
            raise Refused(f"the gzip data has more than {MAX_MEMBERS} members")
        stream = zlib.decompressobj(wbits=31)
        try:
            unpacked += stream.decompress(data, limit + 1 - len(unpacked))
        except zlib.error:
            raise Refused("the gzip data is damaged") from None
        if len(unpacked) > limit:
            raise Refused(f"unpacked, the gzip data is larger than {limit // 1024} KiB")
        if not stream.eof:
            raise Refused("the gzip data ends too early")
        data = stream.unused_data.lstrip(b"\0")
    return unpacked


# YAML.


def load(text: str) -> Node | None:
    """Parse one YAML document. ``None`` for an empty one; :class:`Refused` with line if bad."""
    import yaml  # not at the top: a boot without user-data need not pay for it

    try:
        return _build(_events(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        # libyaml's problem texts name rules, never the content: safe to print.
        rule = error.problem or error.context or "not understood"
        message = f"YAML: {rule}" + (f"; {_HINTS[rule]}" if rule in _HINTS else "")
        if line and _begins_with_tab(text, line):
            message = "YAML: a tab indents this line; use spaces"
        raise Refused(message, line, mark.column + 1 if mark else 0) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        raise Refused("YAML: not understood") from None


# What people mostly meant where libyaml names a rule.
_HINTS = {
    "found character that cannot start any token": "a text that begins with @, ` or % wants quotes",
    "mapping values are not allowed in this context": (
        'a text with ": " in it wants quotes; or this line begins too far to the right'
    ),
    "did not find expected '-' indicator": "this line and the items of the list do not line up",
    "did not find expected key": "this line does not line up with those that it belongs to",
    "could not find expected ':'": (
        "the lines of a text stand further to the right than its key; else this wants a key"
    ),
    "found unexpected end of stream": "a quote is not closed",
}


def _begins_with_tab(text: str, line: int) -> bool:
    at = 0
    for _ in range(line - 1):
        at = text.find("\n", at) + 1
        if not at:
            return False
    return re.compile(r" *\t").match(text, at) is not None


def _events(text: str) -> Iterator[Any]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return iter(yaml.parse(text, Loader=loader))


class _Open:
    """A collection whose end has not been seen yet."""

    def __init__(self, event: Any, is_table: bool) -> None:
        self.anchor: str | None = event.anchor
        self.is_table = is_table
        self.line: int = event.start_mark.line + 1
        self.column: int = event.start_mark.column + 1
        self.children: list[Node] = []
        self.weight = 1

    def close(self) -> Node:
        if not self.is_table:
            return Items(tuple(self.children), self.line, self.column, self.weight)
        pairs = list(zip(self.children[::2], self.children[1::2], strict=True))
        return Table(_entries(pairs), self.line, self.column, self.weight)


def _build(events: Iterator[Any]) -> Node | None:
    """The tree of an event stream, with a stack of its own: depth never becomes recursion."""
    import yaml

    root: Node | None = None
    stack: list[_Open] = []
    anchors: dict[str, Node] = {}
    documents = 0
    for event in events:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        anchor = None
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Refused("a second document begins here; put all into one", line, column)
            continue
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(stack) >= MAX_DEPTH:
                raise Refused(f"nested deeper than {MAX_DEPTH} levels", line, column)
            is_table = isinstance(event, yaml.MappingStartEvent)
            _check_tag(event, ("map",) if is_table else ("seq",))
            stack.append(_Open(event, is_table))
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = stack.pop()
            node, anchor = ended.close(), ended.anchor
        elif isinstance(event, yaml.ScalarEvent):
            node, anchor = _scalar(event), event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                if any(event.anchor == one.anchor for one in stack):
                    raise Refused("an alias to an anchor that is not complete here", line, column)
                message = "an alias to an anchor that is nowhere before it"
                hint = "a text that begins with * wants quotes"
                raise Refused(f"{message}; {hint}", line, column)
            node = anchors[event.anchor]
        else:
            continue
        if anchor is not None:
            anchors[anchor] = node
        if not stack:
            root = node
            continue
        stack[-1].children.append(node)
        stack[-1].weight += node.weight
        if stack[-1].weight > MAX_WEIGHT:
            raise Refused("too much content, counting what aliases repeat", line, column)
    return None if isinstance(root, Text) and root.null else root


def _check_tag(event: Any, allowed: tuple[str, ...]) -> None:
    tag: str = event.tag or "!"
    name = tag.removeprefix("tag:yaml.org,2002:")
    if tag != "!" and (name == tag or name not in allowed):
        mark = event.start_mark
        raise Refused(f"the tag {printable(tag)} is not taken", mark.line + 1, mark.column + 1)


def _scalar(event: Any) -> Text:
    _check_tag(event, ("str", "int", "float", "bool", "null", "binary"))
    text: str = event.value
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if any("\ud800" <= c <= "\udfff" for c in text if not c.isascii()):
        raise Refused("half of a surrogate pair is not a character", line, column)
    binary = None
    if event.tag and event.tag.endswith(":binary"):
        binary = unbase64(text)
        if binary is None:
            raise Refused("!!binary is not followed by base64", line, column)
    plain = event.implicit[0] and not event.style  # libyaml says "", Python None
    return Text(text, line, column, 1 + len(text) // 100, plain, binary)


def unbase64(text: str) -> bytes | None:
    """The bytes of base64 text (white space anywhere), or ``None`` if it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _entries(pairs: list[tuple[Node, Node]]) -> tuple[tuple[Text, Node], ...]:
    """Checked entries of a mapping, with ``<<`` merged in behind what is written out."""
    written: dict[str, tuple[Text, Node]] = {}
    merged: list[tuple[Text, Node]] = []
    for key, value in pairs:
        if not isinstance(key, Text):
            braces = '; for {{ … }} the first line must be "## template: jinja"'
            hint = braces if isinstance(key, Table) else ""
            raise Refused(f"a key must be a word{hint}", key.line, key.column)
        if key.plain and key.text == "<<":
            merged += _merge_sources(key, value)
            continue
        name = canonical(key.text)
        if name in written:
            first = written[name][0].line
            message = f'the key "{printable(key.text)}" stands on line {first} already'
            raise Refused(message, key.line, key.column)
        written[name] = (key, value)
    for key, value in merged:
        written.setdefault(canonical(key.text), (key, value))
    return tuple(written.values())


def _merge_sources(key: Text, value: Node) -> list[tuple[Text, Node]]:
    sources = value.items if isinstance(value, Items) else (value,)
    entries: list[tuple[Text, Node]] = []
    for source in sources:
        if not isinstance(source, Table):
            raise Refused('"<<" wants a mapping to merge', key.line, key.column)
        entries += source.entries
    return entries
