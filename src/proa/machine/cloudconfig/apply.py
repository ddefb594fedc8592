"""Make the changes on a machine: the only part of cloud-config that touches anything.

It runs on every boot, and on most of them there is nothing to do. For each change that lasts, a
digest of what it wanted is remembered. If it wants the same as last time and what it made is still
there, it is left as it is now: an owner who edits the file by hand keeps the edit. A changed
document, or a missing file, is applied anew. A failed change is told and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from proa.machine.cloudconfig import access, accounts, authorized, placing
from proa.machine.cloudconfig.changes import (
    AppendFile,
    AuthorizeKeys,
    Change,
    ChangePower,
    CommandUnit,
    CommandUnitOnce,
    CreateFile,
    DeleteHostKeys,
    DisableUnit,
    DownloadFile,
    EnableUnit,
    EnsureGroup,
    EnsureUser,
    FetchFile,
    ImportKeys,
    JoinGroup,
    MakeDirectory,
    MakeFileSystem,
    MakeHostKey,
    MakeLink,
    MakeSwapFile,
    MaskUnit,
    Mount,
    PartitionDisk,
    PhoneHome,
    PlaceHostKey,
    ReloadSshd,
    ReloadUnits,
    RestartNetwork,
    RestartService,
    RunScript,
    SayFinal,
    SeedRandom,
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
    TrustCertificates,
    UnmaskUnit,
    WriteFile,
    describe,
    happens_once,
    identity,
    wish,
)
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import CommandFailed, FetchFailed, Machine, Status
from proa.machine.cloudconfig.parse import printable
from proa.machine.record import dataclass, field


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


def apply(
    changes: Iterable[Change],
    machine: Machine,
    remembered: Mapping[str, str],
    remember: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Make the changes in their order. ``remembered`` is what the last boot's outcome held.

    ``remember`` is called as soon as something was done that must not be done twice, so that a
    power cut after it does not lose that. What was begun and did not end is begun again by the
    next boot; only a change of the power state is noted before it is made, or it might never stop.
    """
    outcome = Outcome(remembered=dict(remembered))
    # Who has to look again, and the paths that were written.
    touched: set[str] = set()
    for change in changes:
        name = identity(change)
        before = remembered.get(name, "") if name else ""
        wanted = wish(change, like=before)
        same_wish = before == wanted
        if name in remembered and happens_once(change):
            outcome.results.append(_done_before(change, same_wish))
            continue
        if isinstance(change, ChangePower):
            outcome.remembered[name or ""] = wanted
            if remember:
                remember(outcome)
        ended = True
        try:
            status, note = _make(change, machine, same_wish, bool(before), touched)
        except (FileProblem, CommandFailed, FetchFailed, OSError) as error:
            status, note = "failed", printable(str(error), 300)
            ended = isinstance(error, CommandFailed) and error.ended
        outcome.results.append(Result(describe(change), status, note))
        if not ended:
            outcome.remembered.pop(name or "", None)
        elif name is not None and not (
            isinstance(change, AuthorizeKeys | ImportKeys) and change.keep
        ):
            outcome.remembered[name] = wanted
        if name is not None and not same_wish and _must_not_be_lost(change) and remember:
            remember(outcome)
    return outcome


def _done_before(change: Change, same_wish: bool) -> Result:
    note = "" if same_wish else "it was done already; what the document says now is for a new one"
    return Result(describe(change), "unchanged" if same_wish else "kept", note)


def _must_not_be_lost(change: Change) -> bool:
    """Doing it twice would run the owner's program again, or destroy what is on a disk."""
    return happens_once(change) or isinstance(change, PartitionDisk | MakeFileSystem)


def _make(
    change: Change, machine: Machine, same_wish: bool, ours: bool, touched: set[str]
) -> tuple[Status, str]:
    """``ours``: an earlier boot made this, perhaps otherwise, and it may be replaced."""
    match change:
        case SetHostname(name):
            return placing.set_hostname(machine, name, same_wish)
        case SetHosts():
            return placing.set_hosts(machine, change, same_wish)
        case EnsureGroup():
            return accounts.ensure_group(machine, change)
        case EnsureUser():
            return accounts.ensure_user(machine, change, same_wish)
        case JoinGroup():
            return accounts.join_group(machine, change, same_wish)
        case SetPassword(password):
            return accounts.set_password(machine, password, same_wish)
        case SudoRules(rules):
            return access.set_sudo_rules(machine, rules, same_wish)
        case AuthorizeKeys():
            return authorized.authorize(machine, change, same_wish)
        case ImportKeys():
            return authorized.import_keys(machine, change, same_wish)
        case SshdSettings(lines):
            status, note = access.set_sshd(machine, lines, same_wish)
        case DeleteHostKeys():
            status, note = access.delete_host_keys(machine, same_wish)
        case PlaceHostKey(key):
            status, note = access.place_host_key(machine, key, same_wish)
        case MakeHostKey(kind):
            status, note = access.make_host_key(machine, kind)
        case TellHostKeys():
            return access.tell_host_keys(machine, same_wish)
        case WriteFile():
            status, note = placing.write_file(machine, change, same_wish)
        case AppendFile():
            status, note = placing.append_file(machine, change, same_wish)
        case FetchFile():
            status, note = placing.fetch_file(machine, change, same_wish)
        case CreateFile():
            status, note = placing.create_file(machine, change, same_wish, ours)
        case DownloadFile():
            status, note = placing.download_file(machine, change, same_wish, ours)
        case MakeDirectory():
            return placing.make_directory(machine, change, same_wish)
        case MakeLink():
            status, note = placing.make_link(machine, change, same_wish, ours)
        case SetUpdateSettings(settings):
            return placing.set_update(machine, dict(settings), same_wish)
        case SetEnvironment(variables):
            return placing.set_environment(machine, dict(variables), same_wish)
        case MaskUnit(path):
            known = placing.unit_exists(machine, path.rpartition("/")[2])
            status, note = placing.mask(machine, path)
            if not known:
                return status, note  # systemd knows nothing that it would have to forget
        case UnmaskUnit(path):
            status, note = placing.unmask(machine, path)
        case EnableUnit(name, runtime):
            status, note = placing.enable(machine, name, runtime, same_wish)
        case DisableUnit(name):
            status, note = placing.disable(machine, name, same_wish)
        case ReloadUnits():
            if "system" not in touched:
                return "skipped", "no unit changed"
            machine.run(("systemctl", "daemon-reload"), b"")
            touched.discard("system")  # another stage may be done with this one
            return "done", ""
        case ReloadSshd():
            if "sshd" not in touched:
                return "skipped", "nothing of sshd changed"
            machine.run(("systemctl", "--no-block", "try-reload-or-restart", "ssh.service"), b"")
            return "done", ""
        case RestartNetwork():
            return _restart_network(machine, touched)
        case CommandUnit(name, command, if_there):
            if if_there and not placing.unit_exists(machine, name):
                return "skipped", "there is no such unit in this version"
            machine.run(("systemctl", "--no-block", command, "--", name), b"")
            return "done", ""
        case CommandUnitOnce(name, command):
            if same_wish:
                return "unchanged", ""
            machine.run(("systemctl", "--no-block", command, "--", name), b"")
            return "done", ""
        case RestartService(unit, folder):
            if folder not in touched:
                return "skipped", "none of its files changed"
            machine.run(("systemctl", "--no-block", "try-restart", "--", unit), b"")
            touched.discard(folder)  # it has looked; the network's restart need not do it again
            return "done", ""
        case SetTimezone(zone):
            return placing.set_timezone(machine, zone, same_wish)
        case StartUnit(name, paths):
            command = "start" if touched.isdisjoint(paths) else "restart"
            machine.run(("systemctl", "--no-block", command, "--", name), b"")
            return "done", ""
        case StartScript():
            return placing.start_script(machine, change, same_wish)
        case _:
            return _make_rare(change, machine, same_wish)
    if status == "done":
        touched |= _touches(change)
    return status, note


_RENAME = b"#!/bin/sh\nexec udevadm trigger --action=add --subsystem-match=net --settle\n"


def _restart_network(machine: Machine, touched: set[str]) -> tuple[Status, str]:
    if "link" in touched:
        from proa.machine.cloudconfig import scripts  # few machines name their cards

        # udev names an interface when it appears, and these appeared before the file. The program
        # writes below /sys, which our own unit may not.
        scripts.execute(machine, "network-names", _RENAME, "", scripts.EARLY_TIMEOUT)
    services = {
        "network": "systemd-networkd.service",
        "resolved.conf.d": "systemd-resolved.service",
    }
    restarted = [service for folder, service in services.items() if folder in touched]
    if not restarted:
        return "skipped", "no network file changed"
    machine.run(("systemctl", "--no-block", "try-restart", *restarted), b"")
    return "done", ""


def _make_rare(change: Change, machine: Machine, same_wish: bool) -> tuple[Status, str]:
    """What most documents do not ask for; its modules are only loaded when one does."""
    match change:
        case TrustCertificates():
            from proa.machine.cloudconfig import certificates

            return certificates.trust(machine, change, same_wish)
        case RunScript():
            from proa.machine.cloudconfig import scripts

            return scripts.run(machine, change)
        case SeedRandom() | PhoneHome() | SayFinal() | ChangePower():
            return _make_ending(change, machine)
        case _:
            return _make_disk(change, machine, same_wish)


def _make_ending(
    change: SeedRandom | PhoneHome | SayFinal | ChangePower, machine: Machine
) -> tuple[Status, str]:
    from proa.machine.cloudconfig import ending

    match change:
        case SeedRandom(data):
            return ending.seed_random(machine, data)
        case PhoneHome():
            return ending.phone_home(machine, change)
        case SayFinal(text):
            return ending.say_final(machine, text)
        case ChangePower():
            return ending.change_power(machine, change)


def _make_disk(change: Change, machine: Machine, same_wish: bool) -> tuple[Status, str]:
    from proa.machine.cloudconfig import disks, mounting

    match change:
        case PartitionDisk(disk):
            return disks.partition(machine, disk, same_wish)
        case MakeFileSystem(file_system):
            return disks.make_file_system(machine, file_system, same_wish)
        case MakeSwapFile(swap):
            return mounting.make_swap_file(machine, swap)
        case SetMounts(lines):
            return mounting.set_mounts(machine, lines, same_wish)
        case Mount(line):
            return mounting.mount(machine, line)
    raise AssertionError(f"no way to make a {type(change).__name__}")


def _touches(change: Change) -> set[str]:
    """Who has to look again: systemd in one of its directories ("system", "network", …), udev
    ("link"), or "sshd". And the path."""
    match change:
        case WriteFile(path) | AppendFile(path) | FetchFile(path) | CreateFile(path):
            return _folder_of(path)
        case DownloadFile(path) | MaskUnit(path) | UnmaskUnit(path):
            return _folder_of(path)
        case MakeLink(link):
            return _folder_of(link.path)
        case EnableUnit() | DisableUnit():
            return {"system"}
        case SshdSettings() | DeleteHostKeys() | PlaceHostKey() | MakeHostKey():
            return {"sshd"}
    return set()


def _folder_of(path: str) -> set[str]:
    parts = path.split("/")
    if parts[2:3] == ["systemd"] and parts[1] in ("etc", "run"):
        return {path, parts[3], *(("link",) if path.endswith(".link") else ())}
    return {path}
