"""What a document points to instead of saying it: a ``data:`` address, or one to be fetched."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

from proa.machine.cloudconfig.parse import Refused, unbase64
from proa.machine.hints import Any
from proa.machine.record import dataclass, field

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_STEP = 1 << 20
"""Most bytes that are unpacked at once."""
DIGEST = re.compile(r"sha512-[0-9a-f]{128}|sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class Resource:
    """Where content is to be fetched from, and how to know that it is the right one."""

    url: str = field(repr=False)  # it may hold a password
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    verification: str | None = None
    """``sha512-…`` or ``sha256-…`` in lower-case hex, of the unpacked content."""
    compression: str | None = None
    """``gzip``, or nothing."""

    def opened(self, pieces: Iterable[bytes], limit: int) -> Iterator[bytes]:
        """What was fetched piece by piece, unpacked; at the end :class:`Refused` if it is not
        what ``verification`` names, and before that if it is more than ``limit`` bytes."""
        name, _, wanted = (self.verification or "sha256-").partition("-")
        import hashlib  # few files come over the network

        digest = hashlib.new(name)
        total = 0
        for piece in _unpacked(pieces) if self.compression == "gzip" else pieces:
            total += len(piece)
            if total > limit:
                raise Refused(f"it is larger than {limit // 1024} KiB")
            digest.update(piece)
            yield piece
        if wanted and digest.hexdigest() != wanted:
            raise Refused(f"its {name} is not the one that verification names")

    def content(self, data: bytes, limit: int) -> bytes:
        """The same for data that was fetched whole."""
        return b"".join(self.opened((data,), limit))


def _unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """gzip data (RFC 1952), of one member or several."""
    stream = zlib.decompressobj(wbits=31)
    for piece in pieces:
        while piece:
            if stream.eof:
                piece = piece.lstrip(b"\0")
                if not piece:
                    break
                stream = zlib.decompressobj(wbits=31)
            yield _some(stream, piece)
            piece = stream.unused_data if stream.eof else stream.unconsumed_tail
    while not stream.eof:
        rest = _some(stream, b"")  # what the last step left inside
        if not rest:
            raise Refused("the gzip data ends too early")
        yield rest


def _some(stream: Any, piece: bytes) -> bytes:
    try:
        out: bytes = stream.decompress(piece, _STEP)
    except zlib.error:
        raise Refused("the gzip data is damaged") from None
    return out


def data_url(url: str) -> bytes:
    """The bytes in a ``data:`` address (RFC 2397), or :class:`Refused`."""
    from urllib.parse import unquote_to_bytes  # only documents with such addresses pay for it

    head, comma, body = url.partition(",")
    if not comma:
        raise Refused("a data: address has a comma before its data")
    if _BROKEN_ESCAPE.search(body):
        raise Refused("in a data: address % is followed by two hexadecimal digits")
    data = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        unwrapped = unbase64(data.decode("latin-1"))
        if unwrapped is None:
            raise Refused("the data: address does not hold base64")
        return unwrapped
    return data
