"""Which certificates the machine trusts: the release's, and the owner's.

``update-ca-certificates`` is not on Proa. The owner's certificates are kept in one file of their
own, and ``/etc/ssl/certs`` is made from it and from the release's defaults. A release with another
bundle shows only where nothing lies over it, so :func:`refresh` makes it anew when it differs: it
runs on every boot, and costs two reads when there is nothing to do.
"""

from __future__ import annotations

import re

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import TrustCertificates
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.system import certificates_in
from proa.machine.cloudconfig.machine import MAX_FILE, Machine, Status, root_ids
from proa.machine.cloudconfig.values import digest

OWN = "/etc/ca-certificates/cloud-config.pem"
CERTS = "/etc/ssl/certs"
BUNDLE = f"{CERTS}/ca-certificates.crt"
DEFAULTS = "/usr/share/proa/etc/ssl/certs"
"""The release's, below the overlay of /etc."""

_HEAD = "# The certificates of this machine's cloud-config, written at boot.\n"
_ALONE = "# remove_defaults: those of the release are not trusted.\n"
_PREFIX = "cloud-config-"


def trust(machine: Machine, change: TrustCertificates, same_wish: bool) -> tuple[Status, str]:
    wanted = change.trust
    alone = _ALONE if wanted.remove_defaults else ""
    text = "".join((_HEAD, alone, *wanted.trusted)).encode()
    found = files.read(machine.root, OWN, MAX_FILE)
    if found and found.content != text and same_wish:
        refresh(machine)
        return "kept", f"{OWN} was edited on the machine"
    if found is None or found.content != text:
        for index, certificate in enumerate(wanted.trusted):  # all are good, or none is taken
            _subject_hash(machine, certificate, index)
        files.write(machine.root, OWN, text, 0o644, *root_ids())
    return ("done" if refresh(machine) else "unchanged"), ""


def refresh(machine: Machine) -> bool:
    """Make /etc/ssl/certs what the owner's file and the release say; whether anything was done."""
    own = files.read(machine.root, OWN, MAX_FILE)
    if own is None:
        return False
    text = own.content.decode("utf-8", "replace")
    alone = _ALONE in text
    certificates, _ = certificates_in(text)
    default = files.read(machine.root, f"{DEFAULTS}/ca-certificates.crt", MAX_FILE)
    if default is None and not alone:
        raise FileProblem(f"{DEFAULTS}/ca-certificates.crt is not there")
    base = b"" if alone or default is None else default.content
    bundle = base + "".join(certificates).encode()
    found = files.read(machine.root, BUNDLE, MAX_FILE)
    if found and found.content == bundle:
        return False
    _show_defaults(machine, not alone)
    _place(machine, certificates)
    # Last: as long as it differs, the next boot does all of it again.
    files.write(machine.root, BUNDLE, bundle, 0o644, *root_ids())
    return True


def _show_defaults(machine: Machine, shown: bool) -> None:
    """Take the release's links out of /etc/ssl/certs, or put back those that were taken out."""
    for name in _names(machine, DEFAULTS):
        target = files.target_of(machine.root, f"{DEFAULTS}/{name}")
        path = f"{CERTS}/{name}"
        if target is None:
            continue
        if not shown and files.target_of(machine.root, path) == target:
            files.remove(machine.root, path)
        elif shown and not files.exists(machine.root, path):
            files.link(machine.root, path, target)


def _place(machine: Machine, certificates: tuple[str, ...]) -> None:
    """A file for each certificate of the owner, and the link by which OpenSSL finds it."""
    wanted = {f"{_PREFIX}{digest(text.encode())[:16]}.pem": text for text in certificates}
    for name in _names(machine, CERTS):
        target = files.target_of(machine.root, f"{CERTS}/{name}") or name
        if target.startswith(_PREFIX) and target not in wanted:
            files.remove(machine.root, f"{CERTS}/{name}")
    linked = {files.target_of(machine.root, f"{CERTS}/{n}") for n in _names(machine, CERTS)}
    for index, (name, text) in enumerate(wanted.items()):
        files.write(machine.root, f"{CERTS}/{name}", text.encode(), 0o644, *root_ids())
        if name in linked:
            continue
        stem = _subject_hash(machine, text, index)
        number = 0  # several certificates of one name are counted (openssl-rehash(1))
        while files.exists(machine.root, f"{CERTS}/{stem}.{number}"):
            number += 1
        files.link(machine.root, f"{CERTS}/{stem}.{number}", name)


def _names(machine: Machine, folder: str) -> list[str]:
    path = machine.root / folder.lstrip("/")
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def _subject_hash(machine: Machine, certificate: str, index: int) -> str:
    command = ("openssl", "x509", "-noout", "-subject_hash")
    code, output = machine.ask(command, certificate.encode())
    if code or not re.fullmatch(r"[0-9a-f]{8}", output.strip()):
        raise FileProblem(f"certificate {index + 1} is none that openssl can read")
    return output.strip()
