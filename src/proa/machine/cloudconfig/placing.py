"""Placing files, settings, units and scripts on a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import (
    ENVIRONMENT,
    UPDATE_CONF,
    AppendFile,
    CreateFile,
    DownloadFile,
    FetchFile,
    MakeDirectory,
    MakeLink,
    SetHosts,
    StartScript,
    WriteFile,
)
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.names import hosts_file
from proa.machine.cloudconfig.machine import (
    MAX_FILE,
    FetchFailed,
    Machine,
    Status,
    owner_ids,
    root_ids,
)
from proa.machine.cloudconfig.parse import Refused, printable
from proa.machine.cloudconfig.values import is_hostname

MAX_DOWNLOAD = 16 * 1024**3
"""Bytes of a file that is downloaded, unpacked: against what never ends, not against large ones."""
MAX_ADDED_TO = 4 * 1024 * 1024
"""Largest file that is added to, for it is written anew as a whole."""


def set_hostname(machine: Machine, name: str, same_wish: bool) -> tuple[Status, str]:
    found = files.read(machine.root, "/etc/hostname", 4096)
    now = found.content.decode("utf-8", "replace").strip() if found else ""
    if now == name:
        return "unchanged", ""
    if now and same_wish:
        return "kept", f"it was set to {printable(now)} on the machine"
    files.write(machine.root, "/etc/hostname", f"{name}\n".encode(), 0o644, *root_ids())
    machine.set_hostname(name)  # systemd read the file before us
    return "done", ""


def set_hosts(machine: Machine, change: SetHosts, same_wish: bool) -> tuple[Status, str]:
    name = change.name
    if not name:
        found = files.read(machine.root, "/etc/hostname", 4096)
        name = found.content.decode("utf-8", "replace").strip() if found else ""
        if not is_hostname(name):
            raise FileProblem("this machine has no host name yet")
    content = hosts_file(change.form, name, change.fqdn).encode()
    return write_file(machine, WriteFile("/etc/hosts", content), same_wish)


def set_timezone(machine: Machine, zone: str, same_wish: bool) -> tuple[Status, str]:
    target = f"/usr/share/zoneinfo/{zone}"
    now = files.target_of(machine.root, "/etc/localtime")
    if now is not None and now.endswith(f"/zoneinfo/{zone}"):
        return "unchanged", ""
    if now is not None and same_wish:
        return "kept", f"it was set to {printable(now)} on the machine"
    if not (machine.root / target.lstrip("/")).is_file():
        raise files.FileProblem(f"there is no time zone {zone}")
    files.link(machine.root, "/etc/localtime", target)
    return "done", ""


def write_file(machine: Machine, change: WriteFile, same_wish: bool) -> tuple[Status, str]:
    uid, gid = owner_ids(machine, change.owner)
    path = change.path
    if files.is_link(machine.root, path):
        if same_wish:
            return "kept", "it was made a link on the machine"
    else:
        found = files.read(machine.root, path, MAX_FILE)
        wanted = (change.content, change.mode, uid, gid)
        if found and (found.content, found.mode, found.uid, found.gid) == wanted:
            return "unchanged", ""
        if found and same_wish:
            return "kept", "it was edited on the machine"
    files.write(machine.root, path, change.content, change.mode, uid, gid)
    return "done", ""


def append_file(machine: Machine, change: AppendFile, same_wish: bool) -> tuple[Status, str]:
    """Add to a file once. What stands there already, from a boot that was cut, is not added."""
    path, content = change.path, change.content
    found = files.read(machine.root, path, MAX_ADDED_TO)
    if found is None:
        uid, gid = owner_ids(machine, change.owner or "root:root")
        mode = 0o644 if change.mode is None else change.mode
        files.write(machine.root, path, content, mode, uid, gid)
        return "done", ""
    if same_wish:
        return "unchanged", ""
    uid, gid = owner_ids(machine, change.owner) if change.owner else (found.uid, found.gid)
    mode = found.mode if change.mode is None else change.mode
    if _stands_in(found.content, content):
        content = b""
    if not content and (mode, uid, gid) == (found.mode, found.uid, found.gid):
        return "unchanged", ""
    files.write(machine.root, path, found.content + content, mode, uid, gid)
    return "done", ""


def _stands_in(whole: bytes, part: bytes) -> bool:
    return whole.startswith(part) or whole.endswith(part) or b"\n" + part in whole


def fetch_file(machine: Machine, change: FetchFile, same_wish: bool) -> tuple[Status, str]:
    """Fetch a file once. Where that fails, the document's content stands in until the next boot."""
    if same_wish and files.exists(machine.root, change.path):
        return "unchanged", ""
    try:
        content = machine.fetch(change.url, dict(change.headers))
    except FetchFailed as failure:
        if change.content is None:
            raise
        status, _ = _place(machine, change, change.content)
        note = f"{failure}; the content of the document is in its place"
        if change.append:  # the next boot must not add a second time
            return status, note
        raise FetchFailed(note) from None
    return _place(machine, change, content)


def _place(machine: Machine, change: FetchFile, content: bytes) -> tuple[Status, str]:
    path, mode, owner = change.path, change.mode, change.owner
    if change.append:
        return append_file(machine, AppendFile(path, content, mode, owner), False)
    mode = 0o644 if mode is None else mode
    return write_file(machine, WriteFile(path, content, mode, owner or "root:root"), False)


def create_file(
    machine: Machine, change: CreateFile, same_wish: bool, ours: bool
) -> tuple[Status, str]:
    if not (same_wish or ours):
        _spare(machine, change.path, change.content)
    whole = WriteFile(change.path, change.content, change.mode, change.owner)
    return write_file(machine, whole, same_wish)


def _spare(machine: Machine, path: str, wanted: bytes | None = None) -> None:
    """What is there and is not what is wanted stays: that is what no ``overwrite`` means."""
    link = files.is_link(machine.root, path)
    found = None if link else files.read(machine.root, path, MAX_FILE)
    if link or (found is not None and found.content != wanted):
        raise FileProblem(f"{path} is there already, and overwrite is not true")


def download_file(
    machine: Machine, change: DownloadFile, same_wish: bool, ours: bool
) -> tuple[Status, str]:
    if same_wish and files.exists(machine.root, change.path):
        return "unchanged", ""
    if not (change.overwrite or same_wish or ours):
        _spare(machine, change.path)
    ids = owner_ids(machine, change.owner)

    def store(pieces: Iterable[bytes]) -> None:
        with files.replacing(machine.root, change.path, change.mode, *ids) as file:
            for piece in change.source.opened(pieces, MAX_DOWNLOAD):
                file.write(piece)

    try:
        machine.download(change.source.url, dict(change.source.headers), store)
    except Refused as refused:
        raise FileProblem(f"what was fetched is not good: {refused.problem.message}") from None
    return "done", ""


def make_directory(machine: Machine, change: MakeDirectory, same_wish: bool) -> tuple[Status, str]:
    wanted, root = change.directory, machine.root
    ids = None if wanted.owner is None else owner_ids(machine, wanted.owner)
    if wanted.overwrite and not same_wish and not files.is_directory(root, wanted.path):
        files.remove(root, wanted.path)
    new_mode = 0o755 if wanted.mode is None else wanted.mode
    if files.make_directory(root, wanted.path, new_mode, *(ids or root_ids())):
        return "done", ""
    if same_wish:
        return "unchanged", ""
    changed = files.adjust_directory(root, wanted.path, wanted.mode, ids)
    return ("done" if changed else "unchanged"), ""


def make_link(
    machine: Machine, change: MakeLink, same_wish: bool, ours: bool
) -> tuple[Status, str]:
    wanted, root = change.link, machine.root
    if files.exists(root, wanted.path):
        right = (
            files.is_same(root, wanted.path, wanted.target)
            if wanted.hard
            else files.target_of(root, wanted.path) == wanted.target
        )
        if same_wish:
            return ("unchanged", "") if right else ("kept", "it was changed on the machine")
        if not right and not (wanted.overwrite or ours):
            raise FileProblem(f"{wanted.path} is there already, and overwrite is not true")
        if right and (wanted.hard or wanted.owner is None):
            return "unchanged", ""
    if wanted.hard:
        files.hard_link(root, wanted.path, wanted.target)
    else:
        ids = root_ids() if wanted.owner is None else owner_ids(machine, wanted.owner)
        files.link(root, wanted.path, wanted.target, ids)
    return "done", ""


def set_update(
    machine: Machine, settings: Mapping[str, str], same_wish: bool
) -> tuple[Status, str]:
    return _set_lines(machine, UPDATE_CONF, settings, same_wish)


def set_environment(
    machine: Machine, variables: Mapping[str, str], same_wish: bool
) -> tuple[Status, str]:
    return _set_lines(machine, ENVIRONMENT, variables, same_wish)


def _set_lines(
    machine: Machine, path: str, settings: Mapping[str, str], same_wish: bool
) -> tuple[Status, str]:
    found = files.read(machine.root, path, MAX_FILE)
    before = found.content.decode("utf-8", "surrogateescape") if found else ""
    after = with_settings(before, settings)
    if found and after == before:
        return "unchanged", ""
    if found and same_wish:
        return "kept", "it was edited on the machine"
    content = after.encode("utf-8", "surrogateescape")
    files.write(machine.root, path, content, 0o644, *root_ids())
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


def mask(machine: Machine, path: str) -> tuple[Status, str]:
    if files.target_of(machine.root, path) == "/dev/null":
        return "unchanged", ""
    files.link(machine.root, path, "/dev/null")
    return "done", ""


def unmask(machine: Machine, path: str) -> tuple[Status, str]:
    target = files.target_of(machine.root, path)
    if target is None:
        found = files.read(machine.root, path, MAX_FILE)
        if found is None or found.content:
            return "unchanged", ""
    elif target != "/dev/null":
        return "unchanged", ""
    files.remove(machine.root, path)
    return "done", ""


def enable(machine: Machine, name: str, runtime: bool, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    options = ("--runtime",) if runtime else ()
    machine.run(("systemctl", "enable", "--no-reload", *options, "--", name), b"")
    return "done", ""


def disable(machine: Machine, name: str, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    machine.run(("systemctl", "disable", "--no-reload", "--", name), b"")
    return "done", ""


def unit_exists(machine: Machine, name: str) -> bool:
    folders = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
    paths = [f"{folder}/{name}" for folder in folders]
    masked = any(files.target_of(machine.root, path) == "/dev/null" for path in paths[:2])
    # A mask hides the unit from commands that start it, and one that stops it still finds it.
    return files.exists(machine.root, paths[2]) or (
        not masked and any(files.exists(machine.root, path) for path in paths[:2])
    )


def start_script(machine: Machine, change: StartScript, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", "it ran on an earlier boot"
    files.write(machine.root, change.path, change.content, 0o744, *root_ids())
    machine.run(
        (
            *("systemd-run", "--quiet", "--no-block", "--collect", f"--unit={change.unit}"),
            "--description=Script of the user-data",
            *("--property=Wants=network-online.target", "--property=After=network-online.target"),
            "--property=EnvironmentFile=-/etc/environment",
            *("--", str(machine.root / change.path.lstrip("/"))),
        ),
        b"",
    )
    place = f"{change.workspace}/scripts/unit-name"
    files.write(machine.root, place, f"{change.unit}".encode(), 0o644, *root_ids())
    return "done", ""
