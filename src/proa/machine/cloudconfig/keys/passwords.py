"""``chpasswd`` and ``password``: passwords of users who exist, by cloud-init's three ways."""

from __future__ import annotations

import re

from proa.machine.cloudconfig.keys.users import read_hash, read_password
from proa.machine.cloudconfig.parse import Items, Node, Text, printable
from proa.machine.cloudconfig.reader import MAX_WORDS, Reader
from proa.machine.cloudconfig.values import NAME, is_hash
from proa.machine.hints import Literal
from proa.machine.record import dataclass, field

Kind = Literal["hash", "text", "random"]


@dataclass(frozen=True)
class Password:
    user: str
    kind: Kind
    text: str = field(default="", repr=False)
    expire: bool = True
    """Whether the user has to choose another at the next login."""


# What is a hash where nothing says so: cloud-init's kinds (cc_set_passwords) and those of today.
_LOOKS_HASHED = re.compile(r"\$(1|2[abxy]|5|6|7|y|gy)(\$[^:]+){2}")


def read_passwords(
    r: Reader, chpasswd: Node | None, password: Node | None, default_user: str
) -> tuple[Password, ...]:
    """``password`` is for the default user, and is void where ``chpasswd`` names users."""
    entries = r.table(chpasswd, "chpasswd", ("users", "list", "expire"))
    expire = r.flag(entries.get("expire"), "chpasswd.expire", absent=True)
    found = [
        *_read_list(r, entries.get("list"), expire),
        *(
            one
            for index, node in enumerate(r.items(entries.get("users"), "chpasswd.users"))
            if (one := _read_one(r, node, f"chpasswd.users[{index}]", expire)) is not None
        ),
    ]
    if not isinstance(password, Text) or password.null or not password.text:
        r.text(password, "password")
        return tuple(found)
    if found:
        r.warn(password, "password", "password is ignored: chpasswd says whose it would be")
        return tuple(found)
    return (_recognised(r, password, "password", default_user, password.text, expire),)


def _read_one(r: Reader, node: Node, key: str, expire: bool) -> Password | None:
    entries = r.table(node, key, ("name", "password", "type"))
    name = r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.error(node, key, f"{key} has no name")
        return None
    _check_name(r, entries["name"], f"{key}.name", name)
    kind = (r.text(entries.get("type"), f"{key}.type") or "hash").lower()
    given = entries.get("password")
    if kind == "random":
        return Password(name, "random", "", expire)
    text = (read_hash if kind == "hash" else read_password)(r, given, f"{key}.password")
    if kind not in ("hash", "text"):
        r.error(entries["type"], f"{key}.type", f"{key}.type is not one of hash, text, RANDOM")
    if not text:
        r.error(node, key, f"{key} has no password")
        return None
    return Password(name, "hash" if kind == "hash" else "text", text, expire)


def _read_list(r: Reader, node: Node | None, expire: bool) -> list[Password]:
    """``user:password`` each, as items or as lines of one text."""
    key = "chpasswd.list"
    items = node.items if isinstance(node, Items) else (node,) if node is not None else ()
    found: list[Password] = []
    for item in items:
        lines = (r.text(item, key) or "").splitlines()
        if len(lines) > MAX_WORDS:
            r.error(item, key, f"{key} has more than {MAX_WORDS} lines in one text; give a list")
        for line in lines[:MAX_WORDS]:
            if not line.strip():
                continue
            name, colon, text = line.strip().partition(":")
            if not colon or not text:  # and never say what it was
                r.error(item, key, f'{key} wants lines of "user:password"')
                continue
            _check_name(r, item, key, name)
            found.append(_recognised(r, item, key, name, text, expire))
    return found


def _recognised(r: Reader, node: Node, key: str, user: str, text: str, expire: bool) -> Password:
    if text in ("R", "RANDOM"):
        return Password(user, "random", "", expire)
    if _LOOKS_HASHED.fullmatch(text) and is_hash(text):
        return Password(user, "hash", text, expire)
    read_password(r, Text(text, node.line, node.column), key)
    return Password(user, "text", text, expire)


def _check_name(r: Reader, node: Node, key: str, name: str) -> None:
    """A name that is none may be the password, where someone turned the two round."""
    if not NAME.fullmatch(name):
        shown = "" if key.endswith("list") else f' "{printable(name)}"'
        r.error(node, key, f"{key}{shown} is not a valid name")
