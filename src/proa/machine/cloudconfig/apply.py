"""Make the changes on a machine: the only part of cloud-config that touches anything.

It runs on every boot, and on most of them there is nothing to do. For each change that lasts, a
digest of what it wanted is remembered. If it wants the same as last time and what it made is still
there, it is left as it is now: an owner who edits the file by hand keeps the edit. A changed
document, or a missing file, is applied anew. A failed change is told and the others go on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import (
    UPDATE_CONF,
    AuthorizeKeys,
    Change,
    CommandUnit,
    EnableUnit,
    EnsureUser,
    MaskUnit,
    ReloadUnits,
    RestartNetwork,
    SetHostname,
    SetUpdateSettings,
    UnmaskUnit,
    WriteFile,
    describe,
    identity,
    wish,
)
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.parse import printable

Status = Literal["done", "unchanged", "kept", "failed", "skipped"]

COMMAND_TIMEOUT = 60.0
"""Seconds; useradd and systemctl take far less even under emulation."""

_MAX_FILE = 64 * 1024 * 1024
_KEYS_BEGIN = "# proa cloud-config: begin (written at boot; put your own keys outside)"
_KEYS_END = "# proa cloud-config: end"


class CommandFailed(Exception):
    """A program did not do what it was called for."""


Run = Callable[[Sequence[str], bytes], None]
"""Run a program with this standard input; raises :class:`CommandFailed`."""


@dataclass(frozen=True)
class Machine:
    """The edges: a root directory, a way to run programs, and the kernel's host name."""

    root: Path
    run: Run
    set_hostname: Callable[[str], None]


@dataclass(frozen=True)
class Result:
    what: str
    status: Status
    note: str = ""


@dataclass
class Outcome:
    results: list[Result] = field(default_factory=list)
    remembered: dict[str, str] = field(default_factory=dict)
    """identity → wish, for the next boot."""

    @property
    def failed(self) -> bool:
        return any(result.status == "failed" for result in self.results)


def run_program(command: Sequence[str], stdin: bytes = b"") -> None:
    """Run a program; its last line of output is the reason if it fails."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise CommandFailed(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{command[0]} took more than {COMMAND_TIMEOUT:.0f} s") from None
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        raise CommandFailed(f"{command[0]}: {printable(lines[-1], 200)} ({done.returncode})")


def apply(changes: Iterable[Change], machine: Machine, remembered: Mapping[str, str]) -> Outcome:
    """Make the changes in their order. ``remembered`` is what the last boot's outcome held."""
    outcome = Outcome(remembered=dict(remembered))
    touched: set[str] = set()  # the directories below which systemd has to look again
    for change in changes:
        name, wanted = identity(change), wish(change)
        same_wish = name is not None and remembered.get(name) == wanted
        try:
            status, note = _make(change, machine, same_wish, touched)
        except (FileProblem, CommandFailed, OSError) as error:
            status, note = "failed", printable(str(error), 300)
        outcome.results.append(Result(describe(change), status, note))
        if status == "failed":
            outcome.remembered.pop(name or "", None)
        elif name is not None and not (isinstance(change, AuthorizeKeys) and change.keep):
            outcome.remembered[name] = wanted
    return outcome


def _make(
    change: Change, machine: Machine, same_wish: bool, touched: set[str]
) -> tuple[Status, str]:
    match change:
        case SetHostname(name):
            return _set_hostname(machine, name, same_wish)
        case EnsureUser():
            return _ensure_user(machine, change, same_wish)
        case AuthorizeKeys():
            return _authorize(machine, change, same_wish)
        case WriteFile():
            status, note = _write_file(machine, change, same_wish)
        case SetUpdateSettings(settings):
            return _set_update(machine, dict(settings), same_wish)
        case MaskUnit(path):
            status, note = _mask(machine, path)
        case UnmaskUnit(path):
            status, note = _unmask(machine, path)
        case EnableUnit(name, runtime):
            status, note = _enable(machine, name, runtime, same_wish)
        case ReloadUnits():
            if "system" not in touched:
                return "skipped", "no unit changed"
            machine.run(("systemctl", "daemon-reload"), b"")
            return "done", ""
        case RestartNetwork():
            if "network" not in touched:
                return "skipped", "no network file changed"
            machine.run(("systemctl", "--no-block", "try-restart", "systemd-networkd.service"), b"")
            return "done", ""
        case CommandUnit(name, command):
            machine.run(("systemctl", "--no-block", command, "--", name), b"")
            return "done", ""
    if status == "done":
        touched |= _systemd_folder(change)
    return status, note


def _systemd_folder(change: Change) -> set[str]:
    """Which of systemd's directories, "system" or "network", the change wrote to."""
    match change:
        case WriteFile(path) | MaskUnit(path) | UnmaskUnit(path):
            parts = path.split("/")
            if parts[2:3] == ["systemd"] and parts[1] in ("etc", "run"):
                return {parts[3]}
        case EnableUnit():
            return {"system"}
    return set()


def _set_hostname(machine: Machine, name: str, same_wish: bool) -> tuple[Status, str]:
    found = files.read(machine.root, "/etc/hostname", 4096)
    now = found.content.decode("utf-8", "replace").strip() if found else ""
    if now == name:
        return "unchanged", ""
    if now and same_wish:
        return "kept", f"it was set to {printable(now)} on the machine"
    files.write(machine.root, "/etc/hostname", f"{name}\n".encode(), 0o644, *_root_ids())
    machine.set_hostname(name)  # systemd read the file before us
    return "done", ""


# Users and groups, read from the files themselves: what NSS would add is not ours to change.


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int
    home: str


def _database(machine: Machine, path: str) -> dict[str, list[str]]:
    """Entries of a file like /etc/passwd by name (passwd(5), group(5), shadow(5))."""
    found = files.read(machine.root, path, _MAX_FILE)
    lines = found.content.decode("utf-8", "replace").split("\n") if found else []
    entries = [line.split(":") for line in lines if ":" in line]
    return {entry[0]: entry for entry in entries}


def _account(machine: Machine, name: str) -> _Account | None:
    entry = _database(machine, "/etc/passwd").get(name)
    if entry is None or len(entry) < 7 or not (entry[2].isdigit() and entry[3].isdigit()):
        return None
    return _Account(int(entry[2]), int(entry[3]), entry[5])


def _ensure_user(machine: Machine, change: EnsureUser, same_wish: bool) -> tuple[Status, str]:
    user = change.user
    known_groups = _database(machine, "/etc/group")
    groups = [group for group in user.groups if group in known_groups]
    missing = [group for group in user.groups if group not in known_groups]
    note = f"there is no group {', '.join(missing)}" if missing else ""
    account = _account(machine, user.name)
    if account is not None and same_wish:
        return "unchanged", note
    done = account is None
    if account is None:
        machine.run(_useradd(change, groups), b"")
    else:
        absent = [g for g in groups if user.name not in known_groups[g][-1].strip().split(",")]
        if absent:
            machine.run(("usermod", "--append", "--groups", ",".join(absent), "--", user.name), b"")
            done = True
    if user.passwd is not None:
        shadow = _database(machine, "/etc/shadow").get(user.name, ["", ""])
        if shadow[1] != user.passwd:
            # By standard input: a command line is for all to see.
            machine.run(("chpasswd", "-e"), f"{user.name}:{user.passwd}\n".encode())
            done = True
    return ("done" if done else "unchanged"), note


def _useradd(change: EnsureUser, groups: Sequence[str]) -> tuple[str, ...]:
    user = change.user
    command = ["useradd", "--password", "*"]  # no password opens it, and sshd takes keys
    options = {
        "--comment": user.gecos,
        "--home-dir": user.homedir,
        "--gid": user.primary_group,
        "--groups": ",".join(groups),
        "--shell": user.shell,
    }
    for option, value in options.items():
        if value:
            command += [option, value]
    command.append("--no-create-home" if user.no_create_home else "--create-home")
    for option, wanted in (
        ("--no-user-group", user.no_user_group),
        ("--system", user.system),
        ("--no-log-init", user.no_log_init),
    ):
        if wanted:
            command.append(option)
    return (*command, "--", user.name)


def _authorize(machine: Machine, change: AuthorizeKeys, same_wish: bool) -> tuple[Status, str]:
    account = _account(machine, change.user)
    if account is None:
        if not change.keys:
            return "unchanged", ""
        raise FileProblem(f"there is no user {change.user}")
    home = account.home.rstrip("/")
    if not home.startswith("/"):
        raise FileProblem(f"the user {change.user} has no home directory")
    path = f"{home}/.ssh/authorized_keys"
    found = files.read(machine.root, path, _MAX_FILE)
    if found is not None:
        if same_wish:
            return "unchanged", ""
        if found.uid != account.uid and (found.links > 1 or found.uid != 0):
            raise FileProblem(f"{path} belongs to someone else")
    before = found.content.decode("utf-8", "surrogateescape") if found else ""
    after = with_keys(before, change.keys, keep=change.keep)
    if after == before and (found is not None or not after):
        return "unchanged", ""
    if files.make_directory(machine.root, home, 0o700, account.uid, account.gid):
        _copy_skeleton(machine, home, account)
    files.make_directory(machine.root, f"{home}/.ssh", 0o700, account.uid, account.gid)
    content = after.encode("utf-8", "surrogateescape")
    files.write(machine.root, path, content, 0o600, account.uid, account.gid)
    return "done", ""


def with_keys(text: str, keys: Sequence[str], *, keep: bool) -> str:
    """An authorized_keys file with our part replaced (or, with ``keep``, added to)."""
    before, ours, after = _split(text)
    elsewhere = {line.strip() for line in (*before, *after)}
    wanted = dict.fromkeys((*ours, *keys) if keep else keys)
    block = [key for key in wanted if key not in elsewhere]
    lines = [*before, *([_KEYS_BEGIN, *block, _KEYS_END] if block else []), *after]
    return "".join(f"{line}\n" for line in lines)


def _split(text: str) -> tuple[list[str], list[str], list[str]]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if _KEYS_BEGIN not in lines or _KEYS_END not in lines[lines.index(_KEYS_BEGIN) :]:
        return lines, [], []
    begin = lines.index(_KEYS_BEGIN)
    end = lines.index(_KEYS_END, begin)
    return lines[:begin], lines[begin + 1 : end], lines[end + 1 :]


def _copy_skeleton(machine: Machine, home: str, account: _Account) -> None:
    """The files that useradd would have put into a home that it makes (skel: useradd(8))."""
    skeleton = machine.root / "etc/skel"
    for name in sorted(p.name for p in skeleton.iterdir()) if skeleton.is_dir() else ():
        if found := files.read(machine.root, f"/etc/skel/{name}", _MAX_FILE):
            mode, uid, gid = found.mode, account.uid, account.gid
            files.write(machine.root, f"{home}/{name}", found.content, mode, uid, gid)


# Files, update.conf and units.


def _root_ids() -> tuple[int, int]:
    """Root's ids; in a test, which is not root, the ids of whoever runs it."""
    return (0, 0) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def _owner_ids(machine: Machine, owner: str) -> tuple[int, int]:
    if owner == "root:root":
        return _root_ids()
    user, _, group = owner.partition(":")
    if user.isdigit():
        uid, gid = int(user), 0
    else:
        account = _account(machine, user)
        if account is None:
            raise FileProblem(f"there is no user {user}")
        uid, gid = account.uid, account.gid
    if group:
        entry = _database(machine, "/etc/group").get(group, ["", "", group])
        if len(entry) < 3 or not entry[2].isdigit():
            raise FileProblem(f"there is no group {group}")
        gid = int(entry[2])
    return uid, gid


def _write_file(machine: Machine, change: WriteFile, same_wish: bool) -> tuple[Status, str]:
    uid, gid = _owner_ids(machine, change.owner)
    path = change.path
    if files.is_link(machine.root, path):
        if same_wish:
            return "kept", "it was made a link on the machine"
    else:
        found = files.read(machine.root, path, _MAX_FILE)
        wanted = (change.content, change.mode, uid, gid)
        if found and (found.content, found.mode, found.uid, found.gid) == wanted:
            return "unchanged", ""
        if found and same_wish:
            return "kept", "it was edited on the machine"
    files.write(machine.root, path, change.content, change.mode, uid, gid)
    return "done", ""


def _set_update(
    machine: Machine, settings: Mapping[str, str], same_wish: bool
) -> tuple[Status, str]:
    found = files.read(machine.root, UPDATE_CONF, _MAX_FILE)
    before = found.content.decode("utf-8", "surrogateescape") if found else ""
    after = with_settings(before, settings)
    if found and after == before:
        return "unchanged", ""
    if found and same_wish:
        return "kept", "it was edited on the machine"
    content = after.encode("utf-8", "surrogateescape")
    files.write(machine.root, UPDATE_CONF, content, 0o644, *_root_ids())
    return "done", ""


def with_settings(text: str, settings: Mapping[str, str]) -> str:
    """A file of ``KEY=value`` lines with these keys set; missing ones come last, sorted."""
    lines: list[str] = []
    left = dict(settings)
    for line in text.removesuffix("\n").split("\n") if text else ():
        key = line.partition("=")[0].strip()
        if key in settings:
            if key in left:
                lines.append(f"{key}={left.pop(key)}")
            continue  # a second line for the same key would win over ours
        lines.append(line)
    lines += [f"{key}={value}" for key, value in sorted(left.items())]
    return "".join(f"{line}\n" for line in lines)


def _mask(machine: Machine, path: str) -> tuple[Status, str]:
    if files.target_of(machine.root, path) == "/dev/null":
        return "unchanged", ""
    files.link(machine.root, path, "/dev/null")
    return "done", ""


def _unmask(machine: Machine, path: str) -> tuple[Status, str]:
    target = files.target_of(machine.root, path)
    if target is None:
        found = files.read(machine.root, path, _MAX_FILE)
        if found is None or found.content:
            return "unchanged", ""
    elif target != "/dev/null":
        return "unchanged", ""
    files.remove(machine.root, path)
    return "done", ""


def _enable(machine: Machine, name: str, runtime: bool, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    options = ("--runtime",) if runtime else ()
    machine.run(("systemctl", "enable", "--no-reload", *options, "--", name), b"")
    return "done", ""
