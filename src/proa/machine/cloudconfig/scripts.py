"""Running what the owner wrote.

Each script is a unit of its own, ``proa-script@NAME.service``: outside of the narrow rights of
proa-cloudinit.service, and its output in the journal and on the console.
"""

from __future__ import annotations

import re

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import RunScript
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import CommandFailed, Machine, Status, root_ids

FOLDER = "/run/proa/scripts"
ENVIRONMENT = "/run/proa/scripts.env"

EARLY_TIMEOUT = 110.0
"""Seconds that a script may hold up a boot; one of the final stage holds up nobody."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9._:/-]{1,256}")


class ScriptFailed(CommandFailed):
    """The script came to its end, and its exit status is not 0."""

    ended = True


def run(machine: Machine, change: RunScript) -> tuple[Status, str]:
    timeout = None if change.stage == "final" else EARLY_TIMEOUT
    code = execute(machine, change.name, change.content, change.instance_id, timeout)
    if code:
        raise ScriptFailed(f"exit status {code}; see journalctl -u {unit_of(change.name)}")
    return "done", ""


def execute(
    machine: Machine, name: str, content: bytes, instance_id: str, timeout: float | None
) -> int:
    """Run a script to its end; its exit status."""
    if not _NAME.fullmatch(name):
        raise FileProblem("the name of the script is not one for a unit")
    path = f"{FOLDER}/{name}"
    ids = root_ids()
    files.make_directory(machine.root, FOLDER, 0o700, *ids)
    known = _INSTANCE_ID.fullmatch(instance_id) is not None
    environment = f"INSTANCE_ID={instance_id}\n" if known else ""
    files.write(machine.root, ENVIRONMENT, environment.encode(), 0o644, *ids)
    files.write(machine.root, path, content, 0o700, *ids)
    try:
        return machine.start(unit_of(name), timeout)
    finally:
        files.remove(machine.root, path)


def unit_of(name: str) -> str:
    return f"proa-script@{name}.service"
