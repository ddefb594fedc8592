"""How sshd lets in: ``ssh_pwauth``, ``ssh_keys`` and their kin, all of them cloud-init's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.parse import Node, Text, printable, unbase64
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import keys_in
from proa.machine.record import dataclass, field, replace

KINDS = ("rsa", "ecdsa", "ed25519")

IMAGE_KINDS = ("ed25519", "ecdsa")
"""Whose keys the image makes at its first boot, and names to sshd."""

MAX_HOST_KEY = 16 * 1024


@dataclass(frozen=True)
class HostKey:
    kind: str
    private: str | None = field(default=None, repr=False)
    public: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ssh:
    password_login: bool | None = None
    """Whether sshd takes passwords; ``None`` is as the image has it, which is no."""
    host_keys: tuple[HostKey, ...] = ()
    make_keys: tuple[str, ...] = ()
    delete_keys: bool | None = None
    """Whether host keys are made anew, once; ``None`` is where the disk is a copy of another's."""
    tell_keys: bool = False
    root_login: bool = False
    """Whether the default user's keys open root as well."""
    cloud_keys: bool = True
    """Whether the keys that the cloud has are taken."""


KEYS = (
    *("ssh_pwauth", "ssh_keys", "ssh_genkeytypes", "ssh_deletekeys", "ssh", "disable_root"),
    *("allow_public_ssh_keys", "no_ssh_fingerprints", "ssh_quiet_keygen"),
)
"""The keys of the document that :func:`read_ssh` reads."""

ELSEWHERE: Mapping[str, str] = {
    "disable_root_opts": "is ignored: root has no key here unless disable_root is false",
    "ssh_publish_hostkeys": "is ignored: host keys are not sent to the cloud",
    "ssh_fp_console_blacklist": "is ignored: no fingerprint of a user's key is printed",
    "ssh_key_console_blacklist": "is ignored: host keys of all kinds are told, or none",
    "authkey_hash": "is ignored: no fingerprint of a user's key is printed",
}


def read_ssh(r: Reader, top: Mapping[str, Node]) -> Ssh:
    r.flag(top.get("ssh_quiet_keygen"), "ssh_quiet_keygen")  # it is quiet anyway
    fingerprints = top.get("no_ssh_fingerprints")
    if fingerprints and not r.flag(fingerprints, "no_ssh_fingerprints", absent=True):
        message = "no_ssh_fingerprints: no fingerprint of a user's key is printed in any case"
        r.warn(fingerprints, "no_ssh_fingerprints", message)
    ssh = r.table(top.get("ssh"), "ssh", ("emit_keys_to_console",))
    return Ssh(
        password_login=_password_login(r, top.get("ssh_pwauth")),
        host_keys=_host_keys(r, top.get("ssh_keys")),
        make_keys=_make_keys(r, top.get("ssh_genkeytypes")),
        delete_keys=r.maybe(top.get("ssh_deletekeys"), "ssh_deletekeys"),
        tell_keys=r.flag(ssh.get("emit_keys_to_console"), "ssh.emit_keys_to_console"),
        root_login=not r.flag(top.get("disable_root"), "disable_root", absent=True),
        cloud_keys=r.flag(top.get("allow_public_ssh_keys"), "allow_public_ssh_keys", absent=True),
    )


def _password_login(r: Reader, node: Node | None) -> bool | None:
    if isinstance(node, Text):
        word = node.text.strip().lower()
        if word in ("unchanged", ""):
            return None
        node = replace(node, text=word)
    return r.maybe(node, "ssh_pwauth")


def _make_keys(r: Reader, node: Node | None) -> tuple[str, ...]:
    kinds: list[str] = []
    for kind in r.words(node, "ssh_genkeytypes"):
        if kind in KINDS:
            kinds.append(kind)
        elif node is not None:
            message = (
                f'ssh_genkeytypes "{printable(kind)}" is not one of {", ".join(KINDS)}; ignored'
            )
            r.warn(node, "ssh_genkeytypes", message)
    return tuple(kinds)


_PRIVATE = re.compile(
    r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n:, -]+\n"
    r"-----END ([A-Z]+ )?PRIVATE KEY-----"
)
_CERTIFICATE = re.compile(r"[a-z0-9@.-]+-cert-v[0-9]+@openssh\.com ")


def _host_keys(r: Reader, node: Node | None) -> tuple[HostKey, ...]:
    parts = ("private", "public", "certificate")
    known = tuple(f"{kind}_{part}" for kind in KINDS for part in parts)
    gone = {f"dsa_{part}": "is ignored: sshd takes no DSA keys any more" for part in parts}
    entries = r.table(node, "ssh_keys", known, gone)
    found: list[HostKey] = []
    for kind in KINDS:
        private = _private(r, entries.get(f"{kind}_private"), f"ssh_keys.{kind}_private")
        public = _public(r, entries.get(f"{kind}_public"), f"ssh_keys.{kind}_public")
        certificate = _public(
            r, entries.get(f"{kind}_certificate"), f"ssh_keys.{kind}_certificate", signed=True
        )
        if private is not None:
            public = public or public_part(private)
        elif public:
            message = f"ssh_keys.{kind}_public is ignored: there is no {kind}_private"
            r.warn(entries[f"{kind}_public"], f"ssh_keys.{kind}_public", message)
            public = None
        if private or certificate:
            found.append(HostKey(kind, private, public, certificate))
    return tuple(found)


def _private(r: Reader, node: Node | None, key: str) -> str | None:
    text = (r.text(node, key) or "").strip()
    if node is None or not text:
        return None
    if len(text) > MAX_HOST_KEY or not _PRIVATE.fullmatch(text):  # and never show it
        r.error(node, key, f"{key} is not a private key (-----BEGIN … PRIVATE KEY-----)")
    return f"{text}\n"


def _public(r: Reader, node: Node | None, key: str, signed: bool = False) -> str | None:
    text = (r.text(node, key) or "").strip()
    if node is None or not text:
        return None
    good, bad = keys_in(text)
    if bad or len(good) != 1 or (_CERTIFICATE.match(text) is None) == signed:
        r.error(node, key, f"{key} is not {'a certificate' if signed else 'a public key'} of ssh")
    return f"{text}\n"


def public_part(private: str) -> str | None:
    """The public key that OpenSSH's own form of a private key holds in clear (PROTOCOL.key)."""
    lines = private.strip().splitlines()
    data = unbase64("".join(lines[1:-1])) or b""
    magic = b"openssh-key-v1\0"
    if not data.startswith(magic):
        return None
    at, fields = len(magic), []
    for index in range(5):  # cipher, kdf, its options, how many keys, the public one
        number = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if index != 3:
            fields.append(data[at : at + number])
            at += number
    blob = fields[-1]
    name = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    if at > len(data) or not re.fullmatch(rb"(ssh|ecdsa)-[a-z0-9-]{1,40}", name):
        return None
    import base64  # few documents bring host keys

    return f"{name.decode()} {base64.b64encode(blob).decode()}\n"
