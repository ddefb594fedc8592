"""Mirrors that stall, lie, break off or answer something else, over real HTTP.

The first mirror misbehaves, the second is as it should be: the update takes the delta all the
same, and of the bytes that were good it fetches none twice. Where there is no second mirror, it
ends with a reason, or by another way.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from proa.machine import fetch
from proa.machine.errors import Code, MachineError
from proa.machine.fetch import Patience
from support import payload_machine
from support.machine import Machine
from support.payload_machine import Network, Pair, also_at, only, put, serve

PORTAL = b"<html><body>Welcome to our hotel! Please log in.</body></html>" * 40
# A transfer must bring 5 bytes in 50 ms. What is meant to be slow brings 2.
IMPATIENT = Patience(
    connect=5, slow_bytes=100, slow_for=0.05, retries=2, pause=0.001, longest_pause=0.001
)


class Mirror(BaseHTTPRequestHandler):
    """Serves one file for any path; ``behave`` says how."""

    data: bytes
    behave: Callable[[Mirror], None]
    sent: list[int]
    closing: threading.Event

    def do_GET(self) -> None:
        # A client that has had enough closes the connection.
        with contextlib.suppress(ConnectionError):
            type(self).behave(self)

    def log_message(self, *_: object) -> None:
        pass

    @property
    def range(self) -> tuple[int, int]:
        start, _, end = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        return int(start), int(end) + 1 if end else len(self.data)

    def start(self, status: int, length: int | None, content_range: str = "") -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def good(self, data: bytes | None = None, most: int | None = None) -> None:
        """Answer a range as it should be; send at most so many bytes of it."""
        data = self.data if data is None else data
        start, end = self.range
        self.start(206, end - start, f"bytes {start}-{end - 1}/{len(data)}")
        self.send(data[start:end][:most])

    def send(self, data: bytes) -> None:
        self.sent[0] += len(data)
        self.wfile.write(data)


def stalls(mirror: Mirror) -> None:
    mirror.good(most=1)
    mirror.closing.wait(60)


def trickles(mirror: Mirror) -> None:
    start, end = mirror.range
    mirror.start(206, end - start, f"bytes {start}-{end - 1}/{len(mirror.data)}")
    for offset in range(start, end):
        mirror.send(mirror.data[offset : offset + 1])
        if mirror.closing.wait(0.03):
            return


def sends_another_range(mirror: Mirror) -> None:
    start, end = mirror.range
    mirror.start(206, end - start, f"bytes {start + 1}-{end}/{len(mirror.data)}")
    mirror.send(mirror.data[start + 1 : end + 1])


def sends_other_bytes(mirror: Mirror) -> None:
    mirror.good(bytes(byte ^ 0x55 for byte in mirror.data))


def sends_more_than_was_asked_for(mirror: Mirror) -> None:
    start, end = mirror.range
    mirror.start(206, None, f"bytes {start}-{end - 1}/{len(mirror.data)}")
    mirror.send(bytes(byte ^ 0x55 for byte in mirror.data[start:end]) + PORTAL)


def says_that_it_is_longer(mirror: Mirror) -> None:
    start, end = mirror.range
    mirror.start(206, end - start, f"bytes {start}-{end - 1}/{len(mirror.data) + 1}")
    mirror.send(mirror.data[start:end])


def answers_nonsense(mirror: Mirror) -> None:
    start, end = mirror.range
    mirror.start(206, end - start, f"bytes {start}-\xb2/*")
    mirror.send(mirror.data[start:end])


def is_a_captive_portal(mirror: Mirror) -> None:
    mirror.start(200, len(PORTAL))
    mirror.send(PORTAL)


def is_a_captive_portal_without_a_length(mirror: Mirror) -> None:
    mirror.start(200, None)
    mirror.send(PORTAL)


def redirects_to_a_captive_portal(mirror: Mirror) -> None:
    if mirror.path == "/login":
        is_a_captive_portal(mirror)
        return
    mirror.send_response(302)
    mirror.send_header("Location", "/login")
    mirror.send_header("Content-Length", "0")
    mirror.end_headers()


def redirects_in_a_circle(mirror: Mirror) -> None:
    mirror.send_response(302)
    mirror.send_header("Location", mirror.path)
    mirror.send_header("Content-Length", "0")
    mirror.end_headers()


def redirects_to_another_protocol(mirror: Mirror) -> None:
    mirror.send_response(302)
    mirror.send_header("Location", "ftp://127.0.0.1:1/file")
    mirror.send_header("Content-Length", "0")
    mirror.end_headers()


def has_lost_its_end(mirror: Mirror) -> None:
    start, end = mirror.range
    data = mirror.data[: len(mirror.data) // 3]
    if start >= len(data):
        mirror.start(416, 0, f"bytes */{len(data)}")
        return
    mirror.start(206, None, f"bytes {start}-{end - 1}/{len(mirror.data)}")
    mirror.send(data[start:end])


def resets(mirror: Mirror) -> None:
    """Reset the connection after some bytes of a blob, and be away from then on."""
    if mirror.sent[0] > 2000:
        mirror.sent[0] += 0
    else:
        mirror.good(most=3000)
        mirror.wfile.flush()
        time.sleep(0.05)  # they are on their way
    linger = struct.pack("ii", 1, 0)
    mirror.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    mirror.connection.close()


def fails(mirror: Mirror) -> None:
    mirror.send_error(500)


BEHAVIOURS = (
    stalls,
    trickles,
    sends_another_range,
    sends_other_bytes,
    sends_more_than_was_asked_for,
    says_that_it_is_longer,
    answers_nonsense,
    is_a_captive_portal,
    is_a_captive_portal_without_a_length,
    redirects_to_a_captive_portal,
    redirects_in_a_circle,
    redirects_to_another_protocol,
    has_lost_its_end,
    resets,
    fails,
)


@dataclass
class Net:
    """Mirrors, by how they behave."""

    servers: list[ThreadingHTTPServer] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def mirror(self, data: bytes, behave: Callable[[Mirror], None]) -> tuple[str, list[int]]:
        """Start a mirror; return the address of its file, and where it counts what it sent."""
        sent = [0]
        members = {"data": data, "behave": staticmethod(behave), "sent": sent}
        handler = type("Bound", (Mirror,), {**members, "closing": self.closing})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/file", sent

    def close(self) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    net = Net()
    yield net
    net.close()


@pytest.fixture
def machine(tmp_path: Path, pair: Pair) -> Machine:
    return payload_machine.make_machine(tmp_path / "machine", pair)


def impatient(behave: Callable[[Mirror], None]) -> Patience:
    return replace(IMPATIENT, connect=1) if behave is stalls else IMPATIENT


@pytest.mark.parametrize("behave", BEHAVIOURS)
def test_the_next_mirror_gives_what_the_first_does_not(
    machine: Machine, net: Net, pair: Pair, behave: Callable[[Mirror], None]
) -> None:
    release = only(serve(Network(), pair), 0)
    bad, _ = net.mirror(pair.delta.data, behave)
    good, sent = net.mirror(pair.delta.data, Mirror.good)
    release = replace(release, payloads=[replace(release.payloads[0], urls=(bad, good))])
    assert put(machine, release, patience=impatient(behave)).way == "the delta from 1.0.0"
    # What a portal answered may have been taken for the head's beginning.
    assert sent[0] <= len(pair.delta.data) + pair.delta.head_length
    assert machine.boot().version == pair.new.version


def test_a_reset_in_a_blob_costs_none_of_what_came(machine: Machine, net: Net, pair: Pair) -> None:
    release = only(serve(Network(), pair), 0)
    bad, gone = net.mirror(pair.delta.data, resets)
    good, sent = net.mirror(pair.delta.data, Mirror.good)
    release = replace(release, payloads=[replace(release.payloads[0], urls=(bad, good))])
    put(machine, release, patience=IMPATIENT)
    assert gone[0] > 2000
    assert gone[0] + sent[0] == len(pair.delta.data)


# What a mirror does that has another file: there are other ways to go.
WRONG = (
    sends_other_bytes,
    sends_more_than_was_asked_for,
    says_that_it_is_longer,
    is_a_captive_portal,
    is_a_captive_portal_without_a_length,
    redirects_to_a_captive_portal,
    has_lost_its_end,
)


@pytest.mark.parametrize("behave", BEHAVIOURS)
def test_where_it_is_the_only_mirror(
    machine: Machine,
    net: Net,
    pair: Pair,
    behave: Callable[[Mirror], None],
) -> None:
    """A wrong file is left for the full payload; one that does not come may come next time."""
    bad, _ = net.mirror(pair.delta.data, behave)
    good, sent = net.mirror(pair.full.data, Mirror.good)
    release = serve(Network(), pair)
    ways = [replace(release.payloads[0], urls=(bad,)), replace(release.payloads[1], urls=(good,))]
    release = replace(release, payloads=ways)
    if behave in WRONG:
        said: list[str] = []
        assert put(machine, release, said, patience=IMPATIENT).way == "the full payload"
        assert any("cannot be used: http://127.0.0.1" in line for line in said)
        assert machine.boot().version == pair.new.version
        return
    with pytest.raises(MachineError) as failure:
        put(machine, release, patience=impatient(behave))
    assert failure.value.code == Code.DOWNLOAD_FAILED
    assert sent[0] == 0
    assert machine.boot().version == pair.old.version
    # It mends itself, and the next run goes on.
    mended, _ = net.mirror(pair.delta.data, Mirror.good)
    release = replace(release, payloads=[replace(ways[0], urls=(mended,))])
    assert put(machine, release).way == "the delta from 1.0.0"


def test_a_file_that_changes_in_between(machine: Machine, net: Net, pair: Pair) -> None:
    """Another release is put there under the same name, once half of it was fetched."""
    count = 0

    def changes(mirror: Mirror) -> None:
        nonlocal count
        count += 1
        if count < 4:
            mirror.good()
        else:
            mirror.good(mirror.data[::-1])

    bad, _ = net.mirror(pair.delta.data, changes)
    release = serve(Network(), pair)
    full, _ = net.mirror(pair.full.data, Mirror.good)
    ways = [replace(release.payloads[0], urls=(bad,)), replace(release.payloads[1], urls=(full,))]
    assert put(machine, replace(release, payloads=ways)).way == "the full payload"
    assert machine.boot().version == pair.new.version


def test_a_dead_mirror_is_waited_for_once(machine: Machine, net: Net, pair: Pair) -> None:
    """Not at each blob: a connection that is not answered costs half a minute."""
    asked = 0

    def dead(mirror: Mirror) -> None:
        nonlocal asked
        asked += 1
        mirror.send_error(503)

    bad, _ = net.mirror(pair.delta.data, dead)
    good, _ = net.mirror(pair.delta.data, Mirror.good)
    release = serve(Network(), pair)
    release = replace(release, payloads=[replace(release.payloads[0], urls=(bad, good))])
    put(machine, release, patience=IMPATIENT)
    assert asked == IMPATIENT.retries + 1


def test_a_captive_portal_that_comes_in_the_middle_costs_no_way_for_good(
    machine: Machine, net: Net, pair: Pair
) -> None:
    """All that can be fetched is wrong for a while; then it is the delta that is taken."""
    logged_in = False

    def portal(mirror: Mirror) -> None:
        mirror.good() if logged_in else is_a_captive_portal_without_a_length(mirror)

    urls = {name: [net.mirror(data, portal)[0]] for name, data in pair.new.content.items()}
    release = serve(Network(), pair)
    ways = [
        replace(signed, urls=(net.mirror(made.data, portal)[0],))
        for signed, made in zip(release.payloads, (pair.delta, pair.full), strict=True)
    ]
    release = replace(release, urls=urls, payloads=ways)
    with pytest.raises(MachineError):
        put(machine, release, patience=IMPATIENT)
    logged_in = True
    assert put(machine, release, patience=IMPATIENT).way == "the delta from 1.0.0"


def test_a_mirror_that_knows_no_ranges(machine: Machine, net: Net, pair: Pair) -> None:
    def whole(mirror: Mirror) -> None:
        mirror.start(200, len(mirror.data))
        mirror.send(mirror.data)

    url, _ = net.mirror(pair.delta.data, whole)
    release = serve(Network(), pair)
    release = replace(release, payloads=[replace(release.payloads[0], urls=(url,))])
    done = put(machine, release)
    assert (done.way, done.fetched) == ("the delta from 1.0.0", len(pair.delta.data))


def test_the_images_come_from_the_second_mirror_where_the_first_trickles(
    machine: Machine, net: Net, pair: Pair
) -> None:
    release = also_at(only(serve(Network(), pair)), Network(files=_images(pair)), "http://two/")
    urls = {}
    for name, data in pair.new.content.items():
        urls[name] = [net.mirror(data, trickles)[0], net.mirror(data, Mirror.good)[0]]
    done = put(machine, replace(release, urls=urls), patience=IMPATIENT)
    assert done.way == "the images"
    assert machine.boot().version == pair.new.version


def _images(pair: Pair) -> dict[str, bytes]:
    return {f"http://one/{name}": data for name, data in pair.new.content.items()}


def test_no_more_is_taken_than_the_download_rate(
    machine: Machine, net: Net, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only sleeping moves."""
    now, rate = 0.0, 4000

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

    monkeypatch.setattr(fetch, "time", Clock)
    url, _ = net.mirror(pair.delta.data, Mirror.good)
    release = serve(Network(), pair)
    release = replace(release, payloads=[replace(release.payloads[0], urls=(url,))])
    put(machine, release, patience=Patience(rate=rate))
    # The last piece of each range is not waited for.
    assert now == pytest.approx(len(pair.delta.data) / rate, rel=0.04)
