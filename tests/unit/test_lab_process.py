"""Processes are known by pid and start time, and ended only if they are the ones meant."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import proa
from proa.lab import process
from proa.lab.process import Process


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    started = process.start(
        ["sleep", "600"], directory=tmp_path, log=tmp_path / "log", dies_with_us=False
    )
    yield started
    process.stop(started)


def test_a_started_process_runs_until_it_is_stopped(sleeper: Process) -> None:
    assert process.is_running(sleeper)
    process.stop(sleeper)
    assert not process.is_running(sleeper)


def test_stopping_twice_is_no_error(sleeper: Process) -> None:
    process.stop(sleeper)
    process.stop(sleeper)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}])
def test_a_process_that_only_has_the_same_pid_is_left_alone(
    sleeper: Process, change: dict[str, object]
) -> None:
    other = dataclasses.replace(sleeper, **change)  # type: ignore[arg-type]
    assert not process.is_running(other)
    process.stop(other, grace=0)
    assert process.is_running(sleeper)


def test_a_process_that_ignores_the_polite_signal_is_ended_by_force(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deaf = process.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
        directory=tmp_path,
        log=log,
        dies_with_us=False,
    )
    while "ready" not in log.read_text():
        time.sleep(0.01)
    process.stop(deaf, grace=0.2)
    assert not process.is_running(deaf)


def test_its_words_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = process.start(
        ["sh", "-c", "echo out; echo err >&2"], directory=tmp_path, log=log, dies_with_us=False
    )
    while process.is_running(started):
        time.sleep(0.01)
    process.stop(started)
    assert log.read_text() == "out\nerr\n"


def test_a_process_that_shall_not_outlive_its_starter_does_not(tmp_path: Path) -> None:
    starter = """
import os, signal, sys
from pathlib import Path
from proa.lab import process
p = process.start(["sh", "-c", "echo ready; exec sleep 600"], directory=Path("."),
                  log=Path("log"), dies_with_us=True)
while "ready" not in Path("log").read_text():
    pass
print(p.pid, p.start, p.boot, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run(
        [sys.executable, "-c", starter],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(proa.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    pid, start, boot = result.stdout.split()
    orphan = Process(int(pid), int(start), boot)
    # The kernel sends the signal as the starter dies; only its delivery has to be waited for.
    end = time.monotonic() + 10
    while process.is_running(orphan) and time.monotonic() < end:
        time.sleep(0.01)
    assert not process.is_running(orphan)
