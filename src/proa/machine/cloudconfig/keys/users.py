"""``users`` and ``user``: accounts and the keys that open them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from proa.machine.cloudconfig.keys.sudo import read_sudo
from proa.machine.cloudconfig.keys.write_files import read_place
from proa.machine.cloudconfig.parse import Node, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import NAME, is_hash, is_url, password_fault
from proa.machine.hints import Any
from proa.machine.record import dataclass, field, fields, replace

CORE = "core"
"""The user that the image brings; the top-level keys and the cloud's keys are for it."""

_CORE_GROUPS = ("sudo", "docker", "systemd-journal", "adm")
"""The groups of core in the image: another default user has them too."""


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
    uid: int | None = None
    expiredate: str | None = None
    inactive: int | None = None
    """Days from the end of the password to the end of the account; -1 is never."""
    lock_passwd: bool | None = None
    create_groups: bool = True
    plain_text_passwd: str | None = field(default=None, repr=False)
    sudo: tuple[str, ...] = ()
    ssh_import: tuple[str, ...] = field(default=(), repr=False)
    ssh_redirect_user: bool = False

    @property
    def account(self) -> User:
        """The user alone: a new key or sudo rule must not reset a password that was changed."""
        return replace(
            self, ssh_authorized_keys=(), sudo=(), ssh_import=(), ssh_redirect_user=False
        )


MAX_UID = 2**32 - 2

_ELSEWHERE_USER = {
    "doas": 'is ignored: there is no doas here; give "sudo"',
    "snapuser": "is ignored: there is no snap here",
    "selinux_user": "is ignored: there is no SELinux here",
}
_KNOWN = (
    *(name for name in User.__match_args__ if name != "ssh_import"),
    *("hashed_passwd", "ssh_import_id", "coreos_ssh_import_url"),
    *("coreos_ssh_import_github", "coreos_ssh_import_github_users"),
)


def read_users(r: Reader, node: Node | None, key: str) -> tuple[User, ...]:
    """``users``: a list, or as cloud-init takes it too, a mapping from names or one text."""
    if isinstance(node, Table):
        return tuple(
            user
            for name, value in node.entries
            if (user := _named_user(r, name, value, key)) is not None
        )
    if isinstance(node, Text) and not node.null:
        return tuple(User(name) for name in _checked_names(r, node, key))
    found: list[User] = []
    for index, item in enumerate(r.items(node, key)):
        here = f"{key}[{index}]"
        if isinstance(item, Text):
            found += (User(name) for name in _checked_names(r, item, here))
        elif (user := read_user(r, item, here)) is not None:
            found.append(user)
    return tuple(found)


def _checked_names(r: Reader, node: Node, key: str) -> tuple[str, ...]:
    """Names alone. ``default`` is the user that the image brings: it needs no word."""
    names = tuple(name for name in r.words(node, key) if name != "default")
    for name in names:
        _check_name(r, node, key, name)
    return names


def _named_user(r: Reader, name: Text, value: Node, key: str) -> User | None:
    here = f"{key}.{printable(name.text)}"
    if isinstance(value, Table):
        return read_user(r, value, here, name)
    if not isinstance(value, Text):
        r.error(value, here, f"{here} wants a mapping (key: value), or true")
        return None
    wanted = r.flag(value, here) and name.text != "default"
    if wanted:
        _check_name(r, name, here, name.text)
    return User(name.text) if wanted else None


def read_default_user(r: Reader, node: Node | None) -> User | None:
    """``user``: who takes the place of core, with core's groups and shell."""
    if node is None or (isinstance(node, Text) and not node.text):
        return None
    if isinstance(node, Text):
        _check_name(r, node, "user", node.text)
        user: User | None = User(node.text)
    else:
        user = read_user(r, node, "user")
    if user is None or user.name in (CORE, "root"):
        return user
    return replace(user, groups=user.groups or _CORE_GROUPS, shell=user.shell or _BASH)


def read_user(r: Reader, node: Node, key: str, named: Text | None = None) -> User | None:
    """One user; ``named`` is the key under which it stands where ``users`` is a mapping."""
    entries = r.table(node, key, _KNOWN, _ELSEWHERE_USER)
    name = named.text if named else r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.warn(node, key, f"{key} has no name; ignored")
        return None
    _check_name(r, named or entries.get("name", node), f"{key}.name", name)
    groups = _groups(r, entries, key)
    for group in groups:
        _check_name(r, entries["groups"], f"{key}.groups", group)
    primary_group = r.text(entries.get("primary_group"), f"{key}.primary_group")
    if primary_group:
        _check_name(r, entries["primary_group"], f"{key}.primary_group", primary_group)
    hashed = read_hash(r, entries.get("hashed_passwd"), f"{key}.hashed_passwd")
    plain = read_password(r, entries.get("plain_text_passwd"), f"{key}.plain_text_passwd")
    user = User(
        name=CORE if name == "default" else name,
        passwd=read_hash(r, entries.get("passwd"), f"{key}.passwd"),
        ssh_authorized_keys=r.ssh_keys(
            entries.get("ssh_authorized_keys"), f"{key}.ssh_authorized_keys"
        ),
        gecos=read_gecos(r, entries.get("gecos"), f"{key}.gecos"),
        homedir=read_place(r, entries.get("homedir"), f"{key}.homedir"),
        primary_group=primary_group or None,
        groups=groups,
        shell=read_shell(r, entries.get("shell"), f"{key}.shell"),
        no_create_home=r.flag(entries.get("no_create_home"), f"{key}.no_create_home"),
        no_user_group=r.flag(entries.get("no_user_group"), f"{key}.no_user_group"),
        no_log_init=r.flag(entries.get("no_log_init"), f"{key}.no_log_init"),
        system=r.flag(entries.get("system"), f"{key}.system"),
        uid=_number(r, entries.get("uid"), f"{key}.uid", 1, MAX_UID),
        expiredate=_date(r, entries.get("expiredate"), f"{key}.expiredate"),
        inactive=_inactive(r, entries.get("inactive"), f"{key}.inactive"),
        lock_passwd=r.maybe(entries.get("lock_passwd"), f"{key}.lock_passwd"),
        create_groups=r.flag(entries.get("create_groups"), f"{key}.create_groups", absent=True),
        plain_text_passwd=None if hashed else plain,
        sudo=read_sudo(r, entries.get("sudo"), f"{key}.sudo", name),
        ssh_import=_imports(r, entries, key),
        ssh_redirect_user=_redirect(
            r, entries.get("ssh_redirect_user"), f"{key}.ssh_redirect_user"
        ),
    )
    if user.ssh_redirect_user and (user.ssh_authorized_keys or user.ssh_import):
        message = f"{key}.ssh_redirect_user lets nobody in, and does not go with ssh keys"
        r.error(entries["ssh_redirect_user"], f"{key}.ssh_redirect_user", message)
    return replace(user, passwd=hashed or user.passwd)


def merged(users: Iterable[User]) -> tuple[User, ...]:
    """One user for each name: what the first entry for it leaves open, a later one may say."""
    by_name: dict[str, User] = {}
    for user in users:
        first = by_name.setdefault(user.name, user)
        said: dict[str, Any] = {}
        for part in fields(User):
            now, later = getattr(first, part.name), getattr(user, part.name)
            if isinstance(now, tuple):
                said[part.name] = tuple(dict.fromkeys((*now, *later)))
            elif now == part.default:
                said[part.name] = later
        by_name[user.name] = replace(first, **said)
    return tuple(by_name.values())


def _check_name(r: Reader, node: Node, key: str, name: str) -> None:
    if not NAME.fullmatch(name):
        r.error(node, key, f'{key} "{printable(name)}" is not a valid name')


def _groups(r: Reader, entries: Mapping[str, Node], key: str) -> tuple[str, ...]:
    node = entries.get("groups")
    if isinstance(node, Table):
        return tuple(word.text for word, _ in node.entries)
    return r.words(node, f"{key}.groups")


def read_hash(r: Reader, node: Node | None, key: str) -> str | None:
    passwd = r.text(node, key)
    if node is None or not passwd:
        return None
    if not is_hash(passwd):  # and never say what it was
        hint = "make one with: openssl passwd -6"
        r.error(node, key, f"{key} wants a password hash, not a password; {hint}")
    return passwd


def read_password(r: Reader, node: Node | None, key: str) -> str | None:
    """A password in plain text: taken, for cloud-init's users have them, and warned of."""
    password = r.text(node, key)
    if node is None or not password:
        return None
    if fault := password_fault(password):
        r.error(node, key, f"{key} {fault}")
    hint = "whoever can read the document has it; give a hash (openssl passwd -6)"
    r.warn(node, key, f"{key} is a password in plain text: {hint}")
    return password


def read_gecos(r: Reader, node: Node | None, key: str) -> str | None:
    gecos = r.text(node, key)
    if node is not None and gecos and (":" in gecos or not gecos.isprintable()):
        r.error(node, key, f"{key} may not contain a colon or a control character")
    return gecos


_BASH = "/bin/bash"
_OTHER_SHELLS = ("zsh", "fish", "ksh", "mksh", "tcsh", "csh", "nu")


def read_shell(r: Reader, node: Node | None, key: str) -> str | None:
    shell = r.text(node, key)
    if node is not None and shell and not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", shell):
        r.error(node, key, f'{key} "{printable(shell)}" is not the absolute path of a program')
    folder, _, program = (shell or "").rpartition("/")
    if node is not None and folder in ("/bin", "/usr/bin") and program in _OTHER_SHELLS:
        message = f'{key} "{shell}" is not on Proa, and sshd lets nobody in whose shell is missing'
        r.warn(node, key, f"{message}; {_BASH} is taken")
        return _BASH
    return shell or None


def _number(r: Reader, node: Node | None, key: str, least: int, most: int) -> int | None:
    text = r.text(node, key)
    if node is None or not text or text.lower() in ("false", "no", "off"):
        return None
    number = int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) else most + 1
    if not least <= number <= most:
        r.error(node, key, f'{key} "{printable(text)}" is not a number from {least} to {most}')
    return number


def _inactive(r: Reader, node: Node | None, key: str) -> int | None:
    """``true`` stood for years in cloud-init's own examples, and does nothing there."""
    if isinstance(node, Text) and node.plain and node.text.lower() in ("true", "yes", "on"):
        message = f"{key} wants a number of days; ignored, as by cloud-init"
        r.warn(node, key, f"{message}; to close an account: lock_passwd, and no ssh keys")
        return None
    return _number(r, node, key, -1, 99999)


def _date(r: Reader, node: Node | None, key: str) -> str | None:
    text = r.text(node, key)
    if node is None or not text:
        return None
    from datetime import date  # few documents have one

    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        r.error(node, key, f'{key} "{printable(text)}" is not a date like "2030-12-31"')
    return text


def _redirect(r: Reader, node: Node | None, key: str) -> bool:
    if isinstance(node, Text) and node.text == "default":
        return True
    return r.flag(node, key)


# Keys that others publish.

_GITHUB = re.compile(r"[A-Za-z0-9-]{1,39}")
_IMPORT = re.compile(r"gh:[A-Za-z0-9-]{1,39}|lp:[a-z0-9][a-z0-9+.-]{0,63}")

MAX_IMPORTS = 32


def _imports(r: Reader, entries: Mapping[str, Node], key: str) -> tuple[str, ...]:
    """Where to have keys from: ``gh:NAME``, ``lp:NAME``, or an address."""
    sources = list(read_import_ids(r, entries.get("ssh_import_id"), f"{key}.ssh_import_id"))
    for word in ("coreos_ssh_import_github", "coreos_ssh_import_github_users"):
        node, here = entries.get(word), f"{key}.{word}"
        for name in r.words(node, here):
            if not _GITHUB.fullmatch(name):
                r.error(
                    node or entries[word], here, f'{here} "{printable(name)}" is no GitHub name'
                )
            sources.append(f"gh:{name}")
    here = f"{key}.coreos_ssh_import_url"
    url = r.text(entries.get("coreos_ssh_import_url"), here)
    if url:
        if not is_url(url):
            r.error(entries["coreos_ssh_import_url"], here, f"{here} is not an http(s) address")
        sources.append(url)
    return tuple(dict.fromkeys(sources))[:MAX_IMPORTS]


def read_import_ids(r: Reader, node: Node | None, key: str) -> tuple[str, ...]:
    """``ssh_import_id``: a bare name is one of Launchpad's, as ssh-import-id(1) has it."""
    if isinstance(node, Text) and node.text == "None":  # from cloud-init's own examples
        r.warn(node, key, f'{key} "None" is ignored: it is no name; leave the key out')
        return ()
    found = tuple(name if ":" in name else f"lp:{name}" for name in r.words(node, key))
    if node is not None and len(found) > MAX_IMPORTS:
        r.error(node, key, f"{key} has more than {MAX_IMPORTS} names")
    for name in found:
        if node is not None and not _IMPORT.fullmatch(name):
            message = f'{key} "{printable(name)}" is not like "gh:name" or "lp:name"'
            r.error(node, key, message)
    return found
