"""``write_files``: whole files, wherever the owner wants them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.parse import Node, Refused, Table, Text, gunzip, printable, unbase64
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import (
    CERTIFICATES,
    NAME,
    NO_CERTIFICATES,
    clean_path,
    is_url,
)
from proa.machine.record import dataclass, field

MAX_UNPACKED = 8 * 1024 * 1024
"""Most bytes that the compressed ``write_files`` of one document may unpack to, together."""


MAX_HEADERS = 32


@dataclass(frozen=True)
class Source:
    """Where the content of a file lies on the network."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class File:
    """A file; a ``mode`` or ``owner`` of ``None`` is that of the file that is added to."""

    path: str
    content: bytes = field(repr=False)
    mode: int | None = 0o644
    owner: str | None = "root:root"
    append: bool = False
    defer: bool = False
    source: Source | None = None
    has_content: bool = True
    """Whether there is content to fall back to where the source cannot be had."""


_MODE = re.compile(r"(0o?)?([0-7]{3,4})")


def read_file(r: Reader, node: Node, key: str) -> File | None:
    known = ("path", "content", "encoding", "permissions", "owner", "append", "source", "defer")
    entries = r.table(node, key, known)
    if not r.text(entries.get("path"), f"{key}.path"):
        if "content" in entries or "source" in entries:
            r.error(node, key, f"{key} has no path")
        else:  # a slip of a much copied example: "- owner: a" and "- path: b" as two items
            message = f"{key} has no path and no content; ignored"
            r.warn(node, key, f"{message}; does it belong to the next item?")
        return None
    path = read_place(r, entries.get("path"), f"{key}.path")
    if path is not None and path.startswith(CERTIFICATES):
        message = f"{key}.path is written, but nothing reads it: {NO_CERTIFICATES}"
        r.warn(entries["path"], f"{key}.path", message)
    content = read_content(r, entries, key)
    append = r.flag(entries.get("append"), f"{key}.append")
    defer = r.flag(entries.get("defer"), f"{key}.defer")
    source = read_source(r, entries.get("source"), f"{key}.source")
    mode: int | None = read_mode(r, entries.get("permissions"), f"{key}.permissions")
    owner: str | None = read_owner(r, entries.get("owner"), f"{key}.owner")
    if append:
        mode = mode if "permissions" in entries else None
        owner = owner if "owner" in entries else None
    has_content = source is None or "content" in entries
    return (
        None
        if path is None
        else File(path, content, mode, owner, append, defer, source, has_content)
    )


_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")


def read_source(r: Reader, node: Node | None, key: str) -> Source | None:
    """An address and the headers to ask it with. Either may hold a secret: neither is shown."""
    entries = r.table(node, key, ("uri", "headers"))
    url = r.text(entries.get("uri"), f"{key}.uri")
    if not url:
        return None
    if not is_url(url):
        r.error(entries["uri"], f"{key}.uri", f"{key}.uri is not an http or https address")
    return Source(url, _headers(r, entries.get("headers"), f"{key}.headers"))


def _headers(r: Reader, node: Node | None, key: str) -> tuple[tuple[str, str], ...]:
    if node is None or (isinstance(node, Text) and node.null):
        return ()
    if not isinstance(node, Table) or len(node.entries) > MAX_HEADERS:
        r.error(node, key, f"{key} wants a mapping of at most {MAX_HEADERS} headers")
        return ()
    headers = tuple((name.text, r.text(value, key) or "") for name, value in node.entries)
    for name, text in headers:
        if not _HEADER.fullmatch(name) or not (text.isascii() and text.isprintable()):
            r.error(node, key, f"{key}: one of these cannot be a header of HTTP")
    return headers


def read_content(r: Reader, entries: Mapping[str, Node], key: str) -> bytes:
    node = entries.get("content")
    text = r.text(node, f"{key}.content")
    encoding = r.text(entries.get("encoding"), f"{key}.encoding") or ""
    data = text.encode() if text else b""
    if isinstance(node, Text) and node.binary is not None:
        data = node.binary
    packing, _, wrapping = encoding.rpartition("+")
    steps = {("", ""), ("", "b64"), ("", "base64"), ("", "gz"), ("", "gzip")}
    steps |= {("", "text/plain")}
    steps |= {(gz, b64) for gz in ("gz", "gzip") for b64 in ("b64", "base64")}
    if (packing, wrapping) not in steps:
        message = f'{key}.encoding "{printable(encoding)}" is not known; take base64 or gz+base64'
        r.error(entries["encoding"], f"{key}.encoding", message)
        return b""
    if wrapping in ("b64", "base64"):
        unwrapped = unbase64(data.decode("latin-1"))
        if unwrapped is None:
            r.error(node or entries["encoding"], f"{key}.content", f"{key}.content is not base64")
            return b""
        data = unwrapped
    if "gz" in (packing[:2], wrapping[:2]):
        try:
            data = gunzip(data, MAX_UNPACKED - r.unpacked)
        except Refused as refused:
            message = f"{key}.content: {refused.problem.message}"
            r.error(node or entries["encoding"], f"{key}.content", message)
            return b""
        r.unpacked += len(data)
    return data


def read_mode(r: Reader, node: Node | None, key: str) -> int:
    text = r.text(node, key)
    if node is None or not text:
        return 0o644
    match = _MODE.fullmatch(text)
    if match is None:
        r.error(node, key, f'{key} "{printable(text)}" is not an octal mode like "0644"')
        return 0o644
    return int(match[2], 8)


def read_owner(r: Reader, node: Node | None, key: str) -> str:
    text = r.text(node, key)
    if node is None or not text:
        return "root:root"
    user, colon, group = text.partition(":")
    if not NAME.fullmatch(user) or (colon and group and not NAME.fullmatch(group)):
        r.error(node, key, f'{key} "{printable(text)}" is not a user or user:group')
    return text


def read_place(r: Reader, node: Node | None, key: str) -> str | None:
    text = r.text(node, key)
    if node is None or not text:
        return None
    try:
        path = clean_path(text)
    except ValueError as error:
        r.error(node, key, f'{key} "{printable(text)}" {error}')
        return None
    if ":" in path:
        r.error(node, key, f'{key} "{printable(text)}" may not contain a colon')
    return path
