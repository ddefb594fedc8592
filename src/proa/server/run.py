"""Running the server: until a signal, or beside a test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from proa.server import app
from proa.server.catalogue import Reader
from proa.server.errors import ServerError
from proa.server.store import Store
from proa.wire.errors import UserError

LISTEN_EXIT = 10
_RETRY_SECONDS = 60
_log = logging.getLogger("proa.server")

# Signs what must stay fresh, and says when to call again. It lives in another house (the factory),
# so whoever starts the server hands it in.
Refresh = Callable[[datetime], datetime]


@dataclass(frozen=True)
class Settings:
    """Where the server reads, keeps and listens. Port 0 picks a free one."""

    repository: Path
    database: Path
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str | None = None
    refresh: Refresh | None = None


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (this machine only)."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ServerError(
            f"cannot listen on {text!r}", hint="Write it as 127.0.0.1:8080 or [::1]:8080.", code=2
        )
    return match[1] or match[2] or "127.0.0.1", int(match[3])


def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call ``ready`` with the URL once requests are answered."""
    with _server(settings, ready) as (server, listening):
        server.run(sockets=[listening])


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve in a thread while the body runs; yield the URL."""
    urls: list[str] = []
    started = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    with _server(settings, ready) as (server, listening):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not started.wait(0.1):
                if not thread.is_alive():
                    raise ServerError("the server did not start")
            yield urls[0]
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _server(
    settings: Settings, ready: Callable[[str], None]
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """Yield a server that is ready to run, and its socket."""
    with (
        contextlib.closing(_listen(settings.host, settings.port)) as listening,
        contextlib.closing(Store(settings.database)) as store,
    ):
        site = app.Site(
            settings.repository,
            store,
            Reader(settings.repository),
            settings.public_url.rstrip("/") if settings.public_url else None,
        )
        config = uvicorn.Config(
            app.create(site, _lifespan(settings.refresh)),
            log_config=None,
            access_log=False,
            server_header=False,
            # Whoever stands before the server is not believed about whom it speaks for.
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            ws="none",
        )
        yield _Server(config, lambda: ready(_url(settings.host, listening))), listening


class _Server(uvicorn.Server):
    """Uvicorn that says when it answers, and ends by a signal as by a wish: with success."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals come to the main thread alone; a thread is stopped by who started it.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        # The second time somebody is in a hurry.
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="Choose another address with --listen; port 0 picks a free one.",
            code=LISTEN_EXIT,
        ) from None
    return listening


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _lifespan(refresh: Refresh | None) -> app.Lifespan:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_keep_fresh(refresh)) if refresh else None
        try:
            yield
        finally:
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    return lifespan


async def _keep_fresh(refresh: Refresh) -> None:
    """Sign what must stay fresh, for ever; a failure is told once and tried again."""
    told = ""
    while True:
        now = datetime.now(UTC)
        try:
            pause = (await run_in_threadpool(refresh, now) - now).total_seconds()
            told = ""
        except (UserError, OSError) as error:
            pause = _RETRY_SECONDS
            if str(error) != told:
                told = str(error)
                _log.warning("cannot keep the repository's signatures fresh: %s", told)
        # A suspended machine wakes late, so never sleep long without looking at the clock.
        await asyncio.sleep(min(max(pause, 1), _RETRY_SECONDS))
