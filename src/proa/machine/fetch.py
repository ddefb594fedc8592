"""Getting files over HTTP: bounded in memory and in patience, and able to go on where it stopped.

Nothing here decides whether bytes are the right ones; that is done by hash, from signed metadata.
"""

from __future__ import annotations

import functools
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proa.machine.files import CHUNK

USER_AGENT = "proa/0.1.0"

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how slow is too slow: update_engine's numbers.

    A transfer is stalled that brings fewer than ``slow_bytes`` bytes per second for ``slow_for``
    seconds. ``retries`` are the tries in a row that may bring next to nothing, which is less than
    that many bytes: a mirror that sends a byte and breaks off, again and again, is stalled too.
    ``rate`` is the most that is asked for, in bytes per second; 0 is as fast as it comes.
    """

    connect: float = 30
    slow_bytes: int = 10
    slow_for: float = 90
    retries: int = 5
    pause: float = 1
    longest_pause: float = 30
    rate: int = 0


PATIENCE = Patience()


class FetchError(Exception):
    """A transfer failed. ``status`` is the HTTP status, or None where there was no answer.

    ``temporary`` says that the same request may well work later.
    """

    def __init__(self, message: str, *, status: int | None = None, temporary: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.temporary = temporary


class WrongSize(FetchError):
    """The server has another file under this address than the one that was signed."""


def post(url: str, body: bytes, content_type: str, limit: int, patience: Patience) -> bytes:
    """POST ``body`` and return the answer of at most ``limit`` bytes, or raise FetchError."""
    headers = {"Content-Type": content_type}
    with _open(_request(url, body, headers), patience) as response:
        return b"".join(_bounded(response, limit, url, patience))


def get(url: str, limit: int, patience: Patience) -> Iterator[bytes]:
    """Yield a small file of at most ``limit`` bytes, or raise FetchError."""
    with _open(_request(url), patience) as response:
        yield from _bounded(response, limit, url, patience)


def _bounded(response: Any, limit: int, url: str, patience: Patience) -> Iterator[bytes]:
    total = 0
    for chunk in _chunks(response, url, patience):
        total += len(chunk)
        if total > limit:
            raise FetchError(f"{url}: the answer is longer than {limit} bytes", temporary=False)
        yield chunk


def download(
    url: str,
    start: int,
    size: int,
    patience: Patience,
    pause: Callable[[float], None] = time.sleep,
    *,
    end: int | None = None,
) -> Iterator[bytes]:
    """Yield the bytes of ``url`` from ``start`` to ``end`` (or all), retrying.

    ``size`` is the length of the whole file. After an interruption it goes on where it stopped.
    Raises :class:`FetchError` when too many tries in a row brought nothing, and :class:`WrongSize`
    where the file is not ``size`` long.
    """
    end = size if end is None else end
    empty_tries = 0
    while start < end:
        came = 0
        try:
            for chunk in _range(url, start, end, size, patience):
                start += len(chunk)
                came += len(chunk)
                if came >= patience.slow_bytes * patience.slow_for:
                    empty_tries = 0
                yield chunk
            if start >= end:
                return
            failure = FetchError(f"{url}: the transfer ended {end - start} bytes early")
        except FetchError as error:
            if not error.temporary:
                raise
            failure = error
        empty_tries += 1
        if empty_tries > patience.retries:
            raise failure
        pause(min(patience.pause * 2 ** (empty_tries - 1), patience.longest_pause))


def download_from(
    urls: Sequence[str],
    start: int,
    size: int,
    patience: Patience,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[bytes]:
    """Like :func:`download`, from one mirror after the other as long as each fails."""
    for number, url in enumerate(urls, start=1):
        try:
            for chunk in download(url, start, size, patience, pause):
                start += len(chunk)
                yield chunk
            return
        except FetchError:
            if number == len(urls):
                raise


def _range(url: str, start: int, end: int, size: int, patience: Patience) -> Iterator[bytes]:
    """Yield what one request brings, from ``start`` on and never beyond ``end``."""
    if end < size:
        headers = {"Range": f"bytes={start}-{end - 1}"}
    else:
        headers = {"Range": f"bytes={start}-"} if start else {}
    with _open(_request(url, headers=headers), patience) as response:
        skip = 0
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise FetchError(f"{url}: the server sent another range than asked for")
            total: int | None = int(match[3])
        else:
            # A server that does not know ranges sends it all; what is here already is skipped.
            skip = start
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isascii() and length.isdigit() else None
        if total is not None and total != size:
            raise WrongSize(f"{url} has {total} bytes; {size} were signed", temporary=False)
        for chunk in _chunks(response, url, patience):
            wanted = chunk[skip:]
            skip -= len(chunk) - len(wanted)
            if end == size and len(wanted) > size - start:
                raise WrongSize(f"{url} is longer than the {size} bytes signed", temporary=False)
            # A server that does not know ranges goes on behind the end of ours.
            wanted = wanted[: end - start]
            start += len(wanted)
            if wanted:
                yield wanted
            if start == end < size:
                return


def _request(
    url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> urllib.request.Request:
    if not url.startswith(("http://", "https://")):
        raise FetchError(f"{url}: only http and https are spoken", temporary=False)
    # identity: a file that is known by its hash must arrive as it is.
    own = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    return urllib.request.Request(url, body, {**own, **(headers or {})})  # noqa: S310


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere, but not to another protocol (the library would: to ftp)."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.HTTPError(newurl, code, "redirects to no http address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _open(request: urllib.request.Request, patience: Patience) -> Any:
    url = request.full_url
    try:
        return _opener().open(request, timeout=patience.connect)
    except urllib.error.HTTPError as error:
        with error:
            raise FetchError(
                f"{url}: the server answered {error.code} {error.reason}",
                status=error.code,
                temporary=error.code >= 500 or error.code in (408, 416, 425, 429),
            ) from None
    except urllib.error.URLError as error:
        raise FetchError(f"{url}: {_words(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{url}: {_words(error)}") from None


def _chunks(response: Any, url: str, patience: Patience) -> Iterator[bytes]:
    """Yield what comes, as it comes, while it comes fast enough."""
    since, received = time.monotonic(), 0
    # With a rate, what is not read fills the socket's buffer, and TCP slows the sender down.
    most = min(CHUNK, max(1024, patience.rate // 10)) if patience.rate else CHUNK
    while True:
        try:
            # read1, not read: what has arrived, without waiting until a whole chunk is there.
            chunk: bytes = response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{url}: {_words(error)}") from None
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        if patience.rate:
            time.sleep(max(0.0, received / patience.rate - (time.monotonic() - since)))
        now = time.monotonic()
        if now - since > patience.slow_for:
            if received < patience.slow_bytes * (now - since):
                raise FetchError(f"{url}: stalled at {received} bytes in {now - since:.0f} s")
            since, received = now, 0


def _words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
