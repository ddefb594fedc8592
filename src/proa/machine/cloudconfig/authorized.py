"""The keys that open accounts: our parts of each user's authorized_keys."""

from __future__ import annotations

from collections.abc import Sequence

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import AuthorizeKeys, ImportKeys
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import (
    MAX_FILE,
    Account,
    FetchFailed,
    Machine,
    Status,
    find_account,
)
from proa.machine.cloudconfig.values import keys_in, shown_url

# One part is for the keys in the document, the other for those that it only says where to have.
_DOCUMENT = (
    "# proa cloud-config: begin (written at boot; put your own keys outside)",
    "# proa cloud-config: end",
)
_NAMED = (
    "# proa cloud-config: begin of the keys {} (put your own keys outside)",
    "# proa cloud-config: end of the keys {}",
)
_IMPORTED = (
    "# proa cloud-config: begin of imported keys (put your own keys outside)",
    "# proa cloud-config: end of imported keys",
)
Part = tuple[str, str]

MAX_IMPORTED = 100
"""Most keys that one source may bring."""


def authorize(machine: Machine, change: AuthorizeKeys, same_wish: bool) -> tuple[Status, str]:
    begin, end = _NAMED if change.part else _DOCUMENT
    part = (begin.format(change.part), end.format(change.part))
    return _place(machine, change.user, change.keys, change.keep, part, same_wish)


def import_keys(machine: Machine, change: ImportKeys, same_wish: bool) -> tuple[Status, str]:
    """Fetch the keys of each source, once: a key that is published later needs a new document.

    What one source does not bring must not cost the keys of the others, nor those of before.
    """
    if same_wish and _known(machine, change.user):
        return "unchanged", ""
    keys: list[str] = []
    missing: list[str] = []
    for source in change.sources:
        try:
            found = published_keys(machine.fetch(_address(source), {}))
        except FetchFailed as error:
            missing.append(f"{shown_url(source)}: {error}")
            continue
        if not found:
            missing.append(f"{shown_url(source)}: no ssh key is there")
        keys += found
    wanted = tuple(dict.fromkeys(keys))
    status, note = _place(
        machine, change.user, wanted, change.keep or bool(missing), _IMPORTED, False
    )
    if missing:
        raise FetchFailed("; ".join(missing))
    return status, note


def _known(machine: Machine, user: str) -> bool:
    """Whether the user has a file of keys at all: one that is missing is made again."""
    account = find_account(machine, user)
    return account is not None and files.exists(
        machine.root, f"{account.home}/.ssh/authorized_keys"
    )


def _address(source: str) -> str:
    """Where ssh-import-id(1) and coreos-cloudinit look."""
    site, _, name = source.partition(":")
    if site == "gh":
        return f"https://api.github.com/users/{name}/keys"
    if site == "lp":
        return f"https://launchpad.net/~{name}/+sshkeys"
    return source


def published_keys(data: bytes) -> tuple[str, ...]:
    """Keys as lines, or as the list of ``{"key": …}`` that GitHub's API answers with.

    What is not a public key is left out: an answer from the network must not become an option or
    another line of the file.
    """
    text = data.decode("utf-8", "replace").strip()
    if text.startswith("["):
        import json  # not every boot imports keys

        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            return ()
        found = [entry.get("key") for entry in entries if isinstance(entry, dict)]
        text = "\n".join(key for key in found if isinstance(key, str))
    bare = (key for key in keys_in(text)[0] if key.startswith(("ssh-", "ecdsa-", "sk-")))
    return tuple(dict.fromkeys(bare))[:MAX_IMPORTED]


def _place(
    machine: Machine, user: str, keys: Sequence[str], keep: bool, part: Part, same_wish: bool
) -> tuple[Status, str]:
    account = find_account(machine, user)
    if account is None:
        if not keys:
            return "unchanged", ""
        raise FileProblem(f"there is no user {user}")
    home = account.home.rstrip("/")
    if not home.startswith("/"):
        raise FileProblem(f"the user {user} has no home directory")
    path = f"{home}/.ssh/authorized_keys"
    found = files.read(machine.root, path, MAX_FILE)
    if found is not None:
        if same_wish:
            return "unchanged", ""
        if found.uid != account.uid and (found.links > 1 or found.uid != 0):
            raise FileProblem(f"{path} belongs to someone else")
    before = found.content.decode("utf-8", "surrogateescape") if found else ""
    after = with_keys(before, keys, keep=keep, part=part)
    if after == before and (found is not None or not after):
        return "unchanged", ""
    if files.make_directory(machine.root, home, 0o700, account.uid, account.gid):
        _copy_skeleton(machine, home, account)
    files.make_directory(machine.root, f"{home}/.ssh", 0o700, account.uid, account.gid)
    content = after.encode("utf-8", "surrogateescape")
    files.write(machine.root, path, content, 0o600, account.uid, account.gid)
    return "done", ""


def with_keys(text: str, keys: Sequence[str], *, keep: bool, part: Part = _DOCUMENT) -> str:
    """An authorized_keys file with our part replaced (or, with ``keep``, added to)."""
    before, ours, after = _split(text, part)
    elsewhere = _outside(text)
    wanted = dict.fromkeys((*ours, *keys) if keep else keys)
    block = [key for key in wanted if key not in elsewhere]
    begin, end = part
    lines = [*before, *([begin, *block, end] if block else []), *after]
    return "".join(f"{line}\n" for line in lines)


def _outside(text: str) -> set[str]:
    """The lines that are the owner's. A key in both our parts stays if one of them goes."""
    for part in (_DOCUMENT, _IMPORTED):
        before, _, after = _split(text, part)
        text = "".join(f"{line}\n" for line in (*before, *after))
    return {line.strip() for line in text.split("\n")}


def _split(text: str, part: Part) -> tuple[list[str], list[str], list[str]]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    begin, end = part
    if begin not in lines or end not in lines[lines.index(begin) :]:
        return lines, [], []
    first = lines.index(begin)
    last = lines.index(end, first)
    return lines[:first], lines[first + 1 : last], lines[last + 1 :]


def _copy_skeleton(machine: Machine, home: str, account: Account) -> None:
    """The files that useradd would have put into a home that it makes (skel: useradd(8))."""
    skeleton = machine.root / "etc/skel"
    for name in sorted(p.name for p in skeleton.iterdir()) if skeleton.is_dir() else ():
        if found := files.read(machine.root, f"/etc/skel/{name}", MAX_FILE):
            mode, uid, gid = found.mode, account.uid, account.gid
            files.write(machine.root, f"{home}/{name}", found.content, mode, uid, gid)
