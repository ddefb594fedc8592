"""Talking with the update server: one Omaha request, with the events that wait to be delivered.

What is sent is listed, attribute by attribute, in ``docs/updating.md``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from urllib.parse import urlsplit

from proa.machine import fetch
from proa.machine.assignments import assignments
from proa.machine.config import DISABLED, Config
from proa.machine.errors import Code, MachineError
from proa.machine.state import Event, State, Store
from proa.machine.system import Running, System
from proa.wire import omaha
from proa.wire.version import Version, VersionError, parse


@dataclass(frozen=True)
class Offer:
    """A version that the server wants this machine to run; ``bases`` are repositories with it."""

    version: Version
    bases: tuple[str, ...]


@dataclass(frozen=True)
class Server:
    """Whom to ask, and as whom."""

    system: System
    config: Config
    running: Running
    patience: fetch.Patience = fetch.PATIENCE
    scheduled: bool = False

    def check(self, store: Store) -> Offer | None:
        """Ask for an update, delivering what waits; None means there is none for this machine."""
        answer = self._ask(store, check=True)
        return _offer(self.config.server, answer)

    def deliver(self, store: Store) -> bool:
        """Deliver the events that wait; trouble is no error here, they wait on. True if none is
        left."""
        if not store.load().events or self.config.server == DISABLED:
            return True
        try:
            self._ask(store, check=False)
        except MachineError:
            return False
        return True

    def _ask(self, store: Store, *, check: bool) -> omaha.AppResponse:
        url = self.config.server
        if urlsplit(url).scheme not in ("http", "https"):
            raise MachineError(
                Code.SERVER_UNREACHABLE,
                f"SERVER={url} is not an http or https address",
                "set SERVER in /etc/proa/update.conf, like http://updates.example/v1/update/",
            )
        state = store.load()
        body = omaha.dump_request(self._request(state, check=check))
        try:
            data = fetch.post(
                url, body, omaha.CONTENT_TYPE, limit=omaha.MAX_BYTES, patience=self.patience
            )
        except fetch.FetchError as error:
            code = Code.SERVER_UNREACHABLE if error.status is None else Code.BAD_ANSWER
            raise MachineError(
                code, f"update server: {error}", "check SERVER in update.conf and the network"
            ) from None
        try:
            apps = omaha.load_response(data).apps
        except omaha.OmahaError as error:
            raise _unusable(url, error.message) from None
        own = [a for a in apps if _bare(a.app_id) == _bare(omaha.DEFAULT_APP_ID)]
        if not own:
            raise _unusable(url, "it says nothing about this system")
        if own[0].status != "ok":
            raise _unusable(url, f"it says {own[0].status!r}")
        # Delivered: drop exactly what was sent, for more may have been queued meanwhile.
        sent = len(state.events)
        store.change(lambda now: dataclasses.replace(now, events=_without(now, state, sent)))
        return own[0]

    def _request(self, state: State, *, check: bool) -> omaha.Request:
        system, candidate = self.system, state.candidate
        oem = assignments(
            system.text("/etc/oem-release") or system.text("/usr/share/oem/oem-release")
        )
        waiting = candidate is not None and candidate.version != str(self.running.version)
        app = omaha.AppRequest(
            app_id=omaha.DEFAULT_APP_ID,
            version=str(self.running.version),
            track=self.config.group,
            boot_id=f"{{{system.boot_id}}}",
            machine_id=system.text("/etc/machine-id"),
            machine_alias=self.config.machine_alias,
            oem=oem.get("ID", ""),
            oem_version=oem.get("VERSION_ID", ""),
            aleph_version=state.aleph_version or str(self.running.version),
            board=f"{system.architecture}-usr",
            ping=check,
            update_check=check,
            events=tuple(omaha.Event(**dataclasses.asdict(event)) for event in state.events),
            next_version=candidate.version if candidate is not None and waiting else "",
        )
        return omaha.Request(
            apps=(app,),
            os_sp=f"{self.running.version}_{system.hardware}",
            install_source="scheduler" if self.scheduled else "ondemandupdate",
        )


def _offer(server: str, app: omaha.AppResponse) -> Offer | None:
    check = app.update_check
    if check is None:
        raise _unusable(server, "it has no answer to the update check")
    if check.status == "noupdate":
        return None
    try:
        version = parse(check.version)
    except VersionError as error:
        raise _unusable(server, str(error)) from None
    bases = []
    for codebase in check.codebases:
        base, found, rest = codebase.rpartition("/targets/")
        if found and rest.strip("/") == str(version):
            bases.append(f"{base}/")
    if not bases:
        raise _unusable(
            server,
            f"it offers {version} at {check.codebases[0]}, which is not a Proa repository "
            f"(…/targets/{version}/)",
        )
    return Offer(version, tuple(bases))


def _unusable(server: str, what: str) -> MachineError:
    return MachineError(
        Code.BAD_ANSWER,
        f"{server}: the server's answer cannot be used: {what}",
        "check that SERVER in update.conf is an Omaha server's address (…/v1/update/)",
    )


def _without(now: State, sent: State, count: int) -> tuple[Event, ...]:
    return now.events[count:] if now.events[:count] == sent.events else now.events


def _bare(app_id: str) -> str:
    return omaha.bare_app_id(app_id)
