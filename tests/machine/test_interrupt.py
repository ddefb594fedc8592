"""Ctrl-C of a real ``./proa up`` while it builds leaves nothing behind, wherever it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import proa
from proa import paths
from proa.factory import build, cache, recipe

pytestmark = pytest.mark.machine

CHECKOUT = Path(proa.__file__).parents[2]

# The program that runs while the step is going on.
STEPS = {
    "installing the SDK": "dpkg",
    "installing the packages": "dpkg",
    "unpacking the packages": "tar",
    "compressing /usr": "mkfs.erofs",
}

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture
def caches() -> Iterator[Path]:
    """A cache of our own that has all downloads, so that none is waited for."""
    warm = paths.cache_dir()
    build.prepare(recipe.load(recipe.DEFAULT).packages, warm, print)
    with cache.scratch(warm) as directory:
        ours = directory / "cache"
        ours.mkdir()
        (ours / "snapshot").write_text((warm / "snapshot").read_text())
        for path in [*(warm / name for name in ("snapshots", "downloads")), *warm.glob("venv-*")]:
            (ours / path.name).symlink_to(path)
        yield ours


@pytest.fixture
def orphans_are_ours() -> Iterator[None]:
    """Processes whose parents end become children of this one, so that none can hide."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@pytest.mark.usefixtures("orphans_are_ours")
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_up_leaves_nothing(step: str, caches: Path, tmp_path: Path) -> None:
    warm, home = paths.cache_dir(), tmp_path / "home"
    if step != "installing the SDK":
        (caches / "sdk").symlink_to(warm / "sdk")
    if step in ("unpacking the packages", "compressing /usr"):
        (caches / "trees").symlink_to(warm / "trees")
    known, mounts = children(), mounted()
    up = subprocess.Popen(
        [CHECKOUT / "proa", "up"],
        env={**os.environ, "PROA_CACHE": str(caches), "PROA_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever runs these tests in the background may have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: STEPS[step] in programs(up.pid), up, 300)
        # As a terminal does it: to all of them at once.
        os.killpg(up.pid, signal.SIGINT)
        said, _ = up.communicate(timeout=60)
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
            up.wait()
    assert up.returncode == 130, said
    assert left_running(children() - known) == []
    assert mounted() == mounts
    assert list(caches.glob("work-*")) == []
    assert [path for path in (home / "releases").glob("*") if path.exists()] == []
    assert [path for path in (home / "machines").iterdir() if path.is_dir()] == []


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until ``there()`` holds; it must, before the process ends."""
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def programs(session: int) -> set[str]:
    """Return the names of the programs that run in a session, whatever their namespaces."""
    names = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # proc_pid_stat(5): pid (name) state parent group session
            head, _, tail = stat.read_text().rpartition(")")
            if int(tail.split()[3]) == session:
                names.add(head.partition("(")[2])
    return names


def children() -> set[int]:
    """Return the pids of this process's children."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def left_running(pids: set[int]) -> list[str]:
    """Return the command lines of those that still run a moment later; reap the others."""
    end = time.monotonic() + 5
    while pids and time.monotonic() < end:
        pids = {pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0}
        time.sleep(0.05)
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]


def mounted() -> list[str]:
    """Return what is mounted, without what counts things (the numbers change by themselves)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split()[4] for line in lines)
