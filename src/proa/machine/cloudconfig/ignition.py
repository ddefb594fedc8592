"""Ignition configs, versions 3.0.0 to 3.5.0: what they say, as the :class:`Config` of the others.

The format and its meaning: coreos.github.io/ignition, "Configuration specifications". What differs
here is in docs/ignition.md. The same reader serves Butane, which is a way to write the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.dialect import NO_LOCAL, Dialect, is_empty
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.ignition_merge import NOTHING_FETCHED, Fetched, complete
from proa.machine.cloudconfig.keys.groups import Group
from proa.machine.cloudconfig.keys.names import Names
from proa.machine.cloudconfig.keys.storage import Directory, Link, Storage, StoredFile
from proa.machine.cloudconfig.keys.units import (
    DROP_IN_NAME,
    LOCKSMITHD,
    NOT_HERE,
    UNIT_NAME,
    DropIn,
    Unit,
)
from proa.machine.cloudconfig.keys.users import User, read_gecos, read_hash, read_shell
from proa.machine.cloudconfig.keys.write_files import read_place
from proa.machine.cloudconfig.parse import Node, Problem, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.resource import Resource
from proa.machine.cloudconfig.values import CERTIFICATES, NO_CERTIFICATES, clean_path, is_hostname
from proa.machine.hints import TYPE_CHECKING
from proa.machine.record import replace

if TYPE_CHECKING:
    from proa.machine.cloudconfig.keys.system import System

SECTIONS = ("ignition", "passwd", "storage", "systemd", "kernel_arguments")


def read_ignition(
    root: Node | None, fetched: Fetched = NOTHING_FETCHED, missing: list[Resource] | None = None
) -> tuple[Config, tuple[Problem, ...]]:
    """What the config says, and what is wrong with it. With an error, the config is void.

    ``fetched`` and ``missing``: see :func:`ignition_merge.complete`.
    """
    reader = Reader()
    dialect = Dialect(reader, butane=False)
    whole = complete(dialect, root, fetched, [] if missing is None else missing)
    config = Config() if whole is None else read_sections(dialect, whole, SECTIONS, {})
    return config, reader.told()


def read_sections(
    d: Dialect, root: Node, known: tuple[str, ...], refused: Mapping[str, str]
) -> Config:
    """All that is said below the top; ``refused`` names known keys that are not taken, and why."""
    top = d.table(root, "", known)
    d.refuse(top, "", {"kernel_arguments": _NO_ARGUMENTS, **refused})
    passwd = d.table(top.get("passwd"), "passwd", ("users", "groups"))
    users = d.each(passwd.get("users"), "passwd.users", _user)
    groups = d.each(passwd.get("groups"), "passwd.groups", _group)
    systemd = d.table(top.get("systemd"), "systemd", ("units",))
    units = d.each(systemd.get("units"), "systemd.units", _unit)
    _once(d, passwd.get("users"), "passwd.users", "name")
    _once(d, passwd.get("groups"), "passwd.groups", "name")
    _once(d, systemd.get("units"), "systemd.units", "name")
    storage = _storage(d, top.get("storage"))
    _fetching(d, top.get("ignition"))
    hostname, storage = _hostname(storage)
    names = Names(hostname=hostname)
    return Config(
        names=names,
        groups=groups,
        users=users,
        units=units,
        storage=storage,
        system=_system(d, top.get("storage")),
    )


_NO_ARGUMENTS = (
    "is refused: the kernel's command line is a part of the signed boot image; many a setting also "
    "has a file below /etc/sysctl.d or /etc/modprobe.d"
)


# ignition: how things are fetched. What is not known of it must be said where it matters.


def _fetching(d: Dialect, node: Node | None) -> None:
    version = () if d.butane else ("version",)
    entries = d.table(node, "ignition", (*version, "config", "timeouts", "security", "proxy"))
    security = d.table(entries.get("security"), "ignition.security", ("tls",))
    tls = d.table(security.get("tls"), "ignition.security.tls", ("certificate_authorities",))
    for table, key, name, instead in (
        (entries, "ignition", "timeouts", "Proa's own limits hold"),
        (entries, "ignition", "proxy", "everything is fetched directly"),
        (tls, "ignition.security.tls", "certificate_authorities", "Debian's are trusted"),
    ):
        found = table.get(name)
        if found is None or is_empty(found):
            continue
        if d.remote and name != "timeouts":
            message = f"is not taken, and something is to be fetched: {instead}"
            d.error(found, d.at(key, name), message)
        else:
            d.warn(found, d.at(key, name), f"is not taken; ignored: {instead}")


# passwd.


def _user(d: Dialect, node: Node, key: str) -> User | None:
    sugar = ("ssh_authorized_keys_local",) if d.butane else ()
    known = (
        *("name", "password_hash", "ssh_authorized_keys", "uid", "gecos", "home_dir", "shell"),
        *("no_create_home", "primary_group", "groups", "no_user_group", "no_log_init", "system"),
        *("should_exist", *sugar),
    )
    entries = d.table(node, key, known)
    d.refuse(entries, key, {"ssh_authorized_keys_local": NO_LOCAL})
    name = _named(d, entries, node, key)
    lock = f'lock it with {d.spell("password_hash")} "!"'
    _must_exist(d, entries, key, f"no user is ever deleted; {lock}")
    if name is None:
        return None
    r = d.reader
    groups = d.names(entries, key, "groups")
    if "wheel" in groups:
        message = 'has "wheel", which Debian has not; for sudo, "sudo"'
        d.warn(entries["groups"], d.at(key, "groups"), message)
    return User(
        name=name,
        uid=d.number(entries, key, "uid"),
        passwd=read_hash(r, entries.get("password_hash"), d.at(key, "password_hash")),
        ssh_authorized_keys=r.ssh_keys(
            entries.get("ssh_authorized_keys"), d.at(key, "ssh_authorized_keys")
        ),
        gecos=read_gecos(r, entries.get("gecos"), d.at(key, "gecos")),
        homedir=read_place(r, entries.get("home_dir"), d.at(key, "home_dir")),
        primary_group=d.name(entries, key, "primary_group"),
        groups=groups,
        shell=read_shell(r, entries.get("shell"), d.at(key, "shell")),
        no_create_home=d.flag(entries, key, "no_create_home") or False,
        no_user_group=d.flag(entries, key, "no_user_group") or False,
        no_log_init=d.flag(entries, key, "no_log_init") or False,
        system=d.flag(entries, key, "system") or False,
        create_groups=False,
    )


def _group(d: Dialect, node: Node, key: str) -> Group | None:
    entries = d.table(node, key, ("name", "gid", "password_hash", "should_exist", "system"))
    d.refuse(entries, key, {"password_hash": "is refused: a group has no password here"})
    _must_exist(d, entries, key, "no group is ever deleted")
    name = _named(d, entries, node, key)
    gid, system = d.number(entries, key, "gid"), d.flag(entries, key, "system")
    return None if name is None else Group(name, gid=gid, system=system or False)


def _named(d: Dialect, entries: Mapping[str, Node], node: Node, key: str) -> str | None:
    name = d.name(entries, key)
    if name is None and "name" not in entries:
        d.error(node, key, "has no name")
    return name


def _must_exist(d: Dialect, entries: Mapping[str, Node], key: str, why: str) -> None:
    if d.flag(entries, key, "should_exist") is False:
        message = f"is refused where it is false: {why}"
        d.error(entries["should_exist"], d.at(key, "should_exist"), message)


# storage.

_NO_PARTITIONS = "is refused: make partitions with disk_setup in a cloud-config beside this config"
_NO_DISKS = "is refused: Proa does not join or encrypt disks; prepare the disk before"
_NO_STORAGE = {
    "disks": _NO_PARTITIONS,
    "raid": _NO_DISKS,
    "luks": _NO_DISKS,
    "trees": "holds files beside the document, which the machine does not have; run butane "
    "--files-dir and give the machine what that makes",
}

# Files that other systems read and Proa does not.
_UNREAD = {
    "/etc/flatcar/update.conf": "the same settings are read from /etc/coreos/update.conf",
    "/etc/zincati/": "updates are set in /etc/coreos/update.conf",
    "/etc/NetworkManager/": "the network is systemd-networkd's: /etc/systemd/network",
    "/etc/sysconfig/network-scripts/": "the network is systemd-networkd's: /etc/systemd/network",
    "/etc/selinux/": "there is no SELinux",
    CERTIFICATES: NO_CERTIFICATES,
}


def _storage(d: Dialect, node: Node | None) -> Storage:
    refused = {name: why for name, why in _NO_STORAGE.items() if d.butane or name != "trees"}
    entries = d.table(node, "storage", ("files", "directories", "links", "filesystems", *refused))
    d.refuse(entries, "storage", refused)
    d.reader.items(entries.get("filesystems"), "storage.filesystems")  # read in _system
    directories = d.each(entries.get("directories"), "storage.directories", _directory)
    storage = Storage(
        directories=tuple(sorted(directories, key=lambda directory: directory.path)),
        files=d.each(entries.get("files"), "storage.files", _file),
        links=d.each(entries.get("links"), "storage.links", _link),
    )
    _places(d, entries)
    return storage


def _system(d: Dialect, storage: Node | None) -> System | None:
    node = d.entry_items(storage, "filesystems")
    if node is None or not node.items:
        return None
    # Not at the top: few configs make file systems.
    from proa.machine.cloudconfig.ignition_filesystems import read_file_systems
    from proa.machine.cloudconfig.keys.system import System

    _once(d, node, "storage.filesystems", "device")
    return System(disks=read_file_systems(d, node, "storage.filesystems"))


def _hostname(storage: Storage) -> tuple[str, Storage]:
    """The host name that /etc/hostname sets, and the rest: Ignition writes that file before
    systemd reads it, so it must work like a host name that is given as such."""
    for file in storage.files:
        if file.path == "/etc/hostname" and file.content is not None:
            name = file.content[:1000].decode("utf-8", "replace").strip()
            if is_hostname(name):
                others = tuple(other for other in storage.files if other is not file)
                return name, replace(storage, files=others)
    return "", storage


def _file(d: Dialect, node: Node, key: str) -> StoredFile | None:
    known = ("path", "overwrite", "contents", "append", "mode", "user", "group")
    entries = d.table(node, key, known)
    path = d.path(entries, node, key)
    overwrite = d.flag(entries, key, "overwrite") or False
    mode, owner = d.mode(entries, key), d.owner(entries, key)
    content = d.resource(entries.get("contents"), d.at(key, "contents"))
    pieces = d.each(entries.get("append"), d.at(key, "append"), _piece)
    if path is None:
        return None
    for start, instead in _UNREAD.items():
        if path == start or (start.endswith("/") and path.startswith(start)):
            message = f"is written, but nothing reads it: {instead}"
            d.warn(entries["path"], d.at(key, "path"), message)
    if overwrite and content is None:
        d.error(node, key, "wants contents, because overwrite is true")
    if pieces and any(isinstance(piece, Resource) for piece in (content, *pieces)):
        message = "is not taken where something is to be fetched: put it all into contents"
        d.error(entries["append"], d.at(key, "append"), message)
        return None
    added = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    if isinstance(content, Resource):
        return StoredFile(path, None, content, b"", mode, owner, overwrite)
    if content is None:
        return StoredFile(path, None, None, added, mode, owner, overwrite)
    return StoredFile(path, content + added, None, b"", mode, owner, overwrite)


def _piece(d: Dialect, node: Node, key: str) -> bytes | Resource | None:
    return d.resource(node, key)


def _directory(d: Dialect, node: Node, key: str) -> Directory | None:
    entries = d.table(node, key, ("path", "overwrite", "mode", "user", "group"))
    path = d.path(entries, node, key)
    overwrite = d.flag(entries, key, "overwrite") or False
    mode, owner = d.mode(entries, key), d.owner(entries, key)
    return None if path is None else Directory(path, mode, owner, overwrite)


def _link(d: Dialect, node: Node, key: str) -> Link | None:
    entries = d.table(node, key, ("path", "overwrite", "target", "hard", "user", "group"))
    path = d.path(entries, node, key)
    overwrite = d.flag(entries, key, "overwrite") or False
    hard = d.flag(entries, key, "hard") or False
    owner = d.owner(entries, key)
    target = d.text(entries, key, "target")
    if not target:
        if "target" not in entries or target is not None:
            d.error(node, key, "has no target")
        return None
    try:
        if hard:
            target = clean_path(target)
        elif not target.isprintable() or len(target.encode()) > 1024:
            raise ValueError("is not a usable path")
    except ValueError as error:
        message = f'"{printable(target)}" {error}'
        d.error(entries["target"], d.at(key, "target"), message)
        return None
    return None if path is None else Link(path, target, hard, owner, overwrite)


def _places(d: Dialect, storage: Mapping[str, Node]) -> None:
    """Every path once, and none below what is a file or a link in the same document."""
    taken: dict[str, str] = {}
    leaves: dict[str, str] = {}
    found: list[tuple[str, Node, str]] = []
    for kind in ("directories", "files", "links"):
        for index, item in enumerate(d.items(storage.get(kind))):
            node = d.entry(item, "path")
            try:
                path = clean_path(node.text) if node else ""
            except ValueError:
                path = ""  # told already
            if node is None or not path:
                continue
            key = d.at("storage", f"{kind}[{index}].path")
            if path in taken:
                d.error(node, key, f"is that of {taken[path]} already")
            taken[path] = key
            if kind != "directories":
                leaves[path] = key
            found.append((path, node, key))
    for path, place, key in found:
        parts = path.split("/")
        above = ("/".join(parts[:count]) for count in range(2, len(parts)))
        if leaf := next((leaves[part] for part in above if part in leaves), None):
            d.error(place, key, f"is below {leaf}, which is no directory")


def _once(d: Dialect, node: Node | None, key: str, name: str) -> None:
    """Every entry of a list has another name."""
    seen: dict[str, int] = {}
    for index, item in enumerate(d.items(node)):
        found = d.entry(item, name)
        if found is None:
            continue
        if found.text in seen:
            message = f"is that of {key}[{seen[found.text]}] already"
            d.error(found, f"{key}[{index}].{name}", message)
        seen.setdefault(found.text, index)


# systemd.

# Units that these want are started at boot. What others want is started when they are.
_AT_BOOT = frozenset(
    f"{name}.target"
    for name in (
        *("default", "graphical", "multi-user", "basic", "sysinit", "sockets", "timers", "paths"),
        *("network", "network-online", "remote-fs", "local-fs", "swap", "machines", "slices"),
    )
)
_INSTALL = re.compile(r"^[ \t]*\[Install\]", re.MULTILINE)
_WANTED_BY = re.compile(r"^[ \t]*(?:WantedBy|RequiredBy|UpheldBy)[ \t]*=(.*)$", re.MULTILINE)


def _unit(d: Dialect, node: Node, key: str) -> Unit | None:
    sugar = ("contents_local",) if d.butane else ()
    entries = d.table(node, key, ("name", "enabled", "mask", "contents", "dropins", *sugar))
    d.refuse(entries, key, {"contents_local": NO_LOCAL})
    name = d.text(entries, key, "name")
    content = d.text(entries, key, "contents") or None
    drop_ins = d.each(entries.get("dropins"), d.at(key, "dropins"), _drop_in)
    _once(d, entries.get("dropins"), d.at(key, "dropins"), "name")
    enabled, mask = d.flag(entries, key, "enabled"), d.flag(entries, key, "mask")
    if not name:
        d.error(node, key, "has no name")
        return None
    if not UNIT_NAME.fullmatch(name):
        what = f'"{printable(name)}" is not the name of a unit like "web.service"'
        d.error(entries["name"], d.at(key, "name"), what)
    elif name.endswith((".network", ".netdev", ".link")):
        message = "is a file of networkd: put it among storage.files, below /etc/systemd/network"
        d.error(entries["name"], d.at(key, "name"), message)
    wanted_by = {word for line in _WANTED_BY.findall(content or "") for word in line.split()}
    if enabled and content and not _INSTALL.search(content):
        message = "has no effect: the unit has no [Install] section"
        d.warn(entries["enabled"], d.at(key, "enabled"), message)
        enabled = None
    # Of a unit of the image, the image's own [Install] says it; and it may run already.
    at_boot = content is None or (enabled is True and not wanted_by.isdisjoint(_AT_BOOT))
    told = enabled is not None or (mask and name == LOCKSMITHD)
    if name in NOT_HERE and content is None and told:
        d.warn(entries["name"], d.at(key, "name"), f"{name} is passed over: {NOT_HERE[name]}")
        at_boot = False
    return Unit(
        name=name,
        content=content,
        drop_ins=drop_ins,
        enable=enabled is True,
        disable=enabled is False,
        mask=mask is True,
        unmask=mask is False,
        at_boot="@." not in name and at_boot,
    )


def _drop_in(d: Dialect, node: Node, key: str) -> DropIn | None:
    sugar = ("contents_local",) if d.butane else ()
    entries = d.table(node, key, ("name", "contents", *sugar))
    d.refuse(entries, key, {"contents_local": NO_LOCAL})
    name = d.text(entries, key, "name")
    content = d.text(entries, key, "contents")
    if not name:
        d.error(node, key, "has no name")
        return None
    if not DROP_IN_NAME.fullmatch(name):
        message = f'"{printable(name)}" is not a file name like "10-web.conf"'
        d.error(entries["name"], d.at(key, "name"), message)
    return DropIn(name, content) if content else None
