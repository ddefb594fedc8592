"""Trying a document: what it touches is kept aside, and comes back unless the owner confirms.

A trial is the directory ``/var/lib/proa/config-try``: ``manifest.json`` and the kept files. It is
there, whole, before anything is changed. A transient timer goes back when the time is up; it does
not outlive a reboot, so proa-config-try.service looks at each boot whether a trial is open, and
arms it again or, if its time is over or it was cut off half done, goes back before the rest of
the boot reads its files.

Going back can be cut off at any moment and done again: the manifest goes last.

What cannot be taken back: a script that ran, the home directory of a user, what a unit did while
it ran.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from proa.machine.cloudconfig import access, files
from proa.machine.cloudconfig.changes import (
    ENVIRONMENT,
    UPDATE_CONF,
    AppendFile,
    AuthorizeKeys,
    Change,
    CommandUnit,
    CommandUnitOnce,
    CreateFile,
    DisableUnit,
    DownloadFile,
    EnableUnit,
    EnsureGroup,
    EnsureUser,
    FetchFile,
    ImportKeys,
    JoinGroup,
    MakeLink,
    MaskUnit,
    ReloadSshd,
    ReloadUnits,
    RestartNetwork,
    RestartService,
    SayFinal,
    SetEnvironment,
    SetHostname,
    SetHosts,
    SetMounts,
    SetPassword,
    SetTimezone,
    SetUpdateSettings,
    SshdSettings,
    StartScript,
    StartUnit,
    SudoRules,
    TellHostKeys,
    UnmaskUnit,
    WriteFile,
    describe,
)
from proa.machine.cloudconfig.machine import (
    MAX_FILE,
    CommandFailed,
    Machine,
    find_account,
    root_ids,
)
from proa.machine.cloudconfig.mounting import FSTAB
from proa.machine.errors import Code, MachineError
from proa.machine.record import dataclass

FOLDER = "/var/lib/proa/config-try"
MANIFEST = f"{FOLDER}/manifest.json"
APPLIED = f"{FOLDER}/applied"
LOCK = "/var/lib/proa/config-try.lock"
TIMER = "proa-config-revert"
MAX_MANIFEST = 16 * 1024 * 1024

ACCOUNT_FILES = (
    *("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid"),
)


# What a change touches.


@dataclass(frozen=True)
class Touched:
    """Files, and units whose state a change may alter. ``stays``: part of it cannot be undone."""

    paths: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    stays: bool = False


def touched(machine: Machine, change: Change) -> Touched:
    match change:
        case WriteFile(path) | AppendFile(path) | FetchFile(path) | CreateFile(path):
            return Touched((path,))
        case DownloadFile(path) | MaskUnit(path) | UnmaskUnit(path):
            return Touched((path,))
        case MakeLink(link):
            return Touched((link.path,))
        case SetHostname():
            return Touched(("/etc/hostname",))
        case SetUpdateSettings():
            return Touched((UPDATE_CONF,))
        case SetEnvironment():
            return Touched((ENVIRONMENT,))
        case SetHosts():
            return Touched(("/etc/hosts", "/etc/hostname"))
        case EnsureUser(user):
            stays = find_account(machine, user.name) is None and not user.no_create_home
            return Touched(ACCOUNT_FILES, stays=stays)
        case EnsureGroup() | JoinGroup() | SetPassword():
            return Touched(ACCOUNT_FILES)
        case SudoRules():
            return Touched((access.SUDOERS,))
        case SshdSettings():
            return Touched((access.SSHD,))
        case AuthorizeKeys(user) | ImportKeys(user):
            account = find_account(machine, user)
            home = account.home.rstrip("/") if account else f"/home/{user}"
            return Touched((f"{home}/.ssh/authorized_keys",) if home.startswith("/") else ())
        case EnableUnit(name) | DisableUnit(name) | StartUnit(name):
            return Touched(units=(name,))
        case CommandUnit(name) | CommandUnitOnce(name):
            return Touched(units=(name,))
        case ReloadUnits() | RestartNetwork() | ReloadSshd() | TellHostKeys():
            return Touched()
        case RestartService() | SayFinal():
            return Touched()
        case SetTimezone():
            return Touched(("/etc/localtime",))
        case SetMounts():
            return Touched((FSTAB,))
        case StartScript():
            return Touched((change.path,), stays=True)
    # A kind of change that this module does not know: its file, if it has one, and a warning.
    place = getattr(change, "path", None)
    return Touched((place,) if isinstance(place, str) else (), stays=True)


def cannot_undo(machine: Machine, changes: Sequence[Change]) -> tuple[str, ...]:
    """The changes of which a part stays when a trial goes back."""
    return tuple(describe(change) for change in changes if touched(machine, change).stays)


# Beginning.


def begin(
    machine: Machine, changes: Sequence[Change], minutes: int, also: Sequence[str]
) -> dict[str, Any]:
    """Keep aside what the changes touch, and the files ``also``; arm the timer.

    Returns the manifest. Raises :class:`MachineError` if a trial is open already.
    """
    if open_trial(machine) is not None:
        hint = "`proactl config confirm` keeps it, `proactl config revert` goes back"
        raise MachineError(Code.UNEXPECTED, "a trial is open already", hint)
    for rest in (FOLDER, f"{FOLDER}.new"):  # of one that was cut off at its very end or beginning
        _remove(machine, rest)
    found = [touched(machine, change) for change in changes]
    paths = dict.fromkeys((*(path for t in found for path in t.paths), *also))
    units = dict.fromkeys(unit for t in found for unit in t.units)
    disabled = {change.name for change in changes if isinstance(change, DisableUnit)}
    kept = [_keep(machine, path, number) for number, path in enumerate(paths)]
    now = time.time()
    manifest: dict[str, Any] = {
        "format": 1,
        "started": now,
        "until": now + 60 * minutes,
        "files": kept,
        "units": [_unit_state(machine, unit, unit in disabled) for unit in units],
    }
    content = json.dumps(manifest, indent=1).encode()
    files.write(machine.root, f"{FOLDER}.new/manifest.json", content, 0o600, *root_ids())
    _sync_folder(machine, f"{FOLDER}.new")
    (machine.root / f"{FOLDER}.new"[1:]).rename(machine.root / FOLDER[1:])
    _sync_folder(machine, "/var/lib/proa")
    arm(machine, 60 * minutes)
    return manifest


def _keep(machine: Machine, path: str, number: int) -> dict[str, Any]:
    kind: Literal["absent", "link", "file"] = "absent"
    entry: dict[str, Any] = {"path": path}
    if (target := files.target_of(machine.root, path)) is not None:
        kind, entry["target"] = "link", target
    elif (found := files.read(machine.root, path, MAX_FILE)) is not None:
        kind = "file"
        entry |= {"mode": found.mode, "uid": found.uid, "gid": found.gid, "copy": str(number)}
        copy = f"{FOLDER}.new/{number}"
        files.make_directory(machine.root, f"{FOLDER}.new", 0o700, *root_ids())
        files.write(machine.root, copy, found.content, 0o600, *root_ids())
    return entry | {"kind": kind}


def _unit_state(machine: Machine, unit: str, will_be_disabled: bool) -> dict[str, Any]:
    """The unit as it is, and what to do to its links when the trial goes back."""
    enabled = _says_yes(machine, ("systemctl", "--quiet", "is-enabled", "--", unit))
    return {
        "name": unit,
        "active": _says_yes(machine, ("systemctl", "--quiet", "is-active", "--", unit)),
        "links": ("enable" if will_be_disabled else "") if enabled else "disable",
    }


def _says_yes(machine: Machine, command: Sequence[str]) -> bool:
    try:
        machine.run(command, b"")
    except CommandFailed:
        return False
    return True


def arm(machine: Machine, seconds: float) -> None:
    """Go back after this time, whoever is still logged in then."""
    machine.run(
        (
            *("systemd-run", "--quiet", "--collect", f"--unit={TIMER}"),
            *(f"--on-active={max(int(seconds), 1)}s", "--timer-property=AccuracySec=1s"),
            *("--description=Go back from a configuration that nobody confirmed",),
            *("--", "/usr/bin/proactl", "config", "revert"),
        ),
        b"",
    )


def applied(machine: Machine) -> None:
    """Say that the changes of the open trial were all made."""
    files.write(machine.root, APPLIED, b"", 0o600, *root_ids())


# An open trial.


def open_trial(machine: Machine) -> dict[str, Any] | None:
    """The manifest of the open trial. A damaged one reads as one that has nothing to restore."""
    found = files.read(machine.root, MANIFEST, MAX_MANIFEST)
    if found is None:
        return None
    try:
        manifest = json.loads(found.content)
        if manifest["format"] == 1 and isinstance(manifest["until"], int | float):
            return dict(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return {"format": 1, "started": 0.0, "until": 0.0, "files": [], "units": []}


def confirm(machine: Machine) -> bool:
    """Keep what the trial made; whether there was one."""
    if open_trial(machine) is None:
        return False
    _end(machine)
    return True


def revert(machine: Machine, *, early: bool = False) -> tuple[str, ...]:
    """Go back. Returns what could not be put back, in words.

    ``early``: at the beginning of a boot, when no unit that matters runs yet.
    """
    manifest = open_trial(machine)
    if manifest is None:
        raise MachineError(Code.UNEXPECTED, "no trial is open", None)
    failed: list[str] = []
    files.remove(machine.root, APPLIED)  # cut off from here on, the next boot goes on going back
    for unit in manifest["units"]:  # while the unit's file, which names the links, is still there
        if unit["links"] in ("enable", "disable"):
            command = ("systemctl", unit["links"], "--no-reload", "--", unit["name"])
            _try(machine, failed, command)
    for entry in manifest["files"]:
        try:
            _put_back(machine, entry)
        except (files.FileProblem, OSError, KeyError, TypeError) as error:
            failed.append(f"{entry.get('path', '?')}: {error}")
    _try(machine, failed, ("systemctl", "daemon-reload"))
    hostname = files.read(machine.root, "/etc/hostname", 4096)
    if hostname is not None and hostname.content.strip():
        machine.set_hostname(hostname.content.decode("utf-8", "replace").strip())
    if not early:
        network = ("systemctl", "--no-block", "try-restart", "systemd-networkd.service")
        if any("/systemd/network/" in entry["path"] for entry in manifest["files"]):
            _try(machine, failed, network)
        if any(entry["path"].startswith("/etc/ssh/") for entry in manifest["files"]):
            reload = ("systemctl", "--no-block", "try-reload-or-restart", "ssh.service")
            _try(machine, failed, reload)
        for unit in manifest["units"]:
            verb = "restart" if unit["active"] else "stop"
            _try(machine, failed, ("systemctl", "--no-block", verb, "--", unit["name"]))
    _end(machine)
    return tuple(failed)


def _try(machine: Machine, failed: list[str], command: Sequence[str]) -> None:
    # A unit that the trial brought is gone by now: nothing to stop or to disable.
    gone = any(verb in command for verb in ("stop", "enable", "disable")) and "--" in command
    try:
        machine.run(command, b"")
    except CommandFailed as error:
        if not gone:
            failed.append(str(error))


def _put_back(machine: Machine, entry: dict[str, Any]) -> None:
    path, root = str(entry["path"]), machine.root
    if entry["kind"] == "absent":
        files.remove(root, path)
    elif entry["kind"] == "link":
        files.link(root, path, str(entry["target"]))
    else:
        copy = files.read(root, f"{FOLDER}/{int(entry['copy'])}", MAX_FILE)
        if copy is None:
            raise files.FileProblem("its copy is missing")
        ids = int(entry["uid"]), int(entry["gid"])
        files.write(root, path, copy.content, int(entry["mode"]), *ids)


def resume(machine: Machine) -> str | None:
    """At boot: what became of an open trial, in words; ``None`` if none is open."""
    manifest = open_trial(machine)
    if manifest is None:
        return None
    left = manifest["until"] - time.time()
    # A clock that stands before the beginning of the trial says nothing about its end.
    lost = left > manifest["until"] - manifest["started"]
    if left <= 0 or lost or not files.exists(machine.root, APPLIED):
        failed = revert(machine, early=True)
        return "gone back" + "".join(f"; {words}" for words in failed)
    arm(machine, left)
    return f"goes back in {left / 60:.0f} minutes unless confirmed"


def _end(machine: Machine) -> None:
    """The manifest goes first, and with it the trial; then the copies."""
    files.remove(machine.root, MANIFEST)
    _remove(machine, FOLDER)
    with contextlib.suppress(CommandFailed):  # it may be the timer itself that calls
        machine.run(("systemctl", "stop", f"{TIMER}.timer"), b"")


def _remove(machine: Machine, folder: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(machine.root / folder.lstrip("/"))


def _sync_folder(machine: Machine, folder: str) -> None:
    descriptor = os.open(machine.root / folder.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(machine: Machine) -> Iterator[None]:
    """One at a time: a timer that goes off while changes are still being made waits for them."""
    place = machine.root / LOCK.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
