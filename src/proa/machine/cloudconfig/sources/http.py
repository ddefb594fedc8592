"""Asking a metadata service: patient with one that is slow or failing, hard with one that lies.

An answer is bounded in bytes and in time, however it drips. A redirect is followed on the same
server only. No proxy is used: these are addresses of the link, or of the owner's own choice. No
message holds the user, the password or the query of an address, or anything of an answer.
"""

from __future__ import annotations

import errno
import functools
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

from proa.machine.cloudconfig.parse import MAX_BYTES, Problem, printable
from proa.machine.cloudconfig.values import basic_authorization
from proa.machine.record import dataclass, field

T = TypeVar("T")

USER_AGENT = "proa/0.1.0"
MAX_REDIRECTS = 5
PARALLEL = 16
"""Requests of one source at a time."""
TRIES = 15
"""How often a service is asked that says "not ready" by a status that means "no" elsewhere."""
SOON_TRIES = 3
"""How often something is asked for that a machine can do without."""

NO_NETWORK_PAUSE = 0.2
"""Seconds between tries while this machine has no way to the service at all. Nobody is asked then,
and a machine whose network has just come up must not sit out a long pause."""

_CHUNK = 64 * 1024
_NO_NETWORK = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})
_TEMPORARY = frozenset({408, 425, 429})
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    ``request`` is for one request from the first packet to the last byte; ``deadline`` for all.
    Between tries it waits ``first_pause``, each time twice as long, up to ``longest_pause``.
    ``grace`` is what a source has that comes earlier in the order than one that is good already.
    The numbers are coreos-cloudinit's, but for the grace, which it did not have.
    """

    request: float = 10.0
    deadline: float = 300.0
    first_pause: float = 0.1
    longest_pause: float = 5.0
    grace: float = 1.0


PATIENCE = Patience()


def pauses(patience: Patience, vary: Callable[[], float]) -> Iterator[float]:
    """Seconds between tries: doubling, each between half of it and all of it, so that a thousand
    machines that start together do not come together again. ``vary`` gives a number below 1."""
    pause = patience.first_pause
    while True:
        yield pause * (0.5 + 0.5 * vary())
        pause = min(pause * 2, patience.longest_pause)


class Failed(Exception):
    """No usable answer. ``final``: asking again is of no use. ``after`` is the pause in seconds
    that the server wants before the next try. ``offline``: nothing was sent, there is no way yet.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        final: bool = False,
        after: float = 0.0,
        offline: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.final = final
        self.after = after
        self.offline = offline


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)


def shown(url: str) -> str:
    """An address for people: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is none"
    host = f"[{host}]" if ":" in host else host
    return printable(f"{parts.scheme}://{host}{port}{parts.path}", 200)


# One request.


class _InTime(io.RawIOBase):
    """The receiving side of a socket, at whose end no read waits longer than is left."""

    def __init__(self, sock: Any, end: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # which keeps the connection open
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(max(0.001, self._end - time.monotonic()))
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(self)


def _response(end: float, sock: Any, *arguments: Any, **named: Any) -> http.client.HTTPResponse:
    """The library gives each read a time of its own; this gives them one end together."""
    timed: Any = _InTime(sock, end)
    return http.client.HTTPResponse(timed, *arguments, **named)


def _once(
    method: str,
    url: str,
    headers: Mapping[str, str],
    limit: int,
    seconds: float,
    content: bytes | None,
) -> tuple[Answer, str]:
    """One request and its answer, and the address that a redirect names. Raises Failed."""
    place = shown(url)
    end = time.monotonic() + seconds
    connection = None
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
            raise Failed(f"{place}: only http and https are spoken", final=True)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname, parts.port, timeout=seconds)
        connection.response_class = functools.partial(_response, end)  # type: ignore[assignment]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, content, {**_own_headers(parts), **headers})
        with connection.getresponse() as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            body = _body(response, limit, place) if response.status < 300 else b""
        return Answer(response.status, found, body), found.get("location", "")
    except http.client.InvalidURL:
        raise Failed(f"{place}: this is not an address", final=True) from None
    except (OSError, http.client.HTTPException) as error:
        # Before ValueError: a certificate that is not good is both.
        raise Failed(f"{place}: {_words(error)}", offline=_is_offline(error)) from None
    except ValueError:
        raise Failed(f"{place}: this is not an address", final=True) from None
    finally:
        if connection is not None:
            connection.close()


def _is_offline(error: Exception) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN  # no name server; another answer came from one
    return isinstance(error, OSError) and error.errno in _NO_NETWORK


def _own_headers(parts: Any) -> dict[str, str]:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close"}
    if parts.username is not None:
        headers["Authorization"] = basic_authorization(parts.username, parts.password or "")
    return headers


def _body(response: http.client.HTTPResponse, limit: int, place: str) -> bytes:
    chunks = []
    size = 0
    while chunk := response.read1(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise Failed(f"{place}: the answer is longer than {limit // 1024} KiB", final=True)
    if response.length:
        raise Failed(f"{place}: the answer ended early")
    return b"".join(chunks)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    reason = getattr(error, "reason", "")  # of TLS: the library's name for it
    if isinstance(reason, str) and reason:
        return printable(reason.replace("_", " ").lower())
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror)
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the answer ended early"
    # The text of an HTTPException may repeat what the server sent.
    return f"not HTTP ({type(error).__name__})"


def ask(
    method: str,
    url: str,
    headers: Mapping[str, str],
    limit: int,
    seconds: float,
    content: bytes | None = None,
) -> Answer:
    """One request, redirects included, in at most ``seconds``; an answer of status 200 to 299.

    Raises :class:`Failed`.
    """
    end = time.monotonic() + seconds
    first = _split(url)
    if first is None:
        raise Failed(f"{shown(url)}: this is not an address", final=True)
    for _ in range(MAX_REDIRECTS + 1):
        left = max(0.001, end - time.monotonic())
        answer, location = _once(method, url, headers, limit, left, content)
        if answer.status in (301, 302, 303, 307, 308) and location and method == "GET":
            parts = _split(location, url)
            if parts is None or (parts.scheme, parts.hostname, parts.port) != (
                first.scheme,
                first.hostname,
                first.port,
            ):
                raise Failed(f"{shown(url)}: sends us to another server; not followed", final=True)
            # Whoever answers may not choose the name that we log in with.
            url = parts._replace(netloc=first.netloc, fragment="").geturl()
            continue
        _check(answer, url)
        return answer
    raise Failed(f"{shown(url)}: redirects more than {MAX_REDIRECTS} times", final=True)


def _split(url: str, base: str = "") -> Any:
    """The parts of an address, which may be relative to ``base``; ``None`` if it is none."""
    try:
        parts = urlsplit(urljoin(base, url))
        _ = parts.port
    except ValueError:
        return None
    return parts


def _check(answer: Answer, url: str) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    after = answer.headers.get("retry-after", "")
    wait = float(after) if after.isascii() and after.isdigit() and len(after) < 10 else 0.0
    raise Failed(
        f"{shown(url)}: the server answers {status}",
        status=status,
        final=status < 500 and status not in _TEMPORARY,
        after=min(wait, 30.0),
    )


# Many requests.


class Client:
    """The requests of one source: they share one end, and stop when another source has won."""

    def __init__(
        self,
        patience: Patience,
        vary: Callable[[], float],
        stop: threading.Event | None = None,
    ) -> None:
        self.patience = patience
        self.end = time.monotonic() + patience.deadline
        self.last = ""
        """Why the last try failed."""
        self.doubts: list[Problem] = []
        """What was left out because it did not come."""
        self._vary = vary
        self._stop = stop or threading.Event()

    def until(
        self,
        call: Callable[[], T],
        *,
        tries: int = 0,
        not_ready: Collection[int] = (),
    ) -> T:
        """What ``call`` returns, called again while it fails for a time and there is time left.

        With ``tries``, at most so often. A status of ``not_ready`` is asked again, too.
        """
        count = 0
        waits = pauses(self.patience, self._vary)
        while True:
            count += 1
            try:
                return call()
            except Failed as failed:
                self.last = str(failed)
                again = not failed.final or (failed.status in not_ready and count < TRIES)
                pause = min(NO_NETWORK_PAUSE, self.patience.longest_pause)
                if not failed.offline:
                    pause = max(next(waits), failed.after)
                out_of_time = time.monotonic() + pause >= self.end
                if not again or count == tries or out_of_time or self._stop.wait(pause):
                    raise

    def once(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        limit: int = MAX_BYTES,
        content: bytes | None = None,
    ) -> Answer:
        left = self.end - time.monotonic()
        if left <= 0:
            raise Failed(f"{shown(url)}: no time is left")
        seconds = min(self.patience.request, left)
        answer = ask(method, url, headers or {}, limit, seconds, content)
        if answer.body[:64].lstrip().lower().startswith(_PAGE):
            self.refuse(url, "is a web page, not the answer of such a service")
        return answer

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        tries: int = 0,
        not_ready: Collection[int] = (),
    ) -> bytes:
        return self.until(lambda: self.once(url, headers), tries=tries, not_ready=not_ready).body

    def optional(self, url: str, headers: Mapping[str, str] | None = None) -> bytes | None:
        """``None`` if the server says that there is no such thing."""
        try:
            return self.get(url, headers)
        except Failed as failed:
            if failed.status in (404, 410):
                return None
            raise

    def soon(self, url: str, headers: Mapping[str, str] | None = None) -> bytes | None:
        """Something to do without if need be: if it does not come soon, that is a doubt."""
        try:
            return self.get(url, headers, tries=SOON_TRIES)
        except Failed as failed:
            if failed.status not in (404, 410):
                self.doubts.append(Problem("warning", f"{failed}; left out"))
            return None

    def user_data(
        self, url: str, problems: list[Problem], headers: Mapping[str, str] | None = None
    ) -> bytes | None:
        """``None`` if there is none. If it cannot be read, that is a problem, and what else the
        service says still holds: the machine must stay reachable by its ssh keys."""
        try:
            return self.optional(url, headers)
        except Failed as failed:
            problems.append(Problem("error", f"the user-data could not be read: {failed}"))
            return None

    def together(self, *calls: Callable[[], T]) -> list[T]:
        """What the calls return, made at the same time. Raises what the first bad one raised."""
        results: list[Any] = [None] * len(calls)

        def work(number: int) -> None:
            try:
                results[number] = (True, calls[number]())
            except Exception as error:
                results[number] = (False, error)

        for start in range(0, len(calls), PARALLEL):
            numbers = range(start, min(start + PARALLEL, len(calls)))
            # Daemons: a request that hangs must not keep the program from ending.
            threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in numbers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for good, result in results:
            if not good:
                raise result
        return [result for _, result in results]

    def refuse(self, url: str, why: str) -> NoReturn:
        raise Failed(f"{shown(url)}: what comes {why}", final=True)

    @staticmethod
    def place(base: str) -> str:
        """Where a service is, for its name."""
        return shown(base).partition("://")[2].rstrip("/")
