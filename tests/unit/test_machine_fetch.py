"""Transfers go on where they stopped, and give up only when there is reason to."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from proa.machine.fetch import FetchError, Patience, WrongSize, download, get, post

DATA = bytes(range(256)) * 1000
IMPATIENT = Patience(connect=5, retries=2, pause=0)

Answer = Callable[["Handler", int], None]  # the request's number, from 1


class Handler(BaseHTTPRequestHandler):
    answer: Answer
    ranges: list[str | None]

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range"))
        type(self).answer(self, len(self.ranges))

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def start(self) -> int:
        wanted = self.headers.get("Range") or "bytes=0-"
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def partial(self, data: bytes = DATA, stop: int | None = None) -> None:
        """Answer a range as it should be; send only up to ``stop``."""
        start = self.start()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:stop])


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], tuple[str, list[str | None]]]]:
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> tuple[str, list[str | None]]:
        ranges: list[str | None] = []
        handler = type("Bound", (Handler,), {"answer": staticmethod(answer), "ranges": ranges})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/file", ranges

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Answer], tuple[str, list[str | None]]]


def fetched(url: str, start: int = 0, size: int = len(DATA)) -> bytes:
    return b"".join(download(url, start, size, IMPATIENT, lambda seconds: None))


def test_a_file_comes_whole_in_one_request(serve: Serve) -> None:
    url, ranges = serve(lambda handler, _: handler.partial())
    assert fetched(url) == DATA
    assert ranges == [None]


def test_an_interrupted_transfer_goes_on_by_range(serve: Serve) -> None:
    url, ranges = serve(lambda h, number: h.partial(stop=h.start() + 100_000))
    assert fetched(url) == DATA
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_run_asks_only_for_the_rest(serve: Serve) -> None:
    url, ranges = serve(lambda handler, _: handler.partial())
    assert fetched(url, start=255_000) == DATA[255_000:]
    assert ranges == ["bytes=255000-"]


def test_a_server_that_knows_no_ranges_sends_it_all_and_the_known_part_is_skipped(
    serve: Serve,
) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA)

    url, _ = serve(answer)
    assert fetched(url, start=123_456) == DATA[123_456:]


def test_a_server_without_a_length_is_good_enough_if_the_bytes_come(serve: Serve) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(DATA)

    assert fetched(serve(answer)[0]) == DATA


@pytest.mark.parametrize("served", [DATA + b"more", DATA[:-1]])
@pytest.mark.parametrize("start", [0, 1000])
def test_a_file_of_another_size_is_refused_at_once(serve: Serve, served: bytes, start: int) -> None:
    url, ranges = serve(lambda handler, _: handler.partial(served))
    with pytest.raises(WrongSize):
        fetched(url, start)
    assert len(ranges) == 1


def test_more_bytes_than_announced_by_a_server_without_a_length_are_refused(serve: Serve) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(DATA + b"more")

    with pytest.raises(WrongSize):
        fetched(serve(answer)[0])


def test_another_range_than_asked_for_is_not_taken(serve: Serve) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 7-{len(DATA) - 1}/{len(DATA)}")
        handler.end_headers()
        handler.wfile.write(DATA[7:])

    with pytest.raises(FetchError, match="another range"):
        fetched(serve(answer)[0], start=1000)


def test_a_server_that_fails_for_a_while_is_asked_again(serve: Serve) -> None:
    def answer(handler: Handler, number: int) -> None:
        if number < 3:
            handler.send_error(503)
        else:
            handler.partial()

    url, ranges = serve(answer)
    assert fetched(url) == DATA
    assert len(ranges) == 3


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_tries_end(serve: Serve, status: int, requests: int) -> None:
    url, ranges = serve(lambda handler, _: handler.send_error(status))
    with pytest.raises(FetchError) as failure:
        fetched(url)
    assert failure.value.status == status
    assert len(ranges) == requests


def test_a_transfer_that_goes_silent_fails(serve: Serve) -> None:
    release = threading.Event()

    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        release.wait(60)

    url, _ = serve(answer)
    try:
        with pytest.raises(FetchError, match="no answer in time"):
            b"".join(download(url, 0, len(DATA), Patience(connect=0.2, retries=0)))
    finally:
        release.set()


def test_a_transfer_that_only_trickles_fails(serve: Serve) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA)

    url, _ = serve(answer)
    demanding = Patience(slow_bytes=1 << 50, slow_for=0, retries=0)
    with pytest.raises(FetchError, match="stalled"):
        b"".join(download(url, 0, len(DATA), demanding))


def test_nobody_there_is_said_in_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    with pytest.raises(FetchError, match="Connection refused"):
        post(url, b"", "text/xml", 1000, IMPATIENT)


def test_small_answers_are_bounded(serve: Serve) -> None:
    url, _ = serve(lambda handler, _: handler.partial())
    with pytest.raises(FetchError, match="longer than 1000 bytes"):
        b"".join(get(url, 1000, IMPATIENT))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "data:,x"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(FetchError, match="only http and https"):
        fetched(url)


def test_a_redirect_to_another_protocol_is_not_followed(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        place = f"ftp://127.0.0.1:{listener.getsockname()[1]}/file"

        def answer(handler: Handler, _: int) -> None:
            handler.send_response(302)
            handler.send_header("Location", place)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        url, _ = serve(answer)
        with pytest.raises(FetchError, match="302 redirects to no http address"):
            fetched(url)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_memory_does_not_grow_with_the_file(serve: Serve) -> None:
    size, block = 64 << 20, bytes(1 << 20)

    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        for _ in range(size >> 20):
            handler.wfile.write(block)

    url, _ = serve(answer)
    tracemalloc.start()
    try:
        total = sum(len(chunk) for chunk in download(url, 0, size, IMPATIENT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == size
    assert peak < 8 << 20
