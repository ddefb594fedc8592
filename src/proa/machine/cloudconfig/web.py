"""Getting what a document only points at: one small GET, bounded in size, time and where it goes.

What fails is told with the host alone: a path, a question or a user name may be a secret.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

from proa.machine.cloudconfig.machine import FetchFailed
from proa.machine.cloudconfig.values import basic_authorization, is_url

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of what is held in memory; a download is not."""

TIMEOUT = 10.0
"""Seconds without a byte."""

DEADLINE = 60.0
"""Seconds for all tries together."""

DOWNLOAD_DEADLINE = 600.0
"""The same for a file that goes straight to the disk."""

TRIES = 4
"""As cloud-init: one, and three more for what may pass (no answer, 5xx, 429)."""

USER_AGENT = "proa-cloudinit"


T = TypeVar("T")


class _Interrupted(Exception):
    """The answer ended too early; another try may bring it whole."""


def fetch(
    url: str, headers: Mapping[str, str], pause: Callable[[float], None] = time.sleep
) -> bytes:
    """The body of the answer, or :class:`FetchFailed`. Only http and https, redirects included."""
    return _ask(url, headers, pause, time.monotonic() + DEADLINE, _body)


def download(
    url: str,
    headers: Mapping[str, str],
    store: Callable[[Iterable[bytes]], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Give the answer to ``store`` piece by piece, however long it is; anew for each try.

    Raises :class:`FetchFailed`, and what ``store`` raises.
    """
    deadline = time.monotonic() + DOWNLOAD_DEADLINE
    _ask(url, headers, pause, deadline, lambda answer, *rest: store(_pieces(answer, *rest)))


def _ask(
    url: str,
    headers: Mapping[str, str],
    pause: Callable[[float], None],
    deadline: float,
    take: Callable[[IO[bytes], float, str], T],
) -> T:
    request, place = _request(url, headers)
    opener = urllib.request.build_opener(_Redirects)
    failure = ""
    for attempt in range(TRIES):
        if attempt:
            if time.monotonic() >= deadline:
                break
            pause(float(2 ** (attempt - 1)))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return take(answer, deadline, place)
        except urllib.error.HTTPError as error:
            error.close()
            failure = f"{place}: HTTP {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except urllib.error.URLError as error:
            # Its reason may be a text of urllib's with the whole address, or an OSError without.
            reason = error.reason
            cause = reason.strerror if isinstance(reason, OSError) else None
            failure = f"{place}: {cause or 'no connection'}"
        except _Interrupted as interrupted:
            failure = f"{place}: {interrupted}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = f"{place}: {type(error).__name__}"
    raise FetchFailed(failure)


def _pieces(answer: IO[bytes], deadline: float, place: str) -> Iterator[bytes]:
    while True:
        try:
            piece = answer.read(64 * 1024)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(type(error).__name__) from None
        if not piece:
            break
        if time.monotonic() > deadline:
            raise FetchFailed(f"{place}: the answer takes more than {DOWNLOAD_DEADLINE:.0f} s")
        yield piece
    if getattr(answer, "length", None):  # what is still to come (http.client)
        raise _Interrupted("the answer ended too early")


def _body(answer: IO[bytes], deadline: float, place: str) -> bytes:
    parts: list[bytes] = []
    total = 0
    while chunk := answer.read(64 * 1024):
        total += len(chunk)
        if total > MAX_ANSWER:
            raise FetchFailed(f"{place}: the answer is larger than {MAX_ANSWER // 1024} KiB")
        if time.monotonic() > deadline:
            raise FetchFailed(f"{place}: the answer takes more than {DEADLINE:.0f} s")
        parts.append(chunk)
    return b"".join(parts)


def _request(url: str, headers: Mapping[str, str]) -> tuple[urllib.request.Request, str]:
    """The request, a user before the host made a header of it, and the host to name it by."""
    if not is_url(url):
        raise FetchFailed("not an http or https address")
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urllib.parse.urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    request = urllib.request.Request(bare, headers={"User-Agent": USER_AGENT, **headers})  # noqa: S310
    if parts.username:
        authorization = basic_authorization(parts.username, parts.password or "")
        request.add_header("Authorization", authorization)
    return request, host


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never back from https; headers are for the first host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = newurl.partition(":")[0].lower()
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (following.type, following.host) != (req.type, req.host):
            following.headers = {"User-agent": USER_AGENT}
        return following
