"""Reading the nodes of a document as what a key wants; each problem with its line.

An *error* refuses the whole document, so that a machine is never half of what its file says. A
*warning* leaves out one thing and says so by name.

Texts taken from the document are quoted in a problem only where they cannot be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from proa.machine.cloudconfig.parse import (
    Items,
    Level,
    Node,
    Problem,
    Table,
    Text,
    canonical,
    printable,
)
from proa.machine.cloudconfig.values import keys_in
from proa.machine.hints import TypeVar

T = TypeVar("T")


MAX_WORDS = 1000
"""Most words that one text may be a list of."""

MAX_PROBLEMS = 100
"""How many problems of one document are told; the others are only counted."""


class Reader:
    """Collects problems while values are read; a value with a problem reads as absent."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.untold = 0
        self.worst_untold: Level = "warning"
        self.unpacked = 0

    def error(self, node: Node, key: str, message: str) -> None:
        self._add(Problem("error", message, node.line, node.column, key))

    def warn(self, node: Node, key: str, message: str) -> None:
        self._add(Problem("warning", message, node.line, node.column, key))

    def _add(self, problem: Problem) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
            return
        self.untold += 1
        if problem.level == "error":
            self.worst_untold = "error"

    def told(self) -> tuple[Problem, ...]:
        """The problems in the order of their lines, and how many more there are."""
        problems = sorted(self.problems, key=lambda p: (p.line, p.column))
        if self.untold:
            problems.append(Problem(self.worst_untold, f"and {self.untold} more problems"))
        return tuple(problems)

    def table(
        self,
        node: Node | None,
        key: str,
        known: Collection[str],
        elsewhere: Mapping[str, str] | None = None,
    ) -> dict[str, Node]:
        """The entries under known keys; each other key is warned of by name and line."""
        if node is None or (isinstance(node, Text) and node.null):
            return {}
        if not isinstance(node, Table):
            self.error(node, key, f"{key or 'the document'} wants a mapping (key: value)")
            return {}
        entries: dict[str, Node] = {}
        for word, value in node.entries:
            name = canonical(word.text)
            full = f"{key}.{printable(name)}" if key else printable(name)
            if name in known:
                entries[name] = value
            elif elsewhere and name in elsewhere:
                self.warn(word, full, f"{full} {elsewhere[name]}")
            else:
                guess = None if self.untold else nearest(name, known)
                hint = f'; did you mean "{guess}"?' if guess else ""
                message = f"{full} is not a known key; ignored{hint}"
                place = (word.line, word.column)
                self._add(Problem("warning", message, *place, full, guess or ""))
        return entries

    def items(self, node: Node | None, key: str) -> tuple[Node, ...]:
        if node is None or (isinstance(node, Text) and node.null):
            return ()
        if not isinstance(node, Items):
            self.error(node, key, f"{key} wants a list (lines that begin with - )")
            return ()
        return node.items

    def each(
        self, node: Node | None, key: str, one: Callable[[Reader, Node, str], T | None]
    ) -> tuple[T, ...]:
        """Each item of a list, read by ``one``; what it leaves out is left out."""
        found = [one(self, item, f"{key}[{i}]") for i, item in enumerate(self.items(node, key))]
        return tuple(item for item in found if item is not None)

    def text(self, node: Node | None, key: str) -> str | None:
        if node is None or (isinstance(node, Text) and node.null):
            return None
        if not isinstance(node, Text):
            self.error(node, key, f"{key} wants a text{a_colon_in(node)}")
            return None
        return node.text

    def texts(self, node: Node | None, key: str) -> tuple[str, ...]:
        found = [self.text(n, f"{key}[{i}]") for i, n in enumerate(self.items(node, key))]
        return tuple(text for text in found if text)

    def words(self, node: Node | None, key: str) -> tuple[str, ...]:
        """Texts in a list, or in one text with commas (cloud-init's other form)."""
        if isinstance(node, Text) and not node.null:
            parts = node.text.replace(",", " ").split(None, MAX_WORDS)
            if len(parts) > MAX_WORDS:
                self.error(node, key, f"{key} has more than {MAX_WORDS} words; give a list")
        else:
            parts = [text.strip() for text in self.texts(node, key)]
        return tuple(dict.fromkeys(part for part in parts if part))

    def maybe(self, node: Node | None, key: str) -> bool | None:
        """A flag that may be absent."""
        return None if self.text(node, key) is None else self.flag(node, key)

    def flag(self, node: Node | None, key: str, absent: bool = False) -> bool:
        text = self.text(node, key)
        if node is None or text is None:
            return absent
        word = text.lower()  # the words of YAML 1.1, and the numbers that cloud-init takes too
        if word not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            self.error(node, key, f"{key} wants true or false")
        return word in ("true", "yes", "on", "1")

    def ssh_keys(self, node: Node | None, key: str) -> tuple[str, ...]:
        """Public keys; one that is none is left out, so that the others still open the door."""
        nodes: tuple[Node, ...] = (node,) if isinstance(node, Text) else ()
        if isinstance(node, Table):  # cloud-init: names that mean nothing, with keys
            nodes = tuple(value for _, value in node.entries)
        elif not nodes:
            nodes = self.items(node, key)
        keys: list[str] = []
        for index, item in enumerate(nodes):
            good, bad = keys_in(self.text(item, f"{key}[{index}]") or "")
            keys += good
            if bad:  # it may be a private key: never show it
                message = f"{key}[{index}] is not a public ssh key; left out"
                self.warn(item, f"{key}[{index}]", message)
        return tuple(dict.fromkeys(keys))


def a_colon_in(node: Node) -> str:
    """What to say behind "wants a text" where a text with ": " in it was read as a mapping."""
    one = isinstance(node, Table) and len(node.entries) == 1
    return '; a text with ": " in it wants quotes' if one else ""


def nearest(word: str, known: Collection[str]) -> str | None:
    from difflib import get_close_matches  # only a misspelt document pays for it

    return next(iter(get_close_matches(word[:60], known, n=1, cutoff=0.7)), None)
