"""From a tree of texts to what the document says: typed, checked, each problem with its line.

An *error* refuses the whole document, so that a machine is never half of what its file says. A
*warning* leaves out one thing and says so by name. The keys and their meaning are those of
coreos-cloudinit (reference: docs/cloud-config.md); what only cloud-init has is named as such.

Texts taken from the document are quoted in a problem only where they cannot be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from proa.machine.cloudconfig.parse import (
    Items,
    Level,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    gunzip,
    printable,
    unbase64,
)

T = TypeVar("T")

MAX_PROBLEMS = 100
"""How many problems of one document are told; the others are only counted."""
MAX_KEY_LENGTH = 16 * 1024
"""Longest line of an authorized_keys file that is taken (OpenSSH: SSH_MAX_PUBKEY_BYTES)."""
MAX_UNPACKED = 8 * 1024 * 1024
"""Most bytes that the compressed ``write_files`` of one document may unpack to, together."""


@dataclass(frozen=True)
class User:
    name: str
    passwd: str | None = field(default=None, repr=False)
    ssh_authorized_keys: tuple[str, ...] = field(default=(), repr=False)
    gecos: str | None = None
    homedir: str | None = None
    primary_group: str | None = None
    groups: tuple[str, ...] = ()
    shell: str | None = None
    no_create_home: bool = False
    no_user_group: bool = False
    no_log_init: bool = False
    system: bool = False


@dataclass(frozen=True)
class File:
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root:root"


@dataclass(frozen=True)
class DropIn:
    name: str
    content: str = field(repr=False)


@dataclass(frozen=True)
class Unit:
    name: str
    content: str | None = field(default=None, repr=False)
    drop_ins: tuple[DropIn, ...] = ()
    enable: bool = False
    runtime: bool = False
    mask: bool = False
    command: str | None = None


@dataclass(frozen=True)
class Config:
    """What a cloud-config says."""

    hostname: str | None = None
    ssh_authorized_keys: tuple[str, ...] = field(default=(), repr=False)
    users: tuple[User, ...] = ()
    write_files: tuple[File, ...] = ()
    update: tuple[tuple[str, str], ...] = ()
    units: tuple[Unit, ...] = ()


def read(root: Node | None) -> tuple[Config, tuple[Problem, ...]]:
    """What the document says, and what is wrong with it. With an error, the config is void."""
    reader = _Reader()
    config = Config() if root is None else _config(reader, root)
    problems = sorted(reader.problems, key=lambda p: (p.line, p.column))
    if reader.untold:
        problems.append(Problem(reader.worst_untold, f"and {reader.untold} more problems"))
    return config, tuple(problems)


# Values that more than one place checks.

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_UNIT_STEM = r"[A-Za-z0-9:_.\\@-]{1,200}"
_UNIT = re.compile(
    _UNIT_STEM + r"\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope"
    r"|network|netdev|link)"
)
_DROP_IN = re.compile(r"[A-Za-z0-9:_.@-]{1,200}\.conf")
_KEY_TYPE = re.compile(r"(^|[ \t])(ssh-|ecdsa-|sk-)[a-z0-9@.-]+[ \t]+AAAA[A-Za-z0-9+/=]+([ \t]|$)")
_HASH = re.compile(r"[!*]?(\$[A-Za-z0-9]+\$[!-9;-~]+|[./0-9A-Za-z]{13})|[!*]{1,2}")
_MODE = re.compile(r"(0o?)?([0-7]{3,4})")
_SERVER = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@%=&+,-]{1,1000}|disabled")
_GROUP = re.compile(r"[A-Za-z0-9_.{}-]{1,64}")

HOSTNAME_MAX = 64
"""What the kernel takes (uname(2))."""

COMMANDS = (
    "start",
    "stop",
    "restart",
    "reload",
    "try-restart",
    "reload-or-restart",
    "reload-or-try-restart",
)
STRATEGIES = ("reboot", "off", "etcd-lock", "best-effort")


def is_hostname(text: str) -> bool:
    """RFC 1123 labels, at most as long as the kernel takes."""
    return len(text) <= HOSTNAME_MAX and _HOSTNAME.fullmatch(text) is not None


def keys_in(text: str) -> tuple[tuple[str, ...], int]:
    """The public ssh keys in a text of one or more lines, and how many lines are none."""
    lines = [line.strip() for line in text.splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    good = tuple(
        line
        for line in wanted
        if len(line) <= MAX_KEY_LENGTH and line.isprintable() and _KEY_TYPE.search(line)
    )
    return good, len(wanted) - len(good)


# Where a file may not be put, with the reason. /bin and its kin are links into /usr.
_READ_ONLY = "is part of the read-only system; put it under /etc, /opt or /var"
_NO_FILES = {
    **dict.fromkeys(("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"), _READ_ONLY),
    **dict.fromkeys(("proc", "sys", "dev"), "belongs to the kernel"),
    "boot": "holds the boot images and is not mounted yet at this time",
    ".etc": "is the inside of the /etc overlay; write to /etc",
}
# Links that every Debian system has, resolved here because no link is followed later.
_LINKS = (("/var/run", "/run"), ("/var/lock", "/run/lock"))


def clean_path(text: str) -> str:
    """An absolute path in its plain form, or ``ValueError`` saying why no file may be there."""
    if not text.startswith("/"):
        raise ValueError("must begin with /")
    if not text.isprintable() or len(text) > 1024:
        raise ValueError("is not a usable path")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError('must not contain ".."')
    if not parts or any(len(part.encode()) > 255 for part in parts):
        raise ValueError("is not a usable path")
    path = "/" + "/".join(parts)
    for link, target in _LINKS:
        if path.startswith(link + "/"):
            path = target + path.removeprefix(link)
    if reason := _NO_FILES.get(parts[0]):
        raise ValueError(reason)
    return path


# The keys. What is not taken is told by name, with what to do instead where there is something.

_LATER = "is not taken yet; ignored"
_NO_PACKAGES = "is ignored: nothing is installed into a Proa machine; run it in a container"
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("packages", "package_update", "package_upgrade", "apt", "yum_repos", "snap"), _NO_PACKAGES
    ),
    **dict.fromkeys(
        (
            *("manage_etc_hosts", "runcmd", "bootcmd", "mounts", "swap", "disk_setup", "fs_setup"),
            *("ntp", "timezone", "locale", "ca_certs", "ssh_keys", "ssh_pwauth", "chpasswd"),
            *("power_state", "phone_home", "final_message", "fqdn", "groups", "growpart", "proa"),
            *("password", "network", "disable_root", "ssh_import_id", "preserve_hostname"),
        ),
        _LATER,
    ),
}
_ELSEWHERE_COREOS = dict.fromkeys(("oem", "etcd", "etcd2", "fleet", "locksmith", "flannel"), _LATER)
_ELSEWHERE_USER = {
    "sudo": 'is not taken yet; put the user into the group "sudo"',
    "plain_text_passwd": "is never taken: give a hash as passwd",
    **dict.fromkeys(
        (
            *("coreos_ssh_import_github", "coreos_ssh_import_github_users", "lock_passwd", "uid"),
            *("coreos_ssh_import_url", "expiredate", "inactive", "ssh_import_id", "hashed_passwd"),
            *("selinux_user", "ssh_redirect_user", "doas", "snapuser", "create_groups"),
        ),
        _LATER,
    ),
}


def _config(r: _Reader, root: Node) -> Config:
    known = ("hostname", "ssh_authorized_keys", "users", "write_files", "coreos")
    top = r.table(root, "", known, _ELSEWHERE)
    coreos = r.table(top.get("coreos"), "coreos", ("update", "units"), _ELSEWHERE_COREOS)
    return Config(
        hostname=_hostname(r, top.get("hostname")),
        ssh_authorized_keys=r.ssh_keys(top.get("ssh_authorized_keys"), "ssh_authorized_keys"),
        users=_each(r, top.get("users"), "users", _user),
        write_files=_each(r, top.get("write_files"), "write_files", _file),
        update=_update(r, coreos.get("update")),
        units=_each(r, coreos.get("units"), "coreos.units", _unit),
    )


def _each(
    r: _Reader, node: Node | None, key: str, one: Callable[[_Reader, Node, str], T | None]
) -> tuple[T, ...]:
    """Each item of a list, read by ``one``; what it leaves out is left out."""
    found = [one(r, item, f"{key}[{i}]") for i, item in enumerate(r.items(node, key))]
    return tuple(item for item in found if item is not None)


def _hostname(r: _Reader, node: Node | None) -> str | None:
    name = r.text(node, "hostname")
    if node is None or not name:
        return None  # an empty name must not wipe the machine's
    if not is_hostname(name):
        message = f'hostname "{printable(name)}" is not a host name of at most {HOSTNAME_MAX}'
        r.error(node, "hostname", f"{message} characters")
    return name


def _user(r: _Reader, node: Node, key: str) -> User | None:
    if isinstance(node, Text):
        if node.text == "default":  # cloud-init's word for the user that the image brings
            r.warn(node, key, 'the item "default" means nothing here: the user core is there')
        else:
            r.error(node, key, f"{key} wants a mapping with at least a name")
        return None
    known = tuple(User.__dataclass_fields__)
    entries = r.table(node, key, known, _ELSEWHERE_USER)
    name = r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.warn(node, key, f"{key} has no name; ignored")
        return None
    for part, value in (("name", name), *(("groups", g) for g in _groups(r, entries, key))):
        if not _NAME.fullmatch(value):
            message = f'{key}.{part} "{printable(value)}" is not a valid name'
            r.error(entries.get(part, node), f"{key}.{part}", message)
    primary_group = r.text(entries.get("primary_group"), f"{key}.primary_group")
    if primary_group and not _NAME.fullmatch(primary_group):
        message = f'{key}.primary_group "{printable(primary_group)}" is not a valid name'
        r.error(entries["primary_group"], f"{key}.primary_group", message)
    return User(
        name=name,
        passwd=_passwd(r, entries.get("passwd"), f"{key}.passwd"),
        ssh_authorized_keys=r.ssh_keys(
            entries.get("ssh_authorized_keys"), f"{key}.ssh_authorized_keys"
        ),
        gecos=_gecos(r, entries.get("gecos"), f"{key}.gecos"),
        homedir=_place(r, entries.get("homedir"), f"{key}.homedir"),
        primary_group=primary_group or None,
        groups=_groups(r, entries, key),
        shell=_shell(r, entries.get("shell"), f"{key}.shell"),
        no_create_home=r.flag(entries.get("no_create_home"), f"{key}.no_create_home"),
        no_user_group=r.flag(entries.get("no_user_group"), f"{key}.no_user_group"),
        no_log_init=r.flag(entries.get("no_log_init"), f"{key}.no_log_init"),
        system=r.flag(entries.get("system"), f"{key}.system"),
    )


def _groups(r: _Reader, entries: Mapping[str, Node], key: str) -> tuple[str, ...]:
    node = entries.get("groups")
    if isinstance(node, Text):  # cloud-init's form: one text with commas
        return tuple(part for part in re.split(r"[,\s]+", node.text) if part and not node.null)
    return tuple(dict.fromkeys(r.texts(node, f"{key}.groups")))


def _passwd(r: _Reader, node: Node | None, key: str) -> str | None:
    passwd = r.text(node, key)
    if node is None or not passwd:
        return None
    if not _HASH.fullmatch(passwd):  # and never say what it was
        hint = "make one with: openssl passwd -6"
        r.error(node, key, f"{key} wants a password hash, not a password; {hint}")
    return passwd


def _gecos(r: _Reader, node: Node | None, key: str) -> str | None:
    gecos = r.text(node, key)
    if node is not None and gecos and (":" in gecos or not gecos.isprintable()):
        r.error(node, key, f"{key} may not contain a colon or a control character")
    return gecos


def _place(r: _Reader, node: Node | None, key: str) -> str | None:
    text = r.text(node, key)
    if node is None or not text:
        return None
    try:
        path = clean_path(text)
    except ValueError as error:
        r.error(node, key, f'{key} "{printable(text)}" {error}')
        return None
    if ":" in path:
        r.error(node, key, f'{key} "{printable(text)}" may not contain a colon')
    return path


def _shell(r: _Reader, node: Node | None, key: str) -> str | None:
    shell = r.text(node, key)
    if node is not None and shell and not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", shell):
        r.error(node, key, f'{key} "{printable(shell)}" is not the absolute path of a program')
    return shell or None


def _file(r: _Reader, node: Node, key: str) -> File | None:
    # append and source change what the content means, so they cannot be passed over.
    known = ("path", "content", "encoding", "permissions", "owner", "append", "source", "defer")
    entries = r.table(node, key, known)
    if r.flag(entries.get("append"), f"{key}.append"):
        r.error(entries["append"], f"{key}.append", f"{key}.append is not taken yet")
    if "source" in entries:
        r.error(entries["source"], f"{key}.source", f"{key}.source is not taken yet")
    if r.flag(entries.get("defer"), f"{key}.defer"):
        message = f"{key}.defer means nothing here: files are written after the users are made"
        r.warn(entries["defer"], f"{key}.defer", message)
    if not r.text(entries.get("path"), f"{key}.path"):
        r.error(node, key, f"{key} has no path")
        return None
    path = _place(r, entries.get("path"), f"{key}.path")
    content = _content(r, entries, key)
    mode = _mode(r, entries.get("permissions"), f"{key}.permissions")
    owner = _owner(r, entries.get("owner"), f"{key}.owner")
    return None if path is None else File(path, content, mode, owner)


def _content(r: _Reader, entries: Mapping[str, Node], key: str) -> bytes:
    node = entries.get("content")
    text = r.text(node, f"{key}.content")
    encoding = r.text(entries.get("encoding"), f"{key}.encoding") or ""
    data = text.encode() if text else b""
    if isinstance(node, Text) and node.binary is not None:
        data = node.binary
    packing, _, wrapping = encoding.rpartition("+")
    steps = {("", ""), ("", "b64"), ("", "base64"), ("", "gz"), ("", "gzip")}
    steps |= {(gz, b64) for gz in ("gz", "gzip") for b64 in ("b64", "base64")}
    if (packing, wrapping) not in steps:
        message = f'{key}.encoding "{printable(encoding)}" is not known; take base64 or gz+base64'
        r.error(entries["encoding"], f"{key}.encoding", message)
        return b""
    if wrapping in ("b64", "base64"):
        unwrapped = unbase64(data.decode("latin-1"))
        if unwrapped is None:
            r.error(node or entries["encoding"], f"{key}.content", f"{key}.content is not base64")
            return b""
        data = unwrapped
    if "gz" in (packing[:2], wrapping[:2]):
        try:
            data = gunzip(data, MAX_UNPACKED - r.unpacked)
        except Refused as refused:
            message = f"{key}.content: {refused.problem.message}"
            r.error(node or entries["encoding"], f"{key}.content", message)
            return b""
        r.unpacked += len(data)
    return data


def _mode(r: _Reader, node: Node | None, key: str) -> int:
    text = r.text(node, key)
    if node is None or not text:
        return 0o644
    match = _MODE.fullmatch(text)
    if match is None:
        r.error(node, key, f'{key} "{printable(text)}" is not an octal mode like "0644"')
        return 0o644
    return int(match[2], 8)


def _owner(r: _Reader, node: Node | None, key: str) -> str:
    text = r.text(node, key)
    if node is None or not text:
        return "root:root"
    user, colon, group = text.partition(":")
    if not _NAME.fullmatch(user) or (colon and group and not _NAME.fullmatch(group)):
        r.error(node, key, f'{key} "{printable(text)}" is not a user or user:group')
    return text


def _update(r: _Reader, node: Node | None) -> tuple[tuple[str, str], ...]:
    """Settings of update.conf, sorted by key."""
    entries = r.table(node, "coreos.update", ("group", "server", "reboot_strategy"))
    settings: dict[str, str] = {}
    for name, value in entries.items():
        key = f"coreos.update.{name}"
        text = r.text(value, key)
        if not text:
            continue
        if name == "reboot_strategy" and text.lower() in ("off", "no", "false"):
            text = "off"  # YAML 1.1 readers made a boolean of the bare word
        good = (
            text in STRATEGIES
            if name == "reboot_strategy"
            else (_SERVER if name == "server" else _GROUP).fullmatch(text) is not None
        )
        if not good:
            wanted = {
                "reboot_strategy": f"one of {', '.join(STRATEGIES)}",
                "server": 'an http or https address or "disabled"',
                "group": "a group name",
            }[name]
            # A server address may carry a password; the others cannot be secrets.
            shown = "" if name == "server" else f' "{printable(text)}"'
            r.error(value, key, f"{key}{shown} is not {wanted}")
        settings[name.upper()] = text
    return tuple(sorted(settings.items()))


def _unit(r: _Reader, node: Node, key: str) -> Unit | None:
    entries = r.table(node, key, tuple(Unit.__dataclass_fields__))
    name = r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.warn(node, key, f"{key} has no name; ignored")
        return None
    content = r.text(entries.get("content"), f"{key}.content")
    drop_ins = _each(r, entries.get("drop_ins"), f"{key}.drop_ins", _drop_in)
    # The syntax of early 2014: "name: foo.service.d/10-x.conf" with content.
    stem, slash, conf = name.partition(".d/")
    if slash and _UNIT.fullmatch(stem) and _DROP_IN.fullmatch(conf) and content:
        name, drop_ins, content = stem, (*drop_ins, DropIn(conf, content)), None
    if not _UNIT.fullmatch(name):
        message = f'{key}.name "{printable(name)}" is not the name of a unit like "web.service"'
        r.error(entries["name"], f"{key}.name", message)
    command = r.text(entries.get("command"), f"{key}.command")
    if command and command not in COMMANDS:
        message = f'{key}.command "{printable(command)}" is not one of {", ".join(COMMANDS)}'
        r.error(entries["command"], f"{key}.command", message)
    return Unit(
        name=name,
        content=content or None,
        drop_ins=drop_ins,
        enable=r.flag(entries.get("enable"), f"{key}.enable"),
        runtime=r.flag(entries.get("runtime"), f"{key}.runtime"),
        mask=r.flag(entries.get("mask"), f"{key}.mask"),
        command=command or None,
    )


def _drop_in(r: _Reader, node: Node, key: str) -> DropIn | None:
    entries = r.table(node, key, ("name", "content"))
    name = r.text(entries.get("name"), f"{key}.name")
    content = r.text(entries.get("content"), f"{key}.content")
    if not name or not content:
        r.warn(node, key, f"{key} wants a name and content; ignored")
        return None
    if not _DROP_IN.fullmatch(name):
        message = f'{key}.name "{printable(name)}" is not a file name like "10-web.conf"'
        r.error(entries["name"], f"{key}.name", message)
    return DropIn(name, content)


# Reading a node as what a key wants.


class _Reader:
    """Collects problems while values are read; a value with a problem reads as absent."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.untold = 0
        self.worst_untold: Level = "warning"
        self.unpacked = 0

    def error(self, node: Node, key: str, message: str) -> None:
        self._add(Problem("error", message, node.line, node.column, key))

    def warn(self, node: Node, key: str, message: str) -> None:
        self._add(Problem("warning", message, node.line, node.column, key))

    def _add(self, problem: Problem) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
            return
        self.untold += 1
        if problem.level == "error":
            self.worst_untold = "error"

    def table(
        self,
        node: Node | None,
        key: str,
        known: Collection[str],
        elsewhere: Mapping[str, str] | None = None,
    ) -> dict[str, Node]:
        """The entries under known keys; each other key is warned of by name and line."""
        if node is None or (isinstance(node, Text) and node.null):
            return {}
        if not isinstance(node, Table):
            self.error(node, key, f"{key or 'the document'} wants a mapping (key: value)")
            return {}
        entries: dict[str, Node] = {}
        for word, value in node.entries:
            name = canonical(word.text)
            full = f"{key}.{printable(name)}" if key else printable(name)
            if name in known:
                entries[name] = value
            elif elsewhere and name in elsewhere:
                self.warn(word, full, f"{full} {elsewhere[name]}")
            else:
                guess = None if self.untold else _nearest(name, known)
                hint = f'; did you mean "{guess}"?' if guess else ""
                self.warn(word, full, f"{full} is not a known key; ignored{hint}")
        return entries

    def items(self, node: Node | None, key: str) -> tuple[Node, ...]:
        if node is None or (isinstance(node, Text) and node.null):
            return ()
        if not isinstance(node, Items):
            self.error(node, key, f"{key} wants a list (lines that begin with - )")
            return ()
        return node.items

    def text(self, node: Node | None, key: str) -> str | None:
        if node is None or (isinstance(node, Text) and node.null):
            return None
        if not isinstance(node, Text):
            self.error(node, key, f"{key} wants a text")
            return None
        return node.text

    def texts(self, node: Node | None, key: str) -> tuple[str, ...]:
        found = [self.text(n, f"{key}[{i}]") for i, n in enumerate(self.items(node, key))]
        return tuple(text for text in found if text)

    def flag(self, node: Node | None, key: str) -> bool:
        text = self.text(node, key)
        if node is None or text is None:
            return False
        word = text.lower()
        if word not in ("true", "yes", "on", "false", "no", "off"):
            self.error(node, key, f"{key} wants true or false")
        return word in ("true", "yes", "on")

    def ssh_keys(self, node: Node | None, key: str) -> tuple[str, ...]:
        """Public keys; one that is none is left out, so that the others still open the door."""
        nodes = (node,) if isinstance(node, Text) else self.items(node, key)
        keys: list[str] = []
        for index, item in enumerate(nodes):
            good, bad = keys_in(self.text(item, f"{key}[{index}]") or "")
            keys += good
            if bad:  # it may be a private key: never show it
                message = f"{key}[{index}] is not a public ssh key; left out"
                self.warn(item, f"{key}[{index}]", message)
        return tuple(dict.fromkeys(keys))


def _nearest(word: str, known: Collection[str]) -> str | None:
    from difflib import get_close_matches  # only a misspelt document pays for it

    return next(iter(get_close_matches(word[:60], known, n=1, cutoff=0.7)), None)
