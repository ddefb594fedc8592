"""The examples of docs/cloud-config-guide.md, taken out of the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/cloud-config-guide.md"

_BLOCK = re.compile(r"^```(\w+)(?: ([a-z-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (\d+)\. (.*)$", re.MULTILINE)
_MAKES = re.compile(r"^\*\*Makes\*\* (.*)\.$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """``files`` are those of a ``cidata`` disk by name; ``makes`` is what the page says that comes
    of them; ``shown`` are commands and what they print."""

    number: int
    title: str
    files: dict[str, str]
    makes: tuple[str, ...]
    shown: tuple[tuple[str, str], ...]


def examples() -> tuple[Example, ...]:
    text = PAGE.read_text()
    pieces = _HEADING.split(text)
    usual = {name: body for _, name, body in _BLOCK.findall(pieces[0]) if name}
    return tuple(
        _example(int(number), title, body, usual)
        for number, title, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
    )


def _example(number: int, title: str, body: str, usual: dict[str, str]) -> Example:
    blocks = _BLOCK.findall(body)
    files = {name: content for _, name, content in blocks if name}
    makes = _MAKES.search(body)
    consoles = "".join(content for language, _, content in blocks if language == "console")
    return Example(
        number,
        title,
        {**usual, **files},
        tuple(re.findall(r"`([^`]+)`", makes[1])) if makes else (),
        tuple(_commands(consoles)),
    )


def _commands(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for chunk in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = chunk.partition("\n")
        found.append((command, printed.rstrip("\n")))
    return found
