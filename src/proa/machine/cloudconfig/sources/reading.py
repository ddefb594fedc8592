"""Reading what others wrote: JSON and YAML metadata, without ever trusting a type or a size.

What is not as it should be becomes a problem in a list, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Items,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    decode,
    gunzip,
    load,
    printable,
    unbase64,
)
from proa.machine.hints import Any

MAX_KEYS = 256
"""Most ssh keys that are taken from metadata."""
MAX_TEXT = 256
"""Longest name, identifier or address in metadata, in characters."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]+")


def json_object(data: bytes, what: str, problems: list[Problem]) -> dict[str, Any]:
    """The JSON object in ``data``; an empty one, and a problem, if there is none."""
    import json

    if not data.strip():
        return {}
    try:
        content = json.loads(data)
        if b"\\u" in data:  # half of a surrogate pair is no character, and could not be written
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        problems.append(Problem("error", f"{what} is not JSON; ignored"))
        return {}
    if not isinstance(content, dict):
        problems.append(Problem("error", f"{what} is not a JSON object; ignored"))
        return {}
    return content


def yaml_table(data: bytes, what: str, problems: list[Problem]) -> Table | None:
    """The YAML mapping in ``data`` (JSON is one too); ``None``, and a problem, if there is none."""
    try:
        if len(data) > MAX_BYTES:
            raise Refused(f"larger than {MAX_BYTES // 1024} KiB")
        root = load(decode(data))
    except Refused as refused:
        problem = refused.problem
        message = f"{what}: {problem.message}; ignored"
        problems.append(Problem("error", message, problem.line, problem.column))
        return None
    if root is not None and not isinstance(root, Table):
        problems.append(Problem("error", f"{what} is not a mapping; ignored", root.line))
        return None
    return root


def plain(node: Node | None) -> Any:
    """A tree as JSON values. Its depth is bounded by :mod:`parse`, so this may call itself."""
    if isinstance(node, Text):
        if node.null:
            return None
        if node.plain and _INTEGER.fullmatch(node.text):
            return int(node.text)
        return node.text.lower() == "true" if node.plain and _is_bool(node.text) else node.text
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key.text: plain(value) for key, value in node.entries} if node else None


def _is_bool(word: str) -> bool:
    return word in ("true", "false", "True", "False")


def flow(node: Node) -> bytes:
    """A tree as YAML again, in one line: for a part of a document that another reader takes.

    What was plain stays plain, so that a number or a yes still is one.
    """
    import json

    def write(part: Node) -> str:
        if isinstance(part, Text):
            safe = part.plain and _WORD.fullmatch(part.text)
            return "null" if part.null else part.text if safe else json.dumps(part.text)
        if isinstance(part, Items):
            return f"[{', '.join(write(item) for item in part.items)}]"
        entries = (f"{json.dumps(key.text)}: {write(value)}" for key, value in part.entries)
        return f"{{{', '.join(entries)}}}"

    return write(node).encode()


def members(node: Node | None) -> dict[str, Node]:
    """The entries of a mapping by canonical name; none for anything else."""
    if not isinstance(node, Table):
        return {}
    return {canonical(key.text): value for key, value in node.entries}


def node_text(node: Node | None) -> str:
    return node.text if isinstance(node, Text) and not node.null else ""


def node_texts(node: Node | None) -> Iterator[str]:
    """Every text in a list, or among the values of a mapping (the EC2 form nests them)."""
    if isinstance(node, Text) and not node.null:
        yield node.text
    elif isinstance(node, Items):
        for item in node.items:
            yield from node_texts(item)
    elif isinstance(node, Table):
        for _, value in node.entries:
            yield from node_texts(value)


def at(value: Any, *path: str | int) -> Any:
    """What stands at a path of keys and positions in JSON values; ``None`` if nothing does."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and len(value) > step else None
    return value


def text(value: Any) -> str:
    """A JSON text or whole number as one short printable line; empty for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 128:
        value = str(value)
    return printable(value.strip(), MAX_TEXT) if isinstance(value, str) else ""


def keys(value: Any, inside: str = "") -> tuple[str, ...]:
    """The ssh keys in a JSON list, among the values of an object, or in the lines of a text.

    With ``inside``, a key is the member of that name of each item.
    """
    if isinstance(value, str):
        value = value.splitlines()
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    texts = (at(item, inside) if inside else item for item in found)
    return tuple(key for key in texts if isinstance(key, str) and key.strip())[:MAX_KEYS]


def addresses(given: Mapping[str, Any]) -> dict[str, str]:
    """Those of ``given`` that are addresses of their family. They stand in for words like
    ``$private_ipv4`` in the owner's document, so nothing else may pass."""
    given = {name: value for name, value in given.items() if value}
    if not given:
        return {}
    import socket  # not for a disk that names no address

    found = {}
    for name, value in given.items():
        family = socket.AF_INET6 if name.endswith("ipv6") else socket.AF_INET
        # A list of several, one a line: the first is the machine's own.
        address = value.split()[0] if isinstance(value, str) and value.split() else ""
        try:
            socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        found[name] = address
    return found


def unpack(data: bytes, encoding: str, what: str, problems: list[Problem]) -> bytes | None:
    """``data`` freed from base64 and gzip as ``encoding`` says; ``None``, and a problem, if bad."""
    steps = {
        "": "",
        "base64": "b",
        "b64": "b",
        "gzip": "g",
        "gz": "g",
        "gzip+base64": "bg",
        "gz+base64": "bg",
        "gzip+b64": "bg",
        "gz+b64": "bg",
    }.get(encoding.strip().lower())
    if steps is None:
        message = f"{what}: the encoding {printable(encoding)} is not known; ignored"
        problems.append(Problem("error", message))
        return None
    unpacked: bytes | None = data
    if "b" in steps:
        unpacked = unbase64(data.decode("ascii", "replace"))
        if unpacked is None:
            problems.append(Problem("error", f"{what} is not base64; ignored"))
    if "g" in steps and unpacked is not None:
        try:
            unpacked = gunzip(unpacked, MAX_BYTES)
        except Refused as refused:
            problems.append(Problem("error", f"{what}: {refused.problem.message}; ignored"))
            return None
    return unpacked
