"""Who may do what: sudo's rules, what sshd is told, and the keys by which it is known."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import WriteFile
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.keys.ssh import KINDS, HostKey
from proa.machine.cloudconfig.machine import MAX_FILE, CommandFailed, Machine, Status, root_ids
from proa.machine.cloudconfig.parse import unbase64
from proa.machine.cloudconfig.placing import write_file

SUDOERS = "/etc/sudoers.d/90-proa-cloud-config"

SSHD = "/etc/ssh/sshd_config.d/05-proa-cloud-config.conf"
"""sshd takes the first word on a thing: this is before the image's 10-proa.conf."""

_HEAD = "# Written by proa-cloudinit from the machine's cloud-config.\n"


def set_sudo_rules(
    machine: Machine, rules: Sequence[tuple[str, str]], same_wish: bool
) -> tuple[Status, str]:
    if not rules:
        return _take_away(machine, SUDOERS, same_wish)
    content = (_HEAD + "".join(f"{user} {rule}\n" for user, rule in rules)).encode()
    found = files.read(machine.root, SUDOERS, MAX_FILE)
    if found and (found.content, found.mode) == (content, 0o440):
        return "unchanged", ""
    if found and same_wish:
        return "kept", "it was edited on the machine"
    # A file that sudo does not understand can cost the owner every way to be root.
    try:
        machine.run(("visudo", "--check", "--quiet", "--file=-"), content)
    except CommandFailed as error:
        message = "sudo does not understand the rules of the document; none of them is in place"
        raise CommandFailed(f"{message} ({error})") from None
    files.write(machine.root, SUDOERS, content, 0o440, *root_ids())
    return "done", ""


def set_sshd(machine: Machine, lines: Sequence[str], same_wish: bool) -> tuple[Status, str]:
    if not lines:
        return _take_away(machine, SSHD, same_wish)
    content = (_HEAD + "".join(f"{line}\n" for line in lines)).encode()
    return write_file(machine, WriteFile(SSHD, content), same_wish)


def _take_away(machine: Machine, path: str, same_wish: bool) -> tuple[Status, str]:
    if same_wish or not files.exists(machine.root, path):
        return "unchanged", ""
    files.remove(machine.root, path)
    return "done", ""


# Host keys.


def _path(kind: str, end: str = "") -> str:
    return f"/etc/ssh/ssh_host_{kind}_key{end}"


def delete_host_keys(machine: Machine, same_wish: bool) -> tuple[Status, str]:
    if same_wish:
        return "unchanged", ""
    paths = [_path(kind, end) for kind in (*KINDS, "dsa") for end in ("", ".pub", "-cert.pub")]
    there = [path for path in paths if files.exists(machine.root, path)]
    for path in there:
        files.remove(machine.root, path)
    return ("done" if there else "unchanged"), ""


def place_host_key(machine: Machine, key: HostKey, same_wish: bool) -> tuple[Status, str]:
    parts = (("", key.private, 0o600), (".pub", key.public, 0o644))
    results = [
        write_file(machine, WriteFile(_path(key.kind, end), text.encode(), mode), same_wish)
        for end, text, mode in (*parts, ("-cert.pub", key.certificate, 0o644))
        if text is not None
    ]
    if key.private and not key.public and results[0][0] == "done":
        files.remove(machine.root, _path(key.kind, ".pub"))  # it is that of another key
    return max(results, key=lambda result: ("unchanged", "kept", "done").index(result[0]))


def make_host_key(machine: Machine, kind: str) -> tuple[Status, str]:
    path = _path(kind)
    if files.exists(machine.root, path):
        return "unchanged", ""
    machine.run(("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path), b"")
    return "done", ""


def tell_host_keys(machine: Machine, same_wish: bool) -> tuple[Status, str]:
    """Once, in the form that people look for in a cloud's console log (cc_keys_to_console)."""
    if same_wish:
        return "unchanged", ""
    found = [files.read(machine.root, _path(kind, ".pub"), MAX_FILE) for kind in KINDS]
    keys = [file.content.decode("utf-8", "replace").strip() for file in found if file]
    if not keys:
        raise FileProblem("there are no host keys yet")
    prints = [_fingerprint(key) for key in keys]
    lines = [
        *("-----BEGIN SSH HOST KEY FINGERPRINTS-----", *prints),
        *("-----END SSH HOST KEY FINGERPRINTS-----", "-----BEGIN SSH HOST KEY KEYS-----", *keys),
        "-----END SSH HOST KEY KEYS-----",
    ]
    machine.tell("".join(f"{line}\n" for line in lines))
    return "done", ""


def _fingerprint(key: str) -> str:
    """The kind and SHA-256 of a public key, as ``ssh-keygen -l`` writes the latter."""
    kind, _, rest = key.partition(" ")
    import hashlib  # told once in the life of a machine

    digest = hashlib.sha256(unbase64(rest.partition(" ")[0]) or b"").digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')} {kind}"
