"""Which keys of the benchmark's document have taken effect on a machine. Nothing runs here.

A *leaf key* is a key that holds no further mapping, named by its way there: ``hostname``,
``users[].shell``, ``ntp.servers``. Each has a check that looks at the machine's files, users and
mounts, whoever made them. The checks are written for the values of ``cloudconfig.yaml`` and read
them from it; what programs do differently on the way (a file's name below ``sudoers.d``, ``NTP=``
in one line or two) is left to them.
"""

from __future__ import annotations

import base64
import gzip
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A file, directory or link. ``content`` is a file's, or the target of a link."""

    mode: int
    uid: int
    gid: int
    content: bytes = b""


@dataclass(frozen=True)
class State:
    """A machine after a boot: entries by path, what is mounted, its name, and what was said."""

    entries: Mapping[str, Entry]
    mounts: str = ""
    hostname: str = ""
    said: str = ""

    def text(self, path: str) -> str:
        entry = self.entries.get(path)
        return entry.content.decode("utf-8", "replace") if entry else ""

    def below(self, folder: str) -> str:
        """All texts of the files in a directory, one after another."""
        return "\n".join(self.text(path) for path in self.entries if path.startswith(f"{folder}/"))

    @cached_property
    def users(self) -> Mapping[str, list[str]]:
        return self._rows("/etc/passwd")

    @cached_property
    def groups(self) -> Mapping[str, list[str]]:
        return self._rows("/etc/group")

    @cached_property
    def shadow(self) -> Mapping[str, list[str]]:
        return self._rows("/etc/shadow")

    def _rows(self, path: str) -> Mapping[str, list[str]]:
        rows = (line.split(":") for line in self.text(path).splitlines())
        return {row[0]: row for row in rows}

    def members(self, group: str) -> list[str]:
        return self.groups.get(group, [""])[-1].split(",")


def read_state(data: bytes, mounts: str, hostname: str, said: str) -> State:
    """Read a tar of a machine's directories; its names begin without a slash."""
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = member.linkname.encode()
            if member.isfile() and (file := archive.extractfile(member)):
                content = file.read()
            path = f"/{member.name.removeprefix('./').rstrip('/')}"
            entries[path] = Entry(member.mode, member.uid, member.gid, content)
    return State(entries, mounts, hostname.strip(), said)


def leaf_keys(document: Document) -> tuple[str, ...]:
    """The leaf keys of a document, each once, in its order.

    The word ``default`` among the users is none: it asks for what is there already.
    """
    return tuple(dict.fromkeys(_leaves(document, "")))


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        for item in node:
            if isinstance(item, Mapping):
                yield from _leaves(item, f"{path}[]")
            elif item != "default":
                yield path
    else:
        yield path


def missing(document: Document, state: State) -> tuple[str, ...]:
    """The leaf keys that have not taken effect. Raises KeyError for a key that has no check."""
    return tuple(key for key in leaf_keys(document) if not CHECKS[key](document, state))


# The checks.

Check = Callable[[Document, State], bool]


def _users(check: Callable[[Mapping[str, Any], State], bool], key: str) -> Check:
    """All users of the document that have the key pass the check."""

    def all_users(document: Document, state: State) -> bool:
        users = [user for user in document["users"] if user != "default" and key in user]
        return all(user["name"] in state.users and check(user, state) for user in users)

    return all_users


def _passwd(key: str, column: int) -> Check:
    def same(user: Mapping[str, Any], state: State) -> bool:
        return state.users[user["name"]][column] == str(user[key])

    return _users(same, key)


def _shadow(key: str, column: int, wanted: Callable[[Any], str]) -> Check:
    def same(user: Mapping[str, Any], state: State) -> bool:
        return state.shadow[user["name"]][column] == wanted(user[key])

    return _users(same, key)


def _primary_group(user: Mapping[str, Any], state: State) -> bool:
    group = state.groups.get(user["primary_group"], ["", "", "none"])
    return state.users[user["name"]][3] == group[2]


def _in_groups(user: Mapping[str, Any], state: State) -> bool:
    groups = user["groups"]
    named = groups if isinstance(groups, list) else re.split(r"[, ]+", groups)
    return all(user["name"] in state.members(group) for group in named)


def _sudo(user: Mapping[str, Any], state: State) -> bool:
    rules = state.below("/etc/sudoers.d").splitlines()
    return all(f"{user['name']} {rule}" in rules for rule in user["sudo"])


def _has_keys(name: str, keys: list[str], state: State) -> bool:
    if name not in state.users:
        return False
    path = f"{state.users[name][5]}/.ssh/authorized_keys"
    entry = state.entries.get(path)
    owner = state.users[name][2:4]
    return (
        entry is not None
        and [str(entry.uid), str(entry.gid)] == owner
        and entry.mode == 0o600
        and set(keys) <= set(state.text(path).splitlines())
    )


def _date(text: str) -> str:
    """Days since 1970, as shadow(5) has them."""
    from datetime import date

    return str((date.fromisoformat(text) - date(1970, 1, 1)).days)


def _chpasswd(document: Document, state: State) -> bool:
    return all(
        state.shadow.get(one["name"], ["", ""])[1] == one["password"]
        for one in document["chpasswd"]["users"]
    )


def _not_expired(document: Document, state: State) -> bool:
    """``expire: false``: the day of the last change is not 0, which would ask for another."""
    users = document["chpasswd"]["users"]
    return _chpasswd(document, state) and all(state.shadow[u["name"]][2] != "0" for u in users)


def _files(check: Callable[[Mapping[str, Any], State, Entry], bool], key: str) -> Check:
    """All files of the document that have the key are there and pass the check."""

    def all_files(document: Document, state: State) -> bool:
        files = [file for file in document["write_files"] if key in file]
        return all(
            (entry := state.entries.get(file["path"])) is not None and check(file, state, entry)
            for file in files
        )

    return all_files


def decoded(file: Mapping[str, Any]) -> bytes:
    """The bytes that an item of ``write_files`` asks for."""
    encoding = file.get("encoding", "")
    content: bytes = file["content"].encode()
    if encoding in ("b64", "base64", "gz+b64", "gz+base64"):
        content = base64.b64decode(content)
    return gzip.decompress(content) if encoding.startswith("gz") else content


def _content(document: Document, state: State) -> bool:
    wanted: dict[str, bytes] = {}
    for file in document["write_files"]:
        before = wanted.get(file["path"], b"") if file.get("append") else b""
        wanted[file["path"]] = before + decoded(file)
    return all(
        path in state.entries and state.entries[path].content == content
        for path, content in wanted.items()
    )


def _owned(file: Mapping[str, Any], state: State, entry: Entry) -> bool:
    user, group = file["owner"].split(":")
    ids = state.users.get(user, [""] * 3)[2], state.groups.get(group, [""] * 3)[2]
    return (str(entry.uid), str(entry.gid)) == ids


def _time_servers(key: str) -> Check:
    def listed(document: Document, state: State) -> bool:
        text = state.below("/etc/systemd/timesyncd.conf.d")
        words = {word for line in text.splitlines() for word in line.partition("=")[2].split()}
        return set(document["ntp"][key]) <= words

    return listed


def _time_client(document: Document, state: State) -> bool:
    return "[Time]" in state.below("/etc/systemd/timesyncd.conf.d")


def _trusted(document: Document, state: State) -> bool:
    bundle = state.text("/etc/ssl/certs/ca-certificates.crt")
    return all(text.strip() in bundle for text in document["ca_certs"]["trusted"])


def _localtime(document: Document, state: State) -> bool:
    entry = state.entries.get("/etc/localtime", Entry(0, 0, 0))
    return entry.content.endswith(f"zoneinfo/{document['timezone']}".encode())


def _locale(document: Document, state: State) -> bool:
    text = state.text("/etc/default/locale") + state.text("/etc/locale.conf")
    return f"LANG={document['locale']}" in text.replace('"', "")


def _hosts(state: State) -> list[str]:
    lines = state.text("/etc/hosts").splitlines()
    return [word for line in lines if line.startswith("127.0.1.1") for word in line.split()]


def _mounted(document: Document, state: State) -> bool:
    return all(
        f"{device} {place} {kind} " in state.mounts and place in state.text("/etc/fstab")
        for device, place, kind, *_ in document["mounts"]
    )


CHECKS: Mapping[str, Check] = {
    "hostname": lambda d, s: (
        s.hostname == d["hostname"] and s.text("/etc/hostname").strip() == d["hostname"]
    ),
    "fqdn": lambda d, s: d["fqdn"] in _hosts(s),
    "manage_etc_hosts": lambda d, s: d["hostname"] in _hosts(s),
    "timezone": _localtime,
    "locale": _locale,
    "final_message": lambda d, s: d["final_message"] in s.said,
    "ssh_pwauth": lambda d, s: bool(
        re.search(r"(?mi)^PasswordAuthentication\s+no$", s.below("/etc/ssh/sshd_config.d"))
    ),
    "ssh_authorized_keys": lambda d, s: _has_keys("core", d["ssh_authorized_keys"], s),
    "bootcmd": lambda d, s: "at each boot" in s.text("/var/lib/bench/bootcmd"),
    "runcmd": lambda d, s: (
        s.text("/var/lib/bench/runcmd") == "once\n"
        and "/var/lib/bench/a word with blanks" in s.entries
    ),
    "groups": lambda d, s: all(g in s.groups for g in d["groups"] if isinstance(g, str)),
    "groups[].web": lambda d, s: all(
        name in s.members("web") for group in d["groups"] if "web" in group for name in group["web"]
    ),
    "users[].name": _users(lambda user, state: True, "name"),
    "users[].gecos": _passwd("gecos", 4),
    "users[].uid": _passwd("uid", 2),
    "users[].homedir": _passwd("homedir", 5),
    "users[].shell": _passwd("shell", 6),
    "users[].primary_group": _users(_primary_group, "primary_group"),
    "users[].groups": _users(_in_groups, "groups"),
    "users[].sudo": _users(_sudo, "sudo"),
    "users[].lock_passwd": _users(
        lambda user, state: not state.shadow[user["name"]][1].startswith(("!", "*")), "lock_passwd"
    ),
    "users[].passwd": _shadow("passwd", 1, str),
    "users[].expiredate": _shadow("expiredate", 7, _date),
    "users[].inactive": _shadow("inactive", 6, str),
    "users[].ssh_authorized_keys": _users(
        lambda user, state: _has_keys(user["name"], user["ssh_authorized_keys"], state),
        "ssh_authorized_keys",
    ),
    "users[].system": _users(lambda u, s: int(s.users[u["name"]][2]) < 1000, "system"),
    "users[].no_create_home": _users(
        lambda u, s: s.users[u["name"]][5] not in s.entries, "no_create_home"
    ),
    "users[].no_user_group": _users(lambda u, s: u["name"] not in s.groups, "no_user_group"),
    "chpasswd.expire": _not_expired,
    "chpasswd.users[].name": _chpasswd,
    "chpasswd.users[].type": _chpasswd,
    "chpasswd.users[].password": _chpasswd,
    "write_files[].path": _files(lambda file, state, entry: True, "path"),
    "write_files[].owner": _files(_owned, "owner"),
    "write_files[].permissions": _files(
        lambda file, state, entry: entry.mode == int(file["permissions"], 8), "permissions"
    ),
    "write_files[].encoding": _files(
        lambda file, state, entry: entry.content == decoded(file), "encoding"
    ),
    "write_files[].content": _content,
    "write_files[].append": _files(
        lambda file, state, entry: entry.content.endswith(b"\n" + decoded(file)), "append"
    ),
    "write_files[].defer": _files(lambda file, state, entry: True, "defer"),
    "mounts": _mounted,
    "ntp.enabled": _time_client,
    "ntp.ntp_client": _time_client,
    "ntp.servers": _time_servers("servers"),
    "ntp.pools": _time_servers("pools"),
    "ca_certs.trusted": _trusted,
}
