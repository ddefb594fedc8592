"""One Omaha request: remember what the machine says, decide, answer."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from proa.server import policy
from proa.server.catalogue import Catalogue, Release
from proa.server.policy import Decision, Progress
from proa.server.store import Machine, Store, stamp
from proa.wire import omaha
from proa.wire.omaha import (
    AppRequest,
    AppResponse,
    Event,
    EventResult,
    Package,
    Request,
    Response,
    UpdateCheck,
)
from proa.wire.text import printable

SERVER_NAME = "proa"
# A body of this size says nothing new; it keeps a stranger from filling the disk at once.
MAX_APPS = 8
_OUR_APP = omaha.bare_app_id(omaha.DEFAULT_APP_ID)
_log = logging.getLogger("proa.server")


def answer(
    request: Request, store: Store, catalogue: Catalogue, *, base: str, ip: str, now: datetime
) -> Response:
    """Answer a request; ``base`` is the URL of this server without a final slash."""
    apps = tuple(
        _answer_app(app, store, catalogue, base, ip, now) for app in request.apps[:MAX_APPS]
    )
    return Response(SERVER_NAME, apps)


def _answer_app(
    app: AppRequest, store: Store, catalogue: Catalogue, base: str, ip: str, now: datetime
) -> AppResponse:
    if omaha.bare_app_id(app.app_id) != _OUR_APP:
        check = UpdateCheck("noupdate") if app.update_check else None
        return AppResponse(app.app_id, "error-unknownApplication", app.ping, check, len(app.events))
    decision = policy.decide(app, store.channel_of(app.track), catalogue)
    if app.machine_id:
        with store.transaction():
            _remember(app, store, decision, ip, now)
    if not app.update_check:
        check = None
    elif decision.release is None:
        check = UpdateCheck("noupdate")
    else:
        check = offer(decision.release, base)
    if app.update_check:
        verb = "offered" if decision.release else "nothing:"
        _tell(f"{_name(app)} ({app.track}, {app.version}): {verb} {decision.why}")
    return AppResponse(app.app_id, "ok", app.ping, check, len(app.events))


def offer(release: Release, base: str) -> UpdateCheck:
    """Return the offer of a release; the repository is what stands before ``targets/``."""
    packages = tuple(
        Package(file.name, file.size, file.sha256_b64, file.sha1_b64) for file in release.files
    )
    return UpdateCheck(
        "ok",
        codebases=(f"{base}/repository/targets/{release.version}/",),
        version=release.version,
        packages=packages,
        sha256_b64=packages[0].sha256_b64,
        disable_payload_backoff=True,
    )


def _remember(app: AppRequest, store: Store, decision: Decision, ip: str, now: datetime) -> None:
    """Bring the machine's row up to date: first what it reports, then what it is answered."""
    before = store.machine(_OUR_APP, app.machine_id)
    machine = _machine(app, before, ip, now)
    store.save_machine(machine)  # An event belongs to a row, which the first one must find.
    progress = machine.progress
    for event in app.events:
        progress = policy.after_event(progress, event)
        if policy.is_news(event):
            store.add_event(machine, event, progress.version, now)
            _note(app, store, event, progress, now)
    if app.update_check:
        progress = policy.after_check(progress, app, decision)
    elif app.next_version:
        progress = Progress(policy.Status.STAGED, app.next_version)
    if progress != machine.progress:
        machine = replace(
            machine,
            status=progress.status,
            status_version=progress.version,
            status_since=stamp(now),
        )
        store.save_machine(machine)


def _machine(app: AppRequest, before: Machine | None, ip: str, now: datetime) -> Machine:
    progress = before.progress if before else Progress()
    return Machine(
        app_id=_OUR_APP,
        machine_id=app.machine_id,
        alias=app.machine_alias,
        version=app.version,
        next_version=app.next_version,
        group_name=app.track,
        board=app.board,
        oem=app.oem,
        aleph_version=app.aleph_version,
        boot_id=app.boot_id,
        ip=ip,
        status=progress.status,
        status_version=progress.version,
        status_since=before.status_since if before else stamp(now),
        first_seen=before.first_seen if before else stamp(now),
        last_seen=stamp(now),
    )


def _note(app: AppRequest, store: Store, event: Event, progress: Progress, now: datetime) -> None:
    """Tell the operator of what went wrong, and of an update that is through."""
    if event.result == EventResult.ERROR:
        why = event.reason or omaha.describe(event.errorcode or 0)
        text = f"{policy.describe(progress)}: {why}"
    elif progress.status is policy.Status.CURRENT:
        text = f"updated from {event.previous_version} to {app.version}"
    else:
        return
    store.add_activity("machine", app.machine_id, text, now)
    _tell(f"{_name(app)}: {text}")


def _name(app: AppRequest) -> str:
    return app.machine_alias or app.machine_id or "a machine without an id"


def _tell(line: str) -> None:
    _log.info("%s", printable(line))
