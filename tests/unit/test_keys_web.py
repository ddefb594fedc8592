"""A GET for a document is bounded, goes where it may, and gives no secret away."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from proa.machine.cloudconfig import web
from proa.machine.cloudconfig.machine import FetchFailed, download_url, fetch_url
from proa.machine.cloudconfig.parse import Refused
from proa.machine.cloudconfig.values import is_url, shown_url

Page = Callable[[BaseHTTPRequestHandler], None]


class Site(ThreadingHTTPServer):
    """A web site on this machine; ``pages`` say what is done for a path."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.headers: list[dict[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.headers.append({name.lower(): value for name, value in self.headers.items()})
                site.pages[self.path](self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def answer(
    status: int, body: bytes = b"", **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return send


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def no_pause(_: float) -> None:
    """Tests do not wait."""


def test_the_body_of_the_answer_comes_back_and_the_headers_go_out(site: Site) -> None:
    site.pages["/a?b=c"] = answer(200, b"hello")
    assert fetch_url(f"{site.url}/a?b=c#d", {"X-Key": "k"}) == b"hello"
    assert site.headers[0]["x-key"] == "k"
    assert site.headers[0]["user-agent"] == "proa-cloudinit"


def test_a_user_before_the_host_becomes_a_header(site: Site) -> None:
    site.pages["/"] = answer(200, b"in")
    assert fetch_url(site.url.replace("//", "//me:p%40ss@"), {}) == b"in"
    assert site.headers[0]["authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(site: Site) -> None:
    answers = [answer(503), answer(429), answer(200, b"at last")]
    site.pages["/busy"] = lambda handler: answers.pop(0)(handler)
    site.pages["/none"] = answer(404)
    pauses: list[float] = []
    assert web.fetch(f"{site.url}/busy", {}, pauses.append) == b"at last"
    assert pauses == [1.0, 2.0]
    with pytest.raises(FetchFailed, match="HTTP 404"):
        web.fetch(f"{site.url}/none", {}, pauses.append)
    assert len(site.headers) == 4


def test_an_answer_that_is_too_large_is_not_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_ANSWER", 2048)
    site.pages["/exact"] = answer(200, b"x" * 2048)
    site.pages["/large"] = answer(200, b"x" * 2049)
    assert len(web.fetch(f"{site.url}/exact", {}, no_pause)) == 2048
    with pytest.raises(FetchFailed, match="larger than 2 KiB"):
        web.fetch(f"{site.url}/large", {}, no_pause)


def test_an_answer_that_takes_too_long_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DEADLINE", -1.0)
    site.pages["/"] = answer(200, b"x")
    with pytest.raises(FetchFailed, match="takes more than"):
        web.fetch(site.url, {}, no_pause)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_leads_to_no_other_scheme(site: Site, target: str) -> None:
    site.pages["/"] = answer(302, Location=target)
    with pytest.raises(FetchFailed, match="HTTP 302"):
        web.fetch(site.url, {}, no_pause)


def test_a_redirect_to_another_host_takes_no_header_along(site: Site) -> None:
    other = site.url.replace("127.0.0.1", "localhost")
    site.pages["/"] = answer(302, Location=f"{other}/there")
    site.pages["/near"] = answer(302, Location="/there")
    site.pages["/there"] = answer(200, b"x")
    for path, kept in (("/", False), ("/near", True)):
        site.headers.clear()
        url = site.url.replace("//", "//me:secret@") + path
        assert web.fetch(url, {"X-Key": "secret"}, no_pause) == b"x"
        assert ("secret" in site.headers[1].values()) == kept
        assert ("authorization" in site.headers[1]) == kept


def test_a_circle_of_redirects_ends(site: Site) -> None:
    site.pages["/"] = answer(302, Location="/")
    with pytest.raises(FetchFailed):
        web.fetch(site.url, {}, no_pause)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@127.0.0.1:1/hunter2?hunter2",
        "http://hunter2:x@[::1/",
        "http://127.0.0.1:hunter2/",
        "file:///hunter2",
        "http://hunter2\r\nHost: x/",
    ],
)
def test_what_fails_is_told_without_the_secrets_of_its_address(url: str) -> None:
    with pytest.raises(FetchFailed) as failure:
        web.fetch(url, {"A": "hunter2"}, no_pause)
    told = str(failure.value)
    assert "hunter2" not in told
    assert told.isprintable()


def test_addresses_are_known_and_shown_without_their_secrets() -> None:
    assert is_url("https://u:p@[2001:db8::1]:8443/x?y")
    assert shown_url("https://u:p@[2001:db8::1]:8443/x?y") == "https://[2001:db8::1]:8443"
    assert shown_url("gh:alice") == "gh:alice"
    for bad in ("http://", "http:///x", "ftp://a", "http://a b", "http://a\n", "http://é/", "x"):
        assert not is_url(bad)


# Files that go straight to the disk.


def test_a_download_comes_in_pieces_however_long_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_ANSWER", 1000)  # bounds only what is held in memory
    content = bytes(range(256)) * 1024
    site.pages["/x"] = answer(200, content)
    sizes: list[int] = []
    whole: list[bytes] = []

    def store(pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            sizes.append(len(piece))
            whole.append(piece)

    download_url(f"{site.url}/x", {"X-Key": "k"}, store)
    assert b"".join(whole) == content
    assert max(sizes) <= 64 * 1024
    assert site.headers[0]["x-key"] == "k"


def test_a_download_that_ends_too_early_begins_anew_and_is_never_taken_for_the_whole(
    site: Site,
) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"hell")

    answers = [cut, answer(200, b"hello")]
    site.pages["/x"] = lambda handler: answers.pop(0)(handler)
    stored: list[bytes] = []
    web.download(f"{site.url}/x", {}, lambda pieces: stored.append(b"".join(pieces)), no_pause)
    assert stored == [b"hello"]
    site.pages["/x"] = cut
    with pytest.raises(FetchFailed, match="the answer ended too early"):
        web.download(f"{site.url}/x", {}, lambda pieces: stored.append(b"".join(pieces)), no_pause)
    assert stored == [b"hello"]


def test_what_the_taker_of_a_download_refuses_is_not_tried_again(site: Site) -> None:
    site.pages["/x"] = answer(200, b"hello")

    def store(pieces: Iterable[bytes]) -> None:
        raise Refused("not what was meant")

    with pytest.raises(Refused):
        web.download(f"{site.url}/x", {}, store, no_pause)
    assert len(site.headers) == 1
