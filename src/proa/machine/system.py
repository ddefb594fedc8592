"""Where the machine's programs touch the world: paths, commands and the clock.

Everything outside is reached through one frozen :class:`System`, so a test can give a directory
in place of ``/``, with a disk, a ``/sys`` and a ``/boot`` of plain files in it.
"""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from proa.machine.assignments import assignments
from proa.machine.errors import Code, MachineError
from proa.machine.files import Files
from proa.wire.version import Version, VersionError, parse

# uname -m → the name of the architecture in Debian, and so in a release's manifest.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Completed:
    """A command that has ended. ``output`` is its standard output and error, in order."""

    code: int
    output: str


def run_command(command: Sequence[str], timeout: float) -> Completed:
    """Run a command without a shell and give back how it ended; never raises.

    A command that cannot be started ends with 127, one that takes longer than ``timeout`` seconds
    with 124 (and is killed), as in a shell.
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode("utf-8", "replace")
        return Completed(124, f"{output}\nno answer within {timeout:.0f} s")
    except OSError as error:
        return Completed(127, f"{command[0]}: {error.strerror}")
    return Completed(done.returncode, done.stdout.decode("utf-8", "replace"))


def free_bytes(path: Path) -> int:
    """Return the room on the file system of ``path``, in bytes."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def in_child(work: Callable[[], Any]) -> Any:
    """Do some work in a child process and return its result: its memory goes with it.

    A :class:`MachineError` or OSError of the child is raised here. The result crosses a pipe
    between two halves of one program, so it may be pickled.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(work, theirs)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as pipe:
            data = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not data:
        raise MachineError(
            Code.UNEXPECTED,
            f"a part of the updater ended early ({os.waitstatus_to_exitcode(status)})",
            "look for the reason with `journalctl -k` (out of memory?)",
        )
    kind, result = pickle.loads(data)  # noqa: S301
    if kind == "machine":
        raise MachineError(*result)
    if kind == "os":
        raise OSError(*result)
    return result


def _be_child(work: Callable[[], Any], pipe: int) -> NoReturn:
    status = 1
    try:
        try:
            answer: tuple[str, Any] = "done", work()
        except MachineError as error:
            answer = "machine", (Code(error.code), error.message, error.hint)
        except OSError as error:
            answer = "os", (error.errno, error.strerror, error.filename)
        with os.fdopen(pipe, "wb") as out:
            out.write(pickle.dumps(answer))
        status = 0
    except KeyboardInterrupt:
        pass  # The parent is interrupted too, and says so.
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the parent's may be done twice: no finally, no atexit, no flush.
        sys.stderr.flush()
        os._exit(status)


@dataclass(frozen=True)
class System:
    """The machine as the programs see it. ``now`` is in seconds since 1970."""

    root: Path = Path("/")
    files: Files = field(default_factory=Files)
    run: Callable[[Sequence[str], float], Completed] = run_command
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    free: Callable[[Path], int] = free_bytes
    apart: Callable[[Callable[[], Any]], Any] = in_child
    hardware: str = platform.machine()

    def path(self, absolute: str) -> Path:
        return self.root / absolute.removeprefix("/")

    @property
    def esp(self) -> Path:
        """The EFI system partition; an automount, so the first look at it may take a moment."""
        return self.path("/boot")

    @property
    def state_dir(self) -> Path:
        return self.path("/var/lib/proa/update")

    @property
    def run_dir(self) -> Path:
        return self.path("/run/proa")

    @property
    def architecture(self) -> str:
        return _ARCHITECTURES.get(self.hardware, self.hardware)

    def text(self, absolute: str, default: str = "") -> str:
        """Return a small file's content without the last newline, or ``default``."""
        try:
            return self.path(absolute).read_text("utf-8", "replace").rstrip("\n")
        except OSError:
            return default

    @property
    def boot_id(self) -> str:
        return self.text("/proc/sys/kernel/random/boot_id")

    @property
    def uptime(self) -> float:
        """Seconds since the kernel started."""
        return float((self.text("/proc/uptime") or "0").split()[0])

    @property
    def uefi(self) -> bool:
        return self.path("/sys/firmware/efi").exists()


def system_from_environment() -> System:
    """The real machine; ``PROA_ROOT`` names another root, for trying things out and for tests."""
    return System(root=Path(os.environ.get("PROA_ROOT", "/")))


@dataclass(frozen=True)
class Running:
    """The system that runs now. ``built`` is its source date, seconds since 1970."""

    version: Version
    built: int


def running(system: System) -> Running:
    """Read which version runs from ``/usr/lib/os-release``, which is under dm-verity."""
    release = assignments(system.text("/usr/lib/os-release"))
    text = release.get("IMAGE_VERSION") or release.get("VERSION_ID", "")
    try:
        version = parse(text)
    except VersionError as error:
        raise MachineError(
            Code.UNEXPECTED,
            f"/usr/lib/os-release: IMAGE_VERSION: {error}",
            "proactl works on a Proa machine",
        ) from None
    built = release.get("BUILD_ID", "")
    return Running(version, int(built) if built.isdigit() else 0)


def size_words(count: int) -> str:
    """Return a size in words, in decimal units as networks and disks count."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count} bytes"
