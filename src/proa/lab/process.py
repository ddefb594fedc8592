"""Processes that outlive the command that started them, known by pid *and* start time.

A pid alone is no name: after a reboot, or some hours, another process may have it. The kernel's
start time (field 22 of /proc/PID/stat, in clock ticks since boot) together with the boot's id
makes it one, so nothing is ever ended that was not started here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Children of this very process, kept so that they can be waited for.
_children: dict[Process, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A started process: ``start`` in clock ticks since the boot named ``boot``."""

    pid: int
    start: int
    boot: str


def start(
    command: Sequence[str],
    *,
    directory: Path,
    log: Path,
    dies_with_us: bool,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start ``command`` in a session of its own, its output going to ``log``.

    With ``dies_with_us`` the kernel ends it when this process ends, however that happens; the
    caller must start it from its main thread, whose life is the one that counts.
    """
    # Not a preexec_fn, which is unsafe with threads: setpriv (util-linux) does it after the fork.
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if dies_with_us else []
    with log.open("ab") as output:
        child = subprocess.Popen(
            [*guard, *command],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Until it is waited for, a child that has ended already still has its entry in /proc.
    started = _read(child.pid)[0]
    _children[started] = child
    return started


def identify(pid: int) -> Process | None:
    """Return who ``pid`` is now, or None if nobody (a zombie is nobody: it has ended)."""
    try:
        found, state = _read(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else found


def _read(pid: int) -> tuple[Process, str]:
    """Return the process and its state letter (proc_pid_stat(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The name in field 2 may hold spaces and brackets; what follows its last ")" may not.
    fields = stat.rpartition(")")[2].split()
    return Process(pid, int(fields[19]), _BOOT_ID.read_text().strip()), fields[0]


def is_running(process: Process) -> bool:
    """Say whether exactly this process still runs."""
    return identify(process.pid) == process


def stop(process: Process, grace: float = 5.0) -> None:
    """End ``process`` politely, after ``grace`` seconds by force; with no grace by force at once.

    Doing it twice is no error.
    """
    signals = ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0))
    for sign, patience in signals if grace else signals[1:]:
        if not is_running(process):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sign)
        end = time.monotonic() + patience
        while is_running(process) and time.monotonic() < end:
            time.sleep(0.02)
    # If it was our own child, take its exit status so that no zombie stays.
    if (child := _children.pop(process, None)) is not None:
        child.wait()


@contextlib.contextmanager
def stopped_on_error(process: Process) -> Iterator[None]:
    """Stop ``process`` if the body fails or is interrupted."""
    try:
        yield
    except BaseException:
        stop(process)
        raise


@contextlib.contextmanager
def ended_on_error(child: subprocess.Popen[str]) -> Iterator[None]:
    """If the body fails or is interrupted, end ``child``, which gets time to clean up first."""
    try:
        yield
    except BaseException:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    finally:
        if child.stderr is not None:
            child.stderr.close()
