"""The edges of a machine that cloud-config touches: its files, its programs, its kernel."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from proa.machine.cloudconfig import files, programs
from proa.machine.cloudconfig.files import FileProblem
from proa.machine.cloudconfig.parse import printable
from proa.machine.hints import Literal
from proa.machine.record import dataclass

Status = Literal["done", "unchanged", "kept", "failed", "skipped"]

COMMAND_TIMEOUT = 60.0
"""Seconds; useradd and systemctl take far less even under emulation."""
_TIMEOUTS = {
    # Work that grows with the disk: ext2 and 3 write every inode table.
    **dict.fromkeys(("mkfs.ext2", "mkfs.ext3", "mkfs.ext4", "mkfs.vfat", "mkswap"), 600.0),
    # An RSA key wants two primes, and chance says how long it takes to find them.
    "ssh-keygen": 600.0,
}
"""Seconds for the programs that may take longer."""

MAX_FILE = 64 * 1024 * 1024


class CommandFailed(Exception):
    """A program did not do what it was called for."""

    ended = False
    """It came to its end all the same: nothing is left to be done at the next boot."""


class FetchFailed(Exception):
    """Something on the network could not be had; the text holds no secret of its address."""


Run = Callable[[Sequence[str], bytes], None]
"""Run a program with this standard input; raises :class:`CommandFailed`."""

Fetch = Callable[[str, Mapping[str, str]], bytes]
"""GET an address with these headers; raises :class:`FetchFailed`."""

Ask = Callable[[Sequence[str], bytes], tuple[int, str]]
"""Run a program with this standard input for its answer: exit status and standard output. Raises
:class:`CommandFailed` only if it could not be run or took too long."""

Start = Callable[[str, float | None], int]
"""Start a unit and wait, at most so many seconds, until it has ended; the exit status of its
program. Raises :class:`CommandFailed` if it could not be started or took too long."""

Post = Callable[[str, bytes], None]
"""Send a form to an http or https address; raises :class:`CommandFailed`."""

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def fetch_url(url: str, headers: Mapping[str, str]) -> bytes:
    from proa.machine.cloudconfig.web import fetch  # most boots fetch nothing

    return fetch(url, headers)


Download = Callable[[str, Mapping[str, str], Callable[[Iterable[bytes]], None]], None]
"""GET an address and give the answer to a function piece by piece, anew for each try; raises
:class:`FetchFailed`, and what the function raises."""


def download_url(
    url: str, headers: Mapping[str, str], store: Callable[[Iterable[bytes]], None]
) -> None:
    from proa.machine.cloudconfig.web import download  # most boots download nothing

    download(url, headers, store)


def tell_console(text: str) -> None:
    """Lines for who sits at the console, and for no log. Raises ``OSError``."""
    descriptor = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb") as console:
        console.write(text.replace("\n", "\r\n").encode())


def run_program(command: Sequence[str], stdin: bytes = b"") -> None:
    """Run a program; its last line of output is the reason if it fails."""
    code, output = _run(command, stdin, "all")
    if code:
        lines = output.strip().splitlines() or ["no message"]
        raise CommandFailed(f"{command[0]}: {printable(lines[-1], 200)} ({code})")


def ask_program(command: Sequence[str], stdin: bytes = b"") -> tuple[int, str]:
    """Run a program for its exit status and standard output."""
    return _run(command, stdin, "stdout")


def _run(command: Sequence[str], stdin: bytes, output: programs.Output) -> tuple[int, str]:
    timeout = _TIMEOUTS.get(command[0], COMMAND_TIMEOUT)
    try:
        code, said = programs.run(
            command, stdin, output=output, environment=_ENVIRONMENT, timeout=timeout
        )
    except FileNotFoundError:
        raise CommandFailed(f"{command[0]} is not on this machine") from None
    except programs.TookTooLong:
        raise CommandFailed(f"{command[0]} took more than {timeout:.0f} s") from None
    return code, said.decode(errors="replace")


def start_unit(unit: str, timeout: float | None = None) -> int:
    """Run a oneshot unit to its end, outside of the narrow rights of our own service."""
    start = ("systemctl", "start", "--", unit)
    try:
        started, _ = programs.run(
            start, output="nothing", environment=_ENVIRONMENT, timeout=timeout
        )
    except FileNotFoundError:
        raise CommandFailed("systemctl is not on this machine") from None
    except programs.TookTooLong:
        run_program(("systemctl", "kill", "--kill-whom=all", "--", unit))
        run_program(("systemctl", "stop", "--", unit))
        raise CommandFailed(f"it took more than {timeout:.0f} s and was stopped") from None
    if not started:
        return 0
    properties = "--property=ExecMainCode,ExecMainStatus"
    _, shown = ask_program(("systemctl", "show", properties, "--", unit))
    # A failed unit would count against a release on trial, and the owner's script is not its fault.
    run_program(("systemctl", "reset-failed", "--", unit))
    code = exit_status(shown)
    if not code:
        raise CommandFailed(f"{unit} could not be started")
    return code


def exit_status(shown: str) -> int:
    """The exit status in what ``systemctl show`` says; 128 and the signal for a killed program."""
    found = dict(re.findall(r"^(ExecMainCode|ExecMainStatus)=(\d{1,6})$", shown, re.MULTILINE))
    status = int(found.get("ExecMainStatus", "0"))
    return status if found.get("ExecMainCode") == "1" or not status else 128 + status


POST_TIMEOUT = 10.0
"""Seconds that an address has to answer a form."""


def post_form(url: str, data: bytes) -> None:
    """POST ``data`` as a form. The reason of a failure never holds the address."""
    import http.client  # few machines phone home
    import urllib.error
    import urllib.request

    try:
        place, authorization = _without_user(url)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "proa"}
        request = urllib.request.Request(place, data, headers)  # noqa: S310 (checked when read)
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        with urllib.request.urlopen(request, timeout=POST_TIMEOUT):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise CommandFailed(f"the answer was {error.code}") from None
    except urllib.error.URLError as error:
        raise CommandFailed(printable(str(error.reason), 100)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CommandFailed(type(error).__name__) from None


def _without_user(url: str) -> tuple[str, str]:
    """An address without its user and password, and the header that they become (RFC 7617)."""
    from urllib.parse import urlsplit

    from proa.machine.cloudconfig.values import basic_authorization

    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    name, _, password = user.partition(":")
    return parts._replace(netloc=host).geturl(), basic_authorization(name, password)


@dataclass(frozen=True)
class Machine:
    """The edges: a root directory, ways to run programs, the kernel's host name, the network, the
    console."""

    root: Path
    run: Run
    set_hostname: Callable[[str], None]
    fetch: Fetch = fetch_url
    tell: Callable[[str], None] = tell_console
    ask: Ask = ask_program
    start: Start = start_unit
    post: Post = post_form
    say: Callable[[str], None] = print
    sleep: Callable[[float], None] = time.sleep
    download: Download = download_url


# The databases of users and groups, read from the files themselves: what NSS would add is not ours
# to change.


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int
    home: str


def database(machine: Machine, path: str) -> dict[str, list[str]]:
    """Entries of a file like /etc/passwd by name (passwd(5), group(5), shadow(5))."""
    found = files.read(machine.root, path, MAX_FILE)
    lines = found.content.decode("utf-8", "replace").split("\n") if found else []
    entries = [line.split(":") for line in lines if ":" in line]
    return {entry[0]: entry for entry in entries}


def find_account(machine: Machine, name: str) -> Account | None:
    entry = database(machine, "/etc/passwd").get(name)
    if entry is None or len(entry) < 7 or not (entry[2].isdigit() and entry[3].isdigit()):
        return None
    return Account(int(entry[2]), int(entry[3]), entry[5])


def root_ids() -> tuple[int, int]:
    """Root's ids; in a test, which is not root, the ids of whoever runs it."""
    return (0, 0) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def owner_ids(machine: Machine, owner: str) -> tuple[int, int]:
    if owner == "root:root":
        return root_ids()
    user, _, group = owner.partition(":")
    if user.isdigit():
        uid, gid = int(user), 0
    else:
        found = find_account(machine, user)
        if found is None:
            raise FileProblem(f"there is no user {user}")
        uid, gid = found.uid, found.gid
    if group:
        entry = database(machine, "/etc/group").get(group, ["", "", group])
        if len(entry) < 3 or not entry[2].isdigit():
            raise FileProblem(f"there is no group {group}")
        gid = int(entry[2])
    return uid, gid
