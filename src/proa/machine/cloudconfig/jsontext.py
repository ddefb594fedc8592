"""JSON (RFC 8259) as the same tree of texts that :func:`parse.load` makes of YAML.

JSON is nearly YAML, but libyaml knows no surrogate pairs and no line end before a colon, and takes
much that is no JSON. A string becomes a quoted text; a number, ``true``, ``false`` and ``null`` a
plain one, as written.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from proa.machine.cloudconfig.parse import (
    MAX_DEPTH,
    MAX_WEIGHT,
    Items,
    Node,
    Refused,
    Table,
    Text,
    printable,
)

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\.)*+"')
_WORD = re.compile(
    r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)(?![\w.+-])"
)


def load_json(text: str) -> Node:
    """Parse one JSON value; :class:`Refused` with line and column if it is none."""
    return _Parser(text).value()


class _Open:
    """An object or array whose end has not been seen yet."""

    def __init__(self, is_table: bool, line: int, column: int) -> None:
        self.is_table = is_table
        self.line = line
        self.column = column
        self.keys: dict[str, Text] = {}
        self.key: Text | None = None
        self.entries: list[tuple[Text, Node]] = []
        self.items: list[Node] = []
        self.weight = 1

    def add(self, node: Node) -> None:
        if self.key is None:
            self.items.append(node)
        else:
            self.entries.append((self.key, node))
        self.weight += node.weight + self.is_table

    def close(self) -> Node:
        if self.is_table:
            return Table(tuple(self.entries), self.line, self.column, self.weight)
        return Items(tuple(self.items), self.line, self.column, self.weight)


class _Parser:
    """One walk over the text, with a stack of its own: depth never becomes recursion."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line_starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def value(self) -> Node:
        stack: list[_Open] = []
        while True:
            node = self._begin(stack)
            while node is not None:  # complete: it may complete what is around it, too
                if not stack:
                    if self._peek():
                        raise self._refused("JSON: something follows the end of the document")
                    return node
                around = stack[-1]
                around.add(node)
                if around.weight > MAX_WEIGHT:
                    raise self._refused("too much content")
                node = self._after(stack)

    def _begin(self, stack: list[_Open]) -> Node | None:
        """What begins here: a whole value, or ``None`` for one that is open now."""
        char = self._peek()
        line, column = self._place(self.at)
        if char in ("{", "["):
            if len(stack) >= MAX_DEPTH:
                raise self._refused(f"nested deeper than {MAX_DEPTH} levels")
            self.at += 1
            opened = _Open(char == "{", line, column)
            if self._peek() == ("}" if opened.is_table else "]"):
                self.at += 1
                return opened.close()
            stack.append(opened)
            if opened.is_table:
                self._key(opened)
            return None
        if char == '"':
            return self._string()
        if found := _WORD.match(self.text, self.at):
            self.at = found.end()
            return Text(found[0], line, column, 1 + len(found[0]) // 100, plain=True)
        raise self._refused("JSON: a value should stand here")

    def _after(self, stack: list[_Open]) -> Node | None:
        """Past a comma, to the next value; or the collection that ends here."""
        opened = stack[-1]
        end = "}" if opened.is_table else "]"
        char = self._peek()
        if char == end:
            self.at += 1
            return stack.pop().close()
        if char != ",":
            raise self._refused(f'JSON: "," or "{end}" should stand here')
        self.at += 1
        if self._peek() == end:
            raise self._refused(f'JSON: a comma before "{end}"')
        if opened.is_table:
            self._key(opened)
        return None

    def _key(self, opened: _Open) -> None:
        if self._peek() != '"':
            raise self._refused("JSON: a key in quotes should stand here")
        key = self._string()
        if key.text in opened.keys:
            first = opened.keys[key.text].line
            message = f'the key "{printable(key.text)}" stands on line {first} already'
            raise Refused(message, key.line, key.column)
        opened.keys[key.text] = opened.key = key
        if self._peek() != ":":
            raise self._refused('JSON: ":" should stand here')
        self.at += 1

    def _string(self) -> Text:
        line, column = self._place(self.at)
        found = _STRING.match(self.text, self.at)
        if found is None:
            raise Refused("JSON: a string that does not end on its line", line, column)
        try:
            text: str = json.loads(found[0])
        except ValueError:
            raise Refused("JSON: an escape in this string is not known", line, column) from None
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise Refused("half of a surrogate pair is not a character", line, column)
        self.at = found.end()
        return Text(text, line, column, 1 + len(text) // 100)

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.line_starts, at)
        return line, at - self.line_starts[line - 1] + 1

    def _refused(self, message: str) -> Refused:
        return Refused(message, *self._place(self.at))
