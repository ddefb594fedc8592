"""A program is run to its end, with its input and output in memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from proa.machine.cloudconfig import programs

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def shell(
    script: str, stdin: bytes = b"", output: programs.Output = "all", timeout: float = 60.0
) -> tuple[int, bytes]:
    command = ("sh", "-c", script)
    return programs.run(command, stdin, output=output, environment=ENVIRONMENT, timeout=timeout)


def test_a_program_gets_its_input_and_its_output_comes_back() -> None:
    assert shell("cat; exit 3", b"hello\n") == (3, b"hello\n")


def test_errors_are_part_of_the_output_only_where_all_is_asked_for() -> None:
    script = "echo out; echo error >&2; echo end"
    assert shell(script) == (0, b"out\nerror\nend\n")
    assert shell(script, output="stdout") == (0, b"out\nend\n")
    assert shell(script, output="nothing") == (0, b"")


def test_much_input_and_much_output_at_once_stop_nothing() -> None:
    data = os.urandom(1 << 20)
    assert shell("cat; cat /dev/zero | head -c 1000000 >&2", data) == (0, data + bytes(1_000_000))


def test_without_input_a_program_reads_the_end() -> None:
    assert shell("wc -c")[1].strip() == b"0"


def test_a_program_has_the_environment_that_is_said_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OURS", "secret")
    environment = {**ENVIRONMENT, "WORD": "a b"}
    status, said = programs.run(("env",), output="all", environment=environment, timeout=60)
    assert (status, sorted(said.decode().split("\n"))) == (
        0,
        ["", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "WORD=a b"],
    )


def test_a_program_is_looked_for_in_its_own_path(tmp_path: Path) -> None:
    for name in ("not-executable", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "good/tool").chmod(0o755)
    path = f"{tmp_path}/none:{tmp_path}/not-executable:{tmp_path}/good"
    found = programs.run(("tool",), output="all", environment={"PATH": path}, timeout=60)
    assert found == (0, b"found\n")
    with pytest.raises(FileNotFoundError):
        programs.run(("tool",), output="all", environment=ENVIRONMENT, timeout=60)
    with pytest.raises(PermissionError):
        programs.run(
            (f"{tmp_path}/not-executable/tool",),
            output="all",
            environment=ENVIRONMENT,
            timeout=60,
        )


def test_what_kills_a_program_is_a_status_below_zero() -> None:
    assert shell("kill -KILL $$")[0] == -9


def test_signals_that_python_ignores_end_a_program_as_ever() -> None:
    assert shell("kill -PIPE $$")[0] == -13
    assert shell("kill -XFSZ $$")[0] == -25


def test_a_program_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    spawn = os.posix_spawn

    def noting(*words: Any, **named: Any) -> int:
        started.append(spawn(*words, **named))
        return started[-1]

    monkeypatch.setattr(os, "posix_spawn", noting)
    with pytest.raises(programs.TookTooLong):
        shell("exec sleep 600", timeout=0.1)
    with pytest.raises(ChildProcessError):  # it was waited for, so it has ended
        os.waitpid(started[0], 0)


def test_what_a_program_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    assert shell(f"sleep 600 & echo $! > {tmp_path}/pid") == (0, b"")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # an error if it had ended


def test_no_descriptor_of_ours_is_left_open_nor_given_to_the_program(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names are all that is wanted)
    with (tmp_path / "file").open("w") as ours:
        _, seen = shell("ls -l /proc/self/fd")
        assert str(tmp_path).encode() not in seen
        assert b"stdin" in seen
        assert len([line for line in seen.split(b"\n") if b"memfd" in line]) == 3
        assert not os.get_inheritable(ours.fileno())
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
