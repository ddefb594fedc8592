"""``coreos-cloudinit`` with the flags, the messages and the exit codes of the original.

Source: ``reference/coreos/cloudinit.md`` 3.5 and ``recorded-behaviour.md`` A.5. Behind it is the
same code as at boot: the document becomes a list of changes before anything is touched, and one
with an error is refused as a whole. A machine does not need this program to boot: it is for those
who call it by hand or from a unit of their own.

Exit status: 0 done, 1 it did not work, 2 usage.
"""

from __future__ import annotations

import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proa.machine import cloudinit
from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.changes import (
    WORKSPACE,
    AuthorizeKeys,
    Change,
    RunScript,
    StartScript,
)
from proa.machine.cloudconfig.coreos_validate import is_ignition, validate
from proa.machine.cloudconfig.machine import Machine, run_program
from proa.machine.cloudconfig.metadata import NO_METADATA
from proa.machine.cloudconfig.parse import MAX_BYTES, Refused, gunzip
from proa.machine.cloudconfig.plan import Plan
from proa.machine.cloudconfig.sources import Source, find_named
from proa.machine.cloudconfig.values import clean_path
from proa.machine.record import dataclass, replace

VERSION = "1.14.0+proa"
"""The last version of the original, whose behaviour this has."""

FIRST_PAUSE, LONGEST_PAUSE, PATIENCE = 0.1, 30.0, 300.0
"""Seconds: between two looks at a source that is not there yet, at first and at most; in all."""

OK, FAILED, USAGE = 0, 1, 2
KEY_NAME = "coreos-cloudinit"


# The flags.


@dataclass(frozen=True)
class _Flag:
    help: str
    takes: str = "string"
    """What Go's help calls the value; "" for a switch."""
    default: str = ""


_FLAGS: Mapping[str, _Flag] = {
    "convert-netconf": _Flag(
        "Read the network config provided in cloud-drive and translate it from the specified "
        "format into networkd unit files"
    ),
    "from-cloudsigma-metadata": _Flag("Download data from CloudSigma server context", ""),
    "from-configdrive": _Flag("Read data from provided cloud-drive directory"),
    "from-digitalocean-metadata": _Flag("Download DigitalOcean data from the provided url"),
    "from-ec2-metadata": _Flag("Download EC2 data from the provided url"),
    "from-file": _Flag("Read user-data from provided file"),
    "from-gce-metadata": _Flag("Download GCE data from the provided url"),
    "from-metadata-service": _Flag(
        "[DEPRECATED - Use -from-ec2-metadata] Download data from metadata service", ""
    ),
    "from-packet-metadata": _Flag("Download Packet data from metadata service"),
    "from-proc-cmdline": _Flag(
        "Parse /proc/cmdline for 'cloud-config-url=<url>', using the cloud-config served by an "
        "HTTP GET to <url>",
        "",
    ),
    "from-url": _Flag("Download user-data from provided url"),
    "from-vmware-guestinfo": _Flag("Read data from VMware guestinfo", ""),
    "from-vmware-ovf-env": _Flag("Read data from OVF Environment"),
    "from-waagent": _Flag("Read data from provided waagent directory"),
    "ignore-failure": _Flag(
        "Exits with 0 status in the event of malformed input from user-data", ""
    ),
    "oem": _Flag("Use the settings specific to the provided OEM"),
    "ssh-key-name": _Flag("Add SSH keys to the system with the given name", default=KEY_NAME),
    "validate": _Flag(
        "[EXPERIMENTAL] Validate the user-data but do not apply it to the system", ""
    ),
    "version": _Flag("Print the version and exit", ""),
    "workspace": _Flag(
        "Base directory coreos-cloudinit should use to store data", default=WORKSPACE
    ),
}
_OEMS: Mapping[str, Mapping[str, str]] = {
    "azure": {"from-waagent": "/var/lib/waagent"},
    "cloudsigma": {"from-cloudsigma-metadata": "true"},
    "digitalocean": {"from-digitalocean-metadata": "http://169.254.169.254/"},
    "ec2-compat": {
        "from-ec2-metadata": "http://169.254.169.254/",
        "from-configdrive": "/media/configdrive",
    },
    "gce": {"from-gce-metadata": "http://metadata.google.internal/"},
    "packet": {"from-packet-metadata": "https://metadata.packet.net/"},
    "rackspace-onmetal": {"from-configdrive": "/media/configdrive", "convert-netconf": "debian"},
    "vmware": {"from-vmware-guestinfo": "true", "convert-netconf": "vmware"},
}
_FORMATS = {"debian": "eni", "packet": "packet", "vmware": "vmware"}
"""What ``-convert-netconf`` calls a format, and its kind in :mod:`metadata`."""

_NO_SOURCE = (
    "Provide at least one of --from-file, --from-configdrive, --from-ec2-metadata, "
    "--from-gce-metadata, --from-cloudsigma-metadata, --from-packet-metadata, "
    "--from-digitalocean-metadata, --from-vmware-guestinfo, --from-waagent, --from-url or "
    "--from-proc-cmdline"
)


class _Usage(Exception):
    """The command line is wrong; the text is Go's."""


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Flags by name, as Go's ``flag`` package takes them: ``-x``, ``--x``, ``-x=v`` and ``-x v``.

    A switch that is off is not there. What follows the flags is passed over, as it was.
    """
    values: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        flag = _FLAGS.get(name)
        if name in ("h", "help"):
            raise _Usage("")
        if flag is None:
            raise _Usage(f"flag provided but not defined: -{name}")
        if flag.takes and not equals:
            if not left:
                raise _Usage(f"flag needs an argument: -{name}")
            value = left.pop(0)
        elif not flag.takes:
            value = _switch(name, value if equals else "true")
        values[name] = value
    return {name: value for name, value in values.items() if value}


def _switch(name: str, value: str) -> str:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return "true"
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return ""
    raise _Usage(f'invalid boolean value "{value}" for -{name}: parse error')


def usage() -> str:
    lines = ["Usage of coreos-cloudinit:"]
    for name, flag in _FLAGS.items():
        default = f' (default "{flag.default}")' if flag.default else ""
        lines += [f"  -{name} {flag.takes}".rstrip(), f"    \t{flag.help}{default}"]
    return "\n".join(lines)


# The sources. Each function answers ``None`` if its source is not there yet.

_Fetch = Callable[[str, Machine, float], Source | None]
"""The flag's value, the machine, and how many seconds it may take."""


def _from_file(value: str, machine: Machine, patience: float) -> Source | None:
    path = Path(value)
    if not path.exists():
        return None
    with path.open("rb") as file:
        return Source(f"file {value}", NO_METADATA, file.read(MAX_BYTES + 1))


def _here(kind: str) -> _Fetch:
    """A source in a directory or a file."""

    def fetch(value: str, machine: Machine, patience: float) -> Source | None:
        return find_named(kind, value, machine.root, machine.run)

    return fetch


def _there(kind: str) -> _Fetch:
    """A source on the network, which is asked again and again until it answers."""

    def fetch(value: str, machine: Machine, patience: float) -> Source | None:
        from proa.machine.cloudconfig.sources.http import PATIENCE  # brings HTTP

        waits = replace(PATIENCE, deadline=patience)
        found = find_named(kind, value, machine.root, machine.run, patience=waits)
        if found is not None and found.unread and found.metadata == NO_METADATA:
            for problem in found.problems:
                _log(problem.message)
            return None
        return found

    return fetch


def _from_cmdline(value: str, machine: Machine, patience: float) -> Source | None:
    found = files.read(machine.root, "/proc/cmdline", 65536)
    words = found.content.decode("utf-8", "replace").split() if found else []
    pairs = [word.partition("=") for word in words]
    named = [v for name, _, v in pairs if name.replace("_", "-") == "cloud-config-url" and v]
    return _there("url")(named[-1], machine, patience) if named else None


SOURCES: Mapping[str, tuple[str, _Fetch | None]] = {
    "from-file": ("local-file", _from_file),
    "from-url": ("url", _there("url")),
    "from-configdrive": ("cloud-drive", _here("config-drive")),
    "from-metadata-service": ("ec2-metadata-service", _there("ec2")),
    "from-ec2-metadata": ("ec2-metadata-service", _there("ec2")),
    "from-gce-metadata": ("gce-metadata-service", _there("gce")),
    "from-cloudsigma-metadata": ("server-context", None),
    "from-digitalocean-metadata": ("digitalocean-metadata-service", _there("digitalocean")),
    "from-waagent": ("waagent", _here("waagent")),
    "from-packet-metadata": ("packet-metadata-service", _there("packet")),
    "from-proc-cmdline": ("proc-cmdline", _from_cmdline),
    "from-vmware-guestinfo": ("vmware", _here("vmware")),
    "from-vmware-ovf-env": ("vmware", _here("ovf")),
}
"""By flag: what the original calls the source, and how it is read; ``None`` is not read at all."""

_SWITCHES = ("from-metadata-service", "from-proc-cmdline", "from-vmware-guestinfo")
"""Flags without a value of their own."""


def select(
    flags: Mapping[str, str], machine: Machine, patience: float
) -> tuple[str, Source] | None:
    """The first source that answers, of all that were named, and its type. All are asked at once,
    again and again; ``None`` after ``patience`` seconds or when none is left that may appear."""
    wanted = [(name, "" if name in _SWITCHES else flags[name]) for name in SOURCES if name in flags]
    answers: queue.Queue[tuple[str, Source] | None] = queue.Queue()
    stop = threading.Event()
    deadline = time.monotonic() + patience

    def ask(name: str, value: str) -> None:
        kind, fetch = SOURCES[name]
        pause = FIRST_PAUSE
        if fetch is None:
            _log(f"-{name}: this cloud is not known to Proa")
        while fetch is not None and (left := deadline - time.monotonic()) > 0:
            _log(f'Checking availability of "{kind}"')
            try:
                found = fetch(value, machine, left)
            except (OSError, files.FileProblem) as error:
                _log(f"{kind}: {error}")
                break
            if found is not None:
                answers.put((kind, found))
                return
            if stop.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
        answers.put(None)

    for name, value in wanted:
        # They end with the program, whatever a network makes them wait for.
        threading.Thread(target=ask, args=(name, value), daemon=True).start()
    try:
        for _ in wanted:
            if answer := answers.get(timeout=max(deadline - time.monotonic(), 0.001)):
                return answer
    except queue.Empty:
        pass
    finally:
        stop.set()
    return None


# The program.


def main(
    arguments: Sequence[str] | None = None,
    machine: Machine | None = None,
    patience: float = PATIENCE,
) -> int:
    """Run the program on this machine, or on ``machine``; returns the exit status."""
    try:
        flags = parse(sys.argv[1:] if arguments is None else arguments)
    except _Usage as wrong:
        if str(wrong):
            _log(str(wrong))
        _log(usage())
        return USAGE if str(wrong) else OK
    if (oem := flags.get("oem")) is not None:
        if oem not in _OEMS:
            known = " ".join(f'"{name}"' for name in _OEMS)
            print(f'Invalid option to -oem: "{oem}". Supported options: [{known}]')
            return USAGE
        flags |= _OEMS[oem]
    if "version" in flags:
        print(f"coreos-cloudinit {VERSION}")
        return OK
    netconf = flags.get("convert-netconf", "")
    if netconf and netconf not in _FORMATS:
        print(
            f"Invalid option to -convert-netconf: '{netconf}'. "
            f"Supported options: '{', '.join(_FORMATS)}'"
        )
        return USAGE
    if not any(name in SOURCES for name in flags):
        print(_NO_SOURCE)
        return USAGE
    if complaint := _complaint(flags):
        print(complaint)
        return USAGE
    machine = machine or Machine(Path("/"), run_program, socket.sethostname)
    found = select(flags, machine, patience)
    if found is None:
        _log("No datasources available in time")
        return FAILED
    kind, source = found
    _log(f'Fetching meta-data from datasource of type "{kind}"')
    network = source.metadata.network
    if netconf and (network is None or network[0] != _FORMATS[netconf]):
        _log(f"Failed to setup network units: the datasource has no network config for {netconf}")
        return FAILED
    if not netconf:
        source = replace(source, metadata=replace(source.metadata, network=None))
    _log(f'Fetching user-data from datasource of type "{kind}"')
    return _run(flags, machine, source)


def _complaint(flags: Mapping[str, str]) -> str:
    """What is wrong with a value that becomes part of a path or of a file."""
    try:
        clean_path(flags.get("workspace", WORKSPACE))
    except ValueError as error:
        return f"Invalid option to -workspace: the path {error}"
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", flags.get("ssh-key-name", KEY_NAME)):
        return "Invalid option to -ssh-key-name: a name is letters, digits and _.@-"
    return ""


def _run(flags: Mapping[str, str], machine: Machine, source: Source) -> int:
    data, failure = source.user_data or b"", False
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gunzip(data, MAX_BYTES)
        except Refused as refused:
            _log(f"Failed decompressing user-data from datasource: {refused}. Continuing...")
            failure, data = True, b""
    entries = validate(data)
    for entry in entries:
        _log(str(entry))
    if "validate" in flags:
        return FAILED if entries or failure else OK
    if is_ignition(data):
        print("Detected an Ignition config. Exiting...")
        return OK
    workspace = clean_path(flags.get("workspace", WORKSPACE))

    def adjust(planned: Plan) -> Plan:
        if planned.refused and any(entry.message.startswith("must be") for entry in entries):
            _log("Failed to parse user-data: Unrecognized user-data format\nContinuing...")
        script = data.startswith(b"#!")
        changes = (_as_flagged(c, flags, workspace, script) for c in planned.changes)
        return replace(planned, changes=tuple(changes))

    code = cloudinit.apply_by_hand(machine, replace(source, user_data=data), adjust)
    failure = failure or code != cloudinit.OK
    return FAILED if failure and "ignore-failure" not in flags else OK


def _as_flagged(change: Change, flags: Mapping[str, str], workspace: str, script: bool) -> Change:
    if script and isinstance(change, RunScript):  # the document is one script, and nothing else
        return StartScript(change.content, workspace)
    if isinstance(change, AuthorizeKeys) and (name := flags.get("ssh-key-name", "")) != KEY_NAME:
        return replace(change, part=name)
    return change


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
