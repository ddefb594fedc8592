"""The server on HTTP: Omaha, the repository's files, and whether it is well."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proa.server import service
from proa.server.catalogue import Catalogue, Reader
from proa.server.errors import ServerError
from proa.server.store import Store
from proa.wire import omaha
from proa.wire.omaha import OmahaError

_METADATA = re.compile(r"(?:[0-9]{1,9}\.(?:root|targets|snapshot)|timestamp)\.json")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")
_TARGET = re.compile(r"([0-9a-f]{64})\.[A-Za-z0-9._+-]+")
_log = logging.getLogger("proa.server")

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Site:
    """What the routes work on. ``public_url`` has no final slash; None: as the client asked."""

    repository: Path
    store: Store
    reader: Reader
    public_url: str | None = None


def create(site: Site, lifespan: Lifespan | None = None) -> Starlette:
    """Return the application."""

    async def update(request: Request) -> Response:
        return await _update(site, request)

    async def metadata(request: Request) -> Response:
        return await run_in_threadpool(_metadata, site, request)

    async def target(request: Request) -> Response:
        return await run_in_threadpool(_target, site, request)

    async def health(_: Request) -> Response:
        return await run_in_threadpool(_health, site)

    return Starlette(
        routes=[
            Route("/v1/update/", update, methods=["POST"]),
            Route("/v1/update", update, methods=["POST"]),
            Route("/repository/metadata/{name}", metadata),
            Route("/repository/targets/{version}/{name}", target),
            Route("/healthz", health),
        ],
        lifespan=lifespan or _nothing,
    )


async def _update(site: Site, request: Request) -> Response:
    try:
        body = await _body(request)
    except ClientDisconnect:
        return PlainTextResponse("the request was cut short\n", 400)
    except _TooLongError:
        return PlainTextResponse(f"a request has at most {omaha.MAX_BYTES} bytes\n", 413)
    try:
        asked = omaha.load_request(body)
    except OmahaError as error:
        return PlainTextResponse(f"{error.message}\n", 400)
    base = site.public_url or f"{request.url.scheme}://{request.url.netloc}"
    ip = request.client.host if request.client else ""
    try:
        answer = await run_in_threadpool(
            lambda: service.answer(
                asked,
                site.store,
                _catalogue(site),
                base=base,
                ip=ip,
                now=datetime.now(UTC),
            )
        )
    except sqlite3.Error as error:
        # Clients ask again later, and less often the longer it lasts.
        _log.error("the database failed: %s", error)
        return PlainTextResponse("the server cannot answer now; ask again later\n", 503)
    return Response(omaha.dump_response(answer), media_type="text/xml")


class _TooLongError(Exception):
    """The body is longer than any Omaha request."""


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > omaha.MAX_BYTES:
            raise _TooLongError
    return bytes(body)


def _catalogue(site: Site) -> Catalogue:
    """Return what can be offered; nothing, while the repository cannot be read."""
    try:
        return site.reader.read()
    except ServerError as error:
        _log.error("%s", error.message)
        return Catalogue()


def _metadata(site: Site, request: Request) -> Response:
    """Serve a metadata file from one read, since it may be replaced at any time."""
    name = request.path_params["name"]
    if not _METADATA.fullmatch(name):
        raise HTTPException(404)
    try:
        data = (site.repository / "metadata" / name).read_bytes()
    except FileNotFoundError:
        raise HTTPException(404) from None
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    # Only timestamp.json ever changes.
    fresh = "no-cache" if name == "timestamp.json" else "public, max-age=3600"
    headers = {"ETag": tag, "Cache-Control": fresh}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="application/json", headers=headers)


def _target(site: Site, request: Request) -> Response:
    """Serve a file of a release, whole or in ranges. Its hash is in its name, so it is its tag:
    a download can be resumed from another mirror."""
    version, name = request.path_params["version"], request.path_params["name"]
    match = _TARGET.fullmatch(name)
    if match is None or not _VERSION.fullmatch(version):
        raise HTTPException(404)
    path = site.repository / "targets" / version / name
    try:
        found = path.stat()
    except OSError:
        raise HTTPException(404) from None
    headers = {"ETag": f'"{match[1]}"', "Cache-Control": "public, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return _File(path, stat_result=found, media_type="application/octet-stream", headers=headers)


class _File(FileResponse):
    chunk_size = 1 << 18  # Bytes; each costs a change of thread.


def _health(site: Site) -> Response:
    try:
        versions = len(site.reader.read().releases)
        machines = len(site.store.machines())
    except (ServerError, sqlite3.Error) as error:
        return JSONResponse({"status": "failing", "reason": str(error)}, 503)
    return JSONResponse({"status": "ok", "versions": versions, "machines": machines})


@contextlib.asynccontextmanager
async def _nothing(_: Starlette) -> AsyncIterator[None]:
    yield
