"""``users[].sudo``: what a user may do as another, in the words of sudoers(5)."""

from __future__ import annotations

import re

from proa.machine.cloudconfig.parse import Node, Text, printable
from proa.machine.cloudconfig.reader import Reader

MAX_RULE = 1024

# As the first word of a line these are no users to sudo: aliases, ALL, and what begins a directive.
_NO_USER = re.compile(r"[A-Z][A-Z0-9_]*|Defaults|(User|Runas|Host|Cmnd|Cmd)_Alias|[0-9]+")


def read_sudo(r: Reader, node: Node | None, key: str, user: str) -> tuple[str, ...]:
    """The rules of one user, each the part of a line of sudoers that follows the name."""
    if isinstance(node, Text):
        nothing = node.null or (node.plain and node.text.lower() in ("false", "no", "off", ""))
        nodes: tuple[Node, ...] = () if nothing else (node,)
    else:
        nodes = r.items(node, key)
    rules: list[str] = []
    for item in nodes:
        rule = (r.text(item, key) or "").strip()
        if not rule:
            continue
        if fault := _fault(rule, user):
            r.error(item, key, f"{key} {fault}")
        rules.append(rule)
    return tuple(rules)


def _fault(rule: str, user: str) -> str | None:
    """Why the rule cannot be a line of its own, and nothing but that, in a sudoers file."""
    if not rule.isprintable():
        return "must be one line; give a list for more rules"
    if len(rule) > MAX_RULE:
        return f"is longer than {MAX_RULE} characters"
    if rule.endswith("\\"):
        return "ends in a backslash, which would join the next line to it"
    if "=" not in rule:
        return f'"{printable(rule)}" is not a rule like "ALL=(ALL) NOPASSWD:ALL"'
    if _NO_USER.fullmatch(user):
        return f'cannot be for a user "{printable(user)}": the word means something else to sudo'
    return None
