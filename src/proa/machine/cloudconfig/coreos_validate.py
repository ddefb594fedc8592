"""coreos-cloudinit's own validator: what ``-validate`` said of a document, line by line.

People's scripts read these lines, so they are the original's to the letter, with its types, its
rules and their order (``reference/coreos/cloudinit.md`` 3.8, ``recorded-behaviour.md`` A.5). They
say what CoreOS would have made of a document. What Proa makes of it, with columns and
suggestions, ``proactl config validate`` says.

Known differences: where the original crashed (a list where a word of a set is wanted), nothing is
said; a document that Proa refuses to read at all (a key twice, an unknown tag) is an error here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from posixpath import dirname, normpath
from typing import Literal

from proa.machine.cloudconfig.keys.etcd import ETCD, ETCD2
from proa.machine.cloudconfig.keys.options import Option
from proa.machine.cloudconfig.keys.services import (
    FLANNEL,
    FLEET,
    LOCKSMITH,
    WINDOW_LENGTH,
    WINDOW_START,
)
from proa.machine.cloudconfig.keys.units import COMMANDS
from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Items,
    Node,
    Refused,
    Table,
    Text,
    canonical,
    decode,
    gunzip,
    load,
    printable,
    unbase64,
)
from proa.machine.record import dataclass

# The types of the original, by Go's names.


@dataclass(frozen=True)
class _Leaf:
    type: Literal["string", "bool", "int", "float64"] = "string"
    valid: str = ""
    """A regular expression for the whole value."""
    deprecated: str = ""


@dataclass(frozen=True)
class _List:
    item: _Type
    deprecated: str = ""


@dataclass(frozen=True)
class _Struct:
    fields: Mapping[str, _Type]
    deprecated: str = ""


_Type = _Leaf | _List | _Struct

_TYPES: Mapping[str, Literal["string", "bool", "int", "float64"]] = {
    "text": "string",
    "flag": "bool",
    "number": "int",
    "real": "float64",
}
_STRING, _BOOL = _Leaf(), _Leaf("bool")
_GONE = "{} is no longer shipped in Container Linux"


def _struct(options: Mapping[str, Option], deprecated: str = "", **more: _Type) -> _Struct:
    return _Struct({n: _Leaf(_TYPES[o.kind]) for n, o in options.items()} | more, deprecated)


def _strings(*names: str) -> dict[str, _Type]:
    return dict.fromkeys(names, _STRING)


_UNIT: Mapping[str, _Type] = {
    **_strings("name", "content"),
    **dict.fromkeys(("mask", "enable", "runtime"), _BOOL),
    "command": _Leaf(valid="|".join(COMMANDS)),
    "drop_ins": _List(_Struct(_strings("name", "content"))),
}
_COREOS = _Struct(
    {
        "etcd": _struct(ETCD, _GONE.format("etcd")),
        "etcd2": _struct(
            ETCD2,
            _GONE.format("etcd2"),
            ca_file=_Leaf(deprecated="ca_file obsoleted by trusted_ca_file and client_cert_auth"),
            peer_ca_file=_Leaf(
                deprecated="peer_ca_file obsoleted peer_trusted_ca_file and peer_client_cert_auth"
            ),
            proxy=_Leaf(valid="on|off|readonly"),
        ),
        "flannel": _struct(FLANNEL),
        "fleet": _struct(FLEET, _GONE.format("fleet")),
        "locksmith": _struct(
            LOCKSMITH,
            window_start=_Leaf(valid=WINDOW_START),
            window_length=_Leaf(valid=WINDOW_LENGTH),
        ),
        "oem": _Struct(_strings("id", "name", "version_id", "home_url", "bug_report_url")),
        "update": _Struct(
            {
                "reboot_strategy": _Leaf(valid="etcd-lock|reboot|off"),
                **_strings("group", "server"),
            }
        ),
        "units": _List(_Struct(_UNIT)),
    }
)
_USER: Mapping[str, _Type] = {
    **_strings("name", "passwd", "coreos_ssh_import_github", "coreos_ssh_import_url", "gecos"),
    **_strings("homedir", "primary_group", "shell"),
    **dict.fromkeys(
        ("ssh_authorized_keys", "coreos_ssh_import_github_users", "groups"), _List(_STRING)
    ),
    **dict.fromkeys(("no_create_home", "no_user_group", "system", "no_log_init"), _BOOL),
}
_ENCODINGS = r"base64|b64|gz|gzip|gz\+base64|gzip\+base64|gz\+b64|gzip\+b64"
_FILE: Mapping[str, _Type] = {
    "encoding": _Leaf(valid=_ENCODINGS),
    **_strings("content", "owner", "path"),
    "permissions": _Leaf(valid="0?[0-7]{3,4}"),
}
_CLOUD_CONFIG = _Struct(
    {
        "ssh_authorized_keys": _List(_STRING),
        "coreos": _COREOS,
        "write_files": _List(_Struct(_FILE)),
        "hostname": _STRING,
        "users": _List(_Struct(_USER)),
        "manage_etc_hosts": _STRING,
    }
)


# The rules.


@dataclass(frozen=True)
class Entry:
    level: Literal["error", "warning", "info"]
    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.level}: {self.message}"


@dataclass(frozen=True)
class _Node:
    """A value under its name, on the line of its key."""

    name: str
    line: int
    value: Node | None

    def child(self, name: str) -> _Node:
        found = (child for child in self.children() if child.name == name)
        return next(found, _Node(name, 0, None))

    def children(self) -> tuple[_Node, ...]:
        if isinstance(self.value, Table):
            entries = self.value.entries
            return tuple(_Node(canonical(key.text), key.line, value) for key, value in entries)
        if isinstance(self.value, Items):
            items = enumerate(self.value.items)
            return tuple(_Node(f"{self.name}[{i}]", item.line, item) for i, item in items)
        return ()

    @property
    def kind(self) -> str:
        """Go's kind of the value, as its YAML library took it without being told what to expect."""
        if isinstance(self.value, Table):
            return "map"
        if isinstance(self.value, Items):
            return "slice"
        return "invalid" if self.value is None else _scalar_kind(self.value)

    @property
    def text(self) -> str:
        return self.value.text if isinstance(self.value, Text) else ""


def validate(data: bytes) -> tuple[Entry, ...]:
    """What the original's ``-validate`` said of this user-data. Never raises."""
    try:
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data, MAX_BYTES)
        if not data or data.startswith(b"#!") or is_ignition(data):
            return ()
        if data.split(b"\n", 1)[0].rstrip() != b"#cloud-config":
            return (Entry("error", 1, 'must be "#cloud-config" or begin with "#!"'),)
        root = load(decode(data))
    except Refused as refused:
        problem = refused.problem
        message = problem.message.removeprefix("YAML: ").partition("; ")[0]  # without our hint
        nothing = 'incorrect type for "" (want struct)'
        return (Entry("error", problem.line, message), Entry("warning", 0, nothing))
    if not isinstance(root, Table):
        return ()
    config = _Node("", 0, root)
    return tuple(
        entry
        for rule in (_discovery, _encoding, _structure, _validity, _files, _under_coreos)
        for entry in rule(config)
    )


def is_ignition(data: bytes) -> bool:
    """Whether it is an Ignition config of any version: the original left those to Ignition."""
    if not data.lstrip().startswith(b"{"):
        return False
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return False
    inner = content.get("ignition")
    old = content.get("ignitionVersion")
    return (isinstance(inner, dict) and isinstance(inner.get("version"), str)) or (
        isinstance(old, int) and not isinstance(old, bool)
    )


def _discovery(config: _Node) -> Iterator[Entry]:
    address = config.child("coreos").child("etcd").child("discovery")
    # What Go takes as the address of a request: a scheme, or an absolute path.
    if address.kind != "invalid" and not (
        re.match(r"[A-Za-z][A-Za-z0-9+.-]*:.|/", address.text) and address.text.isprintable()
    ):
        yield Entry("warning", address.line, "discovery URL is not valid")


def _encoding(config: _Node) -> Iterator[Entry]:
    for file in config.child("write_files").children():
        encoding, content = file.child("encoding"), file.child("content")
        if encoding.kind != "invalid" and not _decodes(content.value, encoding.text):
            message = f"content cannot be decoded as {_quoted(encoding.text)}"
            yield Entry("error", content.line, message)


def _decodes(content: Node | None, encoding: str) -> bool:
    if not encoding:
        return True
    if not re.fullmatch(_ENCODINGS, encoding):
        return False
    data = content.text.encode() if isinstance(content, Text) else b""
    if isinstance(content, Text) and content.binary is not None:
        data = content.binary
    if encoding.endswith("64"):
        unwrapped = unbase64(data.decode("latin-1"))
        if unwrapped is None:
            return False
        data = unwrapped
    if encoding.startswith("gz"):
        try:
            gunzip(data, MAX_BYTES)
        except Refused:
            return False
        return bool(data)
    return True


def _structure(node: _Node, want: _Type = _CLOUD_CONFIG) -> Iterator[Entry]:
    if not _compatible(node.kind, want):
        message = f"incorrect type for {_quoted(node.name)} (want {_human(want)})"
        yield Entry("warning", node.line, message)
        return
    for child in node.children():
        if isinstance(want, _List):
            yield from _structure(child, want.item)
        elif isinstance(want, _Struct):
            inner = want.fields.get(child.name)
            if inner is None:
                yield Entry("warning", child.line, f"unrecognized key {_quoted(child.name)}")
                continue
            if inner.deprecated:
                message = f"deprecated key {_quoted(child.name)} ({inner.deprecated})"
                yield Entry("warning", child.line, message)
            yield from _structure(child, inner)


def _validity(node: _Node, want: _Type = _CLOUD_CONFIG) -> Iterator[Entry]:
    if isinstance(want, _Leaf):
        text = node.text
        if want.valid and text and not re.fullmatch(want.valid, text):
            yield Entry("error", node.line, f"invalid value {printable(text, 200)}")
        return
    for child in node.children():
        inner = want.fields.get(child.name) if isinstance(want, _Struct) else want.item
        if inner is not None:
            yield from _validity(child, inner)


def _files(config: _Node) -> Iterator[Entry]:
    for file in config.child("write_files").children():
        path = file.child("path")
        if normpath(dirname(path.text) or ".").startswith("/usr"):
            yield Entry("error", path.line, "file cannot be written to a read-only filesystem")


def _under_coreos(config: _Node) -> Iterator[Entry]:
    files = config.child("coreos").child("write_files")
    if files.kind != "invalid":
        yield Entry("info", files.line, "write_files doesn't belong under coreos")


# Go's types of YAML values.

_WORDS = ("y", "yes", "true", "on", "n", "no", "false", "off")
_BOOLEANS = frozenset(form for w in _WORDS for form in (w, w.capitalize(), w.upper()))
_INT = re.compile(r"[-+]?(0[xX][0-9A-Fa-f]+|0b[01]+|[0-9]+)", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    re.ASCII,
)


def _scalar_kind(scalar: Text) -> str:
    if not scalar.plain or scalar.binary is not None:
        return "string"
    if scalar.null:
        return "invalid"
    if scalar.text in _BOOLEANS:
        return "bool"
    digits = scalar.text.replace("_", "")
    if _INT.fullmatch(digits):
        return "int"
    return "float64" if _FLOAT.fullmatch(digits) else "string"


def _compatible(kind: str, want: _Type) -> bool:
    if isinstance(want, _Struct):
        return kind == "map"
    if isinstance(want, _List):
        return kind == "slice"
    wider = {"string": ("string", "int", "float64", "bool"), "float64": ("float64", "int")}
    return kind in wider.get(want.type, (want.type,))


def _human(want: _Type) -> str:
    if isinstance(want, _List):
        return f"[]{_human(want.item)}"
    return "struct" if isinstance(want, _Struct) else want.type


def _quoted(text: str) -> str:
    return json.dumps(printable(text, 200), ensure_ascii=False)
