"""The forms of a network description, and the one way to read any of them."""

from __future__ import annotations

from typing import Literal

from proa.machine.cloudconfig.network.model import Description
from proa.machine.cloudconfig.network.reading import entry
from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    decode,
    gunzip,
    load,
    printable,
)
from proa.machine.cloudconfig.reader import Reader

MAX_WEIGHT = 20_000
"""Most nodes of a description (see :mod:`parse`): some hundred links with all their addresses."""

Form = Literal["cloud-init", "v1", "v2", "eni", "openstack", "packet", "vmware"]

FORMS: tuple[Form, ...] = ("cloud-init", "v1", "v2", "eni", "openstack", "packet", "vmware")


def read(form: Form, data: bytes) -> tuple[Description, tuple[Problem, ...]]:
    """What a description says, and what is wrong with it. Never raises, whatever the bytes.

    ``cloud-init`` is version 1 or 2, as the text says itself. With an error among the problems
    the description is empty: nothing of it may be applied.
    """
    r = Reader()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data, MAX_BYTES)
        if len(data) > MAX_BYTES:
            raise Refused(f"the network description is larger than {MAX_BYTES // 1024} KiB")
        text = decode(data)
        if form == "eni":
            from proa.machine.cloudconfig.network import eni

            network = eni.read(r, text)
        else:
            root = load(text)
            network = Description() if root is None else _read_tree(r, form, root)
    except Refused as refused:
        return Description(), (refused.problem,)
    return _told(r, network)


def _told(r: Reader, network: Description) -> tuple[Description, tuple[Problem, ...]]:
    problems = sorted(r.problems, key=lambda p: (p.line, p.column))
    if r.untold:
        problems.append(Problem(r.worst_untold, f"and {r.untold} more problems"))
    void = any(problem.level == "error" for problem in problems)
    return Description() if void else network, tuple(problems)


# Only the reader that is needed is imported: a boot has one form or none.


def _read_tree(r: Reader, form: Form, root: Node) -> Description:
    if root.weight > MAX_WEIGHT:
        r.error(root, "", "there is more in the network description than any machine needs")
        return Description()
    if form == "openstack":
        from proa.machine.cloudconfig.network import openstack

        return openstack.read(r, root)
    if form == "packet":
        from proa.machine.cloudconfig.network import packet

        return packet.read(r, root)
    if form == "vmware":
        from proa.machine.cloudconfig.network import vmware

        return vmware.read(r, root)
    inner, key = _unwrapped(r, root)
    version = {"v1": "1", "v2": "2"}.get(form) or _version(r, inner, key)
    if version == "1":
        from proa.machine.cloudconfig.network import v1

        return v1.read(r, inner, key)
    if version == "2":
        from proa.machine.cloudconfig.network import v2

        return v2.read(r, inner, key)
    return Description()


def _unwrapped(r: Reader, root: Node) -> tuple[Node, str]:
    """What stands under the top key ``network``, where there is one, and its key."""
    if entry(root, "network") is not None:
        return r.table(root, "", ("network",))["network"], "network"
    return root, ""


def _version(r: Reader, node: Node, key: str) -> str | None:
    if not isinstance(node, Table):
        r.error(node, key, f"{key or 'the network description'} wants a mapping (key: value)")
        return None
    found = entry(node, "version")
    disabled = entry(node, "config")
    if found is None and isinstance(disabled, Text) and disabled.text == "disabled":
        return "1"  # {config: disabled} needs no version
    where = f"{key}.version" if key else "version"
    text = r.text(found, where)
    if text in ("1", "2"):
        return text
    shown = f' "{printable(text)}"' if text else ""
    r.error(found or node, where, f"{where}{shown} wants to be 1 or 2")
    return None
