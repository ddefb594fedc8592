"""MIME messages (RFC 2045 and 2046) taken apart, each part with the line where it stands.

The grammar of a head is left to the standard library; the structure is not: its parser does not
say on which line a part began, and follows a message as deep as it goes. Here depth and number
are bounded, and a message whose end is cut off is refused: half of a machine's parts would be
another machine.
"""

from __future__ import annotations

import binascii
import re

from proa.machine.cloudconfig.parse import Refused, printable, unbase64
from proa.machine.record import dataclass, field

MAX_PARTS = 100
MAX_NESTING = 4
"""How many multiparts may stand one in another."""
MAX_HEAD = 16 * 1024
"""Longest head of a message or part, in bytes."""

_FIRST_LINE = re.compile(rb"From |[!-9;-~]{1,76}:")
_TELLING = re.compile(rb"^(?:mime-version|content-type)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_END_OF_HEAD = re.compile(rb"^\r?\n", re.MULTILINE)
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


@dataclass(frozen=True)
class Leaf:
    """A part that holds no others.

    ``head_line`` is the line on which the part begins, counted from 1. ``lines_before`` is how
    many lines of the message stand before the content; ``None`` if the content was encoded, so
    that its lines are not lines of the message.
    """

    content_type: str
    content: bytes = field(repr=False)
    name: str
    head_line: int
    lines_before: int | None
    merge_type: str = ""
    launch_index: str = ""


def is_mime(data: bytes) -> bool:
    """Whether ``data`` begins with the head of a MIME message, perhaps after mbox's From line."""
    if not _FIRST_LINE.match(data):
        return False
    head = data[:MAX_HEAD]
    end = _END_OF_HEAD.search(head)
    return _TELLING.search(head[: end.start()] if end else head) is not None


def split(data: bytes) -> tuple[Leaf, ...]:
    """The leaves of a message in their order, or :class:`Refused` with the line."""
    found: list[Leaf] = []
    _split(data, 0, (), found)
    return tuple(found)


@dataclass(frozen=True)
class _Head:
    content_type: str
    boundary: bytes
    encoding: str
    name: str
    merge_type: str
    launch_index: str


def _head(text: str, line: int) -> _Head:
    # Not at the top: 1 MB that only a boot with a MIME message need pay for.
    from email.parser import HeaderParser

    try:
        head = HeaderParser().parsestr(text)
        return _Head(
            head.get_content_type() if "content-type" in head else "",
            str(head.get_boundary("")).encode("utf-8", "replace"),
            _word(head.get("content-transfer-encoding", "")).lower(),
            printable(head.get_filename("")),
            _word(head.get("merge-type") or head.get("x-merge-type") or ""),
            _word(head.get("launch-index", "")),
        )
    except Exception:  # the library stumbles over a strange head in many ways
        raise Refused("the head of this part is not understood", line) from None


def _split(data: bytes, before: int, around: tuple[bytes, ...], found: list[Leaf]) -> None:
    """Add the leaves of one message or part. ``before`` counts the lines before ``data``."""
    end = _END_OF_HEAD.search(data, 0, MAX_HEAD)
    if end is None:
        raise Refused("no empty line ends the head of this part", before + 1)
    head = _head(data[: end.start()].decode("utf-8", "replace"), before + 1)
    lines_of_head = data.count(b"\n", 0, end.end())
    if not head.content_type.startswith("multipart/"):
        if len(found) >= MAX_PARTS:
            raise Refused(f"more than {MAX_PARTS} parts", before + 1)
        content = data[end.end() :]
        if around:  # the line end before a boundary belongs to the boundary (RFC 2046, 5.1.1)
            content = content.removesuffix(b"\n").removesuffix(b"\r")
        leaf = Leaf(
            head.content_type,
            _decoded(content, head.encoding, before + lines_of_head + 1),
            head.name,
            before + 1,
            before + lines_of_head if head.encoding in _PLAIN_ENCODINGS else None,
            head.merge_type,
            head.launch_index,
        )
        found.append(leaf)
        return
    if not head.boundary:
        raise Refused("a multipart names no boundary", before + 1)
    if head.boundary in around:
        raise Refused("a part has the boundary of the part round it: it holds itself", before + 1)
    if len(around) >= MAX_NESTING:
        raise Refused(f"multiparts stand in one another deeper than {MAX_NESTING}", before + 1)
    _split_body(data[end.end() :], before + lines_of_head, (*around, head.boundary), found)


def _split_body(body: bytes, before: int, around: tuple[bytes, ...], found: list[Leaf]) -> None:
    mark = re.compile(rb"^--" + re.escape(around[-1]) + rb"(--)?[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
    start, line, counted = -1, before, 0
    for at in mark.finditer(body):
        if start >= 0:
            _split(body[start : at.start()], line, around, found)
        line += body.count(b"\n", counted, at.end())
        start = counted = at.end()
        if at[1]:
            return
    if start < 0:
        raise Refused("the boundary that a multipart names is nowhere in it", before + 1)
    last = before + body.count(b"\n") + (not body.endswith(b"\n"))
    raise Refused("the closing boundary is missing: the end is cut off", last)


def _decoded(content: bytes, encoding: str, line: int) -> bytes:
    if encoding in _PLAIN_ENCODINGS:
        return content
    if encoding == "base64":
        decoded = unbase64(content.decode("ascii", "replace"))
        if decoded is None:
            raise Refused("what is said to be base64 is not", line)
        return decoded
    if encoding == "quoted-printable":
        return binascii.a2b_qp(content)
    raise Refused(f'the transfer encoding "{printable(encoding)}" is not known', line)


def _word(value: object) -> str:
    return str(value).strip()[:1000]
