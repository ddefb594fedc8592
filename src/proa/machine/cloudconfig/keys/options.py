"""Options of a service that reach it as variables of its environment.

CoreOS's sections for services (etcd, fleet, locksmith, flannel) are all of this kind: each key has
a type, and each that is set becomes one variable. An empty text, ``false`` and ``0`` count as not
set, as they did there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from proa.machine.cloudconfig.parse import Node, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.hints import Literal
from proa.machine.record import dataclass

Kind = Literal["text", "flag", "number", "real"]

Variables = tuple[tuple[str, str], ...]
"""Names and values of an environment, in the order in which they are written."""

MAX_VALUE = 4096
"""Characters of one value; more is no setting but a mistake."""

_NUMBERS = {
    "number": re.compile(r"-?[0-9]{1,18}", re.ASCII),
    "real": re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII),
}


@dataclass(frozen=True)
class Option:
    """``words``: a regular expression that a whole value must match, and it in words."""

    kind: Kind = "text"
    words: tuple[str, str] | None = None
    secret: bool = False


def read_options(
    r: Reader,
    node: Node | None,
    key: str,
    options: Mapping[str, Option],
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The options that are set, by name, in the order of ``options``; values in plain form."""
    entries = r.table(node, key, options, elsewhere)
    found = {name: _value(r, entries.get(name), f"{key}.{name}", options[name]) for name in options}
    return {name: value for name, value in found.items() if value}


def _value(r: Reader, node: Node | None, key: str, option: Option) -> str:
    if option.kind == "flag":
        return "true" if r.flag(node, key) else ""
    text = r.text(node, key)
    if node is None or not text:
        return ""
    shown = "" if option.secret else f' "{printable(text)}"'
    if len(text) > MAX_VALUE or not text.isprintable():
        r.error(node, key, f"{key} must be one line of at most {MAX_VALUE} characters")
        return ""
    if option.kind in _NUMBERS and not _NUMBERS[option.kind].fullmatch(text):
        r.error(node, key, f"{key}{shown} is not a number")
        return ""
    if option.words and not re.fullmatch(option.words[0], text):
        r.error(node, key, f"{key}{shown} is not {option.words[1]}")
        return ""
    return "" if option.kind != "text" and not text.strip("-0.") else text


def quoted(text: str) -> str:
    """One word of a unit file that means exactly ``text`` (systemd.syntax(7), "Quoting"; ``%`` is
    for specifiers there). ``text`` is one line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def command_word(text: str) -> str:
    """One word of a command line in a unit file (``$`` is for variables there)."""
    return quoted(text).replace("$", "$$")


def environment_drop_in(variables: Variables, more: Iterable[str] = ()) -> bytes:
    """A drop-in that gives a service these variables; ``more`` are further lines of its section."""
    lines = [f"Environment={quoted(f'{name}={value}')}" for name, value in variables]
    return "".join(f"{line}\n" for line in ("[Service]", *lines, *more)).encode()
