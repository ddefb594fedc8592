"""The JSON Schema of a cloud-config, for editors: made by watching the reader at work.

There is no second list of keys that could differ from the first. The reader is run over a document
of probes; a recorder in place of :class:`Reader` notes which keys it looks for, and by the method
that it calls what it wants there. Where the code asks a node for its class, several forms are
good; so the reader is run a few times, with probes of each class. And at last, at each key, each
form is tried on the true reader: one that it does not complain of is good.

What the schema cannot say, it does not: rules between keys, and names that are well formed. That
is what `validate` is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping

from proa.machine.cloudconfig.document import read
from proa.machine.cloudconfig.keys.disks import KINDS
from proa.machine.cloudconfig.keys.etcd import ETCD, ETCD2
from proa.machine.cloudconfig.keys.proa import PULLS, RESTARTS, UPDATE
from proa.machine.cloudconfig.keys.units import COMMANDS
from proa.machine.cloudconfig.keys.update import STRATEGIES
from proa.machine.cloudconfig.parse import Items, Node, Table, Text
from proa.machine.cloudconfig.reader import Reader
from proa.machine.hints import Any, Literal

Kind = Literal["object", "array", "string", "boolean"]

ANY_NAME = "anyname"
"""The key of a probe's only entry: seen in a path, it stands for every key."""

# What an editor shows beside a key, and offers as its value. By path; "[]" is any item.
DESCRIPTIONS: Mapping[str, str] = {
    "hostname": "The name of the machine, now and at the next boots.",
    "ssh_authorized_keys": "Public keys that open the account core.",
    "users": "Accounts. Of one that exists only the password, groups and keys are set.",
    "users[].passwd": "A hash, never a password: openssl passwd -6",
    "write_files": "Whole files, written at boot before services start.",
    "write_files[].permissions": 'Octal, like "0644".',
    "write_files[].owner": "user, or user:group.",
    "manage_etc_hosts": "localhost: CoreOS's one line. true: cloud-init's file.",
    "coreos.update": "Which updates the machine takes, and when it restarts.",
    "coreos.units": "Units of systemd, in this order.",
    "coreos.units[].runtime": "In /run: gone after a restart.",
    "coreos.units[].command": "Given at every boot, in order, and not waited for.",
    "coreos.etcd": "Options of the etcd of 2014, mapped to etcd 3.5.",
    "coreos.etcd2": "Options of etcd; those of etcd 3.5 that etcd 2 had, and its old names.",
    "coreos.locksmith": "Options of the reboot manager.",
    "coreos.fleet": "Written down, but there is no fleet.",
    "coreos.flannel": "Written to /run/flannel/options.env.",
    "coreos.oem": "Written to /etc/oem-release.",
    "bootcmd": "Commands at every boot, before the network.",
    "runcmd": "Commands, once for an instance, when the machine is up.",
    "disk_setup": "Partition tables, by device: /dev/disk/by-id/…",
    "disk_setup.anyname.overwrite": "Destroys what is on the disk.",
    "disk_setup.anyname.layout": "true: one partition. Or percentages, or [percentage, type].",
    "fs_setup": "File systems and swap; what is there already stays.",
    "fs_setup[].overwrite": "Destroys what is there.",
    "fs_setup[].partition": "A number, or any, auto, none.",
    "mounts": "[device, place, type, options, dump, pass], lines of fstab.",
    "swap.size": "Like 512M or 2G, or auto.",
    "timezone": "A name below /usr/share/zoneinfo, like Europe/Berlin.",
    "ca_certs.trusted": "Certificates in PEM form.",
    "ca_certs.remove_defaults": "Trust none of those that the release brings.",
    "power_state": "Once for an instance, last of all.",
    "power_state.delay": "now, or minutes.",
    "phone_home.url": "Told once that the machine is up; $INSTANCE_ID is filled in.",
    "final_message": "Printed at every boot: $version, $timestamp, $uptime, $datasource.",
    "proa": "What only Proa has.",
    "proa.health_checks": "A new version is kept only if all of these end with 0.",
    "proa.health_checks[].timeout": "Seconds, 1 to 60.",
    "proa.containers": "Containers that run as units of systemd.",
    "proa.containers[].restart": "When systemd starts it again.",
    "proa.reboot_window": "When the machine may restart by itself.",
    "proa.update.payload": "Which way an update comes: the smallest, no delta, the images as is.",
    "proa.update.download_rate": "Bytes per second, like 500K or 2M.",
}
VALUES: Mapping[str, Collection[str]] = {
    "manage_etc_hosts": ("localhost", "true", "false", "template"),
    "coreos.update.reboot_strategy": STRATEGIES,
    "coreos.units[].command": COMMANDS,
    "disk_setup.anyname.table_type": ("gpt", "mbr"),
    "fs_setup[].filesystem": KINDS,
    "power_state.mode": ("halt", "poweroff", "reboot"),
    "proa.containers[].restart": RESTARTS,
    "proa.containers[].pull": PULLS,
    **{
        f"{section}.{name}": option.words[0].split("|")
        for section, options in (
            *(("coreos.etcd", ETCD), ("coreos.etcd2", ETCD2), ("proa.update", UPDATE)),
        )
        for name, option in options.items()
        if option.words and re.fullmatch(r"[a-z|]+", option.words[0])
    },
}

_TRUE = ("true", "yes", "on")


class _Recorder(Reader):
    """Notes what is asked for. Every key is there, and every value is what was asked for."""

    def __init__(self, probe: Callable[[str], Node], answer: bool) -> None:
        super().__init__()
        self._probe = probe
        self._answer = answer
        self.kinds: dict[str, set[Kind]] = {}
        self.known: dict[str, dict[str, None]] = {}

    def note(self, key: str, kind: Kind) -> None:
        self.kinds.setdefault(_path(key), set()).add(kind)

    def table(
        self,
        node: Node | None,
        key: str,
        known: Collection[str],
        elsewhere: Mapping[str, str] | None = None,
    ) -> dict[str, Node]:
        self.note(key, "object")
        self.known.setdefault(_path(key), {}).update(dict.fromkeys(known))
        return {name: self._probe(_path(f"{key}.{name}" if key else name)) for name in known}

    def items(self, node: Node | None, key: str) -> tuple[Node, ...]:
        self.note(key, "array")
        return (self._probe(_path(f"{key}[0]")),)

    def text(self, node: Node | None, key: str) -> str | None:
        self.note(key, "string")
        return "a"

    def flag(self, node: Node | None, key: str, absent: bool = False) -> bool:
        self.note(key, "boolean")
        return self._answer

    def ssh_keys(self, node: Node | None, key: str) -> tuple[str, ...]:
        self.note(key, "array")
        self.note(key, "string")
        self.note(f"{key}[0]", "string")
        return ()


def _path(key: str) -> str:
    return re.sub(r"\[[0-9]+\]", "[]", key)


def _form(kind: Kind) -> Node:
    if kind == "object":
        return Table(((Text(ANY_NAME, 1, 1), Text("a", 1, 1)),), 1, 1)
    if kind == "array":
        return Items((Text("a", 1, 1),), 1, 1)
    return Text("a", 1, 1)


def observe() -> tuple[dict[str, set[Kind]], dict[str, tuple[str, ...]]]:
    """By path: the kinds of value that the reader takes, and the keys that it knows there."""
    kinds: dict[str, set[Kind]] = {}
    known: dict[str, dict[str, None]] = {}

    def found(path: str) -> set[Kind]:
        return kinds.get(path, set())

    def is_free(path: str) -> bool:
        return f"{path}.{ANY_NAME}" in kinds

    probes: tuple[Callable[[str], Node], ...] = (
        lambda path: _form("object"),
        lambda path: _form("object" if "object" in found(path) else "array"),
        lambda path: _form("object" if "object" in found(path) else "string"),
        lambda path: _form(
            "array" if path + "[]" in kinds else "object" if _has_keys(path, known) else "string"
        ),
        lambda path: _form("string"),
        lambda path: _form("object" if "object" in found(path) or is_free(path) else "string"),
    )
    for probe in probes:
        for answer in (False, True):
            recorder = _Recorder(probe, answer)
            read(probe(""), recorder)
            for path, more in recorder.kinds.items():
                kinds.setdefault(path, set()).update(more)
            for path, names in recorder.known.items():
                known.setdefault(path, {}).update(names)
    announced = [f"{path}.{name}".lstrip(".") for path, names in known.items() for name in names]
    for path in dict.fromkeys((*kinds, *announced)):
        missing = [kind for kind in _FORMS if kind not in found(path)]
        taken = {kind for kind in missing if any(_is_taken(path, n, known) for n in _FORMS[kind])}
        if path and taken:
            kinds.setdefault(path, set()).update(taken)
    return kinds, {path: tuple(names) for path, names in known.items()}


_FORMS: Mapping[Kind, tuple[Node, ...]] = {
    "string": (_form("string"),),
    "array": (_form("array"),),
    "object": tuple(
        Table(((Text(ANY_NAME, 1, 1), inner),), 1, 1)
        for inner in (_form("string"), _form("array"), _form("object"))
    ),
}
_WANTS = re.compile(r" wants (a (mapping|list|text)\b|true or false|names, or)")


def _is_taken(path: str, node: Node, known: Mapping[str, Collection[str]]) -> bool:
    """Whether the true reader takes this form there: it says of any other what it wants."""
    parts = re.findall(r"[^.\[\]]+|\[\]", path)
    while parts:
        part = parts.pop()
        if part == "[]":
            node = Items((node,), 1, 1)
            continue
        inside = "".join(f".{p}" if p != "[]" else p for p in parts).lstrip(".")
        # Without these, the rest is not looked at.
        beside = [n for n in ("name", "path", "image") if n != part and n in known.get(inside, ())]
        entries = [(Text(n, 1, 1), Text("/a" if n == "path" else "aa", 1, 1)) for n in beside]
        node = Table((*entries, (Text(part, 1, 1), node)), 1, 1)
    return not any(_WANTS.search(problem.message) for problem in read(node)[1])


def _has_keys(path: str, known: Mapping[str, object]) -> bool:
    return any(other == path or other.startswith(f"{path}.") for other in known)


# The schema.


def schema() -> dict[str, Any]:
    """JSON Schema, draft 7 (what editors of YAML speak)."""
    kinds, known = observe()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Cloud-config of Proa",
        "description": "Made by `proa config schema` from what the reader looks for.",
        **_value("", "#", kinds, known),
    }


def text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def _value(
    path: str,
    pointer: str,
    kinds: Mapping[str, set[Kind]],
    known: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    wanted = kinds.get(path, set()) | _free(path, kinds)
    order: tuple[Kind, ...] = ("object", "array", "boolean", "string")
    several = len(wanted) > 1
    forms = [
        _one(path, kind, f"{pointer}/anyOf/{i}" if several else pointer, kinds, known)
        for i, kind in enumerate(kind for kind in order if kind in wanted)
    ]
    about = {"description": DESCRIPTIONS[path]} if path in DESCRIPTIONS else {}
    if several:
        return about | {"anyOf": forms}
    return about | (forms[0] if forms else {})


def _free(path: str, kinds: Mapping[str, set[Kind]]) -> set[Kind]:
    """A mapping whose keys the owner chooses is never asked for by a list of keys."""
    return {"object"} if f"{path}.{ANY_NAME}" in kinds else set()


def _one(
    path: str,
    kind: Kind,
    pointer: str,
    kinds: Mapping[str, set[Kind]],
    known: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    if kind == "boolean":
        words = [*_TRUE, "false", "no", "off"]
        return {"type": ["boolean", "string", "null"], "enum": [True, False, None, *words]}
    if kind == "string":
        # Every scalar is read as the text that it is.
        taken: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
        if path in VALUES:
            taken["examples"] = list(VALUES[path])
        return taken
    if kind == "array":
        inner = _value(f"{path}[]", f"{pointer}/items", kinds, known)
        return {"type": ["array", "null"], "items": inner}
    if path not in known:
        inside = f"{pointer}/additionalProperties"
        return {
            "type": ["object", "null"],
            "additionalProperties": _value(f"{path}.{ANY_NAME}", inside, kinds, known),
        }
    below = {name: f"{path}.{name}" if path else name for name in known[path]}
    dashed = {
        f"^{name.replace('_', '[-_]')}$": {"$ref": f"{pointer}/properties/{name}"}
        for name in below
        if "_" in name
    }
    return {
        "type": ["object", "null"],
        "properties": {
            name: _value(inner, f"{pointer}/properties/{name}", kinds, known)
            for name, inner in below.items()
        },
        **({"patternProperties": dashed} if dashed else {}),
        "additionalProperties": False,
    }
