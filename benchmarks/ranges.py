"""A web server of files that answers requests for several byte ranges at once (RFC 9110, 14)."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BOUNDARY = "proa-bench"


@dataclass
class Served:
    """A running server; ``sent`` counts the bytes of bodies."""

    url: str
    sent: int = 0


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Served]:
    """Serve ``directory`` on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = directory / Path(self.path).name
            if not path.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            data = path.read_bytes()
            wanted = parse(self.headers.get("Range", ""), len(data))
            if not wanted:
                self._answer(HTTPStatus.OK, "application/octet-stream", data)
            elif len(wanted) == 1:
                ((first, last),) = wanted
                content = f"bytes {first}-{last}/{len(data)}"
                part = data[first : last + 1]
                self._answer(HTTPStatus.PARTIAL_CONTENT, "application/octet-stream", part, content)
            else:
                kind = f"multipart/byteranges; boundary={_BOUNDARY}"
                self._answer(HTTPStatus.PARTIAL_CONTENT, kind, multipart(data, wanted))

        def _answer(self, status: HTTPStatus, kind: str, body: bytes, part: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)
                served.sent += len(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parse(header: str, size: int) -> list[tuple[int, int]]:
    """Return (first, last) of each range that a ``Range`` header asks of ``size`` bytes."""
    found = re.findall(r"(\d+)-(\d*)", header.removeprefix("bytes="))
    return [(int(a), min(int(b) if b else size - 1, size - 1)) for a, b in found if int(a) < size]


def multipart(data: bytes, wanted: list[tuple[int, int]]) -> bytes:
    """Return the body of an answer with several ranges."""
    body = bytearray()
    for first, last in wanted:
        body += f"\r\n--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n".encode()
        body += f"Content-Range: bytes {first}-{last}/{len(data)}\r\n\r\n".encode()
        body += data[first : last + 1]
    return bytes(body + f"\r\n--{_BOUNDARY}--\r\n".encode())
