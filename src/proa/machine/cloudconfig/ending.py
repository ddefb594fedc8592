"""The last things: tell an address, say a word, and change the power state."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from proa.machine.cloudconfig import files, scripts
from proa.machine.cloudconfig.changes import ChangePower, PhoneHome
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.machine import CommandFailed, Machine, Status
from proa.machine.cloudconfig.parse import printable

PAUSE = 3.0
"""Seconds between two tries (cloud-init: ``sec_between``)."""

_SMALL = 64 * 1024
_NOTHING = "N/A"  # cloud-init's word for what there is not


def phone_home(machine: Machine, change: PhoneHome) -> tuple[Status, str]:
    from urllib.parse import quote, urlencode  # few machines phone home

    home = change.home
    name = _line(machine, "/etc/hostname")
    known = {
        "instance_id": change.instance_id,
        "hostname": name.partition(".")[0],
        "fqdn": name,
        **{
            f"pub_key_{kind}": _line(machine, f"/etc/ssh/ssh_host_{kind}_key.pub")
            for kind in ("rsa", "ecdsa", "ed25519")
        },
    }
    form = urlencode({key: known.get(key) or _NOTHING for key in home.post}).encode()
    url = fill(home.url, {"INSTANCE_ID": quote(change.instance_id, safe="")})
    for tried in range(1, home.tries + 1):
        try:
            machine.post(url, form)
        except CommandFailed as error:
            if tried == home.tries:
                raise CommandFailed(f"{error}, in {tried} tries") from None
            machine.sleep(PAUSE)
        else:
            return "done", ""
    raise CommandFailed("not tried")


def _line(machine: Machine, path: str) -> str:
    try:
        found = files.read(machine.root, path, _SMALL)
    except (FileProblem, OSError):
        return ""
    return found.content.decode("utf-8", "replace").strip() if found else ""


def say_final(machine: Machine, text: str) -> tuple[Status, str]:
    uptime = _line(machine, "/proc/uptime").partition(" ")[0]
    now = time.localtime()
    values = {
        "version": _version(machine),
        "timestamp": time.strftime("%a, %d %b %Y %H:%M:%S %z", now),
        "datasource": _source(machine),
        "uptime": uptime or "0",
    }
    values |= {name.upper(): value for name, value in values.items()}
    body = text.removeprefix("## template: jinja\n").removeprefix("## template:jinja\n")
    for line in fill(body, values).split("\n"):
        machine.say(printable(line, 500))
    return "done", ""


def fill(text: str, values: Mapping[str, str]) -> str:
    """``$name``, ``${name}`` and ``{{ name }}`` replaced where the name is known."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[3]
        return values.get(name, match[0])

    return re.sub(r"\$([A-Za-z_]+)|\$\{([A-Za-z_]+)\}|\{\{ ?([A-Za-z_]+) ?\}\}", value, text)


def _version(machine: Machine) -> str:
    release = _line(machine, "/usr/lib/os-release")
    found = re.search(r'^IMAGE_VERSION="?([^"\n]*)', release, re.MULTILINE)
    return found[1] if found else "unknown"


def _source(machine: Machine) -> str:
    """Where the document came from, as the first stage of this boot wrote it down."""
    import json

    try:
        found = files.read(machine.root, "/run/proa/cloudinit.json", 4 * 1024 * 1024)
        content = json.loads(found.content) if found else {}
        return str(content.get("source") or "none")
    except (FileProblem, OSError, ValueError, AttributeError, RecursionError):
        return "none"


_OPTIONS = {"halt": "--halt", "poweroff": "--poweroff", "reboot": "--reboot"}

CONDITION_TIMEOUT = 600.0
"""Seconds."""


def change_power(machine: Machine, change: ChangePower) -> tuple[Status, str]:
    power = change.power
    if power.condition is not None:
        name, content = "power-condition", power.condition
        code = scripts.execute(machine, name, content, change.instance_id, CONDITION_TIMEOUT)
        if code:
            known = "" if code == 1 else f": exit status {code}, which is neither 0 nor 1"
            return "skipped" if code == 1 else "kept", f"its condition is not met{known}"
    message = (power.message,) if power.message else ()
    machine.run(("shutdown", _OPTIONS[power.mode], "--", power.delay, *message), b"")
    return "done", ""


def seed_random(machine: Machine, data: bytes) -> tuple[Status, str]:
    """Stir bytes into the kernel's pool, which counts nothing for them: they may be public."""
    path = machine.root / "dev/urandom"
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    return "done", ""
