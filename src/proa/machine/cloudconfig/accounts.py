"""Making groups and users, and their passwords.

No password is ever on a command line, for all can read those; and none is kept in plain text. One
that the document gives in plain text is hashed here by chpasswd, which gets it by its standard
input: its own hash (yescrypt, Debian 13's default) and not PAM's, whose rules are for people.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from proa.machine.cloudconfig.changes import EnsureGroup, EnsureUser, JoinGroup
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.passwords import Password
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.machine import Machine, Status, database, find_account
from proa.machine.cloudconfig.parse import printable

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 of them, none of which looks like another."""

RANDOM_LENGTH = 20
"""Letters of a random password: 100 bits."""


def ensure_group(machine: Machine, group: EnsureGroup) -> tuple[Status, str]:
    found = database(machine, "/etc/group").get(group.name)
    if found is not None:
        other = group.gid is not None and found[2:3] != [str(group.gid)]
        return "unchanged", f"it has the id {printable(found[2])}" if other else ""
    number = ("--gid", str(group.gid)) if group.gid is not None else ()
    system = ("--system",) if group.system else ()
    machine.run(("groupadd", *number, *system, "--", group.name), b"")
    return "done", ""


def join_group(machine: Machine, change: JoinGroup, same_wish: bool) -> tuple[Status, str]:
    users = database(machine, "/etc/passwd")
    missing = [name for name in change.members if name not in users]
    note = f"there is no user {', '.join(missing)}" if missing else ""
    entry = database(machine, "/etc/group").get(change.group)
    if entry is None:
        raise FileProblem(f"there is no group {change.group}")
    there = entry[-1].strip().split(",")
    absent = [name for name in change.members if name in users and name not in there]
    if same_wish or not absent:
        return "unchanged", note
    for name in absent:
        machine.run(("usermod", "--append", "--groups", change.group, "--", name), b"")
    return "done", note


def ensure_user(machine: Machine, change: EnsureUser, same_wish: bool) -> tuple[Status, str]:
    user = change.user
    account = find_account(machine, user.name)
    notes: list[str] = []
    if user.create_groups and not (account is not None and same_wish):
        notes = [f"made the group {group}" for group in _make_groups(machine, user)]
    known_groups = database(machine, "/etc/group")
    groups = [group for group in user.groups if group in known_groups]
    missing = [group for group in user.groups if group not in known_groups]
    if missing:
        notes.append(f"there is no group {', '.join(missing)}")
    if account is not None and same_wish:
        return "unchanged", "; ".join(notes)
    done = account is None
    if account is None:
        machine.run(_useradd(change, groups), b"")
    else:
        if staying := _staying(machine, user):
            notes.append(f"the user exists and keeps its {', '.join(staying)}")
        absent = [g for g in groups if user.name not in known_groups[g][-1].strip().split(",")]
        if absent:
            machine.run(("usermod", "--append", "--groups", ",".join(absent), "--", user.name), b"")
            done = True
    done |= _set_password(machine, user)
    return ("done" if done else "unchanged"), "; ".join(notes)


def _staying(machine: Machine, user: User) -> list[str]:
    """What the document says of a user who exists and is otherwise: it is for new users only."""
    entry = database(machine, "/etc/passwd")[user.name]
    wanted = (user.uid, 2), (user.gecos, 4), (user.homedir, 5), (user.shell, 6)
    names = ("uid", "gecos", "homedir", "shell")
    return [
        name
        for name, (value, at) in zip(names, wanted, strict=True)
        if value is not None and entry[at] != str(value)
    ]


def _make_groups(machine: Machine, user: User) -> list[str]:
    known = database(machine, "/etc/group")
    wanted = (*user.groups, *((user.primary_group,) if user.primary_group else ()))
    made = [group for group in dict.fromkeys(wanted) if group not in known]
    for group in made:
        machine.run(("groupadd", "--", group), b"")
    return made


def _set_password(machine: Machine, user: User) -> bool:
    """Set the user's password as it should be, locked or not; whether there was something to do."""
    now = _password_field(machine, user.name)
    if user.plain_text_passwd is not None:
        _chpasswd(machine, user.name, user.plain_text_passwd, hashed=False)
        if user.lock_passwd:
            machine.run(("usermod", "--lock", "--", user.name), b"")
        return True
    if user.passwd is not None:
        wanted = user.passwd
        if user.lock_passwd and not wanted.startswith(("!", "*")):
            wanted = f"!{wanted}"
        if now == wanted:
            return False
        _chpasswd(machine, user.name, wanted, hashed=True)
        return True
    # No word of a password: then only an account that has one can be locked or opened.
    if user.lock_passwd and now and not now.startswith(("!", "*")):
        machine.run(("usermod", "--lock", "--", user.name), b"")
        return True
    if user.lock_passwd is False and now.startswith("!$"):
        machine.run(("usermod", "--unlock", "--", user.name), b"")
        return True
    return False


def set_password(machine: Machine, password: Password, same_wish: bool) -> tuple[Status, str]:
    user = password.user
    if find_account(machine, user) is None:
        raise FileProblem(f"there is no user {user}")
    if same_wish:
        return "unchanged", ""
    done = True
    if password.kind == "random":
        secret = "".join(_LETTERS[byte & 31] for byte in os.urandom(RANDOM_LENGTH))
        _chpasswd(machine, user, secret, hashed=False)
        # Told where cloud-init tells it, in its words, and nowhere else. If the console cannot be
        # written the change has failed, and the next boot makes another one.
        machine.tell(f"Set the following 'random' passwords\n{user}:{secret}\n")
    elif password.kind == "text":
        _chpasswd(machine, user, password.text, hashed=False)
    elif _password_field(machine, user) != password.text:
        _chpasswd(machine, user, password.text, hashed=True)
    else:
        done = False
    if password.expire and (done or _last_changed(machine, user) != "0"):
        machine.run(("passwd", "--quiet", "--expire", "--", user), b"")
        done = True
    return ("done" if done else "unchanged"), ""


def _chpasswd(machine: Machine, user: str, password: str, *, hashed: bool) -> None:
    options = ("--encrypted",) if hashed else ("--crypt-method", "YESCRYPT")
    machine.run(("chpasswd", *options), f"{user}:{password}\n".encode())


def _password_field(machine: Machine, user: str) -> str:
    return database(machine, "/etc/shadow").get(user, ["", ""])[1]


def _last_changed(machine: Machine, user: str) -> str:
    """Days since 1970; 0 is when the user has to choose another password (shadow(5))."""
    entry = database(machine, "/etc/shadow").get(user, [])
    return entry[2] if len(entry) > 2 else ""


def _useradd(change: EnsureUser, groups: Sequence[str]) -> tuple[str, ...]:
    user = change.user
    command = ["useradd", "--password", "*"]  # no password opens it, and sshd takes keys
    options = {
        "--comment": user.gecos,
        "--home-dir": user.homedir,
        "--gid": user.primary_group,
        "--groups": ",".join(groups),
        "--shell": user.shell,
        "--uid": None if user.uid is None else str(user.uid),
        "--expiredate": user.expiredate,
        "--inactive": None if user.inactive is None else str(user.inactive),
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
