"""One updater at a time, and what it is doing for those who look on.

Both files are in ``/run/proa``: ``update.lock`` is held (flock) while an updater works, and
``progress.json`` says how far it is. A progress file without a held lock is of the past.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from proa.machine.errors import Code, MachineError
from proa.machine.system import System


@dataclass(frozen=True)
class Progress:
    """``operation`` is idle, checking, downloading, verifying or finalizing; sizes in bytes."""

    operation: str = "idle"
    version: str = ""
    done: int = 0
    size: int = 0


@contextlib.contextmanager
def held(system: System) -> Iterator[None]:
    """Be the one updater, or raise with code 18."""
    path = system.run_dir / "update.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            raise MachineError(
                Code.BUSY,
                f"another updater is at work (process {pid or 'unknown'})",
                "`proactl status` shows how far it is",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            (system.run_dir / "progress.json").unlink()
        os.close(fd)


def show(system: System, progress: Progress) -> None:
    """Publish how far the updater is. It is in memory and may be lost: no flush."""
    path = system.run_dir / "progress.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(progress)))
    temporary.replace(path)


def look(system: System) -> Progress:
    """Return what the updater at work is doing, or an idle progress where none is."""
    try:
        with (system.run_dir / "update.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = (system.run_dir / "progress.json").read_text()
                return Progress(**json.loads(text))
    except (OSError, ValueError, TypeError):
        pass
    return Progress()
