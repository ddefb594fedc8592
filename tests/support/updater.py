"""A machine of files, a real server with a real signed repository, and a wire between them."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from proa.factory import keys, repository
from proa.machine import proactl
from proa.server import admin
from proa.server.run import Settings, running
from proa.wire import manifest
from support.machine import Machine, Release, make_release


@dataclass
class Wire:
    """What lies between machine and server: a proxy that can be told to misbehave."""

    upstream: str
    cut_after: int | None = None
    missing: str = "never"
    rewrite: tuple[bytes, bytes] = (b"", b"")
    # More repositories that the server names before its own, by a prefix of their paths; answers
    # of such a one, and answers in place of the real ones by how a path ends.
    mirrors: dict[str, Callable[[str], tuple[int, bytes]]] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)


class _Proxy(BaseHTTPRequestHandler):
    wire: Wire

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path.endswith(self.wire.missing):
            self.send_error(404)
            return
        self.wire.requests.append((self.command, self.path, self.headers.get("Range")))
        for prefix, behave in self.wire.mirrors.items():
            if self.path.startswith(f"/{prefix}/"):
                self._answer(*behave(self.path.removeprefix(f"/{prefix}")))
                return
        for end, data in self.wire.instead.items():
            if self.path.endswith(end):
                self._answer(200, data)
                return
        body = body.replace(*self.wire.rewrite) if self.wire.rewrite[0] else body
        host, _, port = self.wire.upstream.removeprefix("http://").rstrip("/").partition(":")
        upstream = http.client.HTTPConnection(host, int(port), timeout=30)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if self.command == "POST":
            data = self._with_mirrors(data)
            answer.headers.replace_header("Content-Length", str(len(data)))
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Length", "Content-Range"):
            if answer.headers.get(name):
                self.send_header(name, answer.headers[name])
        self.end_headers()
        if self.path.endswith(manifest.USR) and self.wire.cut_after is not None:
            data = data[: self.wire.cut_after]
        self.wfile.write(data)

    do_GET = do_POST = _pass_on

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _with_mirrors(self, answer: bytes) -> bytes:
        match = re.search(rb'<url codebase="https?://[^/]+(/[^"]*)"', answer)
        if match is None:
            return answer
        host, port = cast(tuple[str, int], self.server.server_address)
        more = b"".join(
            b'<url codebase="http://%s:%d/%s%s"></url>'
            % (host.encode(), port, prefix.encode(), match[1])
            for prefix in self.wire.mirrors
        )
        return answer[: match.start()] + more + answer[match.start() :]

    def log_message(self, *_: object) -> None:
        pass


class World:
    """Keys, repository, server, wire and one machine in group ``stable``."""

    def __init__(
        self, path: Path, upstream: str, wire: Wire, url: str, installed: Release | None = None
    ) -> None:
        self.path, self.upstream, self.wire, self.url = path, upstream, wire, url
        self.now = datetime.now(UTC)
        self.anchor = keys.init(path / "keys", self.now)
        self.machine = Machine(path / "machine", "uefi", installed or make_release("1.0.0"))
        self.system = self.machine.system()
        share = self.machine.root / "usr/share/proa"
        share.mkdir(parents=True)
        (share / "root.json").write_bytes(self.anchor.read_bytes())
        self.configure(SERVER=f"{url}/v1/update/", GROUP="stable", REBOOT_DELAY="120")
        self.before = self.machine.slot_bytes("a"), self.machine.esp()

    def configure(self, **settings: str) -> None:
        text = "".join(f'{key}="{value}"\n' for key, value in settings.items())
        path = self.machine.root / "etc/proa/update.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def publish(
        self,
        release: Release,
        *,
        keys_dir: Path | None = None,
        age: timedelta = timedelta(),
        payloads: Sequence[Path] = (),
    ) -> None:
        self.machine.releases[release.root_hash] = release
        repository.publish(
            release.write(self.path / f"release-{release.version}"),
            self.repository,
            keys_dir or self.path / "keys",
            self.now - age,
            payloads=payloads,
        )

    def offer(self, version: str, *, allow_downgrade: bool = False) -> None:
        admin.set_channel(
            self.database,
            self.repository,
            "stable",
            version,
            self.now,
            create=True,
            allow_downgrade=allow_downgrade,
        )
        admin.set_group(self.database, "stable", "stable", self.now)

    def ship(self, release: Release) -> None:
        self.publish(release)
        self.offer(release.version)

    @property
    def repository(self) -> Path:
        return self.path / "repository"

    @property
    def database(self) -> Path:
        return self.path / "server.db"

    def proactl(self, *arguments: str) -> int:
        return proactl.main(arguments, self.system)

    def target(self, version: str, name: str) -> Path:
        (path,) = (self.repository / "targets" / version).glob(f"*.{name}")
        return path

    def untouched(self, *but: str) -> bool:
        """Whether the running slot and the way to boot it are as they were."""
        slot, esp = self.before
        return self.machine.slot_bytes("a") == slot and all(
            self.machine.esp().get(name) == data for name, data in esp.items() if name not in but
        )

    def bootable(self) -> set[str]:
        return {name for name in self.machine.esp() if name.startswith("EFI/Linux/")}


@contextlib.contextmanager
def world_at(path: Path, installed: Release | None = None) -> Iterator[World]:
    """Start all of it below ``path``; the machine runs ``installed``, or some 1.0.0."""
    settings = Settings(path / "repository", path / "server.db", port=0)
    with running(settings) as upstream:
        wire = Wire(upstream)
        handler = type("Bound", (_Proxy,), {"wire": wire})
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield World(
                path, upstream, wire, f"http://127.0.0.1:{proxy.server_address[1]}", installed
            )
        finally:
            proxy.shutdown()
            thread.join()
            proxy.server_close()
